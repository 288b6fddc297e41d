//! What outlives a coordinator that was killed: a secret by which the next one can tell agents that their connections
//! are gone (RFC 9000, 10.3). Without it they would wait for their idle timeout.

use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::time::Timestamp;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};

use super::secret::Secret;

/// Length of a connection's id, in bytes.
const ID_BYTES: usize = 8;

/// The secret.
#[derive(Debug, Clone)]
pub(super) struct ResetKey(Secret);

impl ResetKey {
    /// The one that belongs to a CA with this key.
    pub(super) fn of(ca_key: &str) -> Self {
        Self(Secret::of("packrun stateless reset", ca_key))
    }

    /// The configuration of an endpoint that is opened now, which resets the connections of those before it.
    pub(super) fn endpoint(&self, now: Timestamp) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(self.clone()));
        // The default's ids are known to their own endpoint only, and packets with others are dropped.
        let ids = self.0.derive(&format!("connection ids from {now} on"));
        config.cid_generator(move || Box::new(Ids { secret: ids.clone(), count: 0 }));
        config
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.iter_mut().zip(self.0.mac(data)).for_each(|(out, byte)| *out = byte);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        if self.0.verifies(data, signature) { Ok(()) } else { Err(CryptoError) }
    }
}

/// Ids of connections that nobody can foresee.
struct Ids {
    secret: Secret,
    count: u64,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.count = self.count.wrapping_add(1);
        let mac = self.secret.mac(&self.count.to_be_bytes());
        ConnectionId::new(mac.first_chunk::<ID_BYTES>().unwrap_or(&[0; ID_BYTES]))
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use packrun_protocol::cert::{COORDINATOR_NAME, der_of};
    use packrun_protocol::time::Clock;
    use quinn::{ClientConfig, ConnectionError, Endpoint, ServerConfig, TokioRuntime};
    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::sync::oneshot;

    use super::super::Identity;
    use super::*;

    fn server(identity: &Identity) -> ServerConfig {
        let (own, _) = identity.issue_own().unwrap();
        let chain = vec![CertificateDer::from_pem_slice(own.certificate_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
        ServerConfig::with_single_cert(chain, key).unwrap()
    }

    fn listen(folder: &std::path::Path, port: u16) -> Endpoint {
        let clock = Clock::start();
        let identity = Identity::open(&folder.join("ca"), clock).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let config = identity.reset_key().endpoint(clock.now());
        Endpoint::new(config, Some(server(&identity)), socket, Arc::new(TokioRuntime)).unwrap()
    }

    #[tokio::test]
    async fn the_next_coordinator_ends_the_connections_of_one_that_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let (listens, address) = oneshot::channel();
        let (kill, killed) = oneshot::channel::<()>();
        let first = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let held = runtime.block_on(async {
                let endpoint = listen(&path, 0);
                listens.send(endpoint.local_addr().unwrap()).unwrap();
                let connection = endpoint.accept().await.unwrap().await.unwrap();
                killed.await.unwrap();
                (endpoint, connection)
            });
            // What sends is gone first: no word leaves.
            drop(runtime);
            drop(held);
        });
        let address = address.await.unwrap();
        let identity = Identity::open(&folder.path().join("ca"), Clock::start()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der_of(identity.ca_pem(), "CA").unwrap().into()).unwrap();
        let agent = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        let connection = agent.connect_with(config, address, COORDINATOR_NAME).unwrap().await.unwrap();
        kill.send(()).unwrap();
        first.join().unwrap();
        let _second = listen(folder.path(), address.port());
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(b"a report").await.unwrap();
        assert_eq!(connection.closed().await, ConnectionError::Reset);
    }
}
