//! What an owner says of a pool and its volumes: labels, read-only, the pool's name.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use metastore::pool::Table;

use super::check_name;
use super::manage::{NewVolume, VolumeInfo};
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{NameKind, POOL_KEY};

/// Labels of a volume or a pool.
const LABELS_MAX: usize = 64;
/// Bytes of a label's key.
const KEY_BYTES_MAX: usize = 63;
/// Bytes of a label's value.
const VALUE_BYTES_MAX: usize = 255;

/// What the keys of labels begin with that a program keeps for itself: they do not count among the 64 of
/// the owner. Who may set them, callers decide.
pub const RESERVED_LABELS: &str = "adit.";

/// Labels to set; `None` takes one away.
pub type LabelChanges = Vec<(String, Option<String>)>;

/// What is to be changed of a volume; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeChange {
    /// Labels: at most 64; a key has 1 to 63 letters, digits and `._-/`, a value up to 255 bytes without
    /// control characters.
    pub labels: LabelChanges,
    /// Refuse writes, or allow them again. I/O that is under way ends as it would have.
    pub read_only: Option<bool>,
}

impl VolumeChange {
    /// Only labels.
    #[must_use]
    pub fn labels(labels: LabelChanges) -> Self {
        Self {
            labels,
            read_only: None,
        }
    }
}

impl NewVolume {
    /// The same, its labels in the order of their keys; refused when they cannot be.
    pub(super) fn checked(self) -> Result<Self, LvolError> {
        let labels = new_labels(&self.name, &self.labels)?;
        Ok(Self { labels, ..self })
    }
}

/// Labels that something new begins with, in the order of their keys.
pub(super) fn new_labels(
    name: &str,
    labels: &[(String, String)],
) -> Result<Vec<(String, String)>, LvolError> {
    let set = labels.iter().cloned();
    let set = set.map(|(key, value)| (key, Some(value))).collect();
    apply(&[], &set).map_err(|problem| LvolError::Refused {
        name: name.to_owned(),
        problem,
    })
}

impl PoolWorker {
    pub(super) fn change_volume(
        &mut self,
        name: &str,
        change: &VolumeChange,
    ) -> Result<VolumeInfo, LvolError> {
        let record = &self.entry(name)?.record;
        let refused = |problem: String| LvolError::Refused {
            name: name.to_owned(),
            problem,
        };
        if change.read_only == Some(false) && record.kind == NameKind::Snapshot {
            return Err(refused("is a snapshot; it never changes".to_owned()));
        }
        let labels = apply(&record.labels, &change.labels).map_err(refused)?;
        let read_only = change.read_only.unwrap_or(record.read_only);
        self.change_record(name, |record| {
            record.labels = labels;
            record.read_only = read_only;
        });
        self.entry(name)?
            .shared
            .read_only
            .store(read_only, Ordering::SeqCst);
        self.volume_info(name)
    }

    pub(super) fn set_labels(&mut self, changes: &LabelChanges) -> Result<(), LvolError> {
        let labels = apply(&self.labels(), changes).map_err(|problem| LvolError::Refused {
            name: self.metadata.superblock().name,
            problem,
        })?;
        let lines = labels.iter().map(|(key, value)| format!("{key}={value}\n"));
        self.pool.label = lines.collect();
        let record = self.pool.encode();
        self.stage(Table::Pool, POOL_KEY, Some(record));
        Ok(())
    }

    /// The pool's labels: a line each in its record.
    pub(super) fn labels(&self) -> Vec<(String, String)> {
        let lines = self.pool.label.lines();
        let pairs = lines.map(|line| line.split_once('=').unwrap_or((line, "")));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    pub(super) fn rename_pool(&mut self, new_name: &str) -> Result<(), LvolError> {
        check_name(new_name)?;
        self.usable_store()?;
        if self.metadata.superblock().name == new_name {
            return Ok(());
        }
        // Twice: no copy has the old name any more.
        for _ in 0..2 {
            let name = new_name.to_owned();
            self.metadata.store(|superblock| superblock.name = name)?;
        }
        Ok(())
    }
}

/// Labels in the order of their keys, or what is wrong.
fn apply(
    labels: &[(String, String)],
    changes: &LabelChanges,
) -> Result<Vec<(String, String)>, String> {
    let mut labels: BTreeMap<String, String> = labels.iter().cloned().collect();
    for (key, value) in changes {
        let Some(value) = value else {
            labels.remove(key);
            continue;
        };
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(is_letter) {
            return Err(format!(
                "cannot have the label {key:?}: a key has 1 to {KEY_BYTES_MAX} letters, digits and ._-/"
            ));
        }
        if value.len() > VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(format!(
                "cannot have that value of {key:?}: it has at most {VALUE_BYTES_MAX} bytes and no control \
                 characters"
            ));
        }
        labels.insert(key.clone(), value.clone());
    }
    let own = labels
        .keys()
        .filter(|key| !key.starts_with(RESERVED_LABELS))
        .count();
    if own > LABELS_MAX {
        return Err(format!("cannot have {own} labels: at most {LABELS_MAX}"));
    }
    Ok(labels.into_iter().collect())
}
