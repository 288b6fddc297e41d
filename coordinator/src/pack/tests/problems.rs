//! Every problem with its place, message and kind.

use super::super::{Format, Limits};
use super::{check, lines, report};

/// Asserts that each YAML text has exactly these problems.
fn assert_problems(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(report(Format::Yaml, text), *expected, "{text}");
    }
}

/// A pack with one job `a` that runs, and has these lines more, indented below it, from line 5 on.
pub(super) fn job(lines: &str) -> String {
    format!("name: p\njobs:\n  a:\n    run: x\n    {}\n", lines.replace('\n', "\n    "))
}

pub(super) fn assert_job_problems(cases: &[(&str, &str)]) {
    for (lines, expected) in cases {
        assert_eq!(report(Format::Yaml, &job(lines)), *expected, "{lines}");
    }
}

#[test]
fn an_unknown_key_is_placed_and_the_one_meant_is_suggested() {
    let text = "name: deploy\njobs:\n  build:\n    run: make\n  ship:\n    run: ./ship\n    neds: [build]\n";
    let error = check(Format::Yaml, text.as_bytes()).unwrap_err();
    assert_eq!(error.report("deploy.yaml"), "deploy.yaml:7:5: unknown key `neds`; did you mean `needs`?");
    assert_problems(&[
        (
            "nam: p\njobs: {a: {run: x}}\n",
            "1:1: unknown key `nam`; did you mean `name`? [unknown_key]\n1:1: a pack needs a `name` [missing]",
        ),
        ("name: p\nfoo: 1\njobs: {a: {run: x}}\n", "2:1: unknown key `foo` [unknown_key]"),
        ("name: p\njobs: {a: {run: x}}\nsecrets: [b]\n", "3:1: `secrets` is not supported yet [unsupported]"),
    ]);
    assert_job_problems(&[
        ("container: alpine", "5:5: `container` is not supported yet [unsupported]"),
        ("retry: { atempts: 2 }", "5:14: unknown key `atempts`; did you mean `attempts`? [unknown_key]"),
        ("matrix: { exclude: [1] }", "5:15: `exclude` is not supported yet [unsupported]"),
    ]);
}

#[test]
fn every_reserved_key_is_answered_with_not_supported_yet() {
    for key in [
        "secrets",
        "cache",
        "services",
        "container",
        "concurrency",
        "priority",
        "on_cancel",
        "outputs",
        "expire_in",
        "exclude",
        "fail_fast",
        "max_parallel",
        "reports",
        "finally",
    ] {
        assert_eq!(
            report(Format::Yaml, &job(&format!("{key}: 1"))),
            format!("5:5: `{key}` is not supported yet [unsupported]")
        );
    }
    super::pack(&job("matrix: { cache: [1], container: [2], priority: [3], secrets: [4] }"));
}

#[test]
fn what_a_job_needs_has_to_be_other_jobs_without_a_cycle() {
    assert_problems(&[
        (
            "name: p\njobs:\n  build: {run: x}\n  test:\n    run: x\n    needs: [biuld]\n",
            "6:13: unknown job `biuld` in `needs`; did you mean `build`? [unknown_reference]",
        ),
        (
            "name: p\njobs:\n  a: {run: x}\n  b: {run: x, needs: [q], when: failure, inputs: [{from: q, artifact: f}]}\n",
            "4:23: unknown job `q` in `needs` [unknown_reference]",
        ),
        (
            "name: p\njobs:\n  a: {run: x, needs: [b]}\n  b: {run: x, needs: [a]}\n  c: {run: x, needs: [b]}\n",
            "3:3: jobs need each other: a → b → a [dependency]",
        ),
        (
            "name: p\njobs:\n  a: {run: x}\n  b: {run: x, needs: [a, a, b]}\n",
            "4:26: duplicate need `a` [duplicate]\n4:29: job `b` needs itself [dependency]",
        ),
    ]);
    assert_job_problems(&[
        (
            "when: failure",
            "5:11: `when: failure` without `needs`: there is nothing that could fail [dependency]",
        ),
        (
            "when: allways",
            "5:11: `allways` is not `success`, `failure` or `always`; did you mean `always`? [value]",
        ),
    ]);
}

