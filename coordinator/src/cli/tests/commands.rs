//! What each command asks, and what it shows.

use super::*;

const AGENT: &str = "0193c5e2-0000-7000-8000-0000000000aa";
const OTHER: &str = "0193c5e2-0000-7000-8000-0000000000bb";
const TOKEN: &str = "0193c5e2-0000-7000-8000-0000000000cc";

fn version(version: u32) -> Value {
    json!({"name": "build", "version": version, "digest": DIGEST, "media_type": "application/yaml",
        "registered_at": "2026-01-31T10:00:00Z", "archived": version == 1})
}

fn content(number: u32, source: &str) -> Value {
    let mut content = version(number);
    content["source"] = source.into();
    content["definition"] = json!({"name": "build"});
    content
}

fn agent(id: &str, name: &str) -> Value {
    json!({"id": id, "name": name, "state": "active", "connected": true, "draining": false,
        "labels": {"os": "linux"}, "refused_labels": {"gpu": "yes"}, "isolation": "cgroup", "slots": 4, "cpus": 8.0, "memory_bytes": 17_179_869_184_u64, "held": 1,
        "enrolled_at": "2026-01-30T10:00:00Z"})
}

fn token() -> Value {
    json!({"id": TOKEN, "role": "operator", "state": "active", "created_at": "2026-01-30T10:00:00Z", "expires_at": null})
}

/// A job run at its second attempt.
fn job_run() -> Value {
    let attempt = |number: u32, state: &str, started: &str| {
        json!({"number": number, "state": state, "agent": "builder-1", "agent_id": AGENT, "signal": null,
            "assigned_at": started, "started_at": started, "ended_at": null, "duration_seconds": null,
            "exit_code": null, "reason": null, "entries": null})
    };
    let mut first = attempt(1, "failed", "2026-01-31T11:00:01Z");
    first["duration_seconds"] = 4.5.into();
    first["signal"] = 9.into();
    first["reason"] = "out of memory".into();
    first["entries"] = 12.into();
    let mut job_run = pack_run("running")["job_runs"][0].clone();
    job_run["state"] = "running".into();
    job_run["attempts"] = json!([first, attempt(2, "running", "2026-01-31T11:59:00Z")]);
    job_run
}

/// A coordinator with some of everything.
async fn coordinator() -> Scripted {
    let run = format!("/v1/pack-runs/{RUN}");
    let mut made = token();
    made["token"] = "packrun-secret".into();
    Scripted::with([
        ("POST /v1/packs".to_owned(), version(3)),
        ("GET /v1/packs".into(), page(json!([version(2)]))),
        ("GET /v1/packs/build".into(), content(2, "name: build\njobs: b\n")),
        ("GET /v1/packs/build/versions/1".into(), content(1, "name: build\njobs: a\n")),
        ("GET /v1/packs/build/versions/2".into(), content(2, "name: build\njobs: b\n")),
        ("GET /v1/packs/build/versions?archived=true".into(), page(json!([version(2), version(1)]))),
        ("POST /v1/packs/build/versions/1/archive".into(), version(1)),
        ("POST /v1/packs/build/archive".into(), version(2)),
        ("POST /v1/packs/build/unarchive".into(), version(2)),
        ("POST /v1/pack-runs".into(), pack_run("pending")),
        ("GET /v1/pack-runs?limit=500".into(), page(json!([pack_run("failed")]))),
        (
            "GET /v1/pack-runs?pack=build&state=failed&limit=5".into(),
            json!({"items": [pack_run("failed")], "next_cursor": "c1"}),
        ),
        (format!("GET {run}"), pack_run("failed")),
        (format!("POST {run}/cancel"), pack_run("running")),
        (format!("GET /v1/runs/{JOB_RUN}"), job_run()),
        (format!("POST /v1/runs/{LINT}/cancel"), job_run()),
        (format!("POST {run}/retry"), pack_run("pending")),
        (
            format!("GET {run}/artifacts"),
            page(json!([{"key": "compile", "attempt": 1, "name": "app",
            "path": "target/app", "size": 3_355_443, "digest": DIGEST, "mode": "0755"}])),
        ),
        ("GET /v1/agents".into(), page(json!([agent(AGENT, "builder-1"), agent(OTHER, "builder-2")]))),
        (format!("GET /v1/agents/{AGENT}"), agent(AGENT, "builder-1")),
        (format!("POST /v1/agents/{AGENT}/drain"), agent(AGENT, "builder-1")),
        (format!("POST /v1/agents/{AGENT}/revoke"), agent(AGENT, "builder-1")),
        (
            "POST /v1/join-tokens".into(),
            json!({"id": TOKEN, "token": "packrun-join-x", "expires_at": "2026-01-31T13:00:00Z"}),
        ),
        ("GET /v1/tokens".into(), page(json!([token()]))),
        ("POST /v1/tokens".into(), made),
        (format!("POST /v1/tokens/{TOKEN}/revoke"), token()),
        (
            "GET /v1/status".into(),
            json!({"version": "0.1.0", "epoch": 7, "started_at": "2026-01-31T10:00:00Z",
            "ready": false, "reason": "it recovers", "pack_runs": 1, "queued": 2, "held": 3, "agents": 4,
            "quarantined": {RUN: "a record of a later release"}}),
        ),
    ])
    .await
}

