//! What pack runs and job runs go through, told in short scenes.

use packrun_protocol::id::Digest;
use packrun_protocol::state::{JobRunState, PackRunState, Verdict};

use super::make::{self, JobSpec, agent_id, artifact, job_run_id, new_run, outcome, plan, run_id, slots};
use super::scene::{attempt, run, run_state, session, states, world};
use super::world::World;
use crate::core::KEY_MEMORY;
use crate::core::change::FeedEntry;
use crate::core::event::{Artifact, Command, Event, Idempotency, LogIndex, Report, Ticket};
use crate::core::outcome::{Effect, Refusal, Reply};
use crate::core::plan::When;

#[test]
fn a_pack_run_goes_through_its_dag_and_tells_its_feed() {
    let (mut world, agent) = world(&[JobSpec::default(), JobSpec::needing(&[0])]);
    assert_eq!(states(&world, 2), ["assigned", "blocked"]);
    run(&mut world, agent, attempt(0, 1), Verdict::Succeeded);
    assert_eq!(states(&world, 2), ["succeeded", "assigned"]);
    run(&mut world, agent, attempt(1, 1), Verdict::Succeeded);
    assert_eq!(run_state(&world), PackRunState::Completed);

    let feed = world.live.feed_of(run_id(0)).map(|row| match &row.entry {
        FeedEntry::Artifact { artifact, .. } => artifact.path.to_string(),
        FeedEntry::JobRun { key, state, .. } => format!("{key} {state}"),
        FeedEntry::PackRun(state) => state.to_string(),
    });
    let expected = [
        "pending",
        "j0 queued",
        "running",
        "j0 assigned",
        "j0 running",
        "j0 succeeded",
        "j1 queued",
        "j1 assigned",
        "j1 running",
        "j1 succeeded",
        "completed",
    ];
    assert_eq!(feed.collect::<Vec<_>>(), expected);
}

#[test]
fn when_decides_who_follows_a_failure_and_a_skip() {
    let after = |needs: &[u32], when| JobSpec { when, ..JobSpec::needing(needs) };
    let (mut world, agent) = world(&[
        JobSpec::default(),
        after(&[0], When::Success),
        after(&[0], When::Failure),
        after(&[0], When::Always),
        after(&[1], When::Failure),
        after(&[1], When::Always),
    ]);
    run(&mut world, agent, attempt(0, 1), Verdict::Failed);
    assert_eq!(states(&world, 6), ["failed", "skipped", "assigned", "assigned", "skipped", "queued"]);
    world.run_to_the_end();
    assert_eq!(run_state(&world), PackRunState::PartiallyFailed);
}

#[test]
fn an_allowed_failure_is_none() {
    let allowed = JobSpec { allow_failure: true, ..JobSpec::default() };
    let (mut world, agent) = world(&[allowed, JobSpec::needing(&[0])]);
    run(&mut world, agent, attempt(0, 1), Verdict::TimedOut);
    assert_eq!(states(&world, 2), ["timed_out", "assigned"]);
    run(&mut world, agent, attempt(1, 1), Verdict::Succeeded);
    assert_eq!(run_state(&world), PackRunState::Completed);
}

#[test]
fn a_success_whose_artifacts_did_not_all_arrive_is_a_failure() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    let session = session(&world, agent);
    let file = |path| Report::ArtifactCommitted {
        ticket: Ticket(7_000),
        attempt: attempt(0, 1),
        artifact: artifact(path),
    };
    world.report(agent, session, file("a"));
    assert!(world.report(agent, session, file("a")).changes.is_empty(), "the same file again is no news");
    let outcome = outcome(Verdict::Succeeded, 2);
    world.report(agent, session, Report::Ended { attempt: attempt(0, 1), outcome, log: LogIndex::default() });
    let row = &world.live.job_runs[&job_run_id(0)];
    assert_eq!(row.state, JobRunState::Failed);
    assert_eq!(row.reason.as_ref().unwrap().as_str(), "its agent left 2 artifacts, but 1 arrived");
}

#[test]
fn a_file_with_another_content_or_name_or_beyond_the_most_is_refused() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    let session = session(&world, agent);
    let keep = |world: &mut World, artifact| {
        let (ticket, attempt) = (Ticket(7_000), attempt(0, 1));
        let step = world.report(agent, session, Report::ArtifactCommitted { ticket, attempt, artifact });
        let [Effect::Reply { reply, .. }] = &step.effects[..] else { panic!("{:?}", step.effects) };
        reply.clone().map_err(|refusal| (step.changes.len(), refusal))
    };
    let refused = |path: &str, why| Err((0, Refusal::Artifact(path.parse().unwrap(), why)));
    assert_eq!(keep(&mut world, artifact("a")), Ok(Reply::Done));
    let mut other = artifact("a");
    other.content.digest = Digest::of(b"y");
    assert_eq!(keep(&mut world, other), refused("a", "another content came under this path before"));
    let named = Artifact { name: Some(make::name("out")), ..artifact("b") };
    assert_eq!(keep(&mut world, named), refused("b", "no artifact rule of its job has this name"));
    let job_run = &mut world.core.runs.get_mut(&run_id(0)).unwrap().job_runs[0];
    let kept = &mut job_run.attempt.as_mut().unwrap().artifacts;
    let most = crate::core::Config::default().artifacts_per_attempt;
    kept.extend((1..most).map(|number| {
        let Artifact { path, content, .. } = artifact(&format!("many/{number}"));
        (path, content)
    }));
    let one_more = Refusal::TooManyArtifacts("c".parse().unwrap(), most);
    assert_eq!(keep(&mut world, artifact("c")), Err((0, one_more)));
    assert_eq!(keep(&mut world, artifact("a")), Ok(Reply::Done), "said again, it is still kept");
}

