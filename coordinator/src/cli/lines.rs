//! The lines that a follower shows: log entries behind their job's key, pieces of a line joined, states and
//! artifacts between them. Pure.

use std::collections::HashMap;
use std::fmt::Write as _;

use packrun_protocol::block::LogStream;
use packrun_protocol::id::AttemptNumber;
use packrun_protocol::name::JobKey;
use packrun_protocol::time::Timestamp;

use super::output::{Style, printable, printable_log, size};
use crate::api::types::{ArtifactEvent, LogEntry, StateEvent};

/// Longest line that is put together from pieces, in bytes; a longer one is shown in several.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Most columns that are set aside for the keys.
const KEY_COLUMNS_MAX: usize = 40;

/// How lines look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look {
    /// Whether colours are wanted.
    pub color: bool,
    /// Whether a terminal must be kept from obeying the text.
    pub terminal: bool,
    /// Whether each line starts with its time.
    pub timestamps: bool,
    /// Whether each line names its job.
    pub keys: bool,
}

/// Turns what happens into lines.
#[derive(Debug)]
pub struct Lines {
    look: Look,
    width: usize,
    /// Lines that have begun, by their attempt and whether they are of stdout.
    begun: HashMap<(JobKey, AttemptNumber, bool), (Timestamp, String)>,
}

