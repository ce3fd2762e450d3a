//! The driver on an emulated controller: no root, no device.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails fails the test that called it"
)]

mod admin;
mod faults;
mod fuzz;
mod input;
mod io;
mod liar;
mod rig;
mod scenario;
mod threads;
