//! The fleet over real QUIC on loopback, with agents that speak the protocol by hand. [`scene`] makes a coordinator
//! without an API, [`agent`] an agent without processes.

mod agent;
mod enrolment;
mod hostile;
mod overlong;
mod scene;
mod sessions;
mod transfers;
mod trouble;
