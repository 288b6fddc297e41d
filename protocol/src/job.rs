//! What an attempt has to do, rendered: no expression is left in it. Made when a pack run is created, kept
//! with its plan, and carried to the agent in the assignment.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::name::{Labels, Name};
use crate::path::{PathError, RelativePath};
use crate::{lean, limit};

/// The folder in a workspace that belongs to packrun (the job's `HOME` and `TMPDIR`): never an artifact,
/// never where an input is put.
pub const OWN_FOLDER: &str = ".packrun";

/// Whether `path` is packrun's own folder or lies in it.
#[must_use]
pub fn is_own(path: &RelativePath) -> bool {
    path.as_path().starts_with(OWN_FOLDER)
}

/// What an attempt executes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A script for `sh -eu`.
    Script(#[serde(deserialize_with = "lean::text")] String),
    /// A program and its arguments, at least one.
    Command(#[serde(deserialize_with = "lean::texts")] Vec<String>),
}

/// What a job run wants of its agent: the scheduler keeps one queue for each distinct requirement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Requirement {
    /// The agent must have all of these.
    pub labels: Labels,
    /// Thousandths of a processor, taken from the agent's while the attempt is there; 0 takes none.
    pub cpu_millis: u32,
    /// Bytes of memory, taken likewise.
    pub memory_bytes: u64,
}

/// Files to keep of an attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRule {
    /// A path inside the workspace: that file, or all files below that folder. Or a glob, which matches
    /// files: `*`, `?` and `[…]` stay within a component, `**` crosses folders, `{a,b}` is either, `\` takes
    /// the next as it is.
    #[serde(deserialize_with = "lean::text")]
    pub path: String,
    /// What the artifact is called for those who take it as an input; without one, by its path.
    pub name: Option<Name>,
    /// Whether it is fine when nothing matches.
    pub optional: bool,
}

/// What makes a rule's path a glob. A backslash is among them: in a glob it takes the next one literally.
const GLOB_CHARACTERS: [char; 5] = ['*', '?', '[', '{', '\\'];

/// Whether a rule's path is a glob rather than the path of one file or folder.
#[must_use]
pub fn is_glob(path: &str) -> bool {
    path.contains(GLOB_CHARACTERS)
}

/// Most `{` in a glob. Alternates lie in each other, and what compiles a glob bounds their depth.
const ALTERNATES_MAX: usize = 64;

/// Why an artifact rule keeps nothing, whatever a job leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RuleError {
    /// The glob has too many alternates.
    #[error("a glob takes at most {ALTERNATES_MAX} `{{`")]
    Alternates,
    /// The glob has a control character, NUL among them.
    #[error("an artifact's path may not contain control characters")]
    Character,
    /// The path lies in packrun's own folder.
    #[error("`{OWN_FOLDER}` belongs to packrun and is never an artifact")]
    OwnFolder,
    /// It is no path inside a workspace.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl ArtifactRule {
    /// Checks the path, but for the syntax of a glob, which whoever compiles it knows. A pack is held to this
    /// before it is accepted and a job's rules are before its files are looked for, so that no rule fails only
    /// once the work is done.
    ///
    /// # Errors
    /// When no path in a workspace can match it.
    pub fn check(&self) -> Result<(), RuleError> {
        self.anchor()?;
        if self.path.len() > limit::PATH_BYTES_MAX {
            return Err(PathError::TooLong.into());
        }
        if self.path.contains(char::is_control) {
            return Err(RuleError::Character);
        }
        let mut components = self.path.split('/').peekable();
        if components.peek() == Some(&OWN_FOLDER) {
            return Err(RuleError::OwnFolder);
        }
        if components.any(|component| matches!(component, "" | "." | "..")) {
            return Err(PathError::Component.into());
        }
        if self.path.matches('{').count() > ALTERNATES_MAX {
            return Err(RuleError::Alternates);
        }
        Ok(())
    }

    /// Whether the path is a glob rather than the path of one file or folder.
    #[must_use]
    pub fn is_glob(&self) -> bool {
        is_glob(&self.path)
    }

    /// What the rule is anchored to: a plain path itself, of a glob the folders before its first component
    /// with a glob character. Every file that the rule matches is this path or lies below it; `None` is the
    /// workspace.
    ///
    /// # Errors
    /// When the path is no path inside a workspace.
    pub fn anchor(&self) -> Result<Option<RelativePath>, PathError> {
        let Some(first) = self.path.find(GLOB_CHARACTERS) else { return self.path.parse().map(Some) };
        match self.path.get(..first).and_then(|literal| literal.rsplit_once('/')) {
            Some((folder, _)) => folder.parse().map(Some),
            None => Ok(None),
        }
    }
}

