//! Getting one file: what comes is hashed as it is written, a lost connection goes on where it broke off, and the
//! file is put in its place only when it is what was announced.

use std::io::{Read, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use packrun_protocol::id::{Digest, PackRunId};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use sha2::{Digest as _, Sha256};

use crate::api::types::Artifact;
use crate::cli::client::{Client, Failure, Refusal, cause};
use crate::cli::exit::Error;
use crate::cli::folder::{Folder, Partial};
use crate::cli::world::World;

/// How often a lost connection is made again without a byte having come in between.
const TRIES: u32 = 5;

const PAUSE: Duration = Duration::from_millis(200);

/// A bar for so many bytes, which is drawn on a terminal only.
pub(super) fn progress(world: &World<'_>, bytes: u64) -> ProgressBar {
    let target = if world.err.terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(bytes), target).with_style(style)
}

/// Gets a file into a folder, unless it is there already with the same content.
pub(super) async fn file(
    client: &Client,
    run: PackRunId,
    artifact: &Artifact,
    folder: &Folder,
    progress: &ProgressBar,
) -> Result<(), Error> {
    let named = format!("{}/{}", artifact.key, artifact.path);
    let mode = u32::from_str_radix(&artifact.mode, 8).map_err(|_| {
        Error::unreachable(format!(
            "{named} has permissions that are none: `{}`",
            artifact.mode.escape_debug()
        ))
    })?;
    let failed = |error: std::io::Error| Error::invalid(format!("cannot write {named}: {error}"));
    if let Some(existing) = folder.existing(&artifact.path)
        && holds(existing, artifact)
    {
        progress.inc(artifact.size);
        return Ok(());
    }
    let partial = folder.begin(&artifact.path).map_err(failed)?;
    let mut writer = Writer { partial, hasher: Sha256::new(), written: 0, base: progress.position() };
    let mut tries = 0;
    while writer.written < artifact.size || tries == 0 {
        let before = writer.written;
        match receive(client, run, artifact, &named, &mut writer, progress).await? {
            None => break,
            Some(why) if tries == TRIES => {
                let error = Error::unreachable(format!(
                    "{named} broke off after {} of {} bytes: {why}",
                    writer.written, artifact.size
                ));
                return Err(error.hint("get it again: files that are there are not sent again"));
            }
            Some(_) => {
                tries = if writer.written > before { 1 } else { tries + 1 };
                tokio::time::sleep(PAUSE * tries).await;
            }
        }
    }
    let digest = Digest::from_bytes(writer.hasher.finalize().into());
    if digest != artifact.digest {
        return Err(Error::unreachable(format!(
            "{named} is not what was announced: its digest is {digest}, not {}",
            artifact.digest
        ))
        .hint("nothing was put in its place"));
    }
    writer.partial.place(mode).map_err(failed)
}

/// Whether a file has an artifact's content.
fn holds(mut file: std::fs::File, artifact: &Artifact) -> bool {
    if !file.metadata().is_ok_and(|metadata| metadata.len() == artifact.size) {
        return false;
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Digest::from_bytes(hasher.finalize().into()) == artifact.digest,
            Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// What has come of a file.
struct Writer {
    partial: Partial,
    hasher: Sha256,
    written: u64,
    /// Where the progress stood before this file.
    base: u64,
}

/// Receives what is missing, as far as the connection lasts; gives why it broke off.
async fn receive(
    client: &Client,
    run: PackRunId,
    artifact: &Artifact,
    named: &str,
    writer: &mut Writer,
    progress: &ProgressBar,
) -> Result<Option<String>, Error> {
    let failed = |error: std::io::Error| Error::invalid(format!("cannot write {named}: {error}"));
    let mut headers = HeaderMap::new();
    if writer.written > 0
        && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", writer.written))
    {
        headers.insert(RANGE, range);
    }
    let run = run.to_string();
    let path = ["v1", "pack-runs", &run, "artifacts", artifact.key.as_str()];
    let path: Vec<_> = path.into_iter().chain(artifact.path.as_str().split('/')).collect();
    let mut response = match client.open(&path, &[], headers).await {
        Ok(response) => response,
        Err(Failure::Lost(why)) => return Ok(Some(why)),
        Err(Failure::Refused(Refusal::Passing(error))) => return Ok(Some(error.message)),
        Err(Failure::Refused(Refusal::Final(error))) => return Err(error),
    };
    if response.status() != StatusCode::PARTIAL_CONTENT && writer.written > 0 {
        // All of it comes again.
        writer.partial.file.set_len(0).map_err(failed)?;
        std::io::Seek::rewind(&mut writer.partial.file).map_err(failed)?;
        writer.hasher = Sha256::new();
        writer.written = 0;
    }
    loop {
        match response.chunk().await {
            Ok(Some(bytes)) => {
                writer.written += bytes.len() as u64;
                if writer.written > artifact.size {
                    let message =
                        format!("{named} has more than the {} bytes that were announced", artifact.size);
                    return Err(Error::unreachable(message).hint("nothing was put in its place"));
                }
                writer.hasher.update(&bytes);
                writer.partial.file.write_all(&bytes).map_err(failed)?;
                progress.set_position(writer.base + writer.written);
            }
            Ok(None) if writer.written == artifact.size => return Ok(None),
            Ok(None) => return Ok(Some("it ended early".to_owned())),
            Err(error) => return Ok(Some(cause(&error))),
        }
    }
}
