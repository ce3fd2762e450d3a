//! What can go wrong with a call.

use std::io;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// The libraries are not there.
    #[error(
        "rdma is not available: {what}; install libibverbs1, librdmacm1 and ibverbs-providers, and \
         load the kernel's modules rdma_cm and rdma_ucm"
    )]
    NotAvailable {
        /// What is missing.
        what: String,
    },
    /// A call failed.
    #[error("{call} failed on {object}")]
    Call {
        /// The call's name in libibverbs or librdmacm.
        call: &'static str,
        /// The device, address or queue pair.
        object: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The device cannot do it.
    #[error("device {device} cannot do {what}")]
    Unsupported {
        /// The device's name.
        device: String,
        /// What was asked of it.
        what: &'static str,
    },
    /// The device has not as many as wanted.
    #[error("{what} of {wanted} is above what device {device} has: {max}")]
    Limit {
        /// The device's name.
        device: String,
        /// What was asked for.
        what: &'static str,
        /// How many.
        wanted: u32,
        /// How many there can be.
        max: u32,
    },
    /// An object of another provider or device was given.
    #[error("{what} belongs to another device or provider")]
    Foreign {
        /// Which object.
        what: &'static str,
    },
    /// The device is gone.
    #[error("device {device} has been removed")]
    Removed {
        /// The device's name.
        device: String,
    },
}

impl VerbsError {
    /// A failed call with the system's reason.
    #[must_use]
    pub fn call(call: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Call {
            call,
            object: object.into(),
            source,
        }
    }
}

impl From<VerbsError> for io::Error {
    fn from(error: VerbsError) -> Self {
        let kind = match &error {
            VerbsError::Call { source, .. } => source.kind(),
            VerbsError::NotAvailable { .. } | VerbsError::Removed { .. } => io::ErrorKind::NotFound,
            VerbsError::Unsupported { .. } => io::ErrorKind::Unsupported,
            VerbsError::Limit { .. } | VerbsError::Foreign { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
