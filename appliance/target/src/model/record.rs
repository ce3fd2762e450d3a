//! Objects as records of the store: the API's own messages, whose field numbers never change.

use std::sync::Arc;

use api::v1;
use metastore::{Batch, Contents, Record};
use prost::Message as _;

use super::{AgentState, Change, Key, Limits, Model, Object, SavedReservation, Stored};

/// Why a stored record is no object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes are no such message.
    #[error("the stored {kind} {name:?} cannot be read")]
    Decode {
        /// Kind of record.
        kind: String,
        /// Name of record.
        name: String,
        /// What prost said.
        source: prost::DecodeError,
    },
    /// The message lacks its specification, or hangs under a subsystem that is not there.
    #[error("the stored {kind} {name:?} is incomplete")]
    Incomplete {
        /// Kind of record.
        kind: String,
        /// Name of record.
        name: String,
    },
    /// A newer program wrote it.
    #[error("the state holds a {kind:?}, which this program does not know; run the newer one")]
    UnknownKind {
        /// Kind of record.
        kind: String,
    },
}

/// Kind of the records of [`SavedReservation`]s.
const RESERVATION: &str = "reservation";
/// Kind of the one record of [`AgentState`], and its name.
const AGENT: &str = "agent";
const AGENT_STATE: &str = "state";

/// The name of a record. A newline cannot be part of any name, so no two keys share one.
fn record_name(key: &Key) -> String {
    match key {
        Key::Transport(name) | Key::Bdev(name) | Key::Pool(name) | Key::Subsystem(name) => {
            name.clone()
        }
        Key::Namespace(nqn, nsid) => format!("{nqn}\n{nsid}"),
        Key::Listener(nqn, other) | Key::Host(nqn, other) => format!("{nqn}\n{other}"),
    }
}

/// What the store has to write for a change.
#[must_use]
pub fn batch(change: &Change) -> Batch {
    let mut batch = Batch::new(change.revision);
    for edit in &change.edits {
        let name = record_name(&edit.key);
        match &edit.new {
            Some(new) => batch.put(edit.key.kind(), &name, encode(&edit.key, new)),
            None => batch.delete(edit.key.kind(), &name),
        }
        if let (Key::Namespace(..), None) = (&edit.key, &edit.new) {
            // What hosts have reserved goes with it.
            batch.delete(RESERVATION, &name);
        }
    }
    for saved in &change.reservations {
        let name = record_name(&Key::Namespace(saved.nqn.clone(), saved.nsid));
        match &saved.record {
            Some(record) => batch.put(RESERVATION, &name, record.clone()),
            None => batch.delete(RESERVATION, &name),
        }
    }
    match &change.agent_state {
        Some(AgentState(state)) if state.is_empty() => batch.delete(AGENT, AGENT_STATE),
        Some(AgentState(state)) => batch.put(AGENT, AGENT_STATE, state.clone()),
        None => {}
    }
    batch
}

fn encode(key: &Key, object: &Object) -> Vec<u8> {
    let nqn = || match key {
        Key::Namespace(nqn, _) | Key::Listener(nqn, _) | Key::Host(nqn, _) => nqn.clone(),
        _ => String::new(),
    };
    match object {
        Object::Transport(stored) => stored.spec.encode_to_vec(),
        Object::Bdev(stored) => stored.spec.encode_to_vec(),
        Object::Pool(stored) => stored.spec.encode_to_vec(),
        Object::Subsystem(stored) => stored.spec.encode_to_vec(),
        Object::Namespace(stored) => {
            let spec = Some(stored.spec.clone());
            v1::Namespace {
                nqn: nqn(),
                spec,
                ..v1::Namespace::default()
            }
            .encode_to_vec()
        }
        Object::Listener(stored) => {
            let spec = Some(stored.spec.clone());
            v1::Listener {
                nqn: nqn(),
                spec,
                ..v1::Listener::default()
            }
            .encode_to_vec()
        }
        Object::Host(stored) => {
            let spec = Some(stored.spec.clone());
            v1::Host {
                subsystem_nqn: nqn(),
                spec,
                ..v1::Host::default()
            }
            .encode_to_vec()
        }
    }
}

