//! The agent's identity on disk: `ca.pem`, `agent.pem` and `agent.key.pem`, readable by their owner alone, each
//! written whole or not at all. `joined` holds the id of the join token that it came from, so that another token
//! is seen to be one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use packrun_protocol::bounded::TooLong;
use packrun_protocol::cert::{self, AgentCertificate, CertError, Identity};
use packrun_protocol::control::Pem;
use packrun_protocol::id::{Digest, TokenId};
use packrun_protocol::quic::{MemberConfig, TlsError, member_config, verify_member};
use packrun_protocol::time::Timestamp;
use thiserror::Error;

const CA: &str = "ca.pem";
const CERTIFICATE: &str = "agent.pem";
const KEY: &str = "agent.key.pem";
const JOINED: &str = "joined";

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Why the identity can't be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file is not what it should be.
    #[error("the agent's identity in {} can't be used; remove the folder and join again", folder.display())]
    Content {
        /// The identity's folder.
        folder: PathBuf,
        /// What is wrong.
        #[source]
        source: CertError,
    },
    /// The files don't fit each other.
    #[error("the agent's identity in {} can't be used; remove the folder and join again", folder.display())]
    Tls {
        /// The identity's folder.
        folder: PathBuf,
        /// What is wrong.
        #[source]
        source: TlsError,
    },
    /// The operating system refuses.
    #[error("failed to {action} {}: {why}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not; in the text already.
        why: io::Error,
    },
}

/// The folder with the identity.
#[derive(Debug, Clone)]
pub(super) struct Store {
    folder: PathBuf,
}

/// A whole identity.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) ca_pem: String,
    /// The CA's fingerprint.
    pub(super) ca: Digest,
    pub(super) identity: Identity,
    pub(super) certificate: AgentCertificate,
    pub(super) config: quinn::ClientConfig,
}

impl Member {
    fn new(folder: &Path, ca_pem: String, identity: Identity) -> Result<Self, IdentityError> {
        let content = |source| IdentityError::Content { folder: folder.to_owned(), source };
        let certificate = AgentCertificate::parse_pem(&identity.certificate_pem).map_err(content)?;
        let config = member_config(&MemberConfig { identity: &identity, ca_pem: &ca_pem })
            .map_err(|source| IdentityError::Tls { folder: folder.to_owned(), source })?;
        let ca = Digest::of(&cert::der_of(&ca_pem, "CA's certificate").map_err(content)?);
        Ok(Self { ca_pem, ca, identity, certificate, config })
    }

    /// One that was issued just now: its certificate is of this CA, for the key, and holds.
    fn issued(
        folder: &Path,
        ca_pem: String,
        identity: Identity,
        now: Timestamp,
    ) -> Result<Self, IdentityError> {
        verify_member(&MemberConfig { identity: &identity, ca_pem: &ca_pem }, now)
            .map_err(|source| IdentityError::Tls { folder: folder.to_owned(), source })?;
        Self::new(folder, ca_pem, identity)
    }

    /// A request for a new certificate of the same key.
    pub(super) fn request(&self) -> Result<Pem, CertError> {
        request(&self.identity.key_pem)
    }
}

/// A certificate request for this key.
pub(super) fn request(key_pem: &str) -> Result<Pem, CertError> {
    let too_long = |error: TooLong| CertError::Read { what: "certificate request", why: error.to_string() };
    cert::request(key_pem)?.try_into().map_err(too_long)
}

impl Store {
    pub(super) fn new(state: &Path) -> Self {
        Self { folder: state.join("identity") }
    }

    /// The identity, if the agent has joined.
    pub(super) fn load(&self) -> Result<Option<Member>, IdentityError> {
        let [ca, certificate, key] = [CA, CERTIFICATE, KEY].map(|name| self.read(name));
        let (Some(ca_pem), Some(certificate_pem), Some(key_pem)) = (ca?, certificate?, key?) else {
            return Ok(None);
        };
        Member::new(&self.folder, ca_pem, Identity { certificate_pem, key_pem }).map(Some)
    }

    /// The agent's key, made now if there is none. It is kept before it is used, so that a join that was cut off
    /// is repeated with the same one.
    pub(super) fn key(&self) -> Result<String, IdentityError> {
        if let Some(key) = self.read(KEY)? {
            return Ok(key);
        }
        let content = |source| IdentityError::Content { folder: self.folder.clone(), source };
        let key = cert::generate_key().map_err(content)?;
        self.write(KEY, &key)?;
        Ok(key)
    }

    /// Whether the identity came from this token.
    pub(super) fn is_of(&self, token: TokenId) -> Result<bool, IdentityError> {
        Ok(self.read(JOINED)?.is_some_and(|joined| joined.trim() == token.to_string()))
    }

    /// Keeps what a join with `token` has brought.
    pub(super) fn join(
        &self,
        token: TokenId,
        ca_pem: &str,
        identity: Identity,
        now: Timestamp,
    ) -> Result<Member, IdentityError> {
        let member = Member::issued(&self.folder, ca_pem.to_owned(), identity, now)?;
        self.write(KEY, &member.identity.key_pem)?;
        self.write(CA, ca_pem)?;
        self.write(CERTIFICATE, &member.identity.certificate_pem)?;
        self.write(JOINED, &format!("{token}\n"))?;
        Ok(member)
    }

    /// Keeps a renewed certificate for the key of `member`.
    pub(super) fn renew(
        &self,
        member: &Member,
        certificate_pem: &str,
        now: Timestamp,
    ) -> Result<Member, IdentityError> {
        let key_pem = member.identity.key_pem.clone();
        let identity = Identity { certificate_pem: certificate_pem.to_owned(), key_pem };
        let renewed = Member::issued(&self.folder, member.ca_pem.clone(), identity, now)?;
        if renewed.certificate.agent != member.certificate.agent {
            let why = "it is another agent's".to_owned();
            let source = CertError::Read { what: "renewed certificate", why };
            return Err(IdentityError::Content { folder: self.folder.clone(), source });
        }
        self.write(CERTIFICATE, certificate_pem)?;
        Ok(renewed)
    }

    fn read(&self, name: &str) -> Result<Option<String>, IdentityError> {
        let path = self.folder.join(name);
        let mut text = String::new();
        let read = File::open(&path)
            .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, FILE_BYTES_MAX), &mut text));
        match read {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(IdentityError::File { action: "read", path, why }),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), IdentityError> {
        let path = self.folder.join(name);
        let written = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        written.and_then(|()| write_whole(&path, text.as_bytes())).map_err(|why| IdentityError::File {
            action: "write",
            path,
            why,
        })
    }
}

/// Writes a file so that a crash leaves the old content or the new one, for the owner's eyes.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
