//! `GET /v1/events`.

use packrun_protocol::state::Verdict;
use reqwest::StatusCode;

use super::stage::{Stage, wait_for_end};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_runs_changes_come_with_their_runs_from_now_on() {
    let stage = Stage::new().await;
    let before = stage.run(&[("job", &[], 1, 1)]).await;
    let mut events = stage.events("/v1/events", None).await;
    let mut agent = stage.agent("builder", 1).await;
    let given = agent.given().await.remove(0);
    agent.start(&given).await;
    agent.leave(given.attempt, "out/app", b"content").await;
    agent.end(given.attempt, Verdict::Succeeded, 1).await;
    wait_for_end(&stage, before).await;
    let next = stage.run(&[("job", &[], 1, 1)]).await;
    let seen = events.until(|event| event.data["pack_run"] == next.to_string()).await;
    let of_first: Vec<_> = seen.iter().filter(|event| event.data["pack_run"] == before.to_string()).collect();
    let told: Vec<_> = of_first
        .iter()
        .map(|event| event.data.get("state").unwrap_or(&event.data["path"]).as_str().unwrap())
        .collect();
    assert_eq!(told, ["running", "assigned", "running", "out/app", "succeeded", "completed"]);
    assert_eq!((&of_first[0].data.get("key"), &*of_first[3].name), (&None, "artifact"));
    assert_eq!(of_first[2].data["agent"], "builder");
    let stranger = reqwest::get(format!("{}/v1/events", stage.url)).await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
    stage.app.stop.cancel();
    while events.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_is_too_slow_is_told_so_and_goes_on() {
    use super::super::changes::Changes;

    let stage = Stage::new().await;
    let mut changes = Changes::new(stage.app.clone());
    // Each run is a commit of its own, and the engine keeps a thousand or so for those who are slow.
    let mut last = None;
    for _ in 0..1100 {
        last = Some(stage.run(&[("job", &[], 1, 1)]).await);
    }
    let first = changes.next().await.unwrap().unwrap();
    assert_eq!(first, "event: reset\ndata: {}\n\n");
    let last = last.unwrap().to_string();
    loop {
        let events = changes.next().await.unwrap().unwrap();
        if String::from_utf8_lossy(&events).contains(&last) {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_comes_back_is_told_that_he_has_missed_some() {
    let stage = Stage::new().await;
    let mut events = stage.events("/v1/events", Some("any")).await;
    assert_eq!(events.next().await.unwrap().name, "reset");
    let run = stage.run(&[("job", &[], 1, 1)]).await;
    let event = events.next().await.unwrap();
    assert_eq!((&*event.name, &event.data["pack_run"]), ("state", &run.to_string().into()));
}
