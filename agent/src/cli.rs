//! The program's arguments, signals and exit codes.

use std::collections::BTreeMap;
use std::env::VarError;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{ConfigError, Source, invalid, parse_label};
use crate::executor::StartError;
use crate::executor::keeper::KeeperError;
use crate::link::enrol::EnrolError;
use crate::link::{LinkError, Stop};
use crate::log;
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
    /// How much is logged: a level, or levels of targets, as info,packrun_agent::link=debug [default: info]
    #[arg(long, env = "PACKRUN_LOG", value_name = "LEVELS")]
    log: Option<String>,
}

impl Run {
    fn into_source(self) -> Result<Source, ConfigError> {
        let labels =
            self.label.iter().map(|label| parse_label("--label", label)).collect::<Result<_, _>>()?;
        let labels = if self.label.is_empty() { labels_of_variable()? } else { labels };
        Ok(Source {
            coordinator: self.coordinator,
            state_dir: self.state_dir,
            name: self.name,
            slots: self.slots,
            labels,
            join_token: self.join_token,
            join_token_file: self.join_token_file,
            path: self.path,
            lang: self.lang,
            tz: self.tz,
            journal_bytes: self.journal_bytes,
            cache_bytes: self.cache_bytes,
            log: self.log,
        })
    }
}

/// The labels in `PACKRUN_LABEL`, with commas between.
fn labels_of_variable() -> Result<BTreeMap<String, String>, ConfigError> {
    const NAME: &str = "PACKRUN_LABEL";
    let variable = match std::env::var(NAME) {
        Ok(variable) => variable,
        Err(VarError::NotPresent) => String::new(),
        Err(VarError::NotUnicode(_)) => return Err(invalid(NAME, "it is not UTF-8")),
    };
    let labels = variable.split(',').filter(|label| !label.is_empty());
    labels.map(|label| parse_label(NAME, label)).collect()
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
    let matches = command().try_get_matches().unwrap_or_else(|error| {
        // Nobody may be there to read it.
        let _ = error.print();
        if let Some(variable) = variable_of(&error) {
            eprintln!("note: the variable {variable} says so");
        }
        std::process::exit(error.exit_code())
    });
    let cli = Cli::of(&matches).unwrap_or_else(|error| error.exit());
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { error, code }) => {
            eprintln!("error: {error:#}");
            ExitCode::from(code)
        }
    }
}

/// The variable that has the value which is wrong.
fn variable_of(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (argument, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let flag = argument.split_whitespace().next()?.strip_prefix("--")?;
    let run = command().find_subcommand("run")?.clone();
    let variable = run.get_arguments().find(|arg| arg.get_long() == Some(flag))?.get_env()?.to_owned();
    let is_said = std::env::var_os(&variable)?.to_str()?.split(',').any(|part| part == value);
    is_said.then(|| variable.to_string_lossy().into_owned())
}

/// Logs to the standard error.
fn log_to_stderr(levels: Option<&str>) -> Result<(), ConfigError> {
    let filter = log::filter(levels.unwrap_or("info")).map_err(|why| invalid("PACKRUN_LOG or --log", why))?;
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Somebody may have set one up already.
    let _ = logs.with_ansi(!is_plain && std::io::stderr().is_terminal()).try_init();
    Ok(())
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
    let source = run.into_source()?.or(file);
    log_to_stderr(source.log.as_deref())?;
    let config = source.resolve()?;
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

    /// Every command with its help, and how it is called.
    fn walk(command: &mut clap::Command, path: &str, seen: &mut impl FnMut(&str, &str)) {
        let path = format!("{path}{} ", command.get_name());
        seen(path.trim_end(), &command.render_long_help().to_string());
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            walk(sub, &path, seen);
        }
    }

    #[test]
    fn every_help_has_examples_and_they_are_taken() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        let mut commands = 0;
        walk(&mut command, "", &mut |path, help| {
            commands += 1;
            let lines = help.replace("\\\n", "");
            let lines = lines.lines().map(str::trim).filter(|line| line.starts_with("packrun-agent "));
            let examples: Vec<_> = lines.collect();
            assert_eq!(examples.len(), 3, "{path}: {help}");
            for example in examples {
                let parsed = Cli::try_parse_from(example.split_whitespace());
                assert!(parsed.is_ok(), "{example}: {parsed:?}");
            }
        });
        assert_eq!(commands, 2);
    }

    #[test]
    fn every_option_has_a_variable_and_a_key_of_the_file() {
        let run = Cli::command().find_subcommand("run").unwrap().clone();
        for option in run.get_arguments().filter(|arg| arg.get_id() != "help") {
            let id = option.get_id().as_str();
            let variable = format!("PACKRUN_{}", id.to_uppercase());
            let help = option.get_help().unwrap().to_string();
            let named = option.get_env().map(|name| name.to_string_lossy().into_owned());
            assert!(named.as_deref() == Some(&*variable) || help.contains(&variable), "{id}");
            let key = if id == "label" { "labels" } else { id };
            let known = toml::from_str::<Source>(&format!("{key} = {{ a = [] }}")).unwrap_err().to_string();
            assert!(!known.contains("unknown field"), "{known}");
        }
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
