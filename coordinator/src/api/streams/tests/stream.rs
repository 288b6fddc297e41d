//! `GET /v1/pack-runs/{id}/stream`.

use packrun_protocol::id::PackRunId;
use packrun_protocol::state::{PackRunState, Verdict};
use reqwest::StatusCode;
use serde_json::Value;

use super::client::Seen;
use super::stage::{Agent, Stage, wait_for_end};

fn path(run: PackRunId) -> String {
    format!("/v1/pack-runs/{run}/stream")
}

/// One of each kind: two shards of which one is tried twice, and a job after them.
async fn play(stage: &Stage, run: PackRunId, agent: &mut Agent) {
    let given = agent.given().await;
    let [first, second] = &given[..] else { panic!("two slots, two attempts") };
    agent.start(first).await;
    agent.say(first.attempt, &["one", "two"]).await;
    agent.start(second).await;
    agent.say(second.attempt, &["three"]).await;
    agent.say(first.attempt, &["four"]).await;
    agent.end(second.attempt, Verdict::Failed, 0).await;
    let again = agent.given().await.remove(0);
    agent.start(&again).await;
    agent.say(again.attempt, &["five", "six", "seven"]).await;
    agent.end(first.attempt, Verdict::Succeeded, 0).await;
    agent.end(again.attempt, Verdict::Succeeded, 0).await;
    let last = agent.given().await.remove(0);
    agent.start(&last).await;
    agent.end(last.attempt, Verdict::Succeeded, 0).await;
    wait_for_end(stage, run).await;
    stage.close(run).await;
}

/// Checks the rules of the order on a whole stream.
fn check(events: &[Seen]) {
    let at = |what: &dyn Fn(&Seen) -> bool| events.iter().position(what);
    let is_state = |event: &Seen, key: &Value, attempt: &Value, states: &[&str]| {
        event.name == "state"
            && event.data["key"] == *key
            && event.data["attempt"] == *attempt
            && states.contains(&event.data["state"].as_str().unwrap())
    };
    let ends = ["queued", "succeeded", "failed", "timed_out", "canceled", "lost"];
    for (place, entry) in events.iter().enumerate().filter(|(_, event)| event.name == "log") {
        let (key, attempt) = (&entry.data["key"], &entry.data["attempt"]);
        let started = at(&|event| is_state(event, key, attempt, &["running"])).unwrap();
        let ended = at(&|event| is_state(event, key, attempt, &ends)).unwrap();
        assert!(started < place && place < ended, "{entry:?} at {place} between {started} and {ended}");
    }
    let [.., state, end] = events else { panic!("an end") };
    assert_eq!((&*state.name, &state.data["key"]), ("state", &Value::Null));
    assert_eq!((&*end.name, &end.data["state"]), ("end", &state.data["state"]));
    let ids: std::collections::BTreeSet<_> = events.iter().map(|event| &event.id).collect();
    assert_eq!(ids.len(), events.len(), "each id once");
}

fn texts(events: &[Seen]) -> Vec<&str> {
    events
        .iter()
        .filter(|event| event.name == "log")
        .map(|event| event.data["text"].as_str().unwrap())
        .collect()
}

