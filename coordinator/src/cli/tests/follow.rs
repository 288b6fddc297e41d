//! Following a pack run: what is shown, through lost connections and feeds that begin again, and how it ends.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use futures_util::{StreamExt as _, stream};

use super::*;

fn event(id: &str, kind: &str, data: &Value) -> String {
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n")
}

fn log(seq: u64, stream: &str, text: &str) -> Value {
    json!({
        "seq": seq, "time": "2026-01-31T11:00:02Z", "key": "compile", "job": "compile", "matrix": {},
        "attempt": 1, "stream": stream, "text": text, "continued": text.ends_with('…'),
    })
}

fn state(key: Option<&str>, state: &str, time: &str, reason: Option<&str>) -> Value {
    json!({"key": key, "state": state, "attempt": 1, "agent": "builder-1", "time": time, "reason": reason})
}

/// A feed in parts, and how it ends: the second of each pair says whether the connection breaks behind it.
fn feed(text: &str, breaks: bool) -> Response {
    let cut = breaks.then(|| Err(std::io::Error::other("cut")));
    let parts = stream::iter(std::iter::once(Ok(text.to_owned())).chain(cut));
    // Each part goes out before the next: an error would take what is before it with it.
    let parts = parts.then(|part| async {
        tokio::task::yield_now().await;
        part
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(parts)).into_response()
}

/// A coordinator of one pack run that ends in `ends_in`, whose feed comes in these parts, a connection each.
async fn coordinator(ends_in: &'static str, parts: Vec<Response>) -> Scripted {
    let parts = Mutex::new(parts.into_iter());
    Scripted::start(move |asked, _| match asked.target.as_str() {
        "/v1/pack-runs" if asked.method == "POST" => axum::Json(pack_run("pending")).into_response(),
        target if target.ends_with("/stream") => {
            parts.lock().unwrap().next().unwrap_or_else(|| problem(410, "the script has ended"))
        }
        target if target.ends_with(RUN) => axum::Json(pack_run(ends_in)).into_response(),
        _ => problem(404, "no such thing"),
    })
    .await
}

fn end(state: &str) -> String {
    event("9", "end", &json!({"state": state, "time": "2026-01-31T11:01:03Z"}))
}

fn whole_feed(ends_in: &str) -> String {
    let artifact = json!({"key": "compile", "attempt": 1, "name": null, "path": "target/app", "size": 2048,
        "digest": DIGEST, "mode": "0755", "time": "2026-01-31T11:00:03Z"});
    [
        event("1", "state", &state(None, "running", "2026-01-31T11:00:01Z", None)),
        event("2", "state", &state(Some("compile"), "running", "2026-01-31T11:00:01Z", None)),
        event("3", "log", &log(0, "stdout", "begun…")),
        event("4", "log", &log(1, "stderr", "warning")),
        event("5", "log", &log(2, "stdout", " and ended")),
        event("6", "artifact", &artifact),
        event("7", "state", &state(Some("compile"), "succeeded", "2026-01-31T11:00:04Z", None)),
        event("8", "state", &state(Some("lint"), "failed", "2026-01-31T11:00:05Z", Some("exit code 3"))),
        ": keep-alive\n\n".to_owned(),
        event("8a", "novelty", &json!({"of": "a later release"})),
        end(ends_in),
    ]
    .concat()
}

const SHOWN: &str = "\
compile   running on builder-1
compile ! warning
compile | begun… and ended
compile   kept target/app (2.0 KiB, sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad)
compile   succeeded
lint      failed: exit code 3, attempt 1
";

const SUMMARY: &str = "
JOB      STATE      AGENT      ATTEMPT  DURATION  EXIT  REASON
compile  succeeded  builder-1  1        1m 02s    0     -
lint     failed     builder-1  1        1m 02s    3     exit code 3
pack run 0193c5e2-0000-7000-8000-000000000001 partially_failed after 1m 03s
repeat what failed: packrun runs retry 0193c5e2-0000-7000-8000-000000000001 --failed
";

#[tokio::test]
async fn a_run_is_shown_as_it_happens_and_then_as_a_whole() {
    let coordinator =
        coordinator("partially_failed", vec![feed(&whole_feed("partially_failed"), false)]).await;
    let ran = coordinator.run(&["run", "build", "--param", "profile=debug", "--follow"]).await;
    let expected = Ran {
        code: 1,
        out: format!("{SHOWN}{SUMMARY}"),
        err: format!("started pack run {RUN} of build@2\n"),
    };
    assert_eq!(ran, expected);
    let asked = coordinator.asked();
    let body: Value = serde_json::from_slice(&asked[0].body).unwrap();
    assert_eq!(body, json!({"pack": "build", "params": {"profile": "debug"}}));
    assert!(!asked[0].header("idempotency-key").is_empty());
}

#[tokio::test]
async fn the_exit_code_tells_how_the_run_ended() {
    let ends = [("completed", 0), ("partially_failed", 1), ("failed", 1), ("canceled", 3)];
    for (state, code) in ends {
        for how in ["--follow", "--wait"] {
            let coordinator = coordinator(state, vec![feed(&end(state), false)]).await;
            let ran = coordinator.run(&["run", "build", how]).await;
            assert_eq!(ran.code, code, "{state} {how}: {}", ran.err);
            match how {
                "--follow" => assert!(ran.out.contains(&format!("pack run {RUN} {state} after 1m 03s"))),
                _ => {
                    assert_eq!((ran.out.as_str(), ran.err.is_empty()), ("", code == 0), "{state}: in silence")
                }
            }
        }
    }
}

#[tokio::test]
async fn a_lost_connection_goes_on_where_it_broke_off() {
    let whole = whole_feed("partially_failed");
    let cut = whole.find("id: 5").unwrap();
    let parts = vec![
        // It breaks off within an event, which comes again as a whole.
        feed(&whole[..cut + 30], true),
        problem(503, "the coordinator starts"),
        feed("", false),
        feed(&whole[cut..], false),
    ];
    let coordinator = coordinator("partially_failed", parts).await;
    let ran = coordinator.run(&["run", "build", "--follow"]).await;
    assert_eq!(ran.out, format!("{SHOWN}{SUMMARY}"));
    let told: Vec<_> = ran.err.lines().skip(1).map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(
        told,
        [
            "lost the coordinator",
            "reached the coordinator again",
            "lost the coordinator",
            "reached the coordinator again"
        ]
    );
    let ids: Vec<_> = coordinator
        .asked()
        .iter()
        .filter(|asked| asked.target.ends_with("/stream"))
        .map(|asked| asked.header("last-event-id").to_owned())
        .collect();
    assert_eq!(ids, ["", "4", "4", "4"]);
}

#[tokio::test]
async fn a_feed_that_begins_again_repeats_nothing() {
    let whole = whole_feed("partially_failed");
    let cut = whole.find("id: 7").unwrap();
    let again = event("0", "reset", &json!({})) + &whole;
    let coordinator =
        coordinator("partially_failed", vec![feed(&whole[..cut], true), feed(&again, false)]).await;
    let ran = coordinator.run(&["run", "build", "--follow"]).await;
    assert_eq!((ran.out, ran.code), (format!("{SHOWN}{SUMMARY}"), 1));
}

#[tokio::test]
async fn a_refusal_ends_it() {
    let coordinator =
        coordinator("running", vec![feed("", false), problem(403, "the token was revoked")]).await;
    let ran = coordinator.run(&["logs", RUN, "--follow"]).await;
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("error: the token was revoked\nhint: "), "{}", ran.err);
}

