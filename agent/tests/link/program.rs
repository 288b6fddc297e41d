//! The program as a process of its own: signals and what is left behind.

use std::process::Stdio;

use packrun_agent::Stop;
use packrun_protocol::control::{FromAgent, HeldAnswer, HeldPhase, ToAgent};
use packrun_protocol::state::Verdict;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::fake::{Fake, script, state, within};

fn program(fake: &Fake, folder: &TempDir) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packrun-agent"));
    command.args(["run", "--slots", "2", "--label", "gpu=none"]);
    command.args(["--coordinator", &fake.address(), "--join-token", &fake.token().to_string()]);
    command.arg("--state-dir").arg(state(folder));
    command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[tokio::test]
async fn the_first_signal_drains_and_the_second_gives_the_attempts_back() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let mut child = program(&fake, &folder);
    fake.enrol(None).await;
    let mut peer = fake.meet().await;
    assert_eq!(u32::from(peer.hello.capacity.slots), 2);
    assert_eq!(peer.hello.labels.get("gpu"), Some("none"));
    peer.welcome(|_| panic!("nothing is held")).await;
    let attempt = peer.assign(script("exec sleep 1000")).await;
    peer.started(attempt).await;
    signal(&child, Signal::TERM);
    assert!(matches!(peer.next().await.unwrap(), FromAgent::Draining(true)));
    signal(&child, Signal::TERM);
    assert_eq!(peer.ended(attempt).await.verdict, Verdict::Lost);
    peer.say(ToAgent::Settled(vec![attempt])).await;
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_killed_agent_comes_back_and_reports_what_it_lost() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let mut child = program(&fake, &folder);
    fake.enrol(None).await;
    let mut peer = fake.meet().await;
    peer.welcome(|_| panic!("nothing is held")).await;
    let attempt = peer.assign(script("echo a; echo b; exec sleep 1000")).await;
    peer.started(attempt).await;
    let mut came = 0;
    let mut stream = peer.log_stream().await;
    // Both lines are in the journal before they are sent.
    while came < 60 {
        came += within(stream.read_chunk(1 << 20, true)).await.unwrap().unwrap().bytes.len();
    }
    child.kill().await.unwrap();
    peer.vanish();

    let mut child = program(&fake, &folder);
    let mut peer = fake.meet().await;
    assert_eq!(peer.hello.attempts[0].phase, HeldPhase::Ended);
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    let outcome = peer.ended(attempt).await;
    assert_eq!(outcome.verdict, Verdict::Lost);
    let lines: Vec<_> = peer.log().await.lines().into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines.len() as u64, outcome.entries);
    assert!(lines.starts_with(&["a".to_owned()]), "{lines:?}");
    peer.say(ToAgent::Settled(vec![attempt])).await;
    signal(&child, Signal::INT);
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn where_another_coordinator_answers_it_says_how_to_join_that_one() {
    let (fake, other, folder) = (Fake::start(), Fake::start(), tempfile::tempdir().unwrap());
    let (agent, _peer) = fake.join(&folder).await;
    agent.stop(Stop::Drain).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_packrun-agent"));
    command.args(["run", "--coordinator", &other.address(), "--state-dir"]).arg(state(&folder));
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let _answering = tokio::spawn(async move {
        while let Some(incoming) = other.endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !within(lines.next_line()).await.unwrap().unwrap().contains("a token of this coordinator") {}
}
