//! `packrun dev`: a coordinator and as few agents as a pack needs, in this process and on temporary data, to run that
//! pack once. Nothing is cut short: real QUIC, certificates, tokens and processes, and the commands that people use.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use packrun_agent::{AgentConfig, AgentError, Stop};
use packrun_protocol::id::JobRunId;
use packrun_protocol::job::Requirement;
use packrun_protocol::name::Labels;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::args::{self, PackRef};
use super::client::{Client, Repeat};
use super::commands::{pack as pack_command, run as run_command};
use super::coordinator::{Coordinator, Settings};
use super::exit::{Error, Exit, Kind};
use super::follow::{self, Afterwards};
use super::serve::{log_to, no_signals, not_started};
use super::settings::Connection;
use super::world::{Ending, World};
use crate::api::types::{JoinTokenMade, NewJoinToken};
use crate::pack;

/// How long agents get to end their jobs and to say so.
const AGENTS_STOP: Duration = Duration::from_secs(20);

const EXAMPLES: &str = "Example:
  packrun dev build.yaml --param profile=debug     run a pack once and follow it
  packrun dev                                      stay up, for the other commands and the API";

/// Try a pack: a coordinator and agents in this process, on temporary data
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = EXAMPLES)]
pub struct DevArgs {
    /// The pack file to register, run and follow; without one, the coordinator stays up
    pub file: Option<PathBuf>,
    /// A parameter's value; may be given for each parameter
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = args::pair, requires = "file")]
    pub params: Vec<(String, String)>,
}

/// A pack file that was checked, and the agents it needs.
struct Checked {
    file: PathBuf,
    format: pack::Format,
    content: Vec<u8>,
    name: PackRef,
    agents: Vec<Requirement>,
}

/// Runs a pack on a coordinator of its own, or keeps one up until a signal ends it.
///
/// # Errors
/// When the pack is invalid, or the coordinator or an agent fails.
pub async fn dev(world: &mut World<'_>, arguments: DevArgs) -> Result<Exit, Error> {
    let DevArgs { file, params } = arguments;
    let checked = file.map(|file| check(file, &params)).transpose()?;
    log_to(world, world.variable("PACKRUN_LOG").unwrap_or("warn"))?;
    // From here on there is something to clean up.
    let mut endings = world.interrupt.take().map_err(no_signals)?;
    let folder = tempfile::Builder::new().prefix("packrun-dev-").tempdir();
    let folder =
        folder.map_err(|error| Error::new(Kind::Failed, format!("cannot make a folder: {error}")))?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let settings =
        Settings { listen_agents: any, listen_api: any, ..Settings::new(folder.path().join("coordinator")) };
    // A start on no data is short. Once it is done, a signal that came meanwhile is heard.
    let mut coordinator = Coordinator::start(&settings).await.map_err(not_started)?;
    let (stop, stopped) = watch::channel(Stop::Run);
    let mut agents = JoinSet::new();
    let stays = checked.is_none();
    let result = tokio::select! {
        biased;
        ending = endings.next() => ended(ending, stays),
        result = async {
            let reach = coordinator_of(&coordinator)?;
            tokio::select! {
                reason = coordinator.failed() => Err(Error::new(Kind::Failed, reason)),
                result = work(world, &reach, folder.path(), &mut agents, &stopped, checked, params) => result,
            }
        } => result,
    };
    // Jobs that still run end with what ran them.
    stop.send_replace(Stop::Now);
    let left = async { while agents.join_next().await.is_some() {} };
    tokio::select! {
        left = tokio::time::timeout(AGENTS_STOP, left) => if left.is_err() {
            tracing::warn!("agents did not end in time");
        },
        // Somebody doesn't want to wait for jobs that are slow to end.
        _ = endings.next() => {}
    }
    tokio::select! {
        () = coordinator.stop() => {}
        _ = endings.next() => {}
    }
    result
}

/// How the command ends by a signal: well if all it did was to stay up until one.
fn ended(ending: Ending, stays: bool) -> Result<Exit, Error> {
    let kind = match ending {
        Ending::Interrupt if stays => return Ok(Exit::Done),
        Ending::Hangup => Kind::HungUp,
        Ending::Interrupt => Kind::Interrupted,
        Ending::Terminate => Kind::Terminated,
    };
    Err(Error::new(kind, "stopped; its jobs were ended"))
}

/// How to reach the coordinator of this process.
struct Reach {
    connection: Connection,
    agents: String,
    token_file: PathBuf,
}

fn coordinator_of(coordinator: &Coordinator) -> Result<Reach, Error> {
    let ready = coordinator.ready();
    let token = std::fs::read_to_string(&ready.admin_token_file)
        .map_err(|error| Error::new(Kind::Failed, format!("cannot read the token: {error}")))?;
    let connection = Connection { server: ready.api.clone(), token: Some(token.trim().to_owned()), ca: None };
    Ok(Reach { connection, agents: ready.agents.clone(), token_file: ready.admin_token_file.clone() })
}

async fn work(
    world: &mut World<'_>,
    reach: &Reach,
    folder: &Path,
    agents: &mut JoinSet<Result<(), AgentError>>,
    stop: &watch::Receiver<Stop>,
    checked: Option<Checked>,
    params: Vec<(String, String)>,
) -> Result<Exit, Error> {
    let wanted = checked.as_ref().map_or_else(|| vec![Requirement::default()], |pack| pack.agents.clone());
    for (number, requirement) in (1..).zip(wanted) {
        let config = agent(reach, folder, number, requirement).await?;
        agents.spawn(packrun_agent::run(config, stop.clone()));
    }
    let ended = async {
        match agents.join_next().await {
            Some(Ok(Err(error))) => Error::new(Kind::Failed, format!("an agent ended: {error}")),
            _ => Error::new(Kind::Failed, "an agent ended unexpectedly"),
        }
    };
    tokio::select! {
        error = ended => Err(error),
        result = async {
            match checked {
                Some(pack) => run(world, reach, pack, params).await,
                None => stay(world, reach).await,
            }
        } => result,
    }
}

