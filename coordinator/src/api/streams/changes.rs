//! `GET /v1/events`: all changes of all pack runs, from now on.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use packrun_protocol::id::PackRunId;
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::event::{ALIVE, ChangeEvent, KEEP_ALIVE, put, response};
use super::names::AgentNames;
use crate::api::App;
use crate::api::auth::Viewer;
use crate::api::problem::ApiError;
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
    news: broadcast::Receiver<Arc<FeedBatch>>,
}

/// What changes in all pack runs, from now on: `state` and `artifact` as in a pack run's stream, each with its
/// `pack_run`. `reset`: the client was too slow and has missed some; what follows is new again.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "runs",
    responses((status = 200, description = "The events", content_type = "text/event-stream")),
    security(("token" = [])),
)]
pub(super) async fn events(_: Viewer, State(app): State<App>) -> Response {
    response(stream::unfold(Changes::new(app), |mut changes| async move {
        // What failed is in the coordinator's log; the client comes back.
        let events = changes.next().await.ok().flatten()?;
        Some((events, changes))
    }))
}

impl Changes {
    /// From now on.
    pub(super) fn new(app: App) -> Self {
        Self { news: app.engine.follow(), agents: AgentNames::default(), app }
    }

    /// The next events; `None` when the coordinator stops.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let told = tokio::select! {
            () = self.app.stop.cancelled() => return Ok(None),
            told = tokio::time::timeout(KEEP_ALIVE, self.news.recv()) => told,
        };
        let mut out = Vec::new();
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
