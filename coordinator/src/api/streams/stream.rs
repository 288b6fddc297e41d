//! `GET /v1/pack-runs/{id}/stream`.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use packrun_protocol::id::PackRunId;
use packrun_protocol::time::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::cursor::parse_event_id;
use super::feed::Place;
use super::follow::{Follower, Opened};
use super::open::{TOKEN_CHECK, guarded};
use crate::api::Api;
use crate::api::auth::Viewer;
use crate::api::extract::{PathOf, QueryOf};
use crate::api::problem::{ApiError, ProblemKind};
use crate::api::types::schema;

/// Where a stream begins.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    /// The id of the last event that was seen; `Last-Event-ID` goes before it.
    cursor: Option<String>,
    /// No log entries from before this time, RFC 3339; states and artifacts all the same.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
}

/// What happens in a pack run, from its start: `log` (a LogEntry), `state` (a StateEvent), `artifact` (an
/// ArtifactEvent), and at last `end` (an EndEvent), after which the response ends. `reset`: the place that was asked
/// for was lost in a power cut; all follows again.
///
/// Entries come as they arrive, a job run's `running` before its first and its end after its last. Each event has an
/// id; who comes back with the last one goes on behind it.
#[utoipa::path(
    get,
    path = "/v1/pack-runs/{id}/stream",
    tag = "runs",
    operation_id = "follow_pack_run",
    params(("id" = schema::Id, Path, description = "The pack run"), From, ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen")),
    responses(
        (status = 200, description = "The events", content_type = "text/event-stream"),
        (status = 204, description = "The event that was named was the last"),
        (status = 404, description = "There is no such pack run"),
    ),
)]
pub(super) async fn stream(
    viewer: Viewer,
    State(api): State<Api>,
    PathOf(id): PathOf<PackRunId>,
    QueryOf(from): QueryOf<From>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let last = match headers.get("last-event-id") {
        Some(value) => Some(value.to_str().map_err(|_| invalid())?.to_owned()),
        None => from.cursor,
    };
    let last = last.filter(|last| !last.is_empty());
    let place = last.map_or(Ok(Place::default()), |last| parse_event_id(&last).ok_or_else(invalid))?;
    let open = api.streams.place()?;
    let follower = match Follower::open(&api, id, place, from.since).await? {
        Opened::Ended => return Ok(StatusCode::NO_CONTENT.into_response()),
        Opened::Follower(follower) => follower,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        // What failed is in the coordinator's log; without an `end` the client comes back.
        let events = follower.next().await.ok().flatten()?;
        Some((events, follower))
    });
    Ok(guarded(events, (viewer, api.app, TOKEN_CHECK), open))
}

fn invalid() -> ApiError {
    let detail = "the last event's id is none that a stream gave; leave it out to read all";
    ApiError::new(ProblemKind::InvalidCursor, detail)
}
