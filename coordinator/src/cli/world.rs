//! What a command may touch of the process it runs in. Nothing else here reads the environment, the clock or a
//! terminal, so a test can run a whole command within itself.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use packrun_protocol::time::{Clock, Timestamp};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a pack run may be silent until people are told what it waits for.
const LULL: Duration = Duration::from_secs(5);

/// The surroundings of one invocation.
#[derive(Debug)]
pub struct World<'w> {
    /// The environment's variables, those that are UTF-8.
    pub variables: BTreeMap<String, String>,
    /// Where a coordinator of this host may have its data, most likely first.
    pub data_folders: Vec<PathBuf>,
    /// The standard output.
    pub out: Screen<'w>,
    /// The standard error.
    pub err: Screen<'w>,
    /// When the command was started.
    pub now: Timestamp,
    /// What ends a command that follows something.
    pub interrupt: Interrupt,
    /// How long nothing happens until it is asked why.
    pub lull: Duration,
}

/// What ends a command that follows something.
#[derive(Debug, Clone)]
pub enum Interrupt {
    /// SIGINT. It is caught only while somebody waits for it.
    Signal,
    /// A token, in tests.
    Token(CancellationToken),
    /// Nothing: who called takes the signals.
    Taken,
}

/// A signal that ends a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGHUP: its terminal is gone.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// The signals that end a process, caught from now on.
#[derive(Debug)]
pub struct Endings {
    caught: Option<[Signal; 3]>,
    interrupt: Interrupt,
}

impl Interrupt {
    /// Returns when the command shall end.
    pub async fn wait(&self) {
        match self {
            Self::Signal => {
                if tokio::signal::ctrl_c().await.is_err() {
                    std::future::pending().await
                }
            }
            Self::Token(token) => token.cancelled().await,
            Self::Taken => std::future::pending().await,
        }
    }

    /// Catches SIGHUP, SIGINT and SIGTERM from now on; in place of this, nothing ends the command any more.
    ///
    /// # Errors
    /// When the system doesn't let it.
    pub fn take(&mut self) -> io::Result<Endings> {
        let caught = match self {
            Self::Signal => Some([
                signal(SignalKind::hangup())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            ]),
            Self::Token(_) | Self::Taken => None,
        };
        Ok(Endings { caught, interrupt: std::mem::replace(self, Self::Taken) })
    }
}

impl Endings {
    /// The next signal.
    pub async fn next(&mut self) -> Ending {
        match &mut self.caught {
            Some([hangup, interrupt, terminate]) => tokio::select! {
                _ = hangup.recv() => Ending::Hangup,
                _ = interrupt.recv() => Ending::Interrupt,
                _ = terminate.recv() => Ending::Terminate,
            },
            None => {
                self.interrupt.wait().await;
                // The token stays canceled; one cancellation is one signal.
                self.interrupt = Interrupt::Taken;
                Ending::Interrupt
            }
        }
    }
}

/// A stream that people may look at.
pub struct Screen<'w> {
    /// What takes the text.
    pub writer: &'w mut dyn Write,
    /// Whether it is a terminal.
    pub terminal: bool,
    /// Whether colours are wanted.
    pub color: bool,
}

impl fmt::Debug for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").field("terminal", &self.terminal).field("color", &self.color).finish()
    }
}

impl Screen<'_> {
    /// Writes `text` and a newline, and sees that it gets out.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn line(&mut self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(self.writer, "{text}")?;
        self.writer.flush()
    }

    /// Writes `text` as it is, and sees that it gets out.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn raw(&mut self, text: &[u8]) -> io::Result<()> {
        self.writer.write_all(text)?;
        self.writer.flush()
    }
}

impl<'w> World<'w> {
    /// The surroundings of this process, with its standard streams.
    #[must_use]
    pub fn of_process(out: &'w mut io::Stdout, err: &'w mut io::Stderr) -> Self {
        let utf8 = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        let variables: BTreeMap<_, _> = std::env::vars_os().filter_map(utf8).collect();
        let plain = variables.get("NO_COLOR").is_some_and(|value| !value.is_empty());
        let (out_terminal, err_terminal) = (out.is_terminal(), err.is_terminal());
        Self {
            data_folders: data_folders(&variables),
            out: Screen { writer: out, terminal: out_terminal, color: out_terminal && !plain },
            err: Screen { writer: err, terminal: err_terminal, color: err_terminal && !plain },
            variables,
            now: Clock::start().now(),
            interrupt: Interrupt::Signal,
            lull: LULL,
        }
    }

    /// A variable of this process that is meant for packrun and is left out of `variables`.
    #[must_use]
    pub fn unreadable_variable() -> Option<String> {
        let mut variables = std::env::vars_os().filter(|(_, value)| value.to_str().is_none());
        variables.find_map(|(name, _)| name.into_string().ok().filter(|name| name.starts_with("PACKRUN_")))
    }

    /// The value of a variable, unless it is empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// Where `serve` keeps its data unless it was told otherwise.
fn data_folders(variables: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let variable = |name: &str| variables.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let told = variable("PACKRUN_DATA_DIR");
    let user = variable("XDG_DATA_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| Some(variable("HOME")?.join(".local/share")))
        .map(|data| data.join("packrun"));
    match told {
        Some(told) => vec![told],
        None => [PathBuf::from("/var/lib/packrun")].into_iter().chain(user).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinators_data_is_looked_for_where_serve_puts_it() {
        let variables = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let system = PathBuf::from("/var/lib/packrun");
        assert_eq!(data_folders(&variables(&[])), std::slice::from_ref(&system));
        assert_eq!(
            data_folders(&variables(&[("HOME", "/home/ann"), ("XDG_DATA_HOME", "relative")])),
            [system.clone(), "/home/ann/.local/share/packrun".into()]
        );
        assert_eq!(
            data_folders(&variables(&[("PACKRUN_DATA_DIR", "/d"), ("XDG_DATA_HOME", "/x")])),
            [PathBuf::from("/d")],
            "where it was told, and nowhere else"
        );
    }
}
