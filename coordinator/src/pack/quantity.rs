//! Amounts as people write them: durations (`1h30m`), memory (`512MiB`), processors (`0.5`).

use std::time::Duration;

/// Longest duration of a pack file: 365 days.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Most memory a job may ask for, in bytes: 1 PiB.
const MEMORY_BYTES_MAX: u64 = 1 << 50;

/// Most processors a job may ask for, in thousandths.
const CPU_MILLIS_MAX: u32 = 4_096_000;

const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const MEMORY_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// The rule that [`duration`] follows.
pub(super) const DURATION_RULE: &str =
    "a duration is written like `500ms`, `90s`, `10m` or `1h30m`, and takes at most 365 days";

/// The rule that [`memory`] follows.
pub(super) const MEMORY_RULE: &str = "an amount of bytes is written like `512MiB` or `2GiB` (B, KiB, MiB, GiB, TiB, kB, MB, GB, TB), at most 1024TiB";

/// The rule that [`cpu_millis`] follows.
pub(super) const CPU_RULE: &str = "processors are written like `2` or `0.5`, at most 4096, to a thousandth";

/// Numbers with units, each unit smaller than the one before it.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut units = DURATION_UNITS.iter();
    let mut millis: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = leading_number(rest)?;
        let unit_length = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_length);
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        millis = number.checked_mul(*factor).and_then(|more| millis.checked_add(more))?;
        rest = tail;
    }
    let duration = Duration::from_millis(millis);
    (!text.is_empty() && duration <= DURATION_MAX).then_some(duration)
}

/// A whole number and a unit: so many bytes, at most 1 PiB.
#[must_use]
pub fn memory(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text)?;
    let (_, factor) = MEMORY_UNITS.iter().find(|(name, _)| *name == unit.trim_start_matches(' '))?;
    number.checked_mul(*factor).filter(|bytes| *bytes <= MEMORY_BYTES_MAX)
}

/// A decimal number with at most three digits behind the point.
pub(super) fn cpu_millis(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    let thousandths: u32 = format!("{fraction:0<3}").parse().ok()?;
    let millis = whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(thousandths)?;
    (millis <= CPU_MILLIS_MAX).then_some(millis)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let length = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, rest) = text.split_at(length);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units_and_nothing_else() {
        let millis = |text| duration(text).map(|duration| duration.as_millis());
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis("10m"), Some(600_000));
        assert_eq!(millis("1h30m"), Some(5_400_000));
        assert_eq!(millis("1d2h3m4s5ms"), Some(93_784_005));
        assert_eq!(millis("365d"), Some(31_536_000_000));
        for text in
            ["", "10", "m", "10 m", "30m1h", "1m1m", "-1s", "1.5h", "366d", "99999999999999999999s", "1é"]
        {
            assert_eq!(millis(text), None, "{text}");
        }
        assert_eq!(memory("512MiB"), Some(512 << 20));
        assert_eq!(memory("1 GB"), Some(1_000_000_000));
        assert_eq!(memory("1024TiB"), Some(1 << 50));
        for text in ["", "512", "MiB", "1.5GiB", "512mib", "1025TiB", "99999999999TiB", "-1B"] {
            assert_eq!(memory(text), None, "{text}");
        }
        assert_eq!(cpu_millis("2"), Some(2000));
        assert_eq!(cpu_millis("0.5"), Some(500));
        assert_eq!(cpu_millis("1.25"), Some(1250));
        for text in ["", ".5", "1.", "1.2345", "-1", "1e3", "4097", "99999999999"] {
            assert_eq!(cpu_millis(text), None, "{text}");
        }
    }
}
