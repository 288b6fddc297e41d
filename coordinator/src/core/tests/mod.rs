//! Tests of the core, a file a topic: [`scenarios`], [`explain`], [`registry`], [`tokens`], [`labels`], [`leases`] and
//! [`overdue`] to learn from, [`job_table`] and [`restore`] for what can't be seen from outside, [`properties`] for
//! everything at random. [`make`] makes values, [`store`] keeps the rows
//! as a store would, [`rules`] says what they must look like, [`world`] puts agents round a core.

mod explain;
mod job_table;
mod labels;
mod leases;
pub(crate) mod make;
mod overdue;
mod properties;
mod registry;
mod restore;
mod rules;
mod scale;
mod scenarios;
mod scene;
mod store;
mod tokens;
mod world;
