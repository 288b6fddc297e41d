//! The control stream: what is assigned, reported, acknowledged, and resumed.

use std::time::Duration;

use packrun_protocol::control::{FromAgent, HeldAnswer, HeldAttempt, HeldPhase, Ping, ToAgent};
use packrun_protocol::id::{AttemptId, JobRunId};
use packrun_protocol::state::{JobRunState, PackRunState};
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::{ClockOffset, Timestamp};

use super::agent::{Agent, blocks, success};
use super::scene::{Job, PATIENCE, Scene, settings};
use crate::core::Config;
use crate::core::event::Command;

fn started(attempt: AttemptId) -> FromAgent {
    FromAgent::Started { attempt, at: Timestamp::from_micros(1_795_560_636_000_000) }
}

#[tokio::test]
async fn a_job_with_output_goes_from_its_assignment_to_its_end() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(1).await;
    let run = scene.start(vec![Job::named("build")]).await;
    let assignment = link.assigned_one().await;
    let attempt = assignment.attempt;
    assert_eq!((assignment.pack_run, assignment.key.as_str()), (run, "build"));
    link.say(&started(attempt)).await;
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..3)).await.unwrap();
    link.acknowledged(attempt, 3).await;
    link.end(attempt, success(3, 0)).await;
    link.settled(attempt).await;
    scene.until_run(run, PackRunState::Completed).await;
    assert_eq!(scene.kept_log(attempt).await, ["0", "1", "2"]);
    assert_eq!(scene.engine.read().unwrap().open_logs(run).unwrap(), []);
    scene.until("the run's log is closed", |_| scene.logs.open_runs().is_empty()).await;
}

#[tokio::test]
async fn an_end_waits_for_the_log_and_a_silent_job_for_nothing() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(2).await;
    let run = scene.start(vec![Job { width: 2, ..Job::named("test") }]).await;
    let assigned = link.assigned().await;
    let (talking, silent) = (assigned[0].attempt, assigned[1].attempt);
    link.end(talking, success(2, 0)).await;
    link.end(silent, success(0, 0)).await;
    link.settled(silent).await;
    assert!(scene.logs.progress(silent).is_none(), "its log was never opened");
    let mut log = link.log(talking, 0).await;
    log.stream().write_all(&blocks(talking, 0..1)).await.unwrap();
    link.acknowledged(talking, 1).await;
    let row = scene.engine.read().unwrap().attempt(talking).unwrap().unwrap();
    assert_eq!(row.ended_at, None, "an entry is missing");
    log.stream().write_all(&blocks(talking, 1..2)).await.unwrap();
    link.settled(talking).await;
    scene.until_run(run, PackRunState::Completed).await;
    assert_eq!(scene.kept_log(talking).await, ["0", "1"]);
}

#[tokio::test]
async fn the_first_line_comes_after_the_start() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(1).await;
    let run = scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..1)).await.unwrap();
    link.acknowledged(attempt, 1).await;
    assert_eq!(scene.states(run).last(), Some(&JobRunState::Running), "the log implies it");
}

