//! API tokens: what requests carry after `Authorization: Bearer`. Only the sha256 of a token's secret is kept, so a
//! token can be shown once, when it is made.
//!
//! `packrun-` and base64url without padding of: version (1 byte), token id (16), secret (32), crc32c of all before
//! it (4, little-endian). The crc tells a token that was cut or mistyped from one that doesn't hold.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use packrun_protocol::id::{Digest, TokenId};
use thiserror::Error;

const PREFIX: &str = "packrun-";
const VERSION: u8 = 1;
const BYTES: usize = 1 + 16 + 32 + 4;

/// Most characters of a text that is looked at.
const TEXT_BYTES_MAX: usize = 256;

/// An API token. It is secret: only `to_string` shows it, `Debug` doesn't.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken {
    id: TokenId,
    secret: [u8; 32],
}

/// Why a text is no API token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ApiTokenError {
    /// It doesn't begin with the prefix.
    #[error("a token begins with `{PREFIX}`; copy it whole from `packrun tokens create`")]
    Prefix,
    /// It lets an agent join, and nothing else.
    #[error(
        "this is a join token, which lets an agent join; make one for the API by `packrun tokens create`"
    )]
    Join,
    /// It is cut, mistyped or too long.
    #[error("the token is damaged; copy it whole from `packrun tokens create`")]
    Damaged,
    /// It was made by a later version.
    #[error("the token is of version {0}, this coordinator knows version {VERSION}")]
    Version(u8),
}

impl ApiToken {
    /// A new token with a secret from the system's randomness.
    ///
    /// # Errors
    /// When the system has none.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self { id: TokenId::generate(), secret: secret()? })
    }

    /// By what the coordinator finds it.
    #[must_use]
    pub const fn id(&self) -> TokenId {
        self.id
    }

    /// The sha256 of its secret, which the coordinator keeps.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.secret)
    }
}

/// 32 bytes of the system's randomness.
pub(super) fn secret() -> Result<[u8; 32], getrandom::Error> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)?;
    Ok(secret)
}

impl fmt::Display for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.id.to_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiToken({})", self.id)
    }
}

impl FromStr for ApiToken {
    type Err = ApiTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(ApiTokenError::Prefix)?;
        if body.len() > TEXT_BYTES_MAX {
            return Err(ApiTokenError::Damaged);
        }
        let damaged = if body.starts_with("join-") { ApiTokenError::Join } else { ApiTokenError::Damaged };
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| damaged)?;
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or(damaged)?;
        if crc32c::crc32c(content).to_le_bytes() != *crc {
            return Err(damaged);
        }
        let (&version, fields) = content.split_first().ok_or(damaged)?;
        if version != VERSION {
            return Err(ApiTokenError::Version(version));
        }
        let (id, secret) = fields.split_first_chunk::<16>().ok_or(damaged)?;
        let secret = secret.try_into().map_err(|_| damaged)?;
        Ok(Self { id: TokenId::from_bytes(*id), secret })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> ApiToken {
        ApiToken { id: TokenId::from_bytes([3; 16]), secret: [9; 32] }
    }

    #[test]
    fn a_token_is_read_back_and_is_never_printed_by_accident() {
        let text = token().to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains(&text[40..60]));
        assert_ne!(ApiToken::generate().unwrap().digest(), ApiToken::generate().unwrap().digest());
    }

    #[test]
    fn what_is_no_token_of_this_version_says_why() {
        let mut bytes = URL_SAFE_NO_PAD.decode(&token().to_string()[PREFIX.len()..]).unwrap();
        bytes.truncate(BYTES - 4);
        bytes[0] = 2;
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let later = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(later.parse::<ApiToken>(), Err(ApiTokenError::Version(2)));
        assert_eq!("packrun-join-AAAA".parse::<ApiToken>(), Err(ApiTokenError::Join));
        assert_eq!("".parse::<ApiToken>(), Err(ApiTokenError::Prefix));
        assert_eq!(PREFIX.parse::<ApiToken>(), Err(ApiTokenError::Damaged));
        assert_eq!(
            format!("{PREFIX}{}", "A".repeat(1 << 20)).parse::<ApiToken>(),
            Err(ApiTokenError::Damaged)
        );
    }

    proptest! {
        #[test]
        fn a_token_with_one_wrong_or_missing_character_is_refused(at: prop::sample::Index, c in "[ -~é]") {
            let text = token().to_string();
            let at = at.index(text.len());
            let changed = format!("{}{c}{}", &text[..at], &text[at + 1..]);
            prop_assert_eq!(changed.parse() == Ok(token()), changed == text);
            prop_assert!(text[..at].parse::<ApiToken>().is_err());
        }

        #[test]
        fn random_text_never_panics(text in ".{0,200}") {
            prop_assert!(text.parse::<ApiToken>().is_err());
            let _ = format!("{PREFIX}{text}").parse::<ApiToken>();
        }
    }
}
