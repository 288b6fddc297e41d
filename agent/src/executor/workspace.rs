//! An attempt's folder and environment: a fresh folder with `.packrun` in it, and no variable but those said here.
//! Removal never follows a link out of the folder and gets through folders that the job made read-only.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use packrun_protocol::job::OWN_FOLDER;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use super::StartOrder;
use super::spawn::{SpawnError, c_string};

/// The variable that marks the processes of an attempt: no two attempts have the same workspace.
pub(super) const MARKER: &str = "PACKRUN_WORKSPACE";

/// Where a `PATH` comes from when the agent has none.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the agent adds to the environment of every attempt.
#[derive(Debug, Clone)]
pub struct HostEnvironment {
    /// `PATH`, when the job sets none.
    pub path: String,
    /// `LANG`, if set.
    pub lang: Option<String>,
    /// `TZ`, if set.
    pub tz: Option<String>,
}

impl HostEnvironment {
    /// The agent's own `PATH`, `LANG` and `TZ`.
    #[must_use]
    pub fn inherited() -> Self {
        let variable = |name| std::env::var(name).ok();
        let path = variable("PATH").unwrap_or_else(|| PATH_DEFAULT.to_owned());
        Self { path, lang: variable("LANG"), tz: variable("TZ") }
    }
}

/// One attempt's folder.
#[derive(Debug)]
pub(super) struct Workspace {
    path: PathBuf,
}

/// An attempt's whole environment.
#[derive(Debug)]
pub(super) struct Environment {
    /// As `NAME=value`.
    pub(super) variables: Vec<CString>,
    /// Its `PATH`.
    pub(super) path: String,
}

impl Workspace {
    /// Makes the folder `name` in `parent`. One of that name, left by an earlier life of this process, goes first.
    ///
    /// # Errors
    /// When it can't be made.
    pub(super) fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let path = parent.join(name);
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o755);
        match builder.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove_tree(&path)?;
                builder.create(&path)?;
            }
            result => result?,
        }
        builder.mode(0o700).create(path.join(OWN_FOLDER))?;
        Ok(Self { path })
    }

    /// The folder.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Packrun's own folder in it: `HOME`, `TMPDIR`, a long script.
    #[must_use]
    pub(super) fn private(&self) -> PathBuf {
        self.path.join(OWN_FOLDER)
    }

    /// Removes the folder if nothing is in it, which costs two system calls; says whether it is gone.
    #[must_use]
    pub(super) fn remove_if_empty(&self) -> bool {
        fs::remove_dir(self.private()).is_ok() && fs::remove_dir(&self.path).is_ok()
    }

    /// The environment of `order` in this folder. What the job sets may override all but the variables that say
    /// where and as what it runs.
    ///
    /// # Errors
    /// When a variable has a NUL byte in it, or a name that none can have.
    pub(super) fn environment(
        &self,
        order: &StartOrder,
        host: &HostEnvironment,
    ) -> Result<Environment, SpawnError> {
        let private = self.private().to_string_lossy().into_owned();
        let workspace = self.path.to_string_lossy().into_owned();
        let mut variables =
            BTreeMap::from([("HOME", private.clone()), ("TMPDIR", private), ("PATH", host.path.clone())]);
        variables.insert("TRACEPARENT", order.attempt.traceparent(order.run));
        variables.extend(host.lang.iter().map(|lang| ("LANG", lang.clone())));
        variables.extend(host.tz.iter().map(|tz| ("TZ", tz.clone())));
        variables.extend(order.definition.env.iter().map(|(name, value)| (name.as_str(), value.clone())));
        variables.extend([
            ("CI", "true".to_owned()),
            ("PACKRUN", "true".to_owned()),
            ("PACKRUN_PACK", order.pack.to_string()),
            ("PACKRUN_VERSION", order.version.to_string()),
            ("PACKRUN_RUN_ID", order.run.to_string()),
            ("PACKRUN_RUN_URL", format!("{}/v1/pack-runs/{}", order.api, order.run)),
            ("PACKRUN_JOB", order.key.to_string()),
            ("PACKRUN_ATTEMPT", order.attempt.number.to_string()),
            ("PACKRUN_AGENT", order.agent.to_string()),
            (MARKER, workspace),
        ]);
        variables.remove("PACKRUN_TIMEOUT");
        let timeout = order.definition.timeout.map(|timeout| timeout.as_secs_f64().to_string());
        variables.extend(timeout.map(|timeout| ("PACKRUN_TIMEOUT", timeout)));
        let path = variables.get("PATH").cloned().unwrap_or_default();
        let variables = variables
            .into_iter()
            .map(|(name, value)| {
                if name.is_empty() || name.contains('=') {
                    return Err(SpawnError::Name { name: name.to_owned() });
                }
                c_string(format!("{name}={value}").into_bytes(), &format!("the variable `{name}`"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Environment { variables, path })
    }
}

/// Removes `path` and all below it, on the same terms as [`Workspace`]; a file or nothing there is fine.
///
/// # Errors
/// When something can't be removed: the rest may be gone.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(CWD, path)?;
            fs::remove_dir_all(path)
        }
        result => result,
    }
}

/// Gives the owner all rights to the folder `name` and those below it, without following a link.
fn make_writable(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    // A handle without rights can't be changed itself, but through its link in /proc.
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    rustix::fs::chmodat(CWD, link, Mode::RWXU, AtFlags::empty())?;
    let folder: OwnedFd = rustix::fs::openat(&handle, ".", flags | OFlags::RDONLY, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            make_writable(folder.as_fd(), name)?;
        }
    }
    Ok(())
}
