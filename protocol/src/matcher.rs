//! The artifact rules of a job made ready to match, the same on both sides: the agent keeps what they match, and the
//! coordinator takes nothing else. Pure, over paths relative to the workspace.
//!
//! A plain path matches that file, and all files below it when it is a folder. A glob matches files only:
//! `*`, `?` and `[…]` stay within a component, `**` crosses folders, `{a,b}` is either, `\` takes the next
//! character as it is.

use std::path::Path;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use thiserror::Error;

use crate::job::ArtifactRule;
use crate::limit::ARTIFACT_RULES_MAX;
use crate::name::Name;

/// Why rules can't be made ready.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MatcherError {
    /// One of them keeps nothing, or they are too much together.
    #[error("artifact `{path}`: {why}")]
    Rule {
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// There are too many.
    #[error("a job has at most {ARTIFACT_RULES_MAX} artifact rules")]
    TooMany,
}

/// The rules of one job.
#[derive(Debug)]
pub struct ArtifactMatcher {
    globs: GlobSet,
    /// Of each glob in the set the position of its rule: a plain path makes two.
    rule_of_glob: Vec<usize>,
}

impl ArtifactMatcher {
    /// Compiles the rules. That costs up to tens of milliseconds for as many as there may be.
    ///
    /// # Errors
    /// When there are too many, or one of them is none.
    pub fn compile(rules: &[ArtifactRule]) -> Result<Self, MatcherError> {
        if rules.len() > ARTIFACT_RULES_MAX {
            return Err(MatcherError::TooMany);
        }
        let mut globs = GlobSetBuilder::new();
        let mut rule_of_glob = Vec::new();
        for (position, rule) in rules.iter().enumerate() {
            let refused =
                |why: &dyn ToString| MatcherError::Rule { path: rule.path.clone(), why: why.to_string() };
            rule.check().map_err(|error| refused(&error))?;
            let mut add = |pattern: &str| -> Result<(), globset::Error> {
                globs.add(glob(pattern)?);
                rule_of_glob.push(position);
                Ok(())
            };
            if rule.is_glob() {
                add(&rule.path).map_err(|error| refused(error.kind()))?;
            } else {
                let path = globset::escape(&rule.path);
                add(&path)
                    .and_then(|()| add(&format!("{path}/**")))
                    .map_err(|error| refused(error.kind()))?;
            }
        }
        let globs = globs
            .build()
            .map_err(|error| MatcherError::Rule { path: "all together".into(), why: error.to_string() })?;
        Ok(Self { globs, rule_of_glob })
    }

    /// The positions of the rules that match the file at `path`, in order.
    #[must_use]
    pub fn matching(&self, path: &Path) -> Vec<usize> {
        let globs = self.globs.matches(path);
        let mut rules: Vec<_> =
            globs.into_iter().filter_map(|glob| self.rule_of_glob.get(glob).copied()).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }
}

/// The name that a file goes by which the rules at these positions match: that of the first which has one.
#[must_use]
pub fn name_of<'a>(rules: &'a [ArtifactRule], matching: &[usize]) -> Option<&'a Name> {
    matching.iter().filter_map(|&position| rules.get(position)?.name.as_ref()).next()
}

/// Checks the syntax of a glob.
///
/// # Errors
/// Says in words what is wrong with it.
pub fn check_glob(pattern: &str) -> Result<(), String> {
    glob(pattern).map(drop).map_err(|error| error.kind().to_string())
}

fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(path: &str, name: Option<&str>) -> ArtifactRule {
        ArtifactRule { path: path.into(), name: name.map(|name| name.parse().unwrap()), optional: false }
    }

    #[test]
    fn a_path_matches_itself_and_what_is_below_it_and_a_glob_files() {
        let rules = [
            rule("out/app", None),
            rule("reports/**/*.xml", Some("reports")),
            rule("*.log", Some("logs")),
            rule("out/[id]", None),
        ];
        let matcher = ArtifactMatcher::compile(&rules).unwrap();
        for (path, wanted) in [
            ("out/app", &[0][..]),
            ("out/app/deep/file", &[0]),
            ("out/app2", &[]),
            ("out", &[]),
            ("reports/a.xml", &[1]),
            ("reports/a/b/c.xml", &[1]),
            ("a.log", &[2]),
            ("a/b.log", &[]),
            ("out/i", &[3]),
            (".packrun/home", &[]),
        ] {
            assert_eq!(matcher.matching(Path::new(path)), wanted, "{path}");
        }
        assert_eq!(name_of(&rules, &[0, 1, 2]).map(Name::as_str), Some("reports"));
        assert_eq!(name_of(&rules, &[0]), None);
    }

    #[test]
    fn what_is_no_rule_is_refused_by_its_path() {
        let refused = |path: &str| ArtifactMatcher::compile(&[rule(path, None)]).unwrap_err().to_string();
        for path in ["../a", "/a", "a/[", "{a", ".packrun/x"] {
            assert!(refused(path).contains(path), "{path}: {}", refused(path));
        }
        let many = vec![rule("a", None); ARTIFACT_RULES_MAX + 1];
        assert_eq!(ArtifactMatcher::compile(&many).unwrap_err(), MatcherError::TooMany);
        assert!(check_glob("a/[").is_err() && check_glob("a/*").is_ok());
    }
}
