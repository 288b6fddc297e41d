//! How the process ends: what went wrong, the way out of it, and the exit code. This is the one place that knows
//! the codes.

use std::fmt;
use std::io;

use packrun_protocol::state::PackRunState;
use thiserror::Error;

/// How a command that did what it was asked to ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for a command that waits for a pack run, it completed.
    Done,
    /// The pack run that was waited for ended as `partially_failed` or `failed`.
    RunFailed,
    /// The pack run that was waited for was canceled.
    RunCanceled,
}

impl Exit {
    /// How a command ends that waited for a pack run in this state.
    #[must_use]
    pub const fn of_run(state: PackRunState) -> Self {
        match state {
            PackRunState::PartiallyFailed | PackRunState::Failed => Self::RunFailed,
            PackRunState::Canceled => Self::RunCanceled,
            PackRunState::Pending | PackRunState::Running | PackRunState::Completed => Self::Done,
        }
    }
}

/// The class of an error, which decides on the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The coordinator or an agent of this process could not start or go on.
    Failed,
    /// Its terminal was closed: SIGHUP.
    HungUp,
    /// Somebody pressed Ctrl-C.
    Interrupted,
    /// Wrong arguments, settings or files, or a request that the coordinator refused for what it says.
    Invalid,
    /// The coordinator does not let this token do it.
    NotAllowed,
    /// Whoever read the output is gone.
    OutputClosed,
    /// It was told to end: SIGTERM.
    Terminated,
    /// The coordinator can't be reached, fails, or answers with what is no answer.
    Unreachable,
}

/// The exit code of an ended command.
#[must_use]
pub fn code(result: &Result<Exit, Error>) -> u8 {
    match result {
        Ok(Exit::Done) => 0,
        Ok(Exit::RunFailed) => 1,
        Ok(Exit::RunCanceled) => 3,
        Err(error) => match error.kind {
            Kind::Failed => 1,
            Kind::Invalid => 2,
            Kind::NotAllowed | Kind::Unreachable => 4,
            // As shells report an end by SIGHUP, SIGINT, SIGPIPE and SIGTERM.
            Kind::HungUp => 129,
            Kind::Interrupted => 130,
            Kind::OutputClosed => 141,
            Kind::Terminated => 143,
        },
    }
}

/// Why a command could not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Error {
    /// Its class.
    pub kind: Kind,
    /// What failed, and on what; may have several lines.
    pub message: String,
    /// What to do, a line each.
    pub hints: Vec<String>,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: Vec::new() }
    }

    /// Wrong arguments, settings, files or requests.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// The coordinator is out of reach, or what it answers is of no use.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    /// The error with one more thing to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

/// `error: …`, and a line `hint: …` for each hint.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        self.hints.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

/// An error of writing the output.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::BrokenPipe => Kind::OutputClosed,
            _ => Kind::Invalid,
        };
        Self::new(kind, format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_the_code_of_the_contract() {
        let runs = [
            (PackRunState::Completed, 0),
            (PackRunState::PartiallyFailed, 1),
            (PackRunState::Failed, 1),
            (PackRunState::Canceled, 3),
        ];
        for (state, expected) in runs {
            assert_eq!(code(&Ok(Exit::of_run(state))), expected, "{state}");
        }
        let kinds = [
            (Kind::Failed, 1),
            (Kind::Invalid, 2),
            (Kind::NotAllowed, 4),
            (Kind::Unreachable, 4),
            (Kind::HungUp, 129),
            (Kind::Interrupted, 130),
            (Kind::OutputClosed, 141),
            (Kind::Terminated, 143),
        ];
        for (kind, expected) in kinds {
            assert_eq!(code(&Err(Error::new(kind, "x"))), expected, "{kind:?}");
        }
    }

    #[test]
    fn an_error_names_the_way_out_on_lines_of_their_own() {
        let error = Error::invalid("no pack run `ab`").hint("see `packrun runs list`");
        assert_eq!(error.to_string(), "error: no pack run `ab`\nhint: see `packrun runs list`");
        let closed = Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(closed.kind, Kind::OutputClosed);
    }
}
