//! How the rest of the coordinator talks to the engine: it sends a command and awaits the reply, opens a session
//! for an agent, follows what was committed, or reads the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use packrun_protocol::id::{AgentId, AttemptId};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Health;
use super::release::{FeedBatch, ToSession};
use crate::core::Core;
use crate::core::event::{Arrival, Artifact, Command, Report, SessionId};
use crate::core::outcome::{Refusal, Reply};
use crate::store::{Reader, Store, StoreError};

/// Messages that may wait for a session to take them: a dispatch to every slot, and what goes with it.
const OUTBOX_MESSAGES: usize = 4096;

pub(super) type ReplySender = oneshot::Sender<Result<Reply, Refusal>>;

/// What the engine is asked.
pub(super) enum Request {
    Artifact {
        agent: AgentId,
        session: SessionId,
        attempt: AttemptId,
        artifact: Artifact,
        reply: ReplySender,
    },
    Command {
        command: Command,
        reply: ReplySender,
    },
    Connect {
        agent: AgentId,
        session: SessionId,
        arrival: Arrival,
        outbox: Outbox,
        gone: oneshot::Receiver<()>,
    },
    Look(Box<dyn FnOnce(&Core) + Send>),
    Report {
        agent: AgentId,
        session: SessionId,
        report: Report,
    },
    Started {
        agent: AgentId,
        session: SessionId,
        attempt: AttemptId,
        reply: ReplySender,
    },
    Stop(oneshot::Sender<()>),
}

/// Why the engine did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The request can't be followed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The engine takes no requests: the coordinator stops, or its store failed. Whether this one was followed is
    /// known once it is asked again.
    #[error("the coordinator takes no requests now; try again")]
    Unavailable,
}

/// A way to the engine. Clones share it; the engine ends with the last.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    store: Store,
    feed: broadcast::WeakSender<Arc<FeedBatch>>,
    health: watch::Receiver<Health>,
    sessions: Arc<AtomicU64>,
}

impl Handle {
    pub(super) fn new(
        requests: mpsc::Sender<Request>,
        store: Store,
        feed: broadcast::WeakSender<Arc<FeedBatch>>,
        health: watch::Receiver<Health>,
    ) -> Self {
        Self { requests, store, feed, health, sessions: Arc::default() }
    }

    /// Has the core follow `command`. When this returns `Ok`, what it made is on the disk.
    ///
    /// # Errors
    /// When the core refuses, or the engine takes no requests.
    pub async fn command(&self, command: Command) -> Result<Reply, EngineError> {
        self.ask(|reply| Request::Command { command, reply }).await
    }

    /// Opens a session for an agent that has shown its certificate. The first message is
    /// [`ToSession::Welcome`], or [`ToSession::Close`].
    ///
    /// # Errors
    /// When the engine takes no requests.
    pub async fn connect(
        &self,
        agent: AgentId,
        arrival: Arrival,
    ) -> Result<(Session, Messages), EngineError> {
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let closing = CancellationToken::new();
        let outbox = Outbox { messages: sender, closing: closing.clone() };
        let (alive, gone) = oneshot::channel();
        self.send(Request::Connect { agent, session, arrival, outbox, gone }).await?;
        let messages = Messages { messages, closing, _alive: alive };
        Ok((Session { engine: self.clone(), agent, id: session }, messages))
    }

    /// What `look` sees of the core's state, which may be ahead of the store by what is on its way there.
    ///
    /// # Errors
    /// When the engine is gone.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        let look = Box::new(move |core: &Core| drop(reply.send(look(core))));
        self.send(Request::Look(look)).await?;
        answer.await.map_err(|_| EngineError::Unavailable)
    }

    /// All that is committed from now on, as feed rows; closed once the engine takes no requests. One who falls
    /// behind gets [`Lagged`](broadcast::error::RecvError::Lagged) and reads on from the store.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Arc<FeedBatch>> {
        self.feed.upgrade().map_or_else(|| broadcast::channel(1).1, |feed| feed.subscribe())
    }

    /// What is committed, as it is now.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn read(&self) -> Result<Reader, StoreError> {
        self.store.snapshot()
    }

    /// Whether the engine takes requests.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Commits what was taken, then ends the engine.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.send(Request::Stop(reply)).await.is_ok() {
            // An engine that failed is at its end as well.
            let _ = stopped.await;
        }
    }

    async fn ask(&self, request: impl FnOnce(ReplySender) -> Request) -> Result<Reply, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply)).await?;
        Ok(answer.await.map_err(|_| EngineError::Unavailable)??)
    }

    async fn send(&self, request: Request) -> Result<(), EngineError> {
        self.requests.send(request).await.map_err(|_| EngineError::Unavailable)
    }
}

/// The engine's side of a session's [`Messages`].
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) messages: mpsc::Sender<ToSession>,
    /// Cancelled when the session is to be closed, also while it is too busy to read its messages.
    pub(super) closing: CancellationToken,
}

/// What the engine tells a session. The session is over when this is dropped, however that happens.
#[derive(Debug)]
pub struct Messages {
    messages: mpsc::Receiver<ToSession>,
    closing: CancellationToken,
    _alive: oneshot::Sender<()>,
}

impl Messages {
    /// The next message; `None` when the engine has dropped the session.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<ToSession> {
        self.messages.recv().await
    }

    /// Cancelled once [`ToSession::Close`] is among the messages, though others may come before it: whoever is held
    /// up by his agent needn't see to those any more.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }
}

/// One connection of an agent to the engine. It is over when its [`Messages`] are dropped.
#[derive(Debug, Clone)]
pub struct Session {
    engine: Handle,
    agent: AgentId,
    id: SessionId,
}

impl Session {
    /// Hands the engine a report of the agent.
    ///
    /// # Errors
    /// When the engine takes no requests.
    pub async fn report(&self, report: Report) -> Result<(), EngineError> {
        self.engine.send(Request::Report { agent: self.agent, session: self.id, report }).await
    }

    /// Records that an attempt's process runs, as everything that an attempt leaves implies. When this returns `Ok`,
    /// that is on the disk, and whoever follows the engine has been told.
    ///
    /// # Errors
    /// When the attempt is not the agent's, or the engine takes no requests.
    pub async fn record_start(&self, attempt: AttemptId) -> Result<Reply, EngineError> {
        let (agent, session) = (self.agent, self.id);
        self.engine.ask(|reply| Request::Started { agent, session, attempt, reply }).await
    }

    /// Records an artifact of an attempt that the agent holds. When this returns `Ok`, that is on the disk.
    ///
    /// # Errors
    /// When the attempt is not the agent's, or the engine takes no requests.
    pub async fn record_artifact(
        &self,
        attempt: AttemptId,
        artifact: Artifact,
    ) -> Result<Reply, EngineError> {
        let (agent, session) = (self.agent, self.id);
        self.engine.ask(|reply| Request::Artifact { agent, session, attempt, artifact, reply }).await
    }
}
