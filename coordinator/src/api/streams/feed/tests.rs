//! A world of attempts that start, log, end and are given up, and readers of its feed that come in at any time and
//! place: each entry and each change comes once, in the promised order.

use packrun_protocol::id::{AttemptNumber, JobRunId};
use proptest::prelude::*;

use super::*;

/// What happens in the world, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Append(usize, u32),
    Close,
    End(usize),
    GiveUp(usize),
    Last,
    Other,
    Seal(usize),
    Start(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Entry { attempt: usize, block: u64, entry: u32 },
    Change(u64),
}

fn attempt(index: usize) -> AttemptId {
    let mut bytes = [0; 16];
    bytes[0] = u8::try_from(index).unwrap();
    AttemptId { job_run: JobRunId::from_bytes(bytes), number: AttemptNumber::FIRST }
}

fn index(attempt: AttemptId) -> usize {
    usize::from(attempt.job_run.to_bytes()[0])
}

/// Choices, for ever: those given, again and again.
struct Choices<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>);

impl<'a> Choices<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter().cycle())
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(*self.0.next().unwrap()) % end
    }
}

/// A history in which fleet, engine and log store keep what the module's header says of them.
fn history(attempts: usize, bytes: &[u8], careless: bool) -> Vec<Event> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Running,
        GivenUp,
        Over,
    }
    let mut states = vec![State::New; attempts];
    let (mut choices, mut events) = (Choices::new(bytes), vec![Event::Other]);
    while let Some(open) = states.iter().position(|state| *state != State::Over) {
        // Choices that repeat must not keep it from its end.
        let which = if events.len() > 120 { open } else { choices.below(attempts) };
        let next = choices.below(8);
        let count = u32::try_from(choices.below(3)).unwrap() + 1;
        let (state, event) = match (states[which], next) {
            (State::New, 0..4) => (State::Running, Event::Start(which)),
            (State::New, 4) if careless => (State::GivenUp, Event::GiveUp(which)),
            (State::Running, 0..4) | (State::GivenUp, 0) => (states[which], Event::Append(which, count)),
            (State::Running, 4) if careless => (State::GivenUp, Event::GiveUp(which)),
            (State::Running, 5) => (State::Over, Event::End(which)),
            (State::GivenUp, 1..3) => (State::Over, Event::Seal(which)),
            (_, 7) if events.len() < 60 => (states[which], Event::Other),
            _ if events.len() > 120 => match states[which] {
                State::New => (State::Running, Event::Start(which)),
                State::Running => (State::Over, Event::End(which)),
                State::GivenUp => (State::Over, Event::Seal(which)),
                State::Over => break,
            },
            _ => (states[which], Event::Other),
        };
        states[which] = state;
        events.push(event);
    }
    events.extend([Event::Last, Event::Close]);
    events
}

/// The world as it is after some of its events.
#[derive(Default)]
struct World {
    blocks: Vec<(usize, u32)>,
    changes: Vec<Kind>,
    sealed: HashSet<usize>,
    reported: HashSet<usize>,
    closed: bool,
    /// For each attempt that has ended, how many blocks there were when it did.
    ended: Vec<(usize, u64, u64)>,
}

impl World {
    fn at(events: &[Event]) -> Self {
        let mut world = Self::default();
        for event in events {
            world.apply(*event);
        }
        world
    }

    fn apply(&mut self, event: Event) {
        let (block, change) = (self.blocks.len() as u64, self.changes.len() as u64);
        match event {
            Event::Append(which, count) => self.blocks.push((which, count)),
            Event::Close => self.closed = true,
            Event::End(which) | Event::GiveUp(which) => {
                self.changes.push(Kind::End(attempt(which)));
                self.ended.push((which, block, change));
                if matches!(event, Event::End(_)) {
                    self.sealed.insert(which);
                    self.reported.insert(which);
                }
            }
            Event::Last => self.changes.push(Kind::Last),
            Event::Other => self.changes.push(Kind::Other),
            Event::Seal(which) => drop(self.sealed.insert(which)),
            Event::Start(which) => self.changes.push(Kind::Start(attempt(which))),
        }
    }

    fn log_end(&self, attempt: AttemptId) -> LogEnd {
        let which = index(attempt);
        let last = self.blocks.iter().rposition(|(owner, _)| *owner == which);
        if self.sealed.contains(&which) {
            LogEnd::Before(last.map_or(0, |last| last as u64 + 1))
        } else {
            LogEnd::Open
        }
    }
}

