//! A client of the API.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::stage::Stage;

/// Nothing in a test takes this long, unless it hangs.
pub(super) const HANGS: Duration = Duration::from_secs(60);

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) data: Value,
}

/// A stream of events that is read.
pub(super) struct Events {
    response: Response,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Seen> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<_> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).unwrap();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                let Some(name) = field("event: ") else { continue };
                return Some(Seen {
                    name: name.to_owned(),
                    id: field("id: ").unwrap_or_default().to_owned(),
                    data: serde_json::from_str(field("data: ").unwrap()).unwrap(),
                });
            }
            let chunk = tokio::time::timeout(HANGS, self.response.chunk()).await.expect("something comes");
            self.buffer.extend_from_slice(&chunk.unwrap()?);
        }
    }

    /// All events up to one of which this holds.
    pub(super) async fn until(&mut self, last: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            let is_last = last(&event);
            events.push(event);
            if is_last {
                return events;
            }
        }
        panic!("the stream ended: {events:?}");
    }

    /// All events to the end of the response.
    pub(super) async fn rest(mut self) -> Vec<Seen> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

impl Stage {
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.url);
        reqwest::Client::new().request(method, url).bearer_auth(self.token.to_string())
    }

    pub(super) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).timeout(HANGS).send().await.unwrap()
    }

    /// The JSON at a path that is there.
    pub(super) async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The stream at a path, behind this event.
    pub(super) async fn events(&self, path: &str, last: Option<&str>) -> Events {
        let mut request = self.request(Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { response, buffer: Vec::new() }
    }
}
