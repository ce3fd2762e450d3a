//! The first start since the power came: whose state is on the drives.

use api::v1::PoolSpec;
use lvol::{NodeLook, NodeState};
use metastore::Contents;
use prost::Message as _;
use uuid::Uuid;

use super::records::{contents_of, node_id_of};

/// What a look at one device has shown.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    /// Where it is: the address of the drive, and the namespace.
    pub(crate) at: String,
    /// The pool there, `None` when there is none; or why nobody knows.
    pub(crate) found: Result<Option<NodeLook>, String>,
}

/// What a node begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// What a system pool has kept.
    Kept {
        /// The pool and where it is, for people.
        from: String,
        /// Whose state it is.
        node_id: String,
        /// The state.
        contents: Contents,
    },
    /// Nothing.
    Empty {
        /// What is wrong, in one sentence; `None` when no drive holds a system pool.
        problem: Option<String>,
    },
}

/// A pool that is marked.
struct Marked<'a> {
    /// Which one and where, for people.
    text: String,
    uuid: Uuid,
    state: &'a NodeState,
}

impl Marked<'_> {
    /// Whether the same node gave `other` up after `other` was written last. The mark stays on a pool whose
    /// drive was away then.
    fn has_given_up(&self, other: &Marked<'_>) -> bool {
        let own = node_id_of(self.state);
        let is_same_node = own.is_some() && own == node_id_of(other.state);
        if !is_same_node || self.state.generation <= other.state.generation {
            return false;
        }
        let contents = contents_of(self.state).map(|(_, contents)| contents);
        let records = contents.unwrap_or_default().records;
        let mut specs = records
            .iter()
            .filter(|record| record.kind == "pool")
            .filter_map(|record| PoolSpec::decode(record.value.as_slice()).ok());
        specs.any(|spec| {
            let uuid = spec.uuid.as_deref();
            let uuid = uuid.and_then(|text| Uuid::parse_str(text).ok());
            spec.system == Some(false) && uuid == Some(other.uuid)
        })
    }
}

