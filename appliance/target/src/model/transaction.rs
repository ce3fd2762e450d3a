//! Changes of the model, all or nothing.

use super::{Edit, Key, Model, Object};
use crate::error::ControlError;

/// A change under way. Dropped unfinished, it takes back what it did.
#[derive(Debug)]
pub struct Transaction<'a> {
    pub(super) model: &'a mut Model,
    edits: Vec<Edit>,
    reservations: Vec<SavedReservation>,
    agent_state: Option<AgentState>,
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The revision that it made.
    pub revision: u64,
    /// Its steps, in order.
    pub edits: Vec<Edit>,
    /// Reservations to keep beside the objects, or to forget.
    pub reservations: Vec<SavedReservation>,
    /// What the agent has kept from now on.
    pub agent_state: Option<AgentState>,
}

/// What is kept of a namespace's reservations: no object of the model, as hosts change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedReservation {
    /// The subsystem.
    pub nqn: String,
    /// The namespace.
    pub nsid: u32,
    /// The record; `None` when nothing is kept any more.
    pub record: Option<Vec<u8>>,
}

/// What the agent keeps with the node's state: no object of the model, and nobody's but the agent's. It
/// holds keys. Empty when nothing is kept.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AgentState(pub Vec<u8>);

impl std::fmt::Debug for AgentState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentState({} bytes)", self.0.len())
    }
}

impl<'a> Transaction<'a> {
    pub(super) fn new(model: &'a mut Model) -> Transaction<'a> {
        Transaction {
            model,
            edits: Vec::new(),
            reservations: Vec::new(),
            agent_state: None,
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
        let reservations = std::mem::take(&mut self.reservations);
        let agent_state = self.agent_state.take();
        if edits.is_empty() && reservations.is_empty() && agent_state.is_none() {
            return None;
        }
        self.model.revision += 1;
        Some(Change {
            revision: self.model.revision,
            edits,
            reservations,
            agent_state,
        })
    }

    /// Keeps what hosts have made of a namespace's reservations.
    ///
    /// # Errors
    /// There is no such namespace: of one that is gone nothing may stay behind.
    pub fn put_reservation(&mut self, saved: SavedReservation) -> Result<(), ControlError> {
        let subsystem = self.model.subsystems.get(&saved.nqn);
        if subsystem.is_none_or(|entry| !entry.namespaces.contains_key(&saved.nsid)) {
            return Err(Self::not_found(&Key::Namespace(saved.nqn, saved.nsid)));
        }
        self.reservations.push(saved);
        Ok(())
    }

    /// Keeps what the agent gives.
    pub fn put_agent_state(&mut self, state: AgentState) {
        self.agent_state = Some(state);
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
