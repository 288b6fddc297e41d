//! The merge against a plain sort.

use packrun_protocol::id::{AttemptNumber, JobRunId};
use proptest::prelude::*;

use super::*;

type Log = Vec<MergeKey>;

/// Logs of some attempts, with times that ascend within each and are often equal.
fn logs() -> impl Strategy<Value = Vec<Log>> {
    let steps = prop::collection::vec(0_i64..3, 0..20);
    prop::collection::vec((0_i64..30, steps), 1..6).prop_map(|logs| {
        let log = |(index, (start, steps)): (usize, (i64, Vec<i64>))| {
            let attempt = AttemptId {
                job_run: JobRunId::from_bytes([index as u8 / 2; 16]),
                number: AttemptNumber::new(1 + index as u32 % 2).unwrap(),
            };
            let mut time = start;
            let mut key = |(seq, step): (usize, i64)| {
                time += step;
                MergeKey { time: Timestamp::from_micros(time), attempt, seq: seq as u64 }
            };
            steps.into_iter().enumerate().map(&mut key).collect()
        };
        logs.into_iter().enumerate().map(log).collect()
    })
}

/// Up to `limit` keys behind `after`, as a caller reads them: `chunk` entries of an attempt at a time.
fn page(
    logs: &[Log],
    after: Option<MergeKey>,
    watermark: Option<Timestamp>,
    limit: usize,
    chunk: usize,
) -> Vec<MergeKey> {
    let mut place: HashMap<_, _> =
        logs.iter().filter_map(|log| Some((log.first()?.attempt, (log, 0)))).collect();
    let mut merge = Merge::new(logs.iter().filter_map(|log| log.first().copied()), after, watermark);
    let mut keys = Vec::new();
    while keys.len() < limit {
        match merge.step() {
            Step::End => break,
            Step::Entry(key, ()) => keys.push(key),
            Step::Need(attempt) => {
                let (log, at) = place.get_mut(&attempt).unwrap();
                let end = (*at + chunk).min(log.len());
                merge.supply(attempt, log[*at..end].iter().map(|key| (*key, ())), log.get(end).copied());
                *at = end;
            }
        }
    }
    keys
}

proptest! {
    #[test]
    fn every_page_size_gives_the_same_list(logs in logs(), limit in 1_usize..9, chunk in 1_usize..5) {
        let mut expected = logs.concat();
        expected.sort();
        let (mut keys, mut after) = (Vec::new(), None);
        loop {
            let next = page(&logs, after, None, limit, chunk);
            let Some(last) = next.last() else { break };
            after = Some(*last);
            keys.extend(next);
        }
        prop_assert_eq!(keys, expected);
    }

    #[test]
    fn polling_below_the_watermark_gives_what_a_final_read_gives(
        logs in logs(),
        growth in prop::collection::vec((0_usize..6, 1_usize..4), 0..60),
        limit in 1_usize..9,
    ) {
        let mut expected = logs.concat();
        expected.sort();
        let mut lengths = vec![0; logs.len()];
        let (mut keys, mut after) = (Vec::new(), None::<MergeKey>);
        for (index, more) in growth {
            let index = index % logs.len();
            lengths[index] = (lengths[index] + more).min(logs[index].len());
            let written: Vec<Log> = logs.iter().zip(&lengths).map(|(log, length)| log[..*length].to_vec()).collect();
            let watermark = logs.iter().zip(&lengths).filter_map(|(log, length)| Some(log.get(*length)?.time)).min();
            let next = page(&written, after, watermark, limit, 3);
            after = next.last().copied().or(after);
            keys.extend(next);
        }
        keys.extend(page(&logs, after, None, usize::MAX, 3));
        prop_assert_eq!(keys, expected);
    }
}

#[test]
fn an_attempt_is_not_asked_before_its_turn() {
    let key = |number, time| MergeKey {
        time: Timestamp::from_micros(time),
        attempt: AttemptId { job_run: JobRunId::from_bytes([number; 16]), number: AttemptNumber::FIRST },
        seq: 0,
    };
    let (early, late) = (key(2, 10), key(1, 20));
    let mut merge = Merge::new([late, early], None, Some(Timestamp::from_micros(20)));
    assert_eq!(merge.step(), Step::Need(early.attempt));
    merge.supply(early.attempt, [(early, "x")], None);
    assert_eq!(merge.step(), Step::Entry(early, "x"));
    assert_eq!(merge.step(), Step::End, "the other is not below the watermark");
}
