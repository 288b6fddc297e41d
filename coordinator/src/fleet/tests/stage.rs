//! A coordinator with an honest agent that has a job under way, and one beside it that may not be honest.

use packrun_protocol::control::{FromAgent, Ping, ToAgent};
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::quic::{FrameReader, FrameWriter};
use packrun_protocol::state::PackRunState;
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::Timestamp;
use quinn::ReadError;

use super::agent::{Agent, Link, blocks, success};
use super::scene::{Job, Scene, settings};
use crate::core::Config;
use crate::fleet::Settings;

/// A coordinator with an honest agent that has a job under way, and one that may not be.
pub(super) struct Stage {
    pub(super) scene: Scene,
    pub(super) honest: Link,
    pub(super) attempt: AttemptId,
    run: PackRunId,
    log: FrameWriter,
    pub(super) villain: Agent,
}

impl Stage {
    pub(super) async fn set() -> Self {
        Self::set_with(settings()).await
    }

    pub(super) async fn set_with(settings: Settings) -> Self {
        let scene = Scene::open_with(settings, Config::default()).await;
        let (honest, villain) = (scene.enrolled().await, scene.enrolled().await);
        let mut honest = honest.connect(1).await;
        let run = scene.start(vec![Job::named("honest")]).await;
        let attempt = honest.assigned_one().await.attempt;
        let mut log = honest.log(attempt, 0).await;
        log.stream().write_all(&blocks(attempt, 0..1)).await.unwrap();
        honest.acknowledged(attempt, 1).await;
        Self { scene, honest, attempt, run, log, villain }
    }

    /// The villain's session with a job of its own.
    pub(super) async fn villain_at_work(&self) -> (Link, AttemptId) {
        let mut link = self.villain.connect(1).await;
        self.scene.start(vec![Job::named("villain")]).await;
        let attempt = link.assigned_one().await.attempt;
        (link, attempt)
    }

    /// The honest agent's job goes on, in the session it had, to its end.
    pub(super) async fn goes_on(self) {
        self.goes_on_with(0).await;
    }

    /// As [`Stage::goes_on`], when it has left so many artifacts.
    pub(super) async fn goes_on_with(mut self, artifacts: u32) {
        self.log.stream().write_all(&blocks(self.attempt, 1..3)).await.unwrap();
        self.honest.end(self.attempt, success(3, artifacts)).await;
        self.honest.settled(self.attempt).await;
        self.scene.until_run(self.run, PackRunState::Completed).await;
        assert_eq!(self.scene.kept_log(self.attempt).await, ["0", "1", "2"]);
    }
}

/// What a one-way stream was stopped with.
pub(super) async fn stopped(writer: &mut FrameWriter) -> Option<CloseCode> {
    let code = writer.stream().stopped().await.unwrap()?;
    CloseCode::from_wire(code.into_inner())
}

/// What a stream that wants an answer was reset with.
pub(super) async fn refused(reader: &mut FrameReader) -> Option<CloseCode> {
    let read = reader.stream().read_chunk(1, true).await;
    let Err(ReadError::Reset(code)) = read else { panic!("{read:?} is no refusal") };
    CloseCode::from_wire(code.into_inner())
}

/// That the session is alive: it answers a ping.
pub(super) async fn is_heard(link: &mut Link) {
    link.say(&FromAgent::Ping(Ping { sent: Timestamp::default(), offset: None })).await;
    link.until(|message| matches!(message, ToAgent::Pong { .. }).then_some(())).await;
}
