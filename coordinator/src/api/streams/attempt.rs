//! `GET /v1/runs/{id}/logs`: one attempt by number, for viewers that jump about in long logs.

use std::collections::VecDeque;

use axum::Json;
use axum::extract::State;
use packrun_protocol::block::Entry;
use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId};
use packrun_protocol::name::JobKey;
use serde::Deserialize;
use utoipa::IntoParams;

use super::names::Named;
use super::page::{TEXT_BYTES, limit, unreadable};
use super::source::kept;
use crate::api::auth::Viewer;
use crate::api::extract::{PathOf, QueryOf};
use crate::api::problem::ApiError;
use crate::api::types::{AttemptLog, schema};
use crate::api::{Api, App};
use crate::core::change::JobRunRow;
use crate::engine::Reader;
use crate::logs::{Extent, LogReader};

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Of which attempt; of the newest unless it is said.
    #[param(minimum = 1, maximum = 4_294_967_295_u32)]
    attempt: Option<u32>,
    /// The number of the first; unless it is said, 0, and for `order=desc` that of the newest.
    #[param(minimum = 0, maximum = 18_446_744_073_709_551_615_u64)]
    from: Option<u64>,
    /// At most so many, 1 to 10,000; 1,000 unless it is said. Long ones may be fewer.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u32>,
    /// Upwards from the first, or downwards.
    #[param(inline)]
    order: Option<Order>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    #[default]
    Asc,
    Desc,
}

/// Entries of one attempt's log by their numbers, and how many there are so far. Costs what the page has, however
/// long the log is.
#[utoipa::path(
    get,
    path = "/v1/runs/{id}/logs",
    tag = "runs",
    operation_id = "list_run_logs",
    params(("id" = schema::Id, Path, description = "The job run"), Asked),
    responses(
        (status = 200, description = "The entries", body = AttemptLog),
        (status = 404, description = "There is no such job run or attempt"),
    ),
)]
pub(super) async fn attempt_logs(
    _: Viewer,
    State(api): State<Api>,
    PathOf(id): PathOf<JobRunId>,
    QueryOf(asked): QueryOf<Asked>,
) -> Result<Json<AttemptLog>, ApiError> {
    let most = limit(asked.limit)?;
    let (key, row) = find(&api, id).await?;
    let (named, app) = (Named::of(&key), api.app);
    let newest = row.as_ref().and_then(|row| row.attempt).map_or(0, AttemptNumber::get);
    let wanted = asked.attempt.unwrap_or(newest);
    let Some(number) = AttemptNumber::new(wanted).filter(|_| wanted <= newest) else {
        let complete = row.is_some_and(|row| row.state.is_terminal());
        return none_yet(id, asked.attempt, complete).map(Json);
    };
    let attempt = AttemptId { job_run: id, number };
    let order = asked.order.unwrap_or_default();
    let (log, behind, mut reader) = loop {
        let log = Log::open(&app, attempt).await?;
        let (first, behind) = range(order, asked.from, most, log.count);
        // Without a reader it was closed in between.
        if let Some(reader) = log.reader(&app, attempt, first) {
            break (log, behind, reader);
        }
    };
    let mut entries = read(&mut reader, behind, order).await?;
    if order == Order::Desc {
        entries.make_contiguous().reverse();
    }
    let items = entries.iter().map(|entry| named.entry(attempt, entry)).collect();
    Ok(Json(AttemptLog { items, count: log.count, complete: log.complete }))
}

/// A job run's key, and its row, unless it is still blocked. The core knows those that live; of others, the plan is
/// read.
async fn find(api: &Api, id: JobRunId) -> Result<(JobKey, Option<JobRunRow>), ApiError> {
    let live = api.app.engine.look(move |core| core.live_job_run(id)).await?;
    if let Some((_, key)) = live {
        return api.app.read(move |reader| Ok((key, reader.job_run(id)?))).await;
    }
    let look = move |reader: &Reader| {
        let row = reader.job_run(id)?;
        let plan = row.as_ref().map(|row| reader.plan(row.pack_run)).transpose()?.flatten();
        let planned = plan.as_ref().and_then(|plan| plan.job_runs().find(|run| run.id == id));
        let key = planned.map(|planned| planned.key.clone());
        Ok((key.ok_or_else(|| ApiError::not_found(format!("there is no job run {id}")))?, row))
    };
    api.planner.read(&api.app, look).await
}

