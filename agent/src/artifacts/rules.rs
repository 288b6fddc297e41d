//! The artifact rules of a job made ready to walk a workspace by: what they match, and where a match can lie. Pure,
//! over paths relative to the workspace.

use std::path::{Path, PathBuf};

use packrun_protocol::job::ArtifactRule;
use packrun_protocol::limit::ARTIFACT_RULES_MAX;
use packrun_protocol::matcher::{ArtifactMatcher, MatcherError, name_of};
use packrun_protocol::name::Name;
use packrun_protocol::path::RelativePath;

use super::collect::CollectError;

/// The rules of one job.
#[derive(Debug)]
pub struct Rules<'a> {
    all: &'a [ArtifactRule],
    rules: Vec<Rule<'a>>,
    matcher: ArtifactMatcher,
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
    pub fn compile(all: &'a [ArtifactRule]) -> Result<Self, CollectError> {
        let matcher = ArtifactMatcher::compile(all).map_err(|error| match error {
            MatcherError::Rule { path, why } => CollectError::Rule { path, why },
            MatcherError::TooMany => {
                CollectError::Limit { what: "artifact rules", max: ARTIFACT_RULES_MAX as u64 }
            }
        })?;
        let mut rules = Vec::with_capacity(all.len());
        for rule in all {
            let refused =
                |why: &dyn ToString| CollectError::Rule { path: rule.path.clone(), why: why.to_string() };
            let anchor = rule.anchor().map_err(|error| refused(&error))?;
            let is_bounded = rule.is_glob() && !rule.path.contains("**");
            rules.push(Rule {
                rule,
                is_plain: !rule.is_glob(),
                anchor: anchor.as_ref().map_or(Path::new(""), RelativePath::as_path).to_owned(),
                depth_max: if is_bounded { rule.path.matches('/').count() } else { usize::MAX },
            });
        }
        Ok(Self { all, rules, matcher })
    }

    /// The positions of the rules that match `path`, in order.
    #[must_use]
    pub fn matching(&self, path: &Path) -> Vec<usize> {
        self.matcher.matching(path)
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
        name_of(self.all, matching)
    }

    /// The first rule that isn't optional and not among those that `matched` says yes for.
    pub(super) fn first_missing(&self, matched: impl Fn(usize) -> bool) -> Option<&'a str> {
        let mut rules = self.rules.iter().enumerate();
        rules
            .find(|(position, rule)| !rule.rule.optional && !matched(*position))
            .map(|(_, rule)| rule.rule.path.as_str())
    }
}
