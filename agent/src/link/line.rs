//! The way to a coordinator: waiting, dialing, or a connection with its streams.

use std::collections::HashMap;
use std::time::Duration;

use packrun_protocol::control::FromCoordinator;
use packrun_protocol::id::AttemptId;
use packrun_protocol::quic::{ReadError, close};
use packrun_protocol::stream::CloseCode;
use quinn::ClientConfig;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::control::Control;
use super::dial::{Addresses, DialError, Dialed, dial};
use super::journal::Reader;
use super::log_stream;
use super::machine::Leave;

/// How long is waited for the last packets to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where the way to a coordinator is.
pub(super) enum Line {
    Waiting(Instant),
    Dialing(JoinSet<Result<Session, DialError>>),
    Up(Box<Session>),
}

/// A connection with its streams. All of them end when it is dropped.
pub(super) struct Session {
    pub(super) dialed: Dialed,
    pub(super) control: Control,
    logs: JoinSet<()>,
    log_of: HashMap<AttemptId, AbortHandle>,
}

/// What the line has to say.
pub(super) enum Signal {
    /// It is time to dial.
    Due,
    Dialed(Result<Box<Session>, DialError>),
    Frame(Result<Box<FromCoordinator>, ReadError>),
}

impl Line {
    /// A line that dials after `wait`.
    pub(super) fn after(wait: Duration) -> Self {
        Self::Waiting(Instant::now() + wait)
    }

    /// A line that dials `address`, for as long as `limit`.
    pub(super) fn dial(address: String, config: ClientConfig, limit: Duration) -> Self {
        let mut dialing = JoinSet::new();
        dialing.spawn(async move {
            let dialed = dial(address.clone(), config, limit).await?;
            let opened = tokio::time::timeout(limit, async {
                match Control::open(&dialed.connection).await {
                    Ok(control) => Ok(control),
                    // Only a lost connection refuses a stream: why it is lost is known, or will be at once.
                    Err(_) => Err(dialed.connection.closed().await),
                }
            });
            match opened.await {
                Ok(Ok(control)) => {
                    Ok(Session { dialed, control, logs: JoinSet::new(), log_of: HashMap::new() })
                }
                Ok(Err(source)) => Err(DialError::Lost { address, source }),
                Err(_) => Err(DialError::Silent { address }),
            }
        });
        Self::Dialing(dialing)
    }

    /// What happens next.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Signal {
        match self {
            Self::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Signal::Due
            }
            Self::Dialing(dialing) => match dialing.join_next().await {
                Some(Ok(dialed)) => Signal::Dialed(dialed.map(Box::new)),
                // It failed in itself: that is no reason not to try again.
                Some(Err(_)) | None => Signal::Due,
            },
            Self::Up(session) => Signal::Frame(session.control.next().await.map(Box::new)),
        }
    }

    /// The session, if there is one.
    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match self {
            Self::Up(session) => Some(session),
            Self::Waiting(_) | Self::Dialing(_) => None,
        }
    }

    /// Leaves in good order, as far as the coordinator lets it.
    pub(super) async fn farewell(self) {
        if let Self::Up(session) = self {
            close(&session.dialed.connection, CloseCode::ShuttingDown, "the agent stops");
            let _ = tokio::time::timeout(FAREWELL, session.dialed.endpoint.wait_idle()).await;
        }
    }
}

impl Session {
    /// Sends the log of `attempt` from entry `from` on.
    pub(super) fn open_log(&mut self, reader: Reader, attempt: AttemptId, from: u64) {
        while self.logs.try_join_next().is_some() {}
        let connection = self.dialed.connection.clone();
        let task = self.logs.spawn(log_stream::send(connection, reader, attempt, from));
        self.log_of.insert(attempt, task);
    }

    /// Sends no more of it.
    pub(super) fn close_log(&mut self, attempt: AttemptId) {
        if let Some(task) = self.log_of.remove(&attempt) {
            task.abort();
        }
    }

    /// Closes the connection for this reason, and prepares where to go from here.
    pub(super) fn leave(&self, leave: Leave, addresses: &mut Addresses) {
        let (connection, address) = (&self.dialed.connection, &self.dialed.address);
        addresses.not_refused(address);
        match leave {
            Leave::Protocol(why) => {
                tracing::error!(address, why, "the coordinator broke the protocol");
                close(connection, CloseCode::Protocol, why);
            }
            Leave::LowerEpoch { epoch, highest } => {
                tracing::warn!(address, %epoch, %highest, "the coordinator was replaced by one of a higher epoch");
                close(
                    connection,
                    CloseCode::Protocol,
                    "the coordinator's epoch is lower than one seen before",
                );
            }
            Leave::Silent => {
                tracing::warn!(address, "the coordinator doesn't answer any more");
                close(connection, CloseCode::TimedOut, "no answer came");
            }
            Leave::Goodbye { restarting, reason } => {
                tracing::info!(address, restarting, %reason, "the coordinator stops");
                close(connection, CloseCode::Done, "");
                if restarting {
                    addresses.stay();
                }
            }
            Leave::NotLeader(leaders) => {
                tracing::info!(address, ?leaders, "another coordinator is the leader");
                close(connection, CloseCode::Done, "");
                addresses.hint(leaders);
            }
        }
    }
}
