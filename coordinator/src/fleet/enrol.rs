//! Enrolment: a join token and a certificate request for a certificate. One exchange on one stream, bounded in
//! time and rate. A refusal doesn't say what was wrong: whoever guesses learns nothing.

use std::sync::PoisonError;

use packrun_protocol::id::{AgentId, Digest};
use packrun_protocol::limit;
use packrun_protocol::quic::{FrameReader, FrameWriter, close};
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{CloseCode, Enrol, EnrolAnswer};
use quinn::Connection;
use tokio::time::timeout;

use super::Shared;
use crate::core::event::Command;
use crate::core::outcome::Reply;
use crate::engine::EngineError;

/// Serves a connection that wants to enrol, until it is closed.
pub(super) async fn serve(shared: &Shared, connection: &Connection) {
    let exchange = timeout(shared.settings.limits.greeting, exchange(shared, connection));
    let (code, reason) = tokio::select! {
        () = shared.stop.cancelled() => (CloseCode::ShuttingDown, "the coordinator stops"),
        () = shared.stepped_down() => (CloseCode::Unavailable, "this coordinator has stepped down"),
        exchanged = exchange => exchanged.unwrap_or((CloseCode::TimedOut, "enrolment took too long")),
    };
    close(connection, code, reason);
}

async fn exchange(shared: &Shared, connection: &Connection) -> (CloseCode, &'static str) {
    const BROKEN: (CloseCode, &str) = (CloseCode::Protocol, "an enrolment is one request on one stream");
    let Ok((send, receive)) = connection.accept_bi().await else { return BROKEN };
    let Ok(request) = FrameReader::new(receive).expect_within::<Enrol>(limit::ENROL_BYTES_MAX).await else {
        return BROKEN;
    };
    let (now, address) = (shared.clock.now(), connection.remote_address().ip());
    if !shared.enrolments.lock().unwrap_or_else(PoisonError::into_inner).take(address, now) {
        return (CloseCode::Overloaded, "too many enrolments at once; try again");
    }
    let answer = match decide(shared, request).await {
        Ok(answer) => answer,
        Err(()) => return (CloseCode::Unavailable, "the coordinator takes no enrolments now; try again"),
    };
    let mut writer = FrameWriter::new(send);
    if writer.send(&answer).await.is_err() || writer.stream().finish().is_err() {
        return BROKEN;
    }
    // A close would overtake the answer, were it not known to have come.
    let _ = writer.stream().stopped().await;
    (CloseCode::Done, "")
}

/// The answer; an error when it can't be said, and asking again may help.
async fn decide(shared: &Shared, request: Enrol) -> Result<EnrolAnswer, ()> {
    let refused = EnrolAnswer::Refused(Reason::new(
        "the join token does not hold (any more); ask for a new one by `packrun agents invite`",
    ));
    let agent = AgentId::generate();
    let valid = shared.settings.certificate;
    // Made before the token is used up: a request that can't be followed costs none.
    let Ok((certificate, _)) = shared.identity.issue_agent(request.request.as_str(), agent, valid) else {
        return Ok(refused);
    };
    let secret = Digest::of(&request.secret.0);
    let command = Command::EnrolAgent { token: request.token, secret, agent, name: request.name };
    let name = match shared.engine.command(command).await {
        Ok(Reply::Enrolled { name }) => name,
        Ok(_) | Err(EngineError::Refused(_)) => {
            tracing::info!(token = %request.token, "an enrolment was refused");
            return Ok(refused);
        }
        Err(EngineError::Unavailable) => return Err(()),
    };
    tracing::info!(%agent, name = name.as_str(), "an agent was enrolled");
    match (certificate.try_into(), shared.identity.ca_pem().try_into()) {
        (Ok(certificate), Ok(ca)) => Ok(EnrolAnswer::Granted { agent, certificate, ca }),
        _ => Err(()),
    }
}
