//! Rules that a text without expressions is held to when the file is checked, and one with them when it is
//! rendered.

use globset::Glob;
use packrun_protocol::path::RelativePath;

use super::problem::excerpt;

/// Longest argument of a command or value of a variable, in bytes. Linux takes at most 128 KiB for one with its
/// variable's name (`MAX_ARG_STRLEN`).
const WORD_BYTES_MAX: usize = 100 << 10;

const VARIABLE_NAME_BYTES_MAX: usize = 255;

/// An artifact's path: inside the workspace, and a glob.
pub(super) fn artifact_path(text: &str) -> Result<(), String> {
    text.parse::<RelativePath>().map_err(|error| error.to_string())?;
    Glob::new(text).map_err(|error| format!("not a glob: {}", error.kind()))?;
    Ok(())
}

/// A path inside the workspace.
pub(super) fn relative_path(text: &str) -> Result<RelativePath, String> {
    text.parse::<RelativePath>().map_err(|error| error.to_string())
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
