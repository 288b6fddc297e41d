//! What things are called: names of packs and jobs, keys of job runs, labels. Each type holds only valid text,
//! however it came in, so nothing behind it checks again.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::{lean, limit};

/// A text that breaks the rule of the kind of name it should be. The message names the rule, and shows the start
/// of the text with its control characters escaped: it may come from anyone and end up on a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a valid {kind}: {rule}")]
pub struct NameError {
    text: String,
    kind: &'static str,
    rule: &'static str,
}

impl NameError {
    fn new(text: &str, kind: &'static str, rule: &'static str) -> Self {
        Self { text: shown(text), kind, rule }
    }
}

/// The start of a refused text as its refusal shows it.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for char in text.chars().take(80) {
        if char.is_control() { shown.extend(char.escape_debug()) } else { shown.push(char) }
    }
    shown
}

macro_rules! checked_text {
    ($($(#[$doc:meta])+ $name:ident: $check:path;)+) => {$(
        $(#[$doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                lean::text(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )+};
}

checked_text! {
    /// The name of a pack, a job, an agent or an artifact: `[a-z0-9][a-z0-9-]{0,62}`.
    Name: check_name;
    /// A job run's key within its pack run: the job's name, for a matrix job with its values in declared
    /// order, as `test[shard=1,os=linux]`.
    JobKey: check_key;
    /// One value of a matrix axis: 1 to 128 bytes without `, = [ ]` and control characters.
    MatrixValue: check_matrix_value;
}

impl JobKey {
    /// The key of the job run of `job` with these values of its matrix.
    ///
    /// # Errors
    /// When the key would be longer than [`limit::JOB_KEY_BYTES_MAX`].
    pub fn new<'a>(
        job: &Name,
        matrix: impl IntoIterator<Item = (&'a Name, &'a MatrixValue)>,
    ) -> Result<Self, NameError> {
        let mut key = job.as_str().to_owned();
        let mut separator = '[';
        for (axis, value) in matrix {
            key.push(separator);
            key.push_str(axis.as_str());
            key.push('=');
            key.push_str(value.as_str());
            separator = ',';
        }
        if separator == ',' {
            key.push(']');
        }
        key.parse()
    }

    /// The name of the job, without the matrix values.
    #[must_use]
    pub fn job(&self) -> &str {
        self.0.split_once('[').map_or(&*self.0, |(job, _)| job)
    }

    /// The values of the matrix in declared order, empty for a job without one.
    pub fn matrix(&self) -> impl Iterator<Item = (&str, &str)> {
        let values = self.0.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']'));
        values.into_iter().flat_map(|values| values.split(',')).filter_map(|value| value.split_once('='))
    }
}

fn check_name(text: &str) -> Result<(), NameError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let valid = text.len() <= limit::NAME_BYTES_MAX
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|byte| plain(byte) || byte == b'-');
    if valid {
        return Ok(());
    }
    let rule = "it takes 1 to 63 characters of a-z, 0-9 and `-`, the first no `-`";
    Err(NameError::new(text, "name", rule))
}

fn check_matrix_value(text: &str) -> Result<(), NameError> {
    let valid = (1..=limit::MATRIX_VALUE_BYTES_MAX).contains(&text.len())
        && !text.contains(|c: char| matches!(c, ',' | '=' | '[' | ']') || c.is_control());
    if valid {
        return Ok(());
    }
    Err(NameError::new(
        text,
        "matrix value",
        "it takes 1 to 128 bytes without `, = [ ]` and control characters",
    ))
}

fn check_key(text: &str) -> Result<(), NameError> {
    let refused =
        || NameError::new(text, "job key", "it is a job's name, or `name[axis=value,…]`, of 1024 bytes");
    if text.len() > limit::JOB_KEY_BYTES_MAX {
        return Err(refused());
    }
    let Some((job, values)) = text.split_once('[') else { return check_name(text) };
    check_name(job)?;
    for value in values.strip_suffix(']').ok_or_else(refused)?.split(',') {
        let (axis, value) = value.split_once('=').ok_or_else(refused)?;
        check_name(axis)?;
        check_matrix_value(value)?;
    }
    Ok(())
}