/// Decides with what the node begins. Of two system pools nobody knows which one is meant: neither is used,
/// unless one says that it came after the other. A pool that is `named` is the only one that counts: the mark
/// of another may be what a host has written to a drive that it was given whole.
#[must_use]
pub(crate) fn decide(looked: &[Looked], named: Option<Uuid>) -> Beginning {
    let mut marked: Vec<Marked<'_>> = Vec::new();
    let mut problems = Vec::new();
    for Looked { at, found } in looked {
        match found {
            Ok(Some(NodeLook {
                name,
                uuid,
                state: Some(state),
            })) => {
                let uuid = Uuid::from_bytes(*uuid);
                let text = format!("{name:?} ({uuid}) on {at}");
                if named.is_some_and(|named| named != uuid) {
                    tracing::warn!(
                        text,
                        "it is marked as the system pool, and another one is named"
                    );
                    continue;
                }
                marked.push(Marked { text, uuid, state });
            }
            Ok(_) => {}
            Err(why) => problems.push(format!("{at}: {why}")),
        }
    }
    for problem in &problems {
        tracing::warn!(problem, "looking for the system pool: not seen");
    }
    let empty = |problem| Beginning::Empty {
        problem: Some(problem),
    };
    let mut pools: Vec<(&str, &NodeState)> = Vec::new();
    for pool in &marked {
        let text = pool.text.as_str();
        if marked.iter().any(|other| other.has_given_up(pool)) {
            tracing::warn!(text, "it was given up as the system pool, and is not used");
        } else {
            pools.push((text, pool.state));
        }
    }
    match pools.as_slice() {
        [] if problems.is_empty() => match named {
            None => Beginning::Empty { problem: None },
            Some(uuid) => empty(format!("the system pool {uuid} was not found")),
        },
        [] => empty(format!(
            "no system pool was found, and not every drive could be looked at ({})",
            problems.join("; ")
        )),
        [(from, state)] if **state == NodeState::default() => {
            empty(format!("the system pool {from} holds no state yet"))
        }
        [(from, state)] => match contents_of(state) {
            Ok((node_id, contents)) => Beginning::Kept {
                from: (*from).to_owned(),
                node_id,
                contents,
            },
            Err(why) => empty(format!(
                "the state in the system pool {from} is not used: {why}"
            )),
        },
        several => {
            let several: Vec<&str> = several.iter().map(|(from, _)| *from).collect();
            empty(format!(
                "there are {} system pools, and none of them is used: {}; import the one that is not \
                 meant, take the mark off it with pool set NAME --no-system, and restart the node",
                several.len(),
                several.join(" and ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system_pool::records::Mirror;

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    fn looked(at: &str, pool: &str, state: Option<NodeState>) -> Looked {
        let look = NodeLook {
            name: pool.to_owned(),
            uuid: [7; 16],
            state,
        };
        Looked {
            at: at.to_owned(),
            found: Ok(Some(look)),
        }
    }

    fn nothing(at: &str) -> Looked {
        Looked {
            at: at.to_owned(),
            found: Ok(None),
        }
    }

    fn kept() -> NodeState {
        Mirror::default().state(ID)
    }

    fn problem(looked: &[Looked]) -> String {
        match decide(looked, None) {
            Beginning::Empty {
                problem: Some(problem),
            } => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_one_system_pool_among_others_is_taken() {
        let drives = [
            nothing("a"),
            looked("b", "data", None),
            looked("c", "tank", Some(kept())),
        ];
        let Beginning::Kept { from, node_id, .. } = decide(&drives, None) else {
            panic!("it is not taken");
        };
        assert!(
            from.contains("\"tank\"") && from.ends_with("on c"),
            "{from}"
        );
        assert_eq!(node_id, ID);
    }

    #[test]
    fn without_a_system_pool_a_node_begins_with_nothing() {
        let empty = Beginning::Empty { problem: None };
        assert_eq!(decide(&[], None), empty);
        assert_eq!(
            decide(&[nothing("a"), looked("b", "data", None)], None),
            empty
        );
    }

    #[test]
    fn of_two_system_pools_neither_is_used_and_both_are_named() {
        let drives = [
            looked("a", "tank", Some(kept())),
            looked("b", "other", Some(kept())),
        ];
        let problem = problem(&drives);
        for part in [
            "\"tank\"",
            "\"other\"",
            "on a",
            "on b",
            "none of them is used",
        ] {
            assert!(problem.contains(part), "{problem}");
        }
    }

    /// A host that was given a whole drive can write there what it wants, a system pool too.
    #[test]
    fn no_pool_but_the_named_one_counts() {
        let with_uuid = |mut looked: Looked, uuid| {
            if let Ok(Some(look)) = &mut looked.found {
                look.uuid = [uuid; 16];
            }
            looked
        };
        let named = Some(Uuid::from_bytes([1; 16]));
        let forged = with_uuid(looked("a", "forged", Some(kept())), 2);
        let own = with_uuid(looked("b", "tank", Some(kept())), 1);
        for drives in [[forged.clone(), own.clone()], [own, forged.clone()]] {
            assert!(matches!(
                decide(&drives, named),
                Beginning::Kept { from, .. } if from.contains("\"tank\"")
            ));
        }
        let Beginning::Empty {
            problem: Some(problem),
        } = decide(&[forged], named)
        else {
            panic!("another pool is taken, or nobody is told");
        };
        assert!(problem.contains("01010101-"), "{problem}");
    }

    const OTHER_ID: &str = "00000000-0000-4000-8000-000000000002";

    /// What a node has kept at a generation: a pool, which it may have given up.
    fn state(generation: u64, pool: [u8; 16], system: Option<bool>, node_id: &str) -> NodeState {
        let spec = PoolSpec {
            name: "before".to_owned(),
            uuid: Some(Uuid::from_bytes(pool).to_string()),
            system,
            ..PoolSpec::default()
        };
        let record = metastore::Record {
            kind: "pool".to_owned(),
            name: "before".to_owned(),
            generation,
            value: spec.encode_to_vec(),
        };
        let contents = Contents {
            generation,
            records: vec![record],
        };
        Mirror::of(&contents).state(node_id)
    }

    /// Goal: a node that has another system pool finds its state, though the drive of the one before has come
    /// back with its mark. Method: the newer state says that the other was given up, or does not.
    #[test]
    fn a_pool_that_was_given_up_is_not_the_second_one() {
        let marked = |at: &str, uuid: u8, state: NodeState| {
            let mut looked = looked(at, at, Some(state));
            if let Ok(Some(look)) = &mut looked.found {
                look.uuid = [uuid; 16];
            }
            looked
        };
        let given_up = Some(false);
        let old = marked("old", 1, state(5, [0; 16], None, ID));
        for (newer, is_used) in [
            (state(9, [1; 16], given_up, ID), true),
            // Not given up, another pool, by an older state, by another node.
            (state(9, [1; 16], None, ID), false),
            (state(9, [2; 16], given_up, ID), false),
            (state(5, [1; 16], given_up, ID), false),
            (state(9, [1; 16], given_up, OTHER_ID), false),
        ] {
            let new = marked("new", 3, newer);
            for drives in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
                match decide(&drives, None) {
                    Beginning::Kept { from, contents, .. } => {
                        assert!(is_used && from.contains("\"new\""), "{from}");
                        assert_eq!(contents.generation, 9);
                    }
                    Beginning::Empty { problem } => {
                        assert!(!is_used, "{problem:?}");
                        assert!(problem.unwrap().contains("2 system pools"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_drive_that_says_nothing_is_named() {
        let silent = Looked {
            at: "a".to_owned(),
            found: Err("did not answer".to_owned()),
        };
        assert!(problem(std::slice::from_ref(&silent)).contains("a: did not answer"));
        // What is found elsewhere is used all the same.
        let drives = [silent, looked("b", "tank", Some(kept()))];
        assert!(matches!(decide(&drives, None), Beginning::Kept { .. }));
    }

    #[test]
    fn a_state_that_is_empty_or_nobodys_is_not_used() {
        let empty = Some(NodeState::default());
        assert!(problem(&[looked("a", "tank", empty)]).contains("holds no state yet"));
        let state = NodeState {
            generation: 3,
            ..NodeState::default()
        };
        assert!(problem(&[looked("a", "tank", Some(state))]).contains("is not used"));
    }
}