#[test]
fn an_input_comes_from_a_direct_need() {
    let text = "name: p\njobs:\n  a: {run: x}\n  b: {run: x, needs: [a]}\n  c:\n    run: x\n    needs: [b]\n    inputs: [{from: a, artifact: f}, {artifact: /f, from: b, to: ../g}, {from: b}]\n";
    assert_eq!(
        report(Format::Yaml, text),
        "8:21: `from: a` is not among the job's `needs` [unknown_reference]\n\
         8:49: an absolute path is not allowed; give it relative to the workspace [value]\n\
         8:66: a path may not contain empty components, `.` or `..` [value]\n\
         8:73: an input needs `artifact` [missing]"
    );
}

#[test]
fn an_artifact_rule_that_the_agent_would_refuse_after_the_work_is_refused() {
    let component = "a path may not contain empty components, `.` or `..`";
    let own = "`.packrun` belongs to packrun and is never an artifact";
    let not_put = "`.packrun` belongs to packrun: nothing is taken from it or put there";
    for (path, why) in [
        (".packrun", own),
        (".packrun/x", own),
        (".packrun/**", own),
        ("./x", component),
        ("x/", component),
        ("*/", component),
        ("..", component),
        ("*/../x", component),
        ("/etc/*", "an absolute path is not allowed; give it relative to the workspace"),
        ("x[", "not a glob: unclosed character class; missing ']'"),
        ("{a", "not a glob: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)"),
        ("a\\", "not a glob: dangling '\\'"),
    ] {
        assert_eq!(
            report(Format::Yaml, &job(&format!("artifacts: ['{path}']"))),
            format!("5:17: {why} [value]"),
            "{path}"
        );
    }
    let nested = format!("{}a{}", "{".repeat(65), "}".repeat(65));
    assert!(report(Format::Yaml, &job(&format!("artifacts: ['{nested}']"))).contains("at most 64 `{`"));
    super::pack(&job("artifacts: ['a\\[id]', 'a}b', '.packrun2', 'a/.packrun', '{a,b}/**']"));

    let rules = |count: usize| job(&format!("artifacts: [{}]", vec!["a"; count].join(", ")));
    super::pack(&rules(1024));
    assert_eq!(report(Format::Yaml, &rules(1025)), "5:16: a job takes at most 1024 artifacts [limit]");

    let input = |fields: &str| {
        format!(
            "name: p\njobs:\n  a: {{run: x}}\n  b: {{run: x, needs: [a], inputs: [{{from: a, {fields}}}]}}\n"
        )
    };
    for fields in ["artifact: f, to: .packrun", "artifact: f, to: .packrun/x", "artifact: .packrun/x"] {
        let report = report(Format::Yaml, &input(fields));
        assert!(report.ends_with(&format!("{not_put} [value]")), "{fields}: {report}");
    }
}

#[test]
fn an_input_that_repeats_a_glob_and_would_take_nothing_is_refused() {
    let file = |artifact: &str, input: &str| {
        format!(
            "name: p\njobs:\n  b:\n    run: x\n    needs: [a]\n    inputs: [{{from: a, artifact: '{input}'}}]\n  \
             a: {{run: x, artifacts: ['{artifact}']}}\n"
        )
    };
    assert_eq!(
        report(Format::Yaml, &file("out/*.xml", "out/*.xml")),
        "6:34: an input can't take the glob `out/*.xml`: give that artifact a `name`, and take it by that [value]"
    );
    for (artifact, input) in [("out", "out"), ("out/*.xml", "out"), ("pages", "pages/[id].js")] {
        super::pack(&file(artifact, input));
    }
}

#[test]
fn expressions_are_closed_and_refer_to_what_there_is() {
    assert_problems(&[(
        "name: p\nparams: {profile: {}}\nenv: {A: '${{ matrix.x }}', B: '${{ params.profil }}'}\njobs: {a: {run: x}}\n",
        "3:10: `matrix.x` is only known in a job with a matrix [unknown_reference]\n\
             3:32: unknown parameter `profil` in `${{ params.profil }}`; did you mean `profile`? [unknown_reference]",
    )]);
    assert_job_problems(&[
        (
            "workdir: '${{ params.x'",
            "5:14: `${{` without `}}`; write `$${{` for the characters themselves [expression]",
        ),
        (
            "env: { A: '${{ secrets.x }}' }",
            "5:15: `secrets.x` is not an expression; use `params.NAME` or `matrix.AXIS`, or write `$${{` for the characters themselves [expression]",
        ),
        (
            "matrix: { shard: [1] }\nenv: { A: '${{ matrix.shrad }}' }",
            "6:15: unknown matrix axis `shrad` in `${{ matrix.shrad }}`; did you mean `shard`? [unknown_reference]",
        ),
    ]);
}

