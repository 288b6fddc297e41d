//! `GET /v1/events`: all changes of all pack runs, from now on.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use packrun_protocol::id::PackRunId;
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::event::{ALIVE, ChangeEvent, KEEP_ALIVE, put};
use super::names::AgentNames;
use super::open::{TOKEN_CHECK, guarded};
use crate::api::auth::Viewer;
use crate::api::problem::ApiError;
use crate::api::{Api, App};
use crate::core::change::FeedRow;
use crate::engine::FeedBatch;

/// A change of one of many pack runs.
#[derive(Debug, Serialize)]
struct InRun {
    pack_run: PackRunId,
    #[serde(flatten)]
    event: ChangeEvent,
}

/// Somebody's stream.
pub(super) struct Changes {
    app: App,
    agents: AgentNames,
    /// Whoever reads it has missed some, and doesn't know yet.
    is_behind: bool,
    news: broadcast::Receiver<Arc<FeedBatch>>,
}

/// What changes in all pack runs, from now on: `state` and `artifact` as in a pack run's stream, each with its
/// `pack_run`. `reset`: the client was too slow, or comes back, and has missed some; what follows is new again.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "runs",
    operation_id = "follow_events",
    params(("Last-Event-ID" = Option<String>, Header, description = "Whoever has one has missed some: `reset` comes first")),
    responses(
        (status = 200, description = "The events", content_type = "text/event-stream"),
    ),
)]
pub(super) async fn events(
    viewer: Viewer,
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let open = api.streams.place()?;
    let mut changes = Changes::new(api.app.clone());
    changes.is_behind = headers.contains_key("last-event-id");
    let events = stream::unfold(changes, |mut changes| async move {
        // What failed is in the coordinator's log; the client comes back.
        let events = changes.next().await.ok().flatten()?;
        Some((events, changes))
    });
    Ok(guarded(events, (viewer, api.app, TOKEN_CHECK), open))
}

impl Changes {
    /// From now on.
    pub(super) fn new(app: App) -> Self {
        Self { news: app.engine.follow(), agents: AgentNames::default(), is_behind: false, app }
    }

    /// The next events; `None` when the coordinator stops.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let mut out = Vec::new();
        if std::mem::take(&mut self.is_behind) {
            put(&mut out, "reset", None, &serde_json::json!({}));
            return Ok(Some(out.into()));
        }
        let told = tokio::select! {
            () = self.app.stop.cancelled() => return Ok(None),
            told = tokio::time::timeout(KEEP_ALIVE, self.news.recv()) => told,
        };
        match told {
            Err(_) => return Ok(Some(ALIVE)),
            Ok(Err(RecvError::Closed)) => return Ok(None),
            Ok(Err(RecvError::Lagged(_))) => put(&mut out, "reset", None, &serde_json::json!({})),
            Ok(Ok(batch)) => {
                for row in &*batch {
                    self.put(&mut out, row.clone()).await?;
                }
            }
        }
        Ok(Some(out.into()))
    }

    async fn put(&mut self, out: &mut Vec<u8>, row: FeedRow) -> Result<(), ApiError> {
        let pack_run = row.pack_run;
        let event = ChangeEvent::of(row, &mut self.agents, &self.app).await?;
        put(out, event.name(), None, &InRun { pack_run, event });
        Ok(())
    }
}
