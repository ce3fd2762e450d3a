//! The one place where a device's errors become NVMe status values.

use block::IoError;
use nvme_spec::Status;

use crate::target::TargetOptions;

/// The NVMe status of a failed block I/O (NVM Command Set 1.1, section 3, "Status Code" tables).
///
/// "Do Not Retry" is set where the same command can only fail again, and left clear where the
/// host does well to try again or to use another path.
pub(crate) fn of_io_error(error: IoError, options: &TargetOptions) -> Status {
    match error {
        IoError::OutOfRange => Status::LBA_OUT_OF_RANGE.with_dnr(true),
        IoError::InvalidField => Status::INVALID_FIELD.with_dnr(true),
        IoError::Unsupported => Status::INVALID_OPCODE.with_dnr(true),
        IoError::WriteProtected => Status::NAMESPACE_WRITE_PROTECTED.with_dnr(true),
        IoError::MediaRead => Status::UNRECOVERED_READ_ERROR.with_dnr(true),
        IoError::MediaWrite => Status::WRITE_FAULT.with_dnr(true),
        IoError::CompareMismatch { .. } => Status::COMPARE_FAILURE.with_dnr(true),
        IoError::NoSpace => Status::CAPACITY_EXCEEDED,
        IoError::Aborted => Status::COMMAND_ABORT_REQUESTED,
        IoError::Removed => Status::NAMESPACE_NOT_READY,
        IoError::Internal => Status::INTERNAL_ERROR,
        IoError::Busy => later(Status::NAMESPACE_NOT_READY, options),
        IoError::Injected { sct, sc, dnr } => Status::new(sct, sc).with_dnr(dnr),
        _ => Status::INTERNAL_ERROR,
    }
}

/// No buffer, and no room to wait for one: the host shall come again.
pub(crate) fn no_buffer(options: &TargetOptions) -> Status {
    later(Status::INTERNAL_ERROR, options)
}

/// CRD 1 tells the host to wait for the time in Identify CRDT1 before it tries again.
fn later(status: Status, options: &TargetOptions) -> Status {
    status.with_crd(u8::from(options.crdt1_100ms > 0))
}