/// An artifact of another job run that an attempt finds in its workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRule {
    /// The job whose artifact it is: one that this one needs.
    pub from: Name,
    /// The artifact's name, its path, or a folder it lies in.
    #[serde(deserialize_with = "lean::text")]
    pub artifact: String,
    /// Where it is put; without one, at the path it had.
    pub to: Option<RelativePath>,
    /// Whether it is fine when it was not left.
    pub optional: bool,
}

impl InputRule {
    /// Where a file that the other job run left goes in the workspace, or `None` when this input doesn't take
    /// it. `left` are that job's rules, `name` and `file` the name of the rule that kept the file, and its
    /// path.
    ///
    /// When a rule of `left` has the input's text as its name, the input takes that rule's files; otherwise
    /// the text is a path, and it takes that file, or all files in that folder. With `to`, the file at the
    /// path that was named is put at `to`, and a file below the folder that was named keeps the rest of its
    /// path below `to`; for a rule with a glob, that folder is the rule's [anchor](ArtifactRule::anchor). So
    /// where a file goes never depends on how many others there are. Without `to`, it goes to the path it
    /// had.
    ///
    /// # Errors
    /// When the path it should go to is too long.
    pub fn destination(
        &self,
        left: &[ArtifactRule],
        name: Option<&Name>,
        file: &RelativePath,
    ) -> Result<Option<RelativePath>, PathError> {
        let is_named = |rule: &&ArtifactRule| rule.name.as_ref().is_some_and(|n| n.as_str() == self.artifact);
        let rest = if left.iter().any(|rule| is_named(&rule)) {
            if name.is_none_or(|name| name.as_str() != self.artifact) {
                return Ok(None);
            }
            let anchors = left.iter().filter(is_named).filter_map(|rule| rule.anchor().ok());
            anchors.filter_map(|anchor| below(file, anchor.as_ref().map_or("", RelativePath::as_str))).next()
        } else {
            self.artifact.parse::<RelativePath>().ok().and_then(|named| below(file, named.as_str()))
        };
        match (rest, &self.to) {
            (None, _) => Ok(None),
            (Some(_), None) => Ok(Some(file.clone())),
            (Some(""), Some(to)) => Ok(Some(to.clone())),
            (Some(rest), Some(to)) => to.join(&rest.parse()?).map(Some),
        }
    }
}

/// The part of `file` below `folder`, empty when they are one; `None` when it isn't there.
fn below<'a>(file: &'a RelativePath, folder: &str) -> Option<&'a str> {
    let rest = file.as_str().strip_prefix(folder)?;
    if folder.is_empty() || rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

/// One job run's work, at most [`crate::limit::JOB_DEFINITION_BYTES_MAX`] encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What to execute.
    pub action: Action,
    /// The pack's and the job's environment and the parameters, in the order they are set.
    #[serde(deserialize_with = "lean::pairs")]
    pub env: Vec<(String, String)>,
    /// The folder inside the workspace to start in; without one, the workspace.
    pub workdir: Option<RelativePath>,
    /// How long the main process may run.
    pub timeout: Option<Duration>,
    /// What to keep.
    #[serde(deserialize_with = "lean::list")]
    pub artifacts: Vec<ArtifactRule>,
    /// What to fetch before the start.
    #[serde(deserialize_with = "lean::list")]
    pub inputs: Vec<InputRule>,
    /// Most bytes of the attempt's log, as [`Block::log_bytes`](crate::block::Block::log_bytes) counts them, at most
    /// [`limit::LOG_BYTES_MAX`]. What the job writes beyond it is counted and not kept.
    pub log_bytes_max: u64,
}

/// Why a definition can't be carried out, whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DefinitionError {
    /// It is too large.
    #[error("the job's definition has {0} bytes, over the limit of {max}", max = limit::JOB_DEFINITION_BYTES_MAX)]
    Bytes(usize),
    /// It has too many artifact rules.
    #[error("the job has {0} artifact rules, over the limit of {max}", max = limit::ARTIFACT_RULES_MAX)]
    Rules(usize),
}

