//! A coordinator that hands out wrong certificates: the agent keeps what it has, or stays without.

use std::time::Duration;

use packrun_agent::Stop;
use packrun_protocol::bounded::BoundedText;
use packrun_protocol::cert::{self, AgentCertificate, Authority};
use packrun_protocol::control::{FromAgent, Pem, ToAgent};
use packrun_protocol::id::AgentId;
use packrun_protocol::quic::Peer as Who;
use packrun_protocol::state::Reason;
use packrun_protocol::stream::{Enrol, EnrolAnswer};
use packrun_protocol::time::Clock;

use crate::fake::{Fake, start, state};
use crate::identity::words;

const DAY: Duration = Duration::from_secs(86_400);

fn pem(text: &str) -> Pem {
    BoundedText::try_from(text).unwrap()
}

/// A certificate of `ca` for the request, or for a key of its own.
fn issued(ca: &Authority, request: Option<&str>, agent: AgentId, valid: Duration) -> Pem {
    let other = cert::request(&cert::generate_key().unwrap()).unwrap();
    let made_at = Clock::start().now() - Duration::from_secs(2);
    pem(&ca.issue_agent(request.unwrap_or(&other), agent, made_at, valid).unwrap())
}

fn another_ca() -> Authority {
    Authority::create(Clock::start().now()).unwrap().0
}

type Wrong = fn(&Fake, &str) -> Pem;

#[tokio::test]
async fn a_renewed_certificate_that_is_not_this_agents_is_not_used() {
    let wrongs: [(&str, Wrong); 5] = [
        ("of another key", |fake, _| issued(&fake.ca, None, fake.agent, DAY)),
        ("of another agent", |fake, request| issued(&fake.ca, Some(request), AgentId::generate(), DAY)),
        ("of another CA", |fake, request| issued(&another_ca(), Some(request), fake.agent, DAY)),
        ("over", |fake, request| issued(&fake.ca, Some(request), fake.agent, Duration::from_secs(1))),
        ("no certificate", |_, _| pem("x")),
    ];
    for (what, wrong) in wrongs {
        let (mut fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
        // It is to be renewed at once.
        (fake.valid, fake.age) = (Duration::from_secs(100), Duration::from_secs(50));
        let (agent, mut peer) = fake.join(&folder).await;
        let file = || std::fs::read_to_string(state(&folder).join("identity/agent.pem")).unwrap();
        let before = file();
        let FromAgent::Renew(request) = peer.next().await.unwrap() else { panic!("no renewal") };
        peer.say(ToAgent::Certificate(wrong(&fake, request.as_str()))).await;
        peer.say(ToAgent::Goodbye { restarting: true, reason: Reason::new("") }).await;
        let mut peer = fake.meet().await;
        let shown = packrun_protocol::quic::peer(&peer.connection);
        let kept = AgentCertificate::parse_pem(&before).unwrap();
        assert_eq!((shown, file()), (Some(Who::Agent(kept)), before), "{what}");
        peer.welcome(|_| panic!("nothing is held")).await;
        agent.stop(Stop::Drain).await;
    }
}

#[tokio::test]
async fn an_enrolment_that_brings_something_else_leaves_the_agent_without_identity() {
    type Answer = fn(&Fake, &Enrol) -> EnrolAnswer;
    fn granted(fake: &Fake, certificate: Pem, ca: &Authority) -> EnrolAnswer {
        EnrolAnswer::Granted { agent: fake.agent, certificate, ca: pem(ca.certificate_pem()) }
    }
    let wrongs: [(&str, Answer); 5] = [
        ("of another key", |fake, _| granted(fake, issued(&fake.ca, None, fake.agent, DAY), &fake.ca)),
        ("of another agent", |fake, enrol| {
            let request = Some(enrol.request.as_str());
            granted(fake, issued(&fake.ca, request, AgentId::generate(), DAY), &fake.ca)
        }),
        ("of another CA", |fake, enrol| {
            let request = Some(enrol.request.as_str());
            granted(fake, issued(&another_ca(), request, fake.agent, DAY), &fake.ca)
        }),
        ("with another CA", |fake, enrol| {
            let request = Some(enrol.request.as_str());
            granted(fake, issued(&fake.ca, request, fake.agent, DAY), &another_ca())
        }),
        ("no certificate", |fake, _| granted(fake, pem("x"), &fake.ca)),
    ];
    for (what, wrong) in wrongs {
        let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
        let agent = start(fake.config(&folder));
        fake.enrol_with(|enrol| wrong(&fake, enrol)).await;
        let error = agent.error().await;
        assert!(error.is_not_allowed(), "{what}: {error}");
        assert!(words(&error).contains("is no identity of this agent"), "{what}: {}", words(&error));
        assert!(!state(&folder).join("identity/agent.pem").exists(), "{what}");
    }
}
