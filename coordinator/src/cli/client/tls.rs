//! TLS to a coordinator: it is known by its CA alone, which the user names. The certificate may carry the host's
//! name or the one name that all coordinators carry: a private CA certifies nobody else.

use std::sync::Arc;

use packrun_protocol::cert::COORDINATOR_NAME;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::cli::exit::Error;

/// A configuration that trusts the certificates in `ca`, which are PEM; nobody without.
pub(super) fn config(ca: Option<&[u8]>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::invalid(format!("cannot set up TLS: {error}")))?;
    let Some(ca) = ca else {
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    };
    let wrong = |why: String| {
        Error::invalid(format!("the CA's file is no certificate in PEM: {why}"))
            .hint("the coordinator keeps it in its data folder, as ca/ca.pem")
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .map_err(|_| wrong("there is none in it".to_owned()))?;
    let verifier = Arc::new(EitherName { inner });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Takes a certificate for the name that was dialled, or for [`COORDINATOR_NAME`]; all else is as usual.
#[derive(Debug)]
struct EitherName {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify =
            |name: &ServerName<'_>| self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        verify(server_name).or_else(|error| match ServerName::try_from(COORDINATOR_NAME) {
            Ok(name) => verify(&name).map_err(|_| error),
            Err(_) => Err(error),
        })
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
