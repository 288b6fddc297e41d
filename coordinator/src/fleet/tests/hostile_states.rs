//! Every message about an attempt in every state that the attempt can be in: what isn't the agent's is refused with a
//! code or in words and changes nothing, what is the agent's is taken, and the agent beside it doesn't notice.

use packrun_protocol::control::{FromAgent, HeldAnswer, HeldAttempt, HeldPhase, ToAgent};
use packrun_protocol::id::{AttemptId, AttemptNumber, Digest, JobRunId, PackRunId};
use packrun_protocol::state::{JobRunState, Verdict};
use packrun_protocol::stream::{CloseCode, DownloadAnswer, InputAnswer, StreamHeader, UploadEnd};
use packrun_protocol::time::Timestamp;

use super::agent::{Link, blocks, success};
use super::scene::Job;
use super::stage::{Stage, is_heard, stopped};
use crate::core::event::Command;
use crate::engine::Reader;

/// How the attempt that is spoken of stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is of no job run.
    Unknown,
    /// Its job run waits for another.
    Blocked,
    /// Its job run is queued, and nobody has it.
    Queued,
    /// It is the villain's, who has said nothing of it.
    Assigned,
    /// It runs.
    Running,
    /// It runs, and is to be stopped.
    Canceled,
    /// It has ended.
    Ended,
    /// It has failed, and the next attempt is the villain's.
    Retried,
    /// It is the one after that which runs.
    Future,
    /// It is the honest agent's.
    Anothers,
    /// It was the villain's, who was away for too long.
    Lost,
}

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Started,
    Ended,
    Log,
    Upload,
    Inputs,
    Download,
    HoldsAssigned,
    HoldsRunning,
    HoldsEnded,
}

const STATES: [State; 11] = [
    State::Unknown,
    State::Blocked,
    State::Queued,
    State::Assigned,
    State::Running,
    State::Canceled,
    State::Ended,
    State::Retried,
    State::Future,
    State::Anothers,
    State::Lost,
];

const WORDS: [Word; 9] = [
    Word::Started,
    Word::Ended,
    Word::Log,
    Word::Upload,
    Word::Inputs,
    Word::Download,
    Word::HoldsAssigned,
    Word::HoldsRunning,
    Word::HoldsEnded,
];

impl State {
    fn is_the_villains(self) -> bool {
        matches!(self, Self::Assigned | Self::Running | Self::Canceled)
    }
}

fn number(attempt: AttemptId, number: u32) -> AttemptId {
    AttemptId { number: AttemptNumber::new(number).unwrap(), ..attempt }
}

const AT: Timestamp = Timestamp::from_micros(1_795_560_636_000_000);

async fn start(link: &mut Link, attempt: AttemptId) {
    link.say(&FromAgent::Started { attempt, at: AT }).await;
}

/// Brings an attempt into a state, and gives it with the villain's session, and the pack run that was made for it.
async fn bring_about(stage: &Stage, state: State) -> (Link, AttemptId, Option<PackRunId>) {
    let scene = &stage.scene;
    let mut link = stage.villain.connect(1).await;
    let attempts = if state == State::Retried { 2 } else { 1 };
    let job = Job { attempts, ..Job::named("villain") };
    match state {
        State::Unknown => {
            let job_run = JobRunId::generate();
            (link, AttemptId { job_run, number: AttemptNumber::FIRST }, None)
        }
        State::Anothers => (link, stage.attempt, None),
        State::Blocked | State::Queued => {
            let needs = if state == State::Blocked { vec![0] } else { Vec::new() };
            let run = scene.start(vec![job, Job { needs, ..Job::named("second") }]).await;
            link.assigned_one().await;
            let plan = scene.engine.look(move |core| core.plan(run)).await.unwrap().unwrap();
            let second = plan.job_runs().nth(1).unwrap();
            (link, AttemptId { job_run: second.id, number: AttemptNumber::FIRST }, Some(run))
        }
        State::Assigned | State::Running | State::Future | State::Canceled => {
            let run = scene.start(vec![job]).await;
            let attempt = link.assigned_one().await.attempt;
            if state != State::Assigned {
                start(&mut link, attempt).await;
                scene.until_job_run(attempt, JobRunState::Running).await;
            }
            if state == State::Canceled {
                scene.engine.command(Command::CancelRun(run)).await.unwrap();
                link.until(|message| matches!(message, ToAgent::Cancel { .. }).then_some(())).await;
            }
            (link, if state == State::Future { number(attempt, 2) } else { attempt }, Some(run))
        }
        State::Ended | State::Retried => {
            let run = scene.start(vec![job]).await;
            let attempt = link.assigned_one().await.attempt;
            let mut outcome = success(0, 0);
            if state == State::Retried {
                outcome.verdict = Verdict::Failed;
            }
            link.end(attempt, outcome).await;
            link.settled(attempt).await;
            if state == State::Retried {
                assert_eq!(link.assigned_one().await.attempt, number(attempt, 2));
            }
            (link, attempt, Some(run))
        }
        State::Lost => {
            let run = scene.start(vec![Job::named("villain")]).await;
            let attempt = link.assigned_one().await.attempt;
            start(&mut link, attempt).await;
            scene.until_job_run(attempt, JobRunState::Running).await;
            drop(link);
            // It comes back without it.
            let link = stage.villain.connect(1).await;
            scene.until_job_run(attempt, JobRunState::Lost).await;
            (link, attempt, Some(run))
        }
    }
}

