//! Jobs can be stopped, and nothing that they started outlives them.

use packrun_tests::api::{Api, job, states};
use packrun_tests::process::Coordinator;
use serde_json::json;

use crate::programs;

/// Waits for a line of a job that says `pid N`; N.
async fn pid_in_log(api: &Api, id: &str) -> String {
    let mut stream = api.stream(id, None).await;
    let is_pid = |text: &str| text.starts_with("pid ");
    let events =
        stream.until(|event| event.kind == "log" && event.data["text"].as_str().is_some_and(is_pid)).await;
    events.last().unwrap().data["text"].as_str().unwrap().trim_start_matches("pid ").to_owned()
}

fn is_alive(pid: &str) -> bool {
    // A zombie that nobody has reaped yet is no longer alive.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

#[tokio::test]
async fn a_canceled_run_ends_its_jobs_and_all_they_started() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let api = coordinator.api();
    let source = "
name: endless
jobs:
  endless:
    run: |
      setsid sh -c 'trap \"\" TERM; echo pid $$; while :; do sleep 1; done' &
      wait
  waiting: { needs: [endless], run: echo never }
  always: { needs: [endless], when: always, run: echo never }
";
    let id = api.run(source).await;
    let pid = pid_in_log(&api, &id).await;
    assert!(is_alive(&pid));
    let canceled = api.post(&format!("/v1/pack-runs/{id}/cancel"), &json!({})).await;
    assert_eq!(canceled["canceled"], true);
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "canceled: endless canceled, waiting canceled, always canceled");
    assert!(!is_alive(&pid), "nothing outlives its job");
    api.post(&format!("/v1/pack-runs/{id}/cancel"), &json!({})).await;
}

#[tokio::test]
async fn one_canceled_job_run_counts_as_failed_and_the_others_go_on() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let api = coordinator.api();
    let source = "
name: one-of-two
jobs:
  endless: { run: 'echo pid $$; exec sleep 1000' }
  other: { run: exit 0 }
";
    let id = api.run(source).await;
    pid_in_log(&api, &id).await;
    let run = api.pack_run(&id).await;
    let job_run = job(&run, "endless")["id"].as_str().unwrap();
    api.post(&format!("/v1/runs/{job_run}/cancel"), &json!({})).await;
    assert_eq!(states(&api.ended(&id).await), "partially_failed: endless canceled, other succeeded");
}

#[tokio::test]
async fn a_job_over_its_time_is_ended_with_its_whole_tree_and_a_daemon_does_not_hang_one() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let api = coordinator.api();
    let source = "
name: overtime
jobs:
  slow:
    timeout: 300ms
    run: |
      setsid sleep 1000 &
      echo pid $!
      sleep 1000
  daemon:
    run: |
      (setsid sleep 1000 &)
      echo done
";
    let id = api.run(source).await;
    let pid = pid_in_log(&api, &id).await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "partially_failed: slow timed_out, daemon succeeded");
    assert!(!is_alive(&pid), "nothing outlives its job");
    assert!(job(&run, "slow")["reason"].as_str().is_some(), "{run}");
}
