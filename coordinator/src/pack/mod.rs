//! The pack language: a file's text, YAML, TOML or JSON → a checked [`Pack`] → with arguments a
//! [`Plan`](crate::core::plan::Plan).
//!
//! | file | what it is for |
//! | --- | --- |
//! | `source` | text to a tree of located nodes, the same for all formats; bounds on depth and count |
//! | `fields`, `quantity`, `rules` | nodes to values |
//! | [`check`](fn@check) | the tree to a checked pack: keys, names, needs, cycles |
//! | [`problem`] | what is wrong, with line, column and suggestion |
//! | `template` | `${{ params.x }}` and `${{ matrix.x }}` |
//! | `canonical` | the form that a version's digest is made of |
//! | [`argument`], [`expand`] | a pack and its parameters' values to a plan |
//!
//! A version keeps its source; checking that again gives the same pack and digest. Nothing here does I/O, and no
//! text makes it panic or allocate beyond a small multiple of its bounds.

pub mod argument;
mod canonical;
mod check;
pub mod expand;
mod fields;
mod model;
pub mod problem;
mod quantity;
mod rules;
mod source;
mod template;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use self::argument::{Arguments, InvalidArguments};
pub use self::expand::PlanError;
pub use self::model::{Pack, Param};
pub use self::problem::{InvalidPack, Kind, Problem};
use self::problem::{Place, Problems};
pub use self::quantity::memory;
pub use crate::core::change::Format;

/// Most bytes that a coordinator may take as a pack file.
pub const FILE_BYTES_MAX: usize = 64 << 20;

/// What a pack may be at most, and what a job gets that doesn't say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a pack file.
    pub file_bytes: usize,
    /// Job runs of one pack run, over all its matrices.
    pub job_runs: usize,
    /// Bytes of one attempt's log, whatever the job says.
    pub log_bytes: u64,
}

impl Default for Limits {
    /// 8 MiB, 20,000 job runs; 16 GiB of log, which no person reads and a disk of a coordinator bears.
    fn default() -> Self {
        Self { file_bytes: 8 << 20, job_runs: 20_000, log_bytes: 16 << 30 }
    }
}

/// Largest plan, in bytes of its texts, rendered, and what they are kept in.
pub const PLAN_BYTES_MAX: usize = 64 << 20;

/// The JSON Schema of a pack file, for editors. It can't say all that [`check`](fn@check) finds.
pub const JSON_SCHEMA: &str = include_str!("schema.json");

impl Format {
    /// The format of a file with this name, by its extension.
    #[must_use]
    pub fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "json" => Some(Self::Json),
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }

    /// The format of a media type, its parameters left aside.
    #[must_use]
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        let (essence, _) = media_type.split_once(';').unwrap_or((media_type, ""));
        match essence.trim().to_ascii_lowercase().as_str() {
            "application/json" => Some(Self::Json),
            "application/toml" => Some(Self::Toml),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Some(Self::Yaml),
            _ => None,
        }
    }

    /// The media type of such a file.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Toml => "application/toml",
            Self::Yaml => "application/yaml",
        }
    }
}

/// The pack that `source` describes.
///
/// # Errors
/// With all problems that could be found, each at its line and column.
pub fn check(format: Format, source: &[u8], limits: &Limits) -> Result<Pack, InvalidPack> {
    let mut problems = Problems::default();
    let (text, root) = match decode(source, limits.file_bytes) {
        Ok(text) => (text, source::read(format, text, &mut problems)),
        Err((text, at, kind, message)) => {
            problems.add(at, kind, message);
            (text, None)
        }
    };
    let pack = root.and_then(|root| check::check(&root, limits, &mut problems));
    pack.ok_or_else(|| problems.into_error(text))
}

/// The text in `source`, or what of it can be read, where that ends, and why.
fn decode(source: &[u8], bytes_max: usize) -> Result<&str, (&str, Place, Kind, String)> {
    if source.len() > bytes_max {
        let message = format!("the file has {} bytes, more than the limit of {bytes_max}", source.len());
        return Err(("", Place(0), Kind::Limit, message));
    }
    let text = std::str::from_utf8(source).map_err(|error| {
        let valid = source.get(..error.valid_up_to()).unwrap_or_default();
        let text = std::str::from_utf8(valid).unwrap_or_default();
        (text, Place(text.len()), Kind::Syntax, "the file is not UTF-8".to_owned())
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.find('\0') {
        Some(position) => Err((text, Place(position), Kind::Syntax, "the file contains NUL".to_owned())),
        None => Ok(text),
    }
}