#[tokio::test]
async fn a_session_resumes_where_the_log_broke_off() {
    let scene = Scene::open().await;
    let agent = scene.enrolled().await;
    let mut link = agent.connect(2).await;
    let run = scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    link.say(&started(attempt)).await;
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..5)).await.unwrap();
    link.acknowledged(attempt, 5).await;
    drop(link);

    let phase = HeldPhase::Running(Timestamp::from_micros(1_795_560_636_000_000));
    let stranger = AttemptId { job_run: JobRunId::generate(), ..attempt };
    let held = vec![
        HeldAttempt { attempt: stranger, phase: HeldPhase::Ended },
        HeldAttempt { attempt, phase },
        HeldAttempt { attempt: stranger, phase },
    ];
    let mut link = agent.connect_holding(2, held).await;
    assert_eq!(
        link.welcome.take().unwrap().attempts.into_vec(),
        [
            (stranger, HeldAnswer::Settled),
            (attempt, HeldAnswer::GoOn { log_from: 5 }),
            (stranger, HeldAnswer::Fenced)
        ]
    );
    let mut log = link.log(attempt, 3).await;
    log.stream().write_all(&blocks(attempt, 3..8)).await.unwrap();
    link.end(attempt, success(8, 0)).await;
    link.settled(attempt).await;
    scene.until_run(run, PackRunState::Completed).await;
    assert_eq!(scene.kept_log(attempt).await, ["0", "1", "2", "3", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn a_session_resumes_after_a_restart_of_the_coordinator() {
    let mut scene = Scene::open().await;
    let mut agent = scene.enrolled().await;
    let mut link = agent.connect(1).await;
    let run = scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    link.say(&started(attempt)).await;
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..2)).await.unwrap();
    link.acknowledged(attempt, 2).await;
    scene = scene.restart(settings(), Config::default()).await;
    let goodbye = link.until(|message| match message {
        ToAgent::Goodbye { restarting, .. } => Some(restarting),
        _ => None,
    });
    assert!(goodbye.await, "it may be back soon");
    assert_eq!(link.closed().await.0, CloseCode::ShuttingDown);

    agent.at(scene.address);
    let held = vec![HeldAttempt { attempt, phase: HeldPhase::Ended }];
    let mut link = agent.connect_holding(1, held).await;
    let answers = link.welcome.take().unwrap().attempts.into_vec();
    assert_eq!(answers, [(attempt, HeldAnswer::GoOn { log_from: 2 })]);
    link.end(attempt, success(2, 0)).await;
    link.settled(attempt).await;
    scene.until_run(run, PackRunState::Completed).await;
    assert_eq!(scene.kept_log(attempt).await, ["0", "1"]);
}

#[tokio::test]
async fn a_newer_session_takes_the_place_of_the_older() {
    let scene = Scene::open().await;
    let agent = scene.enrolled().await;
    let first = agent.connect(1).await;
    let mut second = agent.connect(1).await;
    assert_eq!(first.closed().await.0, CloseCode::Superseded);
    scene.start(vec![Job::named("build")]).await;
    second.assigned_one().await;
}

#[tokio::test]
async fn a_long_log_takes_few_acknowledgements() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(1).await;
    scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    let mut log = link.log(attempt, 0).await;
    let bytes = blocks(attempt, 0..20_000);
    let sending = tokio::spawn(async move { log.stream().write_all(&bytes).await.map(|()| log) });
    let acks = link.acknowledged(attempt, 20_000).await;
    sending.await.unwrap().unwrap();
    assert!(acks < 10_000, "{acks} acknowledgements of 20000 blocks");
}

#[tokio::test]
async fn pings_are_answered_and_correct_the_time_of_what_comes() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(1).await;
    scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    let sent = Timestamp::from_micros(7);
    // As of an agent whose clock is far behind: what it writes comes after its assignment.
    let written = Timestamp::from_micros(1_795_560_636_000_000);
    let micros = scene.clock.now().as_micros() - written.as_micros() + 3_600_000_000;
    let offset = Some(ClockOffset { micros, error_micros: 50 });
    link.say(&FromAgent::Ping(Ping { sent, offset })).await;
    let answered = link.until(|message| match message {
        ToAgent::Pong { sent: of, answered } => Some((of, answered)),
        _ => None,
    });
    let (of, answered) = answered.await;
    assert_eq!(of, sent);
    assert!(answered <= scene.clock.now());
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..1)).await.unwrap();
    link.acknowledged(attempt, 1).await;
    let extents = scene.logs.extents(attempt).unwrap();
    assert_eq!(extents[0].first_time, written.shifted(micros));
}

#[tokio::test]
async fn cancels_drains_and_settled_attempts_are_told() {
    let scene = Scene::open().await;
    let agent = scene.enrolled().await;
    let mut link = agent.connect(1).await;
    let run = scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    link.say(&started(attempt)).await;
    scene.until_job_run(attempt, JobRunState::Running).await;
    scene.engine.command(Command::DrainAgent(agent.id)).await.unwrap();
    link.until(|message| matches!(message, ToAgent::Drain(true)).then_some(())).await;
    scene.engine.command(Command::CancelRun(run)).await.unwrap();
    link.until(|message| {
        matches!(message, ToAgent::Cancel { attempt: of, .. } if of == attempt).then_some(())
    })
    .await;
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    link.say(&started(attempt)).await;
    link.until(|message| matches!(message, ToAgent::Fence(of) if of == attempt).then_some(())).await;
}

