//! `packrun logs`: what the jobs of a pack run wrote, in the order of time; with `--follow` as it comes.

use clap::Args;
use packrun_protocol::id::PackRunId;
use packrun_protocol::name::JobKey;
use packrun_protocol::time::Timestamp;

use crate::api::types::{LogEntry, PackRun, Page};
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
#[command(
    after_help = "Example:\n  packrun logs 8a5f21d07c3e --tail 100 --follow\n  packrun logs 8a5f21d07c3e --job 'test[shard=1]' --since 10m --timestamps"
)]
pub(in crate::cli) struct LogsArgs {
    /// The pack run's id, or the start or the end of it
    run: String,
    /// Only this job: its name, its key with the values of its matrix, its id, or the start of one
    #[arg(long)]
    job: Option<String>,
    /// Go on until the pack run ends
    #[arg(long)]
    follow: bool,
    /// Only from this time on: RFC 3339, or a duration before now
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Only so many lines from the end, and with --follow those that come
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=100_000))]
    tail: Option<u32>,
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
        let jobs: Vec<_> = match &self.job {
            Some(job) => resolve::job_runs(&job_runs, job)?,
            None => job_runs.iter().collect(),
        };
        let keys: Vec<_> = jobs.iter().map(|job_run| &job_run.key).collect();
        // What the API calls the chosen: all of a job, or one of it.
        let job = self.job.as_ref().and_then(|_| match *jobs.as_slice() {
            [one] => Some(one.key.to_string()),
            [first, ..] => Some(first.job.clone()),
            [] => None,
        });
        let since = self.since.map(|since| since.time(world.now));
        let look = Look {
            color: world.out.color,
            terminal: world.out.terminal,
            timestamps: self.timestamps,
            keys: keys.len() != 1,
        };
        let lines = Lines::new(look, keys);
        let hidden = self.follow && self.tail == Some(0);
        let mut show = Show { job, since, hidden, last: None, format: session.format, lines };
        if self.follow {
            if self.tail.is_some() {
                // The last entry says where to go on, even if it is not to be shown.
                pages(&client, run, world, &mut show, self.tail.max(Some(1))).await?;
                show.hidden = false;
                // No entry that is not on these pages is as early as their last.
                show.since = show.last.map(|last| last.shifted(1)).or(show.since);
            }
            follow::until_end(world, &client, run, show.since, |happened| match happened {
                Happened::Log(entry) => show.entry(entry).into_iter().collect(),
                Happened::End(_) => show.rest(),
                _ => Vec::new(),
            })
            .await?;
        } else {
            pages(&client, run, world, &mut show, self.tail).await?;
            let rest = show.rest();
            world.out.raw(rest.iter().flat_map(|line| [line, "\n"]).collect::<String>().as_bytes())?;
            if !state.is_terminal() {
                world.err.line(format_args!("pack run {run} goes on; --follow shows what comes"))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn chosen(key: &JobKey, job: Option<&str>) -> bool {
    job.is_none_or(|job| key.as_str() == job || key.job() == job)
}

/// Shows what there is now.
async fn pages(
    client: &Client,
    run: PackRunId,
    world: &mut World<'_>,
    show: &mut Show,
    tail: Option<u32>,
) -> Result<(), Error> {
    let id = run.to_string();
    let path = ["v1", "pack-runs", &id, "logs"];
    let mut cursor: Option<String> = None;
    let job = show.job.clone();
    let since = show.since.map(|since| since.to_string());
    let tail = tail.map(|lines| lines.to_string());
    loop {
        let given = [
            ("job", job.as_deref()),
            ("since", since.as_deref()),
            ("tail", tail.as_deref().filter(|_| cursor.is_none())),
            ("cursor", cursor.as_deref()),
        ];
        let query: Vec<_> = given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let page = client.get::<Page<LogEntry>>(&path, &query).await?.value;
        // While the run lives there is always a next page; the one that has nothing is the last for now.
        let empty = page.items.is_empty();
        let mut lines: Vec<_> = page.items.into_iter().filter_map(|entry| show.entry(entry)).collect();
        let next = page.next_cursor.filter(|next| !empty && cursor.as_ref() != Some(next));
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
    /// Whether entries are only looked at.
    hidden: bool,
    /// The time of the last entry.
    last: Option<Timestamp>,
    format: Format,
    lines: Lines,
}

impl Show {
    fn entry(&mut self, entry: LogEntry) -> Option<String> {
        if !chosen(&entry.key, self.job.as_deref()) || self.since.is_some_and(|since| entry.time < since) {
            return None;
        }
        self.last = self.last.max(Some(entry.time));
        if self.hidden {
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
