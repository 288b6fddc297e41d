//! The beginning of a session: `Hello`, the engine's word on it, `Welcome`.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::cert::AgentCertificate;
use packrun_protocol::control::{FromAgent, HeldAnswer, Hello, MINOR, ToAgent, Welcome};
use packrun_protocol::id::{AgentId, AttemptId};
use packrun_protocol::limit;
use packrun_protocol::name::Name;
use packrun_protocol::quic::{FrameReader, FrameWriter, ReadError, let_in};
use packrun_protocol::stream::{CloseCode, StreamHeader};
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::held::Held;
use super::streams::Streams;
use super::tell::Teller;
use super::{ASKS, CHATTER_BURST, CHATTER_PER_SECOND, Parting, REPEATS_BURST, REPEATS_PER_SECOND, Session};
use crate::core::change::AgentState;
use crate::core::event::{Arrival, Capacity};
use crate::core::outcome::{CloseReason, Standing};
use crate::engine::ToSession;
use crate::fleet::gate::Rate;
use crate::fleet::seats::Seat;
use crate::fleet::{Leadership, Shared};

/// Opens the session of an agent, in which it has been welcomed.
pub(super) async fn greet(
    shared: &Arc<Shared>,
    connection: &Connection,
    certificate: &AgentCertificate,
) -> Result<(Session, Seat), Parting> {
    let agent = certificate.agent;
    if *shared.leadership.borrow() != Leadership::Leads {
        return Err(Parting::closed(CloseCode::Unavailable, "this coordinator has stepped down"));
    }
    let name = name(shared, agent).await?;
    let late = |_| Parting::closed(CloseCode::TimedOut, "the agent did not say hello in time");
    let heard = timeout(shared.settings.limits.greeting, hello(connection)).await.map_err(late)?;
    let (hello, reader, writer) = heard?;
    if hello.epoch > shared.epoch {
        return Err(later(shared, agent, &hello));
    }
    let seat = shared.seats.take(agent).await;
    let capacity = Capacity {
        labels: hello.labels,
        slots: hello.capacity.slots.into(),
        cpu_millis: hello.capacity.cpu_millis,
        memory_bytes: hello.capacity.memory_bytes,
        isolation: hello.isolation,
    };
    let arrival = Arrival { capacity, draining: hello.draining, held: hello.attempts.into_vec() };
    let (engine, mut messages) = shared.engine.connect(agent, arrival).await?;
    let (standings, refused) = match messages.recv().await {
        Some(ToSession::Welcome { standings, refused, .. }) => (standings, refused),
        Some(ToSession::Close(why)) => return Err(turned_away(shared, agent, why)),
        _ => return Err(Parting::closed(CloseCode::Unavailable, "the coordinator opens no sessions now")),
    };
    let (asking, asks) = mpsc::channel(ASKS);
    let mut session = Session {
        shared: shared.clone(),
        agent,
        connection: connection.clone(),
        engine: engine.clone(),
        messages,
        reader,
        teller: Teller::new(writer, shared.epoch),
        held: Held::default(),
        offset: None,
        acks: BTreeMap::new(),
        acks_due: None,
        chatter: Rate::new(CHATTER_PER_SECOND, CHATTER_BURST),
        repeats: Rate::new(REPEATS_PER_SECOND, REPEATS_BURST),
        expires: certificate.not_after,
        streams: Streams::new(shared.clone(), engine, agent, asking),
        asks,
        workers: JoinSet::new(),
    };
    let answers: Vec<_> = standings
        .into_iter()
        .map(|(attempt, standing)| (attempt, session.stand(attempt, standing)))
        .collect();
    // As many as the agent reported, which was within the bound.
    let attempts = answers.try_into().map_err(|error| Parting::broken(&error))?;
    session.teller.say(ToAgent::Welcome(Welcome {
        minor: spoken(hello.minor),
        agent,
        name,
        lease: shared.lease,
        heartbeat: shared.settings.heartbeat,
        api: shared.settings.api.clone(),
        attempts,
        proof: shared.identity.prove(shared.epoch),
        refused: refused.clone(),
    }))?;
    // Its streams may come with the next packet.
    let_in(connection);
    session.flush().await?;
    let (address, version) = (connection.remote_address(), hello.version.as_str());
    tracing::info!(%agent, %address, version, "an agent connected");
    if !refused.is_empty() {
        tracing::warn!(%agent, labels = %refused, "an agent claims labels that only an invitation grants; they don't count");
    }
    Ok((session, seat))
}

