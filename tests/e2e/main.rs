//! What packrun promises, each shown with real processes: a coordinator, agents, the REST API and the CLI. A module a
//! promise.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod artifacts;
mod commands;
mod limits;
mod logs;
mod packs;
mod runs;
mod stops;
mod stream;
mod trust;

use packrun_tests::Programs;

fn programs() -> Programs {
    Programs {
        packrun: env!("CARGO_BIN_EXE_packrun-under-test").into(),
        agent: env!("CARGO_BIN_EXE_packrun-agent-under-test").into(),
    }
}
