//! Rows that contradict themselves: a pack run is left out and named, and the others go on.

use packrun_protocol::id::{AttemptNumber, Epoch};
use packrun_protocol::state::{JobRunState, PackRunState};
use proptest::prelude::*;

use super::make::{self, JobSpec, job_run_id, new_run, plan, run_id, slots};
use super::store::Store;
use super::world::World;
use crate::core::change::FeedEntry;
use crate::core::event::{Command, Event, Ticket};
use crate::core::outcome::{Effect, Refusal, Reply};
use crate::core::{Config, Core, LiveRun, RestoreError, Rows};

fn rows() -> Rows {
    store().rows()
}

/// Two pack runs of two jobs each, the first job assigned.
fn store() -> Store {
    let mut world = World::new();
    world.command(make::register("pack", b"1")).unwrap();
    let agent = world.enrol(0, slots(2));
    world.connect(agent);
    for number in 0..2 {
        let plan = plan(number * 10, &[JobSpec::default(), JobSpec::needing(&[0])]);
        world.command(Command::CreateRun(Box::new(new_run(number, plan)))).unwrap();
    }
    world.live
}

fn restore_broken(damage: impl FnOnce(&mut LiveRun)) -> Vec<RestoreError> {
    let mut rows = rows();
    damage(&mut rows.runs[0]);
    let (core, quarantined) = Core::restore(Config::default(), Epoch(2), make_now(), rows);
    assert!(core.runs.contains_key(&run_id(1)), "the other pack run goes on");
    quarantined.into_iter().map(|quarantined| quarantined.error).collect()
}

fn make_now() -> packrun_protocol::time::Timestamp {
    packrun_protocol::time::Timestamp::from_micros(5_000_000)
}

#[test]
fn every_contradiction_is_named() {
    assert_eq!(restore_broken(|_| {}), []);
    let attempt = [RestoreError::Attempt(job_run_id(0))];
    assert_eq!(restore_broken(|run| run.attempts.clear()), attempt);
    assert_eq!(
        restore_broken(|run| run.attempts[0].agent = make::agent_id(9)),
        attempt,
        "an agent that nobody knows"
    );
    assert_eq!(restore_broken(|run| run.job_runs[0].attempt = AttemptNumber::new(2)), attempt);
    assert_eq!(restore_broken(|run| run.job_runs[0].index = 7), [RestoreError::JobRun(job_run_id(0))]);
    assert_eq!(restore_broken(|run| run.progress.state = PackRunState::Failed), [RestoreError::State]);
    assert_eq!(
        restore_broken(|run| {
            run.attempts.clear();
            run.job_runs[0].state = JobRunState::Succeeded;
        }),
        [RestoreError::Dependency(job_run_id(1), JobRunState::Blocked)]
    );
    assert_eq!(
        restore_broken(|run| run.progress.canceled = true),
        [RestoreError::Dependency(job_run_id(1), JobRunState::Blocked)],
        "a canceled pack run in which something waits"
    );
    let mut twice = rows();
    twice.runs.push(twice.runs[0].clone());
    let (core, quarantined) = Core::restore(Config::default(), Epoch(2), make_now(), twice);
    assert_eq!(quarantined[0].error, RestoreError::Twice);
    assert!(core.quarantined.is_empty(), "the one of that id goes on, and may end only once");
}

#[test]
fn a_pack_run_that_was_left_out_can_be_canceled_and_is_not_found_again() {
    let mut store = store();
    store.attempts.retain(|_, row| row.pack_run != run_id(0));
    let restore = |store: &Store| Core::restore(Config::default(), Epoch(2), make_now(), store.rows());
    let cancel = |core: &mut Core| {
        let (ticket, command) = (Ticket(1), Command::CancelRun(run_id(0)));
        let step = core.apply(make_now(), Event::Command { ticket, command });
        let [Effect::Reply { reply, .. }] = &step.effects[..] else { panic!("{:?}", step.effects) };
        (reply.clone(), step.changes)
    };
    assert_eq!(restore(&store).1.len(), 1);
    let (mut core, quarantined) = restore(&store);
    assert_eq!(quarantined.len(), 1, "a restart alone doesn't end it");
    let known: Vec<_> = core.quarantined().map(|(id, error)| (id, error.clone())).collect();
    assert_eq!(known, [(quarantined[0].pack_run, quarantined[0].error.clone())]);
    let (reply, changes) = cancel(&mut core);
    assert_eq!(reply, Ok(Reply::Done));
    changes.iter().for_each(|change| store.apply(change));
    assert_eq!(store.progress[&run_id(0)].state, PackRunState::Canceled);
    let last = store.feed_of(run_id(0)).next_back().unwrap();
    assert_eq!(last.entry, FeedEntry::PackRun(PackRunState::Canceled));

    let gone = Err(Refusal::NotLive(run_id(0)));
    assert_eq!(cancel(&mut core).0, gone);
    let (mut core, quarantined) = restore(&store);
    assert_eq!(quarantined, []);
    assert_eq!(cancel(&mut core).0, gone);
    assert!(core.runs.contains_key(&run_id(1)), "the other pack run goes on");
}

proptest! {
    #[test]
    fn no_rows_make_it_panic(
        states in proptest::collection::vec((0..10_usize, 0..3_u32, any::<u32>(), any::<bool>()), 0..4),
        drop_attempts in any::<bool>(),
    ) {
        let mut rows = rows();
        for run in &mut rows.runs {
            for (position, (state, index, number, canceled)) in states.iter().enumerate() {
                let Some(mut row) = run.job_runs.get(position).or(run.job_runs.first()).cloned() else { break };
                row.state = JobRunState::ALL[*state];
                row.index = *index;
                row.attempt = AttemptNumber::new(number % 3);
                row.canceled = *canceled;
                if position % 2 == 1 {
                    row.id = run.row.plan.job_runs().nth(*index as usize).map_or(row.id, |planned| planned.id);
                }
                run.job_runs.push(row);
            }
            if drop_attempts {
                run.attempts.clear();
            }
        }
        let (mut core, _) = Core::restore(Config::default(), Epoch(2), make_now(), rows);
        let _ = core.apply(make_now() + std::time::Duration::from_secs(3600), Event::Wake);
    }
}
