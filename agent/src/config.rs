//! What an agent is told: by flags, then `PACKRUN_…` variables, then a TOML file, then the host itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use packrun_protocol::control::{Capacity, Slots, SlotsError};
use packrun_protocol::join_token::{JoinToken, JoinTokenError};
use packrun_protocol::name::{Labels, Name, NameError};
use serde::Deserialize;
use thiserror::Error;

use crate::artifacts::cache::BYTES_MAX_DEFAULT;
use crate::executor::HostEnvironment;
use crate::host;
use crate::spool::JournalConfig;

/// Largest file with settings or a token.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// All that an agent needs to know.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The coordinators, `host:port`, in the order they are tried. At least one.
    pub coordinators: Vec<String>,
    /// Where the agent keeps its identity, journal, workspaces and cache.
    pub state_dir: PathBuf,
    /// What it wants to be called.
    pub name: Name,
    /// Its labels, those of the host among them.
    pub labels: Labels,
    /// What it takes on.
    pub capacity: Capacity,
    /// To join with, if it hasn't yet.
    pub join_token: Option<JoinToken>,
    /// A file with that token; it may be gone once the agent has joined.
    pub join_token_file: Option<PathBuf>,
    /// What every attempt's environment has.
    pub environment: HostEnvironment,
    /// How large the journal may become.
    pub journal: JournalConfig,
    /// Bytes of inputs that are kept for later.
    pub cache_bytes: u64,
}

/// Why the settings make no agent.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A setting breaks its rule.
    #[error("{setting}: {why}")]
    Invalid {
        /// Which.
        setting: &'static str,
        /// How.
        why: String,
    },
    /// A file can't be read.
    #[error("failed to read {}: {why}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// The file is no valid TOML, or has a key that means nothing.
    #[error("{} is not valid: {why}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        why: Box<toml::de::Error>,
    },
    /// No coordinator was given.
    #[error("no coordinator is given; say where it listens for agents with --coordinator HOST:PORT")]
    NoCoordinator,
}

fn invalid(setting: &'static str, why: impl std::fmt::Display) -> ConfigError {
    ConfigError::Invalid { setting, why: why.to_string() }
}

/// Settings from one source; what is `None` comes from the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `host:port` of a coordinator, or a list of them.
    #[serde(default, deserialize_with = "one_or_more")]
    pub coordinator: Vec<String>,
    /// The state folder.
    pub state_dir: Option<PathBuf>,
    /// The agent's name.
    pub name: Option<String>,
    /// How many attempts at once.
    pub slots: Option<u32>,
    /// Labels beside the host's own.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The token itself.
    pub join_token: Option<String>,
    /// A file with it.
    pub join_token_file: Option<PathBuf>,
    /// `PATH` of the jobs.
    pub path: Option<String>,
    /// `LANG` of the jobs.
    pub lang: Option<String>,
    /// `TZ` of the jobs.
    pub tz: Option<String>,
    /// Bytes of output that wait for the coordinator before jobs are slowed down.
    pub journal_bytes: Option<u64>,
    /// Bytes of inputs that are kept for later.
    pub cache_bytes: Option<u64>,
}

impl Source {
    /// The settings in a TOML file.
    ///
    /// # Errors
    /// When it can't be read, or has an unknown key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_file(path)?;
        toml::from_str(&text).map_err(|why| ConfigError::Syntax { path: path.to_owned(), why: Box::new(why) })
    }

    /// These settings, and those of `next` where there is none here. Labels are taken together.
    #[must_use]
    pub fn or(self, next: Self) -> Self {
        let token_given = self.join_token.is_some() || self.join_token_file.is_some();
        let next_token =
            |given: bool| if given { (None, None) } else { (next.join_token, next.join_token_file) };
        let (join_token, join_token_file) = next_token(token_given);
        let mut labels = next.labels;
        labels.extend(self.labels);
        Self {
            coordinator: if self.coordinator.is_empty() { next.coordinator } else { self.coordinator },
            state_dir: self.state_dir.or(next.state_dir),
            name: self.name.or(next.name),
            slots: self.slots.or(next.slots),
            labels,
            join_token: self.join_token.or(join_token),
            join_token_file: self.join_token_file.or(join_token_file),
            path: self.path.or(next.path),
            lang: self.lang.or(next.lang),
            tz: self.tz.or(next.tz),
            journal_bytes: self.journal_bytes.or(next.journal_bytes),
            cache_bytes: self.cache_bytes.or(next.cache_bytes),
        }
    }

    /// The agent that these settings make on this host.
    ///
    /// # Errors
    /// When one breaks its rule, or no coordinator is given.
    pub fn resolve(self) -> Result<AgentConfig, ConfigError> {
        let state_dir = self.state_dir.unwrap_or_else(host::state_dir);
        let mut config = AgentConfig::new(self.coordinator, state_dir)?;
        if let Some(name) = self.name {
            config.rename(name.parse().map_err(|error: NameError| invalid("name", error))?);
        }
        if let Some(slots) = self.slots {
            config.capacity.slots =
                Slots::try_from(slots).map_err(|error: SlotsError| invalid("slots", error))?;
        }
        config.label(self.labels)?;
        if self.join_token.is_some() && self.join_token_file.is_some() {
            return Err(invalid("join_token", "give the token or a file with it, not both"));
        }
        config.join_token = self.join_token.map(|token| parse_join_token(&token)).transpose()?;
        config.join_token_file = self.join_token_file;
        let environment = &mut config.environment;
        environment.path = self.path.unwrap_or_else(|| std::mem::take(&mut environment.path));
        environment.lang = self.lang.or(environment.lang.take());
        environment.tz = self.tz.or(environment.tz.take());
        if let Some(bytes) = self.journal_bytes {
            let least = 4 * config.journal.segment_bytes;
            if bytes < least {
                return Err(invalid("journal_bytes", format_args!("it takes at least {least}")));
            }
            config.journal.total_bytes = bytes;
        }
        config.cache_bytes = self.cache_bytes.unwrap_or(config.cache_bytes);
        Ok(config)
    }
}

