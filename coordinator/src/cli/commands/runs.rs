//! `packrun runs`: looking at pack runs, canceling and repeating them.

use clap::Subcommand;
use packrun_protocol::state::PackRunState;

use super::run::Until;
use crate::api::types::{PackRun, Page, Retry};
use crate::cli::client::Repeat;
use crate::cli::exit::{Error, Exit};
use crate::cli::follow::Afterwards;
use crate::cli::output::{self, duration, or_dash, time};
use crate::cli::world::World;
use crate::cli::{Session, follow, resolve};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RunsCommand {
    /// List pack runs, the newest first
    #[command(after_help = "Example:\n  packrun runs list --pack build --state failed")]
    List {
        /// Only those of this pack
        #[arg(long, value_name = "NAME")]
        pack: Option<String>,
        /// Only those in this state
        #[arg(long, value_parser = state)]
        state: Option<PackRunState>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Go on where a list ended, with what it printed
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Show a pack run with its job runs
    #[command(after_help = "Example:\n  packrun runs show 8a5f21d07c3e")]
    Show {
        /// Its id, or the start or the end of it
        run: String,
    },
    /// Cancel a pack run
    #[command(after_help = "Example:\n  packrun runs cancel 8a5f21d07c3e")]
    Cancel {
        /// Its id, or the start or the end of it
        run: String,
    },
    /// Repeat a pack run as a new one
    #[command(after_help = "Example:\n  packrun runs retry 8a5f21d07c3e --failed --follow")]
    Retry {
        /// Its id, or the start or the end of it
        run: String,
        /// Take over the job runs that succeeded, with their artifacts
        #[arg(long)]
        failed: bool,
        #[command(flatten)]
        until: Until,
    },
}

fn state(text: &str) -> Result<PackRunState, String> {
    PackRunState::ALL.iter().copied().find(|state| state.as_str() == text).ok_or_else(|| {
        let all: Vec<_> = PackRunState::ALL.iter().map(|state| state.as_str()).collect();
        format!("the states are {}", all.join(", "))
    })
}

impl RunsCommand {
    pub(in crate::cli) async fn run(self, session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
        let client = session.client(world)?;
        match self {
            Self::List { pack, state, limit, cursor } => {
                let limit = limit.to_string();
                let given = [
                    ("pack", pack.as_deref()),
                    ("state", state.map(PackRunState::as_str)),
                    ("limit", Some(limit.as_str())),
                    ("cursor", cursor.as_deref()),
                ];
                let query: Vec<_> =
                    given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
                let page = client.get::<Page<PackRun>>(&["v1", "pack-runs"], &query).await?;
                output::show(world, session.format, &page.body, |color| list(&page.value, color))?;
            }
            Self::Show { run } => {
                let id = resolve::pack_run(&client, &run).await?;
                let run = follow::pack_run(&client, id).await?;
                output::show(world, session.format, &run.body, |color| described(&run.value, color))?;
            }
            Self::Cancel { run } => {
                let id = resolve::pack_run(&client, &run).await?;
                let path = ["v1", "pack-runs", &id.to_string(), "cancel"];
                let answer = client.post::<PackRun>(&path, &serde_json::json!({}), Repeat::Always).await?;
                output::show(world, session.format, &answer.body, |_| match answer.value.state {
                    PackRunState::Canceled => format!("pack run {id} is canceled"),
                    _ => format!("pack run {id} is being canceled"),
                })?;
            }
            Self::Retry { run, failed, until } => {
                until.check(session.format)?;
                let id = resolve::pack_run(&client, &run).await?;
                let path = ["v1", "pack-runs", &id.to_string(), "retry"];
                let started = client.post::<PackRun>(&path, &Retry { failed }, Repeat::Always).await?;
                return until.stay(session, world, &client, started).await;
            }
        }
        Ok(Exit::Done)
    }
}

fn list(page: &Page<PackRun>, color: bool) -> String {
    let rows = page.items.iter().map(|run| {
        [
            run.id.to_string(),
            format!("{}@{}", run.pack, run.version),
            run.state.to_string(),
            time(run.created_at),
            or_dash(run.ended_at.map(|end| duration(end.since(run.created_at)))),
        ]
    });
    let mut text = output::table(["RUN", "PACK", "STATE", "CREATED", "DURATION"], rows, color);
    if let Some(cursor) = &page.next_cursor {
        text.push_str(&format!("there are more: --cursor {}\n", output::printable(cursor)));
    }
    text
}

fn described(run: &PackRun, color: bool) -> String {
    let params: Vec<_> = run.params.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut fields = vec![
        ("Run", run.id.to_string()),
        ("Pack", format!("{}@{}", run.pack, run.version)),
        ("Created", time(run.created_at)),
    ];
    let canceling = run.canceled && !run.state.is_terminal();
    fields.extend(canceling.then(|| ("Canceling", "yes".to_owned())));
    fields.extend(run.ended_at.map(|end| ("Ended", time(end))));
    fields.extend((!params.is_empty()).then(|| ("Parameters", params.join(", "))));
    fields.extend(run.retry_of.map(|of| ("Repeats", of.to_string())));
    format!("{}\n{}", output::fields(&fields), follow::summary(run, color, Afterwards::Stays))
}
