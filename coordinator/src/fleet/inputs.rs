//! Which files an input of an attempt has: those that the job it is taken from left in the same pack run, of every
//! combination of its matrix, each of the last attempt; for a job run that took over an earlier one's success, that
//! one's.

use std::sync::Arc;

use packrun_protocol::id::{AttemptId, Digest, JobRunId, PackRunId};
use packrun_protocol::job::InputRule;
use packrun_protocol::quic::FrameWriter;
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{CloseCode, InputAnswer};
use thiserror::Error;
use tokio::sync::mpsc;

use super::artifact_stream::send;
use super::session::{Ask, AttemptGrant, Streams, TOLD_MAX, within};
use crate::core::change::JobRunRow;
use crate::core::plan::{Plan, PlannedRun};
use crate::engine::{Reader, StoreError};

/// Files that are read and sent together.
const FILES_TOGETHER: usize = 256;

/// Lists of files that may wait to be sent.
const LISTS: usize = 4;

/// Retries of retries that are followed back: more than anybody makes, and an end to a damaged store's circle.
const TAKEN_OVER_MAX: usize = 10_000;

/// Why an input's files can't be named.
#[derive(Debug, Error)]
enum InputError {
    #[error("the attempt is unknown or has ended")]
    NoAttempt,
    #[error("the job has no input {0}")]
    NoInput(u32),
    #[error("`{file}` can't be put into the workspace: {reason}")]
    Path { file: String, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody waits for more.
    #[error("the stream ended")]
    Unwanted,
}

/// Serves the list of an input's files; an error is the code to reset the stream with.
pub(super) async fn serve(
    streams: &Streams,
    writer: &mut FrameWriter,
    attempt: AttemptId,
    input: u32,
) -> Result<(), CloseCode> {
    let Some(held) = streams.attempt(attempt, None).await? else {
        let refusal = Reason::new("the attempt is not this agent's");
        return send(streams, writer, &InputAnswer::Refused(refusal)).await;
    };
    let gone = held.gone.clone();
    tokio::select! {
        biased;
        () = gone.cancelled() => Err(CloseCode::Fenced),
        named = name(streams, writer, held, attempt, input) => named,
    }
}

async fn name(
    streams: &Streams,
    writer: &mut FrameWriter,
    held: AttemptGrant,
    attempt: AttemptId,
    input: u32,
) -> Result<(), CloseCode> {
    let _turn = streams.download_turn().await?;
    let (lists, mut listed) = mpsc::channel(LISTS);
    let reading = read(streams, held.pack_run, move |reader, plan| {
        let mut list = Vec::new();
        for_each(&reader, &plan, attempt, input, &mut |answer| {
            list.push(answer);
            let full = list.len() == FILES_TOGETHER;
            if full {
                lists.blocking_send(std::mem::take(&mut list)).map_err(|_| InputError::Unwanted)
            } else {
                Ok(())
            }
        })?;
        lists.blocking_send(list).map_err(|_| InputError::Unwanted)
    })
    .await?;
    let mut files: u32 = 0;
    while let Some(list) = listed.recv().await {
        files = files.saturating_add(u32::try_from(list.len()).unwrap_or(u32::MAX));
        let digests = list.iter().filter_map(|answer| match answer {
            InputAnswer::File { content, .. } => Some(content.digest),
            _ => None,
        });
        streams.say(Ask::Told { attempt, digests: digests.collect() }).await;
        for answer in &list {
            writer.push(answer).map_err(|_| CloseCode::Unavailable)?;
        }
        match within(streams.shared.settings.limits.silence, writer.flush()).await {
            Some(sent) => sent.map_err(|_| CloseCode::Done)?,
            None => return Err(CloseCode::TimedOut),
        }
    }
    match reading.await {
        Ok(Ok(())) => send(streams, writer, &InputAnswer::End { files }).await,
        Ok(Err(InputError::Store(error))) => {
            tracing::error!(%attempt, %error, "an input's files could not be read");
            Err(CloseCode::Unavailable)
        }
        Ok(Err(error)) => send(streams, writer, &InputAnswer::Refused(Reason::new(&error.to_string()))).await,
        Err(_) => Err(CloseCode::Unavailable),
    }
}

/// Whether an input of the attempt has a file with this content. What its inputs have is told to the session, so
/// that it needs not be looked up for each file.
pub(super) async fn has(
    streams: &Streams,
    pack_run: PackRunId,
    attempt: AttemptId,
    digest: Digest,
) -> Result<bool, CloseCode> {
    let reading = read(streams, pack_run, move |reader, plan| {
        let (mut found, mut digests) = (false, Vec::new());
        let inputs = planned(&plan, attempt).map_or(0, |run| run.definition.inputs.len());
        for input in 0..u32::try_from(inputs).unwrap_or(u32::MAX) {
            for_each(&reader, &plan, attempt, input, &mut |answer| {
                if let InputAnswer::File { content, .. } = answer {
                    found |= content.digest == digest;
                    if digests.len() < TOLD_MAX {
                        digests.push(content.digest);
                    }
                }
                Ok(())
            })?;
        }
        Ok((found, digests))
    })
    .await?;
    match reading.await {
        Ok(Ok((found, digests))) => {
            streams.say(Ask::Told { attempt, digests }).await;
            Ok(found)
        }
        Ok(Err(InputError::Store(_))) | Err(_) => Err(CloseCode::Unavailable),
        Ok(Err(_)) => Ok(false),
    }
}

/// Reads what is committed beside the plan of a live pack run, where that may wait for the disk.
async fn read<T: Send + 'static>(
    streams: &Streams,
    pack_run: PackRunId,
    work: impl FnOnce(Reader, Arc<Plan>) -> Result<T, InputError> + Send + 'static,
) -> Result<tokio::task::JoinHandle<Result<T, InputError>>, CloseCode> {
    let shared = &streams.shared;
    let permit = shared.reads.clone().acquire_owned().await.map_err(|_| CloseCode::ShuttingDown)?;
    let engine = shared.engine.clone();
    let plan = engine.look(move |core| core.plan(pack_run)).await.map_err(|_| CloseCode::Unavailable)?;
    Ok(tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(engine.read()?, plan.ok_or(InputError::NoAttempt)?)
    }))
}

