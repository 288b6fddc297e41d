//! The shell round the core: one task owns the state, takes what waits in its bounded queue, applies it, commits
//! all changes in one batch, and lets the effects go once that is on the disk.
//!
//! Commits are pipelined: while one batch is on its way to the disk, the next is gathered. Effects leave in the
//! order of their events. Invariants:
//! - No reply, dispatch or notification leaves without the [`Committed`] of the batch
//!   that holds its changes.
//! - After a commit that failed the engine takes nothing more. What waits for a reply gets none; sessions end;
//!   reading goes on.
//! - Nobody can hold it up: an agent whose outbox is full is dropped, and comes back by itself.

mod handle;
mod release;

pub use handle::{EngineError, Handle, Messages, Session};
pub use release::{FeedBatch, ToSession};

/// What [`Handle::read`] gives.
pub use crate::store::{Reader, StoreError};

use std::future::pending;

use packrun_protocol::id::AgentId;
use packrun_protocol::time::Clock;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::handle::Request;
use self::release::Outboxes;
use crate::core::Core;
use crate::core::change::Change;
use crate::core::event::{Event, Report, SessionId, Ticket};
use crate::core::outcome::Effect;
use crate::store::{Batch, CommitError, Committed, Lease, Store};

/// Requests that may wait in the queue before those who ask have to wait themselves.
const QUEUE_REQUESTS: usize = 4096;

/// Requests gathered behind a commit under way. More wait in the queue, and so does whoever sends them.
const GATHERED_MAX: usize = 4096;

/// Batches of feed rows that a slow follower may be behind before it has to read them from the store.
const FEED_BATCHES: usize = 1024;

/// Whether the engine takes commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// It doesn't any more, for this reason.
    Stopped(String),
}

/// Says how the engine is, and that it has stopped also when it ended by a panic.
struct Announced(watch::Sender<Health>);

impl Announced {
    fn stopped(&self, reason: &str) {
        self.0.send_if_modified(|health| {
            let news = *health == Health::Ready;
            if news {
                *health = Health::Stopped(reason.to_owned());
            }
            news
        });
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.stopped("the engine ended unexpectedly");
    }
}

type Commit = JoinHandle<Result<(Lease, Committed), CommitError>>;

/// What was applied and is not on its way to the disk yet.
#[derive(Debug, Default)]
struct Gathered {
    requests: usize,
    batch: Batch,
    effects: Vec<Effect>,
    feed: FeedBatch,
}

/// The task's own state.
struct Engine {
    core: Core,
    store: Store,
    lease: Lease,
    committed: Committed,
    clock: Clock,
    gathered: Gathered,
    under_way: Option<(Commit, Vec<Effect>, FeedBatch)>,
    outboxes: Outboxes,
    tickets: u64,
    requests: mpsc::WeakSender<Request>,
    health: Announced,
}

/// Starts the engine on a state that was loaded from `store` under `lease`. It ends with the last handle, or by
/// [`Handle::stop`].
#[must_use]
pub fn start(core: Core, store: Store, (lease, committed): (Lease, Committed), clock: Clock) -> Handle {
    let (requests, queue) = mpsc::channel(QUEUE_REQUESTS);
    let (feed, _) = broadcast::channel(FEED_BATCHES);
    let followers = feed.downgrade();
    let (health, health_seen) = watch::channel(Health::Ready);
    let engine = Engine {
        core,
        store: store.clone(),
        lease,
        committed,
        clock,
        gathered: Gathered::default(),
        under_way: None,
        outboxes: Outboxes::new(feed),
        tickets: 0,
        requests: requests.downgrade(),
        health: Announced(health),
    };
    tokio::spawn(engine.run(queue));
    Handle::new(requests, store, followers, health_seen)
}

