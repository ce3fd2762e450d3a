//! Linux guests in QEMU, and the programs under test beside them on the host.
//!
//! A test boots an unmodified Debian kernel under emulation, runs shell scripts in it, and acts on
//! `aditd` on the host in between. A guest reaches the host's 127.0.0.1 as [`HOST_ADDRESS`] through
//! QEMU's user network, so nothing here needs root, a bridge or KVM. Userland comes from a tools
//! root that `guest/make-root` makes once.
//!
//! What a machine is made of is a TOML profile in `machines/profiles`, which a test names; the crate
//! `qemu_machines` makes arguments of QEMU of it. The test adds what changes with each start: files
//! and sockets behind drives, ports, configuration.
//!
//! This crate is not a virtual machine manager: a guest is made for one test and is gone with it.
//!
//! # Main types
//!
//! - [`Guest`]: a running guest. [`Guest::run`] runs a script and waits for it, [`Guest::spawn`]
//!   does not.
//! - [`Node`]: a storage node whose process 1 is `adit-init`, without the tools root.
//! - [`Appliance`]: a machine that boots an [`Image`] as storage nodes do, over the network too.
//! - [`Controller`]: a connection of the guest's kernel; [`Guest::nvme_connect`] makes one.
//! - [`Adit`]: an `aditd` with its state directory, and `aditctl` to talk to it. It can be killed
//!   and started again.
//! - [`VolatileDisk`]: a disk of a guest that loses what was not flushed when the power is cut.
//! - [`aditd_guest`]: what tests do with a guest in which `aditd` itself runs.
//! - [`FlushLog`]: a guest writes records to a device, a flush after each, and the test knows which
//!   must be there.
//!
//! # Threading
//!
//! Everything blocks, on the test's own thread; only a disk has a thread of its own. Each wait has a
//! deadline, see [`patience`].
//!
//! # Errors and what is left behind
//!
//! A [`HarnessError`] says what failed and where the logs are. Dropping a [`Guest`] or an [`Adit`]
//! kills its process. When the test is failing, logs are printed and kept. Should the test itself
//! be killed, the kernel takes its children along (`setpriv --pdeathsig`).

pub mod aditd_guest;
mod appliance;
mod flush_log;
mod guest;
mod http;
mod initiator;
mod initramfs;
mod node;
mod qemu;
mod tools;
mod volatile_disk;

pub use appliance::{Appliance, ApplianceBuilder, Boot, Image, make_site};
pub use flush_log::FlushLog;
pub use guest::{Guest, GuestBuilder, Job, Output};
pub use http::HttpServer;
pub use initiator::Controller;
pub use node::{Node, NodeBuilder};
pub use program_tests::{Adit, AditBuilder, HarnessError, free_port, patience};
pub use tools::{skip_without_qemu, tools_root};
pub use volatile_disk::{Power, VolatileDisk};

/// The host's 127.0.0.1 as a guest sees it.
pub const HOST_ADDRESS: &str = "10.0.2.2";
