//! Where the last lines of a pack run's log begin. The index says from when on there are enough entries; only those
//! are read, to count the lines that they make.

use std::collections::VecDeque;

use packrun_protocol::time::Timestamp;

use super::cursor::before;
use super::logs::Log;
use super::page::unreadable;
use crate::api::App;
use crate::api::problem::ApiError;
use crate::logs::merge::MergeKey;

/// Most lines that can be asked for: the place of each is remembered while they are counted.
const LINES_MAX: u32 = 100_000;

/// How many lines from the end the list begins.
///
/// # Errors
/// When that is over the limit, or said together with a cursor, which says where it begins.
pub(super) fn lines(asked: u32, has_cursor: bool) -> Result<usize, ApiError> {
    if has_cursor {
        return Err(ApiError::invalid("`cursor` says where the page begins; leave `tail` out"));
    }
    if asked > LINES_MAX {
        return Err(ApiError::invalid(format!("`tail` is 0 to {LINES_MAX}, not {asked}")));
    }
    Ok(asked as usize)
}

/// The place that the last `lines` lines of `log` are behind; `after`, if there are no more than so many behind it. Of
/// lines that were written at the same time, one whose end counts may have pieces before that.
///
/// # Errors
/// When the log can't be read.
pub(super) async fn start(
    app: &App,
    log: &Log,
    after: Option<MergeKey>,
    lines: usize,
) -> Result<Option<MergeKey>, ApiError> {
    let mut wanted = lines as u64 + 1;
    loop {
        let cut = cut(log, wanted);
        let from = cut.map(before).max(after);
        let (mut ends, mut last, mut is_whole) = (VecDeque::new(), from, true);
        let mut reader = log.reader(app, from);
        while let Some((key, entry)) = reader.next().await.map_err(|error| unreadable(&error))? {
            (last, is_whole) = (Some(key), !entry.continued);
            if is_whole {
                ends.push_back(key);
                if ends.len() > lines + 1 {
                    ends.pop_front();
                }
            }
        }
        if lines == 0 {
            return Ok(last);
        }
        // A line that has not ended is one too.
        let ended = if is_whole { lines } else { lines - 1 };
        if let Some(at) = ends.len().checked_sub(ended + 1) {
            return Ok(ends.get(at).copied());
        }
        if cut.is_none() || from == after {
            return Ok(after);
        }
        wanted = wanted.saturating_mul(4);
    }
}

/// The latest time from which on there are so many entries; none if there are fewer in all.
fn cut(log: &Log, entries: u64) -> Option<Timestamp> {
    let extents = log.attempts.iter().flat_map(|(_, extents)| extents);
    let mut starts: Vec<_> = extents.map(|extent| (extent.first_time, extent.entries)).collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    let mut found = 0_u64;
    starts.into_iter().find_map(|(time, count)| {
        found = found.saturating_add(count);
        (found >= entries).then_some(time)
    })
}