impl Lines {
    /// Lines of jobs with these keys.
    #[must_use]
    pub fn new<'k>(look: Look, keys: impl IntoIterator<Item = &'k JobKey>) -> Self {
        let width = keys.into_iter().map(|key| key.as_str().chars().count()).max().unwrap_or_default();
        Self { look, width: width.min(KEY_COLUMNS_MAX), begun: HashMap::new() }
    }

    /// The line that this entry completes.
    pub fn entry(&mut self, entry: LogEntry) -> Option<String> {
        let LogEntry { time, key, attempt, stream, text, continued, .. } = entry;
        let id = (key, attempt, stream == LogStream::Stdout);
        let (time, text) = match (self.begun.remove(&id), stream) {
            (Some((time, begun)), LogStream::Stdout | LogStream::Stderr) => (time, begun + &text),
            (None, _) => (time, text),
            (Some(begun), LogStream::System) => {
                self.begun.insert(id.clone(), begun);
                (time, text)
            }
        };
        if continued && text.len() < LINE_BYTES_MAX {
            self.begun.insert(id, (time, text));
            return None;
        }
        Some(self.line(&id.0, time, stream, &text))
    }

    /// The lines of a job run's change to a state. What its attempt has begun ends with it.
    pub fn state(&mut self, event: &StateEvent) -> Vec<String> {
        let Some(key) = &event.key else { return Vec::new() };
        let ended = !matches!(event.state.as_str(), "blocked" | "assigned" | "running");
        let mut lines = if ended { self.finish(Some(key)) } else { Vec::new() };
        let again = event.attempt.is_some_and(|attempt| attempt > AttemptNumber::FIRST);
        // Every job run is queued and assigned: only what holds one up is of note.
        let of_note = match event.state.as_str() {
            "blocked" | "assigned" => false,
            "queued" => event.reason.is_some() || event.attempt.is_some(),
            _ => true,
        };
        if !of_note {
            return lines;
        }
        let mut text = printable(&event.state);
        if let ("running", Some(agent)) = (event.state.as_str(), &event.agent) {
            let _ = write!(text, " on {}", printable(agent));
        }
        if let Some(reason) = &event.reason {
            let _ = write!(text, ": {}", printable(reason));
        }
        let failed = matches!(event.state.as_str(), "failed" | "timed_out" | "lost");
        if let Some(attempt) = event.attempt.filter(|_| again || failed) {
            let _ = write!(text, ", attempt {attempt}");
        }
        let style = match event.state.as_str() {
            "succeeded" | "failed" | "timed_out" | "lost" | "canceled" => Style::of_state(&event.state),
            _ => Style::Dim,
        };
        lines.push(self.remark(key, event.time, &text, style));
        lines
    }

    /// The line of a file that was kept.
    #[must_use]
    pub fn artifact(&self, event: &ArtifactEvent) -> String {
        let file = &event.artifact;
        let text = format!("kept {} ({}, {})", file.path, size(file.size), file.digest);
        self.remark(&file.key, event.time, &text, Style::Dim)
    }

    /// What has begun of one job run's lines, or of all.
    pub fn finish(&mut self, key: Option<&JobKey>) -> Vec<String> {
        let ends = |id: &(JobKey, AttemptNumber, bool)| key.is_none_or(|key| id.0 == *key);
        let mut ended: Vec<_> = self.begun.extract_if(|id, _| ends(id)).collect();
        ended.sort_unstable();
        let line = |((key, _, stdout), (time, text)): ((JobKey, _, bool), (_, String))| {
            let stream = if stdout { LogStream::Stdout } else { LogStream::Stderr };
            self.line(&key, time, stream, &text)
        };
        ended.into_iter().map(line).collect()
    }

    fn line(&self, key: &JobKey, time: Timestamp, stream: LogStream, text: &str) -> String {
        let (mark, style) = match stream {
            LogStream::Stdout => ("|", Style::Dim),
            LogStream::Stderr => ("!", Style::Bad),
            LogStream::System => ("*", Style::Warn),
        };
        let mut line = self.start(key, time);
        if self.look.keys {
            line.push_str(&style.paint(mark, self.look.color));
            line.push(' ');
        }
        let text = text.strip_suffix('\r').unwrap_or(text);
        if self.look.terminal {
            let text = printable_log(text);
            line.push_str(&text);
            // A colour that the line left on would run into the next key.
            if text.contains('\u{1b}') && !text.ends_with("\u{1b}[0m") {
                line.push_str("\u{1b}[0m");
            }
        } else {
            line.push_str(text);
        }
        line
    }

    fn remark(&self, key: &JobKey, time: Timestamp, text: &str, style: Style) -> String {
        format!("{}  {}", self.start(key, time), style.paint(text, self.look.color))
    }

    fn start(&self, key: &JobKey, time: Timestamp) -> String {
        let mut start = String::new();
        if self.look.timestamps {
            let _ = write!(start, "{} ", Style::Dim.paint(&time.to_string(), self.look.color));
        }
        if self.look.keys {
            let shown = format!("{key:width$} ", width = self.width);
            start.push_str(&Style::of_key(key.as_str()).paint(&shown, self.look.color));
        }
        start
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(key: &str, stream: &str, text: &str, continued: bool) -> LogEntry {
        serde_json::from_value(json!({
            "seq": 0, "time": "2026-01-31T12:00:00Z", "key": key, "job": "x", "matrix": {}, "attempt": 1,
            "stream": stream, "text": text, "continued": continued,
        }))
        .unwrap()
    }

    fn state(key: Option<&str>, state: &str, attempt: Option<u32>, reason: Option<&str>) -> StateEvent {
        serde_json::from_value(json!({
            "key": key, "state": state, "attempt": attempt, "agent": "builder-1",
            "time": "2026-01-31T12:00:00Z", "reason": reason,
        }))
        .unwrap()
    }

    fn lines(look: Look) -> Lines {
        Lines::new(look, &["compile".parse().unwrap(), "lint".parse().unwrap()])
    }

    const KEYS: Look = Look { color: false, terminal: false, timestamps: false, keys: true };

    #[test]
    fn a_line_stands_behind_its_key_and_shows_where_it_was_written_to() {
        let mut lines = lines(KEYS);
        let mut line = |key, stream| lines.entry(entry(key, stream, "text\r", false)).unwrap();
        assert_eq!(line("compile", "stdout"), "compile | text");
        assert_eq!(line("lint", "stderr"), "lint    ! text");
        assert_eq!(line("lint", "system"), "lint    * text");
        let mut plain = self::lines(Look { timestamps: true, keys: false, ..KEYS });
        let line = plain.entry(entry("lint", "stderr", "\u{1b}[2Jx", false)).unwrap();
        assert_eq!(line, "2026-01-31T12:00:00.000000Z \u{1b}[2Jx", "a file gets what was written");
    }

    #[test]
    fn a_terminal_gets_colours_and_no_other_commands() {
        let mut lines = lines(Look { color: true, terminal: true, ..KEYS });
        let line = lines.entry(entry("lint", "stderr", "\u{1b}[1mx\u{1b}[2J", false)).unwrap();
        assert_eq!(line, "\u{1b}[94mlint    \u{1b}[0m\u{1b}[31m!\u{1b}[0m \u{1b}[1mx\\u{1b}[2J\u{1b}[0m");
        let failed = lines.state(&state(Some("lint"), "failed", Some(1), Some("exit code 3")));
        assert_eq!(
            failed,
            ["\u{1b}[94mlint    \u{1b}[0m  \u{1b}[31mfailed: exit code 3, attempt 1\u{1b}[0m"]
        );
    }

    #[test]
    fn pieces_are_joined_by_stream_and_what_has_begun_is_shown_at_the_end() {
        let mut lines = lines(KEYS);
        assert_eq!(lines.entry(entry("lint", "stdout", "ab", true)), None);
        assert_eq!(lines.entry(entry("lint", "stderr", "12", true)), None);
        assert_eq!(lines.entry(entry("compile", "stdout", "x", true)), None);
        assert_eq!(lines.entry(entry("lint", "system", "note", false)).unwrap(), "lint    * note");
        assert_eq!(lines.entry(entry("lint", "stdout", "c", true)), None);
        assert_eq!(lines.entry(entry("lint", "stdout", "d", false)).unwrap(), "lint    | abcd");
        let end = lines.state(&state(Some("lint"), "succeeded", Some(1), None));
        assert_eq!(end, ["lint    ! 12", "lint      succeeded"]);
        assert_eq!(lines.finish(None), ["compile | x"]);
        let long = "x".repeat(LINE_BYTES_MAX / 2);
        assert_eq!(lines.entry(entry("lint", "stdout", &long, true)), None);
        let line = lines.entry(entry("lint", "stdout", &long, true)).unwrap();
        assert_eq!(line.len(), "lint    | ".len() + LINE_BYTES_MAX, "an endless line is bounded");
    }

    #[test]
    fn a_state_is_told_where_it_is_of_note() {
        let mut lines = lines(KEYS);
        let mut told = |state_, attempt, reason| {
            lines.state(&state(Some("compile"), state_, attempt, reason)).join("\n")
        };
        assert_eq!(told("blocked", None, None) + &told("assigned", Some(1), None), "");
        assert_eq!(told("queued", None, None), "");
        assert_eq!(
            told("queued", None, Some("no agent has os=plan9")),
            "compile   queued: no agent has os=plan9"
        );
        assert_eq!(told("running", Some(1), None), "compile   running on builder-1");
        assert_eq!(told("running", Some(2), None), "compile   running on builder-1, attempt 2");
        assert_eq!(told("lost", Some(3), Some("a\u{7}")), "compile   lost: a\\u{7}, attempt 3");
        assert_eq!(lines.state(&state(None, "running", None, None)), Vec::<String>::new());
    }
}
