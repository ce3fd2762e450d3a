//! Linux guests in QEMU, and the programs under test beside them on the host.
//!
//! A test boots an unmodified Debian kernel under emulation, runs shell scripts in it, and acts on
//! `aditd` on the host in between. A guest reaches the host's 127.0.0.1 as [`HOST_ADDRESS`] through
//! QEMU's user network, so nothing here needs root, a bridge or KVM. Userland comes from a tools
//! root that `guest/make-root` makes once.
//!
//! This crate is not a virtual machine manager: one kind of guest, made for one test, gone with it.
//!
//! # Main types
//!
//! - [`Guest`]: a running guest. [`Guest::run`] runs a script and waits for it, [`Guest::spawn`]
//!   does not.
//! - [`Controller`]: a connection of the guest's kernel; [`Guest::nvme_connect`] makes one.
//! - [`Adit`]: an `aditd` with its state directory, and `aditctl` to talk to it. It can be killed
//!   and started again.
//!
//! # Threading
//!
//! Everything blocks, on the test's own thread. Each wait has a deadline, see [`patience`].
//!
//! # Errors and what is left behind
//!
//! A [`HarnessError`] says what failed and where the logs are. Dropping a [`Guest`] or an [`Adit`]
//! kills its process. When the test is failing, logs are printed and kept. Should the test itself
//! be killed, the kernel takes its children along (`setpriv --pdeathsig`).

mod adit;
mod child;
mod guest;
mod initiator;
mod initramfs;
mod tools;

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use adit::{Adit, AditBuilder, free_port};
pub use guest::{Guest, GuestBuilder, Job, Output};
pub use initiator::Controller;
pub use tools::{skip_without_qemu, tools_root};

/// The host's 127.0.0.1 as a guest sees it.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// What can go wrong around a guest or a program under test.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// A file or folder of the harness.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program that could not be started.
    #[error("start {program}: install it with `make deps`, or build it with `cargo build`")]
    Spawn {
        /// Its name or path.
        program: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program that ran and failed.
    #[error("`{command}` failed with {status}\nstdout: {stdout}\nstderr: {stderr}")]
    Failed {
        /// The command line, or the script.
        command: String,
        /// Exit status or signal.
        status: String,
        /// Its standard output.
        stdout: String,
        /// Its standard error.
        stderr: String,
    },
    /// A wait that took longer than its deadline.
    #[error("waited {waited:?} for {what}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// A program that ended while something was expected of it.
    #[error("{program} ended with {status} while waiting for {what}")]
    Ended {
        /// Its name.
        program: &'static str,
        /// Exit status or signal.
        status: String,
        /// What was waited for.
        what: String,
    },
    /// A program that answered with something else than was expected.
    #[error("`{command}` answered what is not understood: {answer}")]
    Answer {
        /// The command line.
        command: String,
        /// What it printed.
        answer: String,
    },
    /// The channel to a guest's agent.
    #[error("talk to the guest's agent")]
    Agent {
        /// Why it failed.
        source: std::io::Error,
    },
}

impl HarnessError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}

/// For a test's `unwrap()`: the message and its causes, with line breaks as they are.
impl fmt::Debug for HarnessError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(formatter, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// `seconds`, stretched by `ADIT_TEST_PATIENCE` (a factor, 1 by default) for machines slower than
/// ours.
///
/// Deadlines are generous to begin with: they bound a hang, they measure nothing.
pub fn patience(seconds: u64) -> Duration {
    let factor = std::env::var("ADIT_TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds * factor.unwrap_or(1u64).max(1))
}
