//! `packrun`: the coordinator and the admin CLI.

use std::process::ExitCode;

fn main() -> ExitCode {
    packrun_coordinator::cli::main()
}
