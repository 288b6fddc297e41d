//! Who is meant: ids of runs, jobs, agents and tokens, the number of an attempt, the digest of content.
//! Ids are UUID v7 (RFC 9562), so they sort by the time they were made. They are made in the shells only: the
//! state machines receive them.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use uuid::Uuid;

use crate::name::shown;

/// A text that is not an id or a digest. The message shows the start of it, fit for a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

impl ParseIdError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: shown(text), expected }
    }
}

macro_rules! uuid_id {
    ($($(#[$doc:meta])+ $name:ident;)+) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id: the wall clock's milliseconds, then randomness. Ids made by one process ascend.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id with these 16 bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes, big-endian, so that their order is the ids' order.
            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.as_hyphenated(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.as_hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self).map_err(|_| ParseIdError::new(text, "a UUID"))
            }
        }
    )+};
}

uuid_id! {
    /// One execution of a pack version.
    PackRunId;
    /// One job within a pack run; a matrix job has one per combination.
    JobRunId;
    /// An agent, the same for as long as its identity lasts.
    AgentId;
    /// A join token or an API token; never secret.
    TokenId;
}

/// The number of a try at a job run: 1, 2 … It is the fencing token: a lower attempt changes nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptNumber(NonZeroU32);

impl AttemptNumber {
    /// The first try.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The number with this value; `None` for 0.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number as an integer, 1 or more.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The following try's number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for AttemptNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One try at a job run: what an agent holds, a log belongs to and a message names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The job run tried.
    pub job_run: JobRunId,
    /// Which try.
    pub number: AttemptNumber,
}

impl AttemptId {
    /// What stands for it where traces are kept (W3C Trace Context, `traceparent`): its pack run `run` is the trace,
    /// it is the span. Both sides find the same without asking each other, and every try has a span of its own.
    #[must_use]
    pub fn traceparent(self, run: PackRunId) -> String {
        let trace = u128::from_be_bytes(run.to_bytes());
        // The random half of the id: its variant bits are never all zero, as a span's may not be.
        let span = u128::from_be_bytes(self.job_run.to_bytes()) as u64 ^ u64::from(self.number.get());
        format!("00-{trace:032x}-{span:016x}-01")
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.job_run, self.number)
    }
}

/// How often the coordinator's store has been opened for writing. A frame of a lower epoch is refused, so a
/// coordinator that was replaced or restored from a backup can't command agents that know its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a coordinator gives its agents with its epoch, and any coordinator with its CA's key knows again: that there
/// was a coordinator of that epoch. To an agent it is nothing but bytes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EpochProof(Digest);

impl EpochProof {
    /// The proof with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Digest::from_bytes(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The proof in hex, as a file keeps it.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.0.to_hex()
    }

    /// The proof that [`EpochProof::to_hex`] gave as this text.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        format!("sha256:{text}").parse().ok().map(Self)
    }
}

impl fmt::Debug for EpochProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochProof(…)")
    }
}

/// The sha256 of some content: what an artifact, a pack version and a certificate are known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    /// The digest with these bytes, as a hasher gave them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest in hex without its prefix, as it names a file.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.0
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|nibble| hex_digit(nibble) as char)
            .collect()
    }
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// `sha256:` and 64 hex digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseIdError::new(text, "`sha256:` and 64 lower-case hex digits");
        let hex = text.strip_prefix("sha256:").ok_or_else(refused)?.as_bytes();
        let (pairs, []) = hex.as_chunks::<2>() else { return Err(refused()) };
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() {
            return Err(refused());
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let [high, low] = pair.map(|digit| match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'a'..=b'f' => Some(digit - b'a' + 10),
                _ => None,
            });
            *byte = high.ok_or_else(refused)? << 4 | low.ok_or_else(refused)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            crate::lean::text(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_one_after_the_other_ascend() {
        let ids: Vec<_> = (0..1000).map(|_| JobRunId::generate()).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().map(|id| id.to_bytes()).is_sorted());
    }

    #[test]
    fn digest_is_read_back_from_its_text_and_from_nothing_else() {
        let digest = Digest::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text, "the test vector of FIPS 180-4");
        assert_eq!(text.parse(), Ok(digest));
        for wrong in
            ["", "sha256:", &text[7..], &text[..70], &text.to_uppercase(), &format!("{text}0"), "sha256:é"]
        {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_try_is_a_span_of_its_own_in_the_trace_of_its_pack_run() {
        let run: PackRunId = "0197f3a1-2b3c-7d4e-8f50-61728394a5b6".parse().unwrap();
        let job_run: JobRunId = "0197f3a1-2b3d-7000-8000-0000000000ff".parse().unwrap();
        let first = AttemptId { job_run, number: AttemptNumber::FIRST };
        let second = AttemptId { number: first.number.next(), ..first };
        assert_eq!(first.traceparent(run), "00-0197f3a12b3c7d4e8f5061728394a5b6-80000000000000fe-01");
        assert_eq!(second.traceparent(run), "00-0197f3a12b3c7d4e8f5061728394a5b6-80000000000000fd-01");
    }

    #[test]
    fn a_refused_id_does_not_command_the_terminal_it_is_shown_on() {
        let message = "\u{1b}[2J".parse::<JobRunId>().unwrap_err().to_string();
        assert_eq!(message, r"`\u{1b}[2J` is not a UUID");
        assert!(!"sha256:\u{9b}".parse::<Digest>().unwrap_err().to_string().contains('\u{9b}'));
    }

    #[test]
    fn attempt_number_zero_is_refused() {
        assert_eq!(AttemptNumber::new(0), None);
        assert!(serde_json::from_str::<AttemptNumber>("0").is_err());
        assert_eq!(AttemptNumber::FIRST.next().get(), 2);
    }
}
