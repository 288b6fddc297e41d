//! How attempts are stopped on every host, whatever its isolation: included by a test binary for each.

use std::time::Duration;

use packrun_agent::executor::{Command, Event};
use packrun_protocol::state::{ExitStatus, Verdict};

use crate::harness::{Harness, PATIENCE, await_death, lives, pids, script};

#[tokio::test]
async fn a_timeout_asks_first_and_takes_the_answer() {
    let Some(mut harness) = Harness::start() else { return };
    let mut definition = script("trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.1; done");
    let mut timeout = Duration::from_millis(500);
    // On a busy host the time may be over before the shell is ready to be asked: then it gets twice as much.
    let ended = loop {
        definition.timeout = Some(timeout);
        let ended = harness.run(definition.clone()).await;
        assert_eq!(ended.outcome.verdict, Verdict::TimedOut);
        if !ended.out.is_empty() || timeout > PATIENCE {
            break ended;
        }
        timeout *= 2;
    };
    assert_eq!(ended.outcome.exit, Some(ExitStatus::Code(7)));
    let reason = format!("timeout of {} s", timeout.as_secs_f64());
    assert!(ended.reason().contains(&reason), "{}", ended.reason());
    assert!(ended.outcome.ran_for >= timeout);
    assert_eq!(ended.lines(), ["ready", "asked"]);
}

#[tokio::test]
async fn output_without_end_holds_no_deadline_up() {
    let Some(mut harness) = Harness::start() else { return };
    // Short lines and more than one writer: there is more to read whenever something was cut.
    let mut definition = script("yes & yes >&2 & yes");
    definition.timeout = Some(Duration::from_secs(1));
    harness.begin(definition).await;
    // The reader keeps up: it looks at nothing.
    let events = &mut harness.executor.events;
    let end = async {
        loop {
            if let Event::Ended { outcome, .. } = events.recv().await.expect("the executor lives") {
                return outcome;
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, end).await.expect("the timeout comes");
    let expected = (Verdict::TimedOut, Some(ExitStatus::Signal(15)));
    assert_eq!((outcome.verdict, outcome.exit), expected, "{outcome:?}");
    assert!(outcome.ran_for < Duration::from_secs(10), "{:?}", outcome.ran_for);
}

#[tokio::test]
async fn a_deaf_tree_is_killed_after_the_grace() {
    let Some(mut harness) = Harness::start() else { return };
    let file = harness.path("pids");
    let text = format!(
        "trap '' TERM; (setsid sh -c 'echo $$ >> {0}; exec sleep 1000') & \
         while ! test -s {0}; do :; done; echo ready; while :; do sleep 1; done",
        file.display()
    );
    let attempt = harness.begin(script(&text)).await;
    let cancel = async |executor: &packrun_agent::executor::Executor, _: &[u8]| {
        executor.commands.send(Command::Cancel(attempt)).await.unwrap();
    };
    let ended = harness.end_with(cancel).await;
    assert_eq!((ended.outcome.verdict, ended.outcome.exit), (Verdict::Canceled, Some(ExitStatus::Signal(9))));
    assert!(ended.outcome.ran_for >= Duration::from_secs(10));
    assert!(!lives(pids(&file)[0]));
}

#[tokio::test]
async fn a_cancel_reaches_every_process_and_a_success_beats_it() {
    let Some(mut harness) = Harness::start() else { return };
    // The outer one is ready before the inner one can say so.
    let text = "trap 'wait; exit 0' TERM; \
                (setsid sh -c 'trap \"exit 0\" TERM; echo ready; while :; do sleep 0.1; done') & wait";
    let attempt = harness.begin(script(text)).await;
    let cancel = async |executor: &packrun_agent::executor::Executor, _: &[u8]| {
        executor.commands.send(Command::Cancel(attempt)).await.unwrap();
    };
    let ended = harness.end_with(cancel).await;
    assert_eq!((ended.outcome.verdict, ended.outcome.exit), (Verdict::Succeeded, Some(ExitStatus::Code(0))));
    assert!(ended.outcome.ran_for < Duration::from_secs(10), "the detached one heard it too");
}

#[tokio::test]
async fn a_fenced_attempt_goes_at_once() {
    let Some(mut harness) = Harness::start() else { return };
    let attempt = harness.begin(script("trap '' TERM; echo ready; while :; do sleep 1; done")).await;
    let kill = async |executor: &packrun_agent::executor::Executor, _: &[u8]| {
        executor.commands.send(Command::Kill(attempt)).await.unwrap();
    };
    let ended = harness.end_with(kill).await;
    assert_eq!((ended.outcome.verdict, ended.outcome.exit), (Verdict::Canceled, Some(ExitStatus::Signal(9))));
    assert!(ended.outcome.ran_for < Duration::from_secs(8));
}

#[tokio::test]
async fn nobody_to_report_to_ends_all_attempts() {
    let Some(mut harness) = Harness::start() else { return };
    let file = harness.path("pid");
    harness.begin(script(&format!("echo $$ > {}; echo ready; exec sleep 1000", file.display()))).await;
    while !matches!(harness.next().await, Event::Block(_)) {}
    harness.executor.events = tokio::sync::mpsc::channel(1).1;
    let closed = tokio::time::timeout(PATIENCE, harness.executor.commands.closed()).await;
    closed.expect("the executor notices");
    await_death(pids(&file)[0]);
}

#[tokio::test]
async fn an_executor_that_is_dropped_takes_its_jobs_and_cgroups_along() {
    let Some(mut harness) = Harness::start() else { return };
    let file = harness.path("pid");
    harness.begin(script(&format!("echo $$ > {}; echo ready; sleep 1000", file.display()))).await;
    while !matches!(harness.next().await, Event::Block(_)) {}
    harness.stop();
    assert!(!lives(pids(&file)[0]));
    assert_eq!(harness.cgroups(), 0);
}
