//! The coordinator's QUIC side: who may connect, what agents say and send, and what they are told.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `identity`, `secret` | the CA, certificates by it, and what is derived from its key |
//! | `accept`, `gate`, `admission` | handshakes: how many, and whose |
//! | `enrol` | a join token for a certificate |
//! | `seats` | one session per agent |
//! | `session` | the control stream, between the agent and the engine |
//! | `log_stream` | blocks to the log |
//! | `artifact_stream` | files that attempts leave |
//! | `inputs`, `download` | files that attempts want |
//! | `reset` | the end of connections to a coordinator that was killed |
//! | `log_keeper` | logs of attempts that ended without their agent |
//!
//! Invariants:
//! - Nothing that a peer sends ends, blocks or fills the coordinator: whoever breaks the protocol is closed with a
//!   code and a reason, whoever sends too much waits, and the rest of the fleet doesn't notice.
//! - An attempt's streams are taken only from the session that holds it.
//! - An attempt's end reaches the engine after its log is on the disk.
//! - A coordinator that is shown a higher epoch than its own, and the proof that there was one, commands nobody any
//!   more. An agent that shows no proof is turned away.

mod accept;
mod admission;
mod artifact_stream;
mod download;
mod enrol;
mod gate;
mod identity;
mod inputs;
mod log_keeper;
mod log_stream;
mod reset;
mod seats;
mod secret;
mod session;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::cert::CertError;
use packrun_protocol::control::ApiUrl;
use packrun_protocol::id::{AgentId, Epoch};
use packrun_protocol::quic::{ServerIdentity, TlsError, server_config};
use packrun_protocol::time::{Clock, Timestamp};
use quinn::Endpoint;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use identity::{Identity, IdentityError};

use crate::artifacts::ArtifactStore;
use crate::core::Core;
use crate::crowd::Crowd;
use crate::engine::{EngineError, Handle};
use crate::logs::LogStore;
use accept::Acceptor;
use admission::Revoked;
use gate::{Gate, SharedRate};
use seats::Seats;

/// How long an agent's certificate is valid, unless it is said.
pub const CERTIFICATE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long what is under way gets to end when the fleet stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Reads of the store for inputs that may be under way at once.
const READS_MAX: usize = 8;

/// What can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen, UDP.
    pub listen: SocketAddr,
    /// Where agents and their jobs are told that the API is.
    pub api: ApiUrl,
    /// How often agents ping.
    pub heartbeat: Duration,
    /// How long an agent's certificate is valid.
    pub certificate: Duration,
    /// How much is allowed.
    pub limits: Limits,
}

impl Settings {
    /// The defaults: a ping every four seconds, certificates of a week.
    #[must_use]
    pub fn new(listen: SocketAddr, api: ApiUrl) -> Self {
        Self {
            listen,
            api,
            heartbeat: Duration::from_secs(4),
            certificate: CERTIFICATE,
            limits: Limits::default(),
        }
    }
}

/// How much is allowed, all told or to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one address (of IPv6: one /64).
    pub connections_per_address: usize,
    /// Handshakes that may be under way at once, a quarter of them of one address.
    pub handshakes_under_way: usize,
    /// Handshakes begun a second; twice as many may come at once. A quarter of that of one address.
    pub handshakes_per_second: u32,
    /// Enrolments tried a second; ten times as many may come at once. A quarter of that of one address.
    pub enrolments_per_second: u32,
    /// Time for a handshake, and for a peer's first words on a connection or a stream.
    pub greeting: Duration,
    /// Time that a peer may be silent in the middle of something, or not take what it is sent.
    pub silence: Duration,
    /// Files that one agent may send at once; further ones wait.
    pub uploads_per_agent: usize,
    /// Files and lists of files that one agent may fetch at once; further ones wait.
    pub downloads_per_agent: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_address: 4096,
            handshakes_under_way: 256,
            handshakes_per_second: 500,
            enrolments_per_second: 10,
            greeting: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            uploads_per_agent: 16,
            downloads_per_agent: 16,
        }
    }
}

