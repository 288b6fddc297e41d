//! The artifact rules of a job made ready to match: pure, over paths relative to the workspace.
//!
//! A plain path matches that file, and all files below it when it is a folder. A glob matches files only:
//! `*`, `?` and `[…]` stay within a component, `**` crosses folders, `{a,b}` is either, `\` takes the next
//! character as it is.

use std::path::{Path, PathBuf};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use packrun_protocol::job::ArtifactRule;
use packrun_protocol::limit::ARTIFACT_RULES_MAX;
use packrun_protocol::name::Name;
use packrun_protocol::path::RelativePath;

use super::collect::CollectError;

/// The rules of one job.
#[derive(Debug)]
pub struct Rules<'a> {
    rules: Vec<Rule<'a>>,
    globs: GlobSet,
    /// Of each glob in the set the position of its rule: a plain path makes two.
    rule_of_glob: Vec<usize>,
}

#[derive(Debug)]
struct Rule<'a> {
    rule: &'a ArtifactRule,
    is_plain: bool,
    /// Every match is this path or lies below it; empty for the workspace.
    anchor: PathBuf,
    /// How many folders deep a match can lie.
    depth_max: usize,
}

impl<'a> Rules<'a> {
    /// These rules, ready to match.
    ///
    /// # Errors
    /// When one of them is not valid, or they are more than a job may have.
    pub fn compile(rules: &'a [ArtifactRule]) -> Result<Self, CollectError> {
        if rules.len() > ARTIFACT_RULES_MAX {
            return Err(CollectError::Limit { what: "artifact rules", max: ARTIFACT_RULES_MAX as u64 });
        }
        let mut globs = GlobSetBuilder::new();
        let mut rule_of_glob = Vec::new();
        let mut compiled = Vec::with_capacity(rules.len());
        for (position, rule) in rules.iter().enumerate() {
            let refused =
                |why: &dyn ToString| CollectError::Rule { path: rule.path.clone(), why: why.to_string() };
            rule.check().map_err(|error| refused(&error))?;
            let anchor = rule.anchor().map_err(|error| refused(&error))?;
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
            let is_bounded = rule.is_glob() && !rule.path.contains("**");
            compiled.push(Rule {
                rule,
                is_plain: !rule.is_glob(),
                anchor: anchor.as_ref().map_or(Path::new(""), RelativePath::as_path).to_owned(),
                depth_max: if is_bounded { rule.path.matches('/').count() } else { usize::MAX },
            });
        }
        let globs = globs
            .build()
            .map_err(|error| CollectError::Rule { path: "all together".into(), why: error.to_string() })?;
        Ok(Self { rules: compiled, globs, rule_of_glob })
    }

    /// The positions of the rules that match `path`, in order.
    #[must_use]
    pub fn matching(&self, path: &Path) -> Vec<usize> {
        let globs = self.globs.matches(path);
        let mut rules: Vec<_> =
            globs.into_iter().filter_map(|glob| self.rule_of_glob.get(glob).copied()).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Whether a file in `folder`, `depth` folders deep, or below it can match. What a rule matches lies in folders
    /// that it reaches.
    #[must_use]
    pub fn reach(&self, folder: &Path, depth: usize) -> bool {
        self.rules.iter().any(|rule| {
            depth <= rule.depth_max && (rule.anchor.starts_with(folder) || folder.starts_with(&rule.anchor))
        })
    }

    /// The plain path of a rule that is `path` or leads through it.
    pub(super) fn plain_through(&self, path: &Path) -> Option<&'a str> {
        let mut plain = self.rules.iter().filter(|rule| rule.is_plain);
        plain.find(|rule| rule.anchor.starts_with(path)).map(|rule| rule.rule.path.as_str())
    }

    /// The name that a file matched by these rules goes by: that of the first which has one.
    pub(super) fn name(&self, matching: &[usize]) -> Option<&'a Name> {
        matching.iter().filter_map(|&position| self.rules.get(position)?.rule.name.as_ref()).next()
    }

    /// The first rule that isn't optional and not among those that `matched` says yes for.
    pub(super) fn first_missing(&self, matched: impl Fn(usize) -> bool) -> Option<&'a str> {
        let mut rules = self.rules.iter().enumerate();
        rules
            .find(|(position, rule)| !rule.rule.optional && !matched(*position))
            .map(|(_, rule)| rule.rule.path.as_str())
    }
}

fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build()
}