/// The minor version that both sides speak.
#[expect(clippy::unnecessary_min_or_max, reason = "ours is 0 in this version only")]
fn spoken(theirs: u32) -> u32 {
    theirs.min(MINOR)
}

/// What the agent is called, if it may connect at all.
async fn name(shared: &Shared, agent: AgentId) -> Result<Name, Parting> {
    let known = shared
        .engine
        .look(move |core| core.agent(agent).map(|known| (known.row.state, known.row.name.clone())))
        .await?;
    match known {
        Some((AgentState::Active | AgentState::Drained, name)) => Ok(name),
        Some((AgentState::Revoked, _)) => Err(turned_away(shared, agent, CloseReason::Revoked)),
        None => Err(turned_away(shared, agent, CloseReason::Unknown)),
    }
}

/// What becomes of an agent that names a coordinator of a higher epoch. It is believed if it has that one's proof:
/// otherwise any agent could end this coordinator.
fn later(shared: &Shared, agent: AgentId, hello: &Hello) -> Parting {
    if hello.proof.is_some_and(|proof| shared.identity.proves(hello.epoch, &proof)) {
        shared.step_down(hello.epoch, agent);
        return Parting::closed(CloseCode::Unavailable, "this coordinator runs on old data and steps down");
    }
    Parting::closed(
        CloseCode::Protocol,
        "the agent names a higher epoch than the coordinator's without proof of it; its state folder is damaged",
    )
}

pub(super) fn turned_away(shared: &Shared, agent: AgentId, why: CloseReason) -> Parting {
    if why == CloseReason::Revoked {
        shared.revoked.add(agent);
    }
    why.into()
}

/// The agent's first words on its first stream.
async fn hello(connection: &Connection) -> Result<(Hello, FrameReader, FrameWriter), Parting> {
    let (send, receive) = connection.accept_bi().await.map_err(|_| Parting::Lost)?;
    let mut reader = FrameReader::new(receive);
    match reader.expect_within::<StreamHeader>(limit::STREAM_HEADER_BYTES_MAX).await.map_err(unheard)? {
        StreamHeader::Control => {}
        _ => return Err(Parting::broken(&"the first stream has to be the control stream")),
    }
    match reader.expect::<FromAgent>().await.map_err(unheard)? {
        FromAgent::Hello(hello) => Ok((hello, reader, FrameWriter::new(send))),
        _ => Err(Parting::broken(&"the first message has to be `Hello`")),
    }
}

fn unheard(error: ReadError) -> Parting {
    match error {
        ReadError::Stream(_) => Parting::Lost,
        error => Parting::broken(&error),
    }
}

impl Session {
    /// Takes up what the core says of an attempt that the agent reported.
    fn stand(&mut self, attempt: AttemptId, standing: Standing) -> HeldAnswer {
        match standing {
            Standing::GoOn { pack_run, assigned_at, log_bytes_max } => {
                self.held.add(attempt, pack_run, assigned_at, log_bytes_max);
                let progress = self.shared.logs.progress(attempt).map(|progress| *progress.borrow());
                if progress.is_some() {
                    self.watch_log(attempt);
                }
                HeldAnswer::GoOn { log_from: progress.unwrap_or_default().readable }
            }
            Standing::Fenced => HeldAnswer::Fenced,
            Standing::Settled => HeldAnswer::Settled,
        }
    }
}
