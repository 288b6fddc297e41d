//! HTTPS to a coordinator that is known by its CA.

use std::time::Duration;

use axum_server::tls_rustls::{RustlsConfig, from_tcp_rustls};
use packrun_protocol::cert::{Authority, Identity};
use packrun_protocol::time::Clock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

/// Serves `{}` with this certificate; gives the URL.
fn serve(identity: &Identity) -> String {
    let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(|| async { axum::Json(page(json!([]))) });
    let server = from_tcp_rustls(listener, RustlsConfig::from_config(config.into())).unwrap();
    tokio::spawn(server.serve(router.into_make_service()));
    url
}

#[tokio::test]
async fn a_coordinator_is_trusted_by_its_ca_whatever_host_was_dialled_and_no_other_is() {
    let now = Clock::start().now();
    let hour = Duration::from_secs(3600);
    let (ours, _) = Authority::create(now).unwrap();
    let (theirs, _) = Authority::create(now).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, ours.certificate_pem()).unwrap();
    let ca = ca.display().to_string();
    let expired = ours.issue_coordinator(now - hour * 3, hour).unwrap();
    let cases = [
        ("its own", ours.issue_coordinator(now, hour).unwrap(), 0),
        ("another CA's", theirs.issue_coordinator(now, hour).unwrap(), 4),
        ("an expired one", expired, 4),
    ];
    for (case, identity, code) in cases {
        let url = serve(&identity);
        let ran = Invocation::new(&["pack", "list", "--server", &url, "--ca", &ca]).run().await;
        assert_eq!(ran.code, code, "{case}: {}", ran.err);
        assert_eq!(ran.err.contains("invalid peer certificate"), code == 4, "{case}: {}", ran.err);
    }
}
