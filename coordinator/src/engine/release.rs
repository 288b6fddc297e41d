//! Where effects go once their changes are on the disk: to whoever waits for a reply, and to the sessions.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::control::Assignment;
use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::name::Labels;
use packrun_protocol::state::Reason;
use tokio::sync::broadcast;

use super::handle::{Outbox, ReplySender};
use crate::core::change::FeedRow;
use crate::core::event::{SessionId, Ticket};
use crate::core::outcome::{CloseReason, Effect, Standing};
use crate::store::Committed;

/// Feed rows that were committed together, of all pack runs, each run's in order.
pub type FeedBatch = Vec<FeedRow>;

/// What the engine tells a session of an agent.
#[derive(Debug, Clone)]
pub enum ToSession {
    /// Stop an attempt and report its end.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// Why.
        why: Reason,
    },
    /// End the session. Nothing follows.
    Close(CloseReason),
    /// Attempts to start.
    Dispatch(Vec<Assignment>),
    /// The agent gets nothing more, or does again.
    Drain(bool),
    /// An attempt that is not the agent's, or no longer.
    Fence(AttemptId),
    /// An attempt to forget.
    Settled(AttemptId),
    /// The session is open: the first message.
    Welcome {
        /// The coordinator's epoch.
        epoch: Epoch,
        /// What to do with each attempt that was reported.
        standings: Vec<(AttemptId, Standing)>,
        /// Those of the agent's own labels that don't count.
        refused: Labels,
    },
}

#[derive(Debug)]
pub(super) struct Outboxes {
    replies: BTreeMap<Ticket, ReplySender>,
    sessions: BTreeMap<SessionId, Outbox>,
    feed: broadcast::Sender<Arc<FeedBatch>>,
}

impl Outboxes {
    pub(super) fn new(feed: broadcast::Sender<Arc<FeedBatch>>) -> Self {
        Self { replies: BTreeMap::new(), sessions: BTreeMap::new(), feed }
    }

    pub(super) fn expect(&mut self, ticket: Ticket, reply: ReplySender) {
        self.replies.insert(ticket, reply);
    }

    pub(super) fn open(&mut self, session: SessionId, outbox: Outbox) {
        self.sessions.insert(session, outbox);
    }

    pub(super) fn close(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// Lets effects go, whose changes are on the disk: the proof is asked for, so that nothing else can.
    pub(super) fn release(&mut self, _proof: Committed, effects: Vec<Effect>, feed: FeedBatch) {
        if !feed.is_empty() {
            // Without followers nobody misses it.
            let _ = self.feed.send(Arc::new(feed));
        }
        for effect in effects {
            match effect {
                Effect::Reply { ticket, reply } => {
                    if let Some(asker) = self.replies.remove(&ticket) {
                        // An asker that went away meanwhile needs no reply.
                        let _ = asker.send(reply);
                    }
                }
                Effect::CancelAttempt { session, attempt, why, .. } => {
                    self.tell(session, ToSession::Cancel { attempt, why });
                }
                Effect::CloseSession { session, why, .. } => {
                    self.tell(session, ToSession::Close(why));
                    if let Some(outbox) = self.sessions.remove(&session) {
                        outbox.closing.cancel();
                    }
                }
                Effect::Dispatch { session, assignments, .. } => {
                    self.tell(session, ToSession::Dispatch(assignments));
                }
                Effect::Drain { session, drained, .. } => self.tell(session, ToSession::Drain(drained)),
                Effect::Fence { session, attempt, .. } => self.tell(session, ToSession::Fence(attempt)),
                Effect::Settled { session, attempt, .. } => self.tell(session, ToSession::Settled(attempt)),
                Effect::Welcome { session, epoch, standings, refused, .. } => {
                    self.tell(session, ToSession::Welcome { epoch, standings, refused });
                }
            }
        }
    }

    /// A session that doesn't keep up is dropped: its agent connects again and reports anew.
    fn tell(&mut self, session: SessionId, message: ToSession) {
        let Some(outbox) = self.sessions.get(&session) else { return };
        if outbox.messages.try_send(message).is_err() {
            tracing::warn!(session = session.0, "a session is gone or does not keep up; it is dropped");
            self.close(session);
        }
    }
}
