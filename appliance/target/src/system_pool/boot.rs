//! The first start since the power came: whose state is on the drives.

use lvol::{NodeLook, NodeState};
use metastore::Contents;
use uuid::Uuid;

use super::records::contents_of;

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

/// Decides with what the node begins. Of two system pools nobody knows which one is meant: neither is used.
#[must_use]
pub(crate) fn decide(looked: &[Looked]) -> Beginning {
    let mut pools: Vec<(String, &NodeState)> = Vec::new();
    let mut problems = Vec::new();
    for Looked { at, found } in looked {
        match found {
            Ok(Some(NodeLook {
                name,
                uuid,
                state: Some(state),
            })) => {
                let uuid = Uuid::from_bytes(*uuid);
                pools.push((format!("{name:?} ({uuid}) on {at}"), state));
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
    match pools.as_slice() {
        [] if problems.is_empty() => Beginning::Empty { problem: None },
        [] => empty(format!(
            "no system pool was found, and not every drive could be looked at ({})",
            problems.join("; ")
        )),
        [(from, state)] if **state == NodeState::default() => {
            empty(format!("the system pool {from} holds no state yet"))
        }
        [(from, state)] => match contents_of(state) {
            Ok((node_id, contents)) => Beginning::Kept {
                from: from.clone(),
                node_id,
                contents,
            },
            Err(why) => empty(format!(
                "the state in the system pool {from} is not used: {why}"
            )),
        },
        several => {
            let several: Vec<&str> = several.iter().map(|(from, _)| from.as_str()).collect();
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
        match decide(looked) {
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
        let Beginning::Kept { from, node_id, .. } = decide(&drives) else {
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
        assert_eq!(decide(&[]), empty);
        assert_eq!(decide(&[nothing("a"), looked("b", "data", None)]), empty);
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

    #[test]
    fn a_drive_that_says_nothing_is_named() {
        let silent = Looked {
            at: "a".to_owned(),
            found: Err("did not answer".to_owned()),
        };
        assert!(problem(std::slice::from_ref(&silent)).contains("a: did not answer"));
        // What is found elsewhere is used all the same.
        let drives = [silent, looked("b", "tank", Some(kept()))];
        assert!(matches!(decide(&drives), Beginning::Kept { .. }));
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
