//! The program `packrun-agent`.

fn main() -> std::process::ExitCode {
    packrun_agent::main()
}