impl Definition {
    /// Checks it against the limits that a pack's jobs are held to.
    ///
    /// # Errors
    /// When it is over one of them.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let action = match &self.action {
            Action::Script(script) => script.len(),
            Action::Command(command) => command.iter().map(String::len).sum(),
        };
        let env: usize = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        let artifacts: usize = self.artifacts.iter().map(|rule| rule.path.len()).sum();
        let inputs: usize = self.inputs.iter().map(|rule| rule.artifact.len()).sum();
        // The encoding adds to this, so nothing is refused that was within the limit encoded.
        match action + env + artifacts + inputs {
            bytes if bytes > limit::JOB_DEFINITION_BYTES_MAX => Err(DefinitionError::Bytes(bytes)),
            _ if self.artifacts.len() > limit::ARTIFACT_RULES_MAX => {
                Err(DefinitionError::Rules(self.artifacts.len()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(path: &str, name: Option<&str>) -> ArtifactRule {
        ArtifactRule { path: path.into(), name: name.map(|n| n.parse().unwrap()), optional: false }
    }

    /// Where the file at `path`, kept by a rule called `name`, goes for an input of `artifact`.
    fn goes(
        artifact: &str,
        to: Option<&str>,
        left: &[ArtifactRule],
        name: Option<&str>,
        path: &str,
    ) -> String {
        let input = InputRule {
            from: "compile".parse().unwrap(),
            artifact: artifact.into(),
            to: to.map(|to| to.parse().unwrap()),
            optional: false,
        };
        let name: Option<Name> = name.map(|n| n.parse().unwrap());
        match input.destination(left, name.as_ref(), &path.parse().unwrap()) {
            Ok(to) => to.map_or("not taken".into(), |to| to.to_string()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_rule_is_anchored_at_the_folder_before_its_first_glob_character() {
        for (path, anchor) in [
            ("target/release/app", Some("target/release/app")),
            ("reports/**/*.xml", Some("reports")),
            ("a/b*/c", Some("a")),
            ("a/b/{c/d,e}", Some("a/b")),
            (r"a/\[id]/b", Some("a")),
            ("*.log", None),
            ("**", None),
        ] {
            let got = artifact(path, None).anchor().unwrap();
            assert_eq!(got.as_ref().map(RelativePath::as_str), anchor, "{path}");
        }
        for path in ["", "/etc/*", "../*", "a/../*", "./*", "a//*", "../a", "/a", "a\0b"] {
            assert!(artifact(path, None).anchor().is_err(), "{path}");
        }
    }

    #[test]
    fn a_rule_that_no_path_in_a_workspace_can_match_is_refused() {
        let check = |path: &str| artifact(path, None).check();
        for path in
            ["a", "a}b", "a/*", "**", r"a\*", ".packrun2/a", "a/.packrun/b", "{.packrun,x}/*", "{a,b}"]
        {
            assert_eq!(check(path), Ok(()), "{path}");
        }
        for path in [".packrun", ".packrun/x", ".packrun/**"] {
            assert_eq!(check(path), Err(RuleError::OwnFolder), "{path}");
        }
        for path in ["./x", "x/", "..", "*/..", "*/./a", "*//a", "*/"] {
            assert_eq!(check(path), Err(PathError::Component.into()), "{path}");
        }
        assert_eq!(check("*\0"), Err(RuleError::Character));
        assert_eq!(check("/*/a"), Err(PathError::Empty.into()));
        assert_eq!(check(&"*".repeat(1025)), Err(PathError::TooLong.into()));
        assert_eq!(check(&format!("{}a{}", "{".repeat(65), "}".repeat(65))), Err(RuleError::Alternates));
    }

    #[test]
    fn an_input_with_a_path_takes_that_file_or_what_is_in_that_folder_and_nothing_beside_it() {
        assert_eq!(goes("bin/app", None, &[], None, "bin/app"), "bin/app");
        assert_eq!(goes("bin/app", Some("app"), &[], None, "bin/app"), "app");
        assert_eq!(goes("bin/app", Some("app"), &[], None, "bin/app2"), "not taken");
        assert_eq!(goes("", Some("all"), &[], None, "bin/app"), "not taken");
        assert_eq!(goes("bin", None, &[], None, "bin/x/app"), "bin/x/app");
        assert_eq!(goes("bin", Some("tools"), &[], None, "bin/x/app"), "tools/x/app");
        assert_eq!(goes("bin", Some("tools"), &[], None, "binary/app"), "not taken");
        assert_eq!(goes("bin", Some("tools"), &[], Some("bin-files"), "bin/app"), "tools/app");
    }

    #[test]
    fn an_input_with_a_name_puts_files_below_the_anchor_of_their_rule_however_many_there_are() {
        let left = [
            artifact("bin/app", Some("app")),
            artifact("reports/**/*.xml", Some("reports")),
            artifact("more/*.xml", Some("reports")),
            artifact("*.log", Some("logs")),
        ];
        assert_eq!(goes("app", Some("tools/app"), &left, Some("app"), "bin/app"), "tools/app");
        assert_eq!(goes("app", None, &left, Some("app"), "bin/app"), "bin/app");
        assert_eq!(goes("reports", Some("in"), &left, Some("reports"), "reports/a/b.xml"), "in/a/b.xml");
        assert_eq!(goes("reports", Some("in"), &left, Some("reports"), "more/c.xml"), "in/c.xml");
        assert_eq!(goes("reports", Some("in"), &left, None, "reports/other.txt"), "not taken");
        assert_eq!(goes("logs", Some("in"), &left, Some("logs"), "build.log"), "in/build.log");
    }

    #[test]
    fn a_destination_over_the_path_limit_is_an_error() {
        let (long, to) = (["b"; 400].join("/"), ["t"; 200].join("/"));
        let words = goes("a", Some(&to), &[], None, &format!("a/{long}"));
        assert!(words.contains("1024"), "{words}");
    }
}
