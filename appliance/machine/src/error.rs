//! What can go wrong.

use std::io;

use crate::PciAddress;

/// The host could not be read so far that a plan would be safe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FactsError {
    /// A file that says what is in use could not be read.
    #[error("cannot read /{path}, without which nothing can be called unused")]
    Read {
        /// The file, below the root.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An action failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The kernel did not take a write.
    #[error("cannot write {text:?} to /{path}")]
    Write {
        /// The file, below the root.
        path: String,
        /// What was written.
        text: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be read back.
    #[error("cannot read /{path}")]
    Read {
        /// The file, below the root.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The host changed between plan and action.
    #[error("{address} is left alone: {reason}; make a new plan")]
    InUse {
        /// The function.
        address: PciAddress,
        /// Who uses it.
        reason: String,
    },
    /// The state of the host could not be read again before a device was taken.
    #[error("cannot look again who uses {address}")]
    Recheck {
        /// The function.
        address: PciAddress,
        /// What could not be read.
        source: FactsError,
    },
    /// The kernel did not make or remove an RDMA device.
    #[error(
        "soft-RoCE device {name}: the kernel refuses: are ib_core and rdma_rxe loaded, and \
         crc32_generic before them on Linux 6.12?"
    )]
    RdmaLink {
        /// The device.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// What was written was not what was read back.
    #[error("{subject}: {reason}")]
    NotTaken {
        /// What the action is on.
        subject: String,
        /// What is, what should be, and what to do.
        reason: String,
    },
}
