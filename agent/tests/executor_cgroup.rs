//! The executor where each attempt has a cgroup.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::Instant;

use packrun_agent::executor::attempt::KILL_LIMIT;
use packrun_agent::executor::{Event, Isolation};
use packrun_protocol::state::{ExitStatus, Verdict};

use crate::harness::{Harness, await_death, cgroup_name, lives, own_cgroup, pids, script};

#[path = "executor/harness.rs"]
mod harness;
#[path = "executor/stops.rs"]
mod stops;
#[path = "executor/suite.rs"]
mod suite;

const ISOLATION: Isolation = Isolation::Cgroup;

#[tokio::test]
async fn no_process_hides_by_session_parents_and_an_empty_environment() {
    let Some(mut harness) = Harness::start() else { return };
    let file = harness.path("pids");
    let text = format!(
        "(setsid env -i /bin/sh -c '(/usr/bin/setsid /usr/bin/env -i /bin/sh -c \"echo \\$\\$ >> {0}; \
         exec /bin/sleep 1000\" &)' &)\nwhile ! test -s {0}; do :; done",
        file.display()
    );
    let ended = harness.run(script(&text)).await;
    assert_eq!(ended.outcome.verdict, Verdict::Succeeded);
    assert!(!lives(pids(&file)[0]));
    assert!(ended.outcome.ran_for.as_secs() < 30);
}

/// Moves a shell into a cgroup of its own below the attempt's and leaves it there.
fn hide_below(file: &std::path::Path) -> String {
    let root = own_cgroup().unwrap();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let root = root.to_str().unwrap().strip_suffix(own.trim_end_matches('/')).unwrap();
    format!(
        "slot={root}$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p $slot/inner/most\n\
         (sh -c 'echo $$ > '$slot'/inner/most/cgroup.procs; echo $$ > {0}; exec sleep 1000' &)\n\
         while ! test -s {0}; do :; done",
        file.display()
    )
}

#[tokio::test]
async fn a_process_in_a_cgroup_that_the_job_made_goes_with_it() {
    let Some(mut harness) = Harness::start() else { return };
    let file = harness.path("pids");
    let started = Instant::now();
    let ended = harness.run(script(&hide_below(&file))).await;
    assert_eq!(ended.outcome.verdict, Verdict::Succeeded);
    assert!(!lives(pids(&file)[0]));
    assert!(started.elapsed() < KILL_LIMIT, "nobody ran into a limit");
    assert_eq!(harness.cgroups(), 0, "what was killed is removed");
    // What is empty, but not as it was, is no other attempt's either.
    let slot = "slot=$(sed -n s/^0:://p /proc/self/cgroup); echo ${slot##*/}";
    let made = format!("{}; kill $(cat {})", hide_below(&file), file.display());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(harness.run(script(&made)).await.outcome.verdict, Verdict::Succeeded);
    assert_eq!(harness.run(script(slot)).await.lines(), ["slot-2"]);
}

#[tokio::test]
async fn what_an_executor_left_in_nested_cgroups_does_not_keep_the_next_from_them() {
    let Some(mut harness) = Harness::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("workspaces")).unwrap();
    let left = own_cgroup().unwrap().join(cgroup_name(&folder));
    std::fs::create_dir_all(left.join("slot-0/inner/most")).unwrap();
    // Another executor's job is what still lives there.
    let text = format!("echo $$ > {}/slot-0/inner/most/cgroup.procs; echo; sleep 1000", left.display());
    harness.begin(script(&text)).await;
    while !matches!(harness.next().await, Event::Block(_)) {}
    let next = Harness::start_in(folder).expect("this host has cgroups");
    assert_eq!(harness.end().await.outcome.exit, Some(ExitStatus::Signal(9)));
    assert_eq!(next.cgroups(), 1);
}

#[tokio::test]
async fn who_moved_out_of_the_cgroup_goes_when_no_attempt_runs() {
    let Some(mut harness) = Harness::start() else { return };
    let (file, outside) = (harness.path("pids"), own_cgroup().unwrap());
    let text = format!(
        "(setsid sh -c 'echo $$ > {1}/cgroup.procs; echo $$ > {0}; exec sleep 1000' > /dev/null 2>&1 &)\n\
         while ! test -s {0}; do :; done",
        file.display(),
        outside.display()
    );
    assert_eq!(harness.run(script(&text)).await.outcome.verdict, Verdict::Succeeded);
    await_death(pids(&file)[0]);
}
