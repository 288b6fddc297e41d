//! The limits that whoever runs a coordinator may set: `--limit NAME=VALUE`, `PACKRUN_LIMITS_NAME` or `[limits]` in the
//! configuration file. What each is for, and all limits that can't be set, say `deploy/reference/limits.md`.

use std::collections::BTreeMap;

use packrun_protocol::limit;

use super::exit::Error;
use super::world::World;
use crate::core::Config;
use crate::pack;
use crate::{api, fleet};

/// What the variables of limits begin with.
const VARIABLE: &str = "PACKRUN_LIMITS_";

/// How much is allowed, by the room that sees to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of clients, packs among it.
    pub api: api::Limits,
    /// Of agents.
    pub fleet: fleet::Limits,
    /// Bytes of one artifact.
    pub artifact_bytes: u64,
    /// Files that one attempt may leave.
    pub artifacts_per_attempt: usize,
    /// Tokens that hold at a time.
    pub tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let core = Config::default();
        Self {
            api: api::Limits::default(),
            fleet: fleet::Limits::default(),
            artifact_bytes: limit::ARTIFACT_BYTES_MAX,
            artifacts_per_attempt: core.artifacts_per_attempt,
            tokens: core.tokens,
        }
    }
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, written as `8MiB` or as a number.
    Bytes,
    /// Anything else.
    Number,
}

/// A limit that can be set.
#[derive(Debug)]
pub struct Setting {
    /// Its name in `[limits]`; in capitals behind `PACKRUN_LIMITS_` its variable.
    pub name: &'static str,
    unit: Unit,
    least: u64,
    most: u64,
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

/// A setting. Its range lies within its field's type, which is a `usize`, `u32` or `u64`.
macro_rules! setting {
    ($name:literal, $unit:ident, $range:expr, $($field:ident).+ as $kind:ty) => {
        Setting {
            name: $name,
            unit: Unit::$unit,
            least: *std::ops::RangeInclusive::<u64>::start(&$range),
            most: *std::ops::RangeInclusive::<u64>::end(&$range),
            get: |limits| limits.$($field).+ as u64,
            set: |limits, value| limits.$($field).+ = value as $kind,
        }
    };
}

/// All of them, by name.
pub const SETTINGS: &[Setting] = &[
    setting!("agent_connections_per_address", Number, 1..=1_000_000, fleet.connections_per_address as usize),
    setting!("answer_bytes", Bytes, 1 << 20..=1 << 40, api.answer_bytes as usize),
    setting!("api_connections", Number, 1..=100_000, api.connections as usize),
    setting!("api_connections_per_address", Number, 1..=100_000, api.connections_per_address as usize),
    setting!("artifact_bytes", Bytes, 1..=limit::ARTIFACT_BYTES_MAX, artifact_bytes as u64),
    setting!(
        "artifacts_per_attempt",
        Number,
        1..=limit::ARTIFACTS_PER_ATTEMPT_MAX as u64,
        artifacts_per_attempt as usize
    ),
    setting!("downloads_per_agent", Number, 1..=1024, fleet.downloads_per_agent as usize),
    setting!("enrolments_per_second", Number, 1..=10_000, fleet.enrolments_per_second as u32),
    setting!("handshakes", Number, 4..=65_536, fleet.handshakes_under_way as usize),
    setting!("handshakes_per_second", Number, 1..=100_000, fleet.handshakes_per_second as u32),
    setting!("job_runs", Number, 1..=100_000, api.packs.job_runs as usize),
    setting!("json_bytes", Bytes, 64 << 10..=64 << 20, api.json_bytes as usize),
    setting!("log_bytes", Bytes, limit::LOG_BYTES_MIN..=limit::LOG_BYTES_MAX, api.packs.log_bytes as u64),
    setting!("pack_bytes", Bytes, 1 << 10..=pack::FILE_BYTES_MAX as u64, api.packs.file_bytes as usize),
    setting!("params_bytes", Bytes, 1 << 10..=512 << 10, api.params_bytes as usize),
    setting!("requests", Number, 1..=65_536, api.requests as usize),
    setting!("streams", Number, 1..=65_536, api.streams as usize),
    setting!("tokens", Number, 2..=1_000_000, tokens as usize),
    setting!("uploads_per_agent", Number, 1..=1024, fleet.uploads_per_agent as usize),
];

impl Setting {
    /// Its value.
    #[must_use]
    pub fn of(&self, limits: &Limits) -> u64 {
        (self.get)(limits)
    }

    /// A value as people write it.
    #[must_use]
    pub fn shown(&self, value: u64) -> String {
        match self.unit {
            Unit::Number => value.to_string(),
            Unit::Bytes => bytes(value),
        }
    }

    /// What it may be set to, as people write it.
    #[must_use]
    pub fn range(&self) -> String {
        format!("{} to {}", self.shown(self.least), self.shown(self.most))
    }

    fn read(&self, text: &str) -> Result<u64, String> {
        let value = match self.unit {
            Unit::Bytes => text.parse().ok().or_else(|| pack::memory(text)),
            Unit::Number => text.parse().ok(),
        };
        let kind = if self.unit == Unit::Bytes { "amount of bytes, as 512KiB or 8MiB" } else { "number" };
        let value = value.ok_or_else(|| format!("`{text}` is no {kind}"))?;
        if (self.least..=self.most).contains(&value) {
            return Ok(value);
        }
        Err(format!("`{text}` is out of bounds: it takes {}", self.range()))
    }
}

/// So many bytes in the largest unit that doesn't need a fraction.
fn bytes(value: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fit = units.into_iter().find(|(unit, _)| value >= *unit && value.is_multiple_of(*unit));
    fit.map_or_else(|| format!("{value}B"), |(unit, name)| format!("{}{name}", value / unit))
}

impl Limits {
    /// The limits as they are set: of each the flag, else the variable, else the file's, else the default.
    ///
    /// # Errors
    /// When there is no such limit, or it can't have such a value.
    pub fn read(
        world: &World<'_>,
        flags: &[(String, String)],
        file: &BTreeMap<String, toml::Value>,
    ) -> Result<Self, Error> {
        let mut limits = Self::default();
        for (name, value) in file {
            let text = match value {
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::String(text) => text.clone(),
                other => other.type_str().to_owned(),
            };
            limits.set(&format!("the configuration's `limits.{name}`"), name, &text)?;
        }
        for (variable, text) in world.variables.iter().filter(|(_, text)| !text.is_empty()) {
            if let Some(name) = variable.strip_prefix(VARIABLE) {
                limits.set(variable, &name.to_ascii_lowercase(), text)?;
            }
        }
        for (name, text) in flags {
            limits.set(&format!("--limit {name}"), name, text)?;
        }
        Ok(limits)
    }

    fn set(&mut self, source: &str, name: &str, text: &str) -> Result<(), Error> {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
            return Err(Error::invalid(format!("{source}: there is no limit `{name}` that can be set"))
                .hint(format!("these can be: {}", names.join(", "))));
        };
        let value = setting.read(text).map_err(|why| Error::invalid(format!("{source}: {why}")))?;
        (setting.set)(self, value);
        Ok(())
    }
}
