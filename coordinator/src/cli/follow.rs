//! Following a pack run to its end: what happens is shown as it happens, and at the end the whole.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use packrun_protocol::id::PackRunId;
use packrun_protocol::state::{JobRunState, PackRunState};
use packrun_protocol::time::Timestamp;

use super::client::feed::{Feed, Happened};
use super::client::{Answer, Client};
use super::exit::{Error, Exit, Kind};
use super::lines::{Lines, Look};
use super::output::{self, Format, Style, or_dash};
use super::world::World;
use crate::api::types::{JobRun, PackRun};

/// Most job runs that a summary names.
const SUMMARY_ROWS_MAX: usize = 100;

/// Most reasons for which job runs are queued that are told at a time.
const REASONS_MAX: usize = 10;

/// After how many lulls it is asked again what a silent pack run waits for: the answer may be large.
const LULLS: u32 = 6;

/// Whether there will be a coordinator to ask when the command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// Other commands may go on with the pack run.
    Stays,
    /// It ends with the command: `packrun dev`.
    Gone,
}

/// Follows a pack run with all its output, and gives how it ended. Also for `packrun dev`.
///
/// # Errors
/// When the coordinator refuses, the output can't be written, or Ctrl-C is pressed.
pub async fn follow(
    world: &mut World<'_>,
    client: &Client,
    run: PackRunId,
    afterwards: Afterwards,
) -> Result<Exit, Error> {
    let start = pack_run(client, run).await?;
    let keys = start.value.job_runs.iter().flatten().map(|job_run| &job_run.key);
    let look = Look { color: world.out.color, terminal: world.out.terminal, timestamps: false, keys: true };
    let mut lines = Lines::new(look, keys);
    until_end(world, client, run, None, |happened| match happened {
        Happened::Log(entry) => lines.entry(entry).into_iter().collect(),
        Happened::State(event) => lines.state(&event),
        Happened::Artifact(event) => vec![lines.artifact(&event)],
        Happened::End(_) => lines.finish(None),
        Happened::Lost(_) | Happened::Back => Vec::new(),
    })
    .await?;
    let end = pack_run(client, run).await?.value;
    let summary = summary(&end, world.now, world.out.color, afterwards);
    world.out.line(format_args!("\n{}", summary.trim_end()))?;
    Ok(Exit::of_run(end.state))
}

/// Waits for the end of a pack run and gives how it ended. It is shown only where that is asked for as JSON, and where
/// it is to be looked into.
///
/// # Errors
/// When the coordinator refuses, the output can't be written, or Ctrl-C is pressed.
pub async fn wait(
    world: &mut World<'_>,
    client: &Client,
    run: PackRunId,
    format: Format,
) -> Result<Exit, Error> {
    until_end(world, client, run, None, |_| Vec::new()).await?;
    let end = pack_run(client, run).await?;
    let (exit, state) = (Exit::of_run(end.value.state), end.value.state);
    match format {
        Format::Json => output::show(world, format, &end.body, |_| String::new())?,
        Format::Table if exit == Exit::Done => {}
        Format::Table => {
            world.err.line(format_args!("pack run {run} {state}: see `packrun runs show {run}`"))?
        }
    }
    Ok(exit)
}

