//! Certificates: the coordinator's own CA, the coordinator's and the agents' leaves, certificate requests.
//! Everything is ECDSA P-256 through ring. No I/O: PEM and DER in, PEM and DER out.
//!
//! An agent's certificate carries its [`AgentId`] as the common name, and its serial number is an id made for it
//! alone: rcgen's default, a hash of the public key, would give a renewed certificate its predecessor's number.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};
use thiserror::Error;
use time::OffsetDateTime;

use crate::id::{AgentId, Digest};
use crate::limit;
use crate::time::Timestamp;

/// The one name in every coordinator's certificate, whatever host was dialled: it names the cluster's role.
pub const COORDINATOR_NAME: &str = "coordinator.packrun.internal";

/// How far before its making a certificate is valid already, for hosts whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(2 * 60 * 60);

/// How long a CA is valid.
const CA_VALID: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// Why a certificate or request can't be made or read.
#[derive(Debug, Error)]
pub enum CertError {
    /// rcgen refuses it.
    #[error("cannot make the {what}")]
    Make {
        /// What should have been made.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// It is not what it should be.
    #[error("the {what} is damaged or not what packrun makes: {why}")]
    Read {
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> CertError {
    move |source| CertError::Make { what, source }
}

fn read<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> CertError {
    move |why| CertError::Read { what, why: why.to_string() }
}

/// The coordinator's certificate authority.
pub struct Authority {
    certificate_pem: String,
    fingerprint: Digest,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new CA, and its key as PEM, to be kept where nobody else reads it.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn create(now: Timestamp) -> Result<(Self, String), CertError> {
        let key = KeyPair::generate().map_err(make("CA's key"))?;
        let key_pem = key.serialize_pem();
        let mut params = leaf("packrun CA", now, CA_VALID);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(make("CA's certificate"))?;
        Ok((Self::load(&certificate.pem(), &key_pem)?, key_pem))
    }

    /// The CA with this certificate and key.
    ///
    /// # Errors
    /// When one of them is not PEM, or the key is another's.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, CertError> {
        let key = KeyPair::from_pem(key_pem).map_err(read("CA's key"))?;
        let der = der_of(certificate_pem, "CA's certificate")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(read("CA's certificate"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CertError::Read {
                what: "CA's key",
                why: "it belongs to another certificate".into(),
            });
        }
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(read("CA's certificate"))?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), fingerprint: Digest::of(&der), issuer })
    }

    /// The CA's certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The sha256 of the CA's certificate, as join tokens carry it.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// A certificate and key for the coordinator's own QUIC endpoint, made anew at every start.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn issue_coordinator(&self, now: Timestamp, valid: Duration) -> Result<Identity, CertError> {
        let key = KeyPair::generate().map_err(make("coordinator's key"))?;
        let mut params = CertificateParams::new(vec![COORDINATOR_NAME.to_owned()])
            .map_err(make("coordinator's certificate"))?;
        fill(&mut params, COORDINATOR_NAME, now, valid);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(make("coordinator's certificate"))?;
        Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// A certificate and key for a server that is dialled by these host names and IP addresses.
    ///
    /// # Errors
    /// When one of the names can't be in a certificate, or no key can be made.
    pub fn issue_server(
        &self,
        names: &[String],
        now: Timestamp,
        valid: Duration,
    ) -> Result<Identity, CertError> {
        const WHAT: &str = "server's certificate";
        let key = KeyPair::generate().map_err(make("server's key"))?;
        let mut params = CertificateParams::new(names).map_err(make(WHAT))?;
        fill(&mut params, "packrun coordinator", now, valid);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(make(WHAT))?;
        Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The certificate of `agent` for the key of `request`. Nothing else of the request counts.
    ///
    /// # Errors
    /// When the request is no PEM, is not signed with its own key, or asks for unknown extensions.
    pub fn issue_agent(
        &self,
        request_pem: &str,
        agent: AgentId,
        now: Timestamp,
        valid: Duration,
    ) -> Result<String, CertError> {
        if request_pem.len() > limit::CERTIFICATE_BYTES_MAX {
            return Err(CertError::Read { what: "certificate request", why: "it is too long".into() });
        }
        let request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(read("certificate request"))?;
        let mut params = leaf(&agent.to_string(), now, valid);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&request.public_key, &self.issuer);
        Ok(certificate.map_err(make("agent's certificate"))?.pem())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint)
    }
}

