//! What packrun promises, each shown with real processes: a coordinator, agents, the REST API and the CLI. A module a
//! promise.

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod agents;
mod artifacts;
mod cli;
mod cli_servers;
mod cli_settings;
mod commands;
mod examples;
mod fleet;
mod hostile;
mod limits;
mod logs;
mod packs;
mod rest_hostile;
mod restored;
mod runs;
mod speed;
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
