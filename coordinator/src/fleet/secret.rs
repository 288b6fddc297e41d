//! Secrets that belong to a CA: each is derived from the CA's key and a label, so it is as secret as that, the same
//! whenever a coordinator starts, and of no use for what another label stands for.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The block of SHA-256, in bytes.
const BLOCK_BYTES: usize = 64;

/// A key of HMAC-SHA256. It is never shown.
#[derive(Clone)]
pub(super) struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// What belongs to a CA with this key under this label.
    pub(super) fn of(label: &str, ca_key: &str) -> Self {
        Self(Sha256::new().chain_update(label).chain_update("\0").chain_update(ca_key).finalize().into())
    }

    /// Another one, that belongs to this one under this label.
    pub(super) fn derive(&self, label: &str) -> Self {
        Self(self.mac(label.as_bytes()))
    }

    /// HMAC-SHA256 (RFC 2104).
    pub(super) fn mac(&self, data: &[u8]) -> [u8; 32] {
        let pad = |byte: u8| {
            let mut block = [byte; BLOCK_BYTES];
            block.iter_mut().zip(self.0).for_each(|(pad, key)| *pad ^= key);
            Sha256::new().chain_update(block)
        };
        let inner = pad(0x36).chain_update(data).finalize();
        pad(0x5c).chain_update(inner).finalize().into()
    }

    /// Whether this is the MAC of `data`, in a time that doesn't depend on how much of it is right.
    pub(super) fn verifies(&self, data: &[u8], mac: &[u8]) -> bool {
        self.mac(data).ct_eq(mac).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_makes_hmac_sha256() {
        // RFC 4231, test case 1, its key filled with zeros as HMAC does.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let secret = Secret(key);
        let mac = secret.mac(b"Hi There");
        assert_eq!(mac[..8], [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53]);
        assert!(secret.verifies(b"Hi There", &mac));
        assert!(!secret.verifies(b"Hi there", &mac) && !secret.verifies(b"Hi There", &mac[..31]));
    }

    #[test]
    fn labels_and_keys_make_different_secrets() {
        let macs = [("a", "key"), ("b", "key"), ("a", "other"), ("a\0k", "ey")]
            .map(|(label, key)| Secret::of(label, key).mac(b""));
        assert!((1..4).all(|n| !macs[..n].contains(&macs[n])));
    }
}
