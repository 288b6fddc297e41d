//! The log of one attempt on its way: blocks from the journal onto a stream of their own, which is opened with the
//! first of them, so that a silent job costs none. A stream that fails is opened again from what is acknowledged.
//!
//! That the other end has all bytes says nothing of its disk: a log is done when its end is acknowledged.

use std::time::Duration;

use packrun_protocol::block::Block;
use packrun_protocol::id::AttemptId;
use packrun_protocol::quic::{FrameWriter, WriteError};
use packrun_protocol::stream::{CloseCode, StreamHeader};
use quinn::{Connection, VarInt};
use thiserror::Error;

use super::PRIORITY_LOG;
use super::dial::Backoff;
use super::journal::{Reader, Unread};

/// How long is waited after a stream failed on a connection that lives.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// How long is waited for the end's acknowledgement before the rest is sent again.
const ACK_LIMIT: std::ops::Range<Duration> = Duration::from_secs(5)..Duration::from_secs(60);

/// Why a log's stream failed.
#[derive(Debug, Error)]
enum SendError {
    #[error(transparent)]
    Unread(#[from] Unread),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Sends the log of `attempt` from entry `from` on, before which the coordinator has all, until the end of it is
/// acknowledged or the connection is gone.
pub(super) async fn send(connection: Connection, reader: Reader, attempt: AttemptId, from: u64) {
    let (mut backoff, mut patience) = (Backoff::new(RETRY), Backoff::new(ACK_LIMIT));
    let (known, mut next) = (from, from);
    loop {
        let start = next;
        let sent = send_once(&connection, &reader, attempt, &mut next).await;
        if connection.close_reason().is_some() {
            return;
        }
        match sent {
            Ok(()) if next <= known => return,
            Ok(()) => match tokio::time::timeout(patience.next(), reader.safe(attempt, next)).await {
                Ok(_) => return,
                Err(_) => tracing::warn!(%attempt, "the end of a log is not acknowledged; it is sent again"),
            },
            Err(error) => {
                if next > start {
                    backoff.reset();
                }
                tracing::warn!(%attempt, %error, "a log's stream failed and is opened again");
                tokio::time::sleep(backoff.next()).await;
            }
        }
        next = reader.acked(attempt).await.max(known);
    }
}

async fn send_once(
    connection: &Connection,
    reader: &Reader,
    attempt: AttemptId,
    from: &mut u64,
) -> Result<(), SendError> {
    let mut opened: Option<FrameWriter> = None;
    loop {
        let read = reader.blocks(attempt, *from).await;
        if read.is_err()
            && let Some(writer) = &mut opened
        {
            reset(writer);
        }
        let blocks = read?;
        if blocks.is_empty() {
            break;
        }
        let writer = match &mut opened {
            Some(writer) => writer,
            None => {
                let first = blocks.first().map_or(*from, Block::first_seq);
                opened.insert(open(connection, StreamHeader::Log { attempt, from: first }).await?)
            }
        };
        *from = blocks.last().map_or(*from, Block::next_seq);
        let mut chunks: Vec<_> = blocks.into_iter().map(|block| block.as_bytes().clone()).collect();
        if let Err(error) = writer.stream().write_all_chunks(&mut chunks).await {
            reset(writer);
            return Err(WriteError::Stream(error).into());
        }
    }
    if let Some(mut writer) = opened {
        let _ = writer.stream().finish();
        // Until the coordinator has all of it, the stream may still fail.
        match writer.stream().stopped().await {
            Ok(None) => {}
            Ok(Some(code)) => return Err(WriteError::Stream(quinn::WriteError::Stopped(code)).into()),
            Err(_) => return Err(WriteError::Stream(quinn::WriteError::ClosedStream).into()),
        }
    }
    Ok(())
}

/// Ends the stream as one that failed: its drop would finish it, as if that were all.
fn reset(writer: &mut FrameWriter) {
    let _ = writer.stream().reset(VarInt::from_u32(CloseCode::Unavailable.to_wire()));
}

async fn open(connection: &Connection, header: StreamHeader) -> Result<FrameWriter, WriteError> {
    let stream = connection.open_uni().await.map_err(quinn::WriteError::ConnectionLost)?;
    let _ = stream.set_priority(PRIORITY_LOG);
    let mut writer = FrameWriter::new(stream);
    writer.send(&header).await?;
    Ok(writer)
}
