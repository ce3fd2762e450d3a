//! What can go wrong, and how it is told.

use std::fmt::Write as _;
use std::process::ExitCode;

use tonic_types::StatusExt as _;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// The server answered with an error.
    #[error("{}", .0.message())]
    Status(Box<tonic::Status>),
    /// The server cannot be reached.
    #[error(
        "cannot reach aditd at {server}: {reason}; is it running? Give its address with --server or \
         in ADIT_SERVER"
    )]
    Unreachable {
        /// Its address.
        server: String,
        /// The innermost cause.
        reason: String,
    },
    /// An option or argument is wrong in a way that clap cannot see.
    #[error("{0}")]
    Usage(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A document could not be read.
    #[error("{path}: {problem}")]
    Document {
        /// The file.
        path: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// An object is not in place yet and `--wait` ran out.
    #[error("{what} is still pending: {reason}")]
    Pending {
        /// The object.
        what: String,
        /// What is missing.
        reason: String,
    },
    /// An operation did not end well.
    #[error("operation {name} ({what}) {state}")]
    Operation {
        /// Its name.
        name: String,
        /// What it does, to what.
        what: String,
        /// How it ended, or that it goes on.
        state: String,
    },
    /// A pool is not well.
    #[error("{0} things are wrong; aditctl pool repair does what is said of each")]
    Findings(usize),
    /// A profile cannot be used.
    #[error("{0}")]
    Profile(String),
    /// Firmware or drives are not as wanted.
    #[error("{differs} settings are not as {profile} wants them")]
    FirmwareDiffers {
        /// The profile.
        profile: String,
        /// How many.
        differs: usize,
    },
    /// Nothing is known to differ, but not all is known.
    #[error(
        "{unreadable} settings that {profile} asks for cannot be read, the rest is as wanted; \
         --allow-unreadable makes that good enough"
    )]
    FirmwareUnreadable {
        /// The profile.
        profile: String,
        /// How many.
        unreadable: usize,
    },
    /// The initiator could not do what was asked.
    #[error("{what} failed: {reason}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// Why, with its causes.
        reason: String,
    },
    /// A rung of the ladder of `check` does not hold.
    #[error("{nqn} cannot be used: {rung}: {reason}")]
    Check {
        /// Which rung.
        rung: &'static str,
        /// The subsystem.
        nqn: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Standard output could not be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        Failure::Status(Box::new(status))
    }
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::FirmwareDiffers { .. } => ExitCode::from(3),
            Failure::FirmwareUnreadable { .. } => ExitCode::from(4),
            _ => ExitCode::FAILURE,
        }
    }

    /// The text for standard error: a line, and one for each detail that the server gave.
    pub(crate) fn report(&self) -> String {
        let mut text = format!("error: {self}\n");
        if let Failure::Status(status) = self {
            details(status, &mut text);
        }
        text
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

fn details(status: &tonic::Status, text: &mut String) {
    let details = status.get_error_details();
    if let Some(bad) = details.bad_request() {
        for violation in &bad.field_violations {
            let _ = writeln!(text, "  {}: {}", violation.field, violation.description);
        }
    }
    if let Some(failed) = details.precondition_failure() {
        for violation in &failed.violations {
            let _ = writeln!(text, "  {}: {}", violation.subject, violation.description);
        }
    }
    if let Some(info) = details.error_info() {
        let mut metadata: Vec<_> = info.metadata.iter().collect();
        metadata.sort();
        for (name, value) in metadata {
            let _ = writeln!(text, "  {name}: {value}");
        }
    }
    let reason = details
        .error_info()
        .map_or(String::new(), |info| format!(", {}", info.reason));
    let _ = writeln!(text, "  ({:?}{reason})", status.code());
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn details_of_the_server_are_shown() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("bdev.malloc.size_bytes", "must be a multiple of 512");
        details.set_error_info(
            "INVALID_SIZE",
            "adit",
            [("nearest".to_owned(), "1024".to_owned())],
        );
        let status = tonic::Status::with_error_details(
            tonic::Code::InvalidArgument,
            "bdev \"d0\" cannot be created",
            details,
        );
        assert_eq!(
            Failure::from(status).report(),
            "error: bdev \"d0\" cannot be created\n  bdev.malloc.size_bytes: must be a multiple of 512\n  \
             nearest: 1024\n  (InvalidArgument, INVALID_SIZE)\n"
        );
    }
}