#[test]
fn names_keep_their_rules() {
    let rule = "it takes 1 to 63 characters of a-z, 0-9 and `-`, the first no `-`";
    let text = "name: My_Pack\nparams: {p_1: {}}\nenv: {1A: x, PACKRUN_X: y}\njobs:\n  Build It: {run: x}\n";
    assert_eq!(
        report(Format::Yaml, text),
        format!(
            "1:7: `My_Pack` is not a valid name: {rule} [value]\n\
             2:10: `p_1` is not a valid name: {rule}; did you mean `p-1`? [value]\n\
             3:7: `1A` is not a variable's name: it takes A-Z, a-z, 0-9 and `_`, the first no digit [value]\n\
             3:14: `PACKRUN_X`: variables that start with `PACKRUN` are set by packrun itself [value]\n\
             5:3: `Build It` is not a valid name: {rule}; did you mean `build-it`? [value]"
        )
    );
}

#[test]
fn parameters_are_consistent() {
    let text = "name: p\nparams:\n  a: {default: relase, choices: [debug, release, debug]}\n  b: {choices: []}\n  c: [x]\njobs: {a: {run: x}}\n";
    assert_eq!(
        report(Format::Yaml, text),
        "3:16: the default `relase` is none of the choices; did you mean `release`? [value]\n\
         3:50: duplicate choice `debug` [duplicate]\n\
         4:16: `choices` may not be empty; leave it out to allow any value [value]\n\
         5:6: a parameter has to be a mapping, but is a list [type]"
    );
}

#[test]
fn a_job_has_one_action_and_it_is_not_empty() {
    assert_problems(&[
        ("name: p\njobs:\n  a: {needs: []}\n", "3:3: job `a` needs `run` or `command` [missing]"),
        (
            "name: p\njobs:\n  a: {run: x, command: [x]}\n",
            "3:24: a job has `run` or `command`, not both [value]",
        ),
        ("name: p\njobs:\n  a: {run: ' '}\n", "3:12: a script may not be empty [value]"),
        ("name: p\njobs:\n  a: {command: []}\n", "3:16: a command has to start with a program [value]"),
        ("name: p\njobs:\n  a: {command: ['', x]}\n", "3:16: a command has to start with a program [value]"),
        ("name: p\njobs:\n  a: {run:}\n", "3:10: `run` has to be a text, but is nothing [type]"),
        ("name: p\njobs: {}\n", "2:7: a pack needs at least one job [missing]"),
        ("name: p\n", "1:1: a pack needs `jobs` [missing]"),
        ("[]", "1:1: a pack has to be a mapping, but is a list [type]"),
    ]);
}

#[test]
fn values_keep_their_rules() {
    assert_job_problems(&[
        ("timeout: 0s", "5:14: `timeout` may not be 0; leave it out for no limit [value]"),
        (
            "timeout: 10",
            "5:14: `10`: a duration is written like `500ms`, `90s`, `10m` or `1h30m`, and takes at most 365 days [value]",
        ),
        ("retry: { attempts: 0 }", "5:24: `0`: `attempts` is a number from 1 to 100 [value]"),
        ("retry: { attempts: 101 }", "5:24: `101`: `attempts` is a number from 1 to 100 [value]"),
        ("retry: { backoff: 2h }", "5:23: `backoff` is at most 1h [value]"),
        (
            "resources: { cpus: -1, memory: 5 }",
            "5:24: `-1`: processors are written like `2` or `0.5`, at most 4096, to a thousandth [value]\n\
             5:36: `5`: an amount of bytes is written like `512MiB` or `2GiB` (B, KiB, MiB, GiB, TiB, kB, MB, GB, TB), at most 1024TiB [value]",
        ),
        (
            "allow_failure: yes",
            "5:20: `allow_failure` has to be `true` or `false`, but is a plain value [type]",
        ),
        ("workdir: /tmp", "5:14: an absolute path is not allowed; give it relative to the workspace [value]"),
        (
            "artifacts: [a/../b, {path: 'x[', name: X}, {name: y}]",
            "5:17: a path may not contain empty components, `.` or `..` [value]\n\
             5:32: not a glob: unclosed character class; missing ']' [value]\n\
             5:44: `X` is not a valid name: it takes 1 to 63 characters of a-z, 0-9 and `-`, the first no `-` [value]\n\
             5:48: an artifact needs a `path` [missing]",
        ),
        (
            "labels: { 'a b': c, d: \"e\\n\" }",
            "5:15: `a b` is not a valid label: a key takes 1 to 63 characters of A-Z, a-z, 0-9, `.`, `_`, `/` and `-` [value]\n\
             5:28: `e\\n` is not a valid label: a value takes at most 255 bytes without control characters [value]",
        ),
        (
            "artifacts: [{path: a, name: x}, {path: b, name: x}]",
            "5:37: duplicate artifact name `x` [duplicate]",
        ),
        ("env: { A: \"\\0\" }", "5:15: a text may not contain NUL [value]"),
        ("needs: a", "5:12: `needs` has to be a list, but is a plain value [type]"),
    ]);
}

