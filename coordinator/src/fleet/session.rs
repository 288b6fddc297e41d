//! One agent's session: the control stream on one side, the engine on the other, and the streams in between.
//!
//! One task owns the session. It waits for whatever comes first (a frame of the agent, a message of the engine, a
//! new stream, what a stream asks), does what follows, and sends all that came of it in one write. Streams are
//! tasks of their own: they ask the session for leave and tell it news by [`Ask`]. All of them are gone before the
//! agent's next session begins.

mod greet;
mod held;
mod listen;
mod rules;
mod streams;
mod tell;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use packrun_protocol::cert::AgentCertificate;
use packrun_protocol::control::ToAgent;
use packrun_protocol::id::{AgentId, AttemptId};
use packrun_protocol::limit;
use packrun_protocol::quic::{FrameReader, close, know};
use packrun_protocol::state::Reason;
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::{ClockOffset, Timestamp};
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub(super) use held::{Ask, AttemptGrant, LogGrant, TOLD_MAX};
pub(super) use streams::Streams;

use super::Shared;
use super::gate::Rate;
use super::seats::Seat;
use crate::core::outcome::CloseReason;
use crate::engine::{self, EngineError, Messages, ToSession};
use held::Held;
use tell::Teller;

/// What streams may have asked that the session has not answered yet; further ones wait.
const ASKS: usize = 256;

/// How long acknowledgements are collected before they are sent.
const ACK_DELAY: Duration = Duration::from_millis(4);

/// Messages of the engine that go out together at most.
const BURST: usize = 256;

/// Pings, renewals and such that an agent may send a second on average, and for how many seconds' worth at once.
const CHATTER_PER_SECOND: u32 = 8;
const CHATTER_BURST: Duration = Duration::from_secs(8);

/// Reports that an agent may make a second on average of what it doesn't hold, or has reported before, and for how
/// many seconds' worth at once: all that it can hold may have been taken from it while it said so.
const REPEATS_PER_SECOND: u32 = 256;
const REPEATS_BURST: Duration = Duration::from_secs(64);

const _: () =
    assert!(REPEATS_PER_SECOND as u64 * REPEATS_BURST.as_secs() >= 2 * limit::HELD_ATTEMPTS_MAX as u64);

/// Connections of one agent that may wait for a session at once: each may make the coordinator hold a whole `Hello`. An
/// honest agent has a single one, and perhaps some that were lost and don't know it.
pub(super) const WAITING_MAX: usize = 8;

/// How long a good-bye gets to arrive.
const PART_TIME: Duration = Duration::from_secs(1);

/// Said of a session that the engine has dropped.
const UNKEPT: &str = "the engine stopped, or the agent did not keep up";

/// Why a session ends.
#[derive(Debug)]
pub(super) enum Parting {
    /// The connection is gone.
    Lost,
    /// The coordinator stops.
    Stopping,
    /// It is closed by this side.
    Closed(CloseCode, String),
}

impl Parting {
    fn broken(what: &impl ToString) -> Self {
        Self::Closed(CloseCode::Protocol, what.to_string())
    }

    fn closed(code: CloseCode, reason: &str) -> Self {
        Self::Closed(code, reason.to_owned())
    }
}

impl From<EngineError> for Parting {
    fn from(error: EngineError) -> Self {
        Self::Closed(CloseCode::Unavailable, error.to_string())
    }
}

impl From<CloseReason> for Parting {
    fn from(why: CloseReason) -> Self {
        match why {
            CloseReason::Labels => {
                Self::closed(CloseCode::Protocol, "the agent has too many labels, its own and those granted")
            }
            CloseReason::Revoked => Self::closed(CloseCode::Revoked, "the agent was revoked; enrol it anew"),
            CloseReason::Superseded => {
                Self::closed(CloseCode::Superseded, "the agent has a newer connection")
            }
            CloseReason::Unknown => {
                Self::closed(CloseCode::CertificateRequired, "no such agent is enrolled here; enrol it anew")
            }
        }
    }
}

/// The session's own state.
struct Session {
    shared: Arc<Shared>,
    agent: AgentId,
    connection: Connection,
    engine: engine::Session,
    messages: Messages,
    reader: FrameReader,
    teller: Teller,
    held: Held,
    /// How far our clock is ahead of the agent's, once it has said so.
    offset: Option<ClockOffset>,
    acks: BTreeMap<AttemptId, u64>,
    acks_due: Option<Instant>,
    chatter: Rate,
    /// Reports that change nothing.
    repeats: Rate,
    /// When the agent's certificate ends, and with it the session.
    expires: Timestamp,
    streams: Streams,
    asks: mpsc::Receiver<Ask>,
    workers: JoinSet<()>,
}

/// Serves the connection of an agent whose certificate was verified, until it is closed.
pub(super) async fn serve(shared: &Arc<Shared>, connection: &Connection, certificate: &AgentCertificate) {
    let agent = certificate.agent;
    let Ok(waiting) = shared.lobby.enter(agent) else {
        tracing::warn!(%agent, "an agent has many connections that say nothing; one more was turned away");
        return close(connection, CloseCode::Overloaded, "the agent has many connections that say nothing");
    };
    know(connection);
    let greeted = tokio::select! {
        () = shared.stop.cancelled() => Err(Parting::Stopping),
        greeted = greet::greet(shared, connection, certificate) => greeted,
    };
    drop(waiting);
    match greeted {
        Ok((mut session, seat)) => {
            let parting = session.run(&seat).await;
            session.part(&parting).await;
            session.workers.shutdown().await;
            // Before the control stream is dropped: its end would come without a reason.
            end(connection, agent, parting);
            if let Err(error) = shared.artifacts.bound_partials(agent).await {
                tracing::warn!(%agent, %error, "what the agent left of its uploads could not be looked through");
            }
        }
        Err(parting) => end(connection, agent, parting),
    }
}

