//! `GET /v1/pack-runs/{id}/logs`: all attempts in chronological order.

use std::collections::HashSet;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use packrun_protocol::id::{AttemptId, JobRunId, PackRunId};
use packrun_protocol::time::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use utoipa::IntoParams;

use super::cursor::{LOG_START, before, log_cursor, parse_log_cursor};
use super::names::Names;
use super::page::{Entries, Format, TEXT_BYTES, answer, limit, unreadable};
use super::source::{attempts, kept};
use super::tail;
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
    /// Only those from this time on, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// From so many lines before the end on, up to 100,000; a page with a `cursor` needs it no more.
    #[param(maximum = 100_000)]
    tail: Option<u32>,
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
    let mut after = parse_log_cursor(cursor).ok_or_else(invalid)?.max(asked.since.map(before));
    let lines = asked.tail.map(|lines| tail::lines(lines, asked.cursor.is_some())).transpose()?;
    let names = Names::find(&api, id).await?;
    let jobs = asked.job.as_deref().map(|job| names.select(job)).transpose()?;
    if let Some(lines) = lines {
        let log = Log::find(&api.app, id, jobs.as_ref(), after, usize::MAX).await?;
        after = tail::start(&api.app, &log, after, lines).await?;
    }
    let log = Log::find(&api.app, id, jobs.as_ref(), after, most).await?;
    let (entries, last) = read(&mut log.reader(&api.app, after), most).await?;
    let is_live = log.watermark.is_some();
    let next = match last {
        Some(last) if is_live || entries.then.is_some() => Some(log_cursor(last)),
        None if is_live => Some(after.map_or_else(|| LOG_START.to_owned(), log_cursor)),
        _ => None,
    };
    let next = next.map(|next| {
        let address = address(id, &asked, format, &next);
        (next, address)
    });
    answer(&entries, &names, format, next)
}

/// What there is to read of a pack run's log.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) attempts: Vec<Kept>,
    /// Up to where it can be read; none of a run that is over, whose log is all there.
    watermark: Option<Timestamp>,
}

/// Where the log of an attempt lies.
pub(super) type Kept = (AttemptId, Vec<Extent>);

impl Log {
    /// The entries of `run` behind `after`, of `jobs` or of all: at least `most` and one, if there are so many.
    async fn find(
        app: &App,
        run: PackRunId,
        jobs: Option<&HashSet<JobRunId>>,
        after: Option<MergeKey>,
        most: usize,
    ) -> Result<Self, ApiError> {
        let chosen = |attempt: &AttemptId| jobs.is_none_or(|jobs| jobs.contains(&attempt.job_run));
        loop {
            if app.logs.feed_progress(run).is_some() {
                let away = app.engine.look(move |core| core.away(run)).await?;
                let settled = app.logs.settle(run, away, app.clock.now()).await;
                let watermark = settled.map_err(|error| closed(&error))?;
                let opened = app.logs.attempts(run).unwrap_or_default();
                let extents = |attempt| app.logs.extents_behind(attempt, after, most.saturating_add(1));
                let live = opened.into_iter().filter(chosen);
                let live: Option<Vec<_>> = live.map(|attempt| Some((attempt, extents(attempt)?))).collect();
                match live {
                    Some(attempts) if app.logs.feed_progress(run).is_some() => {
                        return Ok(Self { attempts, watermark: Some(watermark) });
                    }
                    // It was closed in between.
                    _ => continue,
                }
            }
            let chosen_jobs = jobs.cloned();
            let kept = app.read(move |reader| if_over(reader, run, chosen_jobs.as_ref())).await?;
            match kept {
                Some(attempts) => return Ok(Self { attempts, watermark: None }),
                None if app.logs.feed_progress(run).is_some() => {}
                // It lives, and has no log yet.
                None => return Ok(Self { attempts: Vec::new(), watermark: Some(Timestamp::MIN) }),
            }
        }
    }

    /// A reader of the entries behind `after`.
    pub(super) fn reader(&self, app: &App, after: Option<MergeKey>) -> ChronologicalReader {
        app.logs.read_chronological(self.attempts.clone(), after, self.watermark)
    }
}

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
