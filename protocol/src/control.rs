//! Messages of the control stream, the one bidirectional stream that an agent opens first. After
//! [`StreamHeader::Control`](crate::stream::StreamHeader) the agent sends [`FromAgent`], the coordinator answers
//! [`ToAgent`]; the first of each are `Hello` and `Welcome`.
//!
//! The encoding is positional: a field or variant is only ever added at the end, and only sent to a peer whose
//! `minor` knows it. Golden bytes in `tests/golden.rs` hold every message to that.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, BoundedText};
use crate::id::{AgentId, AttemptId, Epoch, EpochProof, PackRunId};
use crate::job::Definition;
use crate::name::{JobKey, Labels, Name};
use crate::state::{Outcome, Reason};
use crate::time::{ClockOffset, Timestamp};
use crate::{lean, limit};

/// The minor version of the protocol that this build speaks. The lower of both sides' is spoken.
pub const MINOR: u32 = 0;

/// PEM text of a certificate, a chain of them, or a certificate request.
pub type Pem = BoundedText<{ limit::CERTIFICATE_BYTES_MAX }>;

/// The URL of the coordinator's API as people and programs dial it, without a slash at its end.
pub type ApiUrl = BoundedText<{ limit::API_URL_BYTES_MAX }>;

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest minor version that the agent speaks.
    pub minor: u32,
    /// The version of its build, for people.
    pub version: BoundedText<64>,
    /// The labels that its configuration gives it. Those granted with its identity are not among them.
    pub labels: Labels,
    /// What it can take on.
    pub capacity: Capacity,
    /// Whether it takes no new attempts for now.
    pub draining: bool,
    /// The highest epoch of a coordinator that it has reported to; a coordinator of a lower one steps down.
    pub epoch: Epoch,
    /// All attempts that its journal holds. The coordinator says of each whether it goes on.
    pub attempts: Bounded<HeldAttempt, { limit::HELD_ATTEMPTS_MAX }>,
    /// What came with that epoch: a higher one than the coordinator's own counts only with it.
    pub proof: Option<EpochProof>,
    /// How its host keeps attempts apart.
    pub isolation: Isolation,
}

/// How a host keeps attempts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Each attempt has a cgroup; only who may write to the host's cgroups gets out of it.
    Cgroup,
    /// Strays are found among the orphans.
    #[default]
    Subreaper,
}

/// How much an agent takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// How many attempts.
    pub slots: Slots,
    /// Thousandths of processors.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// How many attempts an agent takes at once: 1 to [`limit::SLOTS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Slots(u32);

/// A number of slots that no agent can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} slots are outside the range of 1 to {max}", max = limit::SLOTS_MAX)]
pub struct SlotsError(u32);

impl TryFrom<u32> for Slots {
    type Error = SlotsError;

    fn try_from(slots: u32) -> Result<Self, SlotsError> {
        if (1..=limit::SLOTS_MAX).contains(&slots) { Ok(Self(slots)) } else { Err(SlotsError(slots)) }
    }
}

impl From<Slots> for u32 {
    fn from(slots: Slots) -> Self {
        slots.0
    }
}

/// An attempt in an agent's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// How far it is.
    pub phase: HeldPhase,
}

/// How far an attempt is that an agent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldPhase {
    /// It was received and not started.
    Assigned,
    /// Its main process was started then, by the agent's clock.
    Running(Timestamp),
    /// It ended; its outcome follows as [`FromAgent::Ended`] if it goes on.
    Ended,
}

/// What an agent sends on its control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The first message, and only that.
    Hello(Hello),
    /// The main process of an attempt was started.
    Started {
        /// Which.
        attempt: AttemptId,
        /// When, by the agent's clock.
        at: Timestamp,
    },
    /// An attempt ended: its log and artifacts are complete. Repeated until it is settled.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// To what.
        outcome: Outcome,
    },
    /// A heartbeat and a sample of the clocks, answered at once.
    Ping(Ping),
    /// A request to renew the agent's certificate with its key.
    Renew(Pem),
    /// The agent takes no new attempts from now on, or does so again.
    Draining(bool),
}

