//! Frames: a little-endian `u32` with the length of what follows, then one encoded message. No I/O: the framer is
//! given bytes as they come and gives messages as they are whole.

use bytes::{Buf, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::codec::{self, DecodeError, EncodeError};
use crate::limit;

/// Bytes of a frame's length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why a stream of frames can't be read on. The peer broke the protocol: its connection is closed.
#[derive(Debug, Error)]
pub enum FrameError {
    /// A frame announces more than it may have: [`limit::FRAME_BYTES_MAX`], or what was set for its kind.
    #[error("a frame of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// The announced length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A whole frame holds no message of the expected type.
    #[error(transparent)]
    Message(#[from] DecodeError),
}

/// Appends `message` to `buffer` as one frame. Nothing is appended on an error.
///
/// # Errors
/// When the message is larger than a frame may be.
pub fn write<T: Serialize>(buffer: &mut Vec<u8>, message: &T) -> Result<(), EncodeError> {
    let body = codec::encode(message)?;
    let length = u32::try_from(body.len())
        .map_err(|_| EncodeError::TooLarge { bytes: body.len(), limit: limit::FRAME_BYTES_MAX })?;
    buffer.reserve(PREFIX_BYTES + body.len());
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&body);
    Ok(())
}

/// `message` as one frame.
///
/// # Errors
/// When the message is larger than a frame may be.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let mut buffer = Vec::new();
    write(&mut buffer, message)?;
    Ok(buffer)
}

/// The next message of `buffer`, taken out of it, or `None` while its frame is not whole. A prefix over the
/// limit is refused before anything is kept for it.
///
/// # Errors
/// When the frame is too large or holds no `T`; the buffer is of no use after it.
pub fn read<T: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<T>, FrameError> {
    read_within(buffer, limit::FRAME_BYTES_MAX)
}

/// As [`read`], of a frame that has no more than `limit` bytes without its prefix: so much may wait in the buffer.
///
/// # Errors
/// As [`read`].
pub fn read_within<T: DeserializeOwned>(
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Option<T>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let bytes = u32::from_le_bytes(*prefix) as usize;
    if bytes > limit {
        return Err(FrameError::TooLarge { bytes, limit });
    }
    if buffer.len() < PREFIX_BYTES + bytes {
        return Ok(None);
    }
    buffer.advance(PREFIX_BYTES);
    Ok(Some(codec::decode(&buffer.split_to(bytes))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_come_out_whole_and_in_order_however_the_bytes_are_cut(
            messages: Vec<String>,
            cuts in prop::collection::vec(1usize..20, 1..40),
        ) {
            let mut wire = Vec::new();
            for message in &messages {
                write(&mut wire, message).unwrap();
            }
            let (mut buffer, mut received, mut rest) = (BytesMut::new(), Vec::new(), &wire[..]);
            for cut in cuts.iter().cycle() {
                while let Some(message) = read::<String>(&mut buffer).unwrap() {
                    received.push(message);
                }
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(rest.len().min(*cut));
                buffer.extend_from_slice(now);
                rest = later;
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(received, messages);
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = read::<Vec<(u64, String)>>(&mut buffer) {}
        }
    }

    #[test]
    fn a_prefix_over_the_limit_is_refused_before_memory_is_taken_for_it() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(read::<String>(&mut buffer), Err(FrameError::TooLarge { .. })));
        assert!(buffer.capacity() < 1024);
    }

    #[test]
    fn a_kind_of_frame_may_have_a_limit_of_its_own() {
        let mut buffer = BytesMut::from(&encode(&"text").unwrap()[..PREFIX_BYTES]);
        assert!(matches!(read_within::<String>(&mut buffer, 5), Ok(None)), "its bytes may still come");
        let refused = read_within::<String>(&mut buffer, 4);
        assert!(matches!(refused, Err(FrameError::TooLarge { bytes: 5, limit: 4 })), "{refused:?}");
    }
}
