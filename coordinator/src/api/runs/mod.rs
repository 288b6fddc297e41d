//! Pack runs and job runs: listed and shown here, started and retried in `start`, canceled in `cancel`; what they
//! look like to clients is put together in `body`.

mod body;
mod cancel;
mod start;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use packrun_protocol::id::{JobRunId, PackRunId};
use packrun_protocol::name::Name;
use packrun_protocol::state::{PackRunState, Reason};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Viewer;
use super::extract::{PathOf, QueryOf};
use super::paging::{self, List, Paged};
use super::problem::ApiError;
use super::types::{JobRun, PackRun, Page, schema};
use super::{Api, App};
use crate::engine::RunFilter;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(start::create, list))
        .routes(routes!(show))
        .routes(routes!(start::retry))
        .routes(routes!(cancel::pack_run))
        .routes(routes!(show_job_run))
        .routes(routes!(cancel::job_run))
}

/// A page of pack runs whose parameters have this many bytes takes no more.
const PAGE_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only runs of this pack.
    #[param(value_type = Option<schema::Name>)]
    pack: Option<Name>,
    /// Only runs in this state.
    #[param(value_type = Option<schema::PackRunState>)]
    state: Option<PackRunState>,
    /// Most items: 1 to 500; 50 without.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Pack runs, newest first.
#[utoipa::path(
    get, path = "/v1/pack-runs", tag = "runs", operation_id = "list_pack_runs", params(ListQuery),
    responses((status = 200, description = "A page of them, without their job runs", body = Page<PackRun>)),
)]
async fn list(
    _: Viewer,
    State(app): State<App>,
    uri: Uri,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Paged<PackRun>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let id_of = |key: &[u8]| key.try_into().ok().map(PackRunId::from_bytes);
    let before = paging::key(List::PackRuns, query.cursor.as_deref(), id_of)?;
    let filter = RunFilter { pack: query.pack, state: query.state };
    let page = app.read(move |reader| {
        let ids = reader.runs(&filter, before, limit)?;
        let (mut items, mut next, mut bytes) = (Vec::new(), ids.next, 0);
        let mut ids = ids.items.into_iter().peekable();
        while let Some(id) = ids.next() {
            let run = body::pack_run(reader, id)?;
            bytes += start::bytes(&run.params);
            items.push(run);
            if bytes >= PAGE_BYTES && ids.peek().is_some() {
                next = Some(id);
                break;
            }
        }
        let next_cursor = next.map(|id| paging::cursor(List::PackRuns, &id.to_bytes()));
        Ok(Page { items, next_cursor })
    });
    Ok(Paged::new(page.await?, uri))
}

/// A pack run with its job runs, in the order of its plan.
#[utoipa::path(
    get, path = "/v1/pack-runs/{id}", tag = "runs", operation_id = "show_pack_run",
    params(("id" = schema::Id, Path, description = "The pack run")),
    responses(
        (status = 200, description = "It", body = PackRun),
        (status = 404, description = "No such pack run"),
    ),
)]
async fn show(
    _: Viewer,
    State(api): State<Api>,
    PathOf(id): PathOf<PackRunId>,
) -> Result<impl IntoResponse, ApiError> {
    let waiting = api.app.engine.look(move |core| core.why_all_queued(id)).await.unwrap_or_default();
    // The JSON of 20,000 job runs is some megabytes: it is made where it holds up nobody.
    let body = api.planner.read(&api.app, move |reader| {
        let run = body::whole_pack_run(reader, id, &waiting)?;
        serde_json::to_vec(&run).map_err(|error| ApiError::internal(&error))
    });
    Ok(([(CONTENT_TYPE, "application/json")], body.await?))
}

/// A job run with its attempts.
#[utoipa::path(
    get, path = "/v1/runs/{id}", tag = "runs", operation_id = "show_run",
    params(("id" = schema::Id, Path, description = "The job run")),
    responses(
        (status = 200, description = "It", body = JobRun),
        (status = 404, description = "No such job run"),
    ),
)]
async fn show_job_run(
    _: Viewer,
    State(api): State<Api>,
    PathOf(id): PathOf<JobRunId>,
) -> Result<Json<JobRun>, ApiError> {
    job_run(&api, id).await.map(Json)
}

/// A job run with its attempts, from the store and, while it lives, from the core.
async fn job_run(api: &Api, id: JobRunId) -> Result<JobRun, ApiError> {
    let live = api.app.engine.look(move |core| Some((core.live_job_run(id)?, core.why_queued(id)))).await;
    let live = live.ok().flatten();
    api.planner.read(&api.app, move |reader| body::whole_job_run(reader, id, live)).await
}

/// Why job runs are blocked or queued, in the order of their index.
type Waiting = [(u32, Arc<Reason>)];
