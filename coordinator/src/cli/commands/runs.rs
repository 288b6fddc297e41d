//! `packrun runs`: looking at pack runs, canceling and repeating them.

use clap::Subcommand;
use packrun_protocol::state::{AttemptState, JobRunState, PackRunState};
use packrun_protocol::time::Timestamp;

use super::run::Until;
use crate::api::types::{JobRun, PackRun, Page, Retry};
use crate::cli::client::{Client, Repeat};
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
    /// Show a pack run with its job runs, or one of these with its attempts
    #[command(
        after_help = "Example:\n  packrun runs show 8a5f21d07c3e\n  packrun runs show 8a5f21d07c3e --job 'test[shard=1]'"
    )]
    Show {
        /// Its id, or the start or the end of it
        run: String,
        /// One job run: its key, its id, or the start of one
        #[arg(long)]
        job: Option<String>,
    },
    /// Cancel a pack run, or one of its job runs
    #[command(
        after_help = "Example:\n  packrun runs cancel 8a5f21d07c3e\n  packrun runs cancel 8a5f21d07c3e --job lint"
    )]
    Cancel {
        /// Its id, or the start or the end of it
        run: String,
        /// Only one job run: its key, its id, or the start of one
        #[arg(long)]
        job: Option<String>,
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
            Self::Show { run, job: Some(job) } => {
                let id = job_run(&client, &run, &job).await?.id.to_string();
                let (job_run, now) = (client.get::<JobRun>(&["v1", "runs", &id], &[]).await?, world.now);
                output::show(world, session.format, &job_run.body, |color| {
                    attempts(&job_run.value, now, color)
                })?;
            }
            Self::Show { run, job: None } => {
                let id = resolve::pack_run(&client, &run).await?;
                let (run, now) = (follow::pack_run(&client, id).await?, world.now);
                output::show(world, session.format, &run.body, |color| described(&run.value, now, color))?;
            }
            Self::Cancel { run, job: Some(job) } => {
                let JobRun { id, key, .. } = job_run(&client, &run, &job).await?;
                let path = ["v1", "runs", &id.to_string(), "cancel"];
                let answer = client.post::<JobRun>(&path, &serde_json::json!({}), Repeat::Always).await?;
                output::show(world, session.format, &answer.body, |_| match answer.value.state {
                    JobRunState::Canceled => format!("job run {key} is canceled"),
                    _ => format!("job run {key} is being canceled"),
                })?;
            }
            Self::Cancel { run, job: None } => {
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

/// The one job run of a pack run that is meant.
async fn job_run(client: &Client, run: &str, job: &str) -> Result<JobRun, Error> {
    let id = resolve::pack_run(client, run).await?;
    let job_runs = follow::pack_run(client, id).await?.value.job_runs.unwrap_or_default();
    resolve::one_job_run(&resolve::job_runs(&job_runs, job)?, job).cloned()
}

/// A job run with its attempts.
fn attempts(job_run: &JobRun, now: Timestamp, color: bool) -> String {
    let mut fields = vec![
        ("Job run", job_run.id.to_string()),
        ("Key", job_run.key.to_string()),
        ("Run", job_run.pack_run.to_string()),
        ("State", job_run.state.to_string()),
    ];
    fields.extend(job_run.since.map(|since| ("Since", time(since))));
    fields.extend(job_run.reason.clone().map(|reason| ("Reason", reason)));
    fields.extend(job_run.reused_from.map(|from| ("Taken from", from.to_string())));
    let rows: Vec<_> = job_run
        .attempts
        .iter()
        .flatten()
        .map(|attempt| {
            [
                attempt.number.to_string(),
                attempt.state.to_string(),
                attempt.agent.clone(),
                or_dash(attempt.started_at.map(time)),
                follow::ran(
                    attempt.duration_seconds,
                    attempt.started_at,
                    attempt.state == AttemptState::Running,
                    now,
                ),
                follow::exit(attempt.exit_code, attempt.signal),
                or_dash(attempt.entries),
                or_dash(attempt.reason.as_ref()),
            ]
        })
        .collect();
    let columns = ["ATTEMPT", "STATE", "AGENT", "STARTED", "DURATION", "EXIT", "LINES", "REASON"];
    let table =
        if rows.is_empty() { "no attempt yet\n".to_owned() } else { output::table(columns, rows, color) };
    format!("{}\n{table}", output::fields(&fields))
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

fn described(run: &PackRun, now: Timestamp, color: bool) -> String {
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
    format!("{}\n{}", output::fields(&fields), follow::summary(run, now, color, Afterwards::Stays))
}
