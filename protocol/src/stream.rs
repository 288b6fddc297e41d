//! What every stream begins with, the small frames of artifact and enrolment streams, and the codes that streams
//! and connections are closed with.
//!
//! Each stream starts with one [`StreamHeader`] frame. Behind it:
//!
//! | kind | opened by | then |
//! | --- | --- | --- |
//! | control | agent, bidirectional, once | [`control`](crate::control) frames both ways |
//! | log | agent, one way, one per attempt and connection | blocks, raw |
//! | upload | agent, bidirectional, one per file | ← [`UploadAnswer`]; → the bytes from its offset; ← [`UploadEnd`] |
//! | inputs | agent, bidirectional, one per input | ← [`InputAnswer`] until its last |
//! | download | agent, bidirectional, one per file | ← [`DownloadAnswer`], then the bytes from the offset |
//!
//! On an enrolment connection ([`ALPN_ENROL`]) the agent opens one bidirectional stream, sends [`Enrol`] and gets
//! [`EnrolAnswer`]; nothing else is allowed there.

use serde::{Deserialize, Serialize};

use crate::control::Pem;
use crate::id::{AgentId, AttemptId, Digest, TokenId};
use crate::name::Name;
use crate::path::RelativePath;
use crate::state::Reason;

/// ALPN of a connection of an enrolled agent, which shows its certificate.
pub const ALPN_AGENT: &[u8] = b"packrun/1";

/// ALPN of a connection that trades a join token for a certificate.
pub const ALPN_ENROL: &[u8] = b"packrun-enroll/1";

/// The first frame of a stream: its kind, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamHeader {
    /// The control stream.
    Control,
    /// The log of one attempt, from entry `from` on, which is what the coordinator expects next.
    Log {
        /// Whose log.
        attempt: AttemptId,
        /// The number of the first entry that follows.
        from: u64,
    },
    /// One file that an attempt leaves.
    Upload(Upload),
    /// The question which files one input of an attempt has.
    Inputs {
        /// The attempt that wants them; its agent must hold it.
        attempt: AttemptId,
        /// The position of the input in the attempt's definition.
        input: u32,
    },
    /// The content of one file of an attempt's inputs.
    Download {
        /// The attempt that wants it; its agent must hold it.
        attempt: AttemptId,
        /// Which content.
        digest: Digest,
        /// How many bytes the agent has already.
        offset: u64,
    },
}

/// A file that an attempt leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// The attempt that left it.
    pub attempt: AttemptId,
    /// The name of its rule in the pack, if that has one.
    pub name: Option<Name>,
    /// Where it lay in the workspace.
    pub path: RelativePath,
    /// Its content.
    pub content: Content,
}

/// What a file consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The sha256 of its bytes.
    pub digest: Digest,
    /// How many bytes, at most [`ARTIFACT_BYTES_MAX`](crate::limit::ARTIFACT_BYTES_MAX).
    pub size: u64,
    /// Its permissions.
    pub mode: FileMode,
}

/// The permissions of a file: the nine bits for user, group and others; no set-id or sticky bit crosses the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct FileMode(u16);

impl FileMode {
    /// The permission bits of `mode`, everything else taken away.
    #[must_use]
    pub const fn of(mode: u32) -> Self {
        Self((mode & 0o777) as u16)
    }

    /// The nine bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer)? {
            bits @ 0..=0o777 => Ok(Self(bits)),
            bits => {
                Err(serde::de::Error::custom(format_args!("mode {bits:o} has more than permission bits")))
            }
        }
    }
}

/// The coordinator's answer to the header of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadAnswer {
    /// The content is there; the artifact is recorded.
    Have,
    /// Send the bytes from this offset on, then finish the stream.
    SendFrom(u64),
    /// The artifact is not taken, and never will be.
    Refused(Reason),
}

/// The coordinator's word after the last byte of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadEnd {
    /// The content is on disk and the artifact is recorded.
    Committed,
    /// The bytes were not those announced, or can't be taken.
    Refused(Reason),
}

/// One file of an input, or the end of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputAnswer {
    /// One file, and where it belongs in the workspace.
    File {
        /// Where.
        path: RelativePath,
        /// What.
        content: Content,
    },
    /// All files were named, so many.
    End {
        /// How many: 0 when the artifact was not left.
        files: u32,
    },
    /// The attempt has no such input, or is not this agent's.
    Refused(Reason),
}

/// What comes before the bytes of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownloadAnswer {
    /// So many bytes follow, then the stream is finished.
    Bytes(u64),
    /// There are none for this agent.
    Refused(Reason),
}

/// The secret half of a join token.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSecret(pub [u8; 32]);

impl std::fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinSecret(…)")
    }
}

/// A request to become an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// The join token's id.
    pub token: TokenId,
    /// Its secret.
    pub secret: JoinSecret,
    /// The certificate request, signed with the agent's own key.
    pub request: Pem,
    /// What the agent wants to be called; the token's name, if it has one, goes before it.
    pub name: Name,
}

/// The answer to [`Enrol`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolAnswer {
    /// The agent is enrolled.
    Granted {
        /// Who it is from now on.
        agent: AgentId,
        /// Its certificate.
        certificate: Pem,
        /// The certificate of the CA that signed it.
        ca: Pem,
    },
    /// It is not; the reason doesn't say what about the token was wrong.
    Refused(Reason),
}

/// Why a connection is closed or a stream is stopped or reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CloseCode {
    /// All is done.
    Done,
    /// The peer broke the protocol.
    Protocol,
    /// The stream's kind is unknown here.
    UnknownStream,
    /// The connection's ALPN and certificate don't go together.
    CertificateRequired,
    /// The agent was revoked.
    Revoked,
    /// A newer connection of the same agent took over.
    Superseded,
    /// The peer has too much open, or sends too fast.
    Overloaded,
    /// The attempt is not the agent's.
    Fenced,
    /// The process stops.
    ShuttingDown,
    /// This side has a problem of its own, as a full disk; later may do.
    Unavailable,
    /// The peer did not answer, or did not finish, in time.
    TimedOut,
}

impl CloseCode {
    const ALL: [Self; 11] = [
        Self::Done,
        Self::Protocol,
        Self::UnknownStream,
        Self::CertificateRequired,
        Self::Revoked,
        Self::Superseded,
        Self::Overloaded,
        Self::Fenced,
        Self::ShuttingDown,
        Self::Unavailable,
        Self::TimedOut,
    ];

    /// The code on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self as u32
    }

    /// The code that `wire` stands for; `None` for one of a later version.
    #[must_use]
    pub fn from_wire(wire: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| u64::from(code.to_wire()) == wire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn close_codes_are_numbered_in_the_order_they_were_added() {
        for (wire, code) in CloseCode::ALL.into_iter().enumerate() {
            assert_eq!(code.to_wire() as usize, wire);
            assert_eq!(CloseCode::from_wire(wire as u64), Some(code));
        }
        assert_eq!(CloseCode::from_wire(CloseCode::ALL.len() as u64), None);
        assert_eq!(CloseCode::from_wire(u64::MAX), None);
    }

    #[test]
    fn set_id_bits_never_cross_the_wire() {
        assert_eq!(FileMode::of(0o104_755).bits(), 0o755);
        assert!(codec::decode::<FileMode>(&codec::encode(&0o4755u16).unwrap()).is_err());
        assert_eq!(
            codec::decode::<FileMode>(&codec::encode(&FileMode::of(0o640)).unwrap()).unwrap(),
            FileMode::of(0o640)
        );
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", JoinSecret([7; 32])), "JoinSecret(…)");
    }
}
