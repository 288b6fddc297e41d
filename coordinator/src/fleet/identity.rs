//! The coordinator's own certificate authority, on disk in one folder: `ca.pem` and `ca.key.pem` (0600).
//!
//! The folder is made whole under another name and renamed, so it holds both files or doesn't exist. A folder that
//! lacks one is damaged and never replaced: every agent trusts what lay there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::cert::{self, Authority, CertError};
use packrun_protocol::id::{AgentId, Digest, Epoch, EpochProof, TokenId};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::stream::JoinSecret;
use packrun_protocol::time::{Clock, Timestamp};
use thiserror::Error;

use super::reset::ResetKey;
use super::secret::Secret;

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key.pem";

/// How long the coordinator's own certificates are valid. They are made anew at each start, and after two thirds
/// of this.
const COORDINATOR_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why there is no certificate authority to work with.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// One of the two files is missing.
    #[error(
        "the CA's {} is missing, but its other half is there; restore it from a backup (a new CA would shut out \
         every agent)", .0.display()
    )]
    Half(PathBuf),
    /// A file can't be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The files are not what they should be.
    #[error("the CA in {} can't be used; restore it from a backup", dir.display())]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CertError,
    },
    /// A new CA could not be made.
    #[error("cannot make a certificate authority")]
    Make(#[source] CertError),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

/// The certificate authority, and who the coordinator is by it. Clones share it.
#[derive(Debug, Clone)]
pub struct Identity {
    authority: Arc<Authority>,
    reset_key: ResetKey,
    /// What proves that there was a coordinator of an epoch.
    epochs: Secret,
    clock: Clock,
}

impl Identity {
    /// The CA in the folder `dir`, which is made when there is none.
    ///
    /// # Errors
    /// When the folder can't be read or made, or what it holds is not a CA with its key.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, IdentityError> {
        let (authority, key) = match load(dir)? {
            Some(loaded) => loaded,
            None => create(dir, clock.now())?,
        };
        let (reset_key, epochs) = (ResetKey::of(&key), Secret::of("packrun epoch", &key));
        Ok(Self { authority: Arc::new(authority), reset_key, epochs, clock })
    }

    /// The CA's certificate as PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// The sha256 of the CA's certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        self.authority.fingerprint()
    }

    /// The join token whose bearer knows this coordinator by its CA.
    #[must_use]
    pub fn join_token(&self, id: TokenId, secret: JoinSecret) -> JoinToken {
        JoinToken { ca: self.fingerprint(), id, secret }
    }

    /// A certificate and key for HTTPS, for a server that is dialled by these host names and IP addresses, and when
    /// to ask for the next.
    ///
    /// # Errors
    /// When one of the names can't be in a certificate.
    pub fn issue_https(&self, names: &[String]) -> Result<(cert::Identity, Timestamp), CertError> {
        let now = self.clock.now();
        let identity = self.authority.issue_server(names, now, COORDINATOR_VALID)?;
        Ok((identity, now + COORDINATOR_VALID * 2 / 3))
    }

    /// By what connections to a coordinator that was killed are ended by the next.
    pub(super) fn reset_key(&self) -> &ResetKey {
        &self.reset_key
    }

    /// What agents keep of a coordinator of this epoch.
    pub(super) fn prove(&self, epoch: Epoch) -> EpochProof {
        EpochProof::from_bytes(self.epochs.mac(&epoch.0.to_le_bytes()))
    }

    /// Whether a coordinator with this CA's key gave this proof of this epoch: then there was one.
    pub(super) fn proves(&self, epoch: Epoch, proof: &EpochProof) -> bool {
        self.epochs.verifies(&epoch.0.to_le_bytes(), proof.as_bytes())
    }

    /// A certificate and key for the QUIC endpoint, and when to replace it.
    pub(super) fn issue_own(&self) -> Result<(cert::Identity, Timestamp), CertError> {
        let now = self.clock.now();
        Ok((self.authority.issue_coordinator(now, COORDINATOR_VALID)?, now + COORDINATOR_VALID * 2 / 3))
    }

    /// A certificate of `agent` for the key of `request`, and until when it is valid.
    pub(super) fn issue_agent(
        &self,
        request: &str,
        agent: AgentId,
        valid: Duration,
    ) -> Result<(String, Timestamp), CertError> {
        let now = self.clock.now();
        Ok((self.authority.issue_agent(request, agent, now, valid)?, now + valid))
    }
}