#[tokio::test]
async fn many_large_assignments_go_out_in_several_frames() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(40).await;
    let script = "#".repeat(200 << 10);
    scene.start(vec![Job { width: 40, script, ..Job::named("test") }]).await;
    let mut assigned = 0;
    let mut frames = 0;
    while assigned < 40 {
        assigned += link.assigned().await.len();
        frames += 1;
    }
    assert!(frames >= 8, "8 MB in {frames} frames");
}

#[tokio::test]
async fn an_assignment_that_fits_no_frame_fails_its_attempt() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(2).await;
    let script = "#".repeat(2 << 20);
    let run = scene.start(vec![Job { script, ..Job::named("huge") }, Job::named("small")]).await;
    let small = link.assigned_one().await.attempt;
    link.end(small, success(0, 0)).await;
    scene.until_run(run, PackRunState::PartiallyFailed).await;
    let rows = scene.engine.read().unwrap().job_runs(run).unwrap();
    let reason = rows.into_iter().find_map(|row| row.reason).unwrap();
    assert!(reason.as_str().contains("can't be sent to an agent"), "{reason}");
}

#[tokio::test]
async fn the_log_of_a_lost_attempt_is_kept() {
    let config = Config { lease: Duration::from_millis(50), ..Config::default() };
    let scene = Scene::open_with(settings(), config).await;
    let agent = scene.enrolled().await;
    let mut link = agent.connect(2).await;
    let run = scene.start(vec![Job { width: 2, ..Job::named("build") }]).await;
    let assigned = link.assigned().await;
    let (talking, silent) = (assigned[0].attempt, assigned[1].attempt);
    let mut log = link.log(talking, 0).await;
    log.stream().write_all(&blocks(talking, 0..4)).await.unwrap();
    link.acknowledged(talking, 4).await;
    link.connection.close(0u32.into(), b"");
    scene.until_run(run, PackRunState::Failed).await;
    scene.until("the logs are kept", |reader| reader.open_logs(run).unwrap().is_empty()).await;
    assert_eq!(scene.kept_log(talking).await, ["0", "1", "2", "3"]);
    assert_eq!(scene.kept_log(silent).await, [""; 0]);
    scene.until("the run's log is closed", |_| scene.logs.open_runs().is_empty()).await;
}

#[tokio::test]
async fn the_log_of_an_attempt_that_was_lost_while_nobody_looked_is_kept_at_the_next_start() {
    let config = Config { lease: Duration::from_millis(50), ..Config::default() };
    let mut scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(2).await;
    let run = scene.start(vec![Job { width: 2, ..Job::named("build") }]).await;
    let assigned = link.assigned().await;
    let (lost, done) = (assigned[0].attempt, assigned[1].attempt);
    for attempt in [lost, done] {
        let mut log = link.log(attempt, 0).await;
        log.stream().write_all(&blocks(attempt, 0..2)).await.unwrap();
        link.acknowledged(attempt, 2).await;
    }
    link.end(done, success(2, 0)).await;
    link.settled(done).await;
    // Without a keeper: the fleet is gone before the lease is over.
    scene = scene.restart(settings(), config).await;
    scene.until_run(run, PackRunState::PartiallyFailed).await;
    scene.until("the logs are kept", |reader| reader.open_logs(run).unwrap().is_empty()).await;
    assert_eq!(scene.kept_log(lost).await, ["0", "1"]);
    assert_eq!(scene.kept_log(done).await, ["0", "1"]);
    scene.until("the run's log is closed", |_| scene.logs.open_runs().is_empty()).await;
}

