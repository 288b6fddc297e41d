//! What single arguments mean: packs, pairs, durations, points in time. Pure.

use std::str::FromStr;
use std::time::Duration;

use packrun_protocol::name::Name;
use packrun_protocol::time::Timestamp;

/// A pack, or one version of it: `NAME` or `NAME@V`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRef {
    /// The pack.
    pub name: Name,
    /// The version; the newest without.
    pub version: Option<u32>,
}

impl FromStr for PackRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let version = version.map(|version| match version.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("`{version}` is not the number of a version, as in `{name}@3`")),
        });
        Ok(Self { name: name.parse().map_err(|error| format!("{error}"))?, version: version.transpose()? })
    }
}

/// `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it takes the form KEY=VALUE".to_owned()),
    }
}

/// A duration as `90s`, `15m`, `1h` or `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("`{text}` is not a duration, as 90s, 15m, 1h or 7d");
    let unit = text.chars().next_back().ok_or_else(refused)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(refused()),
    };
    let number = text.strip_suffix(unit).unwrap_or_default();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused());
    }
    let number: u64 = number.parse().map_err(|_| refused())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(refused)
}

/// A point in time: RFC 3339, or a duration before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// This time.
    At(Timestamp),
    /// So long ago.
    Ago(Duration),
}

impl Since {
    /// The time that is meant when it is `now`.
    #[must_use]
    pub fn time(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(duration) => now - duration,
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse() {
            return Ok(Self::At(time));
        }
        duration(text).map(Self::Ago).map_err(|_| {
            format!("`{text}` is neither a time, as 2026-01-31T12:00:00Z, nor a duration, as 10m")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_named_with_and_without_a_version() {
        let parsed = |text: &str| text.parse::<PackRef>().map(|pack| (pack.name.to_string(), pack.version));
        assert_eq!(parsed("build-and-test"), Ok(("build-and-test".into(), None)));
        assert_eq!(parsed("build@12"), Ok(("build".into(), Some(12))));
        for wrong in ["", "@1", "Build", "a@", "a@0", "a@-1", "a@1@2", "a@99999999999"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs_durations_and_times_are_read_and_nothing_else() {
        assert_eq!(pair("k=a=b"), Ok(("k".into(), "a=b".into())));
        assert_eq!(pair("k="), Ok(("k".into(), String::new())));
        assert!(pair("k").is_err() && pair("=v").is_err());
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in
            ["", "h", "1", "1.5h", "-1h", "+1h", "1w", "1é", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let since = |text: &str| text.parse::<Since>().map(|since| since.time(now).to_string());
        assert_eq!(since("10m").unwrap(), "2026-01-31T11:50:00.000000Z");
        assert_eq!(since("2026-01-31T13:00:00+01:00").unwrap(), "2026-01-31T12:00:00.000000Z");
        assert!(since("yesterday").is_err());
    }
}