/// A certificate and the private key to it. `Debug` doesn't show the key.
#[derive(Clone)]
pub struct Identity {
    /// The certificate as PEM.
    pub certificate_pem: String,
    /// The private key as PEM (PKCS #8).
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

/// A new private key as PEM (PKCS #8). It never leaves the host it was made on.
///
/// # Errors
/// When the system has no randomness to give.
pub fn generate_key() -> Result<String, CertError> {
    Ok(KeyPair::generate().map_err(make("key"))?.serialize_pem())
}

/// A certificate request for `key_pem`. It asks for nothing but a certificate: the coordinator decides the rest.
///
/// # Errors
/// When the key is no PEM of a private key.
pub fn request(key_pem: &str) -> Result<String, CertError> {
    let key = KeyPair::from_pem(key_pem).map_err(read("agent's key"))?;
    let request =
        CertificateParams::default().serialize_request(&key).map_err(make("certificate request"))?;
    request.pem().map_err(make("certificate request"))
}

/// What an agent's certificate says, once TLS has verified it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertificate {
    /// Whose it is.
    pub agent: AgentId,
    /// Its serial number, unlike any other's.
    pub serial: Vec<u8>,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

impl AgentCertificate {
    /// The agent's certificate in this DER.
    ///
    /// # Errors
    /// When it is none, or its common name is no agent's id.
    pub fn parse(der: &[u8]) -> Result<Self, CertError> {
        const WHAT: &str = "agent's certificate";
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(read(WHAT))?;
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let agent = name.unwrap_or_default().parse().map_err(read(WHAT))?;
        let serial = certificate.serial.to_bytes_be();
        let at = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_micros(time.timestamp().saturating_mul(1_000_000))
        };
        let validity = certificate.validity();
        Ok(Self { agent, serial, not_before: at(validity.not_before), not_after: at(validity.not_after) })
    }

    /// The agent's certificate in this PEM.
    ///
    /// # Errors
    /// As [`AgentCertificate::parse`].
    pub fn parse_pem(pem: &str) -> Result<Self, CertError> {
        Self::parse(&der_of(pem, "agent's certificate")?)
    }

    /// When to renew it: after two thirds of its time, so that a coordinator may be away for the rest.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        self.not_before + self.not_after.since(self.not_before) * 2 / 3
    }
}

/// The DER of the first certificate in `pem`.
///
/// # Errors
/// When there is none.
pub fn der_of(pem: &str, what: &'static str) -> Result<Vec<u8>, CertError> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(read(what))?;
    if block.label == "CERTIFICATE" {
        Ok(block.contents)
    } else {
        Err(CertError::Read { what, why: format!("its PEM holds a {}", block.label) })
    }
}

fn leaf(common_name: &str, now: Timestamp, valid: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    fill(&mut params, common_name, now, valid);
    params
}

fn fill(params: &mut CertificateParams, common_name: &str, now: Timestamp, valid: Duration) {
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = calendar(now - BACKDATED.min(valid));
    params.not_after = calendar(now + valid);
    params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::now_v7().as_bytes()));
}

fn calendar(time: Timestamp) -> OffsetDateTime {
    let seconds = time.as_micros().div_euclid(1_000_000);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_795_560_636_000_000);
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    #[test]
    fn a_renewed_certificate_keeps_the_agent_and_has_another_serial_number() {
        let (ca, ca_key) = Authority::create(NOW).unwrap();
        let reloaded = Authority::load(ca.certificate_pem(), &ca_key).unwrap();
        assert_eq!(reloaded.fingerprint(), ca.fingerprint());
        let (agent, key) = (AgentId::generate(), generate_key().unwrap());
        let issue = |ca: &Authority| {
            let pem = ca.issue_agent(&request(&key).unwrap(), agent, NOW, WEEK).unwrap();
            AgentCertificate::parse_pem(&pem).unwrap()
        };
        let (first, second) = (issue(&ca), issue(&reloaded));
        assert_eq!((first.agent, second.agent), (agent, agent));
        assert_ne!(first.serial, second.serial);
        assert_eq!(first.not_after, NOW + WEEK);
        assert!(first.renew_at() > NOW + WEEK / 2 && first.renew_at() < first.not_after);
    }

    #[test]
    fn a_ca_with_the_key_of_another_is_refused() {
        let ((ca, _), (_, other_key)) = (Authority::create(NOW).unwrap(), Authority::create(NOW).unwrap());
        let error = Authority::load(ca.certificate_pem(), &other_key).unwrap_err();
        assert!(error.to_string().contains("another certificate"), "{error}");
    }

    #[test]
    fn a_request_that_wants_to_be_somebody_else_gets_what_the_coordinator_says() {
        let (ca, _) = Authority::create(NOW).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![COORDINATOR_NAME.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, AgentId::generate().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let greedy = params.serialize_request(&key).unwrap().pem().unwrap();
        let agent = AgentId::generate();
        match ca.issue_agent(&greedy, agent, NOW, WEEK) {
            Ok(pem) => {
                let der = der_of(&pem, "certificate").unwrap();
                let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
                assert_eq!(AgentCertificate::parse(&der).unwrap().agent, agent);
                assert!(!certificate.is_ca());
                assert!(certificate.subject_alternative_name().unwrap().is_none());
            }
            Err(error) => assert!(matches!(error, CertError::Read { .. }), "{error}"),
        }
    }

    #[test]
    fn a_damaged_request_is_refused() {
        let (ca, _) = Authority::create(NOW).unwrap();
        let good = request(&generate_key().unwrap()).unwrap();
        let tampered = good.replacen('A', "B", 3);
        for bad in ["", "x", &good[..good.len() / 2], &tampered, &good.repeat(100), ca.certificate_pem()] {
            assert!(ca.issue_agent(bad, AgentId::generate(), NOW, WEEK).is_err(), "{bad}");
        }
    }
}
