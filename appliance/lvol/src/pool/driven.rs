//! Operations that somebody outside the pool drives: images in and out, copies, scrubs.
//!
//! The pool keeps what there is to do, how far it is and whether it was cancelled; the work is the driver's.
//! After a restart the driver finds them in the list of operations, with the detail that it had given, and
//! goes on. Nothing here knows what the detail says.
//!
//! Deletions are shown as operations too. The collector does them, see [`super::garbage`].

use std::collections::HashSet;

use super::operation::{Operation, OperationKind, OperationState};
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::LayerId;

/// Operations driven from outside that may be under way in a pool.
const DRIVEN_MAX: usize = 64;
/// Deletions shown at a time. More go on without being shown.
const DELETIONS_MAX: usize = 256;
/// Longest detail or text, bytes.
const TEXT_BYTES_MAX: usize = 256 << 10;

impl PoolWorker {
    pub(super) fn operation(&self, id: u64) -> Result<&Operation, LvolError> {
        self.operations.get(&id).ok_or_else(|| LvolError::NotFound {
            name: format!("operation {id}"),
        })
    }

    /// What there is to see, with deletions as far as they are now.
    pub(super) fn list_operations(&self) -> Vec<Operation> {
        let shown = |operation: &Operation| {
            let mut operation = operation.clone();
            if operation.is_deletion() {
                let left = self.layers.get(&operation.layer);
                let left = left.map_or(0, |layer| layer.clusters);
                operation.done = operation.total.saturating_sub(left);
            }
            operation
        };
        self.operations.values().map(shown).collect()
    }

    pub(super) fn begin(
        &mut self,
        kind: OperationKind,
        subject: &str,
        total: u64,
        detail: String,
    ) -> Result<u64, LvolError> {
        let refused = |problem: String| LvolError::Refused {
            name: subject.to_owned(),
            problem,
        };
        if !kind.is_driven() {
            return Err(refused("is worked on by the pool itself".to_owned()));
        }
        check_text(subject, &detail)?;
        let driven = self.operations.values();
        let driven = driven.filter(|other| other.is_driven_now()).count();
        if driven >= DRIVEN_MAX {
            return Err(refused(format!(
                "has to wait: {driven} operations of the pool are under way, which is the most; \
                 cancel one or wait for it"
            )));
        }
        Ok(self.add_operation(Operation {
            total,
            detail,
            ..Operation::new(kind, subject)
        }))
    }

    /// Durable with the next commit, whoever asks for it.
    pub(super) fn progress(
        &mut self,
        id: u64,
        done: u64,
        detail: Option<String>,
    ) -> Result<OperationState, LvolError> {
        let mut operation = self.operation(id)?.clone();
        if operation.is_driven_now() {
            if let Some(detail) = detail {
                check_text(&operation.subject, &detail)?;
                operation.detail = detail;
            }
            operation.done = done.min(operation.total);
            let state = operation.state;
            self.put_operation(operation);
            return Ok(state);
        }
        Ok(operation.state)
    }

    pub(super) fn end(&mut self, id: u64, result: Result<String, String>) -> Result<(), LvolError> {
        let mut operation = self.operation(id)?.clone();
        if !operation.is_driven_now() {
            return Ok(());
        }
        (operation.state, operation.text) = match (operation.state, result) {
            // What was done before the driver learned of it stays done.
            (_, Ok(text)) => (OperationState::Done, text),
            (OperationState::Cancelling, Err(text)) => (OperationState::Cancelled, text),
            (_, Err(text)) => (OperationState::Failed, text),
        };
        if operation.state == OperationState::Done {
            operation.done = operation.total;
        }
        truncate(&mut operation.text, TEXT_BYTES_MAX);
        operation.detail = String::new();
        self.put_operation(operation);
        self.forget_old_operations();
        Ok(())
    }

    /// Shows a deletion. None when there is nothing to give back, or too many are shown already.
    pub(super) fn show_deletion(&mut self, name: &str, layer: LayerId) -> Option<u64> {
        let record = self.layers.get(&layer)?;
        let (clusters, children) = (record.clusters, record.children);
        if clusters == 0 && !self.is_uncommitted(layer) {
            return None;
        }
        let deletions = self.operations.values();
        if deletions.filter(|other| other.is_deletion()).count() >= DELETIONS_MAX {
            return None;
        }
        let mut operation = Operation {
            total: clusters,
            layer,
            ..Operation::new(OperationKind::Delete, name)
        };
        if children > 1 {
            // That may be for ever: nobody shall wait for it.
            operation.state = OperationState::Done;
            operation.text = format!(
                "gone by its name; {children} others lie on it and share what it has, which comes back \
                 as they are deleted"
            );
        }
        Some(self.add_operation(operation))
    }

    /// All that a layer had is given back, or it cannot be.
    pub(super) fn end_deletion(&mut self, layer: LayerId, failed: Option<String>) {
        let mut operations = self.operations.values();
        let found = operations.find(|other| other.is_deletion() && other.layer == layer);
        let Some(mut operation) = found.cloned() else {
            return;
        };
        operation.done = operation.total;
        operation.state = OperationState::Done;
        if let Some(reason) = failed {
            operation.done = 0;
            operation.state = OperationState::Failed;
            operation.text = reason;
        }
        self.put_operation(operation);
    }

    /// After the pool was opened: deletions whose layer is gone have ended.
    pub(super) fn load_deletions(&mut self) {
        let shown = self.operations.values().filter(|other| other.is_deletion());
        let layers: HashSet<LayerId> = shown.map(|operation| operation.layer).collect();
        for layer in layers {
            if !self.layers.contains_key(&layer) {
                self.end_deletion(layer, None);
            }
        }
    }
}

impl Operation {
    fn is_deletion(&self) -> bool {
        self.kind == OperationKind::Delete && self.state == OperationState::Running
    }
}

fn check_text(subject: &str, text: &str) -> Result<(), LvolError> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(LvolError::Refused {
        name: subject.to_owned(),
        problem: format!("comes with a detail of more than {TEXT_BYTES_MAX} bytes"),
    })
}

/// Cuts a text at a character, so that it has at most so many bytes.
fn truncate(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
}
