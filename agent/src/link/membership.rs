//! Who the agent is: the identity that is there or one that a join token brings, renewed before its time is over.
//!
//! An identity that holds is kept: a join token for the same coordinator waits until that doesn't let the agent in
//! any more, because it was revoked, its certificate has expired or nobody knows it. A token of another coordinator
//! is obeyed at the start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use packrun_protocol::control::Pem;
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::name::Name;
use packrun_protocol::time::Clock;

use super::dial::{Addresses, jittered};
use super::identity::{Member, Store};
use super::machine::{Input, Seen};
use super::session::moment;
use super::{LinkError, LinkSettings};
use super::{enrol, epoch};
use crate::config::{ConfigError, read_join_token};

/// How long is waited before a renewal is asked for again: a quarter of what is left, within this.
const RENEW_AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// The identity and what may replace it.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) member: Member,
    store: Store,
    clock: Clock,
    name: Name,
    join_token: Option<JoinToken>,
    join_token_file: Option<PathBuf>,
}

impl Membership {
    /// The identity that is there, or a new one.
    ///
    /// # Errors
    /// When there is none to be had.
    pub(super) async fn begin(
        settings: &LinkSettings,
        addresses: &mut Addresses,
        clock: Clock,
    ) -> Result<Self, LinkError> {
        let store = Store::new(&settings.state);
        let known = store.load()?;
        let was_member = known.is_some();
        let valid = known.filter(|member| member.certificate.not_after > moment(clock).wall);
        let token = match token(settings.join_token.as_ref(), settings.join_token_file.as_ref()) {
            Err(error) if valid.is_some() => {
                tracing::info!(%error, "the agent has joined before and needs no join token");
                None
            }
            read => read?,
        };
        let is_used = token.as_ref().map(|token| store.is_of(token.id)).transpose()?.unwrap_or(false);
        let member = match (valid, &token) {
            (Some(member), Some(token)) if token.ca != member.ca => {
                tracing::info!("the join token is another coordinator's: the agent joins that one");
                enrol::join(addresses, &store, token, &settings.name, clock).await?
            }
            (Some(member), Some(_)) if is_used => {
                tracing::info!("the agent has joined before; the join token is not used");
                member
            }
            (Some(member), Some(_)) => {
                tracing::info!(
                    agent = %member.certificate.agent,
                    "the agent has joined before and stays who it is; the join token is used once the coordinator \
                     doesn't let it in any more"
                );
                member
            }
            (Some(member), None) => member,
            (None, Some(token)) if !is_used => {
                enrol::join(addresses, &store, token, &settings.name, clock).await?
            }
            (None, _) if was_member => return Err(LinkError::Expired),
            (None, _) => return Err(LinkError::NotJoined),
        };
        let (name, join_token) = (settings.name.clone(), settings.join_token.clone());
        Ok(Self { member, store, clock, name, join_token, join_token_file: settings.join_token_file.clone() })
    }

    /// Whether the certificate's time is over.
    pub(super) fn is_over(&self) -> bool {
        self.member.certificate.not_after <= moment(self.clock).wall
    }

    /// Becomes another agent of the same coordinator, if there is a join token that was not used. The file is read
    /// anew. Tries until somebody answers.
    pub(super) async fn join_again(&mut self, addresses: &mut Addresses) -> bool {
        let token = match token(self.join_token.as_ref(), self.join_token_file.as_ref()) {
            Ok(Some(token)) if token.ca == self.member.ca => token,
            Ok(_) => return false,
            Err(error) => {
                tracing::info!(%error, "there is no other join token");
                return false;
            }
        };
        if self.store.is_of(token.id).unwrap_or(true) {
            return false;
        }
        tracing::warn!(
            "the coordinator doesn't let this agent in any more; it joins anew with the join token"
        );
        match enrol::join(addresses, &self.store, &token, &self.name, self.clock).await {
            Ok(member) => self.member = member,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the join token is of no use either");
                return false;
            }
        }
        true
    }

    /// Writes down the highest epoch of this coordinator, for an agent that begins anew.
    pub(super) async fn keep_epoch(&self, state: &Path, seen: Seen) {
        let (state, ca) = (state.to_owned(), self.member.ca);
        let kept = tokio::task::spawn_blocking(move || epoch::write(&state, &ca, seen));
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "the coordinator's epoch can't be kept in the state folder");
        }
    }

    /// When the certificate is to be renewed: after about two thirds of its life, not all agents at once.
    pub(super) fn renewal(&self) -> Input {
        let certificate = &self.member.certificate;
        let life = certificate.not_after.since(certificate.not_before);
        Input::RenewAt { at: certificate.renew_at() - jittered(life / 20), again: self.renew_again() }
    }

    fn renew_again(&self) -> Duration {
        let left = self.member.certificate.not_after.since(moment(self.clock).wall);
        (left / 4).clamp(*RENEW_AGAIN.start(), *RENEW_AGAIN.end())
    }

    /// Takes a renewed certificate, if it is one; gives when to ask for the next.
    pub(super) async fn install(&mut self, certificate: Pem) -> Input {
        let (store, member) = (self.store.clone(), self.member.clone());
        let now = moment(self.clock).wall;
        let renewed = tokio::task::spawn_blocking(move || store.renew(&member, certificate.as_str(), now));
        let why = match renewed.await {
            Ok(Ok(member)) => {
                tracing::info!(until = %member.certificate.not_after, "the certificate was renewed");
                self.member = member;
                return self.renewal();
            }
            Ok(Err(error)) => with_causes(&error),
            Err(error) => error.to_string(),
        };
        tracing::error!(why, "the renewed certificate can't be used; it is asked for again");
        let again = self.renew_again();
        Input::RenewAt { at: moment(self.clock).wall + again, again }
    }
}

/// The join token that was given, itself or in a file.
fn token(token: Option<&JoinToken>, file: Option<&PathBuf>) -> Result<Option<JoinToken>, ConfigError> {
    match (token, file) {
        (Some(token), _) => Ok(Some(token.clone())),
        (None, file) => file.map(|file| read_join_token(file)).transpose(),
    }
}

/// What an error says, with its causes.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |words, cause| format!("{words}: {cause}"))
}
