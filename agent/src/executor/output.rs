//! Bytes of an attempt's pipes into log blocks: the [`Cutter`] is a machine without I/O and clock.
//!
//! A line is cut at its newline. Text without one is held until the newline, until more than
//! [`limit::ENTRY_TEXT_BYTES_MAX`] bytes are there, or until its first byte is [`HOLD`] old; then it goes as a
//! continued piece, which splits no UTF-8 character that is whole. A block leaves [`FLUSH`] after the block before
//! it, or at once when that is past: the first line after a pause doesn't wait, and a noisy job fills its blocks.
//!
//! A log has a limit. The first entry that doesn't fit, and all that comes after it on either stream, is counted and
//! dropped: packrun says so in the log at once, and at the end how much it was. The job is read on as fast as before.
//!
//! Invariant: the texts of one stream's entries, each followed by a newline unless continued, are the bytes that
//! were fed, wherever the reads were split, or of a log that was cut the first of them; what is missing was counted.

use std::time::Duration;

use packrun_protocol::block::{Block, BlockBuilder, ENTRY_BYTES, LogStream};
use packrun_protocol::id::AttemptId;
use packrun_protocol::limit;
use packrun_protocol::time::Timestamp;

/// Shortest time between two blocks that are not full. With a timer's millisecond and the way to the wire it is
/// within the 10 ms that a line may take.
pub(super) const FLUSH: Duration = Duration::from_millis(5);

/// How long text without a newline is held, from the first of it: a progress bar of dots shows as it grows.
pub(super) const HOLD: Duration = Duration::from_millis(500);

/// Cuts the output of one attempt.
#[derive(Debug)]
pub(super) struct Cutter {
    builder: BlockBuilder,
    /// When the entries in the builder leave; `None` when there are none.
    flush_at: Option<Timestamp>,
    flushed_at: Option<Timestamp>,
    held: [Held; 2],
    bytes_max: u64,
    /// What is left of them.
    bytes_left: u64,
    cut: Option<Cut>,
}

/// What was dropped of a log that has reached its limit.
#[derive(Debug, Clone, Copy, Default)]
struct Cut {
    bytes: u64,
    lines: u64,
    /// Whether a line of each stream has begun and not ended.
    begun: [bool; 2],
}

impl Cut {
    fn count(&mut self, index: usize, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        if let Some(last) = bytes.last() {
            self.begun[index] = *last != b'\n';
        }
    }

    fn count_entry(&mut self, stream: LogStream, continued: bool, text: &[u8]) {
        self.count(index_of(stream), text);
        if !continued {
            self.count(index_of(stream), b"\n");
        }
    }

    /// The lines that are missing, or have only their beginning in the log.
    fn lines(&self) -> u64 {
        self.lines + self.begun.iter().filter(|begun| **begun).count() as u64
    }
}

/// The end of a stream, which no newline has followed yet.
#[derive(Debug)]
struct Held {
    stream: LogStream,
    text: Vec<u8>,
    until: Timestamp,
}

impl Held {
    fn new(stream: LogStream) -> Self {
        Self { stream, text: Vec::new(), until: Timestamp::MAX }
    }
}

impl Cutter {
    /// A cutter of the output of `attempt`, from its first byte, of which the log takes `bytes_max`, as
    /// [`Block::log_bytes`] counts them.
    #[must_use]
    pub(super) fn new(attempt: AttemptId, bytes_max: u64) -> Self {
        Self {
            builder: BlockBuilder::new(attempt, 0),
            flush_at: None,
            flushed_at: None,
            held: [Held::new(LogStream::Stdout), Held::new(LogStream::Stderr)],
            bytes_max,
            bytes_left: bytes_max,
            cut: None,
        }
    }

    /// How many entries there are so far: the number that the next one gets.
    #[must_use]
    pub(super) fn entries(&self) -> u64 {
        self.builder.next_seq()
    }

