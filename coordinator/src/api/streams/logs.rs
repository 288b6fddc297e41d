//! `GET /v1/pack-runs/{id}/logs`: all attempts in chronological order.

use std::collections::HashSet;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use packrun_protocol::id::{AttemptId, JobRunId, PackRunId};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use utoipa::IntoParams;

use super::cursor::{LOG_START, log_cursor, parse_log_cursor};
use super::names::Names;
use super::page::{Entries, Format, TEXT_BYTES, answer, limit, unreadable};
use super::source::{attempts, kept};
use crate::api::auth::Viewer;
use crate::api::extract::{PathOf, QueryOf};
use crate::api::problem::{ApiError, ProblemKind};
use crate::api::types::{LogEntry, Page, schema};
use crate::api::{Api, App};
use crate::logs::merge::MergeKey;
use crate::logs::{AppendError, ChronologicalReader, Extent};

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Only those of this job, or of the job run with this key.
    #[param(example = "test[shard=1]")]
    job: Option<String>,
    /// Behind this place: the last page's `next_cursor`.
    cursor: Option<String>,
    /// At most so many, 1 to 10,000; 1,000 unless it is said.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u32>,
    /// `json`, `ndjson` or `text`; goes before `Accept`.
    #[param(inline)]
    format: Option<Format>,
}

/// The log entries of a pack run, in chronological order over all its job runs.
///
/// Whatever the size of the pages, they make the same list. Of a run that lives there is always a next page, for
/// those who poll: it has what is certain to come before all that is still to come.
#[utoipa::path(
    get,
    path = "/v1/pack-runs/{id}/logs",
    tag = "runs",
    operation_id = "list_pack_run_logs",
    params(("id" = schema::Id, Path, description = "The pack run"), Asked),
    responses(
        (status = 200, description = "A page; `Link` has the next. In NDJSON an entry is a line",
            content((Page<LogEntry> = "application/json"), (String = "text/plain"), (LogEntry = "application/x-ndjson"))),
        (status = 404, description = "There is no such pack run, or it has no such job"),
    ),
)]
pub(super) async fn pack_run_logs(
    _: Viewer,
    State(api): State<Api>,
    PathOf(id): PathOf<PackRunId>,
    QueryOf(asked): QueryOf<Asked>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let most = limit(asked.limit)?;
    let format = asked.format.unwrap_or_else(|| Format::accepted(&headers));
    let cursor = asked.cursor.as_deref().unwrap_or(LOG_START);
    let invalid = || ApiError::new(ProblemKind::InvalidCursor, "`cursor` is none that a page of logs gave");
    let after = parse_log_cursor(cursor).ok_or_else(invalid)?;
    let names = Names::find(&api, id).await?;
    let jobs = asked.job.as_deref().map(|job| names.select(job)).transpose()?;
    let (mut reader, is_live) = open(&api.app, id, jobs, after, most).await?;
    let (entries, last) = read(&mut reader, most).await?;
    let next = match last {
        Some(last) if is_live || entries.then.is_some() => Some(log_cursor(last)),
        None if is_live => Some(cursor.to_owned()),
        _ => None,
    };
    let next = next.map(|next| {
        let address = address(id, &asked, format, &next);
        (next, address)
    });
    answer(&entries, &names, format, next)
}

/// A reader of the entries behind `after`, of `jobs` or of all, and whether more may come. It gives at least `most`
/// and one, if there are so many.
async fn open(
    app: &App,
    run: PackRunId,
    jobs: Option<HashSet<JobRunId>>,
    after: Option<MergeKey>,
    most: usize,
) -> Result<(ChronologicalReader, bool), ApiError> {
    let chosen = |attempt: &AttemptId| jobs.as_ref().is_none_or(|jobs| jobs.contains(&attempt.job_run));
    loop {
        if app.logs.feed_progress(run).is_some() {
            let away = app.engine.look(move |core| core.away(run)).await?;
            let settled = app.logs.settle(run, away, app.clock.now()).await;
            let watermark = settled.map_err(|error| closed(&error))?;
            let opened = app.logs.attempts(run).unwrap_or_default();
            let extents = |attempt| app.logs.extents_behind(attempt, after, most.saturating_add(1));
            let live: Option<Vec<_>> =
                opened.into_iter().filter(chosen).map(|attempt| Some((attempt, extents(attempt)?))).collect();
            match live {
                Some(live) if app.logs.feed_progress(run).is_some() => {
                    return Ok((app.logs.read_chronological(live, after, Some(watermark)), true));
                }
                // It was closed in between.
                _ => continue,
            }
        }
        let chosen_jobs = jobs.clone();
        let kept = app.read(move |reader| if_over(reader, run, chosen_jobs.as_ref())).await?;
        let is_live = kept.is_none();
        if is_live && app.logs.feed_progress(run).is_some() {
            continue;
        }
        return Ok((app.logs.read_chronological(kept.unwrap_or_default(), after, None), is_live));
    }
}

/// Where the log of an attempt lies.
type Kept = (AttemptId, Vec<Extent>);

/// What is kept of a pack run that is over.
fn if_over(
    reader: &crate::engine::Reader,
    run: PackRunId,
    jobs: Option<&HashSet<JobRunId>>,
) -> Result<Option<Vec<Kept>>, ApiError> {
    if !reader.progress(run)?.is_some_and(|progress| progress.state.is_terminal()) {
        return Ok(None);
    }
    let all = attempts(reader, run)?.into_iter();
    let chosen = all.filter(|attempt| jobs.is_none_or(|jobs| jobs.contains(&attempt.job_run)));
    chosen.map(|attempt| Ok((attempt, kept(reader, attempt)?))).collect::<Result<_, _>>().map(Some)
}

async fn read(
    reader: &mut ChronologicalReader,
    most: usize,
) -> Result<(Entries, Option<MergeKey>), ApiError> {
    let (mut entries, mut last, mut bytes) = (Entries { items: Vec::new(), then: None }, None, 0);
    while let Some((key, entry)) = reader.next().await.map_err(|error| unreadable(&error))? {
        if entries.items.len() == most || bytes >= TEXT_BYTES {
            entries.then = Some((key.attempt, entry));
            break;
        }
        bytes += entry.text.len();
        last = Some(key);
        entries.items.push((key.attempt, entry));
    }
    Ok((entries, last))
}

fn address(run: PackRunId, asked: &Asked, format: Format, next: &str) -> String {
    let mut address = format!("/v1/pack-runs/{run}/logs?cursor={next}");
    if let Some(job) = &asked.job {
        address.push_str("&job=");
        address.extend(utf8_percent_encode(job, NON_ALPHANUMERIC));
    }
    if let Some(limit) = asked.limit {
        address.push_str(&format!("&limit={limit}"));
    }
    address.push_str("&format=");
    address.push_str(format.as_str());
    address
}

fn closed(error: &AppendError) -> ApiError {
    ApiError::new(ProblemKind::Unavailable, format!("the coordinator stops: {error}"))
}
