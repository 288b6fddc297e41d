//! What outlives a coordinator that was killed: a secret by which the next one can tell agents that their connections
//! are gone (RFC 9000, 10.3). Without it they would wait for their idle timeout. It is derived from the CA's key, so
//! it is as secret, and the same whenever a coordinator starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::time::Timestamp;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Length of a connection's id, in bytes.
const ID_BYTES: usize = 8;

/// The block of SHA-256, in bytes.
const BLOCK_BYTES: usize = 64;

/// The secret: a key of HMAC-SHA256. It is never shown.
#[derive(Clone)]
pub(super) struct ResetKey([u8; 32]);

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey")
    }
}

impl ResetKey {
    /// The one that belongs to a CA with this key.
    pub(super) fn of(ca_key: &str) -> Self {
        Self(Sha256::new().chain_update("packrun stateless reset\0").chain_update(ca_key).finalize().into())
    }

    /// The configuration of an endpoint that is opened now, which resets the connections of those before it.
    pub(super) fn endpoint(&self, now: Timestamp) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(self.clone()));
        // The default's ids are known to their own endpoint only, and packets with others are dropped.
        let ids = Self(self.mac(format!("connection ids from {now} on").as_bytes()));
        config.cid_generator(move || Box::new(Ids { secret: ids.clone(), count: 0 }));
        config
    }

    /// HMAC-SHA256 (RFC 2104).
    fn mac(&self, data: &[u8]) -> [u8; 32] {
        let pad = |byte: u8| {
            let mut block = [byte; BLOCK_BYTES];
            block.iter_mut().zip(self.0).for_each(|(pad, key)| *pad ^= key);
            Sha256::new().chain_update(block)
        };
        let inner = pad(0x36).chain_update(data).finalize();
        pad(0x5c).chain_update(inner).finalize().into()
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.iter_mut().zip(self.mac(data)).for_each(|(out, byte)| *out = byte);
    }

    fn signature_len(&self) -> usize {
        self.0.len()
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        if bool::from(self.mac(data).ct_eq(signature)) { Ok(()) } else { Err(CryptoError) }
    }
}

/// Ids of connections that nobody can foresee.
struct Ids {
    secret: ResetKey,
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

    #[test]
    fn the_secret_makes_hmac_sha256() {
        // RFC 4231, test case 1, its key filled with zeros as HMAC does.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let mac = ResetKey(key).mac(b"Hi There");
        assert_eq!(mac[..8], [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53]);
        ResetKey(key).verify(b"Hi There", &mac).unwrap();
        ResetKey(key).verify(b"Hi there", &mac).unwrap_err();
    }

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