#[tokio::test]
async fn lists_and_single_things_are_shown_for_people() {
    let coordinator = coordinator().await;
    let shown = [
        (
            &["pack", "list"][..],
            format!(
                "PACK   VERSION  STATE   REGISTERED            DIGEST\nbuild  2        active  2026-01-31T10:00:00Z  {DIGEST}\n"
            ),
        ),
        (&["pack", "show", "build@1", "--source"], "name: build\njobs: a\n".into()),
        (
            &["pack", "show", "build"],
            format!(
                "Pack:       build\nVersion:    2\nState:      active\nDigest:     {DIGEST}\nFormat:     application/yaml\nRegistered: 2026-01-31T10:00:00Z\n\n{{\n  \"name\": \"build\"\n}}\n"
            ),
        ),
        (
            &["pack", "diff", "build@1", "build@2"],
            "--- build@1\n+++ build@2\n@@ -1,2 +1,2 @@\n name: build\n-jobs: a\n+jobs: b\n".into(),
        ),
        (
            &["pack", "show", "build@1"],
            format!(
                "Pack:       build\nVersion:    1\nState:      archived\nDigest:     {DIGEST}\nFormat:     application/yaml\nRegistered: 2026-01-31T10:00:00Z\n\n{{\n  \"name\": \"build\"\n}}\n"
            ),
        ),
        (
            &["pack", "list", "build", "--archived"],
            format!(
                "PACK   VERSION  STATE     REGISTERED            DIGEST\nbuild  2        active    2026-01-31T10:00:00Z  {DIGEST}\nbuild  1        archived  2026-01-31T10:00:00Z  {DIGEST}\n"
            ),
        ),
        (&["pack", "archive", "build@1"], "build@1 is archived\n".into()),
        (&["pack", "archive", "build"], "build, up to version 2, is archived\n".into()),
        (&["pack", "unarchive", "build"], "build, up to version 2, is not archived\n".into()),
        (&["run", "build@2", "--detach"], format!("{RUN}\n")),
        (
            &["runs", "list", "--pack", "build", "--state", "failed", "--limit", "5"],
            format!(
                "RUN                                   PACK     STATE   CREATED               DURATION\n{RUN}  build@2  failed  2026-01-31T11:00:00Z  1m 03s\nthere are more: --cursor c1\n"
            ),
        ),
        (
            &["runs", "show", "0193c5e2"],
            format!(
                "Run:        {RUN}\nPack:       build@2\nCreated:    2026-01-31T11:00:00Z\nEnded:      2026-01-31T11:01:03Z\nParameters: profile=debug\n\nJOB      STATE      AGENT      ATTEMPT  DURATION  EXIT  REASON\ncompile  succeeded  builder-1  1        1m 02s    0     -\nlint     failed     builder-1  1        1m 02s    3     exit code 3\npack run {RUN} failed after 1m 03s\nrepeat what failed: packrun runs retry {RUN} --failed\n"
            ),
        ),
        (
            &["runs", "show", RUN, "--job", "comp"],
            format!(
                "Job run: {JOB_RUN}\nKey:     compile\nRun:     {RUN}\nState:   running\nSince:   2026-01-31T11:00:01Z\n\nATTEMPT  STATE    AGENT      STARTED               DURATION  EXIT      LINES  REASON\n1        failed   builder-1  2026-01-31T11:00:01Z  4.5s      signal 9  12     out of memory\n2        running  builder-1  2026-01-31T11:59:00Z  1m 00s    -         -      -\n"
            ),
        ),
        (&["runs", "cancel", RUN, "--job", "lint"], "job run lint is being canceled\n".into()),
        (&["runs", "cancel", RUN], format!("pack run {RUN} is being canceled\n")),
        (&["runs", "retry", RUN, "--failed"], format!("{RUN}\n")),
        (
            &["artifacts", "list", RUN],
            format!(
                "JOB      ATTEMPT  PATH        NAME  SIZE     DIGEST\ncompile  1        target/app  app   3.2 MiB  {DIGEST}\n"
            ),
        ),
        (
            &["agents", "list"],
            format!(
                "NAME       STATE   CONNECTED  HELD  SLOTS  LABELS    ID\nbuilder-1  active  yes        1     4      os=linux  {AGENT}\nbuilder-2  active  yes        1     4      os=linux  {OTHER}\n"
            ),
        ),
        (
            &["agents", "show", "builder-1"],
            format!(
                "Agent:      builder-1\nId:         {AGENT}\nState:      active\nConnected:  yes\nDraining:   no\nLabels:     os=linux\nRefused:    gpu=yes\nHeld:       1 of 4 slots\nProcessors: 8\nMemory:     16.0 GiB\nIsolation:  cgroup\nEnrolled:   2026-01-30T10:00:00Z\n"
            ),
        ),
        (&["agents", "drain", &AGENT[..35]], "agent builder-1 gets no more work\n".into()),
        (&["agents", "drain", "builder-1"], "agent builder-1 gets no more work\n".into()),
        (&["agents", "invite", "--label", "os=linux"], "packrun-join-x\n".into()),
        (
            &["tokens", "list"],
            format!(
                "ID                                    ROLE      STATE   CREATED               EXPIRES\n{TOKEN}  operator  active  2026-01-30T10:00:00Z  never\n"
            ),
        ),
        (&["tokens", "create", "--role", "operator"], "packrun-secret\n".into()),
        (&["tokens", "revoke", "0193C5E2"], format!("token {TOKEN} is revoked\n")),
        (
            &["status"],
            format!(
                "Version:     0.1.0\nTakes work:  no: it recovers\nStarted:     2026-01-31T10:00:00Z, 2h 00m ago\nEpoch:       7\nAgents:      4 connected\nPack runs:   1 under way\nJob runs:    2 queued, 3 held by agents\nQuarantined: {RUN}: a record of a later release\n"
            ),
        ),
    ];
    for (args, expected) in shown {
        let ran = coordinator.run(args).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, expected.as_str()), "{args:?}: {}", ran.err);
    }
}

