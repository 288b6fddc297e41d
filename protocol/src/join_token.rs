//! Join tokens: what `packrun agents invite` prints and an agent enrols with, once. The text carries the
//! fingerprint of the coordinator's CA, so the agent knows whom it talks to before it says anything.
//!
//! `packrun-join-` and base64url without padding of: version (1 byte), CA fingerprint (32), token id (16),
//! secret (32), crc32c of all before it (4, little-endian). The crc catches a token that was cut or mistyped.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

use crate::id::{Digest, TokenId};
use crate::limit;
use crate::stream::JoinSecret;

const PREFIX: &str = "packrun-join-";
const VERSION: u8 = 1;
const BYTES: usize = 1 + 32 + 16 + 32 + 4;

/// A join token. It is secret: only `to_string` shows it, `Debug` doesn't.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The sha256 of the CA certificate's DER.
    pub ca: Digest,
    /// The token's id, by which the coordinator finds it.
    pub id: TokenId,
    /// What proves that its bearer was invited.
    pub secret: JoinSecret,
}

/// Why a text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JoinTokenError {
    /// It doesn't begin with the prefix.
    #[error("a join token begins with `{PREFIX}`; copy it whole from `packrun agents invite`")]
    Prefix,
    /// It is cut, mistyped or too long.
    #[error("the join token is damaged; copy it whole from `packrun agents invite`")]
    Damaged,
    /// It was made by a later version.
    #[error("the join token is of version {0}, this agent knows version {VERSION}; update the agent")]
    Version(u8),
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(self.ca.as_bytes());
        bytes.extend_from_slice(&self.id.to_bytes());
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(JoinTokenError::Prefix)?;
        if body.len() > limit::JOIN_TOKEN_BYTES_MAX {
            return Err(JoinTokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| JoinTokenError::Damaged)?;
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or(JoinTokenError::Damaged)?;
        if crc32c::crc32c(content).to_le_bytes() != *crc {
            return Err(JoinTokenError::Damaged);
        }
        let (&version, fields) = content.split_first().ok_or(JoinTokenError::Damaged)?;
        if version != VERSION {
            return Err(JoinTokenError::Version(version));
        }
        let fields: [u8; BYTES - 5] = fields.try_into().map_err(|_| JoinTokenError::Damaged)?;
        let (mut ca, mut id, mut secret) = ([0; 32], [0; 16], [0; 32]);
        ca.copy_from_slice(&fields[..32]);
        id.copy_from_slice(&fields[32..48]);
        secret.copy_from_slice(&fields[48..]);
        Ok(Self { ca: Digest::from_bytes(ca), id: TokenId::from_bytes(id), secret: JoinSecret(secret) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        let (ca, id) = (Digest::of(b"ca"), TokenId::from_bytes([3; 16]));
        JoinToken { ca, id, secret: JoinSecret([9; 32]) }
    }

    #[test]
    fn a_token_is_read_back_and_is_never_printed_by_accident() {
        let text = token().to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains(&text[40..60]));
    }

    #[test]
    fn a_token_of_a_later_version_says_so() {
        let text = token().to_string();
        let mut bytes = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
        bytes.truncate(BYTES - 4);
        bytes[0] = 2;
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let later = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(later.parse::<JoinToken>(), Err(JoinTokenError::Version(2)));
    }

    #[test]
    fn a_token_that_is_too_long_is_refused() {
        let long = format!("{}{}", token(), "A".repeat(limit::JOIN_TOKEN_BYTES_MAX));
        assert!(long.parse::<JoinToken>().is_err());
        assert!(format!("{PREFIX}{}", "A".repeat(100 << 20)).parse::<JoinToken>().is_err());
    }

    proptest! {
        #[test]
        fn a_token_with_one_wrong_or_missing_character_is_refused(at: prop::sample::Index, c in "[ -~é]") {
            let text = token().to_string();
            let at = at.index(text.len());
            let changed = format!("{}{c}{}", &text[..at], &text[at + 1..]);
            prop_assert_eq!(changed.parse() == Ok(token()), changed == text);
            prop_assert!(text[..at].parse::<JoinToken>().is_err());
        }

        #[test]
        fn random_text_never_panics(text in ".{0,200}") {
            prop_assert!(text.parse::<JoinToken>().is_err());
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
        }
    }
}