#[tokio::test]
async fn what_is_no_feed_ends_it() {
    for wrong in [event("1", "log", &json!({"seq": -1})), "x".repeat(5 << 20), "event: end\n\n".to_owned()] {
        let coordinator = coordinator("running", vec![feed(&wrong, false)]).await;
        let ran = coordinator.run(&["logs", RUN, "--follow"]).await;
        assert_eq!(ran.code, 4, "{}", ran.err);
        assert!(ran.err.contains("none that this version of packrun knows"), "{}", ran.err);
    }
}

#[tokio::test]
async fn an_interrupt_stops_following_and_not_the_run() {
    let invocation = Invocation::new(&["run", "build", "--follow"]);
    let interrupt = invocation.interrupt.clone();
    let coordinator = Scripted::start(move |asked, _| match asked.target.as_str() {
        target if target.ends_with("/stream") => {
            interrupt.cancel();
            let silence = Body::from_stream(stream::pending::<std::io::Result<String>>());
            ([(CONTENT_TYPE, "text/event-stream")], silence).into_response()
        }
        _ => axum::Json(pack_run("running")).into_response(),
    })
    .await;
    let ran = invocation.variable("PACKRUN_SERVER", &coordinator.url).run().await;
    assert_eq!(ran.code, 130);
    let told = format!(
        "error: stopped following; pack run {RUN} goes on\nhint: follow it again: packrun logs {RUN} --follow\n\
         hint: cancel it: packrun runs cancel {RUN}\n"
    );
    assert!(ran.err.ends_with(&told), "{}", ran.err);
    let lines: Vec<_> = coordinator.asked().iter().map(Asked::line).collect();
    assert!(!lines.iter().any(|line| line.ends_with("/cancel")), "{lines:?}");
}

