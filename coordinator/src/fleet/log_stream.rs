//! One log stream: blocks of one attempt, raw behind the header, each taken by the log before the next is read, so
//! that a log that is behind slows the jobs that write it and nobody else.
//!
//! What is no block of the attempt ends the connection. What the log can't take now stops the stream, and the agent
//! opens another at the entry that was acknowledged last.

use bytes::BytesMut;
use packrun_protocol::block::Block;
use packrun_protocol::id::AttemptId;
use packrun_protocol::quic::FrameReader;
use packrun_protocol::stream::CloseCode;

use super::session::{Ask, Streams};
use crate::engine::EngineError;
use crate::logs::AppendError;

/// Serves the log stream of `attempt`; an error is the code to stop it with.
pub(super) async fn serve(
    streams: &Streams,
    reader: &mut FrameReader,
    attempt: AttemptId,
) -> Result<(), CloseCode> {
    let writer = streams.log(attempt).await?;
    tokio::select! {
        biased;
        () = writer.cancelled() => Err(CloseCode::Superseded),
        copied = copy(streams, reader, attempt) => copied,
    }
}

async fn copy(streams: &Streams, reader: &mut FrameReader, attempt: AttemptId) -> Result<(), CloseCode> {
    let mut buffer = BytesMut::new();
    let mut started = false;
    loop {
        while let Some(block) = next(streams, &mut buffer, attempt).await? {
            if !std::mem::replace(&mut started, true) {
                // Whoever follows the run is told that the job runs before he sees its first line.
                streams.engine.record_start(attempt).await.map_err(|error| match error {
                    EngineError::Refused(_) => CloseCode::Fenced,
                    EngineError::Unavailable => CloseCode::Unavailable,
                })?;
            }
            let _turn = streams.append_turn().await?;
            streams.shared.logs.append(block).await.map_err(|error| refused(attempt, &error))?;
        }
        match reader.raw().await {
            Ok(Some(bytes)) => buffer.extend_from_slice(&bytes),
            // What is left of a block comes again: it was not acknowledged.
            Ok(None) => return Ok(()),
            Err(_) => return Err(CloseCode::Done),
        }
    }
}

/// The next whole block.
async fn next(
    streams: &Streams,
    buffer: &mut BytesMut,
    attempt: AttemptId,
) -> Result<Option<Block>, CloseCode> {
    let broken = match Block::take(buffer) {
        Ok(Some(block)) if block.attempt() == attempt => return Ok(Some(block)),
        Ok(None) => return Ok(None),
        Ok(Some(block)) => format!("a block of {} came on the log stream of {attempt}", block.attempt()),
        Err(error) => format!("the log stream of {attempt} is broken: {error}"),
    };
    streams.say(Ask::Broken(broken)).await;
    Err(CloseCode::Protocol)
}

fn refused(attempt: AttemptId, error: &AppendError) -> CloseCode {
    tracing::debug!(%attempt, %error, "a log stream is stopped");
    match error {
        AppendError::Closed => CloseCode::ShuttingDown,
        AppendError::NotOpen(_) | AppendError::Sealed(_) => CloseCode::Fenced,
        AppendError::Gap { .. } | AppendError::Overlap { .. } | AppendError::Write { .. } => {
            CloseCode::Unavailable
        }
    }
}
