//! The error of control calls.

use std::time::Duration;

use nvme_spec::{Nsid, Status};

use crate::device::DeviceError;

/// Why a controller could not be made ready or an admin command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// A setting outside its range.
    #[error("option {option} is {value}: {expected}")]
    Option {
        /// Name of the setting.
        option: &'static str,
        /// What was given.
        value: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// A call on the PCI function failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The controller lacks what this driver needs.
    #[error("nvme controller {address} cannot be driven: {what}")]
    Unsupported {
        /// The function.
        address: String,
        /// What it lacks.
        what: &'static str,
    },
    /// Memory for queues could not be had.
    #[error("cannot get {len_bytes} bytes of memory for the queues of nvme controller {address}")]
    Memory {
        /// The function.
        address: String,
        /// Bytes asked for.
        len_bytes: usize,
        /// The cause.
        #[source]
        source: dma::DmaError,
    },
    /// CSTS.RDY did not follow CC.EN in time.
    #[error(
        "nvme controller {address} did not become {wanted} within {} ms, the time that it states \
         (CAP.TO): power-cycle the drive",
        .waited.as_millis()
    )]
    ReadyTimeout {
        /// The function.
        address: String,
        /// `ready` or `disabled`.
        wanted: &'static str,
        /// CAP.TO.
        waited: Duration,
    },
    /// The controller reports a fatal state.
    #[error("nvme controller {address} reports a fatal state (CSTS.CFS) while it is {doing}")]
    Fatal {
        /// The function.
        address: String,
        /// `enabled`, `set up`.
        doing: &'static str,
    },
    /// An admin command of the set-up failed.
    #[error("nvme controller {address}: {command} ended with {status}")]
    Command {
        /// The function.
        address: String,
        /// The command.
        command: &'static str,
        /// How it ended.
        status: Status,
    },
    /// The drive gave an admin command a status that is not success.
    #[error("admin command {opcode:#04x} ended with {status}")]
    Status {
        /// Opcode.
        opcode: u8,
        /// How it ended.
        status: Status,
    },
    /// An admin command did not end in time; the controller is being reset.
    #[error("admin command {opcode:#04x} did not end within {} ms", .waited.as_millis())]
    AdminTimeout {
        /// Opcode.
        opcode: u8,
        /// Its deadline.
        waited: Duration,
    },
    /// The controller was reset while the command was outstanding; it may have been done.
    #[error("admin command {opcode:#04x} was cut short by a controller reset: it may be done")]
    AdminReset {
        /// Opcode.
        opcode: u8,
    },
    /// All places for admin commands are taken.
    #[error("{limit} admin commands are outstanding already: try again when one has ended")]
    AdminBusy {
        /// The bound.
        limit: usize,
    },
    /// More data than an admin command may carry here.
    #[error("an admin command carries at most {limit} bytes of data, not {len_bytes}")]
    AdminData {
        /// Bytes asked for.
        len_bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// A namespace to be formatted is in use: I/O in flight would meet blocks of another size.
    #[error("namespace {nsid} of nvme controller {address} has open channels: close them first")]
    InUse {
        /// The function.
        address: String,
        /// The namespace.
        nsid: Nsid,
    },
    /// The controller takes no commands now.
    #[error("nvme controller {address} is {state}: no command can be sent")]
    NotReady {
        /// The function.
        address: String,
        /// Its state.
        state: &'static str,
    },
    /// The drive is gone.
    #[error("nvme controller {address} is gone: its registers read all ones")]
    Removed {
        /// The function.
        address: String,
    },
}
