//! A coordinator's settings, and how it takes its data folder.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::cli::coordinator::{Coordinator, Settings};

fn settings(folder: &Path) -> Settings {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Settings { listen_agents: any, listen_api: any, ..Settings::new(folder.to_owned()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_coordinator_on_a_folder_leaves_the_first_ones_files() {
    let folder = tempfile::tempdir().unwrap();
    let first = Coordinator::start(&settings(folder.path())).await.unwrap();
    let ready = fs::read(folder.path().join("ready.json")).unwrap();
    let refused = Coordinator::start(&settings(folder.path())).await.unwrap_err();
    assert!(format!("{refused:#}").contains("another coordinator runs"), "{refused:#}");
    assert_eq!(fs::read(folder.path().join("ready.json")).unwrap(), ready);
    first.stop().await;
    assert!(!folder.path().join("ready.json").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_coordinator_keeps_is_nobody_elses_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.path().join("logs")).unwrap();
    fs::set_permissions(folder.path().join("logs"), Permissions::from_mode(0o755)).unwrap();
    let coordinator = Coordinator::start(&settings(folder.path())).await.unwrap();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state.redb"), mode("logs"), mode("artifacts")), (0o600, 0o700, 0o700));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_setting_that_can_not_be_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    for (flag, value) in [
        ("--lease", "0s"),
        ("--lease", "2d"),
        ("--certificate-ttl", "9s"),
        ("--certificate-ttl", "366d"),
        ("--limit", "artifact_bytes=0"),
        ("--api-name", "two words"),
        ("--api-url", "ftp://host/"),
        ("--api-url", "https://host/?a=b"),
    ] {
        let ran = Invocation::new(&["serve", "--data-dir", &data, flag, value]).run().await;
        assert!(ran.code == 2 && ran.err.contains(flag), "{ran:?}");
    }
    for (variable, value) in
        [("PACKRUN_LOG", "info,=x=y"), ("PACKRUN_LISTEN_API", "nowhere"), ("PACKRUN_LEASE", "1y")]
    {
        let serve = Invocation::new(&["serve", "--data-dir", &data]).variable(variable, value);
        let ran = serve.run().await;
        assert!(ran.code == 2 && ran.err.contains(variable), "{ran:?}");
    }
    assert!(!Path::new(&data).exists());
}

#[tokio::test]
async fn a_folder_or_a_port_of_no_use_is_a_wrong_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let ran = Invocation::new(&["serve", "--data-dir", &file.display().to_string()]).run().await;
    assert!(ran.code == 2 && ran.err.contains("--data-dir"), "{ran:?}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = folder.path().join("data").display().to_string();
    let ran = Invocation::new(&["serve", "--data-dir", &data, "--listen-api", &address])
        // One that is empty is none.
        .variable("PACKRUN_LISTEN_AGENTS", "")
        .variable("PACKRUN_LEASE", "")
        .run()
        .await;
    assert!(ran.code == 2 && ran.err.contains("--listen-api"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_ends_well_by_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    let serve = Invocation::new(&[
        "serve",
        "--data-dir",
        &data,
        "--listen-api",
        "127.0.0.1:0",
        "--listen-agents",
        "127.0.0.1:0",
    ]);
    serve.interrupt.cancel();
    let ran = serve.run().await;
    assert_eq!((ran.code, &*ran.err), (0, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dev_that_is_interrupted_ends_its_jobs_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, pack) = (folder.path().join("pipe"), folder.path().join("pack.yaml"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let job = format!("echo $PWD > {}; exec sleep 1000", pipe.display());
    fs::write(&pack, format!("name: p\njobs:\n  a: {{ run: '{job}' }}\n")).unwrap();
    let dev = Invocation::new(&["dev", &pack.display().to_string()]);
    let interrupt = dev.interrupt.clone();
    let started = tokio::task::spawn_blocking(move || {
        let workspace = fs::read_to_string(pipe).unwrap();
        interrupt.cancel();
        workspace
    });
    let ran = dev.run().await;
    assert_eq!((ran.code, &*ran.err), (130, "error: stopped; its jobs were ended\n"), "{}", ran.out);
    let workspace = started.await.unwrap();
    assert!(!workspace.trim().is_empty() && !Path::new(workspace.trim()).exists(), "{workspace}");
}

#[tokio::test]
async fn a_configuration_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("coordinator.toml");
    fs::write(&config, "#".repeat((1 << 20) + 1)).unwrap();
    let ran = Invocation::new(&["serve", "--config", &config.display().to_string()]).run().await;
    assert!(ran.code == 2 && ran.err.contains("more than 1048576 bytes"), "{ran:?}");
}