impl Engine {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut taken = Vec::new();
        let mut stopping: Vec<oneshot::Sender<()>> = Vec::new();
        let mut is_open = true;
        loop {
            self.send_off();
            if !is_open && self.under_way.is_none() {
                break;
            }
            let has_room = is_open && self.gathered.requests < GATHERED_MAX;
            let deadline = self.core.next_deadline().map(|at| self.clock.instant(at));
            tokio::select! {
                done = async { (&mut self.under_way.as_mut()?.0).await.ok() }, if self.under_way.is_some() => {
                    if let Err(reason) = self.arrived(done) {
                        return self.fail(queue, &reason).await;
                    }
                }
                count = queue.recv_many(&mut taken, GATHERED_MAX), if has_room => {
                    for request in taken.drain(..) {
                        self.take(request, &mut stopping);
                    }
                    is_open = count > 0 && stopping.is_empty();
                }
                () = async {
                    match deadline {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => pending().await,
                    }
                } => self.apply(Event::Wake),
            }
        }
        self.health.stopped("the coordinator stops");
        // Whoever is told may open the store again at once.
        drop(self);
        for stopped in stopping {
            // Whoever asked may have gone.
            let _ = stopped.send(());
        }
    }

    fn take(&mut self, request: Request, stopping: &mut Vec<oneshot::Sender<()>>) {
        self.gathered.requests += 1;
        match request {
            Request::Command { command, reply } => {
                let ticket = self.ticket(reply);
                self.apply(Event::Command { ticket, command });
            }
            Request::Connect { agent, session, arrival, outbox, gone } => {
                self.watch(agent, session, gone);
                self.outboxes.open(session, outbox);
                self.report(agent, session, Report::Connected(arrival));
            }
            Request::Artifact { agent, session, attempt, artifact, reply } => {
                let ticket = self.ticket(reply);
                self.report(agent, session, Report::ArtifactCommitted { ticket, attempt, artifact });
            }
            Request::Report { agent, session, report } => {
                if matches!(report, Report::Disconnected) {
                    self.outboxes.close(session);
                }
                self.report(agent, session, report);
            }
            Request::Look(look) => look(&self.core),
            Request::Started { agent, session, attempt, reply } => {
                let ticket = Some(self.ticket(reply));
                self.report(agent, session, Report::Started { ticket, attempt });
            }
            Request::Stop(stopped) => stopping.push(stopped),
        }
    }

    fn ticket(&mut self, reply: handle::ReplySender) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.outboxes.expect(ticket, reply);
        ticket
    }

    /// Has the session end when the other side of `gone` is dropped.
    fn watch(&self, agent: AgentId, session: SessionId, gone: oneshot::Receiver<()>) {
        let requests = self.requests.clone();
        tokio::spawn(async move {
            // Nothing is ever sent: the error is the news.
            let _ = gone.await;
            if let Some(requests) = requests.upgrade() {
                let report = Report::Disconnected;
                // The engine is gone when this fails, and the session with it.
                let _ = requests.send(Request::Report { agent, session, report }).await;
            }
        });
    }

    fn report(&mut self, agent: AgentId, session: SessionId, report: Report) {
        self.apply(Event::Report { agent, session, report });
    }

    fn apply(&mut self, event: Event) {
        let step = self.core.apply(self.clock.now(), event);
        for change in step.changes {
            if let Change::Feed(row) = &change {
                self.gathered.feed.push(row.clone());
            }
            self.gathered.batch.add(change);
        }
        self.gathered.effects.extend(step.effects);
    }

    /// Starts the commit of what was gathered, if none is under way. Without changes there is nothing to wait for:
    /// all that the effects rest on is committed.
    fn send_off(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let Gathered { batch, effects, feed, .. } = std::mem::take(&mut self.gathered);
        if batch.is_empty() {
            self.outboxes.release(self.committed, effects, feed);
            return;
        }
        let (store, lease) = (self.store.clone(), self.lease);
        let commit = tokio::spawn(async move { store.commit(lease, batch).await });
        self.under_way = Some((commit, effects, feed));
    }

    fn arrived(&mut self, done: Option<Result<(Lease, Committed), CommitError>>) -> Result<(), String> {
        let Some((_, effects, feed)) = self.under_way.take() else { return Ok(()) };
        match done {
            Some(Ok((lease, committed))) => {
                (self.lease, self.committed) = (lease, committed);
                self.outboxes.release(committed, effects, feed);
                Ok(())
            }
            Some(Err(error)) => Err(describe(&error)),
            None => Err("the thread that commits has ended".into()),
        }
    }

    /// Takes nothing more: whoever asks finds his reply dropped. Looks go on, at the last state in memory.
    async fn fail(self, mut queue: mpsc::Receiver<Request>, reason: &str) {
        tracing::error!(reason, "the store failed; no more commands are taken");
        self.health.stopped(reason);
        drop((self.outboxes, self.gathered, self.under_way));
        while let Some(request) = queue.recv().await {
            if let Request::Look(look) = request {
                look(&self.core);
            }
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
