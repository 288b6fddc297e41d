//! The API's certificate: by the coordinator's own CA, for the names that it is dialled by, and renewed in time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum_server::tls_rustls::RustlsConfig;
use packrun_protocol::time::{Clock, Timestamp};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::fleet::Identity;

/// How long to wait before a certificate that could not be made is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(3600);

/// TLS for the API.
#[derive(Debug)]
pub(super) struct Https {
    identity: Identity,
    names: Vec<String>,
    clock: Clock,
    config: RustlsConfig,
    renew_at: Timestamp,
}

impl Https {
    /// TLS with a first certificate for these names.
    ///
    /// # Errors
    /// When one of them can't be in a certificate.
    pub(super) fn open(identity: Identity, names: Vec<String>, clock: Clock) -> anyhow::Result<Self> {
        let (config, renew_at) = certified(&identity, &names)
            .with_context(|| format!("cannot make the API's certificate for {}", names.join(", ")))?;
        Ok(Self { identity, names, clock, config: RustlsConfig::from_config(config), renew_at })
    }

    /// What a server takes; a renewed certificate gets there by itself.
    pub(super) fn config(&self) -> RustlsConfig {
        self.config.clone()
    }

    /// Renews the certificate whenever it is time, until `stop`.
    pub(super) async fn keep(mut self, stop: CancellationToken) {
        loop {
            let renewal = self.clock.instant(self.renew_at);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(renewal.into()) => {}
            }
            match certified(&self.identity, &self.names) {
                Ok((config, renew_at)) => {
                    self.config.reload_from_config(config);
                    self.renew_at = renew_at;
                }
                Err(error) => {
                    tracing::error!(
                        "the API's certificate could not be renewed; trying again later: {error:#}"
                    );
                    self.renew_at = self.clock.now() + RENEW_AGAIN;
                }
            }
        }
    }
}

/// A configuration with a new certificate, and when to make the next.
fn certified(identity: &Identity, names: &[String]) -> anyhow::Result<(Arc<ServerConfig>, Timestamp)> {
    let (certificate, renew_at) = identity.issue_https(names)?;
    let chain = [certificate.certificate_pem.as_str(), identity.ca_pem()]
        .into_iter()
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(config), renew_at))
}

/// The names that an API which listens on `ip` is dialled by: this host's, its addresses as far as they are known,
/// and those that were given.
pub(super) fn names(ip: IpAddr, given: &[String]) -> Vec<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut names = vec!["localhost".to_owned()];
    names.extend(Some(host).filter(|host| is_name(host)));
    let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let addresses = match ip {
        IpAddr::V4(any) if any.is_unspecified() => vec![Some(v4.into()), outward(v4.into())],
        IpAddr::V6(any) if any.is_unspecified() => {
            vec![Some(v4.into()), Some(v6.into()), outward(v4.into()), outward(v6.into())]
        }
        ip => vec![Some(v4.into()), Some(ip)],
    };
    names.extend(addresses.into_iter().flatten().map(|address| address.to_string()));
    names.extend(given.iter().cloned());
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether it can be in a certificate.
pub(super) fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'))
}

/// The address by which this host is seen where its default route leads, in the family of `family`. Nothing is sent:
/// the addresses that are asked about are those of documents (RFC 5737, RFC 3849).
fn outward(family: IpAddr) -> Option<IpAddr> {
    let (any, there): (IpAddr, IpAddr) = match family {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        IpAddr::V6(_) => {
            (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
        }
    };
    let socket = UdpSocket::bind(SocketAddr::from((any, 0))).ok()?;
    socket.connect(SocketAddr::from((there, 9))).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_all_names_that_are_known_once() {
        let given = ["build.example.org".to_owned(), "127.0.0.1".to_owned()];
        let names = names(Ipv4Addr::UNSPECIFIED.into(), &given);
        for expected in ["127.0.0.1", "build.example.org", "localhost"] {
            assert_eq!(names.iter().filter(|name| *name == expected).count(), 1, "{expected}: {names:?}");
        }
        assert!(super::names(Ipv4Addr::new(10, 0, 0, 7).into(), &[]).contains(&"10.0.0.7".to_owned()));
        assert!(is_name("fe80::1") && !is_name("") && !is_name("a b") && !is_name("(none)") && !is_name("ä"));
    }

    #[tokio::test]
    async fn it_is_renewed_when_its_time_has_come() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::start();
        let identity = Identity::open(&folder.path().join("ca"), clock).unwrap();
        let mut https = Https::open(identity, vec!["localhost".to_owned()], clock).unwrap();
        https.renew_at = clock.now();
        let (config, stop) = (https.config(), CancellationToken::new());
        let first = config.get_inner();
        let kept = tokio::spawn(https.keep(stop.clone()));
        while Arc::ptr_eq(&first, &config.get_inner()) {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        kept.await.unwrap();
    }
}
