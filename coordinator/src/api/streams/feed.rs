//! The order of a pack run's stream: its log blocks by arrival and its changes by number, merged. Pure: the caller
//! does what [`Feed::step`] says and tells what came of it.
//!
//! Both kinds keep their own order, so two numbers say what was sent, whatever was sent between what: a [`Place`]
//! is a cursor. What the merge decides is only how the two interleave:
//!
//! 1. A block goes when all changes that were committed before it was read have gone, or wait by rule 2.
//! 2. The end of an attempt waits until its log has ended and is sent; so does all behind that change.
//! 3. The pack run's end waits until the whole log is sent.
//!
//! So a job's `running` comes before its first entry, for it is committed before that is readable, and its end
//! after its last.
//!
//! It never hangs. What waits by rule 2 or 3 waits for blocks that were readable when the change was committed, or
//! for the end of a log; neither waits for the client. A block waits for nothing but reads of the store. It would
//! break the first promise only where its own `running` waits behind another attempt's end. That end was then
//! committed before it, and an agent reports an end only after its last block is readable: so the block that it
//! waits for arrived earlier and was sent. The exception is an attempt that was given up without its agent, whose
//! blocks may come until its log is sealed. There the `running` goes first, with all before it: entries that come
//! after their attempt was given up may come behind its end.

use std::collections::{HashSet, VecDeque};

use packrun_protocol::id::AttemptId;

/// A place in a stream: what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Place {
    /// Arrival number of a block.
    pub(super) block: u64,
    /// Which of its entries, from 0.
    pub(super) entry: u32,
    /// Number of a change.
    pub(super) change: u64,
}

/// What a change is to the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The end of an attempt, or of a job run after it.
    End(AttemptId),
    /// The end of the pack run.
    Last,
    /// Anything else.
    Other,
    /// The start of an attempt.
    Start(AttemptId),
}

/// A change of the pack run.
#[derive(Debug, Clone)]
pub(super) struct Change<T> {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) body: T,
}

/// What the log has at the place.
#[derive(Debug)]
pub(super) enum Log<B> {
    /// A block, the next.
    Block { attempt: AttemptId, arrival: u64, body: B },
    /// Nothing, and nothing will come.
    Over,
    /// Nothing yet.
    Waits,
}

/// How an attempt's log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogEnd {
    /// More may come.
    Open,
    /// Nothing comes from this arrival number on.
    Before(u64),
}

/// What the caller has to do.
#[derive(Debug)]
pub(super) enum Step<T, B> {
    /// Send a block's entries, from this place on.
    Block(Place, B),
    /// Send a change, behind which this is the place.
    Change(Place, T),
    /// All is sent.
    End,
    /// Tell [`Feed::log_end`] how the log of an attempt stands, as of now.
    FindLogEnd(AttemptId),
    /// Tell [`Feed::start_found`] whether the start of `attempt` is among the changes from `from` on, as of now.
    /// It can't be if the agent of `ended` has reported its end.
    FindStart { attempt: AttemptId, ended: AttemptId, from: u64 },
    /// Tell [`Feed::changes`] the changes from `from` on, as of now.
    ReadChanges { from: u64 },
    /// Tell [`Feed::log`] what the log has next.
    ReadLog,
    /// Wait until the log has grown or is over, something was committed, or this attempt's log is sealed; then
    /// call [`Feed::wake`].
    Wait { sealed: Option<AttemptId> },
}

/// The merge, at a place.
#[derive(Debug)]
pub(super) struct Feed<T, B> {
    place: Place,
    /// What the log has next; `None` when that is to be read.
    log: Option<Log<B>>,
    /// Changes that were read and not sent.
    changes: VecDeque<Change<T>>,
    /// Whether nothing is behind those that was committed before the log was read.
    all_read: bool,
    /// Of the attempt that the first change ends.
    log_end: Option<LogEnd>,
    /// The first change has to go although it should wait.
    pushed: bool,
    /// Attempts whose start was sent and whose end was not.
    started: HashSet<AttemptId>,
    is_over: bool,
}

