//! Which agent gets what, and that a job which waits says for whom.

use packrun_tests::api::{Api, job, states};
use packrun_tests::process::Coordinator;
use serde_json::{Value, json};

use crate::programs;

/// Waits until a job run of a pack run is there for this reason, which may need another report of an agent.
async fn waits_because(api: &Api, id: &str, key: &str, words: &str) {
    packrun_tests::in_time(&format!("`{words}`, which {key} waits for"), async {
        while job(&api.pack_run(id).await, key)["reason"] != words {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A job that runs until this file is there.
fn until(file: &std::path::Path) -> String {
    format!("echo up; while ! test -e {}; do sleep 0.02; done", file.display())
}

#[tokio::test]
async fn a_drained_agent_ends_what_it_has_and_takes_nothing_until_it_is_resumed() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let go = coordinator.data().join("go");
    let source = format!("name: long\njobs:\n  a: {{ run: '{}' }}\n", until(&go));
    let long = coordinator.api().run(&source).await;
    coordinator.api().stream(&long, None).await.until(|event| event.is_line("up")).await;
    assert!(coordinator.cli(&["agents", "drain", "builder"]).await.status.success());
    let short = coordinator.api().run("name: short\njobs:\n  a: { run: exit 0 }\n").await;
    let words = "1 agent could take it; it is drained";
    waits_because(&coordinator.api(), &short, "a", words).await;

    // The coordinator comes back, and what runs is not touched; the agent comes back, and is drained still.
    coordinator.restart().await;
    agent.process().logged_times("connected", 2).await;
    std::fs::write(&go, "").unwrap();
    let api = coordinator.api();
    assert_eq!(states(&api.ended(&long).await), "completed: a succeeded");
    waits_because(&api, &short, "a", words).await;
    assert_eq!(agent.process().terminate().await, Some(0));
    agent.start_again(&coordinator, &["--slots", "2"]);
    agent.process().logged("connected").await;
    waits_because(&api, &short, "a", words).await;
    assert_eq!(api.get("/v1/agents/builder").await["state"], "drained");

    assert!(coordinator.cli(&["agents", "resume", "builder"]).await.status.success());
    assert_eq!(states(&api.ended(&short).await), "completed: a succeeded");
}

#[tokio::test]
async fn a_label_that_an_invitation_grants_is_nobody_elses() {
    let coordinator = Coordinator::start(&programs()).await;
    let api = coordinator.api();
    let claims = ["--label", "gpu=yes", "--label", "zone=a"];
    let mut liar = coordinator.agent("liar", &claims).await;
    assert_eq!(api.get("/v1/agents/liar").await["labels"]["gpu"], "yes", "nobody has granted it so far");
    let token = coordinator.invite_with(&json!({ "gpu": "yes" })).await;
    let shown = api.get("/v1/agents/liar").await;
    assert_eq!((&shown["labels"]["gpu"], &shown["refused_labels"]), (&Value::Null, &json!({ "gpu": "yes" })));
    assert_eq!((&shown["labels"]["zone"], &shown["labels"]["os"]), (&json!("a"), &json!("linux")));
    let _trusted = coordinator.agent_with("trusted", &token, &[]).await;
    assert_eq!(liar.process().terminate().await, Some(0));
    liar.start_again(&coordinator, &claims);
    liar.process().logged("some of the agent's labels don't count").await;

    let source = "
name: p
jobs:
  a: { matrix: { n: [1, 2, 3] }, labels: { gpu: 'yes' }, run: exit 0 }
";
    let id = api.run(source).await;
    let run = api.ended(&id).await;
    for n in 1..=3 {
        assert_eq!(job(&run, &format!("a[n={n}]"))["agent"], "trusted", "{run:#}");
    }
    let shown = coordinator.cli(&["agents", "show", "liar"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.lines().any(|line| line == "Refused:    gpu=yes"), "{shown}");
    let isolation = api.get("/v1/agents/liar").await["isolation"].as_str().unwrap().to_owned();
    assert!(["cgroup", "subreaper"].contains(&isolation.as_str()), "{isolation}");
    assert!(shown.lines().any(|line| line == format!("Isolation:  {isolation}")), "{shown}");
    assert!(liar.process().log().to_lowercase().contains(&format!("isolation={isolation}")));
}

#[tokio::test]
async fn a_queued_job_says_in_words_what_it_waits_for() {
    let coordinator = Coordinator::start(&programs()).await;
    let api = coordinator.api();
    let go = coordinator.data().join("go");
    let source = format!(
        "
name: p
jobs:
  first: {{ run: '{}' }}
  full: {{ labels: {{ os: linux }}, run: exit 0 }}
  gpu: {{ labels: {{ gpu: 'yes' }}, run: exit 0 }}
  value: {{ labels: {{ os: plan9 }}, run: exit 0 }}
  cpus: {{ resources: {{ cpus: 4000 }}, run: exit 0 }}
  memory: {{ labels: {{ os: linux }}, resources: {{ memory: 1024TiB }}, run: exit 0 }}
  after: {{ needs: [full], run: exit 0 }}
",
        until(&go)
    );
    let id = api.run(&source).await;
    let nobody = "there is no agent; `packrun agents invite` makes a token for one to join";
    for key in ["first", "full", "gpu", "cpus"] {
        waits_because(&api, &id, key, nobody).await;
    }
    let _first = coordinator.agent("builder", &["--slots", "1"]).await;
    api.stream(&id, None).await.until(|event| event.is_line("up")).await;
    let shown = async || {
        let shown = coordinator.cli(&["runs", "show", &id]).await;
        String::from_utf8(shown.stdout).unwrap()
    };
    let has = api.get("/v1/agents/builder").await["cpus"].clone();
    let cpus =
        format!("there is 1 agent; it has {has} cpus; 4000 cpus are wanted").replace(".0 cpus", " cpus");
    let table = shown().await;
    for words in [
        "1 agent matches os=linux; it is full",
        "no agent has label gpu",
        "no agent has label os=plan9",
        &cpus,
        "of memory; 1024 TiB of memory are wanted",
        "it waits for full",
    ] {
        assert!(table.contains(words), "`{words}` in:\n{table}");
    }
    let mut second = coordinator.agent("second", &["--slots", "1", "--label", "gpu=no"]).await;
    // It has taken `full`, and then there is nothing for it.
    api.stream(&id, None).await.until(|event| event.is_state(Some("after"), "succeeded")).await;
    assert!(shown().await.contains("no agent has label gpu=yes"));
    assert_eq!(second.process().terminate().await, Some(0));
    let id = api.run("name: q\njobs:\n  a: { labels: { os: linux }, run: exit 0 }\n").await;
    waits_because(&api, &id, "a", "2 agents match os=linux; 1 is full, 1 is not connected").await;
}
