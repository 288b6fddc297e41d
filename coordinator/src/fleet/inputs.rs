//! Which files an input of an attempt has: those that the job it is taken from left in the same pack run, of every
//! combination of its matrix, each of the last attempt; for a job run that took over an earlier one's success, that
//! one's.

use packrun_protocol::id::{AttemptId, Digest, JobRunId, PackRunId};
use packrun_protocol::job::InputRule;
use packrun_protocol::path::{PathError, RelativePath};
use packrun_protocol::quic::FrameWriter;
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{CloseCode, Content, InputAnswer};
use thiserror::Error;

use super::artifact_stream::send;
use super::session::{Ask, AttemptGrant, Streams, TOLD_MAX, within};
use crate::core::change::JobRunRow;
use crate::core::plan::{Plan, PlannedRun};
use crate::engine::{EngineError, Reader, StoreError};

/// Files that are sent together, and after which a page is full.
const FILES_TOGETHER: usize = 256;

/// Job runs that are looked at for one page.
const RUNS_TOGETHER: usize = 1024;

/// Retries of retries that are followed back: more than anybody makes, and an end to a damaged store's circle.
const TAKEN_OVER_MAX: usize = 10_000;

/// Why an input's files can't be named.
#[derive(Debug, Error)]
enum InputError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the attempt is unknown or has ended")]
    NoAttempt,
    #[error("the job has no input {0}")]
    NoInput(u32),
    #[error("`{file}` can't be put into the workspace: {source}")]
    Path { file: RelativePath, source: PathError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the thread that reads the store ended")]
    Thread(#[from] tokio::task::JoinError),
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
    let (mut files, mut next) = (0_u32, Some(0));
    while let Some(from) = next {
        // A page at a time: no thread and no snapshot waits for the agent to take what it asked for.
        let page = read(streams, held.pack_run, move |reader, plan| page(reader, plan, attempt, input, from));
        let (list, behind) = match page.await {
            Ok(page) => page,
            Err(error) => {
                let reason = final_reason(attempt, &error)?;
                return send(streams, writer, &InputAnswer::Refused(reason)).await;
            }
        };
        next = behind;
        files = files.saturating_add(u32::try_from(list.len()).unwrap_or(u32::MAX));
        let digests = list.iter().map(|(_, content)| content.digest).collect();
        streams.say(Ask::Told { attempt, digests }).await;
        for together in list.chunks(FILES_TOGETHER) {
            for (path, content) in together {
                let answer = InputAnswer::File { path: path.clone(), content: *content };
                writer.push(&answer).map_err(|_| CloseCode::Unavailable)?;
            }
            match within(streams.shared.settings.limits.silence, writer.flush()).await {
                Some(sent) => sent.map_err(|_| CloseCode::Done)?,
                None => return Err(CloseCode::TimedOut),
            }
        }
    }
    send(streams, writer, &InputAnswer::End { files }).await
}

/// Why it will never do, or the code of what may do later.
fn final_reason(attempt: AttemptId, error: &InputError) -> Result<Reason, CloseCode> {
    match error {
        InputError::Engine(_) => Err(CloseCode::Unavailable),
        InputError::Store(_) | InputError::Thread(_) => {
            tracing::error!(%attempt, %error, "an input's files could not be read");
            Err(CloseCode::Unavailable)
        }
        InputError::NoAttempt | InputError::NoInput(_) | InputError::Path { .. } => {
            Ok(Reason::new(&error.to_string()))
        }
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
    let _turn = streams.lookup_turn().await?;
    // Another stream may have looked while this one waited.
    if streams.attempt(attempt, Some(digest)).await?.is_some_and(|held| held.told) {
        return Ok(true);
    }
    let looked = read(streams, pack_run, move |reader, plan| {
        let (mut found, mut digests) = (false, Vec::new());
        let inputs = planned(plan, attempt).map_or(0, |run| run.definition.inputs.len());
        for input in 0..u32::try_from(inputs).unwrap_or(u32::MAX) {
            let mut next = Some(0);
            while let Some(from) = next {
                let (files, behind) = page(reader, plan, attempt, input, from)?;
                next = behind;
                found |= files.iter().any(|(_, content)| content.digest == digest);
                let room = TOLD_MAX.saturating_sub(digests.len());
                digests.extend(files.iter().map(|(_, content)| content.digest).take(room));
            }
        }
        Ok((found, digests))
    });
    match looked.await {
        Ok((found, digests)) => {
            streams.say(Ask::Told { attempt, digests }).await;
            Ok(found)
        }
        Err(error) => final_reason(attempt, &error).map(|_| false),
    }
}

/// Reads what is committed beside the plan of a live pack run, where that may wait for the disk.
async fn read<T: Send + 'static>(
    streams: &Streams,
    pack_run: PackRunId,
    work: impl FnOnce(&Reader, &Plan) -> Result<T, InputError> + Send + 'static,
) -> Result<T, InputError> {
    let shared = &streams.shared;
    let engine = shared.engine.clone();
    let plan = engine.look(move |core| core.plan(pack_run)).await?.ok_or(InputError::NoAttempt)?;
    let permit = shared.reads.clone().acquire_owned().await.map_err(|_| EngineError::Unavailable)?;
    let worked = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&engine.read()?, &plan)
    });
    worked.await?
}

fn planned(plan: &Plan, attempt: AttemptId) -> Option<&PlannedRun> {
    plan.job_runs().find(|run| run.id == attempt.job_run)
}

/// Files and where they go in the workspace, and the job run that the next page begins with.
type Page = (Vec<(RelativePath, Content)>, Option<usize>);

/// The files of an input that the source's job runs have left, from the `from`th on.
fn page(
    reader: &Reader,
    plan: &Plan,
    attempt: AttemptId,
    input: u32,
    from: usize,
) -> Result<Page, InputError> {
    let definition = &planned(plan, attempt).ok_or(InputError::NoAttempt)?.definition;
    let rule = definition.inputs.get(input as usize).ok_or(InputError::NoInput(input))?;
    let source = plan.jobs.iter().find(|job| job.name == rule.from);
    let runs = source.map_or(&[][..], |job| &job.runs);
    let mut files = Vec::new();
    for (index, run) in runs.iter().enumerate().skip(from) {
        if files.len() >= FILES_TOGETHER || index - from >= RUNS_TOGETHER {
            return Ok((files, Some(index)));
        }
        if let Some(left_by) = last_attempt(reader, run.id)? {
            add_files(reader, left_by, rule, run, &mut files)?;
        }
    }
    Ok((files, None))
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

fn add_files(
    reader: &Reader,
    left_by: AttemptId,
    rule: &InputRule,
    source: &PlannedRun,
    files: &mut Vec<(RelativePath, Content)>,
) -> Result<(), InputError> {
    for row in reader.artifacts(left_by)? {
        let file = row.artifact;
        let goes = rule.destination(&source.definition.artifacts, file.name.as_ref(), &file.path);
        let goes = goes.map_err(|source| InputError::Path { file: file.path.clone(), source })?;
        files.extend(goes.map(|path| (path, file.content)));
    }
    Ok(())
}
