//! What is too long, too deep or too many, with its place and message.

use super::super::Format;
use super::problems::{assert_job_problems, job};
use super::{check, report};

#[test]
fn texts_that_no_agent_could_take_are_refused() {
    let text = "v".repeat(102_401);
    let long = "v".repeat(512 * 1024 + 1);
    assert_eq!(
        report(Format::Yaml, &format!("name: p\nenv: {{A: {text}}}\njobs: {{a: {{command: [x, {text}]}}}}")),
        "2:10: an argument or variable takes at most 102400 bytes [value]\n\
         3:25: an argument or variable takes at most 102400 bytes [value]"
    );
    assert_eq!(
        report(Format::Yaml, &format!("name: p\ndescription: {text}\njobs: {{a: {{run: {long}}}}}")),
        "2:14: `description` takes at most 65536 bytes [limit]\n3:17: `run` takes at most 524288 bytes [limit]"
    );
}

#[test]
fn deep_and_endless_files_end_at_their_bounds() {
    for format in [Format::Yaml, Format::Json, Format::Toml] {
        let text = match format {
            Format::Toml => format!("a = {}", "[".repeat(100_000)),
            _ => "[".repeat(100_000),
        };
        assert!(check(format, text.as_bytes()).is_err());
    }
    let nested = format!("{}1{}", "[".repeat(17), "]".repeat(17));
    assert_eq!(report(Format::Json, &nested), "1:17: nested more than 16 levels deep [limit]");
    let many = format!("[{}1]", "1,".repeat(1_000_000));
    assert!(report(Format::Json, &many).contains("more than 1000000 keys and values [limit]"));
    let unknown = (0..200).map(|n| format!("k{n}: 1\n")).collect::<String>();
    let error = check(Format::Yaml, unknown.as_bytes()).unwrap_err();
    assert_eq!((error.problems.len(), error.omitted), (50, 152));
    assert!(error.report("f").ends_with("f: and 152 more problems"));
}

#[test]
fn a_job_takes_no_more_rules_and_labels_than_it_may() {
    let list = |count: usize, item: fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(", ");
    let artifacts = |count| job(&format!("artifacts: [{}]", list(count, |n| format!("a{n}"))));
    let labels = |count| job(&format!("labels: {{ {} }}", list(count, |n| format!("l{n}: x"))));
    for text in [artifacts(1024), labels(64)] {
        check(Format::Yaml, text.as_bytes()).unwrap();
    }
    assert!(report(Format::Yaml, &artifacts(1025)).ends_with("a job takes at most 1024 artifacts [limit]"));
    assert!(report(Format::Yaml, &labels(65)).ends_with("a job takes at most 64 labels [limit]"));
}

#[test]
fn a_limit_of_the_log_is_an_amount_of_bytes_in_its_range() {
    assert_job_problems(&[
        ("log_limit: 1B", "5:16: `log_limit` is from 1KiB to 1TiB [value]"),
        ("log_limit: 2TiB", "5:16: `log_limit` is from 1KiB to 1TiB [value]"),
        (
            "log_limit: 5",
            "5:16: `5`: an amount of bytes is written like `512MiB` or `2GiB` (B, KiB, MiB, GiB, TiB, kB, MB, GB, TB), at most 1024TiB [value]",
        ),
    ]);
}
