//! A coordinator that was restored from a backup while a later one was at work commands nobody: its agents have kept
//! what proves that there was one.

use std::path::Path;
use std::process::Command;

use packrun_tests::process::{Agent, Coordinator};

use crate::programs;

fn copy(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).unwrap();
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

async fn runs(coordinator: &Coordinator, agent: &mut Agent) {
    agent.start_again(coordinator, &[]);
    let id = coordinator.api().run("name: p\njobs:\n  a: { run: exit 0 }\n").await;
    assert_eq!(coordinator.api().ended(&id).await["state"], "completed");
    assert_eq!(agent.process().terminate().await, Some(0));
}

#[tokio::test]
async fn a_restored_backup_steps_down_when_an_agent_of_its_successor_comes() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    assert_eq!(agent.process().terminate().await, Some(0));
    let backup = tempfile::tempdir().unwrap();
    coordinator.restart_after(|data| copy(data, backup.path())).await;
    // Later than anything that the backup comes to by its next start.
    coordinator.restart().await;
    runs(&coordinator, &mut agent).await;

    coordinator.restart_after(|data| copy(backup.path(), data)).await;
    agent.start_again(&coordinator, &[]);
    let process = coordinator.process();
    let code = process.ended().await;
    assert_eq!(code, Some(1), "{}", process.log());
    assert!(process.log().contains("this one runs on old data"), "{}", process.log());
}
