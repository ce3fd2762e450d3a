//! Processes that have a device node open.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{names, numbered, text};
use crate::{FactsError, Host};

/// Device node to the processes that have it open, as `name[pid]`.
pub(crate) type Users = BTreeMap<String, BTreeSet<String>>;

/// Looks at the open files of every process that may be looked at.
pub(super) fn read(host: &dyn Host) -> Result<Users, FactsError> {
    let entries = host.list("proc").map_err(|source| FactsError::Read {
        path: "proc".to_owned(),
        source,
    })?;
    let mut users = Users::new();
    for pid in numbered(&entries) {
        let folder = format!("proc/{pid}/fd");
        // A process may be gone by now, or belong to someone else: exclusive opens catch the rest.
        for name in names(host, &folder) {
            let Ok(target) = host.link(&format!("{folder}/{name}")) else {
                continue;
            };
            if !target.starts_with("/dev/") {
                continue;
            }
            let node = target.trim_end_matches(" (deleted)").to_owned();
            let process = text(host, &format!("proc/{pid}/comm")).unwrap_or_default();
            users
                .entry(node)
                .or_default()
                .insert(format!("{process}[{pid}]"));
        }
    }
    Ok(users)
}

/// The processes that have one node open.
pub(super) fn of(users: &Users, node: &str) -> Vec<String> {
    users.get(node).into_iter().flatten().cloned().collect()
}
