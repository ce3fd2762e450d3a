//! What hosts and operators see of the target library, over a transport in memory and devices
//! whose completions the test releases. One thread, and a clock that the tests move.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

mod admin;
mod device;
mod discovery;
mod events;
mod fabrics;
mod hostile;
mod io;
mod loopback;
mod namespaces;
mod reservations;
mod rig;
mod shares;
mod table;
