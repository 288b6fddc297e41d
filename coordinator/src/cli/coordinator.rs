//! A whole coordinator in this process: its data folder, the store, the engine, logs and artifacts, the agents' side
//! and the API, put together in the order in which they need each other, and taken apart in the opposite one.
//!
//! Nothing is accepted before everything that was live is loaded, and `ready.json` is there only while work is
//! accepted.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use packrun_protocol::control::ApiUrl;
use packrun_protocol::id::PackRunId;
use packrun_protocol::time::Clock;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::https::{self, Https};
use super::limits::Limits;
use crate::api::{self, App, token::ApiToken};
use crate::artifacts::ArtifactStore;
use crate::core::change::{Grant, Role};
use crate::core::event::Command;
use crate::core::{Config, Core};
use crate::engine::{self, Handle, Health};
use crate::fleet::{self, Fleet, Identity, Leadership};
use crate::logs::{LogConfig, LogStore};
use crate::store::Store;

/// The store's file in the data folder.
const STORE_FILE: &str = "state.redb";

/// What a coordinator needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where all data lies.
    pub data_dir: PathBuf,
    /// Where agents connect, UDP.
    pub listen_agents: SocketAddr,
    /// Where the API listens, TCP. Off loopback it speaks TLS.
    pub listen_api: SocketAddr,
    /// Names and addresses by which the API is dialled, beside those that are known.
    pub api_names: Vec<String>,
    /// Where others reach the API, when that is not by its address or the first of its names.
    pub api_url: Option<ApiUrl>,
    /// How long an agent may be away before its attempts are given to others.
    pub lease: Duration,
    /// How long an agent's certificate is valid.
    pub certificate: Duration,
    /// How much is allowed.
    pub limits: Limits,
}

impl Settings {
    /// The defaults, on this folder.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            listen_agents: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7443)),
            listen_api: SocketAddr::from((Ipv4Addr::LOCALHOST, 7080)),
            api_names: Vec::new(),
            api_url: None,
            lease: Config::default().lease,
            certificate: fleet::CERTIFICATE,
            limits: Limits::default(),
        }
    }
}

/// What `ready.json` says.
#[derive(Debug, Clone, Serialize)]
pub struct Ready {
    /// The API's URL.
    pub api: String,
    /// Where agents connect: `host:port`.
    pub agents: String,
    /// The sha256 of the CA's certificate.
    pub ca_fingerprint: String,
    /// The file with a token that may do everything.
    pub admin_token_file: PathBuf,
}

/// A coordinator at work.
#[derive(Debug)]
pub struct Coordinator {
    ready: Ready,
    ready_file: PathBuf,
    engine: Handle,
    logs: LogStore,
    fleet: Fleet,
    api: JoinHandle<std::io::Result<()>>,
    stop: CancellationToken,
}

impl Coordinator {
    /// Starts one. When this returns, it accepts work.
    ///
    /// # Errors
    /// When the data can't be used, an address can't be had, or another coordinator runs on the folder.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let data_dir = claim(&settings.data_dir)?;
        let (engine, logs) = load(settings, &data_dir, clock).await?;
        // Whoever waits for the file waits for this process: the store is open, so no other runs on the folder.
        let ready_file = data_dir.join("ready.json");
        remove(&ready_file)?;
        let folder = data_dir.join("artifacts");
        let artifacts = blocking({
            let (folder, bytes_max) = (folder.clone(), settings.limits.artifact_bytes);
            move || ArtifactStore::open(&folder, bytes_max)
        })
        .await?
        .with_context(|| format!("cannot use the artifacts in {}", folder.display()))?;

        let identity = Identity::open(&data_dir.join("ca"), clock)?;
        let admin_token_file = admin_token(&engine, &data_dir, clock).await?;
        let listener = TcpListener::bind(settings.listen_api)
            .with_context(|| format!("cannot listen for the API on TCP {}", settings.listen_api))?;
        listener.set_nonblocking(true).context("cannot listen for the API")?;
        let address = listener.local_addr().context("cannot tell the API's address")?;
        let https = if address.ip().is_loopback() {
            None
        } else {
            let names = https::names(address.ip(), &settings.api_names);
            Some(Https::open(identity.clone(), names, clock)?)
        };