#[tokio::test]
async fn after_a_restart_the_logs_that_were_complete_take_no_more() {
    let mut scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(2).await;
    scene.start(vec![Job { width: 2, ..Job::named("build") }]).await;
    let assigned = link.assigned().await;
    let (done, live) = (assigned[0].attempt, assigned[1].attempt);
    for attempt in [done, live] {
        let mut log = link.log(attempt, 0).await;
        log.stream().write_all(&blocks(attempt, 0..2)).await.unwrap();
        link.acknowledged(attempt, 2).await;
    }
    link.end(done, success(2, 0)).await;
    link.settled(done).await;
    scene = scene.restart(settings(), Config::default()).await;
    let sealed = |attempt| scene.logs.progress(attempt).unwrap().borrow().sealed;
    scene.until("it is sealed", |_| sealed(done)).await;
    assert!(!sealed(live));
}

#[tokio::test]
async fn an_address_has_no_more_connections_than_it_may() {
    let mut settings = settings();
    settings.limits.connections_per_address = 2;
    let scene = Scene::open_with(settings, Config::default()).await;
    let agents = [scene.enrolled().await, scene.enrolled().await, scene.enrolled().await];
    // The connections that enrolled may still be about to go.
    scene.until("they are gone", |_| scene.fleet.as_ref().unwrap().gauges().connections == 0).await;
    let first = agents[0].connect(1).await;
    let _second = agents[1].connect(1).await;
    assert_eq!(scene.fleet.as_ref().unwrap().gauges().sessions, 2);
    assert!(agents[2].connect_with(agents[2].hello(1)).await.is_err());
    first.connection.close(0u32.into(), b"");
    scene.until("there is room", |_| scene.fleet.as_ref().unwrap().gauges().connections == 1).await;
    agents[2].connect(1).await;
}

#[tokio::test]
async fn more_handshakes_than_may_begin_come_later_and_none_is_lost() {
    let mut settings = settings();
    settings.limits.handshakes_per_second = 2;
    let scene = Scene::open_with(settings, Config::default()).await;
    // What enrols them is a part of what may come at once: four in two seconds.
    let first = scene.enrolled().await;
    let second = scene.enrolled().await;
    let agents = [&first, &second].into_iter().cycle().take(6);
    let links = futures_util::future::join_all(agents.map(Agent::dial));
    let began = tokio::time::Instant::now();
    let links = tokio::time::timeout(PATIENCE, links).await.unwrap();
    assert!(links.iter().all(Result::is_ok), "{links:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "eight in all don't come at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_agents_that_come_and_go_lose_no_line() {
    const AGENTS: usize = 8;
    const JOBS: usize = 64;
    let scene = Scene::open().await;
    let run = scene.start(vec![Job { width: JOBS, ..Job::named("test") }]).await;
    let (done, mut ends) = tokio::sync::mpsc::channel(JOBS);
    for _ in 0..AGENTS {
        let (agent, done) = (scene.enrolled().await, done.clone());
        tokio::spawn(async move {
            let mut link = agent.connect(1).await;
            while let Some(message) = link.next().await {
                let ToAgent::Assign(assigned) = message else { continue };
                for assignment in assigned {
                    let attempt = assignment.attempt;
                    let mut log = link.log(attempt, 0).await;
                    log.stream().write_all(&blocks(attempt, 0..40)).await.unwrap();
                    // All of it may or may not have come when the connection breaks.
                    link.connection.close(0u32.into(), b"");
                    let held = vec![HeldAttempt { attempt, phase: HeldPhase::Ended }];
                    link = agent.connect_holding(1, held).await;
                    let answers = link.welcome.take().unwrap().attempts.into_vec();
                    let [(_, HeldAnswer::GoOn { log_from })] = answers[..] else { panic!("{answers:?}") };
                    let mut log = link.log(attempt, log_from).await;
                    log.stream().write_all(&blocks(attempt, log_from..50)).await.unwrap();
                    link.end(attempt, success(50, 0)).await;
                    link.settled(attempt).await;
                    if done.send(attempt).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
    let wanted: Vec<_> = (0..50).map(|number| number.to_string()).collect();
    for _ in 0..JOBS {
        let attempt = tokio::time::timeout(PATIENCE, ends.recv()).await.unwrap().unwrap();
        assert_eq!(scene.kept_log(attempt).await, wanted);
    }
    scene.until_run(run, PackRunState::Completed).await;
}
