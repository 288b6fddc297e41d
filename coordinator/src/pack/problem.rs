//! What is wrong with a pack file: each problem with its place, a stable kind, and the way out where one is
//! known. A reader finds as many as it can before it gives up, up to a bound.

use std::fmt;

use thiserror::Error;

/// Problems reported of one file; those beyond are only counted.
pub const PROBLEMS_MAX: usize = 50;

/// Names compared to find the one that was meant. One comparison costs up to the square of [`COMPARED_BYTES_MAX`].
const CANDIDATES_MAX: usize = 200;

/// Longest text that is compared, in bytes: names have at most 63.
const COMPARED_BYTES_MAX: usize = 64;

/// The class of a problem. Its text ([`Kind::as_str`]) is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Jobs that wait for each other, or for what can't be.
    Dependency,
    /// A key that stands twice in one mapping, or a value twice in one list of distinct ones.
    Duplicate,
    /// A `${{ … }}` that can't be read.
    Expression,
    /// More than the bounds allow.
    Limit,
    /// A key that has to be there.
    Missing,
    /// Not YAML, TOML or JSON, or a feature of theirs that pack files don't use.
    Syntax,
    /// A list where a text should be, and the like.
    Type,
    /// A key that nothing answers to.
    UnknownKey,
    /// A name of a job, parameter or matrix axis that there isn't.
    UnknownReference,
    /// A key kept for a later release.
    Unsupported,
    /// A text or number outside its rule.
    Value,
}

impl Kind {
    /// The kind as a stable identifier.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dependency => "dependency",
            Self::Duplicate => "duplicate",
            Self::Expression => "expression",
            Self::Limit => "limit",
            Self::Missing => "missing",
            Self::Syntax => "syntax",
            Self::Type => "type",
            Self::UnknownKey => "unknown_key",
            Self::UnknownReference => "unknown_reference",
            Self::Unsupported => "unsupported",
            Self::Value => "value",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// Its class.
    pub kind: Kind,
    /// What is wrong, as a fragment.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

/// ``7:5: unknown key `neds`; did you mean `needs`?``
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

/// Why a text is no pack: its problems, in the order of their places; at least one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct InvalidPack {
    /// The problems, at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How many more were found.
    pub omitted: usize,
}

impl InvalidPack {
    /// The problems, each on a line that starts with the file's name, as compilers report them.
    #[must_use]
    pub fn report(&self, file: &str) -> String {
        let lines = self.problems.iter().map(|problem| format!("{file}:{problem}"));
        let omitted = (self.omitted > 0).then(|| format!("{file}: and {} more problems", self.omitted));
        lines.chain(omitted).collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for InvalidPack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid pack: ")?;
        for (position, problem) in self.problems.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        if self.omitted > 0 {
            write!(f, "; and {} more problems", self.omitted)?;
        }
        Ok(())
    }
}

/// A place in a file, as its byte's offset. Lines and columns are counted for the few places reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place(pub(super) usize);

/// The problems found so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<(Place, Kind, String, Option<String>)>,
    omitted: usize,
}

impl Problems {
    pub(super) fn add(&mut self, at: Place, kind: Kind, message: impl Into<String>) {
        self.add_with(at, kind, message, None);
    }

    /// Adds a problem with a name that is none of `candidates`, and suggests the closest of them.
    pub(super) fn add_unknown<'a>(
        &mut self,
        at: Place,
        kind: Kind,
        message: impl Into<String>,
        name: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) {
        let suggestion = if self.found.len() < PROBLEMS_MAX { closest(name, candidates) } else { None };
        self.add_with(at, kind, message, suggestion);
    }

    pub(super) fn add_with(
        &mut self,
        at: Place,
        kind: Kind,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        if self.found.len() < PROBLEMS_MAX {
            let suggestion = suggestion.as_deref().map(printable);
            self.found.push((at, kind, printable(&message.into()), suggestion));
        } else {
            self.omitted += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The problems with their places counted out in `text`.
    pub(super) fn into_error(mut self, text: &str) -> InvalidPack {
        self.found.sort_by_key(|(at, ..)| *at);
        let problems = self.found.into_iter().map(|(at, kind, message, suggestion)| {
            let before = text.get(..text.floor_char_boundary(at.0)).unwrap_or(text);
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
            let column = 1 + before.get(line_start..).map_or(0, |line| line.chars().count());
            Problem { line, column, kind, message, suggestion }
        });
        InvalidPack { problems: problems.collect(), omitted: self.omitted }
    }
}

/// The candidate that takes the fewest edits to become `name`, if they are few for its length.
pub(super) fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let length = name.chars().count();
    let edits_max = (length / 3).max(1);
    if name.len() > COMPARED_BYTES_MAX {
        return None;
    }
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= COMPARED_BYTES_MAX)
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= 4 * edits_max)
        .take(CANDIDATES_MAX)
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(edits, _)| *edits <= edits_max && *edits < length)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate.to_owned())
}

/// `text` cut to a length that fits in a message, and printable.
pub(super) fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", printable(text.get(..end).unwrap_or_default())),
        None => printable(text),
    }
}

/// `text` with its control characters escaped: what a file says must not command the terminal it is shown on.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() { printable.extend(char.escape_default()) } else { printable.push(char) }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggestion_costs_no_more_than_its_bounds() {
        let long = "x".repeat(65);
        let fitting = "x".repeat(64);
        assert_eq!(closest(&long, [fitting.as_str()]), None, "a long name isn't compared");
        assert_eq!(closest(&fitting, [long.as_str()]), None, "a long candidate isn't compared");
        let others = |text: &'static str, count: usize| std::iter::repeat_n(text, count);
        assert_eq!(closest("build", others("abcde", 199).chain(["biuld"])), Some("biuld".to_owned()));
        assert_eq!(closest("build", others("abcde", 200).chain(["biuld"])), None);
        let unlike = others("far-longer-than-it", 10_000).chain(["biuld"]);
        assert_eq!(closest("build", unlike), Some("biuld".to_owned()), "lengths are free");
    }
}
