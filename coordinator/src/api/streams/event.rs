//! Server-sent events, as bytes.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;

use super::names::{AgentNames, shown};
use crate::api::App;
use crate::api::problem::ApiError;
use crate::api::types::{ArtifactEvent, StateEvent};
use crate::core::change::{FeedEntry, FeedRow};

/// The media type of a stream of events.
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// How long a stream may be silent: a comment says that it lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A comment that says that the stream lives.
pub(super) const ALIVE: Bytes = Bytes::from_static(b":\n\n");

/// A change as an event.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ChangeEvent {
    Artifact(ArtifactEvent),
    State(StateEvent),
}

impl ChangeEvent {
    /// The event of a change.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn of(row: FeedRow, agents: &mut AgentNames, app: &App) -> Result<Self, ApiError> {
        let time = row.at;
        Ok(match row.entry {
            FeedEntry::Artifact { key, attempt, artifact } => {
                let artifact = shown(key, attempt, artifact);
                Self::Artifact(ArtifactEvent { artifact, time })
            }
            FeedEntry::JobRun { key, state, attempt, agent, reason } => {
                let agent = match agent {
                    Some(agent) => agents.name(app, agent).await?,
                    None => None,
                };
                let reason = reason.map(|reason| reason.as_str().to_owned());
                let state = state.as_str().to_owned();
                Self::State(StateEvent { key: Some(key), state, attempt, agent, time, reason })
            }
            FeedEntry::PackRun(state) => {
                let state = state.as_str().to_owned();
                Self::State(StateEvent { key: None, state, attempt: None, agent: None, time, reason: None })
            }
        })
    }

    /// Its name.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Artifact(_) => "artifact",
            Self::State(_) => "state",
        }
    }
}

/// Appends an event. JSON has no line breaks, so its data is one line.
pub(super) fn put(out: &mut Vec<u8>, name: &str, id: Option<&str>, data: &impl Serialize) {
    let start = out.len();
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    if let Some(id) = id {
        out.extend_from_slice(b"\nid: ");
        out.extend_from_slice(id.as_bytes());
    }
    out.extend_from_slice(b"\ndata: ");
    if let Err(error) = serde_json::to_writer(&mut *out, data) {
        tracing::error!(%error, name, "an event is no JSON; it is left out");
        out.truncate(start);
        return;
    }
    out.extend_from_slice(b"\n\n");
}

/// The response that these events are.
pub(super) fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    use futures_util::StreamExt as _;
    let body = Body::from_stream(events.map(Ok::<_, Infallible>));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    // Proxies that collect what passes would hold back what is new.
    ([("x-accel-buffering", "no")], headers, body).into_response()
}