async fn run(
    world: &mut World<'_>,
    reach: &Reach,
    pack: Checked,
    params: Vec<(String, String)>,
) -> Result<Exit, Error> {
    let client = client(reach)?;
    pack_command::register(&client, &pack.file, pack.format, &pack.content).await?;
    let started = run_command::start(&client, &pack.name, params).await?;
    follow::follow(world, &client, started.value.id, Afterwards::Gone).await
}

async fn stay(world: &mut World<'_>, reach: &Reach) -> Result<Exit, Error> {
    world.out.line(format_args!("API      {}", reach.connection.server))?;
    world.out.line(format_args!("agents   {}", reach.agents))?;
    world.out.line(format_args!("token    {}", reach.token_file.display()))?;
    world.out.line(format_args!(
        "\nUse it by: packrun --server {} --token-file {} status\nCtrl-C ends it, and its data.",
        reach.connection.server,
        reach.token_file.display()
    ))?;
    std::future::pending().await
}

/// A client whose POSTs carry a key of their own.
fn client(reach: &Reach) -> Result<Client, Error> {
    Client::new(&reach.connection, &uuid::Uuid::now_v7().to_string())
}

/// An agent that joins with a token of its own and can do what is required.
async fn agent(
    reach: &Reach,
    folder: &Path,
    number: u32,
    requirement: Requirement,
) -> Result<AgentConfig, Error> {
    let refused = |error: &dyn std::fmt::Display| Error::new(Kind::Failed, format!("no agent: {error}"));
    let made: JoinTokenMade =
        client(reach)?.post(&["v1", "join-tokens"], &NewJoinToken::default(), Repeat::Always).await?.value;
    let state = folder.join(format!("agent-{number}"));
    let mut config = AgentConfig::new(vec![reach.agents.clone()], state).map_err(|error| refused(&error))?;
    let labels = requirement.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    config.label(labels).map_err(|error| refused(&error))?;
    config.rename(format!("local-{number}").parse().map_err(|error| refused(&error))?);
    config.capacity.cpu_millis = config.capacity.cpu_millis.max(requirement.cpu_millis);
    config.capacity.memory_bytes = config.capacity.memory_bytes.max(requirement.memory_bytes);
    config.join_token = Some(made.token.parse().map_err(|error| refused(&error))?);
    Ok(config)
}

/// Checks a pack file before anything is started, and finds which agents its jobs need.
fn check(file: PathBuf, params: &[(String, String)]) -> Result<Checked, Error> {
    let (format, content) = pack_command::read(&file)?;
    let invalid = |report: String| Error::invalid(report);
    let limits = pack::Limits::default();
    let pack = pack::check(format, &content, &limits)
        .map_err(|error| invalid(error.report(&file.display().to_string())))?;
    let params: BTreeMap<String, String> = params.iter().cloned().collect();
    let arguments = pack.arguments(&params).map_err(|error| invalid(error.to_string()))?;
    let plan =
        pack.plan(&arguments, &limits, JobRunId::generate).map_err(|error| invalid(error.to_string()))?;
    let required = plan.job_runs().map(|planned| &planned.requirement);
    let agents = fewest_agents(required);
    let name = PackRef { name: pack.name().clone(), version: None };
    Ok(Checked { file, format, content, name, agents })
}

/// Agents that together match all requirements: a requirement goes to the first agent whose labels don't contradict
/// its own. That is not always the fewest there can be, but is one agent wherever one will do.
fn fewest_agents<'r>(required: impl Iterator<Item = &'r Requirement>) -> Vec<Requirement> {
    let mut agents = vec![Requirement::default()];
    for wanted in required {
        let fits = |agent: &Requirement| {
            wanted.labels.iter().all(|(key, value)| agent.labels.get(key).is_none_or(|own| own == value))
        };
        let index = agents.iter().position(fits).unwrap_or_else(|| {
            agents.push(Requirement::default());
            agents.len() - 1
        });
        let Some(agent) = agents.get_mut(index) else { continue };
        let pairs = agent.labels.iter().chain(wanted.labels.iter());
        let pairs: Vec<_> = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        // Two valid sets that don't contradict each other can only be too many together.
        if let Ok(labels) = Labels::new(pairs) {
            agent.labels = labels;
        }
        agent.cpu_millis = agent.cpu_millis.max(wanted.cpu_millis);
        agent.memory_bytes = agent.memory_bytes.max(wanted.memory_bytes);
    }
    agents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(labels: &[(&str, &str)]) -> Requirement {
        let pairs = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Requirement { labels: Labels::new(pairs).unwrap(), ..Requirement::default() }
    }

    #[test]
    fn one_agent_does_for_all_jobs_that_do_not_contradict_each_other() {
        let jobs = [
            requirement(&[("os", "linux")]),
            requirement(&[]),
            requirement(&[("pool", "a")]),
            requirement(&[("pool", "b")]),
            requirement(&[("pool", "a"), ("os", "linux")]),
        ];
        let agents = fewest_agents(jobs.iter());
        let expected = [requirement(&[("os", "linux"), ("pool", "a")]), requirement(&[("pool", "b")])];
        assert_eq!(agents, expected);
        assert_eq!(fewest_agents([].iter()), [requirement(&[])], "never without one");
    }
}
