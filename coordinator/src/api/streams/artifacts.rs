//! `GET /v1/pack-runs/{id}/artifacts`: what the newest attempt of each job run has left. A job run that took over an
//! earlier one's success has that one's.

use axum::extract::State;
use axum::http::Uri;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::name::JobKey;
use packrun_protocol::path::RelativePath;
use serde::Deserialize;
use utoipa::IntoParams;

use super::names::{Names, no_run, shown};
use super::page::limit;
use crate::api::Api;
use crate::api::auth::Viewer;
use crate::api::extract::{PathOf, QueryOf};
use crate::api::paging::Paged;
use crate::api::problem::{ApiError, ProblemKind};
use crate::api::types::{Artifact, Page, schema};
use crate::core::change::JobRunRow;
use crate::engine::Reader;

/// Retries of retries that are followed to where a success was first.
const REUSED_MAX: usize = 10_000;

/// Which artifacts.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Behind this place: the last page's `next_cursor`.
    cursor: Option<String>,
    /// At most so many, 1 to 10,000; 1,000 unless it is said.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u32>,
}

/// The files that the newest attempts of a pack run's job runs have left, by job run and path.
#[utoipa::path(
    get,
    path = "/v1/pack-runs/{id}/artifacts",
    tag = "runs",
    operation_id = "list_artifacts",
    params(("id" = schema::Id, Path, description = "The pack run"), Asked),
    responses(
        (status = 200, description = "A page", body = Page<Artifact>),
        (status = 404, description = "There is no such pack run"),
    ),
)]
pub(super) async fn artifacts(
    _: Viewer,
    State(api): State<Api>,
    PathOf(id): PathOf<PackRunId>,
    uri: Uri,
    QueryOf(asked): QueryOf<Asked>,
) -> Result<Paged<Artifact>, ApiError> {
    let most = limit(asked.limit)?;
    let after = asked.cursor.as_deref().map(parse).transpose()?;
    let page = api.planner.read(&api.app, move |reader| list(reader, id, after.as_ref(), most)).await?;
    Ok(Paged::new(page, uri))
}

/// A file's place in the list: the job run's, and its path.
type Place = (u32, RelativePath);

fn list(
    reader: &Reader,
    run: PackRunId,
    after: Option<&Place>,
    most: usize,
) -> Result<Page<Artifact>, ApiError> {
    let names = Names::read(reader, run)?;
    let (mut items, mut last) = (Vec::new(), None);
    for row in reader.job_runs(run)? {
        if after.is_some_and(|(index, _)| row.index < *index) {
            continue;
        }
        let (index, Some(key)) = (row.index, names.key(row.id)) else { continue };
        let Some(attempt) = origin(reader, row)? else { continue };
        let behind = after.filter(|(place, _)| *place == index).map(|(_, path)| path);
        for found in reader.artifacts_behind(attempt, behind, most - items.len() + 1)? {
            let place = (index, found.artifact.path.clone());
            if items.len() == most {
                return Ok(Page { items, next_cursor: last.as_ref().map(cursor) });
            }
            items.push(shown(key.clone(), attempt.number, found.artifact));
            last = Some(place);
        }
    }
    Ok(Page { items, next_cursor: None })
}

/// A file of a pack run, by the job run's key and its path.
///
/// # Errors
/// When there is none, or the store can't be read. It blocks on the disk.
pub(super) fn find(
    reader: &Reader,
    run: PackRunId,
    key: &JobKey,
    path: &RelativePath,
) -> Result<crate::core::event::Artifact, ApiError> {
    let plan = reader.plan(run)?.ok_or_else(|| no_run(run))?;
    let planned = plan.job_runs().find(|planned| planned.key == *key);
    let planned =
        planned.ok_or_else(|| ApiError::not_found(format!("the pack run has no job run `{key}`")))?;
    let attempt = match reader.job_run(planned.id)? {
        Some(row) => origin(reader, row)?,
        None => None,
    };
    let found = attempt.map(|attempt| reader.artifact(attempt, path)).transpose()?.flatten();
    found
        .map(|found| found.artifact)
        .ok_or_else(|| ApiError::not_found(format!("job run `{key}` has no artifact `{path}`")))
}

/// The attempt whose artifacts are a job run's.
fn origin(reader: &Reader, row: JobRunRow) -> Result<Option<AttemptId>, ApiError> {
    let mut row = row;
    for _ in 0..REUSED_MAX {
        let Some(from) = row.reused_from else {
            return Ok(row.attempt.map(|number| AttemptId { job_run: row.id, number }));
        };
        let Some(earlier) = reader.job_run(from)? else { return Ok(None) };
        row = earlier;
    }
    Ok(None)
}

fn cursor((index, path): &Place) -> String {
    URL_SAFE_NO_PAD.encode(format!("{index}/{path}"))
}

fn parse(cursor: &str) -> Result<Place, ApiError> {
    let place = || {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (index, path) = std::str::from_utf8(&bytes).ok()?.split_once('/')?;
        Some((index.parse().ok()?, path.parse().ok()?))
    };
    let invalid =
        || ApiError::new(ProblemKind::InvalidCursor, "`cursor` is none that a page of artifacts gave");
    place().ok_or_else(invalid)
}
