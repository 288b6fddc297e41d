//! Server-sent events, as a browser would read them.

use std::collections::VecDeque;

use reqwest::Response;
use serde_json::Value;

use crate::in_time;

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its id, to resume behind it.
    pub id: String,
    /// `log`, `state`, `artifact`, `end` or `reset`.
    pub kind: String,
    /// What it says.
    pub data: Value,
}

impl Event {
    /// Whether this is a job run, or without a key the pack run, that enters a state.
    #[must_use]
    pub fn is_state(&self, key: Option<&str>, state: &str) -> bool {
        self.kind == "state" && self.data["key"].as_str() == key && self.data["state"] == state
    }

    /// Whether this is an entry with this text.
    #[must_use]
    pub fn is_line(&self, text: &str) -> bool {
        self.kind == "log" && self.data["text"] == text
    }
}

/// An event as it came: its data is text.
#[derive(Debug, Clone)]
pub struct RawEvent {
    /// Its id, to resume behind it.
    pub id: String,
    /// As that of [`Event`].
    pub kind: String,
    /// JSON.
    pub data: String,
}

/// The events of a stream, as they come.
#[derive(Debug)]
pub struct Events {
    answer: Response,
    buffer: Vec<u8>,
    ready: VecDeque<RawEvent>,
}

impl Events {
    pub(crate) fn new(answer: Response) -> Self {
        Self { answer, buffer: Vec::new(), ready: VecDeque::new() }
    }

    /// The next event; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Event> {
        let RawEvent { id, kind, data } = self.next_raw().await?;
        Some(Event { id, kind, data: serde_json::from_str(&data).unwrap() })
    }

    /// The next event without a look at its data; `None` when the stream has ended.
    pub async fn next_raw(&mut self) -> Option<RawEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let chunk = in_time("an event", self.answer.chunk()).await;
            // A coordinator that was killed leaves no proper end.
            self.buffer.extend_from_slice(&chunk.ok().flatten()?);
            let Some(end) = self.buffer.windows(2).rposition(|pair| pair == b"\n\n") else { continue };
            let rest = self.buffer.split_off(end + 2);
            let text = String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
            self.ready.extend(text.split("\n\n").filter_map(parse));
        }
    }

    /// All events up to the first that `is_it`, with it.
    pub async fn until(&mut self, is_it: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let Some(event) = self.next().await else {
                panic!("the stream ended without the event; it had {events:#?}");
            };
            let found = is_it(&event);
            events.push(event);
            if found {
                return events;
            }
        }
    }

    /// All events to the end of the stream.
    pub async fn to_end(mut self) -> Vec<Event> {
        let events = self.until(|event| event.kind == "end").await;
        assert!(self.next().await.is_none(), "`end` is the last event");
        events
    }
}

fn parse(text: &str) -> Option<RawEvent> {
    let (mut id, mut kind, mut data) = (String::new(), String::from("message"), String::new());
    for line in text.lines() {
        match line.split_once(':') {
            Some(("id", value)) => id = value.trim_start().to_owned(),
            Some(("event", value)) => kind = value.trim_start().to_owned(),
            Some(("data", value)) => data.push_str(value.trim_start()),
            _ => {}
        }
    }
    (!data.is_empty()).then_some(RawEvent { id, kind, data })
}
