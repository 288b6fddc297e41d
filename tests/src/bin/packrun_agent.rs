//! `packrun-agent`, built for the tests of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    packrun_agent::main()
}
