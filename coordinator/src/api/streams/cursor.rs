//! Cursors, as clients keep them: opaque to them, and hostile to us.

use packrun_protocol::id::{AttemptId, AttemptNumber, Epoch, JobRunId};
use packrun_protocol::time::Timestamp;

use super::feed::Place;
use crate::logs::merge::MergeKey;

/// Bytes of a cursor that could be one of ours.
const CURSOR_BYTES_MAX: usize = 100;

/// The id of a stream's event: the place behind it, under the epoch it was sent in.
pub(super) fn event_id(epoch: Epoch, place: Place) -> String {
    format!("{epoch}.{}.{}.{}", place.block, place.entry, place.change)
}

/// The place that an event's id stands for; `None` when it is none of ours. The epoch is a remark for people: a
/// place holds in all of them, but where a power cut took what was there.
pub(super) fn parse_event_id(text: &str) -> Option<Place> {
    let mut numbers = parts(text)?;
    numbers.next()?.parse::<u64>().ok()?;
    let place = Place {
        block: numbers.next()?.parse().ok()?,
        entry: numbers.next()?.parse().ok()?,
        change: numbers.next()?.parse().ok()?,
    };
    numbers.next().is_none().then_some(place)
}

/// The cursor behind an entry of the chronological order.
pub(super) fn log_cursor(key: MergeKey) -> String {
    let MergeKey { time, attempt, seq } = key;
    format!("{}.{}.{}.{seq}", time.as_micros(), attempt.job_run, attempt.number)
}

/// The place in the chronological order that all entries from `time` on are behind, and none before it.
pub(super) fn before(time: Timestamp) -> MergeKey {
    let job_run = JobRunId::from_bytes([u8::MAX; 16]);
    let attempt = AttemptId { job_run, number: AttemptNumber::new(u32::MAX).unwrap_or(AttemptNumber::FIRST) };
    MergeKey { time: time.shifted(-1), attempt, seq: u64::MAX }
}

/// The cursor at the start of the chronological order, of a run that has no entry yet.
pub(super) const LOG_START: &str = "0";

/// The key that a cursor stands for, `None` inside for the start; `None` when it is none of ours.
pub(super) fn parse_log_cursor(text: &str) -> Option<Option<MergeKey>> {
    if text == LOG_START {
        return Some(None);
    }
    let mut fields = parts(text)?;
    let time = Timestamp::from_micros(fields.next()?.parse().ok()?);
    let job_run: JobRunId = fields.next()?.parse().ok()?;
    let number = AttemptNumber::new(fields.next()?.parse().ok()?)?;
    let seq = fields.next()?.parse().ok()?;
    let key = MergeKey { time, attempt: AttemptId { job_run, number }, seq };
    fields.next().is_none().then_some(Some(key))
}

fn parts(text: &str) -> Option<std::str::Split<'_, char>> {
    (text.len() <= CURSOR_BYTES_MAX).then(|| text.split('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_is_read_back_from_its_id(epoch: u64, block: u64, entry: u32, change: u64) {
            let place = Place { block, entry, change };
            prop_assert_eq!(parse_event_id(&event_id(Epoch(epoch), place)), Some(place));
        }

        #[test]
        fn a_key_is_read_back_from_its_cursor(micros: i64, job_run: [u8; 16], number in 1u32.., seq: u64) {
            let number = AttemptNumber::new(number).unwrap();
            let attempt = AttemptId { job_run: JobRunId::from_bytes(job_run), number };
            let key = MergeKey { time: Timestamp::from_micros(micros), attempt, seq };
            prop_assert_eq!(parse_log_cursor(&log_cursor(key)), Some(Some(key)));
        }

        #[test]
        fn a_text_that_is_almost_a_cursor_has_the_fields_of_one_or_is_refused(text in "[-+0-9a-f.é]{0,120}") {
            let fields = text.split('.').count();
            prop_assert!(parse_event_id(&text).is_none() || fields == 4);
            prop_assert!(parse_log_cursor(&text).is_none() || fields == 4 || text == LOG_START);
        }
    }
}
