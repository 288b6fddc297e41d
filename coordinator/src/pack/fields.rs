//! Nodes to values: what every key of the language is read with. A value that is missing or wrong is reported
//! at its place and comes back as `None`, and the reading goes on, so that one pass finds all problems.

use std::fmt::Display;
use std::str::FromStr;

use super::problem::{Kind, Place, Problems, excerpt};
use super::source::{Key, Node, Value};
use super::template::Template;

/// Keys kept for later releases wherever keys are known: a file that uses one gets told so, not a guess.
pub(super) const RESERVED: [&str; 14] = [
    "cache",
    "concurrency",
    "container",
    "exclude",
    "expire_in",
    "fail_fast",
    "finally",
    "max_parallel",
    "on_cancel",
    "outputs",
    "priority",
    "reports",
    "secrets",
    "services",
];

/// Longest text of a file that isn't part of a job's definition, and of a parameter's value, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 10;

/// A mapping with known keys.
pub(super) struct Fields<'n> {
    pub(super) at: Place,
    entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }
}

/// Reads nodes and collects what is wrong with them.
pub(super) struct Reader<'p> {
    pub(super) problems: &'p mut Problems,
}

impl Reader<'_> {
    pub(super) fn report(&mut self, at: Place, kind: Kind, message: impl Into<String>) {
        self.problems.add(at, kind, message);
    }

    /// Whether `key` is among those kept for later; reports it if so.
    pub(super) fn is_reserved(&mut self, key: &Key, reserved: &[&str]) -> bool {
        let is_reserved = reserved.contains(&key.text.as_str());
        if is_reserved {
            self.report(key.at, Kind::Unsupported, format!("`{}` is not supported yet", key.text));
        }
        is_reserved
    }

    /// A mapping with keys of `known` only.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, what: &str, known: &[&str]) -> Option<Fields<'n>> {
        let entries = self.entries(node, what)?;
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) && !self.is_reserved(key, &RESERVED) {
                let message = format!("unknown key `{}`", excerpt(&key.text));
                self.problems.add_unknown(
                    key.at,
                    Kind::UnknownKey,
                    message,
                    &key.text,
                    known.iter().copied(),
                );
            }
        }
        Some(Fields { at: node.at, entries })
    }

    /// A mapping with any keys.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [(Key, Node)]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            _ => self.wrong_type(node, what, "a mapping"),
        }
    }

    pub(super) fn items<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            _ => self.wrong_type(node, what, "a list"),
        }
    }

    /// Any scalar but null, as the text it was written with.
    pub(super) fn scalar<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::Plain(text) | Value::Quoted(text) => Some(text),
            _ => self.wrong_type(node, what, "a text"),
        }
    }

    /// A text of at most [`TEXT_BYTES_MAX`].
    pub(super) fn text(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = self.scalar(node, what)?;
        if text.len() > TEXT_BYTES_MAX {
            self.report(node.at, Kind::Limit, format!("{what} takes at most {TEXT_BYTES_MAX} bytes"));
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn truth(&mut self, node: &Node, what: &str) -> Option<bool> {
        match &node.value {
            Value::Plain(text) if text == "true" => Some(true),
            Value::Plain(text) if text == "false" => Some(false),
            _ => self.wrong_type(node, what, "`true` or `false`"),
        }
    }

    /// A text that `T` can be made of; its error says why it can't.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, node: &Node, what: &str) -> Option<T> {
        let text = self.scalar(node, what)?;
        self.checked(node.at, text.parse())
    }

    /// A text that `parse` understands; `rule` says what it does.
    pub(super) fn quantity<T>(
        &mut self,
        node: &Node,
        what: &str,
        rule: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.scalar(node, what)?;
        self.checked(node.at, parse(text).ok_or_else(|| format!("`{}`: {rule}", excerpt(text))))
    }

    /// A text with expressions, small enough for a job's definition.
    pub(super) fn template(&mut self, node: &Node, what: &str) -> Option<Template> {
        let text = self.scalar(node, what)?;
        let bytes_max = packrun_protocol::limit::JOB_DEFINITION_BYTES_MAX;
        if text.len() > bytes_max {
            self.report(node.at, Kind::Limit, format!("{what} takes at most {bytes_max} bytes"));
            return None;
        }
        Template::parse(text).map_err(|error| self.report(node.at, Kind::Expression, error.to_string())).ok()
    }

    /// The value, or `None` and its error as a problem.
    pub(super) fn checked<T, E: Display>(&mut self, at: Place, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.report(at, Kind::Value, error.to_string())).ok()
    }

    fn wrong_type<T>(&mut self, node: &Node, what: &str, expected: &str) -> Option<T> {
        let found = match &node.value {
            Value::Null => "nothing",
            Value::Plain(_) => "a plain value",
            Value::Quoted(_) => "a text",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        };
        self.report(node.at, Kind::Type, format!("{what} has to be {expected}, but is {found}"));
        None
    }
}
