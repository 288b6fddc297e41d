//! Getting through to a coordinator: the addresses in turn, the wait between two tries, and what a refusal means.

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use packrun_protocol::cert::COORDINATOR_NAME;
use packrun_protocol::state::Reason;
use packrun_protocol::stream::CloseCode;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use thiserror::Error;

/// How long is waited between two tries.
const RETRY: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(10);

/// How long a try may take, beside twice the wait before it. A coordinator that comes up hears a new try sooner than
/// the next packet of an old one; one that is far away gets more time from try to try.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Most addresses of a leader that are kept.
const HINTS_MAX: usize = 16;

/// Code of a connection that TLS ended: 0x100 and the alert (RFC 9001 §4.8).
const TLS_ALERT: Range<u64> = 0x100..0x200;

/// Alerts by which a server says that it will not have our certificate (RFC 8446 §6).
const ALERT_REVOKED: u64 = 44;
const ALERT_EXPIRED: u64 = 45;
const ALERTS_CERTIFICATE: [u64; 6] = [42, 43, 46, 48, 49, 116];

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The address can't be resolved.
    #[error("failed to resolve {address}: {why}")]
    Address {
        /// Which.
        address: String,
        /// Why.
        why: String,
    },
    /// This host gives no socket.
    #[error("failed to open a UDP socket")]
    Socket(#[source] std::io::Error),
    /// The configuration doesn't fit.
    #[error("failed to start a connection to {address}")]
    Start {
        /// To which address.
        address: String,
        /// Why.
        #[source]
        source: quinn::ConnectError,
    },
    /// Nobody answers, or not as a coordinator does.
    #[error("failed to connect to {address}")]
    Connect {
        /// To which address.
        address: String,
        /// Why.
        #[source]
        source: ConnectionError,
    },
    /// The connection was there and is lost again.
    #[error("the connection to {address} was lost at once")]
    Lost {
        /// To which address.
        address: String,
        /// Why.
        #[source]
        source: ConnectionError,
    },
    /// Somebody answers whom the agent doesn't believe.
    #[error(
        "whoever answers at {address} has another CA than the coordinator that this agent joined; if that is \
         right, join again with a token of this coordinator"
    )]
    Stranger {
        /// At which address.
        address: String,
        /// Why.
        #[source]
        source: ConnectionError,
    },
    /// Nobody answers in time.
    #[error("{address} doesn't answer")]
    Silent {
        /// Which address.
        address: String,
    },
}

/// A connection and the socket that it lives on.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
    pub(super) address: String,
}

/// Connects to `address`, `host:port`; of several that it resolves to, to the first that answers.
/// Each may take `limit`, and so may finding them.
///
/// # Errors
/// When none does.
pub(super) async fn dial(
    address: String,
    config: ClientConfig,
    limit: Duration,
) -> Result<Dialed, DialError> {
    let unresolved = |why: String| DialError::Address { address: address.clone(), why };
    let resolved = tokio::time::timeout(limit, tokio::net::lookup_host(&address)).await;
    let resolved: Vec<SocketAddr> = resolved
        .map_err(|_| unresolved("it takes too long".to_owned()))?
        .map_err(|error| unresolved(error.to_string()))?
        .collect();
    let mut last = unresolved("it has no address".to_owned());
    for socket in resolved {
        let local: SocketAddr = match socket {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = match Endpoint::client(local) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                last = DialError::Socket(error);
                continue;
            }
        };
        let connecting = match endpoint.connect_with(config.clone(), socket, COORDINATOR_NAME) {
            Ok(connecting) => connecting,
            Err(source) => {
                last = DialError::Start { address: address.clone(), source };
                continue;
            }
        };
        match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(connection)) => return Ok(Dialed { connection, endpoint, address }),
            Ok(Err(source)) if is_tls(&source) => {
                last = DialError::Stranger { address: address.clone(), source };
            }
            Ok(Err(source)) => last = DialError::Connect { address: address.clone(), source },
            Err(_) => last = DialError::Silent { address: address.clone() },
        }
    }
    Err(last)
}

impl DialError {
    /// Where nobody was reached; `None` when nobody was looked for.
    pub(super) fn address(&self) -> Option<&str> {
        match self {
            Self::Address { address, .. }
            | Self::Start { address, .. }
            | Self::Connect { address, .. }
            | Self::Lost { address, .. }
            | Self::Stranger { address, .. }
            | Self::Silent { address } => Some(address),
            Self::Socket(_) => None,
        }
    }

    /// Whether somebody answered whom the agent doesn't believe.
    #[must_use]
    pub fn is_stranger(&self) -> bool {
        matches!(self, Self::Stranger { .. })
    }
}

/// Whether TLS ended the handshake.
fn is_tls(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::TransportError(error) if TLS_ALERT.contains(&error.code.into()))
}

/// Why a coordinator doesn't let this agent in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Whether no other coordinator will either.
    pub(super) is_final: bool,
    /// Why, for people.
    pub(super) why: Reason,
}

