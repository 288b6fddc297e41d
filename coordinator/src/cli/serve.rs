//! `packrun serve`: a coordinator until a signal ends it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use super::args;
use super::coordinator::{Coordinator, Settings};
use super::exit::{Error, Exit, Kind};
use super::world::World;

/// Largest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

const EXAMPLES: &str = "Example:
  packrun serve
  packrun serve --data-dir /srv/packrun --listen-api 127.0.0.1:7080
  PACKRUN_LISTEN_AGENTS=0.0.0.0:7443 packrun serve --config /etc/packrun/coordinator.toml

A configuration file has the same settings under the names of the flags:
  data_dir = \"/srv/packrun\"
  listen_agents = \"0.0.0.0:7443\"
  lease = \"2m\"";

/// Run the coordinator: the registry of packs, the state of all runs, logs and artifacts
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// A TOML file with the settings that neither a flag nor a variable gives
    #[arg(long, value_name = "FILE", env = "PACKRUN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where all data lies [default: /var/lib/packrun, or for a user without rights there the XDG data folder]
    #[arg(long, value_name = "DIR", env = "PACKRUN_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where agents connect, UDP [default: 0.0.0.0:7443]
    #[arg(long, value_name = "ADDR", env = "PACKRUN_LISTEN_AGENTS")]
    pub listen_agents: Option<SocketAddr>,
    /// Where the API listens, TCP; off loopback it speaks TLS [default: 127.0.0.1:7080]
    #[arg(long, value_name = "ADDR", env = "PACKRUN_LISTEN_API")]
    pub listen_api: Option<SocketAddr>,
    /// How long an agent may be away before its attempts are given to others [default: 60s]
    #[arg(long, value_name = "TIME", env = "PACKRUN_LEASE", value_parser = args::duration)]
    pub lease: Option<Duration>,
    /// How long an agent's certificate is valid; it is renewed after two thirds [default: 7d]
    #[arg(long, value_name = "TIME", env = "PACKRUN_CERTIFICATE_TTL", value_parser = args::duration)]
    pub certificate_ttl: Option<Duration>,
    /// Most bytes of one artifact [default: 1 TiB]
    #[arg(long, value_name = "BYTES", env = "PACKRUN_ARTIFACT_BYTES_MAX")]
    pub artifact_bytes_max: Option<u64>,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen_agents: Option<SocketAddr>,
    listen_api: Option<SocketAddr>,
    lease: Option<String>,
    certificate_ttl: Option<String>,
    artifact_bytes_max: Option<u64>,
}

impl ServeArgs {
    /// The settings: of each the flag, else the variable, else the file's, else the default.
    ///
    /// # Errors
    /// When the file can't be read, or says what means nothing.
    pub fn settings(self, world: &World<'_>) -> Result<Settings, Error> {
        let file = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let time = |key: &str, text: Option<String>| {
            let parsed = text.map(|text| args::duration(&text)).transpose();
            parsed.map_err(|error| Error::invalid(format!("the configuration's `{key}`: {error}")))
        };
        let data_dir = self.data_dir.or(file.data_dir);
        let defaults = Settings::new(data_dir.unwrap_or_else(|| default_data_dir(world)));
        Ok(Settings {
            listen_agents: self.listen_agents.or(file.listen_agents).unwrap_or(defaults.listen_agents),
            listen_api: self.listen_api.or(file.listen_api).unwrap_or(defaults.listen_api),
            lease: self.lease.or(time("lease", file.lease)?).unwrap_or(defaults.lease),
            certificate: self
                .certificate_ttl
                .or(time("certificate_ttl", file.certificate_ttl)?)
                .unwrap_or(defaults.certificate),
            artifact_bytes_max: self
                .artifact_bytes_max
                .or(file.artifact_bytes_max)
                .unwrap_or(defaults.artifact_bytes_max),
            data_dir: defaults.data_dir,
        })
    }
}

/// The first of the usual folders that is there or can be made.
fn default_data_dir(world: &World<'_>) -> PathBuf {
    let usable = |folder: &PathBuf| {
        let can_write = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
        folder.ancestors().find(|path| path.exists()).is_some_and(can_write)
    };
    let folders = &world.data_folders;
    folders
        .iter()
        .find(|folder| usable(folder))
        .or(folders.last())
        .cloned()
        .unwrap_or_else(|| "packrun".into())
}

fn read(path: &Path) -> Result<File, Error> {
    let refused = |why: &dyn std::fmt::Display| {
        Error::invalid(format!("cannot use the configuration file {}: {why}", path.display()))
    };
    let length = std::fs::metadata(path).map_err(|error| refused(&error))?.len();
    if length > CONFIG_BYTES_MAX {
        return Err(refused(&format_args!("it has more than {CONFIG_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
    toml::from_str(&text).map_err(|error| refused(&error))
}

/// Logs to the standard error, as much as `PACKRUN_LOG` says: a level, or targets with levels, as
/// `info,packrun_coordinator::fleet=debug`.
pub(super) fn log_to(world: &World<'_>, default: &str) {
    let filter = world.variable("PACKRUN_LOG").unwrap_or(default);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| default.into());
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(world.err.color);
    // In a test another command has done it before.
    let _ = log.with_env_filter(filter).try_init();
}

/// Runs a coordinator until SIGTERM or SIGINT.
///
/// # Errors
/// When it can't start, or can't go on.
pub async fn serve(world: &mut World<'_>, arguments: ServeArgs) -> Result<Exit, Error> {
    let settings = arguments.settings(world)?;
    log_to(world, "info");
    let failed =
        |error: std::io::Error| Error::new(Kind::Failed, format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut coordinator = Coordinator::start(&settings).await.map_err(not_started)?;
    let ready = coordinator.ready();
    tracing::info!(
        api = ready.api, agents = ready.agents, ca = ready.ca_fingerprint, data = %settings.data_dir.display(),
        "ready"
    );
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = coordinator.failed() => Some(reason),
    };
    tracing::info!(reason = failed.as_deref().unwrap_or("a signal"), "the coordinator stops");
    coordinator.stop().await;
    match failed {
        None => Ok(Exit::Done),
        Some(reason) => Err(Error::new(Kind::Failed, reason)),
    }
}

/// Why the coordinator did not start, with all causes, and what may help.
pub(super) fn not_started(error: anyhow::Error) -> Error {
    let in_use = error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
    });
    let error = Error::new(Kind::Failed, format!("the coordinator did not start: {error:#}"));
    if in_use {
        return error.hint("another program has the port; choose one by --listen-api or --listen-agents");
    }
    error
}
