//! Paths that cross the wire: always relative to a workspace, with `/` between components, never leading out of
//! it. What a path names on a disk is still checked where it is opened: a link may lie on its way.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::{lean, limit};

/// Why a text is not a path inside a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PathError {
    /// It starts with `/`.
    #[error("an absolute path is not allowed; give it relative to the workspace")]
    Absolute,
    /// It has a control character, NUL among them, or a backslash.
    #[error("a path may not contain control characters or backslashes")]
    Character,
    /// It has an empty component, `.` or `..`.
    #[error("a path may not contain empty components, `.` or `..`")]
    Component,
    /// It is empty.
    #[error("a path may not be empty")]
    Empty,
    /// It, or a component of it, is too long.
    #[error("a path takes at most 1024 bytes, each component at most 255")]
    TooLong,
}

/// A file's path inside a workspace: UTF-8, relative, without `.`, `..`, empty components, control characters
/// and backslashes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RelativePath(String);

impl RelativePath {
    /// The path with `/` between its components.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path to join to a folder. It has only normal components.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// This path with `tail` behind it.
    ///
    /// # Errors
    /// When the whole is too long.
    pub fn join(&self, tail: &Self) -> Result<Self, PathError> {
        format!("{}/{}", self.0, tail.0).parse()
    }

    /// Whether this path is `folder` or lies in it.
    #[must_use]
    pub fn starts_with(&self, folder: &Self) -> bool {
        self.as_path().starts_with(folder.as_path())
    }
}

impl FromStr for RelativePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        if text.contains(|c: char| c.is_control() || c == '\\') {
            return Err(PathError::Character);
        }
        if text.len() > limit::PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        for component in text.split('/') {
            if matches!(component, "" | "." | "..") {
                return Err(PathError::Component);
            }
            if component.len() > limit::PATH_COMPONENT_BYTES_MAX {
                return Err(PathError::TooLong);
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for RelativePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lean::text(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_out_of_the_workspace_is_refused() {
        let deep = "a/".repeat(600) + "a";
        let long = "a".repeat(256);
        let cases = [
            ("", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("..", PathError::Component),
            ("a/../b", PathError::Component),
            ("a/..", PathError::Component),
            ("./a", PathError::Component),
            ("a//b", PathError::Component),
            ("a/", PathError::Component),
            ("a\0b", PathError::Character),
            ("a\nb", PathError::Character),
            ("..\\a", PathError::Character),
            (deep.as_str(), PathError::TooLong),
            (long.as_str(), PathError::TooLong),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<RelativePath>(), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_path_has_only_normal_components(text in "[a./\\\\\0é]{0,12}") {
            if let Ok(path) = text.parse::<RelativePath>() {
                let normal = path.as_path().components().all(|c| matches!(c, std::path::Component::Normal(_)));
                prop_assert!(normal, "{:?}", path);
                prop_assert_eq!(path.as_path().components().count(), text.split('/').count());
            }
        }
    }
}