/// Shows the lines that `lines` makes of what happens in a pack run, to its end, without log entries from before
/// `since`. Of lost connections, and of what it
/// waits for when nothing happens, it tells people itself.
///
/// # Errors
/// When the coordinator refuses, the output can't be written, or Ctrl-C is pressed.
pub async fn until_end(
    world: &mut World<'_>,
    client: &Client,
    run: PackRunId,
    since: Option<Timestamp>,
    mut lines: impl FnMut(Happened) -> Vec<String>,
) -> Result<(), Error> {
    let interrupt = world.interrupt.clone();
    let mut stop = pin!(interrupt.wait());
    let mut feed = Feed::new(client, run, since);
    let mut told = BTreeSet::new();
    loop {
        let mut next = pin!(feed.next());
        let mut lull = world.lull;
        let happened = loop {
            tokio::select! {
                biased;
                () = &mut stop => {
                    return Err(Error::new(Kind::Interrupted, format!("stopped following; pack run {run} goes on"))
                        .hint(format!("follow it again: packrun logs {run} --follow"))
                        .hint(format!("cancel it: packrun runs cancel {run}")));
                }
                happened = &mut next => break happened?,
                reasons = waits_for(client, run, lull) => {
                    for reason in reasons.difference(&told) {
                        world.err.line(format_args!("waiting: {}", output::printable(reason)))?;
                    }
                    told = reasons;
                    lull = world.lull * LULLS;
                }
            }
        };
        // One write for all that has come: a fast job's lines are many.
        let mut text = String::new();
        let mut ended = false;
        for happened in happened {
            match &happened {
                Happened::Lost(why) => {
                    let why = output::printable(why);
                    world.err.line(format_args!("lost the coordinator: {why}; trying to reach it again"))?;
                }
                Happened::Back => world.err.line("reached the coordinator again")?,
                Happened::End(_) => ended = true,
                Happened::Artifact(_) | Happened::Log(_) | Happened::State(_) => {}
            }
            for line in lines(happened) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        world.out.raw(text.as_bytes())?;
        if ended {
            return Ok(());
        }
    }
}

/// Why job runs are queued, after this time; nothing if that can't be had now.
async fn waits_for(client: &Client, run: PackRunId, lull: Duration) -> BTreeSet<String> {
    tokio::time::sleep(lull).await;
    let asked = pack_run(client, run).await.ok().and_then(|answer| answer.value.job_runs);
    let queued = asked.into_iter().flatten().filter(|job_run| job_run.state == JobRunState::Queued);
    queued
        .filter_map(|job_run| job_run.reason)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .take(REASONS_MAX)
        .collect()
}

/// A pack run with its job runs.
pub(super) async fn pack_run(client: &Client, run: PackRunId) -> Result<Answer<PackRun>, Error> {
    client.get(&["v1", "pack-runs", &run.to_string()], &[]).await
}

/// The job runs of a pack run as a table, as it stands at `now`, and its state. Of very many only those are named that did not succeed.
#[must_use]
pub fn summary(run: &PackRun, now: Timestamp, color: bool, afterwards: Afterwards) -> String {
    let job_runs = run.job_runs.as_deref().unwrap_or_default();
    let of_note = |job_run: &&JobRun| {
        job_runs.len() <= SUMMARY_ROWS_MAX
            || !matches!(job_run.state, JobRunState::Succeeded | JobRunState::Skipped)
    };
    let rows: Vec<_> =
        job_runs.iter().filter(of_note).take(SUMMARY_ROWS_MAX).map(|run| row(run, now)).collect();
    let left_out = job_runs.len() - rows.len();
    let columns = ["JOB", "STATE", "AGENT", "ATTEMPT", "DURATION", "EXIT", "REASON"];
    let mut text = if rows.is_empty() { String::new() } else { output::table(columns, rows, color) };
    if left_out > 0 {
        let all = match afterwards {
            Afterwards::Stays => format!("; `packrun runs show {} --output json` has all", run.id),
            Afterwards::Gone => String::new(),
        };
        text.push_str(&format!("and {left_out} more{all}\n"));
    }
    let invalid = job_runs.iter().filter_map(|job_run| job_run.invalid_bytes).fold(0, u64::saturating_add);
    if invalid > 0 {
        text.push_str(&format!("bytes of the logs that are no UTF-8, shown as U+FFFD: {invalid}\n"));
    }
    let state = Style::of_state(run.state.as_str()).paint(run.state.as_str(), color);
    let took = run.ended_at.map(|end| format!(" after {}", output::duration(end.since(run.created_at))));
    text.push_str(&format!("pack run {} {state}{}\n", run.id, took.unwrap_or_default()));
    let failed = matches!(run.state, PackRunState::PartiallyFailed | PackRunState::Failed);
    if failed && afterwards == Afterwards::Stays {
        text.push_str(&format!("repeat what failed: packrun runs retry {} --failed\n", run.id));
    }
    text
}

/// How a process ended, in a column.
pub(super) fn exit(code: Option<u8>, signal: Option<u8>) -> String {
    match (code, signal) {
        (Some(code), _) => code.to_string(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "-".to_owned(),
    }
}

/// How long a process ran, or has been running; by our own clock then.
pub(super) fn ran(seconds: Option<f64>, started: Option<Timestamp>, runs: bool, now: Timestamp) -> String {
    match (seconds, started) {
        (Some(seconds), _) => output::seconds(seconds),
        (None, Some(started)) if runs => output::duration(now.since(started)),
        (None, _) => "-".to_owned(),
    }
}

fn row(job_run: &JobRun, now: Timestamp) -> [String; 7] {
    let runs = job_run.state == JobRunState::Running;
    let reused = job_run.reused_from.map(|from| format!("taken over from {from}"));
    [
        job_run.key.to_string(),
        job_run.state.to_string(),
        or_dash(job_run.agent.as_ref()),
        or_dash(job_run.attempt),
        ran(job_run.duration_seconds, job_run.started_at, runs, now),
        exit(job_run.exit_code, job_run.signal),
        or_dash(job_run.reason.as_ref().or(reused.as_ref())),
    ]
}
