//! What the agent says to its coordinator and does at its word: `handle(input, now)` gives outputs in order, and
//! `deadline` says when to come back. No I/O, no clock.
//!
//! ```text
//! Away → Greeting (Hello sent) → Live (Welcome came) → Away
//! ```
//! Invariants:
//! - A frame of a lower epoch than the highest one seen changes nothing and ends the session.
//! - What the journal holds is reported until the coordinator says that it is settled, once a session.
//! - An attempt is ordered once, never below one that is known of its job run, and only while the coordinator has
//!   answered something that was sent in the last [`FRESH`], by both clocks: the monotonic one stops while the
//!   host sleeps, the wall clock doesn't.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use packrun_protocol::bounded::{Bounded, BoundedText};
use packrun_protocol::control::{
    Assignment, Capacity, FromAgent, FromCoordinator, Hello, Isolation, MINOR, Pem, ToAgent,
};
use packrun_protocol::id::{AttemptId, Epoch, EpochProof};
use packrun_protocol::limit;
use packrun_protocol::name::{Labels, Name};
use packrun_protocol::state::{Outcome, Reason};
use packrun_protocol::time::{ClockOffset, OffsetFilter, Timestamp};

use self::held::{Held, Spent};
use self::live::Live;
use self::renewal::Renewal;
use crate::executor::ipc::Order;
use crate::spool::Record;

mod held;
mod live;
mod renewal;
#[cfg(test)]
mod tests;

/// How old a sign of the coordinator may be for an attempt to start.
pub const FRESH: Duration = Duration::from_secs(10);

/// How long the coordinator may take for its Welcome, and for the answer to a ping beyond three heartbeats.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a coordinator waits for an agent that is away, as long as none has said.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(60);

/// What doesn't change while the agent runs.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Its version, for people.
    pub version: BoundedText<64>,
    /// Its labels.
    pub labels: Labels,
    /// What it takes on.
    pub capacity: Capacity,
    /// How its host keeps attempts apart.
    pub isolation: Isolation,
}

/// The highest epoch of a coordinator that was seen, and what that one gave as proof of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The epoch.
    pub epoch: Epoch,
    /// Its proof, once a Welcome brought it.
    pub proof: Option<EpochProof>,
}

/// A point in time by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By the agent's clock, which never jumps.
    pub at: Timestamp,
    /// By the host's wall clock, which goes on while the host sleeps.
    pub wall: Timestamp,
}

impl Moment {
    /// Whether this is at most [`FRESH`] before `now`, by both clocks.
    fn is_fresh(self, now: Self) -> bool {
        now.wall >= self.wall && now.wall.since(self.wall) <= FRESH && now.at.since(self.at) <= FRESH
    }
}

