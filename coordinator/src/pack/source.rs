//! A file's text to a tree of located nodes, the same tree for YAML, TOML and JSON: scalars keep the text they
//! were written with (`1.10` stays `1.10`), mappings their order, every node and key its place.
//!
//! All three feed one [`Builder`], which holds the bounds on depth and count, refuses NUL, and finds duplicate
//! keys. Nothing here recurses on input but the walk over TOML's tables, whose parser bounds their depth.

use std::borrow::Cow;
use std::collections::HashSet;

use granit_parser::{Event, Parser, ScalarStyle};
use serde::de::IgnoredAny;
use toml::de::{DeTable, DeValue};

use super::Format;
use super::problem::{Kind, Place, Problems, excerpt};

/// Deepest nesting of a pack file. The language needs 6.
const DEPTH_MAX: usize = 16;

/// Most keys and values in a pack file: 10,000 jobs are some 70,000.
const NODES_MAX: usize = 1_000_000;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    /// A number or truth value, or in YAML any text without quotes.
    Plain(String),
    /// What can only be text.
    Quoted(String),
    Sequence(Vec<Node>),
    /// Entries in the order of the file, keys distinct.
    Mapping(Vec<(Key, Node)>),
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) at: Place,
    pub(super) text: String,
}

/// The tree of `text`; `None` when it could not be read, with the reason among `problems`.
pub(super) fn read(format: Format, text: &str, problems: &mut Problems) -> Option<Node> {
    let mut builder = Builder { problems, open: Vec::new(), nodes: 0, root: None };
    let read = match format {
        Format::Yaml => read_yaml(text, &mut builder),
        Format::Toml => read_toml(text, &mut builder),
        Format::Json => read_json(text, &mut builder),
    };
    let root = builder.root.take();
    match (read, root) {
        (Ok(()), Some(root)) => Some(root),
        (Ok(()), None) => {
            problems.add(Place(0), Kind::Syntax, "the file is empty");
            None
        }
        (Err(Stop), _) => None,
    }
}

/// Reading ended early; the reason is among the problems.
struct Stop;

enum Open {
    Sequence(Place, Vec<Node>),
    Mapping(Place, Vec<(Key, Node)>, Option<Key>),
}

struct Builder<'p> {
    problems: &'p mut Problems,
    open: Vec<Open>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn stop(&mut self, at: Place, kind: Kind, message: impl Into<String>) -> Stop {
        self.problems.add(at, kind, message);
        Stop
    }

    fn count(&mut self, at: Place) -> Result<(), Stop> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.stop(at, Kind::Limit, format!("more than {NODES_MAX} keys and values")));
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some(Open::Mapping(_, _, None)))
    }

    fn scalar(&mut self, at: Place, value: Value) -> Result<(), Stop> {
        self.count(at)?;
        if let Value::Plain(text) | Value::Quoted(text) = &value
            && text.contains('\0')
        {
            self.problems.add(at, Kind::Value, "a text may not contain NUL");
        }
        self.place(Node { at, value })
    }

    fn key(&mut self, at: Place, text: String) -> Result<(), Stop> {
        self.count(at)?;
        if text.contains('\0') {
            self.problems.add(at, Kind::Value, "a key may not contain NUL");
        }
        if let Some(Open::Mapping(_, _, key)) = self.open.last_mut() {
            *key = Some(Key { at, text });
        }
        Ok(())
    }

    fn start(&mut self, open: Open) -> Result<(), Stop> {
        let (Open::Sequence(at, _) | Open::Mapping(at, _, _)) = open;
        self.count(at)?;
        if self.expects_key() {
            return Err(self.stop(at, Kind::Syntax, "a key has to be a text"));
        }
        if self.open.len() >= DEPTH_MAX {
            let message = format!("nested more than {DEPTH_MAX} levels deep");
            return Err(self.stop(at, Kind::Limit, message));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Stop> {
        match self.open.pop() {
            Some(Open::Sequence(at, items)) => self.place(Node { at, value: Value::Sequence(items) }),
            Some(Open::Mapping(at, mut entries, _)) => {
                let mut seen = HashSet::with_capacity(entries.len());
                let distinct: Vec<bool> =
                    entries.iter().map(|(key, _)| seen.insert(key.text.as_str())).collect();
                drop(seen);
                let mut distinct = distinct.into_iter();
                let problems = &mut *self.problems;
                entries.retain(|(key, _)| {
                    let first = distinct.next().unwrap_or(true);
                    if !first {
                        let message = format!("duplicate key `{}`", excerpt(&key.text));
                        problems.add(key.at, Kind::Duplicate, message);
                    }
                    first
                });
                self.place(Node { at, value: Value::Mapping(entries) })
            }
            None => Ok(()),
        }
    }

    fn place(&mut self, node: Node) -> Result<(), Stop> {
        match self.open.last_mut() {
            Some(Open::Sequence(_, items)) => items.push(node),
            Some(Open::Mapping(_, entries, key)) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => return Err(self.stop(node.at, Kind::Syntax, "a key has to be a text")),
            },
            None if self.root.is_some() => {
                return Err(self.stop(node.at, Kind::Syntax, "a pack file holds one document"));
            }
            None => self.root = Some(node),
        }
        Ok(())
    }
}