/// Says it, and checks what comes of it.
async fn say(stage: &Stage, mut link: Link, attempt: AttemptId, word: Word, own: bool) {
    let phase = match word {
        Word::HoldsAssigned => HeldPhase::Assigned,
        Word::HoldsRunning => HeldPhase::Running(AT),
        Word::HoldsEnded => HeldPhase::Ended,
        _ => return say_in(stage, &mut link, attempt, word, own).await,
    };
    let mut next = stage.villain.connect_holding(1, vec![HeldAttempt { attempt, phase }]).await;
    assert_eq!(link.closed().await.0, CloseCode::Superseded);
    let answers = next.welcome.take().unwrap().attempts.into_vec();
    let wanted = match phase {
        _ if own => HeldAnswer::GoOn { log_from: 0 },
        HeldPhase::Ended => HeldAnswer::Settled,
        HeldPhase::Assigned | HeldPhase::Running(_) => HeldAnswer::Fenced,
    };
    assert_eq!(answers, [(attempt, wanted)]);
    is_heard(&mut next).await;
}

async fn say_in(stage: &Stage, link: &mut Link, attempt: AttemptId, word: Word, own: bool) {
    let refused = |reason: &str| assert!(!own && reason.contains("not this agent's"), "{reason}");
    match word {
        Word::Started => {
            start(link, attempt).await;
            match own {
                true => stage.scene.until_job_run(attempt, JobRunState::Running).await,
                false => {
                    link.until(|said| matches!(said, ToAgent::Fence(of) if of == attempt).then_some(())).await
                }
            }
        }
        Word::Ended => {
            link.end(attempt, success(0, 0)).await;
            link.settled(attempt).await;
        }
        Word::Log => {
            let mut log = link.log(attempt, 0).await;
            match own {
                true => {
                    log.stream().write_all(&blocks(attempt, 0..1)).await.unwrap();
                    link.acknowledged(attempt, 1).await;
                }
                false => assert_eq!(stopped(&mut log).await, Some(CloseCode::Fenced)),
            }
        }
        Word::Upload => match link.upload(attempt, "out", b"bytes").await {
            UploadEnd::Committed => assert!(own),
            UploadEnd::Refused(reason) => refused(reason.as_str()),
        },
        Word::Inputs => {
            let (_writer, mut reader) = link.ask(&StreamHeader::Inputs { attempt, input: 0 }).await;
            match reader.expect::<InputAnswer>().await.unwrap() {
                InputAnswer::Refused(reason) if own => {
                    assert!(reason.as_str().contains("no input 0"), "{reason}")
                }
                InputAnswer::Refused(reason) => refused(reason.as_str()),
                other => panic!("{other:?}"),
            }
        }
        Word::Download => {
            let digest = Digest::of(b"secret");
            let header = StreamHeader::Download { attempt, digest, offset: u64::MAX };
            let (_writer, mut reader) = link.ask(&header).await;
            match reader.expect::<DownloadAnswer>().await.unwrap() {
                DownloadAnswer::Refused(reason) if own => {
                    assert!(reason.as_str().contains("no input"), "{reason}")
                }
                DownloadAnswer::Refused(reason) => refused(reason.as_str()),
                other => panic!("{other:?}"),
            }
        }
        Word::HoldsAssigned | Word::HoldsRunning | Word::HoldsEnded => {}
    }
    is_heard(link).await;
}

async fn in_state(state: State) {
    let stage = Stage::set().await;
    for word in WORDS {
        let (link, attempt, run) = bring_about(&stage, state).await;
        let before = stage.scene.engine.read().unwrap().attempt(attempt).unwrap();
        say(&stage, link, attempt, word, state.is_the_villains()).await;
        if !state.is_the_villains() {
            let after = stage.scene.engine.read().unwrap().attempt(attempt).unwrap();
            assert_eq!(before, after, "{state:?} {word:?}");
        }
        if let Some(run) = run {
            // What is left of it the villain doesn't hold in its next session.
            let _ = stage.scene.engine.command(Command::CancelRun(run)).await;
            drop(stage.villain.connect(1).await);
            let ended = |reader: &Reader| reader.progress(run).unwrap().unwrap().state.is_terminal();
            stage.scene.until("its end", ended).await;
        }
    }
    stage.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_in_every_state_is_taken_or_refused_and_others_go_on() {
    let states = STATES.map(|state| tokio::spawn(in_state(state)));
    for state in states {
        state.await.unwrap();
    }
}
