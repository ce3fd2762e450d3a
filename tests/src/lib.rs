//! `aditd` and `aditctl` as programs, on loopback, and the tests of them (`tests/`).
//!
//! This is not the place for tests of a library, which lie beside it, nor for those that need a
//! guest, which lie in `qemu-tests` and use this crate for the programs on the host.
//!
//! # Main types
//!
//! - [`Adit`]: an `aditd` with its state directory, and `aditctl` to talk to it. It can be killed
//!   and started again.
//! - [`Grpc`]: a connection to its management API.
//! - [`Host`]: an NVMe/TCP host, and [`Load`]: one that reads and writes on a thread of its own and
//!   checks every byte.
//! - [`Peer`]: a connection that sends what it is told to, right or wrong.
//! - [`KilledChild`]: any program that must not outlive the test.
//!
//! # Threading
//!
//! Everything blocks, on the caller's thread. Each wait has a deadline, see [`patience`]; [`until`]
//! is the only one that looks again and again.
//!
//! # Errors and what is left behind
//!
//! A [`HarnessError`] says what failed and where the logs are. Dropping an [`Adit`] kills its
//! process. When the test is failing, the end of its log is printed and its state is kept. Should
//! the test itself be killed, the kernel takes its children along (`setpriv --pdeathsig`).

mod adit;
mod child;
mod grpc;
mod host;
mod load;
mod peer;
mod process;

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use adit::{Adit, AditBuilder, free_port, program};
pub use child::KilledChild;
pub use grpc::Grpc;
pub use host::{BLOCK_BYTES, Host, HostError, HostOptions, Outcome, Request};
pub use load::{Dice, Ledger, Load, LoadOptions, LoadReport};
pub use peer::{Peer, QueueOptions};
pub use process::{cpu_time, resident_bytes, thread_cpu_time};

/// How often a condition without a wake-up of its own is looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What can go wrong around a program under test.
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
    /// A machine that cannot be put together.
    #[error("the machine {name:?} of a guest")]
    Machine {
        /// The name of its profile.
        name: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The channel to a guest's agent.
    #[error("talk to the guest's agent")]
    Agent {
        /// Why it failed.
        source: std::io::Error,
    },
}

impl HarnessError {
    /// Makes an error of what was tried on a path; for `map_err`.
    pub fn file(
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

/// Looks until there is something, for a minute at most (see [`patience`]).
///
/// # Panics
///
/// When there is nothing after that time; it says what was waited for.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(patience(60), what, look)
}

/// As [`until`], for what may take longer.
///
/// # Panics
///
/// As [`until`].
#[track_caller]
pub fn until_within<T>(most: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let waited = start.elapsed();
        assert!(waited < most, "waited {waited:?} for {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}
