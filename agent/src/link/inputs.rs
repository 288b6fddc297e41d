//! The inputs of one attempt: listed, fetched into the cache unless they are there, and copied into the workspace.
//! Whatever fails on the way is tried again, over as many connections as it takes.

use std::path::PathBuf;
use std::sync::Arc;

use packrun_protocol::id::AttemptId;
use packrun_protocol::job::InputRule;
use packrun_protocol::path::RelativePath;
use packrun_protocol::quic::{FrameReader, FrameWriter, ReadError, WriteError};
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{Content, DownloadAnswer, InputAnswer, StreamHeader};
use quinn::Connection;
use thiserror::Error;
use tokio::task::JoinSet;

use super::PRIORITY_ARTIFACT;
use super::transfer::{Stalled, Transfers, Tries, answered, blocking, moved};
use crate::artifacts::cache::{Blob, CacheError, Claim, Download, Vacancy};
use crate::artifacts::collect::FILES_MAX;
use crate::artifacts::folder::Folder;
use crate::artifacts::inputs::place;

/// Bytes that are written at once.
const WRITE_BYTES: usize = 256 << 10;

/// How many files of one attempt are on their way at once.
const FILES_AT_ONCE: usize = 4;

/// How often a content may come out as another one.
const DAMAGES_MAX: u32 = 3;

/// Why one try failed.
#[derive(Debug, Error)]
enum FetchError {
    /// It will always fail.
    #[error("{0}")]
    Final(Reason),
    #[error("what came is not what was announced: {0}")]
    Damaged(Reason),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Stalled(#[from] Stalled),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl FetchError {
    fn failed(error: &dyn std::fmt::Display) -> Self {
        Self::Final(Reason::new(&error.to_string()))
    }
}

impl From<CacheError> for FetchError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Damaged(_) | CacheError::Digest(_) | CacheError::Length { .. } => {
                Self::Damaged(Reason::new(&error.to_string()))
            }
            CacheError::File { .. } | CacheError::TooLarge { .. } => Self::failed(&error),
        }
    }
}

/// Puts all inputs of `attempt` into `workspace`.
///
/// # Errors
/// In words for the attempt's reason.
pub(super) async fn fetch(
    transfers: &Transfers,
    attempt: AttemptId,
    workspace: PathBuf,
    rules: Vec<InputRule>,
) -> Result<(), Reason> {
    let opened = move || {
        Folder::open(&workspace).map_err(|error| Reason::new(&format!("can't open the workspace: {error}")))
    };
    let folder = Arc::new(blocking(opened).await?);
    for (position, rule) in rules.iter().enumerate() {
        let input = u32::try_from(position).unwrap_or(u32::MAX);
        let mut tries = Persistence::new(transfers, attempt);
        let files = loop {
            let listed = list(&tries.connection().await, StreamHeader::Inputs { attempt, input }).await;
            match listed {
                Ok(files) => break files,
                Err(error) => tries.judge(error)?,
            }
        };
        if files.is_empty() && !rule.optional {
            let InputRule { from, artifact, .. } = rule;
            return Err(Reason::new(&format!("input `{artifact}` was not left by job `{from}`")));
        }
        let mut coming = JoinSet::new();
        for (path, content) in files {
            if coming.len() == FILES_AT_ONCE {
                place_next(transfers, &folder, &mut coming).await?;
            }
            let transfers = transfers.clone();
            coming.spawn(async move {
                let blob = bring(&transfers, attempt, &content).await?;
                Ok((path, content, blob))
            });
        }
        while !coming.is_empty() {
            place_next(transfers, &folder, &mut coming).await?;
        }
    }
    Ok(())
}

/// A file that is in the cache, and where it belongs.
type Fetched = Result<(RelativePath, Content, Blob), Reason>;

/// Puts the next file that has come into the workspace. One after the other, so that nothing is written there any
/// more once one fails.
async fn place_next(
    transfers: &Transfers,
    folder: &Arc<Folder>,
    coming: &mut JoinSet<Fetched>,
) -> Result<(), Reason> {
    let Some(came) = coming.join_next().await else { return Ok(()) };
    let failed = |error| Reason::new(&format!("an input's download ended unexpectedly: {error}"));
    let (path, content, blob) = came.map_err(failed)??;
    let _permit = transfers.moving().await;
    put(Arc::clone(folder), path, content, blob).await
}

/// Gets a content into the cache, over as many tries as it takes.
async fn bring(transfers: &Transfers, attempt: AttemptId, content: &Content) -> Result<Blob, Reason> {
    let mut tries = Persistence::new(transfers, attempt);
    loop {
        match obtain(transfers, &tries.connection().await, attempt, content).await {
            Ok(blob) => return Ok(blob),
            Err(error) => tries.judge(error)?,
        }
    }
}

