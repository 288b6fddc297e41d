//! Texts with expressions: `${{ params.NAME }}` and `${{ matrix.AXIS }}`, and nothing else between the braces.
//! `$${{` stands for a literal `${{`.
//!
//! A value is put in as it is, without quoting: in a script it becomes part of the program. Scripts that take
//! values from people should read the environment (`"$PACKRUN_PARAM_NAME"`), which a shell doesn't parse.

use std::collections::BTreeMap;
use std::fmt;

use packrun_protocol::name::{MatrixValue, Name};
use thiserror::Error;

use super::problem::excerpt;

const OPEN: &str = "${{";
const CLOSE: &str = "}}";

/// A text with expressions, parsed. Two that render alike in every scope are equal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Reference),
}

/// What an expression stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reference {
    /// The value of a parameter.
    Param(Name),
    /// The value of a matrix axis.
    Matrix(Name),
}

/// Why a text with `${{` in it is not a template.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum TemplateError {
    /// There is no `}}` behind it.
    #[error("`${{{{` without `}}}}`; write `$${{{{` for the characters themselves")]
    Unclosed,
    /// What stands between the braces is no reference.
    #[error(
        "`{0}` is not an expression; use `params.NAME` or `matrix.AXIS`, or write `$${{{{` for the characters themselves"
    )]
    Unknown(String),
}

/// Why a template could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum RenderError {
    /// The result is larger than what is left of its bound.
    #[error("rendered, it is too large")]
    TooLarge,
    /// A reference without a value. A checked pack has none.
    #[error("`{0}` has no value")]
    Unbound(Reference),
}

/// The values that references stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The parameters' values.
    pub(super) params: &'a BTreeMap<Name, String>,
    /// The values of one combination of the job's matrix.
    pub(super) matrix: &'a [(&'a Name, &'a MatrixValue)],
}

impl Scope<'_> {
    fn value(&self, reference: &Reference) -> Option<&str> {
        match reference {
            Reference::Param(name) => self.params.get(name).map(String::as_str),
            Reference::Matrix(name) => {
                self.matrix.iter().find(|(axis, _)| *axis == name).map(|(_, value)| value.as_str())
            }
        }
    }
}

impl Template {
    /// Parses `text`.
    ///
    /// # Errors
    /// When an expression isn't closed or is none.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(OPEN) {
            if let Some(before) = before.strip_suffix('$') {
                literal.push_str(before);
                literal.push_str(OPEN);
                rest = after;
                continue;
            }
            literal.push_str(before);
            let (inside, after) = after.split_once(CLOSE).ok_or(TemplateError::Unclosed)?;
            let reference = Reference::parse(inside)?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Value(reference));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self { pieces })
    }

    /// The text, when there is no expression in it.
    pub(super) fn literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// All references in it.
    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Value(reference) => Some(reference),
        })
    }

    /// The text with the values of `scope` in it, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// When it would be larger, or a reference has no value.
    pub(super) fn render(&self, scope: Scope<'_>, bytes_max: usize) -> Result<String, RenderError> {
        let mut rendered = String::new();
        for piece in &self.pieces {
            let text = match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Value(reference) => {
                    scope.value(reference).ok_or_else(|| RenderError::Unbound(reference.clone()))?
                }
            };
            if text.len() > bytes_max.saturating_sub(rendered.len()) {
                return Err(RenderError::TooLarge);
            }
            rendered.push_str(text);
        }
        Ok(rendered)
    }
}

impl Reference {
    fn parse(inside: &str) -> Result<Self, TemplateError> {
        let expression = inside.trim();
        let unknown = || TemplateError::Unknown(excerpt(expression));
        let (source, name) = expression.split_once('.').ok_or_else(unknown)?;
        let name = name.parse().map_err(|_| unknown())?;
        match source {
            "params" => Ok(Self::Param(name)),
            "matrix" => Ok(Self::Matrix(name)),
            _ => Err(unknown()),
        }
    }
}

/// `params.NAME` or `matrix.AXIS`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Param(name) => write!(f, "params.{name}"),
            Self::Matrix(name) => write!(f, "matrix.{name}"),
        }
    }
}

/// The template as it is written, each expression with one space on each side: parsed, it is this one again.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => f.write_str(&text.replace(OPEN, "$${{"))?,
                Piece::Value(reference) => write!(f, "{OPEN} {reference} {CLOSE}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_in_as_they_are_and_escapes_become_braces() {
        let params = BTreeMap::from([("who".parse().unwrap(), "a; $(b) ${{ params.x }}".to_owned())]);
        let (axis, value) = ("os".parse().unwrap(), "linux".parse().unwrap());
        let scope = Scope { params: &params, matrix: &[(&axis, &value)] };
        let cases = [
            ("", ""),
            ("plain $ { } }} text", "plain $ { } }} text"),
            ("${{params.who}}", "a; $(b) ${{ params.x }}"),
            ("<${{\tmatrix.os\n}}>", "<linux>"),
            ("$${{ params.who }}", "${{ params.who }}"),
            ("$$${{ x }} ${{ matrix.os }}", "$${{ x }} linux"),
            ("${{ matrix.os }}${{ matrix.os }}", "linuxlinux"),
        ];
        for (text, expected) in cases {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.render(scope, 100).as_deref(), Ok(expected), "{text}");
            assert_eq!(Template::parse(&template.to_string()).as_ref(), Ok(&template), "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        assert_eq!(Template::parse("a ${{ params.x }"), Err(TemplateError::Unclosed));
        for text in ["${{}}", "${{ params }}", "${{ params. }}", "${{ env.X }}", "${{ params.x.y }}"] {
            assert!(matches!(Template::parse(text), Err(TemplateError::Unknown(_))), "{text}");
        }
        let message = Template::parse("${{ x }}").unwrap_err().to_string();
        assert!(message.starts_with("`x` is not an expression") && message.contains("`$${{`"), "{message}");
    }

    #[test]
    fn rendering_stops_at_its_bound() {
        let params = BTreeMap::from([("x".parse().unwrap(), "0123456789".to_owned())]);
        let scope = Scope { params: &params, matrix: &[] };
        let template = Template::parse("${{ params.x }}${{ params.x }}").unwrap();
        assert_eq!(template.render(scope, 20).map(|text| text.len()), Ok(20));
        assert_eq!(template.render(scope, 19), Err(RenderError::TooLarge));
        let unbound = Template::parse("${{ matrix.y }}").unwrap();
        assert!(matches!(unbound.render(scope, 20), Err(RenderError::Unbound(_))));
    }
}
