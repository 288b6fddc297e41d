//! The executor where each attempt has a cgroup.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use packrun_agent::executor::Isolation;
use packrun_protocol::state::Verdict;

use crate::harness::{Harness, lives, pids, script};

#[path = "executor/harness.rs"]
mod harness;
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