fn end(connection: &Connection, agent: AgentId, parting: Parting) {
    match parting {
        Parting::Lost => {
            tracing::info!(%agent, "an agent's connection was lost");
            // Where only its control stream was, the rest is of no use.
            close(connection, CloseCode::Protocol, "the control stream was lost");
        }
        Parting::Stopping => close(connection, CloseCode::ShuttingDown, "the coordinator stops"),
        Parting::Closed(code, reason) => {
            if code == CloseCode::Revoked {
                tracing::warn!(%agent, reason, "an agent was turned away");
            } else {
                tracing::warn!(%agent, ?code, reason, "an agent's session was closed");
            }
            close(connection, code, &reason);
        }
    }
}

impl Session {
    /// Works until the session ends. What interrupts it may leave half a frame on the control stream.
    async fn run(&mut self, seat: &Seat) -> Parting {
        let (shared, closing) = (self.shared.clone(), self.messages.closing());
        tokio::select! {
            // It knows best why it ends, if it isn't held up by an agent that takes nothing.
            biased;
            parting = self.work() => parting,
            () = closing.cancelled() => self.closed().await,
            () = stopped(&shared) => Parting::closed(CloseCode::ShuttingDown, "the coordinator stops"),
            () = seat.wanted() => CloseReason::Superseded.into(),
            () = shared.stepped_down() => {
                Parting::closed(CloseCode::Unavailable, "this coordinator has stepped down")
            }
        }
    }

    /// Why the engine closes the session.
    async fn closed(&mut self) -> Parting {
        loop {
            match self.messages.recv().await {
                Some(ToSession::Close(why)) => return greet::turned_away(&self.shared, self.agent, why),
                Some(_) => {}
                None => return Parting::closed(CloseCode::Unavailable, UNKEPT),
            }
        }
    }

    async fn work(&mut self) -> Parting {
        loop {
            if let Err(parting) = self.turn().await {
                return parting;
            }
            if let Err(parting) = self.flush().await {
                return parting;
            }
        }
    }

    /// Waits for one thing and does what follows from it.
    async fn turn(&mut self) -> Result<(), Parting> {
        let (acks_due, expires) = (self.acks_due, self.shared.clock.instant(self.expires));
        tokio::select! {
            () = self.shared.stop.cancelled() => Err(Parting::Stopping),
            message = self.messages.recv() => {
                let message = message.ok_or_else(|| Parting::closed(CloseCode::Unavailable, UNKEPT))?;
                self.tell(message).await?;
                for _ in 0..BURST {
                    let Some(Some(message)) = self.messages.recv().now_or_never() else { break };
                    self.tell(message).await?;
                }
                Ok(())
            }
            Some(ask) = self.asks.recv() => self.answer(ask),
            frame = self.reader.next() => self.hear(frame).await,
            stream = self.connection.accept_uni() => {
                let stream = stream.map_err(|_| Parting::Lost)?;
                self.workers.spawn(self.streams.clone().one_way(stream));
                Ok(())
            }
            stream = self.connection.accept_bi() => {
                let (send, receive) = stream.map_err(|_| Parting::Lost)?;
                self.workers.spawn(self.streams.clone().two_way(send, receive));
                Ok(())
            }
            Some(ended) = self.workers.join_next() => {
                let mut next = Some(ended);
                while let Some(ended) = next {
                    if ended.is_err_and(|error| error.is_panic()) {
                        // It was reported when it happened. What it would have said is missing now.
                        return Err(Parting::closed(CloseCode::Unavailable, "a stream failed; connect again"));
                    }
                    next = self.workers.try_join_next();
                }
                Ok(())
            }
            () = until(acks_due) => self.acknowledge(),
            () = tokio::time::sleep_until(expires.into()) => {
                Err(Parting::closed(CloseCode::CertificateRequired, "the agent's certificate has expired"))
            }
        }
    }

    /// Sends what was said, as long as the agent takes it.
    async fn flush(&mut self) -> Result<(), Parting> {
        self.teller.flush(self.shared.settings.limits.silence).await
    }

    /// The last words, where the agent can still hear them.
    async fn part(&mut self, parting: &Parting) {
        if !matches!(parting, Parting::Stopping) {
            return;
        }
        let reason = Reason::new("the coordinator stops");
        let said = self.teller.say(ToAgent::Goodbye { restarting: true, reason });
        if said.is_ok() && self.teller.flush(PART_TIME).await.is_ok() {
            self.teller.finish(PART_TIME).await;
        }
    }
}

/// Returns when the coordinator has been stopping for so long that a session should have noticed.
async fn stopped(shared: &Shared) {
    shared.stop.cancelled().await;
    tokio::time::sleep(PART_TIME).await;
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => pending().await,
    }
}

/// Waits for `work` as long as a peer may be silent.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    timeout(limit, work).await.ok()
}
