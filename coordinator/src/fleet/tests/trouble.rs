//! What a disk that fails, and a peer that stalls, do to others: nothing for good.

use packrun_protocol::state::PackRunState;
use packrun_protocol::stream::UploadEnd;

use super::agent::{blocks, success};
use super::scene::{Job, PATIENCE, Scene, settings};
use crate::core::Config;
use crate::core::event::Command;
use crate::engine::Reader;

#[tokio::test]
async fn what_the_disk_did_not_take_of_a_finished_stream_is_not_lost() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(1).await;
    let run = scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    let mut health = scene.logs.health();
    scene.disk.fail_writes(true);
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..3)).await.unwrap();
    log.stream().finish().unwrap();
    assert_eq!(log.stream().stopped().await.unwrap(), None, "its sender won't hear of a failure");
    link.end(attempt, success(3, 0)).await;
    health.wait_for(|health| health.write.is_some()).await.unwrap();
    scene.disk.fail_writes(false);
    link.settled(attempt).await;
    scene.until_run(run, PackRunState::Completed).await;
    assert_eq!(scene.kept_log(attempt).await, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_path_keeps_the_first_content_that_came_under_it() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(1).await;
    scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    assert_eq!(link.upload(attempt, "out", b"first").await, UploadEnd::Committed);
    let refused = link.upload(attempt, "out", b"second").await;
    assert!(
        matches!(&refused, UploadEnd::Refused(why) if why.as_str().contains("another content")),
        "{refused:?}"
    );
    assert_eq!(link.upload(attempt, "out", b"first").await, UploadEnd::Committed);
}

#[tokio::test]
async fn an_agent_that_reads_nothing_is_let_go_at_once_when_it_is_revoked() {
    let mut settings = settings();
    settings.limits.silence = PATIENCE * 60;
    let scene = Scene::open_with(settings, Config::default()).await;
    let agent = scene.enrolled().await;
    let link = agent.connect(64).await;
    // More than its window takes.
    let job = Job { width: 64, script: "x".repeat(300_000), ..Job::named("big") };
    let run = scene.start(vec![job]).await;
    let given = |reader: &Reader| reader.open_logs(run).unwrap().len() == 64;
    scene.until("all is assigned", given).await;
    scene.engine.command(Command::RevokeAgent(agent.id)).await.unwrap();
    // Its window is full of what it didn't read, so the last packet may not be heard: then the next is reset.
    tokio::time::timeout(PATIENCE, link.connection.closed()).await.expect("the session is over");
}
