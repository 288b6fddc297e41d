//! When a new certificate is asked for: at its time, again while no answer comes, and anew in a new session, since
//! the answer may have been lost with the one before. What nobody asked for is not taken.

use std::time::Duration;

use packrun_protocol::time::Timestamp;

/// A certificate that will be too old. All times are of the wall clock: it ages while the host sleeps.
#[derive(Debug)]
pub(super) struct Renewal {
    at: Timestamp,
    again: Duration,
    /// When it is to be asked for next, if it was in this session.
    next: Option<Timestamp>,
}

impl Renewal {
    /// One that is due at `at`, and asked for again after `again`.
    pub(super) fn new(at: Timestamp, again: Duration) -> Self {
        Self { at, again, next: None }
    }

    /// Whether to ask now, which is then taken to be done.
    pub(super) fn ask(&mut self, now: Timestamp) -> bool {
        let due = self.next.unwrap_or(self.at) <= now;
        if due {
            self.next = Some(now + self.again);
        }
        due
    }

    /// Whether it was asked for in this session.
    pub(super) fn is_asked(&self) -> bool {
        self.next.is_some()
    }

    /// The session is over, and an answer with it.
    pub(super) fn forget_session(&mut self) {
        self.next = None;
    }
}
