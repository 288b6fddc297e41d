//! Feeding a file to a hasher in bounded memory.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// How much is read at a time, in bytes: enough to make the calls cheap beside the hashing.
pub(super) const BUFFER_BYTES: usize = 128 << 10;

/// Feeds `hasher` what `source` holds from here to its end, and tells how many bytes that are. A source that
/// goes on beyond `size` is read at most one buffer further, so one that is written without end is noticed.
pub(super) fn feed(
    hasher: &mut Sha256,
    source: &mut impl Read,
    size: u64,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let mut total = 0_u64;
    while total <= size {
        match source.read(buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(buffer.get(..count).unwrap_or_default());
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use packrun_protocol::id::Digest;

    #[test]
    fn a_source_without_end_is_left_one_buffer_beyond_its_size() {
        let mut endless = std::fs::File::open("/dev/zero").unwrap();
        let mut hasher = Sha256::new();
        assert_eq!(feed(&mut hasher, &mut endless, 70, &mut [0; 64]).unwrap(), 128);
        assert_eq!(Digest::from_bytes(hasher.finalize().into()), Digest::of(&[0; 128]));
    }
}