/// The CA, and its key as PEM.
fn load(dir: &Path) -> Result<Option<(Authority, String)>, IdentityError> {
    let (certificate_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
    let (certificate, key) = match (read(&certificate_path)?, read(&key_path)?) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(IdentityError::Half(certificate_path)),
        (Some(_), None) => return Err(IdentityError::Half(key_path)),
        (Some(certificate), Some(key)) => (certificate, key),
    };
    // A backup or a volume may have given it to others; it is theirs no longer.
    let mode = fs::metadata(&key_path).map_err(failed("read", &key_path))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(&key_path, Permissions::from_mode(0o600))
            .map_err(failed("protect", &key_path))?;
        tracing::warn!(file = %key_path.display(), "the CA's key was open to others; it is not any more");
    }
    let loaded = Authority::load(&certificate, &key);
    loaded
        .map(|authority| Some((authority, key)))
        .map_err(|source| IdentityError::Damaged { dir: dir.to_owned(), source })
}

fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read(path) {
        // What is not UTF-8 is no PEM either, which is what the caller will say of it.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn create(dir: &Path, now: Timestamp) -> Result<(Authority, String), IdentityError> {
    let (authority, key) = Authority::create(now).map_err(IdentityError::Make)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = dir.with_extension("new");
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &draft)(error));
        }
        _ => {}
    }
    fs::create_dir_all(parent).map_err(failed("make", parent))?;
    fs::DirBuilder::new().mode(0o700).create(&draft).map_err(failed("make", &draft))?;
    write(&draft.join(CERTIFICATE_FILE), authority.certificate_pem(), 0o644)?;
    write(&draft.join(KEY_FILE), &key, 0o600)?;
    sync_dir(&draft)?;
    fs::rename(&draft, dir).map_err(failed("make", dir))?;
    sync_dir(parent)?;
    tracing::info!(fingerprint = %authority.fingerprint(), "a new certificate authority was made");
    Ok((authority, key))
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), IdentityError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = opened.map_err(failed("make", path))?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", path))
}

fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Result<Identity, IdentityError> {
        Identity::open(dir, Clock::start())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_ca_is_made_once_and_its_key_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("data/ca");
        let first = open(&dir).unwrap();
        assert_eq!((mode(&dir.join(KEY_FILE)), mode(&dir)), (0o600, 0o700));
        fs::set_permissions(dir.join(KEY_FILE), Permissions::from_mode(0o644)).unwrap();
        assert_eq!(open(&dir).unwrap().fingerprint(), first.fingerprint());
        assert_eq!(mode(&dir.join(KEY_FILE)), 0o600, "it is closed again");
    }

    #[test]
    fn what_a_crash_left_of_a_first_start_is_no_ca() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        fs::create_dir(dir.with_extension("new")).unwrap();
        fs::write(dir.with_extension("new").join(KEY_FILE), "half").unwrap();
        open(&dir).unwrap();
        assert!(!dir.with_extension("new").exists());
    }

    #[test]
    fn a_damaged_ca_is_named_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (folder.path().join("ours"), folder.path().join("other"));
        open(&ours).unwrap();
        open(&other).unwrap();
        let key = fs::read(ours.join(KEY_FILE)).unwrap();
        fs::copy(other.join(KEY_FILE), ours.join(KEY_FILE)).unwrap();
        assert!(matches!(open(&ours).unwrap_err(), IdentityError::Damaged { .. }), "another's key");
        fs::write(ours.join(KEY_FILE), [0xff, 0]).unwrap();
        assert!(matches!(open(&ours).unwrap_err(), IdentityError::Damaged { .. }), "no key");
        fs::remove_file(ours.join(KEY_FILE)).unwrap();
        let missing = open(&ours).unwrap_err();
        assert!(matches!(&missing, IdentityError::Half(path) if path.ends_with(KEY_FILE)), "{missing}");
        fs::write(ours.join(KEY_FILE), key).unwrap();
        fs::remove_file(ours.join(CERTIFICATE_FILE)).unwrap();
        assert!(matches!(open(&ours).unwrap_err(), IdentityError::Half(_)), "no certificate");
    }

    #[test]
    fn an_https_certificate_carries_the_names_it_is_dialled_by() {
        let folder = tempfile::tempdir().unwrap();
        let identity = open(&folder.path().join("ca")).unwrap();
        let (https, renew_at) =
            identity.issue_https(&["packrun.example.org".into(), "127.0.0.1".into()]).unwrap();
        assert!(https.certificate_pem.contains("BEGIN CERTIFICATE"));
        assert!(renew_at > identity.clock.now());
        assert!(identity.issue_https(&["not a näme".into()]).is_err());
    }
}
