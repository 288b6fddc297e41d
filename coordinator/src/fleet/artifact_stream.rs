//! One file that an attempt leaves: what of it is here already, the rest of its bytes, and its record once all of
//! it is on disk.
//!
//! What will never do is refused in words. What may do later stops the stream with a code, and the agent sends the
//! file again: from where it broke off.

use std::sync::Arc;

use packrun_protocol::job::{Definition, is_own};
use packrun_protocol::matcher::name_of;
use packrun_protocol::quic::{FrameReader, FrameWriter};
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{CloseCode, Upload, UploadAnswer, UploadEnd};
use serde::Serialize;

use super::session::{Streams, within};
use crate::artifacts::{ArtifactError, Begin, UploadId};
use crate::core::Core;
use crate::core::event::Artifact;
use crate::engine::EngineError;

/// Why a file is not taken.
enum Refusal {
    /// It never will be.
    Final(Reason),
    /// It may be, later.
    Later(CloseCode),
}

impl From<CloseCode> for Refusal {
    fn from(code: CloseCode) -> Self {
        Self::Later(code)
    }
}

impl From<ArtifactError> for Refusal {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Mismatch { .. }
            | ArtifactError::Overlong { .. }
            | ArtifactError::Size { .. }
            | ArtifactError::TooLarge { .. } => Self::Final(Reason::new(&error.to_string())),
            ArtifactError::Busy(_)
            | ArtifactError::Incomplete { .. }
            | ArtifactError::Interrupted(_)
            | ArtifactError::Io { .. } => {
                tracing::warn!(%error, "an artifact could not be taken");
                Self::Later(CloseCode::Unavailable)
            }
        }
    }
}

/// Serves an upload; an error is the code to reset the stream with.
pub(super) async fn serve(
    streams: &Streams,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    upload: Upload,
) -> Result<(), CloseCode> {
    let attempt = upload.attempt;
    let Some(held) = streams.attempt(attempt, None).await? else {
        let refusal = Reason::new("the attempt is not this agent's");
        return send(streams, writer, &UploadAnswer::Refused(refusal)).await;
    };
    tokio::select! {
        biased;
        () = held.gone.cancelled() => Err(CloseCode::Fenced),
        taken = take(streams, reader, writer, upload) => taken,
    }
}

async fn take(
    streams: &Streams,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    upload: Upload,
) -> Result<(), CloseCode> {
    let _turn = streams.upload_turn().await?;
    let receiving = match begin(streams, &upload).await {
        Ok(None) => return send(streams, writer, &UploadAnswer::Have).await,
        Ok(Some(receiving)) => receiving,
        Err(Refusal::Final(reason)) => return send(streams, writer, &UploadAnswer::Refused(reason)).await,
        Err(Refusal::Later(code)) => return Err(code),
    };
    send(streams, writer, &UploadAnswer::SendFrom(receiving.offset())).await?;
    match receive(streams, reader, receiving, upload).await {
        Ok(()) => send(streams, writer, &UploadEnd::Committed).await,
        Err(Refusal::Final(reason)) => send(streams, writer, &UploadEnd::Refused(reason)).await,
        Err(Refusal::Later(code)) => Err(code),
    }
}

/// Records the artifact if its content is here; otherwise what takes the content.
async fn begin(streams: &Streams, upload: &Upload) -> Result<Option<crate::artifacts::Upload>, Refusal> {
    if is_own(&upload.path) {
        return Err(Refusal::Final(Reason::new("`.packrun` belongs to packrun and is never an artifact")));
    }
    let (attempt, artifact) = (upload.attempt, artifact(upload));
    let look = move |core: &Core| (core.refuses_artifact(attempt, &artifact), core.definition(attempt));
    match streams.shared.engine.look(look).await {
        Ok((Some(refusal), _)) => return Err(Refusal::Final(Reason::new(&refusal.to_string()))),
        Ok((None, Some(definition))) => check_rules(streams, &definition, upload).await?,
        Ok((None, None)) => return Err(Refusal::Later(CloseCode::Fenced)),
        Err(_) => return Err(Refusal::Later(CloseCode::Unavailable)),
    }
    let id = UploadId::new(streams.agent, upload.attempt, upload.path.as_str());
    match streams.shared.artifacts.begin(id, upload.content.digest, upload.content.size).await? {
        Begin::Send(receiving) => Ok(Some(receiving)),
        Begin::Have => {
            record(streams, upload).await?;
            Ok(None)
        }
    }
}

/// Takes only what the job's rules keep, under the name that they give it.
async fn check_rules(
    streams: &Streams,
    definition: &Arc<Definition>,
    upload: &Upload,
) -> Result<(), Refusal> {
    let matcher = streams.rules.ready(definition).await.map_err(|error| match error {
        Some(error) => Refusal::Final(Reason::new(&error.to_string())),
        None => Refusal::Later(CloseCode::Unavailable),
    })?;
    let matching = matcher.matching(upload.path.as_path());
    let why = if matching.is_empty() {
        "no artifact rule of its job matches it"
    } else if name_of(&definition.artifacts, &matching) != upload.name.as_ref() {
        "its rule has another name"
    } else {
        return Ok(());
    };
    Err(Refusal::Final(Reason::new(&format!("`{}` is not kept: {why}", upload.path))))
}

async fn receive(
    streams: &Streams,
    reader: &mut FrameReader,
    mut receiving: crate::artifacts::Upload,
    upload: Upload,
) -> Result<(), Refusal> {
    let silence = streams.shared.settings.limits.silence;
    loop {
        match within(silence, reader.raw()).await {
            Some(Ok(Some(bytes))) => receiving.write(bytes).await?,
            Some(Ok(None)) => break,
            Some(Err(_)) => return Err(Refusal::Later(CloseCode::Done)),
            None => return Err(Refusal::Later(CloseCode::TimedOut)),
        }
    }
    receiving.finish().await?;
    record(streams, &upload).await
}

fn artifact(upload: &Upload) -> Artifact {
    Artifact { name: upload.name.clone(), path: upload.path.clone(), content: upload.content }
}

async fn record(streams: &Streams, upload: &Upload) -> Result<(), Refusal> {
    match streams.engine.record_artifact(upload.attempt, artifact(upload)).await {
        Ok(_) => Ok(()),
        Err(EngineError::Refused(refusal)) => Err(Refusal::Final(Reason::new(&refusal.to_string()))),
        Err(EngineError::Unavailable) => Err(Refusal::Later(CloseCode::Unavailable)),
    }
}

/// Sends one answer, for as long as the agent may take for it.
pub(super) async fn send<T: Serialize>(
    streams: &Streams,
    writer: &mut FrameWriter,
    answer: &T,
) -> Result<(), CloseCode> {
    match within(streams.shared.settings.limits.silence, writer.send(answer)).await {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) => Err(CloseCode::Done),
        None => Err(CloseCode::TimedOut),
    }
}
