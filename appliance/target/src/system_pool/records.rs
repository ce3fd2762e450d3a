//! The node's records as a pool keeps them.
//!
//! A key is the kind, a zero, and the name; a value is the generation of the record, 8 bytes little-endian, and
//! the record's value. The node's identity is a record beside the others: in a directory it is a file.

use std::collections::BTreeMap;

use lvol::{NodeChange, NodeState};
use metastore::{Batch, Contents, Record};

/// Kind and name of the record that holds the node's identity.
const IDENTITY: (&str, &str) = ("node", "id");

fn key(kind: &str, name: &str) -> Vec<u8> {
    [kind.as_bytes(), &[0], name.as_bytes()].concat()
}

fn value(generation: u64, value: &[u8]) -> Vec<u8> {
    [&generation.to_le_bytes(), value].concat()
}

fn identity(node_id: &str) -> (Vec<u8>, Vec<u8>) {
    let (kind, name) = IDENTITY;
    (key(kind, name), value(0, node_id.as_bytes()))
}

/// What is in the state's file, as a pool is to have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) generation: u64,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Mirror {
    pub(super) fn of(contents: &Contents) -> Mirror {
        let records = contents.records.iter().map(|record| {
            let bytes = value(record.generation, &record.value);
            (key(&record.kind, &record.name), bytes)
        });
        Mirror {
            generation: contents.generation,
            records: records.collect(),
        }
    }

    /// A batch that follows is in the file.
    pub(super) fn apply(&mut self, batch: &Batch) {
        self.generation = batch.generation();
        for (kind, name, bytes) in batch.changes() {
            let key = key(kind, name);
            match bytes {
                Some(bytes) => self.records.insert(key, value(self.generation, bytes)),
                None => self.records.remove(&key),
            };
        }
    }

    /// All of it, of the node with this identity.
    pub(super) fn state(&self, node_id: &str) -> NodeState {
        let mut records = self.records.clone();
        records.extend([identity(node_id)]);
        NodeState {
            generation: self.generation,
            records: records.into_iter().collect(),
        }
    }
}

/// Batches that follow each other, as one change.
pub(super) fn change_of<'a>(batches: impl Iterator<Item = &'a Batch>) -> NodeChange {
    let mut change = NodeChange::default();
    for batch in batches {
        change.generation = batch.generation();
        for (kind, name, bytes) in batch.changes() {
            let bytes = bytes.map(|bytes| value(change.generation, bytes));
            change.changes.push((key(kind, name), bytes));
        }
    }
    change
}

/// Whose state it is.
pub(super) fn node_id_of(state: &NodeState) -> Option<String> {
    let (wanted, _) = identity("");
    let (_, value) = state.records.iter().find(|(key, _)| *key == wanted)?;
    let text = String::from_utf8(value.get(8..)?.to_vec()).ok()?;
    uuid::Uuid::parse_str(&text).ok()?;
    Some(text)
}

/// The identity and the contents that a pool has kept.
///
/// # Errors
/// Which record is none.
pub(super) fn contents_of(state: &NodeState) -> Result<(String, Contents), String> {
    let node_id = node_id_of(state).ok_or("it does not say whose state it is")?;
    let mut contents = Contents {
        generation: state.generation,
        records: Vec::with_capacity(state.records.len()),
    };
    let (own, _) = identity("");
    for (key, value) in state.records.iter().filter(|(key, _)| *key != own) {
        let record = record_of(key, value);
        let record = record.ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            format!("its record {key:?} cannot be read")
        })?;
        contents.records.push(record);
    }
    Ok((node_id, contents))
}

fn record_of(key: &[u8], value: &[u8]) -> Option<Record> {
    let (kind, name) = std::str::from_utf8(key).ok()?.split_once('\0')?;
    let (generation, value) = value.split_first_chunk::<8>()?;
    Some(Record {
        kind: kind.to_owned(),
        name: name.to_owned(),
        generation: u64::from_le_bytes(*generation),
        value: value.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    #[test]
    fn contents_come_back_from_a_pool_as_they_were() {
        let record = |kind: &str, name: &str, generation| Record {
            kind: kind.to_owned(),
            name: name.to_owned(),
            generation,
            value: vec![1, 2],
        };
        let contents = Contents {
            generation: 5,
            records: vec![
                record("bdev", "a", 3),
                record("bdev", "a\n1", 5),
                record("pool", "", 1),
            ],
        };
        let mut mirror = Mirror::of(&contents);
        let state = mirror.state(ID);
        assert_eq!(contents_of(&state), Ok((ID.to_owned(), contents)));
        // The same by batches and at once.
        let mut batch = Batch::new(6);
        batch.put("bdev", "b", vec![9]);
        batch.delete("bdev", "a");
        mirror.apply(&batch);
        let mut records: BTreeMap<_, _> = state.records.into_iter().collect();
        let change = change_of([&batch].into_iter());
        for (key, value) in change.changes {
            match value {
                Some(value) => records.insert(key, value),
                None => records.remove(&key),
            };
        }
        let state = mirror.state(ID);
        assert_eq!(state.generation, change.generation);
        assert_eq!(state.records, records.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_state_without_an_identity_is_nobodys() {
        let state = Mirror::default().state("no uuid");
        contents_of(&state).unwrap_err();
        contents_of(&NodeState::default()).unwrap_err();
    }

    proptest! {
        #[test]
        fn what_no_node_has_written_never_panics(
            records: Vec<(Vec<u8>, Vec<u8>)>, generation: u64,
        ) {
            let mut state = NodeState { generation, records };
            let _ = contents_of(&state);
            state.records.push(identity(ID));
            let _ = contents_of(&state);
        }
    }
}