        let scheme = if https.is_some() { "https" } else { "http" };
        let own_url = format!("{scheme}://{}", dialled(address));
        let api_url = match (&settings.api_url, settings.api_names.first()) {
            (Some(url), _) => url.clone(),
            (None, Some(name)) if https.is_some() => {
                format!("https://{}:{}", in_url(name), address.port()).try_into()?
            }
            _ => own_url.as_str().try_into()?,
        };
        let fleet_settings = fleet::Settings {
            certificate: settings.certificate,
            limits: settings.limits.fleet,
            ..fleet::Settings::new(settings.listen_agents, api_url)
        };
        let fleet = fleet::start(
            fleet_settings,
            identity.clone(),
            engine.clone(),
            logs.clone(),
            artifacts.clone(),
            clock,
        )
        .await?;
        let stop = CancellationToken::new();
        let app = App {
            engine: engine.clone(),
            logs: logs.clone(),
            artifacts,
            clock,
            started_at: clock.now(),
            limits: settings.limits.api,
            ca_fingerprint: identity.fingerprint(),
            stop: stop.clone(),
        };
        let api = tokio::spawn(api::serve(listener, https.as_ref().map(Https::config), app));
        // It ends with `stop`.
        https.map(|https| tokio::spawn(https.keep(stop.clone())));
        let ready = Ready {
            api: own_url,
            agents: dialled(fleet.local_addr()).to_string(),
            ca_fingerprint: identity.fingerprint().to_string(),
            admin_token_file,
        };
        write(&ready_file, &serde_json::to_vec_pretty(&ready)?, 0o644)?;
        Ok(Self { ready, ready_file, engine, logs, fleet, api, stop })
    }

    /// Where it is, and how to talk to it.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Returns when it can't go on, with the reason.
    pub async fn failed(&mut self) -> String {
        let (mut health, mut leadership) = (self.engine.health(), self.fleet.leadership());
        tokio::select! {
            ended = &mut self.api => format!("the API's side ended: {ended:?}"),
            stopped = health.wait_for(|health| *health != Health::Ready) => match stopped.as_deref() {
                Ok(Health::Stopped(reason)) => format!("the store failed: {reason}"),
                _ => "the engine ended".to_owned(),
            },
            _ = leadership.wait_for(|leadership| *leadership != Leadership::Leads) => {
                "an agent has reported to a later coordinator: this one runs on old data, as a restored backup; \
                 find the later one, or enrol the agents anew"
                    .to_owned()
            }
        }
    }

    /// Takes nothing more, finishes what was taken, and tells agents and clients.
    pub async fn stop(self) {
        // The engine still has the store, so the file is not that of the next.
        remove(&self.ready_file).unwrap_or_else(|error| tracing::warn!("{error:#}"));
        self.stop.cancel();
        if !self.api.is_finished() {
            // What went wrong in it was reported by `failed`, or doesn't matter any more.
            let _ = self.api.await;
        }
        self.fleet.stop().await;
        self.engine.stop().await;
        self.logs.close().await;
    }
}

/// The engine and the logs with all that was live.
async fn load(settings: &Settings, data_dir: &Path, clock: Clock) -> anyhow::Result<(Handle, LogStore)> {
    let path = data_dir.join(STORE_FILE);
    let store = blocking(move || Store::open(&path)).await??;
    let (lease, committed) = store.acquire().await?;
    let rows = store.load().await?;
    let config = Config {
        lease: settings.lease,
        tokens: settings.limits.tokens,
        artifacts_per_attempt: settings.limits.artifacts_per_attempt,
        ..Config::default()
    };
    let (core, left_out) = Core::restore(config, lease.epoch(), clock.now(), rows);
    for run in left_out {
        tracing::error!(pack_run = %run.pack_run, "a pack run could not be restored: {}", run.error);
    }
    let folder = data_dir.join("logs");
    let reader = store.snapshot()?;
    let (logs, recovery) = blocking(move || -> anyhow::Result<_> {
        let open = reader.all_open_logs()?.into_iter().map(|(pack_run, _)| pack_run);
        let live: BTreeSet<PackRunId> = open.chain(reader.live_runs()?).collect();
        Ok(LogStore::open(&folder, LogConfig::default(), &|run| live.contains(&run))?)
    })
    .await??;
    for spot in &recovery.damage {
        tracing::error!(
            segment = spot.at.segment,
            offset = spot.at.offset,
            bytes = spot.bytes,
            "a part of the logs that was on the disk is damaged; its lines are lost"
        );
    }
    if let Some(at) = recovery.cut {
        tracing::warn!(
            segment = at.segment,
            offset = at.offset,
            "what was written last to the logs when the coordinator ended was cut off; agents send it again"
        );
    }
    tracing::debug!(blocks = recovery.blocks, "the logs are open");
    Ok((engine::start(core, store, (lease, committed), clock), logs))
}

/// Makes the data folder if it isn't there, and in it what is nobody else's: one that was there may be open to all.
fn claim(path: &Path) -> anyhow::Result<PathBuf> {
    let folder = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    let claimed = || {
        folder(path)?;
        let data_dir = path.canonicalize()?;
        for name in ["artifacts", "logs"] {
            folder(&data_dir.join(name))?;
            close(&data_dir.join(name))?;
        }
        let store = data_dir.join(STORE_FILE);
        OpenOptions::new().append(true).create(true).mode(0o600).open(&store)?;
        close(&store)?;
        std::io::Result::Ok(data_dir)
    };
    claimed()
        .with_context(|| format!("cannot use the data folder {}; name another by --data-dir", path.display()))
}

/// Takes from group and others what they may do with `path`.
fn close(path: &Path) -> std::io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode & 0o700))
}

/// The file with the administrator's token, which is made anew when it is missing or the token does not hold.
async fn admin_token(engine: &Handle, data_dir: &Path, clock: Clock) -> anyhow::Result<PathBuf> {
    let file = data_dir.join("admin.token");
    let kept = match fs::read_to_string(&file) {
        Ok(text) => text.parse::<ApiToken>().ok(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    if let Some(token) = kept
        && let Some(row) = engine.read()?.token(token.id())?
        && row.holds(token.digest(), clock.now())
        && row.grant == Grant::Api(Role::Admin)
    {
        return Ok(file);
    }
    let token = ApiToken::generate()?;
    // First the file: a token that nobody knows would stay for ever.
    write(&file, format!("{token}\n").as_bytes(), 0o600)?;
    let grant = Grant::Api(Role::Admin);
    engine.command(Command::CreateToken { id: token.id(), secret: token.digest(), grant, ttl: None }).await?;
    Ok(file)
}

/// An address that a program on this host can dial.
fn dialled(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()))
        }
        _ => address,
    }
}

/// A name or an address as a URL has it.
fn in_url(name: &str) -> String {
    if name.contains(':') { format!("[{name}]") } else { name.to_owned() }
}

/// Puts a file with this content at `path`, whole or not at all.
fn write(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    let written = remove(&beside).and_then(|()| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(fs::rename(&beside, path)?)
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a thread ended before its work was done")
}