/// Reads the feed from `place` on, in a world of which `seen` events have happened, and of which more happen as
/// the choices say. Returns each item, the place behind it, and how many events had happened then.
fn read(events: &[Event], mut seen: usize, place: Place, bytes: &[u8]) -> Vec<(Item, Place, usize)> {
    let mut world = World::at(&events[..seen]);
    let mut feed: Feed<u64, (usize, u32)> = Feed::new(
        place,
        place.change == world.changes.len() as u64 && world.changes.last() == Some(&Kind::Last),
    );
    let mut choices = Choices::new(bytes);
    let (mut items, mut idle) = (Vec::new(), 0);
    loop {
        if choices.below(3) == 0 && seen < events.len() {
            world.apply(events[seen]);
            seen += 1;
        }
        match feed.step() {
            Step::Block(from, (attempt, count)) => {
                for entry in from.entry..count {
                    let behind =
                        if entry + 1 == count { feed.place() } else { Place { entry: entry + 1, ..from } };
                    items.push((Item::Entry { attempt, block: from.block, entry }, behind, seen));
                }
            }
            Step::Change(behind, number) => items.push((Item::Change(number), behind, seen)),
            Step::End => return items,
            Step::FindLogEnd(attempt) => feed.log_end(world.log_end(attempt)),
            Step::FindStart { attempt, ended, from } => {
                let behind = &world.changes[usize::try_from(from).unwrap()..];
                let found = behind.contains(&Kind::Start(attempt));
                assert!(!found || !world.reported.contains(&index(ended)), "as the step says");
                feed.start_found(attempt, found);
            }
            Step::ReadChanges { from } => {
                let from = usize::try_from(from).unwrap();
                let page = 1 + choices.below(4);
                let changes = world.changes.iter().enumerate().skip(from).take(page);
                let all = from + page >= world.changes.len();
                feed.changes(
                    changes.map(|(at, kind)| Change { number: at as u64, kind: *kind, body: at as u64 }),
                    all,
                );
            }
            Step::ReadLog => {
                let at = feed.place().block;
                feed.log(match world.blocks.get(usize::try_from(at).unwrap()) {
                    Some(&(owner, count)) => {
                        Log::Block { attempt: attempt(owner), arrival: at, body: (owner, count) }
                    }
                    None if world.closed => Log::Over,
                    None => Log::Waits,
                });
            }
            Step::Wait { .. } => {
                // Whoever waits is woken by what happens, whatever the choices say.
                if let Some(event) = events.get(seen) {
                    world.apply(*event);
                    seen += 1;
                } else {
                    idle += 1;
                    assert!(idle < 10_000, "it waits for nothing");
                }
                feed.wake();
            }
        }
    }
}

/// Checks a whole reading against the whole world.
fn check(events: &[Event], items: &[Item]) -> Result<(), TestCaseError> {
    let world = World::at(events);
    let at = |item: Item| items.iter().position(|found| *found == item);
    let entries: Vec<_> = (0_u64..)
        .zip(&world.blocks)
        .flat_map(|(block, &(attempt, count))| {
            (0..count).map(move |entry| Item::Entry { attempt, block, entry })
        })
        .collect();
    let seen: Vec<_> = items.iter().copied().filter(|item| matches!(item, Item::Entry { .. })).collect();
    prop_assert_eq!(&seen, &entries, "each entry once, as they arrived");
    let seen: Vec<_> = items.iter().copied().filter(|item| matches!(item, Item::Change(_))).collect();
    let changes: Vec<_> = (0..world.changes.len() as u64).map(Item::Change).collect();
    prop_assert_eq!(&seen, &changes, "each change once, in order");
    for (change, kind) in (0_u64..).zip(&world.changes) {
        let of = |started: AttemptId| {
            entries
                .iter()
                .copied()
                .filter(move |item| matches!(item, Item::Entry { attempt, .. } if *attempt == index(started)))
        };
        match kind {
            Kind::Start(attempt) => {
                for entry in of(*attempt) {
                    prop_assert!(at(Item::Change(change)) < at(entry), "{change} before {entry:?}");
                }
            }
            Kind::End(attempt) => {
                let readable =
                    world.ended.iter().find(|(_, _, number)| *number == change).map(|(_, block, _)| *block);
                for entry in of(*attempt) {
                    let Item::Entry { block, .. } = entry else { continue };
                    let late = readable.is_none_or(|readable| block >= readable);
                    prop_assert!(late || at(entry) < at(Item::Change(change)), "{entry:?} before {change}");
                }
            }
            Kind::Last => prop_assert_eq!(items.last(), Some(&Item::Change(change))),
            Kind::Other => {}
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn each_entry_and_each_change_comes_once_and_in_order_whoever_resumes_where(
        attempts in 1..6_usize,
        careless: bool,
        world in prop::collection::vec(any::<u8>(), 97),
        first in prop::collection::vec(any::<u8>(), 31),
        then in prop::collection::vec(any::<u8>(), 37),
    ) {
        let events = history(attempts, &world, careless);
        let whole = read(&events, 0, Place::default(), &first);
        let items: Vec<_> = whole.iter().map(|(item, ..)| *item).collect();
        check(&events, &items)?;
        for (count, (_, place, seen)) in whole.iter().enumerate() {
            // Somebody else reads on there, at once and when all is over.
            for seen in [*seen, events.len()] {
                let rest = read(&events, seen, *place, &then);
                let resumed = items[..=count].iter().copied().chain(rest.iter().map(|(item, ..)| *item));
                check(&events, &resumed.collect::<Vec<_>>())?;
            }
        }
    }
}

#[test]
fn the_end_of_an_attempt_that_was_given_up_waits_for_its_log_but_holds_up_nobody() {
    let quiet = [1];
    let late = [
        Event::Start(0),
        Event::Append(0, 1),
        Event::GiveUp(0),
        Event::Start(1),
        Event::Append(1, 1),
        Event::Append(0, 1),
        Event::Seal(0),
        Event::End(1),
        Event::Last,
        Event::Close,
    ];
    let items: Vec<_> =
        read(&late, late.len(), Place::default(), &quiet).into_iter().map(|(item, ..)| item).collect();
    let entry = |attempt, block| Item::Entry { attempt, block, entry: 0 };
    let [given_up, second] = [Item::Change(1), Item::Change(2)];
    assert_eq!(
        items[..4],
        [Item::Change(0), entry(0, 0), given_up, second],
        "what came in time is before its end"
    );
    assert_eq!(items[4..], [entry(1, 1), Item::Change(3), entry(0, 2), Item::Change(4)]);

    // Nobody has to hurry: what comes before the seal comes before the end.
    let in_time =
        [Event::Start(0), Event::GiveUp(0), Event::Append(0, 1), Event::Seal(0), Event::Last, Event::Close];
    let items: Vec<_> =
        read(&in_time, 0, Place::default(), &[0]).into_iter().map(|(item, ..)| item).collect();
    assert_eq!(items, [Item::Change(0), entry(0, 0), Item::Change(1), Item::Change(2)]);
}
