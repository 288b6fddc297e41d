//! Server-sent events, from bytes (the event stream format of the HTML standard). Pure; memory is bounded.

use std::mem;

/// Largest event and longest line, in bytes: a log entry of 64 KiB may take six times that in JSON.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Its type, `message` if the server named none.
    pub(super) kind: String,
    /// Its data.
    pub(super) data: String,
    /// The id of this or the last event that had one.
    pub(super) id: Option<String>,
}

/// An event or line longer than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// Takes bytes, gives events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// What has come of a line that has not ended, or of several that were not looked at yet.
    pending: Vec<u8>,
    /// How much of `pending` has been looked at.
    read: usize,
    /// How much of `pending` behind `read` has no end of line in it.
    searched: usize,
    started: bool,
    kind: String,
    data: String,
    id: Option<String>,
}

impl Parser {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..mem::take(&mut self.read));
        self.pending.extend_from_slice(bytes);
    }

    /// The next event that is complete. Call it until there is none before more bytes are pushed.
    ///
    /// # Errors
    /// When a line or an event is too long; nothing more can be read then.
    pub(super) fn next(&mut self) -> Result<Option<Event>, TooLong> {
        while let Some(line) = self.line()? {
            if !line.is_empty() {
                self.field(&line)?;
                continue;
            }
            let (kind, data) = (mem::take(&mut self.kind), mem::take(&mut self.data));
            // The standard drops an event without data; here its kind may say it all.
            if !data.is_empty() || !kind.is_empty() {
                let data = data.strip_suffix('\n').unwrap_or_default().to_owned();
                let kind = if kind.is_empty() { "message".to_owned() } else { kind };
                return Ok(Some(Event { kind, data, id: self.id.clone() }));
            }
        }
        Ok(None)
    }

    /// The next line without its end: LF, CR LF, or a CR that something else follows.
    fn line(&mut self) -> Result<Option<String>, TooLong> {
        let rest = self.pending.get(self.read..).unwrap_or_default();
        let unsearched = rest.get(self.searched..).unwrap_or_default();
        let Some(end) = unsearched.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            self.searched = rest.len();
            return if rest.len() > EVENT_BYTES_MAX { Err(TooLong) } else { Ok(None) };
        };
        let end = self.searched + end;
        let skip = match (rest.get(end), rest.get(end + 1)) {
            (Some(b'\r'), Some(b'\n')) => 2,
            (Some(b'\r'), None) => {
                self.searched = end;
                return Ok(None);
            }
            _ => 1,
        };
        let mut line = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
        if !mem::replace(&mut self.started, true)
            && let Some(stripped) = line.strip_prefix('\u{feff}')
        {
            line = stripped.to_owned();
        }
        self.read += end + skip;
        self.searched = 0;
        if line.len() > EVENT_BYTES_MAX { Err(TooLong) } else { Ok(Some(line)) }
    }

    fn field(&mut self, line: &str) -> Result<(), TooLong> {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                if self.data.len() + value.len() > EVENT_BYTES_MAX {
                    return Err(TooLong);
                }
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(chunk);
            while let Some(event) = parser.next().unwrap() {
                events.push(event);
            }
        }
        events
    }

    const STREAM: &[u8] = "\u{feff}: hello\n\nevent: log\nid: 1.2.3\ndata: {\"text\":\"é\"}\r\n\r\nretry: 5\ndata\n\ndata:a\ndata: b\rid: 2\n\nevent: end\n\ndata: cut".as_bytes();

    #[test]
    fn a_stream_is_read_as_the_standard_says() {
        let event = |kind: &str, data: &str, id: &str| Event {
            kind: kind.into(),
            data: data.into(),
            id: Some(id.into()),
        };
        assert_eq!(
            events(&[STREAM]),
            [
                event("log", "{\"text\":\"é\"}", "1.2.3"),
                event("message", "", "1.2.3"),
                event("message", "a\nb", "2"),
                event("end", "", "2"),
            ],
            "an event that is cut off is none"
        );
    }

    #[test]
    fn an_endless_line_or_event_is_refused() {
        let mut parser = Parser::default();
        parser.push(&vec![b'x'; EVENT_BYTES_MAX + 1]);
        assert_eq!(parser.next(), Err(TooLong));
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; EVENT_BYTES_MAX / 2], b"\n"].concat();
        parser.push(&line.repeat(3));
        assert_eq!(parser.next(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come(mut cuts in prop::collection::vec(0..STREAM.len(), 0..8)) {
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([STREAM.len()]) {
                chunks.push(&STREAM[from..cut]);
                from = cut;
            }
            prop_assert_eq!(events(&chunks), events(&[STREAM]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut parser = Parser::default();
            parser.push(&bytes);
            while let Ok(Some(_)) = parser.next() {}
        }
    }
}
