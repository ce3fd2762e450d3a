//! Drives that the kernel's driver has for as long as they are wiped. No boot of a release loads that driver:
//! a drive is `aditd`'s or nobody's.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use init::control::{Answer, Request, call};
use machine::{Host as _, Loan, PciAddress, Root, lend};

use super::WipeError;
use crate::error::chain;

/// The kernel's driver for drives.
pub(super) const NVME_DRIVER: &str = "nvme";
/// How long process 1 may take to load it.
const LOAD_MAX: Duration = Duration::from_secs(30);

/// How many drives are lent, and who loads the driver for them.
#[derive(Debug)]
pub struct Loans {
    init_socket: PathBuf,
    /// Those that go out and come back do so one after the other.
    out: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    count: u32,
    /// It was loaded for them, and goes with the last of them.
    is_loaded: bool,
}

impl Loans {
    /// None is lent yet. Process 1 is asked at this socket.
    #[must_use]
    pub fn new(init_socket: impl Into<PathBuf>) -> Arc<Loans> {
        Arc::new(Loans {
            init_socket: init_socket.into(),
            out: Mutex::default(),
        })
    }

    /// Has the kernel's driver take this one drive. Blocks.
    pub(super) fn lend(
        self: Arc<Self>,
        host: &Root,
        address: PciAddress,
    ) -> Result<Lent, WipeError> {
        let failed = |problem: String| WipeError::Lend {
            drive: address.to_string(),
            problem,
        };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if !host.exists(&format!("sys/bus/pci/drivers/{NVME_DRIVER}")) {
            self.drive_module(true).map_err(failed)?;
            out.is_loaded = true;
        }
        match lend(host, address, NVME_DRIVER) {
            Ok(loan) => {
                out.count += 1;
                drop(out);
                Ok(Lent {
                    loans: self,
                    host: host.clone(),
                    loan,
                })
            }
            Err(error) => {
                self.unload_unused(&mut out);
                Err(failed(chain(&error)))
            }
        }
    }

    fn unload_unused(&self, out: &mut Out) {
        if out.count > 0 || !out.is_loaded {
            return;
        }
        match self.drive_module(false) {
            Ok(()) => out.is_loaded = false,
            Err(problem) => tracing::warn!(problem, "the kernel's driver for drives stays"),
        }
    }

    fn drive_module(&self, loaded: bool) -> Result<(), String> {
        match call(
            &self.init_socket,
            &Request::DriveModule { loaded },
            LOAD_MAX,
        ) {
            Ok(Answer::Done { .. }) => Ok(()),
            Ok(Answer::Error { text }) => Err(format!("the kernel's driver for drives: {text}")),
            Ok(other) => Err(format!(
                "init gave another answer than was asked for: {other:?}"
            )),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// A drive that is lent. Dropping it makes it what it was.
#[derive(Debug)]
pub(super) struct Lent {
    loans: Arc<Loans>,
    host: Root,
    loan: Loan,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut out = self
            .loans
            .out
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.loan.give_back(&self.host) {
            tracing::error!(
                error = chain(&error),
                "a drive that was wiped is not what it was"
            );
        }
        out.count = out.count.saturating_sub(1);
        self.loans.unload_unused(&mut out);
    }
}
