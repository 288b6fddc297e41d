//! Rules that a text without expressions is held to when the file is checked, and one with them when it is
//! rendered.

use std::collections::HashSet;

use packrun_protocol::job::{ArtifactRule, OWN_FOLDER, is_glob, is_own};
use packrun_protocol::matcher::check_glob;
use packrun_protocol::name::Name;
use packrun_protocol::path::RelativePath;

use super::problem::excerpt;

/// Longest argument of a command or value of a variable, in bytes. Linux takes at most 128 KiB for one with its
/// variable's name (`MAX_ARG_STRLEN`).
const WORD_BYTES_MAX: usize = 100 << 10;

const VARIABLE_NAME_BYTES_MAX: usize = 255;

/// An artifact's path, as the agent takes it.
pub(super) fn artifact_path(text: &str) -> Result<(), String> {
    let rule = ArtifactRule { path: text.to_owned(), name: None, optional: false };
    rule.check().map_err(|error| error.to_string())?;
    if rule.is_glob() {
        check_glob(text).map_err(|why| format!("not a glob: {why}"))?;
    }
    Ok(())
}

/// The globs by which jobs keep artifacts, each with its job.
pub(super) struct Globs<'a>(HashSet<(&'a Name, &'a str)>);

impl<'a> Globs<'a> {
    /// The globs among the paths of artifacts.
    pub(super) fn new(paths: impl IntoIterator<Item = (&'a Name, &'a str)>) -> Self {
        Self(paths.into_iter().filter(|(_, path)| is_glob(path)).collect())
    }

    /// What an input takes of a job is a name or a path: that of a glob would be the path of a file, which the
    /// glob's files don't have.
    pub(super) fn check_input(&self, from: &Name, artifact: &str) -> Result<(), String> {
        if !self.0.contains(&(from, artifact)) {
            return Ok(());
        }
        let shown = excerpt(artifact);
        Err(format!(
            "an input can't take the glob `{shown}`: give that artifact a `name`, and take it by that"
        ))
    }
}

/// A path that an input is taken from or put at.
pub(super) fn input_path(text: &str) -> Result<RelativePath, String> {
    let path = relative_path(text)?;
    if is_own(&path) {
        return Err(format!("`{OWN_FOLDER}` belongs to packrun: nothing is taken from it or put there"));
    }
    Ok(path)
}

/// A path inside the workspace.
pub(super) fn relative_path(text: &str) -> Result<RelativePath, String> {
    text.parse::<RelativePath>().map_err(|error| error.to_string())
}

/// A script that does something.
pub(super) fn script(text: &str) -> Result<(), &'static str> {
    if text.trim().is_empty() { Err("a script may not be empty") } else { Ok(()) }
}

/// The first word of a command.
pub(super) fn program(text: &str) -> Result<(), &'static str> {
    if text.is_empty() { Err("a command has to start with a program") } else { Ok(()) }
}

/// The name of an artifact of a job whose other names so far are `seen`.
pub(super) fn distinct_name(seen: &mut HashSet<String>, name: &str) -> Result<(), String> {
    if seen.insert(name.to_owned()) {
        return Ok(());
    }
    Err(format!("duplicate artifact name `{}`", excerpt(name)))
}

/// A text that a process can be given as an argument or a variable.
pub(super) fn word(text: &str) -> Result<(), String> {
    if text.len() <= WORD_BYTES_MAX {
        return Ok(());
    }
    Err(format!("an argument or variable takes at most {WORD_BYTES_MAX} bytes"))
}

/// The name of a variable that a pack may set.
pub(super) fn variable_name(text: &str) -> Result<(), String> {
    let shown = excerpt(text);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if text.is_empty() || text.as_bytes().first().is_some_and(u8::is_ascii_digit) || !text.bytes().all(plain)
    {
        return Err(format!(
            "`{shown}` is not a variable's name: it takes A-Z, a-z, 0-9 and `_`, the first no digit"
        ));
    }
    if text.len() > VARIABLE_NAME_BYTES_MAX {
        return Err(format!("a variable's name takes at most {VARIABLE_NAME_BYTES_MAX} bytes"));
    }
    if text.starts_with("PACKRUN_") || text == "PACKRUN" {
        return Err(format!("`{shown}`: variables that start with `PACKRUN` are set by packrun itself"));
    }
    Ok(())
}
