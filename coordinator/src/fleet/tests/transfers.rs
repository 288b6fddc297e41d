//! Files that attempts leave, and those that they want.

use std::collections::BTreeMap;

use packrun_protocol::id::{AttemptId, Digest};
use packrun_protocol::job::{ArtifactRule, InputRule};
use packrun_protocol::state::PackRunState;
use packrun_protocol::stream::{
    Content, DownloadAnswer, FileMode, InputAnswer, StreamHeader, UploadAnswer, UploadEnd,
};

use super::agent::{Link, success, upload};
use super::scene::{Job, Scene, name};
use crate::artifacts::{Begin, UploadId};
use crate::core::plan::Plan;

fn leaves(path: &str) -> Vec<ArtifactRule> {
    vec![ArtifactRule { path: path.into(), name: None, optional: false }]
}

/// `compile`, twice, leaves `out`; `test` wants it below `in`.
fn jobs() -> Vec<Job> {
    let input = InputRule {
        from: name("compile"),
        artifact: "out".into(),
        to: Some("in".parse().unwrap()),
        optional: false,
    };
    vec![
        Job { width: 2, artifacts: leaves("out"), ..Job::named("compile") },
        Job { needs: vec![0], inputs: vec![input], ..Job::named("test") },
    ]
}

async fn inputs(link: &Link, attempt: AttemptId, input: u32) -> Result<Vec<(String, Content)>, String> {
    let (_writer, mut reader) = link.ask(&StreamHeader::Inputs { attempt, input }).await;
    let mut files = Vec::new();
    loop {
        match reader.expect::<InputAnswer>().await.unwrap() {
            InputAnswer::File { path, content } => files.push((path.to_string(), content)),
            InputAnswer::End { files: count } => {
                assert_eq!(count as usize, files.len());
                return Ok(files);
            }
            InputAnswer::Refused(reason) => return Err(reason.to_string()),
        }
    }
}

async fn download(link: &Link, attempt: AttemptId, digest: Digest, offset: u64) -> Result<Vec<u8>, String> {
    let (_writer, mut reader) = link.ask(&StreamHeader::Download { attempt, digest, offset }).await;
    match reader.expect::<DownloadAnswer>().await.unwrap() {
        DownloadAnswer::Refused(reason) => Err(reason.to_string()),
        DownloadAnswer::Bytes(length) => {
            let mut bytes = Vec::new();
            while let Some(more) = reader.raw().await.unwrap() {
                bytes.extend_from_slice(&more);
            }
            assert_eq!(bytes.len() as u64, length);
            Ok(bytes)
        }
    }
}

#[tokio::test]
async fn files_go_from_the_jobs_that_leave_them_to_those_that_want_them() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(2).await;
    let run = scene.start(jobs()).await;
    let compiles = link.assigned().await;
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for (assignment, (path, bytes)) in
        compiles.iter().zip([("out/large", &large[..]), ("out/deep/empty", &[])])
    {
        let attempt = assignment.attempt;
        assert_eq!(link.upload(attempt, path, bytes).await, UploadEnd::Committed);
        assert_eq!(link.upload(attempt, path, bytes).await, UploadEnd::Committed, "sent again, it is there");
        link.end(attempt, success(0, 1)).await;
    }
    let attempt = link.assigned_one().await.attempt;
    let files = inputs(&link, attempt, 0).await.unwrap();
    let mode = FileMode::of(0o644);
    assert_eq!(
        files,
        [
            ("in/large".into(), Content { digest: Digest::of(&large), size: 3_000_000, mode }),
            ("in/deep/empty".into(), Content { digest: Digest::of(b""), size: 0, mode }),
        ]
    );
    assert_eq!(download(&link, attempt, Digest::of(&large), 0).await.unwrap(), large);
    assert_eq!(download(&link, attempt, Digest::of(&large), 2_999_000).await.unwrap(), large[2_999_000..]);
    assert_eq!(download(&link, attempt, Digest::of(b""), 0).await.unwrap(), b"");
    assert!(download(&link, attempt, Digest::of(b""), 1).await.unwrap_err().contains("offset"));
    link.end(attempt, success(0, 0)).await;
    scene.until_run(run, PackRunState::Completed).await;
}

