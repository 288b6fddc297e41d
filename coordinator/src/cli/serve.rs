//! `packrun serve`: a coordinator until a signal ends it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use packrun_protocol::control::ApiUrl;
use serde::Deserialize;

use super::args;
use super::coordinator::{Coordinator, Settings};
use super::exit::{Error, Exit, Kind};
use super::https::is_name;
use super::limits::Limits;
use super::world::World;
use crate::engine::StoreError;

/// How long the coordinator gets to stop.
const STOP_TIME: Duration = Duration::from_secs(30);

/// What a lease may be.
const LEASE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// What the time of a certificate may be.
const CERTIFICATE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(365 * 24 * 3600));

/// Largest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

const EXAMPLES: &str = "Example:
  packrun serve
  packrun serve --data-dir /srv/packrun --listen-api 127.0.0.1:7080
  PACKRUN_LISTEN_AGENTS=0.0.0.0:7443 packrun serve --config /etc/packrun/coordinator.toml

A configuration file has the same settings under the names of the flags:
  data_dir = \"/srv/packrun\"
  listen_agents = \"0.0.0.0:7443\"
  lease = \"2m\"
  [limits]
  log_bytes = \"1GiB\"";

/// Run the coordinator: the registry of packs, the state of all runs, logs and artifacts
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// A TOML file with the settings that neither a flag nor a variable gives [variable: PACKRUN_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where all data lies [default: /var/lib/packrun, or for a user without rights there the XDG data folder]
    /// [variable: PACKRUN_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where agents connect, UDP [default: 0.0.0.0:7443]
    /// [variable: PACKRUN_LISTEN_AGENTS]
    #[arg(long, value_name = "ADDR")]
    pub listen_agents: Option<SocketAddr>,
    /// Where the API listens, TCP; off loopback it speaks TLS [default: 127.0.0.1:7080]
    /// [variable: PACKRUN_LISTEN_API]
    #[arg(long, value_name = "ADDR")]
    pub listen_api: Option<SocketAddr>,
    /// A name or address by which others dial the API, for its certificate; may be given for each. This host's name
    /// and main addresses are in it anyway [variable: PACKRUN_API_NAME, with commas between]
    #[arg(long = "api-name", value_name = "NAME")]
    pub api_names: Vec<String>,
    /// Where others reach the API, as by a proxy: jobs have it in PACKRUN_RUN_URL [default: by the first --api-name,
    /// or by the address that it listens on] [variable: PACKRUN_API_URL]
    #[arg(long, value_name = "URL", value_parser = api_url)]
    pub api_url: Option<ApiUrl>,
    /// How long an agent may be away before its attempts are given to others [default: 60s]
    /// [variable: PACKRUN_LEASE]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    pub lease: Option<Duration>,
    /// How long an agent's certificate is valid; it is renewed after two thirds [default: 7d]
    /// [variable: PACKRUN_CERTIFICATE_TTL]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    pub certificate_ttl: Option<Duration>,
    /// A limit, as log_bytes=1GiB; may be given for each. deploy/reference/limits.md describes them
    /// [variables: PACKRUN_LIMITS_LOG_BYTES and so on]
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = args::pair)]
    pub limits: Vec<(String, String)>,
    /// How much is logged: a level, or levels of targets, as info,packrun_coordinator::fleet=debug [default: info]
    /// [variable: PACKRUN_LOG]
    #[arg(long, value_name = "LEVELS")]
    pub log: Option<String>,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen_agents: Option<SocketAddr>,
    listen_api: Option<SocketAddr>,
    api_name: Option<Vec<String>>,
    api_url: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    lease: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    certificate_ttl: Option<Duration>,
    #[serde(default)]
    limits: BTreeMap<String, toml::Value>,
    log: Option<String>,
}

impl ServeArgs {
    /// The settings: of each the flag, else the variable, else the file's, else the default; and how much to log, if
    /// that is said.
    ///
    /// # Errors
    /// When the file can't be read, or says what means nothing.
    pub fn settings(self, world: &World<'_>) -> Result<(Settings, Option<String>), Error> {
        let text = |text: &str| Ok(PathBuf::from(text));
        let address = |text: &str| text.parse().map_err(|error| format!("`{text}` is no address: {error}"));
        let config = given(world, self.config, "PACKRUN_CONFIG", text)?;
        let file = config.as_deref().map(read).transpose()?.unwrap_or_default();
        let data_dir = given(world, self.data_dir, "PACKRUN_DATA_DIR", text)?.or(file.data_dir);
        let listen_agents = given(world, self.listen_agents, "PACKRUN_LISTEN_AGENTS", address)?;
        let listen_api = given(world, self.listen_api, "PACKRUN_LISTEN_API", address)?;
        let lease = given(world, self.lease, "PACKRUN_LEASE", args::duration)?;
        let certificate = given(world, self.certificate_ttl, "PACKRUN_CERTIFICATE_TTL", args::duration)?;
        let flags = Some(self.api_names).filter(|names| !names.is_empty());
        let list = |text: &str| Ok(text.split(',').map(|name| name.trim().to_owned()).collect());
        let api_names = given(world, flags, "PACKRUN_API_NAME", list)?.or(file.api_name).unwrap_or_default();
        if let Some(wrong) = api_names.iter().find(|name| !is_name(name)) {
            return Err(Error::invalid(format!(
                "--api-name: `{wrong}` is no name of a host, nor an address"
            )));
        }
        let in_file = file.api_url.map(|text| api_url(&text)).transpose();
        let in_file =
            in_file.map_err(|error| Error::invalid(format!("the configuration's `api_url`: {error}")))?;
        let api_url = given(world, self.api_url, "PACKRUN_API_URL", api_url)?.or(in_file);
        let defaults = Settings::new(data_dir.unwrap_or_else(|| default_data_dir(world)));
        let settings = Settings {
            listen_agents: listen_agents.or(file.listen_agents).unwrap_or(defaults.listen_agents),
            listen_api: listen_api.or(file.listen_api).unwrap_or(defaults.listen_api),
            api_names,
            api_url,
            lease: lease.or(file.lease).unwrap_or(defaults.lease),
            certificate: certificate.or(file.certificate_ttl).unwrap_or(defaults.certificate),
            limits: Limits::read(world, &self.limits, &file.limits)?,
            data_dir: defaults.data_dir,
        };
        within("--lease", settings.lease, LEASE, "1s to 1d")?;
        within("--certificate-ttl", settings.certificate, CERTIFICATE, "10s to 365d")?;
        Ok((settings, self.log.or_else(|| Some(world.variable("PACKRUN_LOG")?.to_owned())).or(file.log)))
    }
}

