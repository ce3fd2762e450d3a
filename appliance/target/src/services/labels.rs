//! Labels in requests: which keys are their owner's.

use std::collections::HashMap;

use api::fields::Difference;

use crate::error::ControlError;
use crate::pool::{LabelChanges, Labels};

/// What a repair of the pool has lost: who has seen it may take it away.
const MAY_GO: &str = lvol::REPAIRED_LABEL;

/// Labels that a caller gives to something new.
///
/// # Errors
/// A key that is not the owner's.
pub(super) fn owners(
    what: &str,
    field: &str,
    labels: &HashMap<String, String>,
) -> Result<Labels, ControlError> {
    for key in labels.keys() {
        check(what, field, key)?;
    }
    let mut labels: Labels = labels.clone().into_iter().collect();
    labels.sort_unstable();
    Ok(labels)
}

/// Labels to set and to take away.
///
/// # Errors
/// A key that is not the owner's.
pub(super) fn changes(
    what: &str,
    set: HashMap<String, String>,
    remove: Vec<String>,
) -> Result<LabelChanges, ControlError> {
    let set = owners(what, "labels", &set)?;
    for key in remove.iter().filter(|key| *key != MAY_GO) {
        check(what, "remove_labels", key)?;
    }
    let gone = remove.into_iter().map(|key| (key, None));
    let set = set.into_iter().map(|(key, value)| (key, Some(value)));
    Ok(gone.chain(set).collect())
}

fn check(what: &str, field: &str, key: &str) -> Result<(), ControlError> {
    if !key.starts_with(lvol::RESERVED_LABELS) {
        return Ok(());
    }
    let problem = format!(
        "{key:?} is not for its owner: keys that begin with {:?} are set by other calls",
        lvol::RESERVED_LABELS
    );
    Err(ControlError::field(what, field, problem))
}

/// Adds labels that were asked for and are not so.
pub(super) fn differing(
    there: &HashMap<String, String>,
    asked: &HashMap<String, String>,
    found: &mut Vec<Difference>,
) {
    let mut asked: Vec<_> = asked.iter().collect();
    asked.sort_unstable();
    for (key, value) in asked {
        if there.get(key) != Some(value) {
            found.push(Difference {
                field: format!("labels[{key}]"),
                first: there.get(key).cloned().unwrap_or_default(),
                second: value.clone(),
            });
        }
    }
}
