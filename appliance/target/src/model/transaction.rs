//! Changes of the model, all or nothing.

use super::{Edit, Key, Model, Object};
use crate::error::ControlError;

/// A change under way. Dropped unfinished, it takes back what it did.
#[derive(Debug)]
pub struct Transaction<'a> {
    pub(super) model: &'a mut Model,
    edits: Vec<Edit>,
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The revision that it made.
    pub revision: u64,
    /// Its steps, in order. Never empty.
    pub edits: Vec<Edit>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(model: &'a mut Model) -> Transaction<'a> {
        Transaction {
            model,
            edits: Vec::new(),
        }
    }

    /// The model with the steps made so far.
    #[must_use]
    pub fn model(&self) -> &Model {
        self.model
    }

    /// Steps made so far.
    #[must_use]
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// The revision that this transaction will make.
    pub(super) fn generation(&self) -> u64 {
        self.model.revision + 1
    }

    /// Keeps the steps. `None` when there were none: the state was so already.
    #[must_use]
    pub fn finish(mut self) -> Option<Change> {
        let edits = std::mem::take(&mut self.edits);
        if edits.is_empty() {
            return None;
        }
        self.model.revision += 1;
        Some(Change {
            revision: self.model.revision,
            edits,
        })
    }

    pub(super) fn put(&mut self, key: Key, new: Option<Object>) {
        let old = self.model.set(&key, new.clone());
        self.edits.push(Edit { key, old, new });
    }

    /// Refuses when the caller looked at an older object.
    pub(super) fn expect_generation(
        key: &Key,
        expected: Option<u64>,
        actual: u64,
    ) -> Result<(), ControlError> {
        match expected {
            Some(expected) if expected != actual => Err(ControlError::Generation {
                kind: key.kind(),
                name: key.name(),
                expected,
                actual,
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn not_found(key: &Key) -> ControlError {
        ControlError::NotFound {
            kind: key.kind(),
            name: key.name(),
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        for edit in self.edits.drain(..).rev() {
            self.model.set(&edit.key, edit.old);
        }
    }
}