impl Model {
    /// The model that a store holds.
    ///
    /// # Errors
    /// When a record cannot be read; nothing is guessed.
    pub fn restore(limits: Limits, contents: &Contents) -> Result<Model, RecordError> {
        let mut model = Model::new(limits);
        let mut objects = Vec::with_capacity(contents.records.len());
        for record in &contents.records {
            if record.kind == RESERVATION || record.kind == AGENT {
                // Not an object: see `reservations` and `agent_state`.
                continue;
            }
            objects.push((decode(record)?, record));
        }
        // Subsystems before what hangs under them.
        objects.sort_by(|(a, _), (b, _)| a.0.cmp(&b.0));
        for ((key, object), record) in objects {
            if let Key::Namespace(nqn, _) | Key::Listener(nqn, _) | Key::Host(nqn, _) = &key
                && !model.subsystems.contains_key(nqn)
            {
                return Err(incomplete(record));
            }
            model.set(&key, Some(object));
        }
        model.revision = contents.generation;
        Ok(model)
    }
}

/// What a store holds for the agent.
#[must_use]
pub fn agent_state(contents: &Contents) -> AgentState {
    let mut records = contents.records.iter();
    let record = records.find(|record| record.kind == AGENT && record.name == AGENT_STATE);
    record.map_or_else(AgentState::default, |record| {
        AgentState(record.value.clone())
    })
}

/// The reservations that a store holds.
///
/// # Errors
/// When a record's name is no namespace's.
pub fn reservations(contents: &Contents) -> Result<Vec<SavedReservation>, RecordError> {
    let records = contents.records.iter();
    records
        .filter(|record| record.kind == RESERVATION)
        .map(|record| {
            let name = record.name.split_once('\n');
            let (nqn, nsid) = name.ok_or_else(|| incomplete(record))?;
            Ok(SavedReservation {
                nqn: nqn.to_owned(),
                nsid: nsid.parse().map_err(|_| incomplete(record))?,
                record: Some(record.value.clone()),
            })
        })
        .collect()
}

fn incomplete(record: &Record) -> RecordError {
    RecordError::Incomplete {
        kind: record.kind.clone(),
        name: record.name.clone(),
    }
}

fn decode(record: &Record) -> Result<(Key, Object), RecordError> {
    let bytes = record.value.as_slice();
    let failed = |source| RecordError::Decode {
        kind: record.kind.clone(),
        name: record.name.clone(),
        source,
    };
    let generation = record.generation;
    Ok(match record.kind.as_str() {
        "transport" => {
            let spec = v1::TransportSpec::decode(bytes).map_err(failed)?;
            let key = Key::Transport(spec.trtype.clone());
            (
                key,
                Object::Transport(Arc::new(Stored { spec, generation })),
            )
        }
        "bdev" => {
            let spec = v1::BdevSpec::decode(bytes).map_err(failed)?;
            if spec.kind.is_none() {
                return Err(RecordError::UnknownKind {
                    kind: format!("kind of bdev {}", spec.name),
                });
            }
            let key = Key::Bdev(spec.name.clone());
            (key, Object::Bdev(Arc::new(Stored { spec, generation })))
        }
        "pool" => {
            let spec = v1::PoolSpec::decode(bytes).map_err(failed)?;
            let key = Key::Pool(spec.name.clone());
            (key, Object::Pool(Arc::new(Stored { spec, generation })))
        }
        "subsystem" => {
            let spec = v1::SubsystemSpec::decode(bytes).map_err(failed)?;
            let key = Key::Subsystem(spec.nqn.clone());
            (
                key,
                Object::Subsystem(Arc::new(Stored { spec, generation })),
            )
        }
        "namespace" => {
            let message = v1::Namespace::decode(bytes).map_err(failed)?;
            let spec = message.spec.ok_or_else(|| incomplete(record))?;
            let key = Key::Namespace(message.nqn, spec.nsid);
            (
                key,
                Object::Namespace(Arc::new(Stored { spec, generation })),
            )
        }
        "listener" => {
            let message = v1::Listener::decode(bytes).map_err(failed)?;
            let spec = message.spec.ok_or_else(|| incomplete(record))?;
            let address = spec.address.as_ref().ok_or_else(|| incomplete(record))?;
            let key = Key::Listener(message.nqn, address.uri());
            (key, Object::Listener(Arc::new(Stored { spec, generation })))
        }
        "host" => {
            let message = v1::Host::decode(bytes).map_err(failed)?;
            let spec = message.spec.ok_or_else(|| incomplete(record))?;
            let key = Key::Host(message.subsystem_nqn, spec.nqn.clone());
            (key, Object::Host(Arc::new(Stored { spec, generation })))
        }
        kind => {
            return Err(RecordError::UnknownKind {
                kind: kind.to_owned(),
            });
        }
    })
}
