//! An agent stays who it is: over the end of its certificate, other tokens and copies of itself.

use packrun_protocol::cert::AgentCertificate;
use packrun_protocol::time::Clock;
use packrun_tests::api::{job, states, texts};
use packrun_tests::process::{Agent, Coordinator};
use serde_json::{Value, json};

use crate::programs;

fn certificate(agent: &Agent) -> AgentCertificate {
    let pem = std::fs::read_to_string(agent.state().join("identity/agent.pem")).unwrap();
    AgentCertificate::parse_pem(&pem).unwrap()
}

#[tokio::test]
async fn certificates_that_live_for_seconds_are_renewed_while_a_job_runs_and_streams() {
    let mut coordinator = Coordinator::start_with(&programs(), &["--certificate-ttl", "10s"]).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    let first = certificate(&agent);
    let go = coordinator.data().join("go");
    let counts = "n=0; while ! test -e $GO; do echo $n; n=$((n + 1)); sleep 0.1; done";
    let source = format!("name: p\nenv: {{ GO: '{}' }}\njobs:\n  a: {{ run: '{counts}' }}\n", go.display());
    let id = coordinator.api().run(&source).await;
    let mut stream = coordinator.api().stream(&id, None).await;
    // Each line is a moment to look at the clock.
    stream.until(|event| event.kind == "log" && Clock::start().now() > first.not_after).await;
    let log = agent.process().log();
    assert!(log.matches("the certificate was renewed").count() >= 2, "{log}");
    assert_eq!(log.matches("connected").count(), 1, "the connection outlives the certificate: {log}");

    // A new connection shows the new one, for the old one would be refused.
    coordinator.crash_and_restart().await;
    agent.process().logged_times("connected", 2).await;
    assert!(certificate(&agent).not_after > first.not_after);
    std::fs::write(go, "").unwrap();
    let api = coordinator.api();
    assert_eq!(api.ended(&id).await["state"], "completed");
    let entries = api.logs(&id, 1000).await;
    let expected: Vec<String> = (0..entries.len()).map(|n| n.to_string()).collect();
    assert_eq!(texts(&entries), expected);
}

#[tokio::test]
async fn a_copy_of_an_agent_takes_its_place_and_the_two_do_not_fight() {
    let coordinator = Coordinator::start(&programs()).await;
    let api = coordinator.api();
    let mut first = coordinator.agent("builder", &[]).await;
    let id = api.run("name: p\njobs:\n  a: { run: 'echo up; exec sleep 1000' }\n").await;
    api.stream(&id, None).await.until(|event| event.is_line("up")).await;

    let mut copy = first.copy(&coordinator, &[]).await;
    copy.process().logged("connected").await;
    assert_eq!(first.process().ended().await, Some(4));
    assert!(first.process().log().contains("is the state folder copied?"), "{}", first.process().log());
    // What the first one ran is lost, for the copy's journal says that it ran and it doesn't.
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "failed: a lost");
    let id = api.run("name: q\njobs:\n  a: { run: exit 0 }\n").await;
    assert_eq!(states(&api.ended(&id).await), "completed: a succeeded");
    assert_eq!(copy.process().log().matches("connected").count(), 1, "{}", copy.process().log());
    assert_eq!(api.get("/v1/agents").await["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn another_join_token_is_kept_for_the_day_when_the_agent_is_not_let_in_any_more() {
    let coordinator = Coordinator::start(&programs()).await;
    let api = coordinator.api();
    let mut agent = coordinator.agent("builder", &[]).await;
    let who = api.get("/v1/agents/builder").await["id"].clone();
    assert_eq!(agent.process().terminate().await, Some(0));
    let file = agent.state().join("join-token");
    std::fs::write(&file, coordinator.invite().await).unwrap();
    agent.start_again(&coordinator, &["--name", "builder", "--join-token-file", file.to_str().unwrap()]);
    agent.process().logged("stays who it is").await;
    agent.process().logged("connected").await;
    assert_eq!(api.get("/v1/agents/builder").await["id"], who);
    let unused = async || {
        let tokens = api.get("/v1/tokens").await;
        let is_open = |token: &&Value| token["role"] == "join" && token["state"] == "active";
        tokens["items"].as_array().unwrap().iter().filter(is_open).count()
    };
    assert_eq!(unused().await, 1, "a healthy agent uses no token");

    api.post("/v1/agents/builder/revoke", &json!({})).await;
    agent.process().logged_times("connected", 2).await;
    let now = api.get("/v1/agents/builder").await;
    assert!(now["id"] != who && now["state"] == "active", "{now}");
    assert_eq!(api.get(&format!("/v1/agents/{}", who.as_str().unwrap())).await["state"], "revoked");
    assert_eq!(unused().await, 0);
    let id = api.run("name: p\njobs:\n  a: { run: exit 0 }\n").await;
    assert_eq!(api.ended(&id).await["state"], "completed");
    // There is no third way in.
    api.post("/v1/agents/builder/revoke", &json!({})).await;
    assert_eq!(agent.process().ended().await, Some(4), "{}", agent.process().log());
}

#[tokio::test]
async fn what_a_revoked_agent_ran_is_tried_elsewhere_or_lost() {
    let coordinator = Coordinator::start(&programs()).await;
    let api = coordinator.api();
    let mut first = coordinator.agent("first", &["--slots", "2", "--label", "who=first"]).await;
    let source = "
name: p
jobs:
  once: { labels: { who: first }, run: 'echo pid $$; exec sleep 1000' }
  again:
    retry: { attempts: 2, backoff: 0s }
    run: 'echo attempt $PACKRUN_ATTEMPT; test $PACKRUN_ATTEMPT = 2 || exec sleep 1000'
";
    let id = api.run(source).await;
    let mut stream = api.stream(&id, None).await;
    let (mut pid, mut is_up) = (None, false);
    while pid.is_none() || !is_up {
        let event = stream.next().await.unwrap();
        let text = event.data["text"].as_str().unwrap_or_default();
        is_up |= text == "attempt 1";
        pid = pid.or(text.strip_prefix("pid ").map(str::to_owned));
    }
    let _second = coordinator.agent("second", &[]).await;
    let revoked = coordinator.cli(&["agents", "revoke", "first"]).await;
    assert!(revoked.status.success(), "{revoked:?}");
    assert_eq!(first.process().ended().await, Some(4));
    assert!(first.process().log().contains("the agent was revoked"), "{}", first.process().log());
    assert!(!std::path::Path::new(&format!("/proc/{}", pid.unwrap())).exists(), "its jobs end with it");
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "partially_failed: once lost, again succeeded");
    assert_eq!(job(&run, "once")["reason"], "its agent was revoked");
    assert_eq!((&job(&run, "again")["agent"], &job(&run, "again")["attempt"]), (&json!("second"), &json!(2)));
}
