//! The few small messages between the link and the executor's side. Besides them the two know each other by the
//! journal's files only, so that they can be two processes: every message can be encoded, and nothing in memory
//! is shared.
//!
//! Invariants: orders about an attempt that is not there are ignored, since the two cross; a request is answered
//! once, or its attempt is forgotten.

use std::path::PathBuf;

use packrun_protocol::control::{ApiUrl, Assignment};
use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::job::{ArtifactRule, InputRule};
use packrun_protocol::name::Name;
use packrun_protocol::state::{Outcome, Reason};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

/// How many orders wait at most.
pub const ORDERS_MAX: usize = 256;

/// How many requests wait at most. Those beyond wait with the keeper, at most one for each attempt.
pub const REQUESTS_MAX: usize = 64;

/// What the link says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Write the assignment down, then start it.
    Start {
        /// The epoch of the coordinator that assigned it.
        epoch: Epoch,
        /// What the coordinator calls the agent.
        agent: Name,
        /// Where the coordinator's API is.
        api: ApiUrl,
        /// What to start.
        assignment: Assignment,
    },
    /// Stop an attempt with grace; its end is recorded as usual.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// Why, for its outcome.
        reason: Reason,
    },
    /// Stop these at once if they still run, and forget them.
    Forget(Vec<AttemptId>),
    /// Per attempt the number of the first log entry that is not safe yet.
    LogAck(Vec<(AttemptId, u64)>),
    /// The answer to [`Request::Prepare`].
    Prepared(AttemptId, Result<(), Reason>),
    /// The answer to [`Request::Collect`].
    Collected {
        /// Whose files.
        attempt: AttemptId,
        /// How many were kept, or why not.
        result: Result<u32, Reason>,
        /// Remarks for the job's log, a line each.
        notes: Vec<String>,
    },
    /// The agent stops: end all attempts at once. Their ends are recorded, as lost with the agent.
    StopAll,
}

/// What the executor's side asks for or reports beside the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Put the inputs of an attempt into its workspace; answer with [`Order::Prepared`].
    Prepare {
        /// Whose.
        attempt: AttemptId,
        /// The folder.
        workspace: PathBuf,
        /// Which.
        inputs: Vec<InputRule>,
    },
    /// Keep the artifacts of an attempt; answer with [`Order::Collected`].
    Collect {
        /// Whose.
        attempt: AttemptId,
        /// The folder.
        workspace: PathBuf,
        /// Which.
        artifacts: Vec<ArtifactRule>,
    },
    /// An attempt ended and the journal can't say so.
    Failed {
        /// Which.
        attempt: AttemptId,
        /// To what.
        outcome: Outcome,
    },
}

impl Request {
    /// The attempt that it is about.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        match self {
            Self::Prepare { attempt, .. } | Self::Collect { attempt, .. } | Self::Failed { attempt, .. } => {
                *attempt
            }
        }
    }
}

/// The link's end.
#[derive(Debug)]
pub struct Port {
    /// To give orders. When all senders are dropped, the executor's side ends with all its attempts.
    pub orders: mpsc::Sender<Order>,
    /// What is asked for.
    pub requests: mpsc::Receiver<Request>,
    /// Changes whenever the journal has grown.
    pub grown: watch::Receiver<u64>,
}

/// The other end.
#[derive(Debug)]
pub struct Desk {
    /// What the link says.
    pub orders: mpsc::Receiver<Order>,
    /// To ask the link.
    pub requests: mpsc::Sender<Request>,
    /// To tell that the journal has grown.
    pub grown: watch::Sender<u64>,
}

/// Both ends of a connection within one process.
#[must_use]
pub fn pair() -> (Port, Desk) {
    let (orders, order_queue) = mpsc::channel(ORDERS_MAX);
    let (request_queue, requests) = mpsc::channel(REQUESTS_MAX);
    let (grow, grown) = watch::channel(0);
    (Port { orders, requests, grown }, Desk { orders: order_queue, requests: request_queue, grown: grow })
}