/// A URL of the API, without a slash at its end.
fn api_url(text: &str) -> Result<ApiUrl, String> {
    let url = reqwest::Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "`{text}` is not where an API can be: it takes http://… or https://… without `?` and `#`"
        ));
    }
    url.as_str().trim_end_matches('/').try_into().map_err(|error| format!("the URL is too long: {error}"))
}

/// What a flag says, or else a variable that is not empty.
fn given<T>(
    world: &World<'_>,
    flag: Option<T>,
    variable: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Error> {
    match (flag, world.variable(variable)) {
        (Some(value), _) => Ok(Some(value)),
        (None, Some(text)) => {
            parse(text).map(Some).map_err(|error| Error::invalid(format!("{variable}: {error}")))
        }
        (None, None) => Ok(None),
    }
}

/// Refuses what is out of its bounds.
fn within<T: PartialOrd>(flag: &str, value: T, (least, most): (T, T), range: &str) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{flag} is out of bounds: it takes {range}")))
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

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    args::duration(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Logs to the standard error, so much.
///
/// # Errors
/// When `levels` means nothing.
pub(super) fn log_to(world: &World<'_>, levels: &str) -> Result<(), Error> {
    let filter = packrun_agent::log::filter(levels)
        .map_err(|error| Error::invalid(format!("PACKRUN_LOG or --log: {error}")))?;
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(world.err.color);
    // In a test another command has done it before.
    let _ = log.with_env_filter(filter).try_init();
    Ok(())
}

/// Runs a coordinator until SIGTERM, SIGINT or SIGHUP; a second signal ends it without what it was to finish.
///
/// # Errors
/// When it can't start, or can't go on.
pub async fn serve(world: &mut World<'_>, arguments: ServeArgs) -> Result<Exit, Error> {
    let (settings, levels) = arguments.settings(world)?;
    log_to(world, levels.as_deref().unwrap_or("info"))?;
    let mut endings = world.interrupt.take().map_err(no_signals)?;
    // The store survives a start that is cut short, as it does a crash.
    let mut coordinator = tokio::select! {
        started = Coordinator::start(&settings) => started.map_err(not_started)?,
        ending = endings.next() => {
            tracing::info!(?ending, "ended before it was ready");
            return Ok(Exit::Done);
        }
    };
    let ready = coordinator.ready();
    tracing::info!(
        api = ready.api, agents = ready.agents, ca = ready.ca_fingerprint, data = %settings.data_dir.display(),
        "ready"
    );
    let failed = tokio::select! {
        _ = endings.next() => None,
        reason = coordinator.failed() => Some(reason),
    };
    tracing::info!(reason = failed.as_deref().unwrap_or("a signal"), "the coordinator stops");
    let unfinished = tokio::select! {
        stopped = tokio::time::timeout(STOP_TIME, coordinator.stop()) => {
            stopped.is_err().then_some("it did not stop in time")
        }
        _ = endings.next() => Some("a second signal"),
    };
    if let Some(reason) = unfinished {
        tracing::warn!(
            reason,
            "the coordinator ends at once; what it was to finish it does at the next start"
        );
    }
    match failed {
        None => Ok(Exit::Done),
        Some(reason) => Err(Error::new(Kind::Failed, reason)),
    }
}

/// Signals can't be caught.
pub(super) fn no_signals(error: std::io::Error) -> Error {
    Error::new(Kind::Failed, format!("cannot wait for signals: {error}"))
}

/// Why the coordinator did not start, with all causes, and what may help. A folder or an address that is of no use
/// is a wrong setting.
pub(super) fn not_started(error: anyhow::Error) -> Error {
    use ErrorKind as K;
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    let kinds: Vec<_> = causes.map(std::io::Error::kind).collect();
    let unusable = |kind: &ErrorKind| {
        matches!(
            kind,
            K::AddrInUse
                | K::AddrNotAvailable
                | K::AlreadyExists
                | K::NotADirectory
                | K::PermissionDenied
                | K::ReadOnlyFilesystem
        )
    };
    let data = error.chain().any(|cause| cause.is::<StoreError>());
    let kind = if data || kinds.iter().any(unusable) { Kind::Invalid } else { Kind::Failed };
    let error = Error::new(kind, format!("the coordinator did not start: {error:#}"));
    if kinds.contains(&ErrorKind::AddrInUse) {
        return error.hint("another program has the port; choose one by --listen-api or --listen-agents");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_the_api_ends_before_its_last_slash() {
        for (text, url) in [
            ("https://ci.example.org", "https://ci.example.org"),
            ("http://[::1]:7080/", "http://[::1]:7080"),
            ("https://example.org/packrun/", "https://example.org/packrun"),
        ] {
            assert_eq!(api_url(text).unwrap().as_str(), url);
        }
        assert!(api_url(&format!("http://{}", "a".repeat(600))).is_err());
    }
}
