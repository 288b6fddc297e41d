//! The command line of `packrun`. Its commands are clients of the REST API and nothing more: what they send and
//! show are the bodies in [`api::types`](crate::api::types).
//!
//! | file | what it is for |
//! | --- | --- |
//! | `commands/` | a file a noun: its arguments, and what it does |
//! | [`exit`] | errors, hints, exit codes |
//! | [`world`] | the environment, the streams, Ctrl-C: nothing here is global |
//! | [`settings`] | which coordinator, and as whom |
//! | [`client`] | requests, retries, the feed that survives a lost connection |
//! | [`follow`], [`lines`], [`output`] | what people see |
//! | [`args`], [`resolve`] | what an argument means, here and over there |
//! | [`folder`] | where downloads go, and nowhere else |
//! | [`coordinator`], `https`, [`serve`], [`dev`] | a whole coordinator in this process: the commands that are no clients |

pub mod args;
pub mod client;
mod commands;
pub mod coordinator;
pub mod dev;
pub mod exit;
pub mod folder;
pub mod follow;
mod https;
pub mod limits;
pub mod lines;
pub mod output;
pub mod resolve;
pub mod serve;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod world;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::client::Client;
use self::commands::{agents, artifacts, logs, pack, run, runs, status, tokens};
use self::exit::{Error, Exit, Kind};
use self::output::Format;
use self::settings::ConnectionArgs;
use self::world::World;

/// Runs packs of jobs on a fleet of agents.
#[derive(Debug, Parser)]
#[command(
    name = "packrun",
    bin_name = "packrun",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "Example:\n  packrun pack register build.yaml\n  packrun run build --follow\n
Exit codes: 0 done, or the pack run completed; 1 it ended partially_failed or failed; 2 usage or invalid input; \
                  3 it was canceled; 4 the coordinator can't be reached, or doesn't allow it.")]
struct Cli {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// How to show it: `table` for people, or `json`, the body of the API's answer
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "FORMAT"
    )]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register packs and look at them
    #[command(subcommand, after_help = "Example:\n  packrun pack register build.yaml\n  packrun pack list")]
    Pack(pack::PackCommand),
    /// Start a pack run
    Run(run::RunArgs),
    /// Look at pack runs, cancel and repeat them
    #[command(
        subcommand,
        after_help = "Example:\n  packrun runs list --state running\n  packrun runs show 8a5f21d07c3e"
    )]
    Runs(runs::RunsCommand),
    /// Show what the jobs of a pack run wrote
    Logs(logs::LogsArgs),
    /// Look at the files that a pack run left, and get them
    #[command(
        subcommand,
        after_help = "Example:\n  packrun artifacts list 8a5f21d07c3e\n  packrun artifacts get 8a5f21d07c3e compile --to out"
    )]
    Artifacts(artifacts::ArtifactsCommand),
    /// Invite agents, look at them, drain and revoke them
    #[command(
        subcommand,
        after_help = "Example:\n  packrun agents invite > join-token\n  packrun agents list"
    )]
    Agents(agents::AgentsCommand),
    /// Make, list and revoke API tokens
    #[command(
        subcommand,
        after_help = "Example:\n  packrun tokens create --role viewer > token\n  packrun tokens list"
    )]
    Tokens(tokens::TokensCommand),
    /// Show how the coordinator is
    #[command(after_help = "Example:\n  packrun status --output json")]
    Status,
    Serve(serve::ServeArgs),
    Dev(dev::DevArgs),
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  packrun completions bash > /etc/bash_completion.d/packrun")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What all commands are told by the flags that all have.
#[derive(Debug)]
struct Session {
    connection: ConnectionArgs,
    format: Format,
}

impl Session {
    /// A client whose POSTs carry a key of their own.
    fn client(&self, world: &mut World<'_>) -> Result<Client, Error> {
        self.client_with(world, &uuid::Uuid::now_v7().to_string())
    }

    fn client_with(&self, world: &mut World<'_>, idempotency_key: &str) -> Result<Client, Error> {
        let client = Client::new(&self.connection.resolve(world)?, idempotency_key)?;
        if client.exposes_token() {
            world.err.line("warning: the token goes over the network unencrypted; use https and --ca")?;
        }
        Ok(client)
    }
}

/// The process: its arguments to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut world = World::of_process(&mut out, &mut err);
    if let Some(name) = World::unreadable_variable() {
        let _ = world.err.line(Error::invalid(format!("the variable {name} is not UTF-8")));
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = world.err.line(format_args!("error: cannot start: {error}"));
            return ExitCode::from(2);
        }
    };
    let code = runtime.block_on(run(std::env::args_os(), &mut world));
    // A thread that still waits for something, as for a name to be resolved, is not waited for.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Runs one command, whose first argument is the program's name, and gives its exit code.
pub async fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>, world: &mut World<'_>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return misused(&error, world),
    };
    let result = dispatch(cli, world).await;
    if let Err(error) = &result
        && error.kind != Kind::OutputClosed
    {
        // Where nobody reads errors, the exit code still tells.
        let _ = world.err.line(error);
    }
    exit::code(&result)
}

async fn dispatch(cli: Cli, world: &mut World<'_>) -> Result<Exit, Error> {
    let session = Session { connection: cli.connection, format: cli.output };
    match cli.command {
        Command::Pack(command) => command.run(&session, world).await,
        Command::Run(args) => args.run(&session, world).await,
        Command::Runs(command) => command.run(&session, world).await,
        Command::Logs(args) => args.run(&session, world).await,
        Command::Artifacts(command) => command.run(&session, world).await,
        Command::Agents(command) => command.run(&session, world).await,
        Command::Tokens(command) => command.run(&session, world).await,
        Command::Status => status::run(&session, world).await,
        Command::Serve(arguments) => serve::serve(world, arguments).await,
        Command::Dev(arguments) => dev::dev(world, arguments).await,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "packrun", &mut text);
            world.out.raw(&text)?;
            Ok(Exit::Done)
        }
    }
}

/// Shows help or what is wrong with the arguments, and gives the exit code.
fn misused(error: &clap::Error, world: &mut World<'_>) -> u8 {
    let screen = if error.use_stderr() { &mut world.err } else { &mut world.out };
    let text = error.render();
    let shown = if screen.color { text.ansi().to_string() } else { text.to_string() };
    let result = match screen.raw(shown.as_bytes()) {
        Err(error) => Err(error.into()),
        Ok(()) if error.use_stderr() => Err(Error::invalid(String::new())),
        Ok(()) => Ok(Exit::Done),
    };
    exit::code(&result)
}
