//! Pools on a simulated drive: what volumes do, and what is left of them after a power cut.

#![expect(clippy::unwrap_used, reason = "a rig that fails fails its test")]

mod cuts;
mod damage;
mod external;
mod in_flight;
mod large;
mod lent;
mod log;
mod model;
mod node;
mod opening;
mod operations;
mod parent;
mod repair;
mod rig;
mod sums;
mod threads;
mod volumes;
