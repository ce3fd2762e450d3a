//! The one place where an error of the control plane becomes a gRPC status.

use std::collections::HashMap;

use metastore::CommitError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::error::ControlError;

/// `domain` of google.rpc.ErrorInfo.
const DOMAIN: &str = "adit";

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Status {
        let mut details = ErrorDetails::new();
        let code = describe(&error, &mut details);
        Status::with_error_details(code, error.to_string(), details)
    }
}

fn info(details: &mut ErrorDetails, reason: &str, metadata: &[(&str, String)]) {
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    details.set_error_info(reason, DOMAIN, metadata);
}

fn describe(error: &ControlError, details: &mut ErrorDetails) -> Code {
    match error {
        ControlError::Invalid { violations, .. } => {
            for violation in violations {
                details.add_bad_request_violation(&violation.field, &violation.description);
            }
            Code::InvalidArgument
        }
        ControlError::NotFound { kind, name } => {
            details.set_resource_info(*kind, name, "", "there is no such object");
            info(details, "NOT_FOUND", &[]);
            Code::NotFound
        }
        ControlError::Exists {
            kind,
            name,
            differences,
        } => {
            details.set_resource_info(*kind, name, "", "it exists and is different");
            for difference in differences {
                let description = format!(
                    "it is {}, asked for was {}",
                    difference.first, difference.second
                );
                details.add_bad_request_violation(&difference.field, description);
            }
            info(details, "DIFFERENT", &[]);
            Code::AlreadyExists
        }
        ControlError::Generation {
            expected, actual, ..
        } => {
            let metadata = [
                ("expected", expected.to_string()),
                ("actual", actual.to_string()),
            ];
            info(details, "GENERATION", &metadata);
            Code::Aborted
        }
        ControlError::InUse { users, .. } => {
            for user in users {
                details.add_precondition_failure_violation("IN_USE", user, "it uses the object");
            }
            Code::FailedPrecondition
        }
        ControlError::Precondition { subject, problem } => {
            details.add_precondition_failure_violation("STATE", subject, problem);
            Code::FailedPrecondition
        }
        ControlError::Limit { what, max, option } => {
            details.add_quota_failure_violation(*what, format!("at most {max}; see {option}"));
            Code::ResourceExhausted
        }
        ControlError::Refused { what, reason } => {
            details.add_precondition_failure_violation("REFUSED", what, reason);
            Code::FailedPrecondition
        }
        ControlError::Failed { what, .. } => {
            info(details, "FAILED", &[("what", what.clone())]);
            Code::Internal
        }
        ControlError::NoSpace { pool, reason, .. } => {
            details.add_quota_failure_violation(format!("space of pool {pool}"), reason);
            Code::ResourceExhausted
        }
        ControlError::Busy { what, .. } => {
            info(details, "BUSY", &[("what", what.clone())]);
            Code::Unavailable
        }
        ControlError::Unimplemented { what } => {
            info(details, "UNIMPLEMENTED", &[("what", what.clone())]);
            Code::Unimplemented
        }
        ControlError::Store(cause) => match cause {
            CommitError::QueueFull => Code::ResourceExhausted,
            CommitError::TooLong { .. } => Code::InvalidArgument,
            CommitError::OutOfOrder { .. } => Code::Aborted,
            CommitError::Unknown { .. } => Code::Internal,
            _ => Code::Unavailable,
        },
        ControlError::EventsGone { .. } => Code::OutOfRange,
        ControlError::Draining => Code::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use api::fields::Difference;

    use super::*;

    #[test]
    fn details_carry_field_and_difference() {
        let error = ControlError::field("bdev \"a\"", "bdev.malloc.size_bytes", "must not be 0");
        let status = Status::from(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "bdev.malloc.size_bytes");

        let status = Status::from(ControlError::Exists {
            kind: "bdev",
            name: "a".into(),
            differences: vec![Difference {
                field: "malloc.size_bytes".into(),
                first: "1".into(),
                second: "2".into(),
            }],
        });
        assert_eq!(status.code(), Code::AlreadyExists);
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(
            bad.field_violations[0].description,
            "it is 1, asked for was 2"
        );
    }
}