#[tokio::test]
async fn json_is_the_body_as_it_came() {
    let body = "{\"items\" : [],\"next_cursor\":null, \"z\":1, \"a\":2}";
    let answer = move |_: &Asked, _| ([("content-type", "application/json")], body).into_response();
    let coordinator = Scripted::start(answer).await;
    for args in [
        &["pack", "list"][..],
        &["runs", "list"],
        &["agents", "list"],
        &["tokens", "list"],
        &["artifacts", "list", RUN],
    ] {
        let args: Vec<_> = args.iter().copied().chain(["--output", "json"]).collect();
        assert_eq!(coordinator.run(&args).await.out, format!("{body}\n"), "{args:?}");
    }
    let coordinator = self::coordinator().await;
    let ran = coordinator.run(&["runs", "show", RUN, "--output", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), pack_run("failed"));
}

#[tokio::test]
async fn a_list_of_several_pages_is_read_to_its_end() {
    let pages = [
        ("GET /v1/agents", json!({"items": [agent(AGENT, "a")], "next_cursor": "x/y"})),
        ("GET /v1/agents?cursor=x%2Fy", page(json!([agent(OTHER, "b")]))),
    ];
    let coordinator = Scripted::with(pages).await;
    let ran = coordinator.run(&["agents", "list", "--output", "json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&ran.out).unwrap(),
        page(json!([agent(AGENT, "a"), agent(OTHER, "b")]))
    );
}

#[tokio::test]
async fn requests_say_what_was_meant_and_who_asks() {
    let coordinator = coordinator().await;
    let args = ["run", "build@2", "--param", "a=1", "--param", "b=x=y", "--idempotency-key", "mine"];
    let ran = Invocation::new(&args).variable("PACKRUN_SERVER", &format!("{}/", coordinator.url));
    assert_eq!(ran.variable("PACKRUN_TOKEN", "t-secret").run().await.code, 0);
    coordinator.run(&["runs", "retry", RUN, "--failed"]).await;
    coordinator.run(&["agents", "invite", "--ttl", "2h", "--label", "os=linux", "--name", "x"]).await;
    coordinator.run(&["tokens", "create", "--role", "viewer"]).await;
    let asked = coordinator.asked();
    let bodies: Vec<Value> = asked.iter().map(|asked| serde_json::from_slice(&asked.body).unwrap()).collect();
    assert_eq!(
        bodies,
        [
            json!({"pack": "build", "version": 2, "params": {"a": "1", "b": "x=y"}}),
            json!({"failed": true}),
            json!({"ttl_seconds": 7200, "labels": {"os": "linux"}, "name": "x"}),
            json!({"role": "viewer"}),
        ]
    );
    assert_eq!(
        (asked[0].header("idempotency-key"), asked[0].header("authorization")),
        ("mine", "Bearer t-secret")
    );
    assert_eq!(asked[1].header("authorization"), "");
    assert_ne!(asked[1].header("idempotency-key"), asked[2].header("idempotency-key"));
    let twice = coordinator.run(&["run", "build", "--param", "a=1", "--param", "a=2"]).await;
    assert_eq!(twice.code, 2);
}

#[tokio::test]
async fn what_is_meant_by_a_prefix_must_be_one() {
    let coordinator = coordinator().await;
    for (args, said) in [
        (&["agents", "show", "builder"][..], "stands for more than one agent"),
        (&["agents", "show", "0193c5e2"], "stands for more than one agent"),
        (&["agents", "show", "nobody"], "there is no agent `nobody`\nhint: `packrun agents list` shows them"),
        (
            &["agents", "revoke", "0193c5e2-0000-7000-8000-0000000000a"],
            "write `packrun agents revoke builder-1`",
        ),
        (&["runs", "show", "dead"], "there is no pack run `dead`\nhint: `packrun runs list` shows them"),
        (&["runs", "show", "019"], "4 or more characters"),
        (&["runs", "show", "latest"], "4 or more characters"),
        (&["tokens", "revoke", "dead"], "there is no token `dead`"),
        (&["logs", RUN, "--job", "tset"], "has no job `tset`\nhint: its jobs: compile, lint"),
        (&["runs", "show", RUN, "--job", "0193c5e2"], "write more of one of these: compile, lint"),
    ] {
        let ran = coordinator.run(args).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}");
        assert!(ran.err.contains(said), "{args:?}: {}", ran.err);
    }
}