fn planned(plan: &Plan, attempt: AttemptId) -> Option<&PlannedRun> {
    plan.job_runs().find(|run| run.id == attempt.job_run)
}

/// Shows `visit` each file of an input.
fn for_each(
    reader: &Reader,
    plan: &Plan,
    attempt: AttemptId,
    input: u32,
    visit: &mut dyn FnMut(InputAnswer) -> Result<(), InputError>,
) -> Result<(), InputError> {
    let definition = &planned(plan, attempt).ok_or(InputError::NoAttempt)?.definition;
    let rule = definition.inputs.get(input as usize).ok_or(InputError::NoInput(input))?;
    let source = plan.jobs.iter().find(|job| job.name == rule.from);
    for run in source.map_or(&[][..], |job| &job.runs) {
        if let Some(left_by) = last_attempt(reader, run.id)? {
            files_of(reader, left_by, rule, run, visit)?;
        }
    }
    Ok(())
}

/// The attempt whose artifacts are a job run's.
fn last_attempt(reader: &Reader, job_run: JobRunId) -> Result<Option<AttemptId>, StoreError> {
    let mut id = job_run;
    for _ in 0..TAKEN_OVER_MAX {
        match reader.job_run(id)? {
            Some(JobRunRow { reused_from: Some(earlier), .. }) => id = earlier,
            Some(JobRunRow { attempt: Some(number), .. }) => {
                return Ok(Some(AttemptId { job_run: id, number }));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn files_of(
    reader: &Reader,
    left_by: AttemptId,
    rule: &InputRule,
    source: &PlannedRun,
    visit: &mut dyn FnMut(InputAnswer) -> Result<(), InputError>,
) -> Result<(), InputError> {
    for row in reader.artifacts(left_by)? {
        let file = row.artifact;
        let goes = rule.destination(&source.definition.artifacts, file.name.as_ref(), &file.path);
        let unfit = |error: packrun_protocol::path::PathError| InputError::Path {
            file: file.path.to_string(),
            reason: error.to_string(),
        };
        if let Some(path) = goes.map_err(unfit)? {
            visit(InputAnswer::File { path, content: file.content })?;
        }
    }
    Ok(())
}
