//! What the small coordinator hands out.

use std::sync::Arc;

use packrun_protocol::control::Assignment;
use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId, PackRunId};
use packrun_protocol::job::{Action, Definition};

pub(crate) fn script(text: &str) -> Definition {
    Definition {
        action: Action::Script(text.to_owned()),
        env: vec![],
        workdir: None,
        timeout: None,
        artifacts: vec![],
        inputs: vec![],
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    }
}

pub(crate) fn assignment(definition: Definition) -> Assignment {
    Assignment {
        attempt: AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST },
        pack_run: PackRunId::generate(),
        pack: "demo".parse().unwrap(),
        version: 1,
        key: "test".parse().unwrap(),
        definition: Arc::new(definition),
    }
}