/// A heartbeat of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// When it was sent, by the agent's clock; the answer repeats it.
    pub sent: Timestamp,
    /// How far the coordinator's clock is ahead of the agent's, after the samples so far.
    pub offset: Option<ClockOffset>,
}

/// A frame of the coordinator. An agent refuses one of a lower epoch than the highest it has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromCoordinator {
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// What it says.
    pub message: ToAgent,
}

/// What the coordinator sends on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The answer to `Hello`.
    Welcome(Welcome),
    /// Attempts to start, in this order.
    Assign(#[serde(deserialize_with = "lean::list")] Vec<Assignment>),
    /// An attempt to stop: SIGTERM, the grace time, SIGKILL. Its end is reported as usual.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// Why, for its outcome.
        reason: Reason,
    },
    /// An attempt that is the agent's no longer: stop it, report nothing.
    Fence(AttemptId),
    /// Attempts whose end is recorded: the agent forgets them.
    Settled(#[serde(deserialize_with = "lean::list")] Vec<AttemptId>),
    /// Per attempt the number of the first log entry that is not yet safe: all before it may be forgotten.
    LogAck(#[serde(deserialize_with = "lean::list")] Vec<(AttemptId, u64)>),
    /// The answer to a ping.
    Pong {
        /// When the ping was sent, by the agent's clock.
        sent: Timestamp,
        /// When it was answered, by the coordinator's clock.
        answered: Timestamp,
    },
    /// The renewed certificate.
    Certificate(Pem),
    /// Take no new attempts, or take them again.
    Drain(bool),
    /// The coordinator stops; it may come back soon.
    Goodbye {
        /// Whether a successor is expected at once.
        restarting: bool,
        /// Why, for the agent's log.
        reason: Reason,
    },
    /// This coordinator may not command: another one does, at one of these addresses (`host:port`).
    NotLeader(Bounded<BoundedText<262>, 16>),
}

/// The coordinator's answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The minor version that both sides speak from here on.
    pub minor: u32,
    /// Who the agent is.
    pub agent: AgentId,
    /// What it is called.
    pub name: Name,
    /// How long the agent may be away before its attempts are given to others.
    pub lease: Duration,
    /// How often the agent should ping.
    pub heartbeat: Duration,
    /// Where jobs and those who read their logs find the API.
    pub api: ApiUrl,
    /// What becomes of each attempt that `Hello` reported, in its order.
    pub attempts: Bounded<(AttemptId, HeldAnswer), { limit::HELD_ATTEMPTS_MAX }>,
    /// For the agent to keep with the coordinator's epoch, and to show with it.
    pub proof: EpochProof,
    /// Those of its own labels that don't count, since their keys are granted by invitations and not to this agent.
    pub refused: Labels,
}

/// What becomes of an attempt that an agent held when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldAnswer {
    /// It goes on. The log stream starts at this entry.
    GoOn {
        /// The number of the first entry that the coordinator lacks.
        log_from: u64,
    },
    /// It is the agent's no longer: stop it, report nothing, forget it.
    Fenced,
    /// Its end is recorded: forget it.
    Settled,
}

/// An attempt to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which.
    pub attempt: AttemptId,
    /// The pack run it belongs to.
    pub pack_run: PackRunId,
    /// The pack.
    pub pack: Name,
    /// The pack's version.
    pub version: u32,
    /// The job run's key.
    pub key: JobKey,
    /// What to do.
    pub definition: Arc<Definition>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn slots_have_a_range() {
        for (slots, fits) in [(0, false), (1, true), (limit::SLOTS_MAX, true), (limit::SLOTS_MAX + 1, false)]
        {
            assert_eq!(Slots::try_from(slots).is_ok(), fits, "{slots}");
            assert_eq!(codec::decode::<Slots>(&codec::encode(&slots).unwrap()).is_ok(), fits, "{slots}");
        }
        let refused = Slots::try_from(limit::SLOTS_MAX + 1).unwrap_err().to_string();
        assert_eq!(refused, "4097 slots are outside the range of 1 to 4096");
    }
}
