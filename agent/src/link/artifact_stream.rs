//! The artifacts of one attempt on their way: hashed, then each file on a stream of its own, until all are recorded
//! or one is refused. Whatever fails on the way is tried again, over as many connections as it takes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use packrun_protocol::id::AttemptId;
use packrun_protocol::job::ArtifactRule;
use packrun_protocol::quic::{FrameReader, FrameWriter, ReadError, WriteError};
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{CloseCode, StreamHeader, Upload, UploadAnswer, UploadEnd};
use quinn::{Connection, VarInt};
use thiserror::Error;
use tokio::task::JoinSet;

use super::PRIORITY_ARTIFACT;
use super::transfer::{Stalled, Transfers, answered, blocking, moved};
use crate::artifacts::collect::{self, Collection, KeptFile};
use crate::artifacts::folder::Folder;

/// How many files of one attempt are on their way at once.
const FILES_AT_ONCE: usize = 4;

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;

/// Why one try failed.
#[derive(Debug, Error)]
enum UploadError {
    /// It will always fail.
    #[error("{0}")]
    Final(Reason),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Stalled(#[from] Stalled),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl UploadError {
    fn failed(error: &dyn std::fmt::Display) -> Self {
        Self::Final(Reason::new(&error.to_string()))
    }
}

/// Keeps what `rules` match in `workspace`: gives how many files that were, and remarks for the job's log.
pub(super) async fn keep(
    transfers: &Transfers,
    attempt: AttemptId,
    workspace: PathBuf,
    rules: Vec<ArtifactRule>,
    stop: Arc<AtomicBool>,
) -> (Result<u32, Reason>, Vec<String>) {
    let found = {
        let _permit = transfers.hashing().await;
        blocking(move || {
            let folder = Folder::open(&workspace)
                .map_err(|error| Reason::new(&format!("can't open the workspace: {error}")))?;
            let collection =
                collect::collect(&folder, &rules, &stop).map_err(|error| Reason::new(&error.to_string()))?;
            Ok((folder, collection))
        })
        .await
    };
    let (folder, Collection { files, notes }) = match found {
        Ok(found) => found,
        Err(reason) => return (Err(reason), Vec::new()),
    };
    let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
    (upload_all(transfers, attempt, Arc::new(folder), files).await.map(|()| count), notes)
}

async fn upload_all(
    transfers: &Transfers,
    attempt: AttemptId,
    folder: Arc<Folder>,
    files: Vec<KeptFile>,
) -> Result<(), Reason> {
    let mut uploads = JoinSet::new();
    for file in files {
        if uploads.len() == FILES_AT_ONCE {
            ended(uploads.join_next().await)?;
        }
        let (transfers, folder) = (transfers.clone(), Arc::clone(&folder));
        uploads.spawn(async move { upload(&transfers, attempt, &folder, &file).await });
    }
    while !uploads.is_empty() {
        ended(uploads.join_next().await)?;
    }
    Ok(())
}

fn ended(joined: Option<Result<Result<(), Reason>, tokio::task::JoinError>>) -> Result<(), Reason> {
    match joined {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(Reason::new(&format!("an artifact's upload ended unexpectedly: {error}"))),
    }
}

async fn upload(
    transfers: &Transfers,
    attempt: AttemptId,
    folder: &Arc<Folder>,
    file: &KeptFile,
) -> Result<(), Reason> {
    let mut tries = transfers.tries();
    loop {
        let connection = tries.connection().await;
        let _permit = transfers.moving().await;
        match try_upload(&connection, attempt, folder, file).await {
            Ok(()) => return Ok(()),
            Err(UploadError::Final(reason)) => return Err(reason),
            Err(error) => {
                let path = file.path.as_str();
                tracing::warn!(%attempt, path, error = &error as &dyn std::error::Error, "an upload is tried again");
            }
        }
    }
}

async fn try_upload(
    connection: &Connection,
    attempt: AttemptId,
    folder: &Arc<Folder>,
    file: &KeptFile,
) -> Result<(), UploadError> {
    let content = file.content;
    let (send, receive) = moved(connection.open_bi())
        .await?
        .map_err(quinn::WriteError::ConnectionLost)
        .map_err(WriteError::Stream)?;
    let _ = send.set_priority(PRIORITY_ARTIFACT);
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
    let upload = Upload { attempt, name: file.name.clone(), path: file.path.clone(), content };
    moved(writer.send(&StreamHeader::Upload(upload))).await??;
    let offset = match answered(reader.expect()).await?? {
        UploadAnswer::Have => return Ok(()),
        UploadAnswer::Refused(reason) => return Err(UploadError::Final(reason)),
        UploadAnswer::SendFrom(offset) if offset > content.size => {
            return Err(UploadError::failed(&"the coordinator wants an artifact from behind its end"));
        }
        UploadAnswer::SendFrom(offset) => offset,
    };
    let sent = send_bytes(&mut writer, folder, file, offset).await;
    if sent.is_err() {
        // Else its drop would finish it, as if that were all.
        let _ = writer.stream().reset(VarInt::from_u32(CloseCode::Unavailable.to_wire()));
    }
    match sent {
        Ok(()) => {
            let _ = writer.stream().finish();
        }
        // It may have said why it reads no more.
        Err(UploadError::Write(WriteError::Stream(quinn::WriteError::Stopped(_)))) => {}
        Err(error) => return Err(error),
    }
    match answered(reader.expect()).await?? {
        UploadEnd::Committed => Ok(()),
        UploadEnd::Refused(reason) => Err(UploadError::Final(reason)),
    }
}

async fn send_bytes(
    writer: &mut FrameWriter,
    folder: &Arc<Folder>,
    kept: &KeptFile,
    offset: u64,
) -> Result<(), UploadError> {
    let (owned, folder) = (kept.clone(), Arc::clone(folder));
    let mut file = blocking(move || {
        let mut file = owned.open(&folder).map_err(|error| Reason::new(&error.to_string()))?;
        file.seek(SeekFrom::Start(offset)).map_err(|error| Reason::new(&error.to_string()))?;
        Ok(file)
    })
    .await
    .map_err(UploadError::Final)?;
    let mut left = kept.content.size - offset;
    while left > 0 {
        let most = READ_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX));
        let (same, bytes) = blocking(move || read_some(file, most)).await.map_err(UploadError::Final)?;
        if bytes.is_empty() {
            let path = kept.path.as_str();
            return Err(UploadError::failed(&format!("artifact `{path}` became shorter while it was sent")));
        }
        left -= bytes.len() as u64;
        moved(writer.stream().write_chunk(bytes.into())).await?.map_err(WriteError::Stream)?;
        file = same;
    }
    Ok(())
}

fn read_some(mut file: File, most: usize) -> Result<(File, Vec<u8>), Reason> {
    let mut bytes = vec![0; most];
    let length =
        file.read(&mut bytes).map_err(|error| Reason::new(&format!("can't read an artifact: {error}")))?;
    bytes.truncate(length);
    Ok((file, bytes))
}
