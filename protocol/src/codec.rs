//! The only file that knows bincode: values to bytes and back, in its standard configuration through serde.
//!
//! bincode 2.0.1 is its last real release, so everything it gets from outside passes here. The decoder runs
//! under a byte limit, without which a length of 2^62 in nine bytes ends the process, and refuses bytes left
//! over. It takes memory for announced lengths before it looks whether they are there, so message types decode
//! their texts and lists by `lean.rs`, which `tests/hostile.rs` measures.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::limit;

/// Why a value could not be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// Its bytes exceed the limit.
    #[error("a message of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// How many bytes it takes.
        bytes: usize,
        /// How many it may take.
        limit: usize,
    },
    /// Its type can't be encoded.
    #[error("cannot encode the message")]
    Type(#[source] bincode::error::EncodeError),
}

/// Why bytes are not a value of the wanted type.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// They are more than the limit.
    #[error("a message of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// How many bytes there are.
        bytes: usize,
        /// How many there may be.
        limit: usize,
    },
    /// They don't follow the type's shape, or end too early.
    #[error("malformed message")]
    Malformed(#[source] bincode::error::DecodeError),
    /// The value ends before they do.
    #[error("{bytes} bytes left over behind the message")]
    Trailing {
        /// How many bytes are left.
        bytes: usize,
    },
}

/// The bytes of `value`, at most [`limit::FRAME_BYTES_MAX`].
///
/// # Errors
/// [`EncodeError::TooLarge`] when there are more.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    encode_within(value, limit::FRAME_BYTES_MAX)
}

/// The bytes of `value` as a record of a store, at most [`limit::RECORD_BYTES_MAX`].
///
/// # Errors
/// [`EncodeError::TooLarge`] when there are more.
pub fn encode_record<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    encode_within(value, limit::RECORD_BYTES_MAX)
}

fn encode_within<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, EncodeError> {
    let bytes =
        bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(EncodeError::Type)?;
    if bytes.len() > limit { Err(EncodeError::TooLarge { bytes: bytes.len(), limit }) } else { Ok(bytes) }
}

/// The value whose bytes are exactly `bytes`.
///
/// # Errors
/// When they are too many, not of `T`'s shape, or left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_within::<T, { limit::FRAME_BYTES_MAX }, { limit::DECODED_BYTES_MAX }>(bytes)
}

/// The value whose record is exactly `bytes`.
///
/// # Errors
/// When they are too many, not of `T`'s shape, or left over.
pub fn decode_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_within::<T, { limit::RECORD_BYTES_MAX }, { 8 * limit::RECORD_BYTES_MAX }>(bytes)
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize, const DECODED: usize>(
    bytes: &[u8],
) -> Result<T, DecodeError> {
    if bytes.len() > LIMIT {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), limit: LIMIT });
    }
    let config = bincode::config::standard().with_limit::<DECODED>();
    let (value, used) =
        bincode::serde::borrow_decode_from_slice(bytes, config).map_err(DecodeError::Malformed)?;
    if used == bytes.len() { Ok(value) } else { Err(DecodeError::Trailing { bytes: bytes.len() - used }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_promises_more_than_there_is_gives_an_error() {
        let endless = [253, 0, 0, 0, 0, 0, 0, 0, 64];
        assert!(matches!(decode::<String>(&endless), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode::<Vec<u64>>(&endless), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut bytes = encode(&7u32).unwrap();
        assert_eq!(decode::<u32>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes), Err(DecodeError::Trailing { bytes: 1 })));
    }

    #[test]
    fn a_record_over_the_limit_is_refused_on_both_ways() {
        let large = vec![1u8; limit::RECORD_BYTES_MAX];
        assert!(matches!(encode_record(&large), Err(EncodeError::TooLarge { .. })));
        let bytes = [large, vec![1]].concat();
        assert!(matches!(decode_record::<Vec<u8>>(&bytes), Err(DecodeError::TooLarge { .. })));
    }

    #[test]
    fn a_value_over_the_limit_is_refused_on_both_ways() {
        let large = vec![1u8; limit::FRAME_BYTES_MAX];
        assert!(matches!(encode(&large), Err(EncodeError::TooLarge { .. })));
        assert!(matches!(decode::<Vec<u8>>(&[large, vec![1]].concat()), Err(DecodeError::TooLarge { .. })));
    }
}
