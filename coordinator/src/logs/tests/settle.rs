//! The watermark that a live run is read up to: whatever agents' clocks say, who polls gets each entry once, in the
//! order that a final read gives.

use packrun_protocol::time::Clock;
use proptest::prelude::*;

use super::*;

const ATTEMPTS: u8 = 4;

#[derive(Debug, Clone)]
enum Act {
    /// A block, so far from the true time.
    Append {
        attempt: u8,
        count: u64,
        off: i64,
    },
    /// An agent goes or comes back.
    Away(u8),
    Poll(usize),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let off = prop_oneof![4 => -50_i64..50, 1 => -5_000_i64..5_000, 1 => any::<i64>()];
    prop_oneof![
        8 => (0..ATTEMPTS, 1..4_u64, off).prop_map(|(attempt, count, off)| Act::Append { attempt, count, off }),
        2 => (0..ATTEMPTS).prop_map(Act::Away),
        6 => (1..9_usize).prop_map(Act::Poll),
        1 => Just(Act::Restart),
    ]
}

async fn page(
    store: &LogStore,
    after: Option<MergeKey>,
    watermark: Option<Timestamp>,
    limit: usize,
) -> Vec<MergeKey> {
    let attempts = store.attempts(pack_run(9)).unwrap_or_default().into_iter();
    let extents = |attempt| store.extents_behind(attempt, after, limit).unwrap();
    let attempts = attempts.map(|attempt| (attempt, extents(attempt))).collect();
    let mut reader = store.read_chronological(attempts, after, watermark);
    let mut page = Vec::new();
    while page.len() < limit
        && let Some((key, _)) = reader.next().await.unwrap()
    {
        page.push(key);
    }
    page
}

async fn check(acts: Vec<Act>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let (mut polled, mut written, mut next) = (Vec::<MergeKey>::new(), 0, [0; ATTEMPTS as usize]);
    // When each was assigned: one after the other, and always before its first block.
    let mut assigned: [Option<Timestamp>; ATTEMPTS as usize] = [None; ATTEMPTS as usize];
    let mut away = [false; ATTEMPTS as usize];
    // The start has the real time in mind, and that's what the acts' is near to.
    let (mut floor, mut restarted, start) = (Timestamp::MIN, false, Clock::start().now());
    for (step, act) in (0_i64..).zip(acts) {
        let now = start.shifted(step * 10);
        match act {
            Act::Append { attempt: number, count, off } => {
                let place = usize::from(number);
                let not_before = *assigned[place].get_or_insert(now);
                store.open_attempt(attempt(number), pack_run(9), NO_OFFSET, not_before);
                let time = now.as_micros().saturating_add(off);
                store.append(block_at(attempt(number), next[place], count, time)).await.unwrap();
                next[place] += count;
                written += count;
            }
            Act::Away(number) => {
                let place = usize::from(number);
                assigned[place].get_or_insert(now);
                away[place] ^= true;
            }
            Act::Poll(limit) => {
                let gone = (0..ATTEMPTS).filter(|number| away[usize::from(*number)]);
                let gone: Vec<_> =
                    gone.map(|number| (attempt(number), assigned[usize::from(number)].unwrap())).collect();
                let nobody = gone.is_empty();
                let watermark = store.settle(pack_run(9), gone, now).await.unwrap();
                prop_assert!(
                    (restarted || watermark <= now) && watermark >= floor,
                    "{floor} {watermark} {now}"
                );
                floor = watermark;
                let found = page(&store, polled.last().copied(), Some(watermark), limit).await;
                if nobody && found.len() < limit {
                    let rest = page(&store, found.last().or(polled.last()).copied(), None, usize::MAX).await;
                    prop_assert!(rest.iter().all(|key| key.time >= now), "nothing else is held back");
                }
                polled.extend(found);
            }
            Act::Restart => {
                store.close().await;
                drop(store);
                store = open(dir.path()).0;
                restarted = true;
            }
        }
    }
    polled.extend(page(&store, polled.last().copied(), None, usize::MAX).await);
    prop_assert!(polled.is_sorted());
    prop_assert_eq!(polled.len() as u64, written);
    prop_assert_eq!(polled, page(&store, None, None, usize::MAX).await);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn who_polls_to_the_watermark_gets_each_entry_once_and_in_order(acts in prop::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(acts))?;
    }
}

#[tokio::test]
async fn late_blocks_are_raised_to_what_was_settled_and_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let at = Timestamp::from_micros;
    let now = at(9_000);
    assert_eq!(store.settle(pack_run(9), Vec::new(), now).await, Ok(Timestamp::MIN), "a run without a log");
    for number in 0..3 {
        store.open_attempt(attempt(number), pack_run(9), NO_OFFSET, at(100 * i64::from(number)));
    }
    store.append(block_at(attempt(0), 0, 1, 500)).await.unwrap();
    // The third is away, and has said nothing since it was assigned.
    let away = vec![(attempt(2), at(200))];
    assert_eq!(store.settle(pack_run(9), away, now).await, Ok(at(200)));
    assert_eq!(store.settle(pack_run(9), Vec::new(), now).await, Ok(at(501)), "behind the newest");
    let away = vec![(attempt(2), at(200))];
    assert_eq!(store.settle(pack_run(9), away, now).await, Ok(at(501)), "a promise is kept");
    store.append(block_at(attempt(1), 0, 1, 50)).await.unwrap();
    store.append(block_at(attempt(2), 0, 1, 700)).await.unwrap();
    let first = |number| store.extents(attempt(number)).unwrap()[0].first_time;
    assert_eq!((first(1), first(2)), (at(501), at(700)));
    // A clock far ahead drags nobody along.
    store.append(block_at(attempt(0), 1, 1, 1_000_000)).await.unwrap();
    assert_eq!(store.settle(pack_run(9), Vec::new(), now).await, Ok(now));
    let away = vec![(attempt(1), at(100))];
    store.seal(attempt(1)).await.unwrap();
    assert_eq!(store.settle(pack_run(9), away, at(9_500)).await, Ok(at(9_500)), "what is sealed is not away");
    store.close().await;
    assert_eq!(store.settle(pack_run(9), Vec::new(), now).await, Err(AppendError::Closed));
}
