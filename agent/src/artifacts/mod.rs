//! Artifacts on the build host: which files an attempt leaves, where its inputs are put, and the cache of
//! contents fetched from the coordinator. Only files are handled here; the link moves the bytes. All
//! functions block on the disk, so async callers run them on a blocking thread.
//!
//! What lies in a workspace was made by a job and is hostile: a workspace is only reached through a
//! [`folder::Folder`], which can't be led out of it by a link, and no link is ever an artifact, not even one
//! to a file inside.

pub mod cache;
pub mod collect;
pub mod folder;
mod hash;
pub mod inputs;
pub mod rules;