/// What happens.
#[derive(Debug, Clone)]
pub enum Input {
    /// A connection is there and its control stream open.
    Connected,
    /// It is gone.
    Disconnected,
    /// The coordinator said something.
    Frame(FromCoordinator),
    /// The journal has grown by this; never a block.
    Journal(Record),
    /// An attempt ended and the journal can't say so.
    Failed(AttemptId, Outcome),
    /// The agent takes no new attempts from now on, or does again.
    Draining(bool),
    /// The certificate is to be renewed.
    RenewAt {
        /// When, by the wall clock: it ages while the host sleeps.
        at: Timestamp,
        /// How long an answer is waited for before it is asked for again.
        again: Duration,
    },
    /// What the coordinator said breaks the protocol, in these words.
    Broken(&'static str),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Say this on the control stream.
    Send(FromAgent),
    /// Tell the executor's side.
    Order(Order),
    /// The coordinator has let the agent in: streams may be opened.
    Welcomed {
        /// What it calls the agent.
        name: Name,
        /// Those of the agent's own labels that don't count there.
        refused: Labels,
    },
    /// Send the attempt's log from this entry on.
    OpenLog(AttemptId, u64),
    /// Stop whatever is under way for the attempt.
    Forget(AttemptId),
    /// The coordinator gives the agent no attempts from now on, or does again.
    Drained(bool),
    /// A higher epoch was seen, or the proof of it: keep them.
    Epoch(Seen),
    /// Ask for a new certificate.
    Renew,
    /// Use this certificate from the next connection on.
    Install(Pem),
    /// End the session.
    Leave(Leave),
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leave {
    /// The coordinator broke the protocol, in these words.
    Protocol(&'static str),
    /// It was replaced by one of a higher epoch.
    LowerEpoch {
        /// Its epoch.
        epoch: Epoch,
        /// The highest seen.
        highest: Epoch,
    },
    /// It doesn't answer.
    Silent,
    /// It stops.
    Goodbye {
        /// Whether a successor is expected at once.
        restarting: bool,
        /// Why.
        reason: Reason,
    },
    /// Another one commands, at one of these addresses.
    NotLeader(Vec<String>),
}

#[derive(Debug)]
enum Session {
    Away,
    Greeting { sent: Moment, draining: bool },
    Live(Live),
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    profile: Profile,
    seen: Seen,
    draining: bool,
    held: BTreeMap<AttemptId, Held>,
    spent: Spent,
    session: Session,
    /// Assignments that wait for a fresh sign of the coordinator.
    waiting: VecDeque<(Epoch, Assignment)>,
    offset: OffsetFilter,
    lease: Duration,
    renewal: Option<Renewal>,
}

impl Machine {
    /// A machine that has seen no coordinator of a higher epoch than this.
    #[must_use]
    pub fn new(profile: Profile, seen: Seen) -> Self {
        Self {
            profile,
            seen,
            draining: false,
            held: BTreeMap::new(),
            spent: Spent::default(),
            session: Session::Away,
            waiting: VecDeque::new(),
            offset: OffsetFilter::default(),
            lease: LEASE_DEFAULT,
            renewal: None,
        }
    }

    /// An earlier life of this agent has seen this epoch.
    pub fn raise(&mut self, epoch: Epoch) {
        if epoch > self.seen.epoch {
            self.seen = Seen { epoch, proof: None };
        }
    }

    /// Whether `attempt` is held and has not ended.
    #[must_use]
    pub fn runs(&self, attempt: AttemptId) -> bool {
        self.held.get(&attempt).is_some_and(|held| held.outcome.is_none())
    }

    /// Whether an attempt has not ended.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || self.held.values().any(|held| held.outcome.is_none())
    }

    /// Whether nothing is held that the coordinator hasn't settled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.held.is_empty()
    }

    /// How far the coordinator's clock is ahead, as far as that is known.
    #[must_use]
    pub fn offset(&self) -> Option<ClockOffset> {
        self.offset.best()
    }

    /// How long the coordinator waits for this agent when it is away; at most an hour.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match &self.session {
            Session::Away => None,
            Session::Greeting { sent, .. } => Some(sent.at + ANSWER_LIMIT),
            Session::Live(live) => {
                let overdue = live.pings.front().map(|ping| ping.at + live.patience());
                // A renewal is not urgent: it comes with the next ping.
                overdue.into_iter().chain([live.next_ping]).min()
            }
        }
    }

    /// Takes an input, and says what to do.
    pub fn handle(&mut self, input: Input, now: Moment) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Connected => self.greet(now, &mut out),
            Input::Disconnected => self.away(),
            Input::Frame(frame) => self.frame(frame, now, &mut out),
            Input::Journal(record) => self.journal(record, &mut out),
            Input::Failed(attempt, outcome) => {
                if let Some(held) = self.held.get_mut(&attempt) {
                    held.outcome = Some(outcome);
                }
                self.report(attempt, &mut out);
            }
            Input::Draining(draining) => {
                if std::mem::replace(&mut self.draining, draining) != draining
                    && matches!(self.session, Session::Live(_))
                {
                    out.push(Output::Send(FromAgent::Draining(draining)));
                }
            }
            Input::RenewAt { at, again } => self.renewal = Some(Renewal::new(at, again)),
            Input::Broken(why) => {
                if !matches!(self.session, Session::Away) {
                    out.push(Output::Leave(Leave::Protocol(why)));
                }
            }
            Input::Tick => self.tick(now, &mut out),
        }
        if out.iter().any(|output| matches!(output, Output::Leave(_))) {
            self.away();
        }
        out
    }

    fn away(&mut self) {
        self.session = Session::Away;
        self.offset = OffsetFilter::default();
        // They were never written down, so Hello won't name them, and the coordinator knows that.
        self.waiting.clear();
        self.held.values_mut().for_each(Held::forget_session);
        self.renewal.iter_mut().for_each(Renewal::forget_session);
    }

    fn greet(&mut self, now: Moment, out: &mut Vec<Output>) {
        self.away();
        // There can't be more: no assignment over the limit is taken.
        let told = self.held.iter_mut().take(limit::HELD_ATTEMPTS_MAX);
        let attempts: Vec<_> = told.map(|(attempt, held)| held.greet(*attempt)).collect();
        let Ok(attempts) = Bounded::try_from(attempts) else { return };
        out.push(Output::Send(FromAgent::Hello(Hello {
            minor: MINOR,
            version: self.profile.version.clone(),
            labels: self.profile.labels.clone(),
            capacity: self.profile.capacity,
            draining: self.draining,
            epoch: self.seen.epoch,
            attempts,
            proof: self.seen.proof,
            isolation: self.profile.isolation,
        })));
        self.session = Session::Greeting { sent: now, draining: self.draining };
    }

    fn frame(&mut self, frame: FromCoordinator, now: Moment, out: &mut Vec<Output>) {
        let FromCoordinator { epoch, message } = frame;
        if epoch < self.seen.epoch {
            return out.push(Output::Leave(Leave::LowerEpoch { epoch, highest: self.seen.epoch }));
        }
        let known = self.seen;
        self.raise(epoch);
        if let ToAgent::Welcome(welcome) = &message {
            self.seen.proof = Some(welcome.proof);
        }
        if self.seen != known {
            out.push(Output::Epoch(self.seen));
        }
        match (message, &self.session) {
            (_, Session::Away) => {}
            (ToAgent::Goodbye { restarting, reason }, _) => {
                out.push(Output::Leave(Leave::Goodbye { restarting, reason }));
            }
            (ToAgent::NotLeader(addresses), _) => {
                let addresses = addresses.iter().map(|address| address.as_str().to_owned()).collect();
                out.push(Output::Leave(Leave::NotLeader(addresses)));
            }
            (ToAgent::Welcome(welcome), &Session::Greeting { sent, draining }) => {
                self.welcome(welcome, sent, now, out);
                if self.draining != draining {
                    out.push(Output::Send(FromAgent::Draining(self.draining)));
                }
            }
            (_, Session::Greeting { .. }) => {
                out.push(Output::Leave(Leave::Protocol("something came before Welcome")));
            }
            (ToAgent::Welcome(_), Session::Live(_)) => {
                out.push(Output::Leave(Leave::Protocol("a second Welcome")));
            }
            (message, Session::Live(_)) => self.live(epoch, message, now, out),
        }
    }

    fn journal(&mut self, record: Record, out: &mut Vec<Output>) {
        let attempt = record.attempt();
        match record {
            Record::Assigned { .. } => {
                if !self.spent.contains(attempt) {
                    self.held.entry(attempt).or_default();
                }
            }
            Record::Settled(_) => {
                if self.held.remove(&attempt).is_some() {
                    self.spent.add(attempt);
                }
            }
            Record::Started(started) => {
                if let Some(held) = self.held.get_mut(&attempt) {
                    held.started = Some(started.at);
                }
            }
            Record::Ended { outcome, .. } => {
                if let Some(held) = self.held.get_mut(&attempt) {
                    held.outcome = Some(outcome);
                }
            }
            Record::Block(_) => {}
        }
        self.report(attempt, out);
    }

    /// Says of an attempt what this session hasn't heard yet.
    fn report(&mut self, attempt: AttemptId, out: &mut Vec<Output>) {
        if matches!(self.session, Session::Live(_))
            && let Some(held) = self.held.get_mut(&attempt)
        {
            out.extend(held.report(attempt).into_iter().map(Output::Send));
        }
    }
}
