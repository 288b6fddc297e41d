//! The control stream: two tasks between its frames and the link's queues.

use packrun_protocol::control::{FromAgent, FromCoordinator};
use packrun_protocol::quic::{FrameReader, FrameWriter, ReadError, WriteError};
use packrun_protocol::stream::StreamHeader;
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::PRIORITY_CONTROL;

/// How many frames of the coordinator wait at most.
const INCOMING_MAX: usize = 64;

/// How many messages wait for the stream at most: a full report of all that is held, and room beside it.
const OUTGOING_MAX: usize = 4 * packrun_protocol::limit::HELD_ATTEMPTS_MAX;

/// How many messages leave in one write.
const BATCH: usize = 256;

/// An open control stream.
#[derive(Debug)]
pub(super) struct Control {
    incoming: mpsc::Receiver<Result<FromCoordinator, ReadError>>,
    outgoing: mpsc::Sender<FromAgent>,
    _tasks: JoinSet<()>,
}

impl Control {
    /// Opens the control stream of `connection`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(super) async fn open(connection: &Connection) -> Result<Self, WriteError> {
        let (send, receive) = connection.open_bi().await.map_err(quinn::WriteError::ConnectionLost)?;
        let _ = send.set_priority(PRIORITY_CONTROL);
        let mut writer = FrameWriter::new(send);
        writer.send(&StreamHeader::Control).await?;
        let (frames, incoming) = mpsc::channel(INCOMING_MAX);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(receive_all(FrameReader::new(receive), frames));
        tasks.spawn(send_all(writer, messages, connection.clone()));
        Ok(Self { incoming, outgoing, _tasks: tasks })
    }

    /// The coordinator's next frame.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the stream is lost or the coordinator broke the protocol.
    pub(super) async fn next(&mut self) -> Result<FromCoordinator, ReadError> {
        self.incoming.recv().await.unwrap_or(Err(ReadError::Ended))
    }

    /// Says something; `false` when the coordinator has not read for so long that no more goes into the queue.
    pub(super) fn say(&self, message: FromAgent) -> bool {
        !matches!(self.outgoing.try_send(message), Err(mpsc::error::TrySendError::Full(_)))
    }
}

async fn receive_all(mut reader: FrameReader, frames: mpsc::Sender<Result<FromCoordinator, ReadError>>) {
    loop {
        let frame = reader.expect().await;
        let is_last = frame.is_err();
        if frames.send(frame).await.is_err() || is_last {
            return;
        }
    }
}

/// Sends what is said until the queue is closed. A failure shows in the other direction, for the connection is
/// closed with it.
async fn send_all(mut writer: FrameWriter, mut messages: mpsc::Receiver<FromAgent>, connection: Connection) {
    let mut batch = Vec::with_capacity(BATCH);
    while messages.recv_many(&mut batch, BATCH).await > 0 {
        for message in batch.drain(..) {
            if let Err(error) = writer.push(&message) {
                tracing::error!(%error, "a message to the coordinator is too large and is not sent");
            }
        }
        if let Err(error) = writer.flush().await {
            tracing::debug!(%error, "the control stream is lost");
            let code = packrun_protocol::stream::CloseCode::Protocol;
            return packrun_protocol::quic::close(&connection, code, "the control stream was lost");
        }
    }
}
