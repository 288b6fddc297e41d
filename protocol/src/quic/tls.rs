//! The TLS set-up of both sides: rustls with ring, TLS 1.3 alone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use thiserror::Error;

use super::{agent_transport, coordinator_transport};
use crate::cert::{AgentCertificate, Identity};
use crate::id::Digest;
use crate::stream::{ALPN_AGENT, ALPN_ENROL};
use crate::time::Timestamp;

/// How long a client that has shown its address may wait to be let in. quinn's 15 seconds are less than its fifth try,
/// since the waits between the packets of a handshake double: in a crowd, that one was refused instead of let in later.
const RETRY_TOKEN_LIFETIME: Duration = Duration::from_secs(120);

/// Why a TLS set-up can't be made of the given certificates.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A PEM holds no certificate or key.
    #[error("the {what} is not the PEM of one")]
    Pem {
        /// What it should be.
        what: &'static str,
    },
    /// rustls refuses the set-up.
    #[error("TLS refuses the certificates")]
    Rustls(#[from] rustls::Error),
    /// The CA's certificate can't be a trust anchor.
    #[error("the CA's certificate can't be trusted: {0}")]
    Verifier(String),
}

/// Decides, at every handshake, whether a certificate that is otherwise valid is let in.
pub trait Admission: fmt::Debug + Send + Sync {
    /// `false` when the agent, or this certificate of it, was revoked.
    fn admits(&self, certificate: &AgentCertificate) -> bool;
}

/// What the coordinator's endpoint shows and believes.
#[derive(Debug)]
pub struct ServerIdentity<'a> {
    /// Its certificate and key, signed by the CA.
    pub identity: &'a Identity,
    /// The CA's certificate as PEM.
    pub ca_pem: &'a str,
}

/// The configuration of the coordinator's endpoint: both ALPNs on one port. A client's certificate is optional
/// here, since one that joins has none; [`peer`](super::peer) tells who came.
///
/// # Errors
/// When a PEM is none, or the certificate and the key don't belong together.
pub fn server_config(
    server: &ServerIdentity<'_>,
    admission: Arc<dyn Admission>,
) -> Result<quinn::ServerConfig, TlsError> {
    let ca = certificate(server.ca_pem, "CA's certificate")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&ca)?.into(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let chain = vec![certificate(&server.identity.certificate_pem, "coordinator's certificate")?, ca];
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ClientVerifier { inner: verifier, admission }))
        .with_single_cert(chain, key(server.identity)?)?;
    tls.alpn_protocols = vec![ALPN_AGENT.to_vec(), ALPN_ENROL.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| TlsError::Verifier(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(coordinator_transport());
    config.retry_token_lifetime(RETRY_TOKEN_LIFETIME);
    Ok(config)
}

/// What an enrolled agent shows and believes.
#[derive(Debug)]
pub struct MemberConfig<'a> {
    /// Its certificate and key.
    pub identity: &'a Identity,
    /// The CA's certificate as PEM, as it was given when the agent enrolled.
    pub ca_pem: &'a str,
}

/// The client configuration of an enrolled agent.
///
/// # Errors
/// When a PEM is none, or the certificate and the key don't belong together.
pub fn member_config(member: &MemberConfig<'_>) -> Result<quinn::ClientConfig, TlsError> {
    let ca = certificate(member.ca_pem, "CA's certificate")?;
    let chain = vec![certificate(&member.identity.certificate_pem, "agent's certificate")?];
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(&ca)?)
        .with_client_auth_cert(chain, key(member.identity)?)?;
    client(tls, ALPN_AGENT)
}

/// Looks at an agent's certificate as the coordinator will: whether it is signed by the CA, is for an agent and holds
/// at `now`. That it fits the key is seen by [`member_config`].
///
/// # Errors
/// When it is not so, or a PEM is none.
pub fn verify_member(member: &MemberConfig<'_>, now: Timestamp) -> Result<(), TlsError> {
    let ca = certificate(member.ca_pem, "CA's certificate")?;
    let own = certificate(&member.identity.certificate_pem, "agent's certificate")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&ca)?.into(), provider())
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let now = UnixTime::since_unix_epoch(now.since(Timestamp::default()));
    verifier.verify_client_cert(&own, &[], now)?;
    Ok(())
}

/// What a joining agent believes.
#[derive(Debug)]
pub struct JoinConfig {
    /// The fingerprint of the CA, out of the join token.
    pub ca: Digest,
}

/// The client configuration of an agent that joins: it has no certificate yet, and believes only a coordinator
/// whose certificate is signed by the CA with the token's fingerprint.
///
/// # Errors
/// When rustls refuses the set-up.
pub fn join_config(join: JoinConfig) -> Result<quinn::ClientConfig, TlsError> {
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority { ca: join.ca, provider: provider() }))
        .with_no_client_auth();
    client(tls, ALPN_ENROL)
}

fn client(mut tls: ClientConfig, alpn: &[u8]) -> Result<quinn::ClientConfig, TlsError> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| TlsError::Verifier(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(agent_transport());
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::Pem { what })
}

fn key(identity: &Identity) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|_| TlsError::Pem { what: "private key" })
}

fn roots(ca: &CertificateDer<'_>) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(roots)
}

/// Verifies a client's certificate as usual, then asks whether it is still admitted.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    admission: Arc<dyn Admission>,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(leaf, intermediates, now)?;
        let certificate = AgentCertificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        if self.admission.admits(&certificate) { Ok(verified) } else { Err(CertificateError::Revoked.into()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Believes a server whose chain has the CA with the pinned fingerprint and whose own certificate is signed by it.
#[derive(Debug)]
struct PinnedAuthority {
    ca: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.ca)
            .ok_or(CertificateError::UnknownIssuer)?;
        WebPkiServerVerifier::builder_with_provider(roots(ca)?.into(), self.provider.clone())
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?
            .verify_server_cert(leaf, &[], name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