#[tokio::test]
async fn waiting_shows_only_the_end_and_as_json_if_wanted() {
    let coordinator = coordinator("completed", vec![feed(&whole_feed("completed"), false)]).await;
    let ran = coordinator.run(&["run", "build", "--wait", "--output", "json"]).await;
    assert_eq!(ran.code, 0);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), pack_run("completed"));
}

#[tokio::test]
async fn logs_are_followed_without_what_is_not_theirs() {
    let feeds = || vec![feed(&whole_feed("failed"), false)];
    let all = coordinator("failed", feeds()).await.run(&["logs", RUN, "--follow"]).await;
    assert_eq!((all.code, all.out.as_str()), (0, "compile ! warning\ncompile | begun… and ended\n"));
    let one = coordinator("failed", feeds()).await;
    let one = one.run(&["logs", RUN, "--follow", "--job", "compile", "--timestamps"]).await;
    let time = "2026-01-31T11:00:02.000000Z";
    assert_eq!(one.out, format!("{time} warning\n{time} begun… and ended\n"));
    let other = coordinator("failed", feeds()).await.run(&["logs", RUN, "--follow", "--job", "lint"]).await;
    assert_eq!(other.out, "");
    let json = coordinator("failed", feeds()).await;
    let json = json.run(&["logs", RUN, "--follow", "--output", "json"]).await;
    let entries: Vec<Value> = json.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries[1]["text"], "warning");
    assert_eq!(entries.len(), 3);
}

#[tokio::test]
async fn what_a_silent_run_waits_for_is_told_once_and_again_when_it_changes() {
    let looked = CancellationToken::new();
    let coordinator = Scripted::start(move |asked, before| {
        if asked.target.ends_with("/stream") {
            let looked = looked.clone();
            let end = stream::once(async move {
                looked.cancelled().await;
                Ok::<_, std::io::Error>(end("completed"))
            });
            return ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(end)).into_response();
        }
        // The first is asked by the command before it follows, the next are its looks.
        let mut run = pack_run("running");
        run["job_runs"][0]["state"] = "queued".into();
        run["job_runs"][0]["reason"] = if before < 3 { "no agent has pool=a" } else { "all are busy" }.into();
        if before == 5 {
            looked.cancel();
        }
        axum::Json(run).into_response()
    })
    .await;
    let mut follow = Invocation::new(&["logs", RUN, "--follow"]).variable("PACKRUN_SERVER", &coordinator.url);
    follow.lull = Duration::from_millis(1);
    let ran = follow.run().await;
    assert_eq!((ran.code, &*ran.err), (0, "waiting: no agent has pool=a\nwaiting: all are busy\n"));
}
