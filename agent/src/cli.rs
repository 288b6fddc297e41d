//! The program's arguments, signals and exit codes.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, Source, parse_label};
use crate::executor::StartError;
use crate::executor::keeper::KeeperError;
use crate::link::enrol::EnrolError;
use crate::link::{LinkError, Stop};
use crate::serve::{self, AgentError};

/// The agent itself failed.
const EXIT_FAILURE: u8 = 1;

/// Usage or settings that make no agent, or a state folder that can't be used.
const EXIT_USAGE: u8 = 2;

/// The agent can't join, or no coordinator lets it in.
const EXIT_NOT_ALLOWED: u8 = 4;

/// How long blocking work may go on when all else is done.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  # Once, with a token that `packrun agents invite` printed on the coordinator:
  packrun-agent run --coordinator build.example.com:7443 --state-dir /var/lib/packrun-agent \\
      --join-token-file token.txt

  # From then on; two attempts at once, and a label that jobs can ask for:
  packrun-agent run --coordinator build.example.com:7443 --slots 2 --label gpu=none

  # The same from a file (keys as the flags, with `_`; `labels` is a table):
  packrun-agent --config agent.toml run

Every option can also be a variable (PACKRUN_SLOTS=2) or in the file; flag > variable > file.
PACKRUN_LOG sets what is logged (info by default).
The first SIGTERM or Ctrl-C lets running attempts finish and takes no new ones; the second ends them.
Exit codes: 0 stopped on request, 1 the agent failed, 2 usage, settings or state folder, 4 not allowed by the coordinator.";

/// Executes packrun's jobs on this host.
#[derive(Debug, Parser)]
#[command(name = "packrun-agent", version, after_help = EXAMPLES)]
struct Cli {
    /// A TOML file with settings
    #[arg(long, global = true, env = "PACKRUN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a coordinator until a signal comes
    #[command(after_help = EXAMPLES)]
    Run(Box<Run>),
}

#[derive(Debug, Args)]
struct Run {
    /// Where a coordinator listens for agents; repeat it for several
    #[arg(long, env = "PACKRUN_COORDINATOR", value_name = "HOST:PORT", value_delimiter = ',')]
    coordinator: Vec<String>,
    /// Where the agent keeps its identity, journal, workspaces and cache
    /// [default: /var/lib/packrun-agent, or packrun-agent in the XDG data folder]
    #[arg(long, env = "PACKRUN_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What the agent is called [default: the host's name]
    #[arg(long, env = "PACKRUN_NAME", value_name = "NAME")]
    name: Option<String>,
    /// How many attempts run at once [default: one for each processor]
    #[arg(long, env = "PACKRUN_SLOTS", value_name = "COUNT")]
    slots: Option<u32>,
    /// A label that jobs can ask for; repeat it for several [env: PACKRUN_LABEL=a=1,b=2]
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// A token from `packrun agents invite`, to join with
    #[arg(long, env = "PACKRUN_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    join_token: Option<String>,
    /// A file with the token
    #[arg(long, env = "PACKRUN_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// PATH of the jobs [default: the agent's own]
    #[arg(long, env = "PACKRUN_PATH", value_name = "FOLDERS")]
    path: Option<String>,
    /// LANG of the jobs [default: the agent's own]
    #[arg(long, env = "PACKRUN_LANG", value_name = "LOCALE")]
    lang: Option<String>,
    /// TZ of the jobs [default: the agent's own]
    #[arg(long, env = "PACKRUN_TZ", value_name = "ZONE")]
    tz: Option<String>,
    /// Bytes of output that wait for the coordinator before jobs are slowed down [default: 4 GiB]
    #[arg(long, env = "PACKRUN_JOURNAL_BYTES", value_name = "BYTES")]
    journal_bytes: Option<u64>,
    /// Bytes of inputs that are kept for later jobs [default: 10 GiB]
    #[arg(long, env = "PACKRUN_CACHE_BYTES", value_name = "BYTES")]
    cache_bytes: Option<u64>,
}

