//! The content of one file of an attempt's inputs, from where the agent has it. An agent gets nothing that is not an
//! input of an attempt it holds.

use std::io::SeekFrom;

use bytes::BytesMut;
use packrun_protocol::id::{AttemptId, Digest};
use packrun_protocol::quic::FrameWriter;
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{CloseCode, DownloadAnswer};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::artifact_stream::send;
use super::inputs;
use super::session::{AttemptGrant, Streams, within};
use crate::artifacts::Blob;

/// Bytes that are read and sent together.
const CHUNK_BYTES: usize = 256 << 10;

/// Serves a download; an error is the code to reset the stream with.
pub(super) async fn serve(
    streams: &Streams,
    writer: &mut FrameWriter,
    attempt: AttemptId,
    digest: Digest,
    offset: u64,
) -> Result<(), CloseCode> {
    let Some(held) = streams.attempt(attempt, Some(digest)).await? else {
        return refuse(streams, writer, "the attempt is not this agent's").await;
    };
    let gone = held.gone.clone();
    tokio::select! {
        biased;
        () = gone.cancelled() => Err(CloseCode::Fenced),
        given = give(streams, writer, held, attempt, digest, offset) => given,
    }
}

async fn give(
    streams: &Streams,
    writer: &mut FrameWriter,
    held: AttemptGrant,
    attempt: AttemptId,
    digest: Digest,
    offset: u64,
) -> Result<(), CloseCode> {
    let _turn = streams.download_turn().await?;
    if !held.told && !inputs::has(streams, held.pack_run, attempt, digest).await? {
        return refuse(streams, writer, "no input of the attempt has this content").await;
    }
    let blob = match streams.shared.artifacts.read(digest).await {
        Ok(Some(blob)) => blob,
        Ok(None) => return refuse(streams, writer, "the content is no longer kept").await,
        Err(error) => {
            tracing::error!(%digest, %error, "an artifact could not be read");
            return Err(CloseCode::Unavailable);
        }
    };
    let Some(bytes) = blob.bytes.checked_sub(offset) else {
        return refuse(streams, writer, "the content ends before the offset").await;
    };
    send(streams, writer, &DownloadAnswer::Bytes(bytes)).await?;
    copy(streams, writer, blob, offset, bytes).await
}

async fn copy(
    streams: &Streams,
    writer: &mut FrameWriter,
    blob: Blob,
    offset: u64,
    bytes: u64,
) -> Result<(), CloseCode> {
    let unread = |error: std::io::Error| {
        tracing::error!(%error, "an artifact could not be read");
        CloseCode::Unavailable
    };
    let mut file = blob.file;
    file.seek(SeekFrom::Start(offset)).await.map_err(unread)?;
    let mut left = bytes;
    let mut buffer = BytesMut::new();
    while left > 0 {
        buffer.reserve(CHUNK_BYTES);
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut limited = (&mut file).take(room as u64);
        if limited.read_buf(&mut buffer).await.map_err(unread)? == 0 {
            tracing::error!("an artifact's file is shorter than it was");
            return Err(CloseCode::Unavailable);
        }
        left -= buffer.len() as u64;
        let sending = writer.stream().write_chunk(buffer.split().freeze());
        match within(streams.shared.settings.limits.silence, sending).await {
            Some(sent) => sent.map_err(|_| CloseCode::Done)?,
            None => return Err(CloseCode::TimedOut),
        }
    }
    Ok(())
}

async fn refuse(streams: &Streams, writer: &mut FrameWriter, reason: &str) -> Result<(), CloseCode> {
    send(streams, writer, &DownloadAnswer::Refused(Reason::new(reason))).await
}
