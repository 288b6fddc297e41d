//! `packrun logs`: what the jobs of a pack run wrote, in the order of time; with `--follow` as it comes.

use clap::Args;
use packrun_protocol::id::PackRunId;
use packrun_protocol::name::JobKey;
use packrun_protocol::time::Timestamp;

use crate::api::types::{JobRun, LogEntry, PackRun, Page};
use crate::cli::Session;
use crate::cli::args::Since;
use crate::cli::client::Client;
use crate::cli::client::feed::Happened;
use crate::cli::exit::{Error, Exit};
use crate::cli::lines::{Lines, Look};
use crate::cli::output::Format;
use crate::cli::world::World;
use crate::cli::{follow, resolve};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  packrun logs 8a5f21d07c3e --job 'test[shard=1]' --since 10m --follow")]
pub(in crate::cli) struct LogsArgs {
    /// The pack run's id, or the start or the end of it
    run: String,
    /// Only this job: its name, or its key with the values of its matrix
    #[arg(long)]
    job: Option<String>,
    /// Go on until the pack run ends
    #[arg(long)]
    follow: bool,
    /// Only from this time on: RFC 3339, or a duration before now
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Start each line with its time
    #[arg(long)]
    timestamps: bool,
}

impl LogsArgs {
    pub(in crate::cli) async fn run(self, session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
        let client = session.client(world)?;
        let run = resolve::pack_run(&client, &self.run).await?;
        let PackRun { job_runs, state, .. } = follow::pack_run(&client, run).await?.value;
        let job_runs = job_runs.unwrap_or_default();
        let keys = wanted(&job_runs, self.job.as_deref())?;
        let since = self.since.map(|since| since.time(world.now));
        let look = Look {
            color: world.out.color,
            terminal: world.out.terminal,
            timestamps: self.timestamps,
            keys: keys.len() != 1,
        };
        let mut show = Show { job: self.job, since, format: session.format, lines: Lines::new(look, keys) };
        if self.follow {
            follow::until_end(world, &client, run, |happened| match happened {
                Happened::Log(entry) => show.entry(entry).into_iter().collect(),
                Happened::End(_) => show.rest(),
                _ => Vec::new(),
            })
            .await?;
        } else {
            pages(&client, run, world, &mut show).await?;
            if !state.is_terminal() {
                world.err.line(format_args!("pack run {run} goes on; --follow shows what comes"))?;
            }
        }
        Ok(Exit::Done)
    }
}

/// The keys of the job runs that are wanted.
fn wanted<'k>(job_runs: &'k [JobRun], job: Option<&str>) -> Result<Vec<&'k JobKey>, Error> {
    let keys: Vec<_> = job_runs.iter().map(|job_run| &job_run.key).filter(|key| chosen(key, job)).collect();
    match job {
        Some(job) if keys.is_empty() => {
            let mut jobs: Vec<_> = job_runs.iter().map(|job_run| job_run.job.as_str()).collect();
            jobs.dedup();
            Err(Error::invalid(format!("the pack run has no job `{job}`"))
                .hint(format!("its jobs: {}", jobs.join(", "))))
        }
        _ => Ok(keys),
    }
}

fn chosen(key: &JobKey, job: Option<&str>) -> bool {
    job.is_none_or(|job| key.as_str() == job || key.job() == job)
}

async fn pages(client: &Client, run: PackRunId, world: &mut World<'_>, show: &mut Show) -> Result<(), Error> {
    let id = run.to_string();
    let path = ["v1", "pack-runs", &id, "logs"];
    let mut cursor: Option<String> = None;
    let job = show.job.clone();
    loop {
        let given = [("job", job.as_deref()), ("cursor", cursor.as_deref())];
        let query: Vec<_> = given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let page = client.get::<Page<LogEntry>>(&path, &query).await?.value;
        // While the run lives there is always a next page; the one that has nothing is the last for now.
        let empty = page.items.is_empty();
        let mut lines: Vec<_> = page.items.into_iter().filter_map(|entry| show.entry(entry)).collect();
        let next = page.next_cursor.filter(|next| !empty && cursor.as_ref() != Some(next));
        if next.is_none() {
            lines.extend(show.rest());
        }
        lines.push(String::new());
        world.out.raw(lines.join("\n").as_bytes())?;
        match next {
            Some(_) => cursor = next,
            None => return Ok(()),
        }
    }
}

/// Makes lines of the entries that are wanted.
struct Show {
    job: Option<String>,
    since: Option<Timestamp>,
    format: Format,
    lines: Lines,
}

impl Show {
    fn entry(&mut self, entry: LogEntry) -> Option<String> {
        if !chosen(&entry.key, self.job.as_deref()) || self.since.is_some_and(|since| entry.time < since) {
            return None;
        }
        match self.format {
            Format::Table => self.lines.entry(entry),
            Format::Json => serde_json::to_string(&entry).ok(),
        }
    }

    fn rest(&mut self) -> Vec<String> {
        self.lines.finish(None)
    }
}