#[tokio::test]
async fn nothing_is_given_that_is_no_input_of_a_held_attempt() {
    let scene = Scene::open().await;
    let (agent, spy) = (scene.enrolled().await, scene.enrolled().await);
    let mut link = agent.connect(2).await;
    scene.start(jobs()).await;
    let compiles = link.assigned().await;
    let spying = spy.connect(1).await;
    let secret = b"not for everybody";
    for assignment in &compiles {
        let attempt = assignment.attempt;
        assert_eq!(link.upload(attempt, "out/x", secret).await, UploadEnd::Committed);
        let refused = download(&link, attempt, Digest::of(secret), 0).await.unwrap_err();
        assert!(refused.contains("no input"), "{refused}");
        link.end(attempt, success(0, 1)).await;
    }
    let attempt = compiles[0].attempt;
    assert!(inputs(&spying, attempt, 0).await.unwrap_err().contains("not this agent's"));
    assert!(
        download(&spying, attempt, Digest::of(secret), 0).await.unwrap_err().contains("not this agent's")
    );
    let UploadEnd::Refused(reason) = spying.upload(attempt, "out/y", b"forged").await else { panic!() };
    assert!(reason.as_str().contains("not this agent's"), "{reason}");
}

#[tokio::test]
async fn a_new_session_fetches_without_asking_for_the_list_again() {
    let scene = Scene::open().await;
    let agent = scene.enrolled().await;
    let mut link = agent.connect(2).await;
    scene.start(jobs()).await;
    for assignment in link.assigned().await {
        assert_eq!(link.upload(assignment.attempt, "out/x", b"content").await, UploadEnd::Committed);
        link.end(assignment.attempt, success(0, 1)).await;
    }
    let attempt = link.assigned_one().await.attempt;
    assert!(inputs(&link, attempt, 7).await.unwrap_err().contains("no input 7"));
    assert_eq!(download(&link, attempt, Digest::of(b"content"), 3).await.unwrap(), b"tent");
    assert!(download(&link, attempt, Digest::of(b"other"), 0).await.unwrap_err().contains("no input"));
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() {
    let scene = Scene::open().await;
    let agent = scene.enrolled().await;
    let mut link = agent.connect(1).await;
    let run = scene.start(vec![Job { artifacts: leaves("out"), ..Job::named("build") }]).await;
    let attempt = link.assigned_one().await.attempt;
    let bytes: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let header = StreamHeader::Upload(upload(attempt, "out", &bytes));
    let (mut writer, mut reader) = link.ask(&header).await;
    assert_eq!(reader.expect::<UploadAnswer>().await.unwrap(), UploadAnswer::SendFrom(0));
    writer.stream().write_all(&bytes[..1_500_000]).await.unwrap();
    writer.stream().finish().unwrap();
    assert!(reader.expect::<UploadEnd>().await.is_err(), "it is not whole");
    let id = UploadId::new(agent.id, attempt, "out");
    let begun = scene.artifacts.begin(id, Digest::of(&bytes), bytes.len() as u64).await.unwrap();
    let Begin::Send(half) = begun else { panic!("it is not here") };
    assert_eq!(half.offset(), 1_500_000);
    drop(half);
    assert_eq!(link.upload(attempt, "out", &bytes).await, UploadEnd::Committed);
    link.end(attempt, success(0, 1)).await;
    scene.until_run(run, PackRunState::Completed).await;
}

#[tokio::test]
async fn more_uploads_than_may_go_on_at_once_wait_their_turn() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(1).await;
    let run = scene.start(vec![Job { artifacts: leaves("out"), ..Job::named("build") }]).await;
    let attempt = link.assigned_one().await.attempt;
    let paths: Vec<_> = (0..100).map(|n| format!("out/{n}")).collect();
    let uploads = paths.iter().map(|path| link.upload(attempt, path, path.as_bytes()));
    let ends = futures_util::future::join_all(uploads).await;
    assert!(ends.iter().all(|end| *end == UploadEnd::Committed), "{ends:?}");
    link.end(attempt, success(0, 100)).await;
    scene.until_run(run, PackRunState::Completed).await;
}

