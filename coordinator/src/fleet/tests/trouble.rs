//! What a disk that fails, and a peer that stalls, do to others: nothing for good.

use packrun_protocol::state::PackRunState;

use super::agent::{blocks, success};
use super::scene::{Job, Scene};

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