/// Tries of one thing until it works, or never will.
struct Persistence {
    tries: Tries,
    attempt: AttemptId,
    damages: u32,
}

impl Persistence {
    fn new(transfers: &Transfers, attempt: AttemptId) -> Self {
        Self { tries: transfers.tries(), attempt, damages: 0 }
    }

    async fn connection(&mut self) -> Connection {
        self.tries.connection().await
    }

    /// `Ok` when it is to be tried again.
    fn judge(&mut self, error: FetchError) -> Result<(), Reason> {
        let attempt = self.attempt;
        tracing::warn!(%attempt, error = &error as &dyn std::error::Error, "an input could not be fetched");
        match error {
            FetchError::Final(reason) => Err(reason),
            FetchError::Damaged(reason) => {
                self.damages += 1;
                if self.damages == DAMAGES_MAX { Err(reason) } else { Ok(()) }
            }
            FetchError::Read(_) | FetchError::Stalled(_) | FetchError::Write(_) => Ok(()),
        }
    }
}

/// A stream of our own with this header.
async fn open(
    connection: &Connection,
    header: &StreamHeader,
) -> Result<(FrameWriter, FrameReader), FetchError> {
    let (send, receive) = moved(connection.open_bi())
        .await?
        .map_err(quinn::WriteError::ConnectionLost)
        .map_err(WriteError::Stream)?;
    let _ = send.set_priority(PRIORITY_ARTIFACT);
    let mut writer = FrameWriter::new(send);
    moved(writer.send(header)).await??;
    let _ = writer.stream().finish();
    Ok((writer, FrameReader::new(receive)))
}

/// The files of one input.
async fn list(
    connection: &Connection,
    header: StreamHeader,
) -> Result<Vec<(RelativePath, Content)>, FetchError> {
    let (_writer, mut reader) = open(connection, &header).await?;
    let mut files = Vec::new();
    loop {
        match answered(reader.expect()).await?? {
            InputAnswer::File { path, content } if files.len() < FILES_MAX => files.push((path, content)),
            InputAnswer::File { .. } => {
                return Err(FetchError::failed(&format!("an input has more than {FILES_MAX} files")));
            }
            InputAnswer::End { files: count } if count as usize == files.len() => return Ok(files),
            InputAnswer::End { .. } => {
                return Err(FetchError::failed(&"the list of an input's files is not whole"));
            }
            InputAnswer::Refused(reason) => return Err(FetchError::Final(reason)),
        }
    }
}

/// The content, from the cache or the coordinator.
async fn obtain(
    transfers: &Transfers,
    connection: &Connection,
    attempt: AttemptId,
    content: &Content,
) -> Result<Blob, FetchError> {
    let vacancy = match transfers.cache.claim(content.digest, content.size).await? {
        Claim::Have(blob) => return Ok(blob),
        Claim::Missing(vacancy) => vacancy,
    };
    let _permit = transfers.moving().await;
    download(connection, attempt, content, vacancy).await
}

async fn download(
    connection: &Connection,
    attempt: AttemptId,
    content: &Content,
    vacancy: Vacancy,
) -> Result<Blob, FetchError> {
    let mut download = cached(move || vacancy.resume()).await?;
    let offset = download.offset();
    let header = StreamHeader::Download { attempt, digest: content.digest, offset };
    let (_writer, mut reader) = open(connection, &header).await?;
    match answered(reader.expect()).await?? {
        DownloadAnswer::Refused(reason) => return Err(FetchError::Final(reason)),
        DownloadAnswer::Bytes(bytes) if bytes.checked_add(offset) == Some(content.size) => {}
        DownloadAnswer::Bytes(_) => {
            return Err(FetchError::Damaged(Reason::new("an input's content has another length")));
        }
    }
    let mut batch = Vec::with_capacity(WRITE_BYTES);
    while let Some(bytes) = moved(reader.raw()).await?? {
        batch.extend_from_slice(&bytes);
        if batch.len() >= WRITE_BYTES {
            (download, batch) = write(download, batch).await?;
        }
    }
    let (download, _) = write(download, batch).await?;
    cached(move || download.commit()).await
}

async fn write(mut download: Download, mut batch: Vec<u8>) -> Result<(Download, Vec<u8>), FetchError> {
    cached(move || {
        download.write(&batch)?;
        batch.clear();
        Ok((download, batch))
    })
    .await
}

/// Work on the cache's files.
async fn cached<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
) -> Result<T, FetchError> {
    blocking(move || Ok(work())).await.map_err(FetchError::Final)?.map_err(FetchError::from)
}

async fn put(folder: Arc<Folder>, path: RelativePath, content: Content, blob: Blob) -> Result<(), Reason> {
    blocking(move || {
        let source = blob.open().map_err(|error| Reason::new(&error.to_string()))?;
        place(&folder, &path, &content, &source).map_err(|error| Reason::new(&error.to_string()))
    })
    .await
}