#[tokio::test]
async fn a_pack_file_is_sent_as_what_it_is_and_its_faults_are_named_as_compilers_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let good = file("a.toml", "name = \"build\"\n[jobs.a]\nrun = \"true\"\n");
    let coordinator = coordinator().await;
    let ran = coordinator.run(&["pack", "register", &good]).await;
    assert_eq!((ran.code, ran.out), (0, format!("build@3 {DIGEST}\n")));
    assert_eq!(coordinator.asked()[0].header("content-type"), "application/toml");
    let ran = coordinator.run(&["pack", "check", &good]).await;
    assert_eq!((ran.code, ran.out), (0, format!("{good}: `build` is a valid pack\n")));
    let bad = file("b.yaml", "name: build\njobs:\n  a:\n    rnu: x\n");
    let refusing = Scripted::start(|_, _| problem(422, "the pack has faults")).await;
    for args in [["pack", "check", &bad], ["pack", "register", &bad]] {
        let ran = refusing.run(&args).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""));
        assert!(
            ran.err.contains(&format!("{bad}:4:5: unknown key `rnu`; did you mean `run`?")),
            "{}",
            ran.err
        );
    }
    let unnamed = file("pack", "");
    assert!(refusing.run(&["pack", "check", &unnamed]).await.err.contains("ends in .yaml"));
    assert_eq!(refusing.run(&["pack", "register", "/nonexistent/a.yaml"]).await.code, 2);
}