/// Why the fleet's side could not be started.
#[derive(Debug, Error)]
pub enum FleetError {
    /// The address can't be had.
    #[error("cannot listen for agents on UDP {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The coordinator's certificate can't be made.
    #[error("cannot make the coordinator's certificate")]
    Certificate(#[from] CertError),
    /// The certificates don't go together.
    #[error("cannot set up TLS for agents")]
    Tls(#[from] TlsError),
    /// The engine does not run.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Whether this coordinator commands its agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// It does.
    Leads,
    /// An agent has reported to a coordinator of a higher epoch: this one runs on an old copy of the data, as a
    /// restored backup, and has let go of all agents. It must be stopped.
    SteppedDown {
        /// Its own epoch.
        ours: Epoch,
        /// The higher one.
        theirs: Epoch,
        /// The agent that said so.
        agent: AgentId,
    },
}

/// How much goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Connections, those that are still shaking hands among them.
    pub connections: usize,
    /// Handshakes under way.
    pub handshakes: usize,
    /// Agents with a session.
    pub sessions: usize,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    identity: Identity,
    engine: Handle,
    logs: LogStore,
    artifacts: ArtifactStore,
    clock: Clock,
    epoch: Epoch,
    lease: Duration,
    gate: Gate,
    enrolments: std::sync::Mutex<SharedRate>,
    revoked: Arc<Revoked>,
    /// The connections of agents that have no session yet.
    lobby: Crowd<AgentId>,
    seats: Seats,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
    reads: Arc<Semaphore>,
}

impl Shared {
    /// Lets go of all agents for good.
    fn step_down(&self, theirs: Epoch, agent: AgentId) {
        let ours = self.epoch;
        tracing::error!(
            %ours, %theirs, %agent,
            "an agent has reported to a later coordinator: this one runs on old data and steps down; stop it"
        );
        self.leadership.send_if_modified(|leadership| {
            let news = *leadership == Leadership::Leads;
            if news {
                *leadership = Leadership::SteppedDown { ours, theirs, agent };
            }
            news
        });
    }

    /// Returns once this coordinator doesn't command any more.
    async fn stepped_down(&self) {
        // The sender is in `self`: this ends by the value alone.
        let _ = self.leadership.subscribe().wait_for(|leadership| *leadership != Leadership::Leads).await;
    }
}

/// The coordinator's QUIC side at work. It goes on until [`Fleet::stop`]; when this is dropped, connections are cut.
#[derive(Debug)]
pub struct Fleet {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    keeper: JoinHandle<()>,
}

/// Begins to listen for agents.
///
/// # Errors
/// When the address can't be had, the certificates are of no use, or the engine does not run.
pub async fn start(
    settings: Settings,
    identity: Identity,
    engine: Handle,
    logs: LogStore,
    artifacts: ArtifactStore,
    clock: Clock,
) -> Result<Fleet, FleetError> {
    let look = |core: &Core| (core.epoch(), core.config().lease, Revoked::of(core));
    let (epoch, lease, revoked) = engine.look(look).await?;
    let limits = settings.limits;
    let handshakes = SharedRate::new(limits.handshakes_per_second, Duration::from_secs(2));
    let shared = Arc::new(Shared {
        gate: Gate::new(handshakes, limits.handshakes_under_way, limits.connections_per_address),
        enrolments: SharedRate::new(limits.enrolments_per_second, Duration::from_secs(10)).into(),
        revoked: Arc::new(revoked),
        lobby: Crowd::new(usize::MAX, session::WAITING_MAX),
        seats: Seats::default(),
        leadership: watch::Sender::new(Leadership::Leads),
        stop: CancellationToken::new(),
        reads: Arc::new(Semaphore::new(READS_MAX)),
        settings,
        identity,
        engine,
        logs,
        artifacts,
        clock,
        epoch,
        lease,
    });
    let (acceptor, address) = Acceptor::open(shared.clone())?;
    let keeper = tokio::spawn(log_keeper::run(shared.clone()));
    let acceptor = Some(tokio::spawn(acceptor.run()));
    Ok(Fleet { address, shared, acceptor, keeper })
}

impl Fleet {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// How much goes on.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let (connections, handshakes) = self.shared.gate.count();
        Gauges { connections, handshakes, sessions: self.shared.seats.count() }
    }

    /// Whether this coordinator commands its agents.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    /// Tells all agents that the coordinator stops and may be back soon, and closes their connections. The engine
    /// is stopped after this.
    pub async fn stop(mut self) {
        self.shared.stop.cancel();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in it was reported when it happened.
            let _ = acceptor.await;
        }
        // It ends after what it is at, unless a disk doesn't let it; what it leaves is done at the next start.
        if timeout(STOP_TIME, &mut self.keeper).await.is_err() {
            tracing::warn!("the logs of some attempts that ended could not be kept yet");
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.keeper.abort();
    }
}

/// The endpoint's configuration with a new certificate, and when to make the next.
fn endpoint_config(shared: &Shared) -> Result<(quinn::ServerConfig, Timestamp), FleetError> {
    let (own, renew_at) = shared.identity.issue_own()?;
    let server = ServerIdentity { identity: &own, ca_pem: shared.identity.ca_pem() };
    Ok((server_config(&server, shared.revoked.clone())?, renew_at))
}

/// An endpoint on `address` with this configuration.
fn listen(shared: &Shared, config: quinn::ServerConfig, address: SocketAddr) -> Result<Endpoint, FleetError> {
    let endpoint = shared.identity.reset_key().endpoint(shared.clock.now());
    UdpSocket::bind(address)
        .and_then(|socket| Endpoint::new(endpoint, Some(config), socket, Arc::new(quinn::TokioRuntime)))
        .map_err(|source| FleetError::Listen { address, source })
}

#[cfg(test)]
mod tests;