#[test]
fn a_matrix_is_bounded_and_its_values_are_distinct() {
    let wide = (0..150).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(
        report(Format::Yaml, &job(&format!("matrix: {{ a: [{wide}], b: [{wide}] }}"))),
        "3:3: more than 20000 job runs in all; matrices count by their product [limit]"
    );
    let endless = (0..16).map(|axis| format!("a{axis}: [{wide}]")).collect::<Vec<_>>().join(", ");
    assert!(report(Format::Yaml, &job(&format!("matrix: {{ {endless} }}"))).contains("more than 20000"));
    let values =
        ["a", "b", "c", "d", "e", "f", "g", "h"].map(|axis| format!("{axis}: [{}]", "v".repeat(128)));
    assert_job_problems(&[
        ("matrix: {}", "5:13: a matrix takes 1 to 16 axes [limit]"),
        (
            "matrix: { a: [], b: [1, '1'], c: ['x,y'] }",
            "5:18: a matrix axis needs at least one value [value]\n\
             5:29: duplicate matrix value `1` [duplicate]\n\
             5:39: `x,y` is not a valid matrix value: it takes 1 to 128 bytes without `, = [ ]` and control characters [value]",
        ),
    ]);
    assert!(report(Format::Yaml, &job(&format!("matrix: {{ {} }}", values.join(", ")))).contains("[limit]"));
}

#[test]
fn syntax_errors_and_what_pack_files_do_without_are_placed() {
    assert_problems(&[
        ("", "1:1: the file is empty [syntax]"),
        ("name: p\n---\nname: q\n", "3:1: a pack file holds one document [syntax]"),
        ("name: &a p\n", "1:10: anchors and aliases are not allowed [syntax]"),
        ("name: !!str p\n", "1:13: tags are not allowed [syntax]"),
        ("name: p\nname: q\njobs: {a: {run: x}}\n", "2:1: duplicate key `name` [duplicate]"),
        ("? [a]\n: b\n", "1:3: a key has to be a text [syntax]"),
    ]);
    assert!(report(Format::Yaml, "name: [").starts_with("1:"));
    assert_eq!(
        report(Format::Json, "{\n \"name\": \"p\",\n \"jobs\": {\"a\": {\"run\": \"x\", \"run\": \"y\"}}\n}"),
        "3:29: duplicate key `run` [duplicate]"
    );
    assert_eq!(report(Format::Json, "{\n  \"name\" \"p\"\n}"), "2:10: not valid JSON: expected `:` [syntax]");
    assert_eq!(
        report(Format::Json, r#"{"name": "\ud800"}"#),
        "1:10: not valid JSON: a text with half of a surrogate pair [syntax]"
    );
    assert_eq!(
        report(Format::Toml, "name = \"p\"\n[jobs.a]\nrun = \"x\"\nneds = [\"b\"]\n"),
        "4:1: unknown key `neds`; did you mean `needs`? [unknown_key]"
    );
    assert!(
        report(Format::Toml, "name = \"p\"\nname = \"q\"\n")
            .starts_with("2:1: not valid TOML: duplicate key")
    );
    assert_eq!(report(Format::Toml, "name = 2020-01-01\n"), "1:8: write dates as text in quotes [syntax]");
}

#[test]
fn text_that_is_no_text_is_refused_with_its_place() {
    let error = check(Format::Yaml, b"name: p\njobs: \xff").unwrap_err();
    assert_eq!(lines(&error), "2:7: the file is not UTF-8 [syntax]");
    assert_eq!(report(Format::Json, "{\"a\": \"\0\"}"), "1:8: the file contains NUL [syntax]");
    assert_eq!(
        report(Format::Json, "{\"a\": 1, \"\\u0000\": 1}").lines().next(),
        Some("1:1: a pack needs a `name` [missing]")
    );
    let large = vec![b' '; Limits::default().file_bytes + 1];
    assert!(lines(&check(Format::Yaml, &large).unwrap_err()).starts_with("1:1: the file has 8388609 bytes"));
}
