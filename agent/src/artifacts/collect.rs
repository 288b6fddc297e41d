//! Which files an attempt leaves, with their digests: one walk over the part of the workspace that the job's
//! rules can reach.
//!
//! - Only regular files are kept. A link, pipe, socket or device that a plain path names, or leads through,
//!   fails the attempt; one that is merely found below a folder or by a glob is skipped with a note.
//! - A file that several rules match is kept once, under the name of the first of them that has one; it
//!   counts as found for all of them.
//! - Size, mode and digest come from one open file, whose stamp is compared before and after: a file that
//!   changes while it is read is refused. The stamp goes with the file, so that what is sent later is what
//!   was hashed.
//! - At most [`DEPTH_MAX`] descriptors are open at a time.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use packrun_protocol::id::Digest;
use packrun_protocol::job::{ArtifactRule, OWN_FOLDER};
use packrun_protocol::limit;
use packrun_protocol::name::Name;
use packrun_protocol::path::{PathError, RelativePath};
use packrun_protocol::stream::{Content, FileMode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::folder::{Folder, Kind};
use super::hash;
use super::rules::Rules;

/// Most files kept of one attempt.
pub const FILES_MAX: usize = limit::ARTIFACTS_PER_ATTEMPT_MAX;

/// Most names looked at for one attempt: what a walk may cost in memory and time.
pub const ENTRIES_MAX: usize = 2_000_000;

/// Most folders in each other that are walked, one open descriptor each.
pub const DEPTH_MAX: usize = 128;

/// Most notes about what was skipped; the last one counts the rest.
pub const NOTES_MAX: usize = limit::LOG_REMARKS_MAX - 1;

/// Why an attempt's artifacts can't be kept, in words for its reason.
#[derive(Debug, Error)]
pub enum CollectError {
    /// A file was written to, truncated, replaced or removed while it was read.
    #[error("artifact `{path}` changed while it was read; end what writes it before the job ends")]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// There are more files, names, levels or bytes than are kept of one attempt.
    #[error("the job left more than {max} {what}; narrow its artifact rules")]
    Limit {
        /// Of what there are too many.
        what: &'static str,
        /// How many there may be.
        max: u64,
    },
    /// A rule matched nothing and isn't optional.
    #[error("artifact `{path}` was not left by the job{hint}")]
    Missing {
        /// The rule's path.
        path: String,
        /// What was skipped, if anything was.
        hint: String,
    },
    /// A file has a path that packrun can't store.
    #[error("artifact `{path}` can't be kept under its name: {why}")]
    Name {
        /// Which.
        path: PathBuf,
        /// Why.
        why: NameFault,
    },
    /// A plain path names a link, pipe, socket or device, or leads through one.
    #[error("artifact `{path}` can't be kept: `{at}` is {what}, and only regular files are kept")]
    NotAFile {
        /// The rule's path.
        path: String,
        /// Which component of it.
        at: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A file or folder can't be read.
    #[error("can't read `{path}` in the workspace: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A rule is not valid.
    #[error("artifact rule `{path}` is not valid: {why}")]
    Rule {
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The caller wants no result any more.
    #[error("keeping the artifacts was stopped")]
    Stopped,
}

/// What is wrong with the path of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameFault {
    /// It has bytes that are no text.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// It breaks a rule of [`RelativePath`].
    #[error(transparent)]
    Path(#[from] PathError),
}

/// What an attempt leaves.
#[derive(Debug, Default)]
pub struct Collection {
    /// The files, by path.
    pub files: Vec<KeptFile>,
    /// What was skipped and why, a line each, for the job's log.
    pub notes: Vec<String>,
}

/// A file that an attempt leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// The name of its rule, if that has one.
    pub name: Option<Name>,
    /// Where it lies in the workspace.
    pub path: RelativePath,
    /// Its content.
    pub content: Content,
    stamp: Stamp,
}

/// Which file, and which state of it. A change within the granularity of the file system's clock that keeps
/// the size escapes it; the coordinator's check of the digest doesn't let it pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<(Self, FileMode)> {
        let meta = file.metadata()?;
        let stamp = Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        Ok((stamp, FileMode::of(meta.mode())))
    }
}

impl KeptFile {
    /// Opens the file again to send it.
    ///
    /// # Errors
    /// When it can't be opened any more, or isn't in the state it was hashed in.
    pub fn open(&self, workspace: &Folder) -> Result<File, CollectError> {
        let read = |source| CollectError::Read { path: self.path.as_path().to_owned(), source };
        let file = workspace.open_file(&self.path).map_err(read)?;
        if Stamp::of(&file).map_err(read)?.0 == self.stamp {
            Ok(file)
        } else {
            Err(CollectError::Changed { path: self.path.as_path().to_owned() })
        }
    }
}

/// The files in `workspace` that `rules` keep. Blocks for as long as it takes to read them, or until `stop` is
/// set, as when the attempt is canceled meanwhile.
///
/// # Errors
/// When a rule is not valid, one that isn't optional matches nothing, or a file that matches can't be kept; then
/// nothing is.
pub fn collect(
    workspace: &Folder,
    rules: &[ArtifactRule],
    stop: &AtomicBool,
) -> Result<Collection, CollectError> {
    let mut walk = Walk::new(rules, stop)?;
    walk.folder(workspace, Path::new(""), 0)?;
    walk.end()
}

