//! Process 1 of the appliance: mounts, modules, identity, configuration, hardware, services,
//! shutdown.
//!
//! What it is not: it serves nothing over the network, fetches nothing, and has no runtime. What may
//! take long (preparing hardware, syncing, fetching a configuration) a child does. Process 1 is one
//! thread that waits in one place, the poll of [`program`]'s loop, and is the only one to reap.
//!
//! Main types, in the order of a boot:
//! - [`status::Status`]: what was done and how it went, shown in `/run/adit/status/*.json`.
//! - [`config::Document`]: the configuration, made of several sources; [`config::merge`].
//! - [`identity::Identity`]: who this node is.
//! - [`service::Service`] and [`supervisor::ServiceReport`]: what runs.
//! - [`control::Request`] and [`control::Answer`]: what the agent, and `/sbin/poweroff`, ask of it;
//!   [`control::call`] does.
//!
//! Threading: none is made. [`control::call`] blocks its caller.
//!
//! Errors: almost none. Whatever fails becomes a status with a sentence, and the boot goes on: a node
//! that can be reached can be repaired. Only [`control::CallError`] is for callers.

mod acpi;
mod clock;
pub mod config;
pub mod control;
pub mod crash;
mod entropy;
mod hardware;
pub mod identity;
mod ioctl;
mod log;
mod modules;
mod mounts;
mod netlink;
mod pid1;
pub mod program;
pub mod ring;
pub mod service;
mod shutdown;
pub mod status;
pub mod supervisor;
mod system;
mod tunables;
mod watchdog;
