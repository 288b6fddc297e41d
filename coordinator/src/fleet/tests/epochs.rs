//! Who may say that there was a later coordinator, and what comes of it.

use packrun_protocol::control::Hello;
use packrun_protocol::id::{Epoch, EpochProof};
use packrun_protocol::stream::CloseCode;

use super::agent::{parting, success};
use super::scene::{Job, Scene};
use crate::fleet::Leadership;

#[tokio::test]
async fn a_coordinator_that_is_shown_a_higher_epoch_steps_down() {
    let scene = Scene::open().await;
    let (agent, other) = (scene.enrolled().await, scene.enrolled().await);
    let link = other.connect(1).await;
    let mut leadership = scene.fleet.as_ref().unwrap().leadership();
    let proof = Some(scene.identity.prove(Epoch(1000)));
    let hello = Hello { epoch: Epoch(1000), proof, ..agent.hello(1) };
    let error = agent.connect_with(hello).await.err().unwrap();
    assert_eq!(parting(&error).0, CloseCode::Unavailable);
    assert_eq!(link.closed().await.0, CloseCode::Unavailable, "it commands nobody any more");
    let stepped_down = *leadership.wait_for(|state| *state != Leadership::Leads).await.unwrap();
    let Leadership::SteppedDown { theirs, agent: who, .. } = stepped_down else { panic!() };
    assert_eq!((theirs, who), (Epoch(1000), agent.id));
}

#[tokio::test]
async fn a_higher_epoch_without_its_proof_ends_nothing_but_the_connection() {
    let scene = Scene::open().await;
    let (agent, other) = (scene.enrolled().await, scene.enrolled().await);
    let mut link = other.connect(1).await;
    let own = link.welcome.take().unwrap().proof;
    let foreign = Scene::open().await.identity.prove(Epoch(1000));
    let mut near = *scene.identity.prove(Epoch(1000)).as_bytes();
    near[31] ^= 1;
    for proof in [None, Some(own), Some(foreign), Some(EpochProof::from_bytes(near))] {
        let hello = Hello { epoch: Epoch(1000), proof, ..agent.hello(1) };
        let error = agent.connect_with(hello).await.err().unwrap();
        let (code, reason) = parting(&error);
        assert_eq!(code, CloseCode::Protocol, "{reason}");
    }
    assert_eq!(*scene.fleet.as_ref().unwrap().leadership().borrow(), Leadership::Leads);
    // Of its own epoch and those before it, it wants no proof.
    let own = Hello { draining: true, ..agent.hello(1) };
    agent.connect_with(own).await.unwrap();
    scene.start(vec![Job::named("build")]).await;
    let attempt = link.assigned_one().await.attempt;
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
}
