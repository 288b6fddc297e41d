//! The fleet over real QUIC on loopback, with agents that speak the protocol by hand. [`scene`] makes a coordinator
//! without an API, [`agent`] an agent without processes.

mod agent;
mod enrolment;
mod epochs;
mod hostile;
mod hostile_files;
mod hostile_greetings;
mod hostile_logs;
mod hostile_states;
mod overlong;
mod scene;
mod sessions;
mod stage;
mod transfers;
mod trouble;
