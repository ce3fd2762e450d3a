//! The agent over TLS on loopback.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

mod access;
mod keep;
mod rig;
mod streams;