/// Labels: what an agent has, or what a job wants of its agent. At most [`limit::LABELS_MAX`]; a key is 1 to 63
/// characters of `A-Z a-z 0-9 . _ / -`, a value at most 255 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// The labels of `pairs`, checked. Of two with one key the later counts.
    ///
    /// # Errors
    /// When there are too many, or one breaks the rules above.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, NameError> {
        let mut labels = Self::default();
        for (key, value) in pairs {
            labels.insert(key, value)?;
        }
        Ok(labels)
    }

    fn insert(&mut self, key: String, value: String) -> Result<(), NameError> {
        check_label(&key, &value)?;
        if self.0.len() == limit::LABELS_MAX && !self.0.contains_key(&key) {
            return Err(NameError::new(&key, "label", "there may be at most 64 labels"));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Whether every label of `wanted` is here with the same value.
    #[must_use]
    pub fn satisfy(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }

    /// The value of one label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is no label.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `os=linux, gpu=none`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (key, value)) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{key}={value}")?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Labels, A::Error> {
                let mut labels = Labels::default();
                while let Some((key, value)) = pairs.next_entry::<lean::Text, lean::Text>()? {
                    labels.insert(key.0, value.0).map_err(A::Error::custom)?;
                }
                Ok(labels)
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

fn check_label(key: &str, value: &str) -> Result<(), NameError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    if !(1..=limit::LABEL_KEY_BYTES_MAX).contains(&key.len()) || !key.bytes().all(plain) {
        let rule = "a key takes 1 to 63 characters of A-Z, a-z, 0-9, `.`, `_`, `/` and `-`";
        return Err(NameError::new(key, "label", rule));
    }
    if value.len() > limit::LABEL_VALUE_BYTES_MAX || value.contains(char::is_control) {
        let rule = "a value takes at most 255 bytes without control characters";
        return Err(NameError::new(value, "label", rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outside_its_rule_is_refused_with_the_rule() {
        let longest = "a".repeat(63);
        for name in ["a", "0", "build-and-test", longest.as_str()] {
            assert!(name.parse::<Name>().is_ok(), "{name}");
        }
        let too_long = "a".repeat(64);
        for name in ["", "-a", "A", "a_b", "a/b", "..", "a b", "ä", "a\0", too_long.as_str()] {
            assert!(name.parse::<Name>().unwrap_err().to_string().contains("1 to 63"), "{name}");
        }
    }

    #[test]
    fn a_refused_text_does_not_command_the_terminal_it_is_shown_on() {
        let message = "\u{1b}[2J\u{9b}é`\n".parse::<Name>().unwrap_err().to_string();
        assert!(message.starts_with(r"`\u{1b}[2J\u{9b}é`\n` is not a valid name"), "{message}");
    }

    #[test]
    fn a_key_is_taken_apart_into_what_it_was_made_of() {
        let (shard, os): (Name, Name) = ("shard".parse().unwrap(), "os".parse().unwrap());
        let (one, linux): (MatrixValue, MatrixValue) = ("1".parse().unwrap(), "linux/x86".parse().unwrap());
        let job: Name = "test".parse().unwrap();
        let key = JobKey::new(&job, [(&shard, &one), (&os, &linux)]).unwrap();
        assert_eq!(key.as_str(), "test[shard=1,os=linux/x86]");
        assert_eq!(key.job(), "test");
        assert_eq!(key.matrix().collect::<Vec<_>>(), [("shard", "1"), ("os", "linux/x86")]);
        assert_eq!(JobKey::new(&job, []).unwrap().as_str(), "test");
    }

    #[test]
    fn a_key_that_no_job_can_have_is_refused() {
        for key in [
            "test[",
            "test[]",
            "test[a]",
            "test[a=]",
            "test[a=1",
            "test[a=1]x",
            "test[a=b=c]",
            "T[a=1]",
            "[a=1]",
        ] {
            assert!(key.parse::<JobKey>().is_err(), "{key}");
        }
    }

    #[test]
    fn labels_satisfy_only_what_they_hold() {
        let labels = |pairs: &[(&str, &str)]| {
            Labels::new(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))).unwrap()
        };
        let host = labels(&[("os", "linux"), ("gpu", "none")]);
        assert!(host.satisfy(&labels(&[])));
        assert!(host.satisfy(&labels(&[("os", "linux")])));
        assert!(!host.satisfy(&labels(&[("os", "darwin")])));
        assert!(!host.satisfy(&labels(&[("os", "linux"), ("arch", "arm64")])));
        assert!(Labels::new((0..65).map(|n| (n.to_string(), String::new()))).is_err());
        assert!(serde_json::from_str::<Labels>(r#"{"a b":"c"}"#).is_err());
    }
}
