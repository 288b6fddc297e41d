//! What of a log is no text. Blocks keep all bytes as they were written; who shows them as text replaces what is no
//! UTF-8, and says how much that is.

use super::{Block, ENTRY_BYTES, HEADER_BYTES};

/// How many bytes of `text` are no UTF-8: those that a lossy conversion replaces by U+FFFD.
#[must_use]
pub fn invalid_bytes(text: &[u8]) -> u64 {
    text.utf8_chunks().map(|chunk| chunk.invalid().len() as u64).sum()
}

impl Block {
    /// How many bytes of its texts are no UTF-8, each text taken by itself.
    #[must_use]
    pub fn invalid_bytes(&self) -> u64 {
        let texts = HEADER_BYTES + self.count() as usize * ENTRY_BYTES;
        // Most logs are ASCII, and that is seen at a glance.
        if self.bytes.get(texts..).is_some_and(<[u8]>::is_ascii) {
            return 0;
        }
        self.entries().map(|entry| invalid_bytes(&entry.text)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockBuilder, LogStream};
    use crate::id::{AttemptId, AttemptNumber, JobRunId};
    use crate::time::Timestamp;

    #[test]
    fn as_many_bytes_are_counted_as_are_replaced() {
        for (text, count) in [
            (&b"plain"[..], 0),
            ("grün → €".as_bytes(), 0),
            (b"\xff\xfe", 2),
            (b"a\xe2\x82b", 2),
            (b"\xf0\x9f\x98", 3),
            (b"\xc3\xa4\xc3", 1),
        ] {
            assert_eq!(invalid_bytes(text), count, "{text:?}");
            let kept = String::from_utf8_lossy(text).replace('\u{fffd}', "");
            assert_eq!(kept.len() as u64, text.len() as u64 - count);
        }
    }

    #[test]
    fn a_character_that_is_cut_in_two_is_none() {
        let attempt = AttemptId { job_run: JobRunId::from_bytes([1; 16]), number: AttemptNumber::FIRST };
        let mut builder = BlockBuilder::new(attempt, 0);
        for text in [&b"\xc3"[..], b"\xa4", b"whole"] {
            builder.push(Timestamp::MIN, LogStream::Stdout, true, text).unwrap();
        }
        assert_eq!(builder.finish().unwrap().invalid_bytes(), 2);
    }
}
