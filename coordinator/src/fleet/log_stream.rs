//! One log stream: blocks of one attempt, raw behind the header, each taken by the log before the next is read, so
//! that a log that is behind slows the jobs that write it and nobody else.
//!
//! What is no block of the attempt ends the connection. What goes on beyond the limit of the attempt's log, at which
//! its agent cuts it, is not taken, and the attempt fails. What the disk doesn't take waits here until it does: a sender
//! that has finished the stream hears of no failure, and would never send it again. What the log can't take for any
//! other reason ends the session, and in the next one the agent sends from the entry that was acknowledged last.

use std::time::Duration;

use bytes::BytesMut;
use packrun_protocol::block::Block;
use packrun_protocol::id::AttemptId;
use packrun_protocol::limit;
use packrun_protocol::quic::FrameReader;
use packrun_protocol::stream::CloseCode;
use tokio::sync::watch;

use super::session::{Ask, LogGrant, Streams};
use crate::engine::EngineError;
use crate::logs::{AppendError, Progress};

/// How long to wait before a block that the disk did not take is tried again.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// Serves the log stream of `attempt`; an error is the code to stop it with.
pub(super) async fn serve(
    streams: &Streams,
    reader: &mut FrameReader,
    attempt: AttemptId,
) -> Result<(), CloseCode> {
    let LogGrant { writer, bytes_max, progress } = streams.log(attempt).await?;
    let bound = Bound { bytes_max, progress };
    tokio::select! {
        biased;
        () = writer.cancelled() => Err(CloseCode::Superseded),
        copied = copy(streams, reader, attempt, &bound) => copied,
    }
}

async fn copy(
    streams: &Streams,
    reader: &mut FrameReader,
    attempt: AttemptId,
    bound: &Bound,
) -> Result<(), CloseCode> {
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
            if bound.is_passed_by(&block) {
                streams.say(Ask::Overlong(attempt)).await;
                return Err(CloseCode::Overloaded);
            }
            append(streams, attempt, block).await?;
        }
        match reader.raw().await {
            Ok(Some(bytes)) => buffer.extend_from_slice(&bytes),
            Ok(None) if buffer.is_empty() => return Ok(()),
            Ok(None) => return Err(fail(streams, attempt, "it ended inside a block").await),
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

/// How much of an attempt's log is taken.
struct Bound {
    bytes_max: u64,
    progress: watch::Receiver<Progress>,
}

impl Bound {
    /// Whether the log would have more with this block than it may: agents cut it before. Only this stream writes it.
    fn is_passed_by(&self, block: &Block) -> bool {
        let Progress { readable, bytes, .. } = *self.progress.borrow();
        let most = self.bytes_max.saturating_add(limit::LOG_OVERRUN_BYTES_MAX);
        block.next_seq() > readable && bytes + block.log_bytes() > most
    }
}

/// Has the log take a block, as soon as its disk can.
async fn append(streams: &Streams, attempt: AttemptId, block: Block) -> Result<(), CloseCode> {
    let mut pause = AGAIN_FIRST;
    loop {
        let turn = streams.append_turn().await?;
        let Err(error) = streams.shared.logs.append(block.clone()).await else { return Ok(()) };
        drop(turn);
        match error {
            AppendError::Write { .. } => {
                tracing::debug!(%attempt, %error, "a block waits for the disk");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            }
            AppendError::Closed => return Err(CloseCode::ShuttingDown),
            AppendError::NotOpen(_) | AppendError::Sealed(_) => return Err(CloseCode::Fenced),
            AppendError::Gap { .. } | AppendError::Overlap { .. } => {
                return Err(fail(streams, attempt, &error.to_string()).await);
            }
        }
    }
}

/// Ends the session, so that the next one sends what is missing: the stream may be finished at its sender's.
async fn fail(streams: &Streams, attempt: AttemptId, why: &str) -> CloseCode {
    streams.say(Ask::Trouble(format!("the log stream of {attempt} failed: {why}"))).await;
    CloseCode::Unavailable
}