impl AgentConfig {
    /// An agent that is what its host makes it.
    ///
    /// # Errors
    /// When there is no coordinator, or one that is no `host:port`.
    pub fn new(coordinators: Vec<String>, state_dir: PathBuf) -> Result<Self, ConfigError> {
        if coordinators.is_empty() {
            return Err(ConfigError::NoCoordinator);
        }
        for coordinator in &coordinators {
            let port = coordinator.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(invalid("coordinator", format_args!("`{coordinator}` is not HOST:PORT")));
            }
        }
        let name = host::name().map_err(|error| invalid("name", error))?;
        Ok(Self {
            coordinators,
            state_dir,
            labels: Labels::new(host::labels()).map_err(|error| invalid("labels", error))?,
            capacity: host::capacity(),
            join_token: None,
            join_token_file: None,
            environment: HostEnvironment::inherited(),
            name,
            journal: JournalConfig::default(),
            cache_bytes: BYTES_MAX_DEFAULT,
        })
    }

    /// Wants to be called so.
    pub fn rename(&mut self, name: Name) {
        self.name = name;
    }

    /// Adds labels; those that are there already get the new value.
    ///
    /// # Errors
    /// When one breaks the rules of labels, or there are too many.
    pub fn label(&mut self, labels: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
        let own = self.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let all: BTreeMap<String, String> = own.chain(labels).collect();
        self.labels = Labels::new(all).map_err(|error| invalid("label", error))?;
        Ok(())
    }
}

/// The key and value of `key=value`.
///
/// # Errors
/// When there is no `=`.
pub fn parse_label(text: &str) -> Result<(String, String), ConfigError> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| invalid("label", format_args!("`{text}` is not KEY=VALUE")))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn parse_join_token(text: &str) -> Result<JoinToken, ConfigError> {
    text.trim().parse().map_err(|error: JoinTokenError| invalid("join token", error))
}

/// The join token in a file.
///
/// # Errors
/// When it can't be read or holds none.
pub fn read_join_token(path: &Path) -> Result<JoinToken, ConfigError> {
    parse_join_token(&read_file(path)?)
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| {
        std::io::Read::read_to_string(&mut std::io::Read::take(file, FILE_BYTES_MAX + 1), &mut text)
    });
    let whole = read.and_then(|bytes| {
        let too_large = || format!("it has more than {FILE_BYTES_MAX} bytes");
        if bytes as u64 > FILE_BYTES_MAX { Err(std::io::Error::other(too_large())) } else { Ok(()) }
    });
    whole.map_err(|why| ConfigError::Read { path: path.to_owned(), why })?;
    Ok(text)
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "HOST:PORT, or a list of them")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(one) => vec![one],
        OneOrMore::More(more) => more,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(toml: &str) -> Source {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn the_first_source_counts_and_labels_come_together() {
        let flags = source("name = 'a'\nlabels = { gpu = 'none', os = 'plan9' }\njoin_token_file = 'x'");
        let file = source(
            "coordinator = 'c:7443'\nname = 'b'\nslots = 3\nlabels = { gpu = 'v100', zone = 'x' }\njoin_token = 'y'",
        );
        let both = flags.or(file);
        assert_eq!((both.join_token.clone(), both.join_token_file.is_some()), (None, true));
        let config = Source { join_token_file: None, ..both }.resolve().unwrap();
        assert_eq!((config.name.as_str(), u32::from(config.capacity.slots)), ("a", 3));
        let labels = ["gpu", "os", "zone"].map(|key| config.labels.get(key));
        assert_eq!(labels, [Some("none"), Some("plan9"), Some("x")]);
        assert_eq!(config.labels.get("arch"), Some(std::env::consts::ARCH));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(toml::from_str::<Source>("slot = 3").unwrap_err().to_string().contains("slot"));
        let words = |source: Source| source.resolve().unwrap_err().to_string();
        assert!(words(Source::default()).contains("--coordinator"));
        for bad in ["host", "host:", ":7443", "host:99999"] {
            assert!(words(source(&format!("coordinator = '{bad}'"))).contains(bad));
        }
        assert!(words(source("coordinator = 'c:1'\nname = 'A b'")).contains("a-z"));
        assert!(words(source("coordinator = 'c:1'\nslots = 0")).contains("slots"));
        assert!(words(source("coordinator = 'c:1'\nlabels = { 'a b' = '' }")).contains("label"));
        assert!(words(source("coordinator = 'c:1'\njoin_token = 'x'")).contains("packrun agents invite"));
        assert!(
            words(source("coordinator = 'c:1'\njoin_token = 'x'\njoin_token_file = 'y'")).contains("both")
        );
        assert!(parse_label("gpu").unwrap_err().to_string().contains("KEY=VALUE"));
    }
}
