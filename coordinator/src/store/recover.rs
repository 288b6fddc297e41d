//! Loading what is live: its cost grows with what runs, never with what has ever run.

use std::sync::Arc;

use packrun_protocol::id::PackRunId;

use super::StoreError;
use super::read::Reader;
use crate::core::change::PackRunRow;
use crate::core::{LiveRun, PackHead, Rows};

pub(super) fn load(reader: &Reader) -> Result<Rows, StoreError> {
    let mut rows = Rows { agents: reader.agents()?, tokens: reader.tokens()?, ..Rows::default() };
    for (name, version) in reader.pack_heads()? {
        if let Some(info) = reader.version(&name, version)? {
            let archived = reader.archived(&name)?;
            rows.packs.insert(name, PackHead { version, digest: info.digest, archived });
        }
    }
    for id in reader.live_runs()? {
        if let Some(run) = load_run(reader, id)? {
            rows.runs.push(run);
        }
    }
    Ok(rows)
}

fn load_run(reader: &Reader, id: PackRunId) -> Result<Option<LiveRun>, StoreError> {
    let (Some(info), Some(plan), Some(progress)) = (reader.run(id)?, reader.plan(id)?, reader.progress(id)?)
    else {
        tracing::error!(pack_run = %id, "a pack run is left out: its rows are not all there; restore a backup");
        return Ok(None);
    };
    let row = PackRunRow {
        id,
        pack: info.pack,
        version: info.version,
        params: info.params,
        plan: Arc::new(plan),
        idempotency: info.idempotency,
        retry_of: info.retry_of,
        created_at: info.created_at,
    };
    let job_runs = reader.job_runs(id)?;
    let (mut attempts, mut artifacts) = (Vec::new(), Vec::new());
    for job_run in &job_runs {
        // Of job runs that have ended nothing is needed but their state.
        if let Some(number) = job_run.attempt.filter(|_| !job_run.state.is_terminal()) {
            let attempt = packrun_protocol::id::AttemptId { job_run: job_run.id, number };
            attempts.extend(reader.attempt(attempt)?);
            artifacts.extend(reader.artifacts(attempt)?);
        }
    }
    let feed_next = reader.feed_next(id)?;
    Ok(Some(LiveRun { row: Arc::new(row), progress, job_runs, attempts, artifacts, feed_next }))
}
