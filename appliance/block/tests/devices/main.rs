//! The crate from outside: devices against a model, limits, layers, files, threads, names.
#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

mod file;
mod gate;
mod layers;
mod model;
mod qos;
mod registry;
mod rig;