impl Run {
    fn into_source(self) -> Result<Source, ConfigError> {
        let mut labels = self.label;
        if labels.is_empty() {
            let variable = std::env::var("PACKRUN_LABEL").unwrap_or_default();
            labels = variable.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
        }
        Ok(Source {
            coordinator: self.coordinator,
            state_dir: self.state_dir,
            name: self.name,
            slots: self.slots,
            labels: labels.iter().map(|label| parse_label(label)).collect::<Result<_, _>>()?,
            join_token: self.join_token,
            join_token_file: self.join_token_file,
            path: self.path,
            lang: self.lang,
            tz: self.tz,
            journal_bytes: self.journal_bytes,
            cache_bytes: self.cache_bytes,
        })
    }
}

/// The command without the variables that are empty: they say nothing.
fn command() -> clap::Command {
    let unset = |arg: Arg| {
        let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if is_empty { arg.env(Resettable::Reset) } else { arg }
    };
    Cli::command().mut_args(unset).mut_subcommand("run", |run| run.mut_args(unset))
}

impl Cli {
    /// The arguments that were given. A flag with the token or its file goes before a variable with either.
    fn of(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut cli = Self::from_arg_matches(matches)?;
        let Command::Run(run) = &mut cli.command;
        let source = |name| matches.subcommand_matches("run").and_then(|matches| matches.value_source(name));
        match [source("join_token"), source("join_token_file")] {
            [Some(ValueSource::CommandLine), Some(ValueSource::EnvVariable)] => run.join_token_file = None,
            [Some(ValueSource::EnvVariable), Some(ValueSource::CommandLine)] => run.join_token = None,
            _ => {}
        }
        Ok(cli)
    }
}

/// The program `packrun-agent`, with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::of(&command().get_matches()).unwrap_or_else(|error| error.exit());
    let filter = EnvFilter::try_from_env("PACKRUN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Somebody may have set one up already.
    let _ = logs.with_ansi(!is_plain && std::io::stderr().is_terminal()).try_init();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { error, code }) => {
            eprintln!("error: {error:#}");
            ExitCode::from(code)
        }
    }
}

struct Failure {
    error: anyhow::Error,
    code: u8,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { error: error.into(), code: EXIT_USAGE }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            error if error.is_not_allowed() => EXIT_NOT_ALLOWED,
            AgentError::InUse { .. } | AgentError::State { .. } => EXIT_USAGE,
            AgentError::Keeper(KeeperError::Journal(_)) => EXIT_USAGE,
            AgentError::Keeper(KeeperError::Executor(StartError::Workspaces { .. })) => EXIT_USAGE,
            AgentError::Link(LinkError::Cache(_) | LinkError::Identity(_) | LinkError::Token(_)) => {
                EXIT_USAGE
            }
            AgentError::Link(LinkError::Enrol(EnrolError::Identity(_))) => EXIT_USAGE,
            AgentError::Keeper(_) | AgentError::Link(_) => EXIT_FAILURE,
        };
        Self { error: error.into(), code }
    }
}

fn execute(cli: Cli) -> Result<(), Failure> {
    let Command::Run(run) = cli.command;
    let file = cli.config.as_deref().map(Source::read).transpose()?.unwrap_or_default();
    let config = run.into_source()?.or(file).resolve()?;
    let host = |error: std::io::Error| Failure { error: error.into(), code: EXIT_FAILURE };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(host)?;
    let (stop, stopped) = watch::channel(Stop::Run);
    let ended = runtime.block_on(async {
        let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        let (mut terminate, mut interrupt) = (terminate.map_err(host)?, interrupt.map_err(host)?);
        tokio::spawn(async move {
            for next in [Stop::Drain, Stop::Now] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stop.send_replace(next);
            }
            // Without a sender the agent would not hear that it goes on.
            std::future::pending::<()>().await;
        });
        serve::run(config, stopped).await.map_err(Failure::from)
    });
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed_and_the_help_has_examples() {
        Cli::command().debug_assert();
        assert!(Cli::command().render_long_help().to_string().contains("--join-token-file token.txt"));
    }

    #[test]
    fn flags_become_settings() {
        let words = "packrun-agent --config f run --coordinator a:1 --coordinator b:2 --label x=1 --slots 2";
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        let Command::Run(run) = cli.command;
        let source = run.into_source().unwrap();
        assert_eq!(source.coordinator, ["a:1", "b:2"]);
        assert_eq!((source.labels.get("x").map(String::as_str), source.slots), (Some("1"), Some(2)));
    }
}
