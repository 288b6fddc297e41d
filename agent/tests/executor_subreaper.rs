//! The executor where there are no cgroups.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use packrun_agent::executor::Isolation;
use packrun_protocol::state::Verdict;

use crate::harness::{Harness, await_death, pids, script};

#[path = "executor/harness.rs"]
mod harness;
#[path = "executor/stops.rs"]
mod stops;
#[path = "executor/suite.rs"]
mod suite;

const ISOLATION: Isolation = Isolation::Subreaper;

#[tokio::test]
async fn a_daemon_that_hid_from_all_marks_holds_nothing_up_and_goes_when_no_attempt_runs() {
    let Some(mut harness) = Harness::start() else { return };
    let file = harness.path("pids");
    // It keeps both pipes open.
    let text = format!(
        "(setsid env -i /bin/sh -c '(/usr/bin/setsid /usr/bin/env -i /bin/sh -c \"echo \\$\\$ >> {0}; \
         exec /bin/sleep 1000\" &)' &)\nwhile ! test -s {0}; do :; done; echo end",
        file.display()
    );
    let ended = harness.run(script(&text)).await;
    assert_eq!((ended.outcome.verdict, ended.lines()), (Verdict::Succeeded, vec!["end".to_owned()]));
    await_death(pids(&file)[0]);
}
