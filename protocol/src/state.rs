//! What can become of pack runs, job runs and attempts, in the words that users see.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::time::Timestamp;
use crate::{lean, limit};

macro_rules! states {
    ($($(#[$doc:meta])+ $name:ident { $($(#[$state_doc:meta])+ $state:ident = $text:literal $($terminal:ident)?,)+ })+) => {$(
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$state_doc])+ $state,)+ }

        impl $name {
            /// All states, in the order of a life.
            pub const ALL: &[Self] = &[$(Self::$state,)+];

            /// The state's name in text and JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$state => $text,)+ }
            }

            /// Whether this is an end that nothing changes any more.
            #[must_use]
            pub const fn is_terminal(self) -> bool {
                match self { $(Self::$state => states!(@terminal $($terminal)?),)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    )+};
    (@terminal end) => { true };
    (@terminal) => { false };
}

states! {
    /// The state of a pack run.
    PackRunState {
        /// Nothing has been assigned yet.
        Pending = "pending",
        /// At least one job run has been assigned.
        Running = "running",
        /// No job run failed.
        Completed = "completed" end,
        /// Some failed and some succeeded.
        PartiallyFailed = "partially_failed" end,
        /// Some failed and none succeeded.
        Failed = "failed" end,
        /// Someone canceled it.
        Canceled = "canceled" end,
    }

    /// The state of a job run.
    JobRunState {
        /// It waits for what it needs.
        Blocked = "blocked",
        /// It waits for an agent, or for the backoff before its next attempt.
        Queued = "queued",
        /// An agent has been told to start it.
        Assigned = "assigned",
        /// Its process runs.
        Running = "running",
        /// It ended well.
        Succeeded = "succeeded" end,
        /// It ended with another exit code than 0, by a signal, or without having started.
        Failed = "failed" end,
        /// It was stopped for running longer than its timeout.
        TimedOut = "timed_out" end,
        /// Someone canceled it or its pack run.
        Canceled = "canceled" end,
        /// Its `when` did not hold, or something it needs was skipped.
        Skipped = "skipped" end,
        /// Its agent is gone and no attempts are left.
        Lost = "lost" end,
    }

    /// The state of one attempt at a job run.
    AttemptState {
        /// Its agent has been told to start it.
        Assigned = "assigned",
        /// Its process runs.
        Running = "running",
        /// It ended well.
        Succeeded = "succeeded" end,
        /// It ended with another exit code than 0, by a signal, or without having started.
        Failed = "failed" end,
        /// It was stopped for running longer than its timeout.
        TimedOut = "timed_out" end,
        /// Someone canceled it.
        Canceled = "canceled" end,
        /// Its agent was away for longer than the lease, or lost it with its own executor.
        Lost = "lost" end,
    }
}

/// How an attempt's main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code, 0 to 255.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What an agent says of an attempt's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The main process exited with code 0, and all artifacts were kept.
    Succeeded,
    /// Anything else that is not one of the following.
    Failed,
    /// It ran longer than its timeout.
    TimedOut,
    /// It was stopped because the coordinator said so.
    Canceled,
    /// The agent can't say: what executed it was killed, and so was it.
    Lost,
}

impl From<Verdict> for AttemptState {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Succeeded => Self::Succeeded,
            Verdict::Failed => Self::Failed,
            Verdict::TimedOut => Self::TimedOut,
            Verdict::Canceled => Self::Canceled,
            Verdict::Lost => Self::Lost,
        }
    }
}

/// Why something ended or waits, in words for people: at most [`limit::REASON_BYTES_MAX`] bytes in one line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Reason(String);

impl Reason {
    /// The reason in these words: control characters become spaces, and what is too long is cut with `…`.
    #[must_use]
    pub fn new(words: &str) -> Self {
        let mut text = String::with_capacity(words.len().min(limit::REASON_BYTES_MAX));
        for c in words.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if text.len() + c.len_utf8() + '…'.len_utf8() > limit::REASON_BYTES_MAX {
                text.push('…');
                break;
            }
            text.push(c);
        }
        Self(text)
    }

    /// The words.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = lean::text(deserializer)?;
        if text.len() > limit::REASON_BYTES_MAX || text.contains(char::is_control) {
            return Err(D::Error::custom("a reason takes at most 1024 bytes without control characters"));
        }
        Ok(Self(text))
    }
}

/// The end of an attempt as its agent saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// How its main process ended; `None` when there was none.
    pub exit: Option<ExitStatus>,
    /// Why, unless the exit status says it all.
    pub reason: Option<Reason>,
    /// When it ended, by the agent's clock.
    pub ended_at: Timestamp,
    /// How long the main process ran, by a monotonic clock.
    pub ran_for: Duration,
    /// How many log entries it left: the sequence number after the last one.
    pub entries: u64,
    /// How many artifacts it left.
    pub artifacts: u32,
    /// How many bytes of its output are no UTF-8; those of an attempt that was lost are not counted.
    pub invalid_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_called_the_same_in_text_and_json() {
        for state in JobRunState::ALL {
            assert_eq!(serde_json::to_string(state).unwrap(), format!("\"{state}\""));
        }
        for state in PackRunState::ALL {
            assert_eq!(serde_json::to_string(state).unwrap(), format!("\"{state}\""));
        }
        for state in AttemptState::ALL {
            assert_eq!(serde_json::to_string(state).unwrap(), format!("\"{state}\""));
        }
    }

    #[test]
    fn the_ends_are_those_of_the_contract() {
        let ends = |states: &[JobRunState]| {
            states.iter().filter(|s| s.is_terminal()).map(|s| s.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(
            ends(JobRunState::ALL),
            ["succeeded", "failed", "timed_out", "canceled", "skipped", "lost"]
        );
        let ends: Vec<_> = PackRunState::ALL.iter().filter(|s| s.is_terminal()).map(|s| s.as_str()).collect();
        assert_eq!(ends, ["completed", "partially_failed", "failed", "canceled"]);
    }

    #[test]
    fn a_reason_is_cut_and_cleaned_where_it_is_made_and_refused_where_it_is_read() {
        assert_eq!(Reason::new("no\nsuch\tfile").as_str(), "no such file");
        let cut = Reason::new(&"ä".repeat(1000));
        assert!(cut.as_str().len() <= limit::REASON_BYTES_MAX && cut.as_str().ends_with("ä…"));
        assert_eq!(serde_json::from_str::<Reason>(&serde_json::to_string(&cut).unwrap()).unwrap(), cut);
        assert!(serde_json::from_str::<Reason>(&format!("\"{}\"", "a".repeat(1025))).is_err());
        assert!(serde_json::from_str::<Reason>(r#""a\u0007""#).is_err());
    }
}
