//! Becoming an agent: a join token and a certificate request go to the coordinator whose CA the token names, a
//! certificate comes back.

use packrun_protocol::cert::{self, CertError, Identity};
use packrun_protocol::control::Pem;
use packrun_protocol::id::Digest;
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::name::Name;
use packrun_protocol::quic::{
    FrameReader, FrameWriter, JoinConfig, ReadError, TlsError, WriteError, close, join_config,
};
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{CloseCode, Enrol, EnrolAnswer};
use packrun_protocol::time::Clock;
use quinn::Connection;
use thiserror::Error;

use super::dial::{Addresses, DialError, dial};
use super::identity::{IdentityError, Member, Store, request};
use super::membership::with_causes;
use super::session::moment;

/// How long the coordinator may take to answer.
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Why the agent has not joined.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// The request can't be made.
    #[error("failed to make the certificate request")]
    Request(#[source] CertError),
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The identity can't be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The coordinator doesn't take the token.
    #[error("the coordinator refuses the join token: {0}; make a new one with `packrun agents invite`")]
    Refused(Reason),
    /// Whoever answers is not the coordinator that made the token.
    #[error("{0} is not the coordinator that made the join token: its CA is another one")]
    Stranger(String),
    /// What came is not what was asked for.
    #[error("the coordinator's answer to the join token is no identity of this agent: {0}")]
    Answer(String),
}

/// Why one try failed.
#[derive(Debug, Error)]
enum TryError {
    #[error(transparent)]
    Final(#[from] EnrolError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the coordinator was lost before its answer came")]
    Read(#[from] ReadError),
    #[error("the coordinator was lost before it was asked")]
    Write(#[from] WriteError),
    #[error("the coordinator doesn't answer")]
    Silent,
}

/// Joins with `token` at one of `addresses`, and keeps the identity in `store`. Tries until somebody answers.
///
/// # Errors
/// When the token is refused, every address belongs to somebody else, or the identity can't be kept.
pub(super) async fn join(
    addresses: &mut Addresses,
    store: &Store,
    token: &JoinToken,
    name: &Name,
    clock: Clock,
) -> Result<Member, EnrolError> {
    let key_pem = store.key()?;
    let request = request(&key_pem).map_err(EnrolError::Request)?;
    let mut strangers = 0;
    loop {
        let Some(address) = addresses.next() else {
            return Err(EnrolError::Answer("no coordinator was given".to_owned()));
        };
        match join_at(address.clone(), addresses.limit(), token, &request, name).await {
            Ok((certificate_pem, ca_pem)) => {
                addresses.succeeded();
                addresses.calm();
                let (identity, now) = (Identity { certificate_pem, key_pem }, moment(clock).wall);
                return store.join(token.id, &ca_pem, identity, now).map_err(|error| match error {
                    IdentityError::Content { source, .. } => EnrolError::Answer(with_causes(&source)),
                    IdentityError::Tls { source, .. } => EnrolError::Answer(with_causes(&source)),
                    error => error.into(),
                });
            }
            Err(TryError::Final(error)) => return Err(error),
            Err(TryError::Dial(error)) if error.is_stranger() => {
                strangers += 1;
                tracing::warn!(address, "the CA there is not the one of the join token");
                if strangers >= addresses.len() {
                    return Err(EnrolError::Stranger(address));
                }
            }
            Err(error) => {
                strangers = 0;
                tracing::warn!(
                    address,
                    error = &error as &dyn std::error::Error,
                    "failed to join; trying again"
                );
                tokio::time::sleep(addresses.wait()).await;
            }
        }
    }
}

async fn join_at(
    address: String,
    limit: std::time::Duration,
    token: &JoinToken,
    request: &Pem,
    name: &Name,
) -> Result<(String, String), TryError> {
    let config = join_config(JoinConfig { ca: token.ca }).map_err(EnrolError::Tls)?;
    let dialed = dial(address, config, limit).await?;
    let enrol = Enrol { token: token.id, secret: token.secret, request: request.clone(), name: name.clone() };
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange(&dialed.connection, &enrol));
    let answer = answer.await.map_err(|_| TryError::Silent)??;
    close(&dialed.connection, CloseCode::Done, "");
    match answer {
        EnrolAnswer::Refused(reason) => Err(EnrolError::Refused(reason).into()),
        EnrolAnswer::Granted { agent, certificate, ca } => {
            let der = cert::der_of(ca.as_str(), "CA's certificate")
                .map_err(|error| EnrolError::Answer(error.to_string()))?;
            let own = cert::AgentCertificate::parse_pem(certificate.as_str())
                .map_err(|error| EnrolError::Answer(error.to_string()))?;
            if Digest::of(&der) != token.ca || own.agent != agent {
                return Err(EnrolError::Answer("it names another CA or agent".to_owned()).into());
            }
            tracing::info!(%agent, "joined");
            Ok((certificate.as_str().to_owned(), ca.as_str().to_owned()))
        }
    }
}

async fn exchange(connection: &Connection, enrol: &Enrol) -> Result<EnrolAnswer, TryError> {
    let (send, receive) =
        connection.open_bi().await.map_err(quinn::WriteError::ConnectionLost).map_err(WriteError::Stream)?;
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
    writer.send(enrol).await?;
    let _ = writer.stream().finish();
    Ok(reader.expect().await?)
}
