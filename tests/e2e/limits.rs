//! What goes over a limit is refused or cut with words that say so, and the coordinator goes on.

use packrun_tests::api::states;
use packrun_tests::process::Coordinator;
use serde_json::Value;

use crate::programs;

fn texts<'e>(entries: &'e [Value], stream: &'e str) -> impl Iterator<Item = &'e str> {
    entries.iter().filter(move |entry| entry["stream"] == stream).filter_map(|entry| entry["text"].as_str())
}

#[tokio::test]
async fn a_log_ends_at_its_limit_with_what_was_cut_and_its_job_runs_on() {
    let coordinator = Coordinator::start_with(&programs(), &["--limit", "log_bytes=1MiB"]).await;
    let _agent = coordinator.agent("one", &[]).await;
    let api = coordinator.api();
    // A line of `yes` counts for nine bytes; the pack's own limit of the other is lower than the coordinator's.
    let id = api
        .run(
            "name: noisy\njobs:\n  yes:\n    run: |\n      yes | head -c 50M\n      echo behind >&2\n      \
             touch end\n    artifacts: [end]\n  seq:\n    log_limit: 1KiB\n    run: seq 1000000\n",
        )
        .await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: yes succeeded, seq succeeded");
    for (job, limit, kept, lines, bytes) in [
        ("yes", 1 << 20, 116_508, 26_214_400 - 116_508 + 1, (50 << 20) - 2 * 116_508 + 7),
        ("seq", 1024, 102, 1_000_000 - 102, 6_888_896 - (9 * 2 + 90 * 3 + 3 * 4)),
    ] {
        let entries = api.job_logs(&id, job).await;
        let (out, own): (Vec<_>, Vec<_>) =
            (texts(&entries, "stdout").collect(), texts(&entries, "system").collect());
        assert_eq!(out.len(), kept, "{job}");
        match job {
            "yes" => assert!(out.iter().all(|text| *text == "y")),
            _ => assert!(out.iter().zip(1..).all(|(text, number)| *text == number.to_string())),
        }
        let limit = format!("its limit of {limit} bytes");
        let reached =
            format!("packrun: the log has reached {limit}; what the job writes from here on is dropped");
        let cut =
            format!("packrun: the log was cut at {limit}: {lines} lines, {bytes} bytes are missing here");
        assert_eq!(own, [reached, cut], "{job}");
        assert_eq!(entries.len(), kept + 2, "{job}: nothing else, and the markers last");
    }
}