struct Walk<'a> {
    rules: Rules<'a>,
    stop: &'a AtomicBool,
    matched: Vec<bool>,
    collection: Collection,
    skipped: usize,
    entries: usize,
    bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Walk<'a> {
    fn new(rules: &'a [ArtifactRule], stop: &'a AtomicBool) -> Result<Self, CollectError> {
        Ok(Self {
            rules: Rules::compile(rules)?,
            stop,
            matched: vec![false; rules.len()],
            collection: Collection::default(),
            skipped: 0,
            entries: 0,
            bytes: 0,
            buffer: vec![0; hash::BUFFER_BYTES],
        })
    }

    fn folder(&mut self, folder: &Folder, path: &Path, depth: usize) -> Result<(), CollectError> {
        if !self.rules.reach(path, depth) {
            return Ok(());
        }
        if depth > DEPTH_MAX {
            return Err(CollectError::Limit { what: "folders in each other", max: DEPTH_MAX as u64 });
        }
        let names = folder
            .entries(ENTRIES_MAX - self.entries)
            .map_err(|source| CollectError::Read { path: path.to_owned(), source })?
            .ok_or(CollectError::Limit { what: "files and folders", max: ENTRIES_MAX as u64 })?;
        self.entries += names.len();
        for (name, kind) in names {
            if self.stop.load(Ordering::Relaxed) {
                return Err(CollectError::Stopped);
            }
            if depth == 0 && name == OWN_FOLDER {
                continue;
            }
            let path = path.join(&name);
            match kind {
                Kind::File => {
                    let matching = self.rules.matching(&path);
                    if !matching.is_empty() {
                        let file =
                            folder.child_file(&name).map_err(|error| gone_or_unreadable(&path, error))?;
                        self.keep(file, path, &matching)?;
                    }
                }
                Kind::Folder if self.rules.reach(&path, depth + 1) => {
                    let child = folder.child(&name).map_err(|error| gone_or_unreadable(&path, error))?;
                    self.folder(&child, &path, depth + 1)?;
                }
                Kind::Folder => {}
                Kind::Link => self.skip(path, "a symbolic link")?,
                Kind::Special => self.skip(path, "a pipe, socket or device")?,
            }
        }
        Ok(())
    }

    fn keep(&mut self, file: File, path: PathBuf, matching: &[usize]) -> Result<(), CollectError> {
        if self.collection.files.len() == FILES_MAX {
            return Err(CollectError::Limit { what: "files as artifacts", max: FILES_MAX as u64 });
        }
        let relative = path.to_str().ok_or(NameFault::NotUtf8).and_then(|text| Ok(text.parse()?));
        let relative = relative.map_err(|why| CollectError::Name { path: path.clone(), why })?;
        let (content, stamp) = self.read(&file, &path)?;
        for &rule in matching {
            if let Some(matched) = self.matched.get_mut(rule) {
                *matched = true;
            }
        }
        let name = self.rules.name(matching).cloned();
        self.collection.files.push(KeptFile { name, path: relative, content, stamp });
        Ok(())
    }

    fn read(&mut self, file: &File, path: &Path) -> Result<(Content, Stamp), CollectError> {
        let failed = |source| CollectError::Read { path: path.to_owned(), source };
        let (stamp, mode) = Stamp::of(file).map_err(failed)?;
        self.bytes = self.bytes.saturating_add(stamp.size);
        if self.bytes > limit::ARTIFACT_BYTES_MAX {
            return Err(CollectError::Limit { what: "bytes as artifacts", max: limit::ARTIFACT_BYTES_MAX });
        }
        let mut hasher = Sha256::new();
        let mut source = Stoppable { file, stop: self.stop };
        let size = hash::feed(&mut hasher, &mut source, stamp.size, &mut self.buffer).map_err(failed)?;
        if self.stop.load(Ordering::Relaxed) {
            return Err(CollectError::Stopped);
        }
        if size != stamp.size || Stamp::of(file).map_err(failed)?.0 != stamp {
            return Err(CollectError::Changed { path: path.to_owned() });
        }
        let digest = Digest::from_bytes(hasher.finalize().into());
        Ok((Content { digest, size, mode }, stamp))
    }

    fn skip(&mut self, path: PathBuf, what: &'static str) -> Result<(), CollectError> {
        if let Some(rule) = self.rules.plain_through(&path) {
            return Err(CollectError::NotAFile { path: rule.to_owned(), at: path, what });
        }
        if self.rules.matching(&path).is_empty() {
            return Ok(());
        }
        self.skipped += 1;
        if self.collection.notes.len() < NOTES_MAX {
            self.collection.notes.push(format!("artifacts: `{}` is {what} and was skipped", path.display()));
        }
        Ok(())
    }

    fn end(mut self) -> Result<Collection, CollectError> {
        let notes = &mut self.collection.notes;
        let matched = |rule: usize| self.matched.get(rule).is_some_and(|matched| *matched);
        if let Some(path) = self.rules.first_missing(matched) {
            let hint = notes.first().map_or_else(String::new, |note| format!(" ({note})"));
            return Err(CollectError::Missing { path: path.to_owned(), hint });
        }
        if self.skipped > notes.len() {
            notes.push(format!("artifacts: {} more were skipped", self.skipped - notes.len()));
        }
        self.collection.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(self.collection)
    }
}

/// A file that ends early once it is to be stopped.
struct Stoppable<'a> {
    file: &'a File,
    stop: &'a AtomicBool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) { Ok(0) } else { self.file.read(buffer) }
    }
}

/// What was listed and can't be opened any more as what it was is a change; anything else a failure to read.
fn gone_or_unreadable(path: &Path, source: io::Error) -> CollectError {
    let is_gone = matches!(
        Errno::from_io_error(&source),
        Some(Errno::ISDIR | Errno::LOOP | Errno::NOENT | Errno::NOTDIR | Errno::NXIO)
    );
    if is_gone || source.kind() == io::ErrorKind::InvalidInput {
        CollectError::Changed { path: path.to_owned() }
    } else {
        CollectError::Read { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