/// What a lost connection says of that. Only a connection that was there may be asked: what comes before the end of
/// the handshake may come from anyone.
pub(super) fn refusal(error: &ConnectionError) -> Option<Refusal> {
    let refusal = |is_final, why: &str| Some(Refusal { is_final, why: Reason::new(why) });
    match error {
        ConnectionError::ConnectionClosed(close) => {
            match u64::from(close.error_code).checked_sub(TLS_ALERT.start)? {
                ALERT_REVOKED => refusal(true, "the agent was revoked"),
                ALERT_EXPIRED => {
                    refusal(true, "the agent's certificate has expired; join again with a new token")
                }
                alert if ALERTS_CERTIFICATE.contains(&alert) => refusal(
                    false,
                    "the agent's certificate is of another CA; join again with a token of this one",
                ),
                _ => None,
            }
        }
        ConnectionError::ApplicationClosed(close) => {
            let why = String::from_utf8_lossy(&close.reason);
            match CloseCode::from_wire(close.error_code.into())? {
                CloseCode::Revoked => refusal(true, &why),
                CloseCode::CertificateRequired => refusal(false, &why),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether another connection of the same agent took over.
pub(super) fn is_superseded(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close)
        if CloseCode::from_wire(close.error_code.into()) == Some(CloseCode::Superseded))
}

/// Waits that double, each shortened by chance by up to a half, so that many agents don't come back at once.
#[derive(Debug)]
pub(super) struct Backoff {
    bounds: Range<Duration>,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(bounds: Range<Duration>) -> Self {
        Self { next: bounds.start, bounds }
    }

    pub(super) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.bounds.end);
        jittered(wait)
    }

    pub(super) fn reset(&mut self) {
        self.next = self.bounds.start;
    }
}

/// Between a half and the whole of `wait`.
pub(super) fn jittered(wait: Duration) -> Duration {
    let share = getrandom::u32().unwrap_or(u32::MAX);
    wait / 2 + (wait / 2).mul_f64(f64::from(share) / f64::from(u32::MAX))
}

/// The coordinators' addresses, in turn, and when the next one is tried.
#[derive(Debug)]
pub(super) struct Addresses {
    given: VecDeque<String>,
    hints: VecDeque<String>,
    /// Where the agent was refused when it was there last.
    refused: BTreeSet<String>,
    backoff: Backoff,
    waited: Duration,
}

impl Addresses {
    pub(super) fn new(given: Vec<String>) -> Self {
        Self {
            given: given.into(),
            hints: VecDeque::new(),
            refused: BTreeSet::new(),
            backoff: Backoff::new(RETRY),
            waited: Duration::ZERO,
        }
    }

    /// Where to go next.
    pub(super) fn next(&mut self) -> Option<String> {
        self.hints.pop_front().or_else(|| {
            self.given.rotate_left(1);
            self.given.back().cloned()
        })
    }

    /// The next one is where we were: it comes back.
    pub(super) fn stay(&mut self) {
        self.given.rotate_right(1);
    }

    /// Somebody else says where the leader is.
    pub(super) fn hint(&mut self, addresses: Vec<String>) {
        self.hints = addresses.into_iter().take(HINTS_MAX).collect();
    }

    /// How long to wait before that.
    pub(super) fn wait(&mut self) -> Duration {
        self.waited = self.backoff.next();
        self.waited
    }

    /// How long the try after that may take.
    pub(super) fn limit(&self) -> Duration {
        CONNECT_LIMIT + 2 * self.waited
    }

    /// It worked.
    pub(super) fn succeeded(&mut self) {
        self.refused.clear();
        self.hints.clear();
    }

    /// It lasted: the next one is tried soon.
    pub(super) fn calm(&mut self) {
        self.backoff.reset();
    }

    /// The agent is refused at `address`; gives whether it is at every one that was given. What others said of
    /// more addresses doesn't count.
    pub(super) fn refused(&mut self, address: &str) -> bool {
        if self.given.iter().any(|given| given == address) {
            self.refused.insert(address.to_owned());
        }
        self.given.iter().all(|given| self.refused.contains(given))
    }

    /// A try at `address` ended in another way.
    pub(super) fn not_refused(&mut self, address: &str) {
        self.refused.remove(address);
    }

    pub(super) fn len(&self) -> usize {
        self.given.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_refused_once_every_given_address_does() {
        let mut addresses = Addresses::new(vec!["a:1".to_owned(), "b:1".to_owned()]);
        assert!(!addresses.refused("a:1") && !addresses.refused("a:1"), "twice the same is one");
        assert!(!addresses.refused("hint:1"), "nobody gave it");
        addresses.not_refused("a:1");
        assert!(!addresses.refused("b:1"));
        assert!(addresses.refused("a:1"));
        addresses.succeeded();
        assert!(!addresses.refused("b:1"));
    }

    #[test]
    fn waits_grow_until_a_connection_lasts() {
        let mut addresses = Addresses::new(vec!["a:1".to_owned()]);
        for _ in 0..20 {
            addresses.wait();
            addresses.succeeded();
        }
        assert!(addresses.wait() >= RETRY.end / 2);
        addresses.calm();
        assert!(addresses.wait() <= RETRY.start);
    }
}