#[test]
fn a_cancel_ends_what_waits_at_once_and_what_runs_with_its_agent() {
    let always = JobSpec { when: When::Always, ..JobSpec::needing(&[0]) };
    let wide = JobSpec { width: 4, attempts: 3, ..JobSpec::default() };
    let (mut world, agent) = world(&[wide, always]);
    world.start(agent, attempt(0, 1));
    world.start(agent, attempt(1, 1));
    world.command(Command::CancelRun(run_id(0))).unwrap();
    assert_eq!(states(&world, 5), ["running", "running", "canceled", "canceled", "canceled"]);
    assert_eq!(run_state(&world), PackRunState::Running);
    world.settle();
    assert!(world.agents[&agent].journal.values().all(|entry| entry.canceled), "the agent was told");
    // A success beats the cancel; a failure is not retried.
    run(&mut world, agent, attempt(0, 1), Verdict::Succeeded);
    run(&mut world, agent, attempt(1, 1), Verdict::Failed);
    assert_eq!(states(&world, 2), ["succeeded", "canceled"]);
    assert_eq!(run_state(&world), PackRunState::Canceled);
    assert_eq!(world.command(Command::CancelRun(run_id(0))), Err(Refusal::NotLive(run_id(0))));
}

#[test]
fn a_job_run_canceled_on_its_own_counts_as_failed() {
    let on_failure = JobSpec { when: When::Failure, ..JobSpec::needing(&[0]) };
    let (mut world, agent) = world(&[JobSpec::default(), on_failure]);
    world.command(Command::CancelJobRun(job_run_id(0))).unwrap();
    world.settle();
    run(&mut world, agent, attempt(0, 1), Verdict::Canceled);
    assert_eq!(states(&world, 2), ["canceled", "assigned"]);
    run(&mut world, agent, attempt(1, 1), Verdict::Succeeded);
    assert_eq!(run_state(&world), PackRunState::PartiallyFailed);
}

#[test]
fn work_goes_to_the_agent_with_the_most_free_slots_and_the_oldest_pack_run_first() {
    let mut world = World::new();
    world.command(make::register("pack", b"1")).unwrap();
    for (number, job_runs) in [(1, 0), (0, 10)] {
        let jobs = [JobSpec { width: 3, ..JobSpec::default() }];
        world.command(Command::CreateRun(Box::new(new_run(number, plan(job_runs, &jobs))))).unwrap();
    }
    for (number, count) in [(0, 1), (1, 4)] {
        let agent = world.enrol(number, slots(count));
        world.command(Command::DrainAgent(agent)).unwrap();
        world.connect(agent);
    }
    world.command(Command::ResumeAgent(agent_id(1))).unwrap();
    let holders = |world: &World| world.live.attempts.keys().map(|id| id.job_run).collect::<Vec<_>>();
    assert_eq!(holders(&world), [0, 10, 11, 12].map(job_run_id), "run 0 entirely, then one of run 1");
    world.command(Command::ResumeAgent(agent_id(0))).unwrap();
    assert_eq!(world.live.attempts[&attempt(1, 1)].agent, agent_id(0));
}

#[test]
fn a_repeated_pack_run_takes_over_successes_and_runs_the_rest() {
    let (mut world, agent) = world(&[JobSpec::default(), JobSpec::needing(&[0])]);
    run(&mut world, agent, attempt(0, 1), Verdict::Succeeded);
    run(&mut world, agent, attempt(1, 1), Verdict::Failed);
    let mut new = new_run(1, plan(2, &[JobSpec::default(), JobSpec::needing(&[0])]));
    new.retry_of = Some(run_id(0));
    new.reused = [(job_run_id(9), job_run_id(0))].into();
    let refused = world.command(Command::CreateRun(Box::new(new.clone())));
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    new.reused = [(job_run_id(2), job_run_id(0))].into();
    world.command(Command::CreateRun(Box::new(new))).unwrap();
    assert_eq!(world.live.job_runs[&job_run_id(2)].reused_from, Some(job_run_id(0)));
    assert_eq!(states(&world, 4)[2..], ["succeeded", "assigned"]);
}

#[test]
fn the_same_content_is_the_same_version() {
    let mut world = World::new();
    let registered = |version, created| Ok(Reply::Registered { version, created });
    assert_eq!(world.command(make::register("pack", b"1")), registered(1, true));
    assert_eq!(world.command(make::register("pack", b"1")), registered(1, false));
    assert_eq!(world.command(make::register("pack", b"2")), registered(2, true));
    assert_eq!(world.command(make::register("pack", b"1")), registered(3, true));
}

#[test]
fn a_key_in_flight_twice_makes_one_pack_run_even_when_that_has_ended() {
    let (mut world, _) = world(&[JobSpec::default()]);
    let create = |number, request: &[u8]| {
        let mut new = new_run(number, plan(number * 10, &[JobSpec::default()]));
        new.idempotency = Some(Idempotency { key: "key".into(), request: Digest::of(request) });
        Command::CreateRun(Box::new(new))
    };
    let made = |created| Ok(Reply::Run { id: run_id(1), created });
    assert_eq!(world.command(create(1, b"r")), made(true));
    assert_eq!(world.command(create(2, b"r")), made(false));
    world.command(Command::CancelRun(run_id(1))).unwrap();
    world.run_to_the_end();
    assert_eq!(world.command(create(3, b"r")), made(false), "it may not be in the store yet");
    assert_eq!(world.command(create(4, b"other")), Err(Refusal::KeyReused("key".into())));
    world.advance(KEY_MEMORY);
    world.apply(Event::Wake);
    let anew = Ok(Reply::Run { id: run_id(5), created: true });
    assert_eq!(world.command(create(5, b"r")), anew, "what is older the store knows");
}
