//! Errors of the control plane.

use api::fields::Difference;

pub(crate) use logging::chain;

/// A field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request, e.g. `bdev.malloc.size_bytes`.
    pub field: String,
    /// What is wrong and what would be right.
    pub description: String,
}

/// Why a call failed. `status.rs` makes a gRPC status of it, and nothing else does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Fields are wrong by themselves.
    #[error("{what} is not valid: {}", first(.violations))]
    Invalid {
        /// What was to be made or changed.
        what: String,
        /// Every field that is wrong.
        violations: Vec<Violation>,
    },
    /// There is no such object.
    #[error("there is no {kind} {name:?}")]
    NotFound {
        /// Kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one of this name that differs.
    #[error("{kind} {name:?} exists already and is different")]
    Exists {
        /// Kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Fields that differ: as it is, as it was asked for.
        differences: Vec<Difference>,
    },
    /// It changed since the caller looked.
    #[error("{kind} {name:?} has generation {actual}, not {expected}: it was changed meanwhile")]
    Generation {
        /// Kind of object, or "state" for all of it.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the caller expected.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// Something else uses it.
    #[error("{kind} {name:?} is in use by {}; remove that first", users.join(", "))]
    InUse {
        /// Kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Who uses it.
        users: Vec<String>,
    },
    /// The state of things does not allow it.
    #[error("{problem}")]
    Precondition {
        /// The object that stands in the way.
        subject: String,
        /// What is the matter and what to do.
        problem: String,
    },
    /// A bound of this node is reached.
    #[error("there are {max} {what} already, the limit of this node; {option} raises it")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        max: usize,
        /// The option to change.
        option: &'static str,
    },
    /// The data plane will not do it.
    #[error("{what} cannot be put in place: {reason}")]
    Refused {
        /// The object.
        what: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A pool could not do what was asked.
    #[error("{what} failed: {reason}")]
    Failed {
        /// What was asked, of what.
        what: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A pool has no space for it.
    #[error("{what} needs more space than pool {pool:?} has: {reason}")]
    NoSpace {
        /// What was asked.
        what: String,
        /// The pool.
        pool: String,
        /// How much is missing, and what to do.
        reason: String,
    },
    /// More wait for it than may.
    #[error("{what} has no turn now: {reason}")]
    Busy {
        /// What was asked, of what.
        what: String,
        /// What it would wait for.
        reason: String,
    },
    /// This program cannot do it.
    #[error("{what}: this version does not do that yet")]
    Unimplemented {
        /// What was asked, of what.
        what: String,
    },
    /// The state could not be stored; nothing was changed.
    #[error("nothing was changed: {0}")]
    Store(#[from] metastore::CommitError),
    /// Events that old are no longer kept.
    #[error(
        "events after revision {asked} are no longer kept; list the objects and watch from {oldest}"
    )]
    EventsGone {
        /// The revision in the request.
        asked: u64,
        /// The oldest from which events are kept.
        oldest: u64,
    },
    /// The node is being shut down.
    #[error("this node is draining and takes no changes")]
    Draining,
}

fn first(violations: &[Violation]) -> String {
    match violations {
        [] => "it is empty".to_owned(),
        [one] => format!("{} {}", one.field, one.description),
        [one, rest @ ..] => format!("{} {}, and {} more", one.field, one.description, rest.len()),
    }
}

impl ControlError {
    /// One field is wrong.
    pub(crate) fn field(
        what: impl Into<String>,
        field: impl Into<String>,
        description: impl Into<String>,
    ) -> ControlError {
        ControlError::Invalid {
            what: what.into(),
            violations: vec![Violation {
                field: field.into(),
                description: description.into(),
            }],
        }
    }
}
