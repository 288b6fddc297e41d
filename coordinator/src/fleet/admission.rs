//! Agents that were revoked, for the handshake to refuse. The set is filled at start and by whatever a refused
//! session shows: an agent that is revoked while it is away is refused by the engine once, and by TLS from then on.
//! A revocation is final, so the set only grows.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use packrun_protocol::cert::AgentCertificate;
use packrun_protocol::id::AgentId;
use packrun_protocol::quic::Admission;

use crate::core::Core;
use crate::core::change::AgentState;

/// The revoked agents that are known here.
#[derive(Debug, Default)]
pub(super) struct Revoked(RwLock<HashSet<AgentId>>);

impl Revoked {
    pub(super) fn of(core: &Core) -> Self {
        let revoked = core.agents().filter(|agent| agent.row.state == AgentState::Revoked);
        Self(RwLock::new(revoked.map(|agent| agent.row.id).collect()))
    }

    pub(super) fn add(&self, agent: AgentId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(agent);
    }
}

impl Admission for Revoked {
    fn admits(&self, certificate: &AgentCertificate) -> bool {
        !self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&certificate.agent)
    }
}
