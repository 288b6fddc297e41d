//! How the coordinator is, and what its API can: health for supervisors and load balancers, status for people, the
//! OpenAPI document for programs.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Viewer;
use super::problem::{ApiError, ProblemKind};
use super::types::Status;
use super::{Api, App};
use crate::engine;
use crate::pack::JSON_SCHEMA;

/// What is answered however busy the coordinator is, and to everybody.
pub(super) fn open_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(openapi))
        .routes(routes!(pack_schema))
}

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(status))
}

/// Whether the process lives.
#[utoipa::path(
    get, path = "/healthz", tag = "coordinator", operation_id = "show_health", security(()),
    responses((status = 200, description = "It does", body = String, content_type = "text/plain", example = "ok")),
)]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the coordinator takes work.
#[utoipa::path(
    get, path = "/readyz", tag = "coordinator", operation_id = "show_readiness", security(()),
    responses(
        (status = 200, description = "It does", body = String, content_type = "text/plain", example = "ready"),
        (status = 503, description = "It doesn't, for this reason"),
    ),
)]
async fn readyz(State(app): State<App>) -> Result<&'static str, ApiError> {
    match trouble(&app) {
        None => Ok("ready\n"),
        Some(reason) => Err(ApiError::new(ProblemKind::Unavailable, reason)),
    }
}

/// Why the coordinator takes no work.
pub(super) fn trouble(app: &App) -> Option<String> {
    if app.stop.is_cancelled() {
        return Some("the coordinator stops".to_owned());
    }
    if let engine::Health::Stopped(reason) = &*app.engine.health().borrow() {
        return Some(reason.clone());
    }
    let logs = app.logs.health().borrow().clone();
    let failed = [("written", logs.write), ("synced", logs.sync)];
    let reason = failed.into_iter().find_map(|(what, reason)| Some((what, reason?)));
    reason.map(|(what, reason)| format!("the log can't be {what}: {reason}"))
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "coordinator", operation_id = "show_openapi", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json")),
)]
async fn openapi(State(api): State<Api>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], api.document)
}

/// The JSON Schema of a pack file, for editors. It can't say all that registering finds.
#[utoipa::path(
    get, path = "/v1/pack-schema.json", tag = "packs", operation_id = "show_pack_schema", security(()),
    responses((status = 200, description = "JSON Schema, draft 2020-12", body = Object, content_type = "application/schema+json")),
)]
async fn pack_schema() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/schema+json")], JSON_SCHEMA)
}

/// How the coordinator is, and how much it has to do.
#[utoipa::path(
    get, path = "/v1/status", tag = "coordinator", operation_id = "show_status",
    responses((status = 200, description = "It", body = Status)),
)]
async fn status(_: Viewer, State(app): State<App>) -> Result<Json<Status>, ApiError> {
    let reason = trouble(&app);
    let started_at = app.started_at;
    let status = app.engine.look(move |core| {
        let gauges = core.gauges();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: core.epoch().0,
            started_at,
            ready: reason.is_none(),
            reason,
            pack_runs: count(gauges.pack_runs),
            queued: count(gauges.queued),
            held: count(gauges.held),
            agents: count(gauges.connected),
            quarantined: core.quarantined().map(|(id, error)| (id, error.to_string())).collect(),
        }
    });
    Ok(Json(status.await?))
}

fn count(things: usize) -> u64 {
    u64::try_from(things).unwrap_or(u64::MAX)
}