const JOBS: [(&str, &[u32], usize, u32); 2] = [("test", &[], 2, 2), ("report", &[0], 1, 1)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_tells_all_while_it_happens_and_resumes_behind_every_event() {
    let stage = Stage::new().await;
    let run = stage.run(&JOBS).await;
    let early = tokio::spawn(stage.events(&path(run), None).await.rest());
    let mut agent = stage.agent("builder", 2).await;
    play(&stage, run, &mut agent).await;
    let events = early.await.unwrap();
    check(&events);
    assert_eq!(texts(&events).len(), 7);
    let assigned = events.iter().find(|event| event.data["state"] == "assigned").unwrap();
    assert_eq!(assigned.data["agent"], "builder");

    let whole = stage.events(&path(run), None).await.rest().await;
    check(&whole);
    let lines: Vec<_> = whole.iter().filter(|event| event.name == "log").collect();
    let since = lines[3].data["time"].as_str().unwrap();
    let late = stage.events(&format!("{}?since={since}", path(run)), None).await.rest().await;
    let is_late = |event: &&Seen| event.name != "log" || event.data["time"].as_str().unwrap() >= since;
    assert_eq!(late, whole.iter().filter(is_late).cloned().collect::<Vec<_>>());
    assert!(late.len() < whole.len());
    let mut sorted = (texts(&events), texts(&whole));
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    assert_eq!(sorted.0, sorted.1);
    for (index, event) in whole.iter().enumerate() {
        let response = stage.request(reqwest::Method::GET, &path(run)).header("last-event-id", &event.id);
        if event.name == "end" {
            assert_eq!(response.send().await.unwrap().status(), StatusCode::NO_CONTENT, "nothing is left");
            continue;
        }
        let rest = stage.events(&path(run), Some(&event.id)).await.rest().await;
        assert_eq!(rest, whole[index + 1..], "behind {event:?}");
        let by_query = stage.events(&format!("{}?cursor={}", path(run), event.id), None).await.rest().await;
        assert_eq!(by_query, rest);
    }
    // What was seen while it happened may have come in another order, and still goes on without a gap.
    for (index, event) in events[..events.len() - 1].iter().enumerate() {
        let rest = stage.events(&path(run), Some(&event.id)).await.rest().await;
        let resumed: Vec<_> = events[..=index].iter().cloned().chain(rest).collect();
        check(&resumed);
        assert_eq!(resumed.len(), events.len(), "behind {event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_at_the_next_coordinator() {
    let stage = Stage::new().await;
    let run = stage.run(&[("job", &[], 2, 1)]).await;
    let mut agent = stage.agent("builder", 2).await;
    let given = agent.given().await;
    agent.start(&given[0]).await;
    agent.say(given[0].attempt, &["one", "two"]).await;
    let mut events = stage.events(&path(run), None).await;
    let mut seen = events.until(|event| event.data["text"] == "one").await;
    let parted = agent.part();
    let stage = stage.restart().await;
    let last = seen.last().unwrap().id.clone();
    let mut events = stage.events(&path(run), Some(&last)).await;
    seen.extend(events.until(|event| event.data["text"] == "two").await);
    let mut agent = stage.reconnect(parted).await;
    agent.open(given[0].attempt, run);
    agent.say(given[0].attempt, &["three"]).await;
    let given_again = agent.given().await;
    agent.start(&given_again[0]).await;
    agent.say(given_again[0].attempt, &["four"]).await;
    agent.end(given[0].attempt, Verdict::Succeeded, 0).await;
    seen.extend(events.until(|event| event.data["state"] == "succeeded").await);
    drop(events);
    agent.end(given_again[0].attempt, Verdict::Succeeded, 0).await;
    wait_for_end(&stage, run).await;
    // It ended, and nobody has closed its log before this one ended too.
    drop(agent);
    let stage = stage.restart().await;
    let last = seen.last().unwrap().id.clone();
    seen.extend(stage.events(&path(run), Some(&last)).await.rest().await);
    check(&seen);
    let mut texts = texts(&seen);
    texts.sort_unstable();
    assert_eq!(texts, ["four", "one", "three", "two"]);
    let whole = stage.events(&path(run), None).await.rest().await;
    assert_eq!(whole.len(), seen.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_given_up_ends_behind_what_it_said_in_time() {
    let stage = Stage::new().await;
    let run = stage.run(&[("job", &[], 1, 2)]).await;
    let mut agent = stage.agent("first", 1).await;
    let given = agent.given().await.remove(0);
    agent.start(&given).await;
    agent.say(given.attempt, &["in time"]).await;
    let mut events = stage.events(&path(run), None).await;
    let revoke = crate::core::event::Command::RevokeAgent(agent.id);
    stage.app.engine.command(revoke).await.unwrap();
    let mut other = stage.agent("second", 1).await;
    let again = other.given().await.remove(0);
    assert_eq!(again.attempt.number.get(), 2);
    other.start(&again).await;
    other.say(again.attempt, &["again"]).await;
    // Nobody has sealed the first log, and yet the second goes on.
    let seen = events.until(|event| event.data["text"] == "again").await;
    let order: Vec<_> =
        seen.iter().filter(|event| event.name == "log" || event.data["state"] == "queued").collect();
    assert_eq!(order.len(), 4);
    assert_eq!(order[1].data["text"], "in time");
    assert_eq!((&order[2].data["state"], order[2].data["attempt"].as_u64()), (&"queued".into(), Some(1)));
    // What still comes of the first is not lost.
    agent.say(given.attempt, &["late"]).await;
    events.until(|event| event.data["text"] == "late").await;
    stage.keep(run, given.attempt).await;
    other.end(again.attempt, Verdict::Succeeded, 0).await;
    wait_for_end(&stage, run).await;
    stage.close(run).await;
    let rest = events.rest().await;
    assert_eq!(rest.last().unwrap().name, "end");
    assert_eq!(stage.state(run), PackRunState::Completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_without_any_log_ends_too() {
    let stage = Stage::new().await;
    let run = stage.run(&[("job", &[], 3, 1)]).await;
    let events = stage.events(&path(run), None).await;
    stage.app.engine.command(crate::core::event::Command::CancelRun(run)).await.unwrap();
    let events = events.rest().await;
    assert_eq!(events.iter().filter(|event| event.data["state"] == "canceled").count(), 3 + 1 + 1);
    assert_eq!(events.last().unwrap().name, "end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_not_there_any_more_is_reset_and_what_is_no_place_refused() {
    let stage = Stage::new().await;
    let run = stage.run(&JOBS).await;
    let mut agent = stage.agent("builder", 2).await;
    play(&stage, run, &mut agent).await;
    let whole = stage.events(&path(run), None).await.rest().await;
    let beyond = ["1.99.0.0", "1.0.0.99", "99.18446744073709551615.4294967295.18446744073709551615"];
    for place in beyond {
        let events = stage.events(&path(run), Some(place)).await.rest().await;
        assert_eq!(events[0].name, "reset");
        assert_eq!(events[1..], whole, "then all of it");
    }
    let long = "1.".repeat(5000);
    for place in ["x", "1", "1.2.3", "1.2.3.4.5", "1.-2.3.4", "1.2.4294967296.3", "a.b.c.d", "....", &long] {
        let request = stage.request(reqwest::Method::GET, &path(run)).header("last-event-id", place);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{place}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    let unknown = stage.get(&path(PackRunId::generate())).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_eq!(stage.get("/v1/pack-runs/none/stream").await.status(), StatusCode::BAD_REQUEST);
    let stranger = reqwest::get(format!("{}{}", stage.url, path(run))).await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_the_coordinator_stops() {
    let stage = Stage::new().await;
    let run = stage.run(&JOBS).await;
    let mut events = stage.events(&path(run), None).await;
    events.until(|event| event.data["state"] == "queued").await;
    stage.app.stop.cancel();
    while events.next().await.is_some() {}
}
