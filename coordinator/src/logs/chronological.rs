//! Reading attempts in chronological order: the merge, fed from the segments.

use std::collections::HashMap;

use packrun_protocol::block::Entry;
use packrun_protocol::id::AttemptId;
use packrun_protocol::time::Timestamp;

use super::extent::Extent;
use super::merge::{Merge, MergeKey, Step};
use super::stretch::{ReadError, Stretch, StretchReader};

/// Reads entries of several attempts in the order of [`MergeKey`]. It holds at most one extent of each attempt
/// whose times overlap at the place it reads.
#[derive(Debug)]
pub struct ChronologicalReader {
    merge: Merge<Entry>,
    /// What was not yet read of each attempt, the next last.
    extents: HashMap<AttemptId, Vec<Extent>>,
    reader: StretchReader,
}

impl ChronologicalReader {
    pub(super) fn new(
        reader: StretchReader,
        attempts: Vec<(AttemptId, Vec<Extent>)>,
        after: Option<MergeKey>,
        watermark: Option<Timestamp>,
    ) -> Self {
        let mut rest = HashMap::with_capacity(attempts.len());
        for (attempt, mut extents) in attempts {
            extents.drain(..extents.partition_point(|extent| !extent.reaches_behind(attempt, after)));
            extents.reverse();
            rest.insert(attempt, extents);
        }
        let starts = rest.iter().filter_map(|(attempt, extents)| Some(start(*attempt, extents.last()?)));
        let merge = Merge::new(starts, after, watermark);
        Self { merge, extents: rest, reader }
    }

    /// The next entry, its time corrected; `None` when there is none before the watermark. Cancel safe.
    ///
    /// # Errors
    /// When the log can't be read. The next call tries the same again.
    pub async fn next(&mut self) -> Result<Option<(MergeKey, Entry)>, ReadError> {
        loop {
            let attempt = match self.merge.step() {
                Step::End => return Ok(None),
                Step::Entry(key, entry) => return Ok(Some((key, entry))),
                Step::Need(attempt) => attempt,
            };
            let Some(extents) = self.extents.get_mut(&attempt) else {
                self.merge.supply(attempt, [], None);
                continue;
            };
            let blocks = match extents.last() {
                Some(extent) => self.reader.read(&Stretch::of_attempt(attempt, extent)).await?,
                None => Default::default(),
            };
            extents.pop();
            let entries = blocks.iter().flat_map(|block| block.entries());
            let keyed = entries.map(|entry| (MergeKey { time: entry.time, attempt, seq: entry.seq }, entry));
            self.merge.supply(attempt, keyed, extents.last().map(|extent| start(attempt, extent)));
        }
    }
}

fn start(attempt: AttemptId, extent: &Extent) -> MergeKey {
    MergeKey { time: extent.first_time, attempt, seq: extent.first_seq }
}
