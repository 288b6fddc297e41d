//! Time on the wire: UTC timestamps in microseconds, the one clock that reads the system's, and what one side
//! learns of the other's clock from samples. State machines receive times and never read a clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A point in time: microseconds since 1970-01-01 UTC, from year 0 to year 9999. RFC 3339 in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// A text or number that is no time of the years 0 to 9999. The message shows the start of it, fit for a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not an RFC 3339 time of the years 0 to 9999")]
pub struct TimestampError(String);

impl Timestamp {
    /// The earliest, 0000-01-01T00:00:00Z.
    pub const MIN: Self = Self(-62_167_219_200_000_000);
    /// The latest, 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// The time so many microseconds after 1970-01-01 UTC, moved into the range.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        if micros < Self::MIN.0 {
            Self::MIN
        } else if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Self(micros)
        }
    }

    /// Microseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This time moved by so many microseconds, kept in the range.
    #[must_use]
    pub const fn shifted(self, micros: i64) -> Self {
        Self::from_micros(self.0.saturating_add(micros))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self::from_micros(micros(after)),
            Err(before) => Self::from_micros(micros(before.duration()).saturating_neg()),
        }
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        self.shifted(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        self.shifted(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).saturating_neg())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::<Utc>::from_timestamp_micros(self.0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || TimestampError(crate::name::shown(text));
        let micros = DateTime::parse_from_rfc3339(text).map_err(|_| refused())?.timestamp_micros();
        if (Self::MIN.0..=Self::MAX.0).contains(&micros) { Ok(Self(micros)) } else { Err(refused()) }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_i64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return crate::lean::text(deserializer)?.parse().map_err(D::Error::custom);
        }
        let micros = i64::deserialize(deserializer)?;
        let time = Self::from_micros(micros);
        if time.0 == micros { Ok(time) } else { Err(D::Error::custom(TimestampError(micros.to_string()))) }
    }
}

/// The process's clock: the wall clock at its start and the monotonic clock since, so that it never runs
/// backwards and a step of the wall clock doesn't move it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    monotonic: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { wall: SystemTime::now().into(), monotonic: Instant::now() }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.wall + self.monotonic.elapsed()
    }

    /// When `time` comes, for a timer.
    #[must_use]
    pub fn instant(&self, time: Timestamp) -> Instant {
        self.monotonic + time.since(self.wall)
    }
}

/// How far another clock is ahead of ours, and how wrong that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// Microseconds to add to our time to have theirs.
    pub micros: i64,
    /// Half of the round trip that the sample took, in microseconds: the error is at most this.
    pub error_micros: u64,
}

impl ClockOffset {
    /// The offset shown by one exchange: sent and answered by our clock, read in between by theirs (the
    /// estimate of RFC 5905 §8 for a server that answers at once).
    #[must_use]
    pub fn of_exchange(sent: Timestamp, theirs: Timestamp, received: Timestamp) -> Self {
        let error_micros = u64::try_from(received.since(sent).as_micros() / 2).unwrap_or(u64::MAX);
        let middle = sent + Duration::from_micros(error_micros);
        Self { micros: theirs.0.saturating_sub(middle.0), error_micros }
    }
}

/// Keeps the best of the last samples of another clock: the one with the shortest round trip (the clock filter
/// of RFC 5905 §10).
#[derive(Debug, Clone, Default)]
pub struct OffsetFilter {
    samples: std::collections::VecDeque<ClockOffset>,
}

impl OffsetFilter {
    const SAMPLES_MAX: usize = 8;

    /// Takes one more sample; the oldest of more than eight goes.
    pub fn add(&mut self, sample: ClockOffset) {
        if self.samples.len() == Self::SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The sample to believe; `None` before the first.
    #[must_use]
    pub fn best(&self) -> Option<ClockOffset> {
        self.samples.iter().copied().min_by_key(|sample| sample.error_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_back_from_its_text_and_the_range_is_kept() {
        for time in [
            Timestamp::MIN,
            Timestamp::default(),
            Timestamp::MAX,
            Timestamp::from_micros(1_795_560_636_123_456),
        ] {
            assert_eq!(time.to_string().parse(), Ok(time));
        }
        assert_eq!(Timestamp::default().to_string(), "1970-01-01T00:00:00.000000Z");
        assert_eq!("1970-01-01T01:00:00+01:00".parse(), Ok(Timestamp::default()));
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::MIN - Duration::MAX, Timestamp::MIN);
        assert!("+10000-01-01T00:00:00Z".parse::<Timestamp>().is_err());
        let refused = "1970\u{1b}[2J".parse::<Timestamp>().unwrap_err().to_string();
        assert!(refused.starts_with(r"`1970\u{1b}[2J` is not"), "{refused}");
    }

    #[test]
    fn durations_never_go_below_zero() {
        let (early, late) = (Timestamp::from_micros(5), Timestamp::from_micros(9));
        assert_eq!(late.since(early), Duration::from_micros(4));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(Timestamp::MAX.since(Timestamp::MIN).as_micros(), 315_569_519_999_999_999);
    }

    #[test]
    fn the_offset_of_the_quickest_exchange_is_believed() {
        let at = Timestamp::from_micros;
        let mut filter = OffsetFilter::default();
        assert_eq!(filter.best(), None);
        filter.add(ClockOffset::of_exchange(at(0), at(3_600_000_900), at(1_000)));
        filter.add(ClockOffset::of_exchange(at(2_000), at(3_600_002_050), at(2_100)));
        assert_eq!(filter.best(), Some(ClockOffset { micros: 3_600_000_000, error_micros: 50 }));
        for _ in 0..8 {
            filter.add(ClockOffset { micros: 7, error_micros: 60 });
        }
        assert_eq!(filter.best().map(|best| best.micros), Some(7), "old samples are forgotten");
    }
}