#[tokio::test]
async fn a_retried_run_finds_the_files_of_the_job_runs_it_took_over() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(2).await;
    scene.start(jobs()).await;
    let mut sources = Vec::new();
    for assignment in link.assigned().await {
        let attempt = assignment.attempt;
        let path = format!("out/{}", assignment.key);
        assert_eq!(link.upload(attempt, &path, path.as_bytes()).await, UploadEnd::Committed);
        link.end(attempt, success(0, 1)).await;
        sources.push(attempt.job_run);
    }
    let first = link.assigned_one().await.attempt;
    let files = inputs(&link, first, 0).await.unwrap();
    link.end(first, success(0, 0)).await;
    // A retry, and a retry of that.
    for _ in 0..2 {
        let plan = Plan { jobs: jobs().into_iter().map(Job::planned).collect() };
        let runs = plan.jobs[0].runs.iter().map(|run| run.id);
        let reused: BTreeMap<_, _> = runs.zip(sources.clone()).collect();
        sources = reused.keys().copied().collect();
        scene.start_plan(plan, reused).await;
        let attempt = link.assigned_one().await.attempt;
        let mut again = inputs(&link, attempt, 0).await.unwrap();
        again.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(again, files);
        link.end(attempt, success(0, 0)).await;
    }
}

#[tokio::test]
async fn an_input_from_a_wide_job_is_listed_whole() {
    let scene = Scene::open().await;
    let mut link = scene.enrolled().await.connect(600).await;
    let mut wide = jobs();
    wide[0].width = 600;
    wide[0].artifacts.extend(leaves("other"));
    let run = scene.start(wide).await;
    let mut assigned = Vec::new();
    while assigned.len() < 600 {
        assigned.extend(link.assigned().await);
    }
    let uploads = assigned.iter().map(|assignment| async {
        let (attempt, path) = (assignment.attempt, format!("out/{}", assignment.key));
        // Every tenth leaves nothing below `out`.
        let path = if assignment.key.as_str().ends_with("3]") { "other" } else { &path };
        assert_eq!(link.upload(attempt, path, b"same").await, UploadEnd::Committed);
    });
    futures_util::future::join_all(uploads).await;
    for assignment in &assigned {
        link.end(assignment.attempt, success(0, 1)).await;
    }
    let attempt = link.assigned_one().await.attempt;
    let files = inputs(&link, attempt, 0).await.unwrap();
    assert_eq!(files.len(), 540);
    link.end(attempt, success(0, 0)).await;
    scene.until_run(run, PackRunState::Completed).await;
}

#[tokio::test]
async fn more_downloads_than_may_go_on_at_once_wait_their_turn() {
    let mut settings = super::scene::settings();
    settings.limits.downloads_per_agent = 1;
    let scene = Scene::open_with(settings, crate::core::Config::default()).await;
    let mut link = scene.enrolled().await.connect(3).await;
    scene.start(jobs()).await;
    let content = vec![7; 8 << 20];
    for (path, assignment) in ["out/a", "out/b"].into_iter().zip(link.assigned().await) {
        link.upload(assignment.attempt, path, &content).await;
        link.end(assignment.attempt, success(0, 1)).await;
    }
    let attempt = link.assigned_one().await.attempt;
    // One that nobody reads keeps its turn: its bytes don't fit into the stream's window.
    let digest = Digest::of(&content);
    let header = StreamHeader::Download { attempt, digest, offset: 0 };
    assert_eq!(inputs(&link, attempt, 0).await.unwrap().len(), 2);
    let (_writer, mut first) = link.ask(&header).await;
    assert_eq!(first.expect::<DownloadAnswer>().await.unwrap(), DownloadAnswer::Bytes(8 << 20));
    let (_writer, mut second) = link.ask(&header).await;
    let answer =
        tokio::time::timeout(std::time::Duration::from_millis(100), second.expect::<DownloadAnswer>()).await;
    assert!(answer.is_err(), "it waits: {answer:?}");
    drop(first);
    assert_eq!(second.expect::<DownloadAnswer>().await.unwrap(), DownloadAnswer::Bytes(8 << 20));
}