fn read_yaml(text: &str, builder: &mut Builder<'_>) -> Result<(), Stop> {
    let options = granit_parser::options! { disallow_directives: true };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let at = Place(error.marker().byte_offset().unwrap_or(0));
            builder.stop(at, Kind::Syntax, format!("not valid YAML: {}", error.info()))
        })?;
        let at = Place(span.start.byte_offset().unwrap_or(0));
        let (anchor, tagged) = (event.anchor_id().is_some(), event.tag().is_some());
        if event.is_alias() || anchor {
            return Err(builder.stop(at, Kind::Syntax, "anchors and aliases are not allowed"));
        }
        if tagged {
            return Err(builder.stop(at, Kind::Syntax, "tags are not allowed"));
        }
        match event {
            Event::Scalar(text, ..) if builder.expects_key() => builder.key(at, text.into_owned())?,
            Event::Scalar(text, ScalarStyle::Plain, ..) => builder.scalar(at, plain_yaml(text))?,
            Event::Scalar(text, ..) => builder.scalar(at, Value::Quoted(text.into_owned()))?,
            Event::SequenceStart(..) => builder.start(Open::Sequence(at, Vec::new()))?,
            Event::MappingStart(..) => builder.start(Open::Mapping(at, Vec::new(), None))?,
            Event::SequenceEnd | Event::MappingEnd => builder.end()?,
            _ => {}
        }
    }
    Ok(())
}

/// The core schema's null (YAML 1.2.2 §10.3.2); all else is decided by who reads it.
fn plain_yaml(text: Cow<'_, str>) -> Value {
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ => Value::Plain(text.into_owned()),
    }
}

fn read_toml(text: &str, builder: &mut Builder<'_>) -> Result<(), Stop> {
    let document = DeTable::parse(text).map_err(|error| {
        let at = Place(error.span().map_or(0, |span| span.start));
        builder.stop(at, Kind::Syntax, format!("not valid TOML: {}", error.message()))
    })?;
    walk_table(Place(0), document.get_ref(), builder)
}

fn walk_table(at: Place, table: &DeTable<'_>, builder: &mut Builder<'_>) -> Result<(), Stop> {
    builder.start(Open::Mapping(at, Vec::new(), None))?;
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        builder.key(Place(key.span().start), key.get_ref().to_string())?;
        walk_value(Place(value.span().start), value.get_ref(), builder)?;
    }
    builder.end()
}

fn walk_value(at: Place, value: &DeValue<'_>, builder: &mut Builder<'_>) -> Result<(), Stop> {
    match value {
        DeValue::String(text) => builder.scalar(at, Value::Quoted(text.to_string())),
        DeValue::Integer(number) if number.radix() == 10 => {
            builder.scalar(at, Value::Plain(number.as_str().to_owned()))
        }
        DeValue::Integer(_) => {
            Err(builder.stop(at, Kind::Syntax, "write numbers in decimal, or as text in quotes"))
        }
        DeValue::Float(number) => builder.scalar(at, Value::Plain(number.as_str().to_owned())),
        DeValue::Boolean(truth) => builder.scalar(at, Value::Plain(truth.to_string())),
        DeValue::Datetime(_) => Err(builder.stop(at, Kind::Syntax, "write dates as text in quotes")),
        DeValue::Array(items) => {
            builder.start(Open::Sequence(at, Vec::new()))?;
            for item in items.iter() {
                walk_value(Place(item.span().start), item.get_ref(), builder)?;
            }
            builder.end()
        }
        DeValue::Table(table) => walk_table(at, table, builder),
    }
}

/// serde_json judges the syntax; then what is known to be JSON is cut into tokens, which it can't locate.
fn read_json(text: &str, builder: &mut Builder<'_>) -> Result<(), Stop> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
        let line_start = match error.line() {
            0 | 1 => 0,
            line => text.match_indices('\n').nth(line - 2).map_or(0, |(newline, _)| newline + 1),
        };
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        let at = Place(line_start + error.column().saturating_sub(1));
        builder.stop(at, Kind::Syntax, format!("not valid JSON: {message}"))
    })?;
    let bytes = text.as_bytes();
    let mut position = 0;
    while let Some(byte) = bytes.get(position) {
        let at = Place(position);
        position += 1;
        match byte {
            b'{' => builder.start(Open::Mapping(at, Vec::new(), None))?,
            b'[' => builder.start(Open::Sequence(at, Vec::new()))?,
            b'}' | b']' => builder.end()?,
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => {}
            b'"' => {
                while let Some(byte) = bytes.get(position) {
                    position += if *byte == b'\\' { 2 } else { 1 };
                    if *byte == b'"' {
                        break;
                    }
                }
                let content = text.get(at.0..position).unwrap_or_default();
                let content: String = serde_json::from_str(content).map_err(|_| {
                    builder.stop(at, Kind::Syntax, "not valid JSON: a text with half of a surrogate pair")
                })?;
                if builder.expects_key() {
                    builder.key(at, content)?;
                } else {
                    builder.scalar(at, Value::Quoted(content))?;
                }
            }
            _ => {
                let rest = bytes.get(position..).unwrap_or_default();
                let more =
                    rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
                position += more.count();
                let word = text.get(at.0..position).unwrap_or_default();
                let value = if word == "null" { Value::Null } else { Value::Plain(word.to_owned()) };
                builder.scalar(at, value)?;
            }
        }
    }
    Ok(())
}