impl<T, B> Feed<T, B> {
    /// The feed from `place` on; nothing is left of one that `is_over`.
    pub(super) fn new(place: Place, is_over: bool) -> Self {
        Self {
            place,
            log: None,
            changes: VecDeque::new(),
            all_read: false,
            log_end: None,
            pushed: false,
            started: HashSet::new(),
            is_over,
        }
    }

    /// What is next.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// What to do next.
    pub(super) fn step(&mut self) -> Step<T, B> {
        if self.is_over {
            return Step::End;
        }
        let Some(log) = &self.log else { return Step::ReadLog };
        let held = match self.changes.front().map(|change| change.kind) {
            None if !self.all_read => return Step::ReadChanges { from: self.place.change },
            None => None,
            Some(Kind::Other | Kind::Start(_)) => return self.send_change(),
            Some(_) if self.pushed || matches!(log, Log::Over) => return self.send_change(),
            Some(Kind::Last) => None,
            Some(Kind::End(attempt)) => match self.log_end {
                None => return Step::FindLogEnd(attempt),
                Some(LogEnd::Before(next)) if next <= self.place.block => return self.send_change(),
                Some(_) => Some(attempt),
            },
        };
        match (log, held) {
            (Log::Block { attempt, .. }, Some(ended)) if !self.started.contains(attempt) => {
                Step::FindStart { attempt: *attempt, ended, from: self.place.change }
            }
            (Log::Block { .. }, _) => self.send_block(),
            (Log::Over | Log::Waits, _) => Step::Wait { sealed: held },
        }
    }

    /// What [`Step::ReadLog`] asks for.
    pub(super) fn log(&mut self, log: Log<B>) {
        self.log = Some(log);
        self.all_read = false;
        self.log_end.take_if(|end| *end == LogEnd::Open);
    }

    /// What [`Step::ReadChanges`] asks for: as many as the caller likes, and whether those are all.
    pub(super) fn changes(&mut self, changes: impl IntoIterator<Item = Change<T>>, all: bool) {
        self.changes.extend(changes);
        self.all_read = all;
    }

    /// What [`Step::FindLogEnd`] asks for.
    pub(super) fn log_end(&mut self, end: LogEnd) {
        self.log_end = Some(end);
    }

    /// What [`Step::FindStart`] asks for.
    pub(super) fn start_found(&mut self, attempt: AttemptId, found: bool) {
        if found {
            self.pushed = true;
        } else {
            self.started.insert(attempt);
        }
    }

    /// Something has happened since [`Step::Wait`].
    pub(super) fn wake(&mut self) {
        self.log.take_if(|log| !matches!(log, Log::Block { .. }));
        self.all_read = false;
        self.log_end.take_if(|end| *end == LogEnd::Open);
    }

    fn send_change(&mut self) -> Step<T, B> {
        let Some(change) = self.changes.pop_front() else {
            return Step::ReadChanges { from: self.place.change };
        };
        (self.log_end, self.pushed) = (None, false);
        self.place.change = change.number.saturating_add(1);
        match change.kind {
            Kind::End(attempt) => drop(self.started.remove(&attempt)),
            Kind::Last => self.is_over = true,
            Kind::Other => {}
            Kind::Start(attempt) => drop(self.started.insert(attempt)),
        }
        Step::Change(self.place, change.body)
    }

    fn send_block(&mut self) -> Step<T, B> {
        let Some(Log::Block { arrival, body, .. }) = self.log.take() else { return Step::ReadLog };
        let entry = if arrival == self.place.block { self.place.entry } else { 0 };
        let from = Place { block: arrival, entry, ..self.place };
        self.place = Place { block: arrival.saturating_add(1), entry: 0, ..self.place };
        Step::Block(from, body)
    }
}

#[cfg(test)]
mod tests;
