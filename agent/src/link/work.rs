//! What is done for attempts beside the loop: their inputs and artifacts, a task each, forgotten with the attempt.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use packrun_protocol::id::AttemptId;
use packrun_protocol::state::Reason;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::transfer::Transfers;
use super::{artifact_stream, inputs};
use crate::executor::ipc::{Order, Request};

/// All of it. At most one task for an attempt.
pub(super) struct Works {
    transfers: Transfers,
    orders: mpsc::Sender<Order>,
    tasks: JoinSet<()>,
    of: HashMap<AttemptId, Work>,
}

struct Work {
    task: AbortHandle,
    is_preparing: bool,
    stop: Arc<AtomicBool>,
}

impl Works {
    pub(super) fn new(transfers: Transfers, orders: mpsc::Sender<Order>) -> Self {
        Self { transfers, orders, tasks: JoinSet::new(), of: HashMap::new() }
    }

    /// Does what is requested, and answers by itself.
    pub(super) fn begin(&mut self, request: Request) {
        let (transfers, orders) = (self.transfers.clone(), self.orders.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let attempt = request.attempt();
        // That nobody wants the answer any more is known elsewhere.
        let (task, is_preparing) = match request {
            Request::Prepare { workspace, inputs, .. } => {
                let prepare = async move {
                    let result = inputs::fetch(&transfers, attempt, workspace, inputs).await;
                    let _ = orders.send(Order::Prepared(attempt, result)).await;
                };
                (self.tasks.spawn(prepare), true)
            }
            Request::Collect { workspace, artifacts, .. } => {
                let stop = Arc::clone(&stop);
                let collect = async move {
                    let kept = artifact_stream::keep(&transfers, attempt, workspace, artifacts, stop);
                    let (result, notes) = kept.await;
                    let _ = orders.send(Order::Collected { attempt, result, notes }).await;
                };
                (self.tasks.spawn(collect), false)
            }
            Request::Failed { .. } => return,
        };
        self.of.insert(attempt, Work { task, is_preparing, stop });
    }

    /// Stops what is under way for an attempt that nobody wants any more.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        if let Some(work) = self.of.remove(&attempt) {
            work.stop.store(true, Ordering::Relaxed);
            work.task.abort();
        }
    }

    /// The next task that has ended; never while there is none.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn ended(&mut self) -> Result<Id, JoinError> {
        match self.tasks.join_next_with_id().await {
            Some(ended) => ended.map(|(id, ())| id),
            None => std::future::pending().await,
        }
    }

    /// Takes note of an end; gives the answer that a failed task owes.
    pub(super) fn note(&mut self, ended: Result<Id, JoinError>) -> Option<Order> {
        let id = ended.as_ref().map_or_else(JoinError::id, |id| *id);
        let attempt = *self.of.iter().find(|(_, work)| work.task.id() == id)?.0;
        let work = self.of.remove(&attempt)?;
        let reason = Reason::new(&format!("the agent failed in its own work: {}", ended.err()?));
        tracing::error!(%attempt, %reason, "inputs or artifacts fail");
        Some(match work.is_preparing {
            true => Order::Prepared(attempt, Err(reason)),
            false => Order::Collected { attempt, result: Err(reason), notes: Vec::new() },
        })
    }
}
