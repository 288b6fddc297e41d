//! The artifact rules of the jobs whose files come in, made ready to match: of those used last, for the files of a job
//! come together, and the jobs of a matrix have the same. One set is compiled at a time, so that an agent which asks
//! for many costs one thread at most.

use std::collections::VecDeque;
use std::sync::Arc;

use packrun_protocol::job::Definition;
use packrun_protocol::matcher::{ArtifactMatcher, MatcherError};
use tokio::sync::Mutex;

/// How many are kept: as many as files may come at once.
const KEPT: usize = 16;

type Ready = (Arc<Definition>, Arc<ArtifactMatcher>);

/// The rules used last. Clones share them.
#[derive(Debug, Clone, Default)]
pub(in crate::fleet) struct RecentRules(Arc<Mutex<VecDeque<Ready>>>);

impl RecentRules {
    /// The rules of a job, compiled now if they were not lately.
    ///
    /// # Errors
    /// When they are no rules (any more): they were when the pack was taken. `None` when the thread that compiles them
    /// ended.
    pub(in crate::fleet) async fn ready(
        &self,
        definition: &Arc<Definition>,
    ) -> Result<Arc<ArtifactMatcher>, Option<MatcherError>> {
        let mut kept = self.0.lock().await;
        let same =
            |(known, _): &Ready| Arc::ptr_eq(known, definition) || known.artifacts == definition.artifacts;
        if let Some(position) = kept.iter().position(same) {
            let ready = kept.remove(position).ok_or(None)?;
            let matcher = ready.1.clone();
            kept.push_back(ready);
            return Ok(matcher);
        }
        let uncompiled = definition.clone();
        let compiled = tokio::task::spawn_blocking(move || ArtifactMatcher::compile(&uncompiled.artifacts));
        let matcher = Arc::new(compiled.await.map_err(|_| None)??);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((definition.clone(), matcher.clone()));
        Ok(matcher)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use packrun_protocol::job::{Action, ArtifactRule};

    use super::*;

    fn definition(path: &str) -> Arc<Definition> {
        Arc::new(Definition {
            action: Action::Script("true".into()),
            env: Vec::new(),
            workdir: None,
            timeout: None,
            artifacts: vec![ArtifactRule { path: path.into(), name: None, optional: false }],
            inputs: Vec::new(),
            log_bytes_max: 0,
        })
    }

    #[tokio::test]
    async fn the_rules_used_last_are_kept_and_no_more() {
        let recent = RecentRules::default();
        let first = recent.ready(&definition("out")).await.unwrap();
        assert_eq!(first.matching(Path::new("out/app")), [0]);
        for n in 0..100 {
            let same = recent.ready(&definition("out")).await.unwrap();
            assert!(Arc::ptr_eq(&first, &same), "another job with the same rules");
            recent.ready(&definition(&n.to_string())).await.unwrap();
        }
        assert_eq!(recent.0.lock().await.len(), KEPT);
        assert!(matches!(recent.ready(&definition("../out")).await, Err(Some(_))));
    }
}
