//! The agent's other streams: their headers, and what they share.

use std::sync::Arc;

use packrun_protocol::id::{AgentId, AttemptId, Digest};
use packrun_protocol::limit;
use packrun_protocol::quic::{FrameReader, FrameWriter, ReadError};
use packrun_protocol::stream::{CloseCode, StreamHeader};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};

use super::held::{Ask, AttemptGrant, LogGrant};
use super::rules::RecentRules;
use super::within;
use crate::engine;
use crate::fleet::{Shared, artifact_stream, download, inputs, log_stream};

/// Blocks of one agent that may wait for the log at once: enough to fill its batches, and few enough that an agent
/// with thousands of streams doesn't keep others waiting.
const APPENDS_MAX: usize = 32;

/// What the streams of a session share. Clones share it.
#[derive(Debug, Clone)]
pub(in crate::fleet) struct Streams {
    pub(in crate::fleet) shared: Arc<Shared>,
    pub(in crate::fleet) engine: engine::Session,
    pub(in crate::fleet) agent: AgentId,
    pub(in crate::fleet) rules: RecentRules,
    asks: mpsc::Sender<Ask>,
    appends: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

impl Streams {
    pub(super) fn new(
        shared: Arc<Shared>,
        engine: engine::Session,
        agent: AgentId,
        asks: mpsc::Sender<Ask>,
    ) -> Self {
        let limits = shared.settings.limits;
        let turns = |most| Arc::new(Semaphore::new(most));
        Self {
            shared,
            engine,
            agent,
            rules: RecentRules::default(),
            asks,
            appends: turns(APPENDS_MAX),
            uploads: turns(limits.uploads_per_agent),
            downloads: turns(limits.downloads_per_agent),
            lookups: turns(1),
        }
    }

    pub(super) fn asks(&self) -> mpsc::Sender<Ask> {
        self.asks.clone()
    }

    /// Serves a stream that the agent opened to send something.
    pub(super) async fn one_way(self, stream: RecvStream) {
        let mut reader = FrameReader::new(stream);
        let code = match self.header(&mut reader).await {
            Ok(StreamHeader::Log { attempt, .. }) => log_stream::serve(&self, &mut reader, attempt).await,
            Ok(_) => Err(CloseCode::UnknownStream),
            Err(code) => Err(code),
        };
        if let Err(code) = code {
            stop(reader.stream(), code);
        }
    }

    /// Serves a stream that the agent opened to be answered.
    pub(super) async fn two_way(self, send: SendStream, receive: RecvStream) {
        let (mut reader, mut writer) = (FrameReader::new(receive), FrameWriter::new(send));
        // Behind the control stream. It fails on a stream that is gone, and so will the next write.
        let _ = writer.stream().set_priority(-1);
        let served = match self.header(&mut reader).await {
            Ok(StreamHeader::Upload(upload)) => {
                artifact_stream::serve(&self, &mut reader, &mut writer, upload).await
            }
            Ok(StreamHeader::Inputs { attempt, input }) => {
                inputs::serve(&self, &mut writer, attempt, input).await
            }
            Ok(StreamHeader::Download { attempt, digest, offset }) => {
                download::serve(&self, &mut writer, attempt, digest, offset).await
            }
            Ok(StreamHeader::Control | StreamHeader::Log { .. }) => Err(CloseCode::UnknownStream),
            Err(code) => Err(code),
        };
        match served {
            // It is gone when this fails.
            Ok(()) => drop(writer.stream().finish()),
            Err(code) => {
                // Unreset, what was sent so far would look whole.
                let _ = writer.stream().reset(VarInt::from_u32(code.to_wire()));
                stop(reader.stream(), code);
            }
        }
    }

    /// What a new stream is for. A kind that a later version knows is refused, and harms nothing else.
    async fn header(&self, reader: &mut FrameReader) -> Result<StreamHeader, CloseCode> {
        match within(
            self.shared.settings.limits.greeting,
            reader.expect_within(limit::STREAM_HEADER_BYTES_MAX),
        )
        .await
        {
            Some(Ok(header)) => Ok(header),
            Some(Err(ReadError::Frame(_))) => Err(CloseCode::UnknownStream),
            Some(Err(_)) => Err(CloseCode::Protocol),
            None => Err(CloseCode::TimedOut),
        }
    }

    /// Waits for this agent's turn to have a block appended.
    pub(in crate::fleet) async fn append_turn(&self) -> Result<SemaphorePermit<'_>, CloseCode> {
        self.appends.acquire().await.map_err(|_| CloseCode::ShuttingDown)
    }

    /// Waits for this agent's turn to send a file.
    pub(in crate::fleet) async fn upload_turn(&self) -> Result<OwnedSemaphorePermit, CloseCode> {
        self.uploads.clone().acquire_owned().await.map_err(|_| CloseCode::ShuttingDown)
    }

    /// Waits for this agent's turn to fetch something.
    pub(in crate::fleet) async fn download_turn(&self) -> Result<OwnedSemaphorePermit, CloseCode> {
        self.downloads.clone().acquire_owned().await.map_err(|_| CloseCode::ShuttingDown)
    }

    /// Waits for this agent's turn to have all files of an attempt's inputs looked through.
    pub(in crate::fleet) async fn lookup_turn(&self) -> Result<OwnedSemaphorePermit, CloseCode> {
        self.lookups.clone().acquire_owned().await.map_err(|_| CloseCode::ShuttingDown)
    }

    /// The session's leave to write the attempt's log.
    pub(in crate::fleet) async fn log(&self, attempt: AttemptId) -> Result<LogGrant, CloseCode> {
        self.ask(|reply| Ask::Log { attempt, reply }).await?.ok_or(CloseCode::Fenced)
    }

    /// The attempt, if the session holds it.
    pub(in crate::fleet) async fn attempt(
        &self,
        attempt: AttemptId,
        wanted: Option<Digest>,
    ) -> Result<Option<AttemptGrant>, CloseCode> {
        self.ask(|reply| Ask::Attempt { attempt, wanted, reply }).await
    }

    /// Tells the session something. It is over when that fails, and this stream with it.
    pub(in crate::fleet) async fn say(&self, ask: Ask) {
        let _ = self.asks.send(ask).await;
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, CloseCode> {
        let (reply, answer) = oneshot::channel();
        self.say(ask(reply)).await;
        answer.await.map_err(|_| CloseCode::Unavailable)
    }
}

fn stop(stream: &mut RecvStream, code: CloseCode) {
    // One that ended by itself needs no stopping.
    let _ = stream.stop(VarInt::from_u32(code.to_wire()));
}
