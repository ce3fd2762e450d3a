//! Errors of `lvol` as the control plane tells them.

use lvol::LvolError;

use crate::error::{ControlError, chain};

/// What was asked, of which pool.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) pool: String,
    /// The name within the pool; empty for the pool itself.
    pub(super) name: String,
    /// As a clause: "creating", "deleting".
    pub(super) doing: &'static str,
}

impl Asked {
    fn what(&self) -> String {
        let Asked { pool, name, doing } = self;
        if name.is_empty() {
            format!("{doing} pool {pool}")
        } else {
            format!("{doing} {} {pool}/{name}", kind(name))
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.pool)
    }

    /// The error as the control plane tells it.
    pub(super) fn failed(&self, error: LvolError) -> ControlError {
        let what = self.what();
        match error {
            LvolError::NotFound { name } => ControlError::NotFound {
                kind: kind(&name),
                name: self.full(&name),
            },
            LvolError::Exists { name } => ControlError::Exists {
                kind: kind(&name),
                name: self.full(&name),
                differences: Vec::new(),
            },
            LvolError::Name { name, problem } => ControlError::field(
                format!("{} {:?}", kind(&name), self.full(&name)),
                "name",
                problem,
            ),
            LvolError::Refused { name, problem } => ControlError::Precondition {
                problem: format!("{} {:?} {problem}", kind(&name), self.full(&name)),
                subject: self.full(&name),
            },
            error @ LvolError::NoSpace { .. } => ControlError::NoSpace {
                what,
                pool: self.pool.clone(),
                reason: chain(&error),
            },
            error @ LvolError::Busy { .. } => ControlError::Busy {
                what,
                reason: chain(&error),
            },
            error @ (LvolError::Closed
            | LvolError::Faulted { .. }
            | LvolError::NameDamaged { .. }) => ControlError::Precondition {
                subject: self.pool.clone(),
                problem: format!("{what} failed: {}", chain(&error)),
            },
            error => ControlError::Failed {
                what,
                reason: chain(&error),
            },
        }
    }

    /// What `lvol` does not have.
    pub(super) fn unimplemented(&self) -> ControlError {
        ControlError::Unimplemented { what: self.what() }
    }
}

/// What a name within a pool is a name of.
fn kind(name: &str) -> &'static str {
    if name.contains('@') {
        "snapshot"
    } else {
        "volume"
    }
}