    /// When [`Cutter::tick`] is due.
    #[must_use]
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let held = self.held.iter().filter(|held| !held.text.is_empty()).map(|held| held.until);
        held.chain(self.flush_at).min()
    }

    /// Takes what was read from a stream at `now`; blocks that are full go to `out`.
    pub(super) fn feed(&mut self, now: Timestamp, stream: LogStream, mut bytes: &[u8], out: &mut Vec<Block>) {
        let index = index_of(stream);
        while self.cut.is_none()
            && let Some(newline) = bytes.iter().position(|byte| *byte == b'\n')
        {
            let (line, rest) = bytes.split_at(newline);
            bytes = rest.get(1..).unwrap_or_default();
            if self.held[index].text.is_empty() {
                self.line(now, stream, line, out);
            } else {
                let mut whole = std::mem::take(&mut self.held[index].text);
                whole.extend_from_slice(line);
                self.line(now, stream, &whole, out);
                whole.clear();
                self.held[index].text = whole;
            }
        }
        if let Some(cut) = &mut self.cut {
            cut.count(index, bytes);
            return;
        }
        if bytes.is_empty() {
            return;
        }
        let mut text = std::mem::take(&mut self.held[index].text);
        let waited = !text.is_empty();
        text.extend_from_slice(bytes);
        let mut rest = text.as_slice();
        while rest.len() > limit::ENTRY_TEXT_BYTES_MAX {
            rest = self.piece(now, stream, rest, out);
        }
        if let Some(cut) = &mut self.cut {
            cut.count(index, rest);
            return;
        }
        let sent = text.len() - rest.len();
        text.drain(..sent);
        self.held[index].text = text;
        if !waited || sent > 0 {
            self.held[index].until = now + HOLD;
        }
    }

    /// Does what is due at `now`; blocks that leave go to `out`.
    pub(super) fn tick(&mut self, now: Timestamp, out: &mut Vec<Block>) {
        for index in 0..self.held.len() {
            let held = &mut self.held[index];
            if held.text.is_empty() || held.until > now {
                continue;
            }
            held.until = now + HOLD;
            let (stream, text) = (held.stream, std::mem::take(&mut held.text));
            // A character that is only half there waits once more, unless it is all there is.
            let end = match whole_characters(&text) {
                0 => text.len(),
                end => end,
            };
            self.push(now, stream, true, &text[..end], out);
            match &mut self.cut {
                Some(cut) => cut.count(index, &text[end..]),
                None => self.held[index].text = text[end..].to_vec(),
            }
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush(now, out);
        }
    }

    /// Lets all go that is held: the pipes are closed.
    pub(super) fn end(&mut self, now: Timestamp, out: &mut Vec<Block>) {
        for index in 0..self.held.len() {
            let text = std::mem::take(&mut self.held[index].text);
            if !text.is_empty() {
                self.push(now, self.held[index].stream, true, &text, out);
            }
        }
        if let Some(cut) = self.cut {
            let (lines, bytes) = (cut.lines(), cut.bytes);
            let words = format!(
                "packrun: the log was cut at its limit of {} bytes: {lines} lines, {bytes} bytes are missing here",
                self.bytes_max
            );
            self.add(now, LogStream::System, false, words.as_bytes(), out);
        }
        self.flush(now, out);
    }

    fn line(&mut self, now: Timestamp, stream: LogStream, mut line: &[u8], out: &mut Vec<Block>) {
        while line.len() > limit::ENTRY_TEXT_BYTES_MAX {
            line = self.piece(now, stream, line, out);
        }
        self.push(now, stream, false, line, out);
    }

    /// Pushes as much of a long text as an entry takes, and gives back the rest.
    fn piece<'a>(
        &mut self,
        now: Timestamp,
        stream: LogStream,
        text: &'a [u8],
        out: &mut Vec<Block>,
    ) -> &'a [u8] {
        let end = whole_characters(&text[..limit::ENTRY_TEXT_BYTES_MAX]);
        let (piece, rest) = text.split_at(end);
        self.push(now, stream, true, piece, out);
        rest
    }

    fn push(
        &mut self,
        now: Timestamp,
        stream: LogStream,
        continued: bool,
        text: &[u8],
        out: &mut Vec<Block>,
    ) {
        let left = self.bytes_left.checked_sub((text.len() + ENTRY_BYTES) as u64);
        match (&mut self.cut, left) {
            (None, Some(left)) => {
                self.bytes_left = left;
                self.add(now, stream, continued, text, out);
            }
            (None, None) => {
                self.cut = Some(self.first_cut(stream, continued, text));
                let words = format!(
                    "packrun: the log has reached its limit of {} bytes; what the job writes from here on is dropped",
                    self.bytes_max
                );
                self.add(now, LogStream::System, false, words.as_bytes(), out);
            }
            (Some(cut), _) => cut.count_entry(stream, continued, text),
        }
    }

    /// What is cut with the first entry that doesn't fit: that, and what is held of the other stream.
    fn first_cut(&mut self, stream: LogStream, continued: bool, text: &[u8]) -> Cut {
        let mut cut = Cut::default();
        cut.count_entry(stream, continued, text);
        for held in &mut self.held {
            cut.count(index_of(held.stream), &std::mem::take(&mut held.text));
        }
        cut
    }

    fn add(&mut self, now: Timestamp, stream: LogStream, continued: bool, text: &[u8], out: &mut Vec<Block>) {
        if !self.builder.has_room(now, text.len()) {
            self.flush(now, out);
        }
        if self.builder.push(now, stream, continued, text).is_ok() && self.flush_at.is_none() {
            self.flush_at = Some(self.flushed_at.map_or(now, |last| now.max(last + FLUSH)));
        }
    }

    fn flush(&mut self, now: Timestamp, out: &mut Vec<Block>) {
        self.flush_at = None;
        if let Some(block) = self.builder.finish() {
            self.flushed_at = Some(now);
            out.push(block);
        }
    }
}

fn index_of(stream: LogStream) -> usize {
    usize::from(stream == LogStream::Stderr)
}

/// How much of `text` ends with a whole UTF-8 character; all of it where its end is no UTF-8 anyway.
fn whole_characters(text: &[u8]) -> usize {
    let tail = text.len().saturating_sub(3);
    let Some(lead) = text[tail..].iter().rposition(|byte| !matches!(byte, 0x80..=0xbf)) else {
        return text.len();
    };
    let lead = tail + lead;
    let wanted = match text[lead] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if text.len() - lead < wanted { lead } else { text.len() }
}

#[cfg(test)]
mod tests;
