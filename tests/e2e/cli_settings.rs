//! Settings of the programs: from files, variables and flags, and what is wrong with them.

use std::process::{Output, Stdio};

use packrun_tests::in_time;
use packrun_tests::process::{Agent, Coordinator};
use tokio::process::Command;

use crate::programs;

async fn packrun(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(programs().packrun);
    command.args(arguments).stdin(Stdio::null()).env_clear().env("HOME", home.path());
    command.envs(variables.iter().copied()).kill_on_drop(true);
    in_time(&format!("packrun {arguments:?}"), command.output()).await.unwrap()
}

#[tokio::test]
async fn an_agent_is_set_up_by_a_file_alone() {
    let coordinator = Coordinator::start(&programs()).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, token) = (folder.path().join("agent.toml"), folder.path().join("token"));
    std::fs::write(&token, coordinator.invite().await).unwrap();
    let text = format!(
        "coordinator = ['{}']\nstate_dir = '{}'\nname = 'of-file'\nslots = 3\nlabels = {{ gpu = 'none' }}\n\
         join_token_file = '{}'\npath = '/usr/bin:/bin'\nlang = 'C.UTF-8'\ntz = 'UTC'\n\
         journal_bytes = 1073741824\ncache_bytes = 1048576\nlog = 'warn,packrun_agent=info'\n",
        coordinator.agents_address(),
        folder.path().join("state").display(),
        token.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut agent = Agent::by_file(&programs(), &file);
    agent.process().logged("connected").await;
    let shown = coordinator.cli(&["agents", "show", "of-f"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    for expected in ["of-file", "gpu=none", "0 of 3 slots"] {
        assert!(shown.contains(expected), "{shown}");
    }
    let id = coordinator.api().run("name: p\njobs:\n  a: { run: 'echo $PATH $LANG $TZ' }\n").await;
    coordinator.api().ended(&id).await;
    let logs = coordinator.cli(&["logs", &id]).await;
    assert_eq!(String::from_utf8(logs.stdout).unwrap(), "/usr/bin:/bin C.UTF-8 UTC\n");
}

#[tokio::test]
async fn a_wrong_setting_of_the_coordinator_ends_it_with_2_and_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let path = file.to_str().unwrap();
    for (text, said) in [
        (
            "listen_api = '127.0.0.1:0'\n\nlisten_apy = 'x'\n",
            &["c.toml", "line 3", "unknown field `listen_apy`"][..],
        ),
        ("slots = 2\n", &["c.toml", "line 1", "unknown field `slots`"]),
        ("lease = '1 minute'\n", &["c.toml", "line 1", "not a duration"]),
        ("log = 'inof'\n", &["`inof` is no level"]),
    ] {
        std::fs::write(&file, text).unwrap();
        for (arguments, variables) in
            [(&["serve", "--config", path][..], &[][..]), (&["serve"], &[("PACKRUN_CONFIG", path)])]
        {
            let output = packrun(arguments, variables).await;
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{text}: {error}");
            assert!(said.iter().all(|said| error.contains(said)), "{text}: {error}");
        }
    }
    for (variable, value) in [
        ("PACKRUN_LOG", "inof"),
        ("PACKRUN_LEASE", "soon"),
        ("PACKRUN_LISTEN_AGENTS", "here"),
        ("PACKRUN_CONFIG", "/no"),
    ] {
        let output = packrun(&["serve"], &[(variable, value)]).await;
        let error = String::from_utf8(output.stderr).unwrap();
        let named = if variable == "PACKRUN_CONFIG" { "/no" } else { variable };
        assert!(output.status.code() == Some(2) && error.contains(named), "{variable}: {error}");
    }
    let mut command = Command::new(programs().packrun);
    let garbage: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"/data\xff");
    command.arg("serve").env("PACKRUN_DATA_DIR", garbage).stdin(Stdio::null()).kill_on_drop(true);
    let output = in_time("packrun serve", command.output()).await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("PACKRUN_DATA_DIR is not UTF-8"), "{error}");
}

#[tokio::test]
async fn a_data_folder_in_use_is_a_wrong_setting() {
    let coordinator = Coordinator::start(&programs()).await;
    let data = coordinator.data().to_str().unwrap();
    let any = ["--listen-api", "127.0.0.1:0", "--listen-agents", "127.0.0.1:0"];
    let arguments: Vec<_> = ["serve", "--data-dir", data].into_iter().chain(any).collect();
    let output = packrun(&arguments, &[]).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("another coordinator runs"), "{error}");
    assert!(coordinator.cli(&["status"]).await.status.success(), "the first one goes on");
}

#[tokio::test]
async fn contexts_name_coordinators_and_a_wrong_file_of_them_is_named() {
    let coordinator = Coordinator::start(&programs()).await;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/packrun");
    std::fs::create_dir_all(&folder).unwrap();
    let context = |name: &str, url: &str| {
        format!(
            "[contexts.{name}]\nserver = '{url}'\ntoken_file = '{}'\n",
            coordinator.token_file().display()
        )
    };
    let (here, nowhere) = (context("here", &coordinator.url()), context("nowhere", "http://127.0.0.1:9"));
    let text = format!("current = 'nowhere'\n{here}{nowhere}");
    std::fs::write(folder.join("config.toml"), &text).unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = Command::new(programs().packrun);
        command.args(arguments).stdin(Stdio::null()).env_clear().env("HOME", home.path()).kill_on_drop(true);
        let output = in_time("packrun", command.output()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["status", "--context", "here"]).await, (Some(0), String::new()));
    assert_eq!(run(&["status"]).await.0, Some(4));
    let (code, said) = run(&["status", "--context", "there"]).await;
    assert!(code == Some(2) && said.contains("its contexts: here, nowhere"), "{said}");
    std::fs::write(folder.join("config.toml"), format!("{here}tokn = 'x'\n")).unwrap();
    let (code, said) = run(&["status", "--context", "here"]).await;
    assert_eq!(code, Some(2), "{said}");
    for expected in ["config.toml", "line 4", "unknown field `tokn`"] {
        assert!(said.contains(expected), "{said}");
    }
}