fn none_yet(id: JobRunId, attempt: Option<u32>, complete: bool) -> Result<AttemptLog, ApiError> {
    match attempt {
        None => Ok(AttemptLog { items: Vec::new(), count: 0, complete }),
        Some(attempt) => Err(ApiError::not_found(format!("job run {id} has no attempt {attempt}"))),
    }
}

/// The log of an attempt as it stands.
struct Log {
    count: u64,
    complete: bool,
    /// Where it lies when the log store has closed it.
    kept: Option<Vec<Extent>>,
}

impl Log {
    async fn open(app: &App, attempt: AttemptId) -> Result<Self, ApiError> {
        if let Some(progress) = app.logs.progress(attempt) {
            let progress = *progress.borrow();
            return Ok(Self { count: progress.readable, complete: progress.sealed, kept: None });
        }
        let look = move |reader: &Reader| {
            let extents = kept(reader, attempt)?;
            let ended = reader.attempt(attempt)?.is_some_and(|row| row.state.is_terminal());
            Ok((extents, ended))
        };
        let (extents, complete) = app.read(look).await?;
        let count = extents.last().map_or(0, Extent::next_seq);
        Ok(Self { count, complete, kept: Some(extents) })
    }

    fn reader(&self, app: &App, attempt: AttemptId, from: u64) -> Option<LogReader> {
        match &self.kept {
            Some(extents) => Some(app.logs.read_extents(attempt, extents.clone(), from)),
            None => app.logs.read_attempt(attempt, from),
        }
    }
}

/// The numbers to show of `count`: the first, and that behind the last.
fn range(order: Order, from: Option<u64>, most: usize, count: u64) -> (u64, u64) {
    let most = most as u64;
    match order {
        Order::Asc => {
            let first = from.unwrap_or(0).min(count);
            (first, first.saturating_add(most).min(count))
        }
        Order::Desc => {
            let behind = from.map_or(count, |from| from.saturating_add(1)).min(count);
            (behind.saturating_sub(most), behind)
        }
    }
}

/// The entries before `behind`, or so many of those that come first in this order as make a page. Upwards always.
async fn read(reader: &mut LogReader, behind: u64, order: Order) -> Result<VecDeque<Entry>, ApiError> {
    let (mut entries, mut bytes) = (VecDeque::<Entry>::new(), 0);
    while let Some(block) = reader.next_ready().await.map_err(|error| unreadable(&error))? {
        for entry in block.entries() {
            if entry.seq >= behind || (order == Order::Asc && bytes >= TEXT_BYTES) {
                return Ok(entries);
            }
            bytes += entry.text.len();
            entries.push_back(entry);
            while order == Order::Desc && bytes > TEXT_BYTES && entries.len() > 1 {
                bytes -= entries.pop_front().map_or(0, |entry| entry.text.len());
            }
        }
        if block.block.next_seq() >= behind {
            break;
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_that_part_of_it_which_is_there() {
        let asc = |from, most, count| range(Order::Asc, from, most, count);
        let desc = |from, most, count| range(Order::Desc, from, most, count);
        assert_eq!(asc(None, 10, 0), (0, 0));
        assert_eq!(asc(None, 10, 25), (0, 10));
        assert_eq!(asc(Some(20), 10, 25), (20, 25));
        assert_eq!(asc(Some(u64::MAX), 10, 25), (25, 25));
        assert_eq!(desc(None, 10, 25), (15, 25));
        assert_eq!(desc(Some(14), 10, 25), (5, 15));
        assert_eq!(desc(Some(4), 10, 25), (0, 5));
        assert_eq!(desc(Some(0), 10, 25), (0, 1));
        assert_eq!(desc(Some(u64::MAX), 10, 25), (15, 25));
        assert_eq!(desc(None, 10, 0), (0, 0));
    }
}