#[tokio::test]
async fn logs_are_paged_to_what_there_is() {
    let entry = |seq: u64, minute: u64, key: &str| {
        json!({"seq": seq, "time": format!("2026-01-31T11:{minute}:00Z"), "key": key, "job": key, "matrix": {},
            "attempt": 1, "stream": "stdout", "text": format!("line {seq}")})
    };
    let logs = format!("GET /v1/pack-runs/{RUN}/logs");
    let first = json!([entry(0, 40, "compile"), entry(1, 55, "lint")]);
    let late = page(json!([entry(1, 55, "lint"), entry(2, 56, "compile")]));
    let coordinator = Scripted::with([
        (format!("GET /v1/pack-runs/{RUN}"), pack_run("running")),
        (logs.clone(), json!({"items": first, "next_cursor": "c1"})),
        (format!("{logs}?cursor=c1"), json!({"items": [entry(2, 56, "compile")], "next_cursor": "c2"})),
        (format!("{logs}?cursor=c2"), json!({"items": [], "next_cursor": "c2"})),
        (format!("{logs}?job=compile"), json!({"items": [entry(0, 40, "compile")], "next_cursor": null})),
        (format!("{logs}?since=2026-01-31T11%3A50%3A00.000000Z"), late.clone()),
        (format!("{logs}?tail=2"), late),
        (format!("{logs}?job=lint&tail=1"), page(json!([entry(1, 55, "lint")]))),
    ])
    .await;
    let all = coordinator.run(&["logs", RUN]).await;
    assert_eq!((all.code, all.out.as_str()), (0, "compile | line 0\nlint    | line 1\ncompile | line 2\n"));
    let late = coordinator.run(&["logs", RUN, "--since", "10m", "--timestamps"]).await;
    assert_eq!(
        late.out,
        "2026-01-31T11:55:00.000000Z lint    | line 1\n2026-01-31T11:56:00.000000Z compile | line 2\n"
    );
    for job in ["compile", "comp"] {
        assert_eq!(coordinator.run(&["logs", RUN, "--job", job]).await.out, "line 0\n", "{job}");
    }
    let last = coordinator.run(&["logs", RUN, "--tail", "2"]).await;
    assert_eq!(last.out, "lint    | line 1\ncompile | line 2\n");
    assert_eq!(coordinator.run(&["logs", RUN, "--job", "lint", "--tail", "1"]).await.out, "line 1\n");
}

#[tokio::test]
async fn ids_that_start_alike_are_told_apart_by_their_ends() {
    let other = RUN.replace("0001", "0002");
    let mut second = pack_run("running");
    second["id"] = other.as_str().into();
    let coordinator = Scripted::with([
        ("GET /v1/pack-runs?limit=500".to_owned(), page(json!([second, pack_run("failed")]))),
        (format!("GET /v1/pack-runs/{other}"), second.clone()),
        (format!("GET /v1/pack-runs/{other}/logs"), page(json!([]))),
    ])
    .await;
    let ran = coordinator.run(&["runs", "show", &RUN[..8]]).await;
    assert!(ran.code == 2 && ran.err.contains("more than one pack run"), "{ran:?}");
    let ran = coordinator.run(&["runs", "show", "0000002"]).await;
    assert!(ran.code == 0 && ran.out.contains(&other), "{ran:?}");
    let ran = coordinator.run(&["logs", "0000002"]).await;
    let said = format!("pack run {other} goes on; --follow shows what comes\n");
    assert_eq!((ran.code, ran.err), (0, said));
}
