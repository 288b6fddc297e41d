//! Tokens: those that let an agent join, once and for a time, and those that requests to the API carry. Only the
//! sha256 of a secret is known here; digests are compared in constant time all the same.

use std::time::Duration;

use packrun_protocol::id::{AgentId, Digest, TokenId};
use packrun_protocol::name::{Labels, Name};
use packrun_protocol::time::Timestamp;
use subtle::ConstantTimeEq as _;

use super::Core;
use super::change::{Change, Grant, TokenEnd, TokenRow};
use super::outcome::{Refusal, Reply};

impl TokenRow {
    /// Whether it lets the bearer of a secret with this sha256 do anything now.
    #[must_use]
    pub fn holds(&self, secret: Digest, now: Timestamp) -> bool {
        let right = bool::from(self.secret.as_bytes().ct_eq(secret.as_bytes()));
        right && self.end.is_none() && !self.is_expired(now)
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

impl Core {
    pub(super) fn create_token(
        &mut self,
        id: TokenId,
        secret: Digest,
        grant: Grant,
        ttl: Option<Duration>,
    ) -> Result<Reply, Refusal> {
        if self.tokens.len() >= self.config.tokens {
            let now = self.now;
            let expired = self.tokens.values().filter(|token| token.is_expired(now)).map(|token| token.id);
            for id in expired.collect::<Vec<_>>() {
                self.forget_token(id);
            }
        }
        if self.tokens.len() >= self.config.tokens {
            return Err(Refusal::TooManyTokens(self.config.tokens));
        }
        if self.tokens.contains_key(&id) {
            return Err(Refusal::Invalid("a token has this id already"));
        }
        let (created_at, expires_at) = (self.now, ttl.map(|ttl| self.now + ttl));
        if let Grant::Join { labels, .. } = &grant {
            self.reserve_keys(labels);
        }
        let row = TokenRow { id, secret, grant, created_at, expires_at, end: None };
        self.out.changes.push(Change::Token(row.clone()));
        self.tokens.insert(id, row);
        Ok(Reply::Done)
    }

    pub(super) fn revoke_token(&mut self, id: TokenId) -> Result<Reply, Refusal> {
        let token = self.forget_token(id).ok_or(Refusal::NoToken(id))?;
        self.out.changes.push(Change::Token(TokenRow { end: Some(TokenEnd::Revoked(self.now)), ..token }));
        Ok(Reply::Done)
    }

    /// Forgets a token that nobody used.
    fn forget_token(&mut self, id: TokenId) -> Option<TokenRow> {
        let token = self.tokens.remove(&id)?;
        if let Grant::Join { labels, .. } = &token.grant {
            self.free_keys(labels);
        }
        Some(token)
    }

    /// Uses up a join token; says which labels, and which name if any, it gives its agent. The labels stay reserved,
    /// for that agent.
    pub(super) fn use_join_token(
        &mut self,
        id: TokenId,
        secret: Digest,
        agent: AgentId,
    ) -> Result<(Labels, Option<Name>), Refusal> {
        let now = self.now;
        let held = self.tokens.get(&id).filter(|token| token.holds(secret, now));
        let Some(TokenRow { grant: Grant::Join { labels, name }, .. }) = held.cloned() else {
            return Err(Refusal::NotInvited);
        };
        if let Some(token) = self.tokens.remove(&id) {
            self.out
                .changes
                .push(Change::Token(TokenRow { end: Some(TokenEnd::Used { agent, at: now }), ..token }));
        }
        Ok((labels, name))
    }
}
