//! Taking connections: addresses are validated before anything is spent on them, handshakes are bounded in number,
//! rate and time, and trouble with the socket is met by opening it again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::quic::{Peer, close, peer};
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::Timestamp;
use quinn::{Endpoint, Incoming, VarInt};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::gate::{Place, Refused};
use super::{FleetError, STOP_TIME, Shared, endpoint_config, enrol, listen, session};

const REOPEN_FIRST: Duration = Duration::from_millis(50);
const REOPEN_MAX: Duration = Duration::from_secs(10);

/// How long to wait before a certificate that could not be made is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(3600);

/// How long the last packets of closed connections get to leave.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Takes connections until the fleet stops.
#[derive(Debug)]
pub(super) struct Acceptor {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    address: SocketAddr,
    renew_at: Timestamp,
    connections: TaskTracker,
}

impl Acceptor {
    pub(super) fn open(shared: Arc<Shared>) -> Result<(Self, SocketAddr), FleetError> {
        let (config, renew_at) = endpoint_config(&shared)?;
        let asked = shared.settings.listen;
        let endpoint = listen(&shared, config, asked)?;
        let address =
            endpoint.local_addr().map_err(|source| FleetError::Listen { address: asked, source })?;
        Ok((Self { shared, endpoint, address, renew_at, connections: TaskTracker::new() }, address))
    }

    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        loop {
            let renewal = shared.clock.instant(self.renew_at);
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => break,
                () = tokio::time::sleep_until(renewal.into()) => self.renew(),
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => take(&shared, incoming, &self.connections),
                    None => {
                        tokio::select! {
                            () = shared.stop.cancelled() => break,
                            () = self.reopen() => {}
                        }
                    }
                }
            }
        }
        self.endpoint.set_server_config(None);
        self.connections.close();
        if timeout(STOP_TIME, self.connections.wait()).await.is_err() {
            tracing::warn!("some agents did not hear in time that the coordinator stops");
        }
        self.endpoint.close(VarInt::from_u32(CloseCode::ShuttingDown.to_wire()), b"the coordinator stops");
        // What did not leave by now is the peers' idle timeout's.
        let _ = timeout(CLOSE_TIME, self.endpoint.wait_idle()).await;
    }

    fn renew(&mut self) {
        match endpoint_config(&self.shared) {
            Ok((config, renew_at)) => {
                self.endpoint.set_server_config(Some(config));
                self.renew_at = renew_at;
            }
            Err(error) => {
                tracing::error!(%error, "the coordinator's certificate could not be renewed; trying again later");
                self.renew_at = self.shared.clock.now() + RENEW_AGAIN;
            }
        }
    }

    /// The endpoint ended by itself: its socket failed.
    async fn reopen(&mut self) {
        let mut pause = REOPEN_FIRST;
        loop {
            tracing::error!(address = %self.address, "the socket for agents failed; it is opened again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REOPEN_MAX);
            let opened = endpoint_config(&self.shared).and_then(|(config, renew_at)| {
                self.renew_at = renew_at;
                listen(&self.shared, config, self.address)
            });
            match opened {
                Ok(endpoint) => {
                    self.endpoint = endpoint;
                    return;
                }
                Err(error) => tracing::error!(%error, "that failed"),
            }
        }
    }
}

fn take(shared: &Arc<Shared>, incoming: Incoming, connections: &TaskTracker) {
    if !incoming.remote_address_validated() {
        // One that was validated before can't be asked to do so again, which is not the case.
        let _ = incoming.retry();
        return;
    }
    match shared.gate.enter(incoming.remote_address().ip(), shared.clock.now()) {
        Ok(place) => {
            connections.spawn(connection(shared.clone(), incoming, place));
        }
        // Its next packet comes by itself, and is a new try.
        Err(Refused::Busy) => incoming.ignore(),
        Err(Refused::Crowded) => {
            tracing::debug!(address = %incoming.remote_address(), "an address has too many connections");
            incoming.refuse();
        }
    }
}

async fn connection(shared: Arc<Shared>, incoming: Incoming, mut place: Place) {
    let address = incoming.remote_address();
    let greeting = shared.settings.limits.greeting;
    let connection = tokio::select! {
        () = shared.stop.cancelled() => return,
        connected = timeout(greeting, incoming) => match connected {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "a handshake failed"),
            Err(_) => return tracing::debug!(%address, "a handshake took too long"),
        }
    };
    place.settle();
    match peer(&connection) {
        Some(Peer::Agent(certificate)) => session::serve(&shared, &connection, &certificate).await,
        Some(Peer::Joining) => enrol::serve(&shared, &connection).await,
        None => close(&connection, CloseCode::CertificateRequired, "show an agent's certificate"),
    }
}
