//! The values that a pack run is created with, checked against the pack's parameters.

use std::collections::{BTreeMap, HashSet};

use packrun_protocol::name::Name;
use thiserror::Error;

use super::fields::TEXT_BYTES_MAX;
use super::model::{Pack, Param};
use super::problem::{closest, excerpt};

/// Choices that a message lists.
const LISTED_MAX: usize = 10;

/// Faults reported at once.
const FAULTS_MAX: usize = 50;

/// A value for each parameter of a pack: given, or its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments(pub(super) BTreeMap<Name, String>);

impl Arguments {
    /// All parameters and their values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &str)> {
        self.0.iter().map(|(name, value)| (name, value.as_str()))
    }
}

/// One thing wrong with the values given.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ArgumentFault {
    /// A parameter without default was not given.
    #[error("parameter `{0}` is required")]
    Missing(Name),
    /// The value contains NUL, which no environment can hold.
    #[error("parameter `{0}` may not contain NUL")]
    Nul(Name),
    /// The value is none of the choices.
    #[error("parameter `{name}` is `{value}`, but has to be one of {choices}")]
    Choice {
        /// Whose value.
        name: Name,
        /// The start of the value.
        value: String,
        /// What it may be.
        choices: String,
    },
    /// The value is too long.
    #[error("parameter `{0}` takes at most {TEXT_BYTES_MAX} bytes")]
    TooLong(Name),
    /// The pack has no such parameter.
    #[error("unknown parameter `{name}`{}", did_you_mean(.suggestion.as_deref()))]
    Unknown {
        /// What was given.
        name: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// All that is wrong with the values given, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("invalid parameters: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidArguments(pub Vec<ArgumentFault>);

impl Pack {
    /// The values for a pack run: those `given`, and the defaults of the other parameters.
    ///
    /// # Errors
    /// With every value that is unknown, missing, too long (64 KiB) or outside its choices.
    pub fn arguments(&self, given: &BTreeMap<String, String>) -> Result<Arguments, InvalidArguments> {
        let mut faults = Vec::new();
        let mut values = BTreeMap::new();
        for param in &self.params {
            match given.get(param.name.as_str()).or(param.default.as_ref()) {
                Some(value) => {
                    faults.extend(fault(param, value));
                    values.insert(param.name.clone(), value.clone());
                }
                None => faults.push(ArgumentFault::Missing(param.name.clone())),
            }
        }
        let known: HashSet<&str> = self.params.iter().map(|param| param.name.as_str()).collect();
        let unknown = given.keys().filter(|name| !known.contains(name.as_str()));
        for name in unknown.take(FAULTS_MAX) {
            let suggestion = closest(name, self.params.iter().map(|param| param.name.as_str()));
            faults.push(ArgumentFault::Unknown { name: excerpt(name), suggestion });
        }
        faults.truncate(FAULTS_MAX);
        if faults.is_empty() { Ok(Arguments(values)) } else { Err(InvalidArguments(faults)) }
    }
}

fn fault(param: &Param, value: &String) -> Option<ArgumentFault> {
    let name = || param.name.clone();
    if value.len() > TEXT_BYTES_MAX {
        return Some(ArgumentFault::TooLong(name()));
    }
    if value.contains('\0') {
        return Some(ArgumentFault::Nul(name()));
    }
    if param.choices.is_empty() || param.choices.contains(value) {
        return None;
    }
    let mut choices: Vec<String> =
        param.choices.iter().take(LISTED_MAX).map(|choice| format!("`{}`", excerpt(choice))).collect();
    if param.choices.len() > LISTED_MAX {
        choices.push("…".to_owned());
    }
    Some(ArgumentFault::Choice { name: name(), value: excerpt(value), choices: choices.join(", ") })
}
