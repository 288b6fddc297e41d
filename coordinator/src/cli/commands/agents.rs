//! `packrun agents`: inviting agents, looking at them, draining, resuming and revoking them.

use std::time::Duration;

use clap::Subcommand;
use packrun_protocol::name::Labels;

use crate::api::types::{Agent, JoinTokenMade, NewJoinToken};
use crate::cli::Session;
use crate::cli::args;
use crate::cli::client::{Client, Repeat};
use crate::cli::exit::{Error, Exit};
use crate::cli::output::{self, or_dash, size, time};
use crate::cli::resolve;
use crate::cli::world::World;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum AgentsCommand {
    /// Make a join token, with which one agent may join
    #[command(after_help = "Example:\n  packrun agents invite --ttl 1h --label pool=release > token")]
    Invite {
        /// How long it holds: 1s to 30d
        #[arg(long, value_parser = args::duration, default_value = "1h")]
        ttl: Duration,
        /// A label of the agent; may be given more than once
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::pair)]
        labels: Vec<(String, String)>,
        /// The agent's name, unless it may choose
        #[arg(long)]
        name: Option<String>,
    },
    /// List the agents
    #[command(after_help = "Example:\n  packrun agents list --output json")]
    List,
    /// Show an agent
    #[command(after_help = "Example:\n  packrun agents show builder-1")]
    Show {
        /// Its name or id, or the start of one
        agent: String,
    },
    /// Let an agent finish what it holds and give it no more
    #[command(after_help = "Example:\n  packrun agents drain builder-1")]
    Drain {
        /// Its name or id, or the start of one
        agent: String,
    },
    /// Give a drained agent work again
    #[command(after_help = "Example:\n  packrun agents resume builder-1")]
    Resume {
        /// Its name or id, or the start of one
        agent: String,
    },
    /// Shut an agent out for good
    #[command(after_help = "Example:\n  packrun agents revoke builder-1")]
    Revoke {
        /// Its name or id, in full
        agent: String,
    },
}

impl AgentsCommand {
    pub(in crate::cli) async fn run(self, session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
        let client = session.client(world)?;
        match self {
            Self::Invite { ttl, labels, name } => {
                let labels: std::collections::BTreeMap<_, _> = labels.into_iter().collect();
                Labels::new(labels.clone()).map_err(|error| Error::invalid(error.to_string()))?;
                let request = NewJoinToken { ttl_seconds: Some(ttl.as_secs()), labels, name };
                let made =
                    client.post::<JoinTokenMade>(&["v1", "join-tokens"], &request, Repeat::IfUnsent).await?;
                output::show(world, session.format, &made.body, |_| made.value.token.clone())?;
                let until = time(made.value.expires_at);
                world.err.line(format_args!("for one agent, until {until}; it is not shown again"))?;
            }
            Self::List => {
                let agents = client.list::<Agent>(&["v1", "agents"], &[]).await?;
                let rows = agents.value.iter().map(row);
                let columns = ["NAME", "STATE", "CONNECTED", "HELD", "SLOTS", "LABELS", "ID"];
                output::show(world, session.format, &agents.body, |color| {
                    output::table(columns, rows, color)
                })?;
            }
            Self::Show { agent } => {
                let id = resolve::agent(&client, &agent).await?.id;
                let agent = client.get::<Agent>(&["v1", "agents", &id.to_string()], &[]).await?;
                output::show(world, session.format, &agent.body, |_| described(&agent.value))?;
            }
            Self::Drain { agent } => {
                act(&client, session, world, &agent, "drain", "gets no more work").await?
            }
            Self::Resume { agent } => {
                act(&client, session, world, &agent, "resume", "gets work again").await?
            }
            Self::Revoke { agent } => {
                let found = resolve::agent(&client, &agent).await?;
                if found.name.as_str() != agent && !found.id.to_string().eq_ignore_ascii_case(&agent) {
                    return Err(Error::invalid(format!(
                        "`{agent}` is only the start of the agent's name or id"
                    ))
                    .hint(format!("this can't be undone: write `packrun agents revoke {}`", found.name)));
                }
                act(&client, session, world, &agent, "revoke", "is shut out for good").await?;
            }
        }
        Ok(Exit::Done)
    }
}

async fn act(
    client: &Client,
    session: &Session,
    world: &mut World<'_>,
    agent: &str,
    verb: &str,
    done: &str,
) -> Result<(), Error> {
    let Agent { id, name, .. } = resolve::agent(client, agent).await?;
    let path = ["v1", "agents", &id.to_string(), verb];
    let answer = client.post::<serde_json::Value>(&path, &serde_json::json!({}), Repeat::Always).await?;
    output::show(world, session.format, &answer.body, |_| format!("agent {name} {done}"))
}

fn row(agent: &Agent) -> [String; 7] {
    [
        agent.name.to_string(),
        word(&agent.state),
        if agent.connected { "yes" } else { "no" }.to_owned(),
        agent.held.to_string(),
        or_dash(agent.slots),
        list(&agent.labels),
        agent.id.to_string(),
    ]
}

fn list(labels: &Labels) -> String {
    if labels.is_empty() { "-".to_owned() } else { labels.to_string() }
}

/// A state as the API writes it.
fn word(state: &impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "-".to_owned(),
    }
}

fn described(agent: &Agent) -> String {
    output::fields(&[
        ("Agent", agent.name.to_string()),
        ("Id", agent.id.to_string()),
        ("State", word(&agent.state)),
        ("Connected", if agent.connected { "yes" } else { "no" }.to_owned()),
        ("Draining", if agent.draining { "yes, by its own word" } else { "no" }.to_owned()),
        ("Labels", list(&agent.labels)),
        ("Refused", list(&agent.refused_labels)),
        ("Held", format!("{} of {} slots", agent.held, or_dash(agent.slots))),
        ("Processors", or_dash(agent.cpus)),
        ("Memory", or_dash(agent.memory_bytes.map(size))),
        ("Isolation", agent.isolation.as_ref().map_or_else(|| "-".to_owned(), word)),
        ("Enrolled", time(agent.enrolled_at)),
    ])
}
