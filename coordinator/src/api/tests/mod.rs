//! The API as its clients see it: a server on a port of its own, over a real engine and store, asked by a real HTTP
//! client.

mod admin;
mod hostile;
mod limits;
mod observe;
mod packs;
mod repeat;
mod roles;
mod runs;
pub(crate) mod site;
mod stuck;
