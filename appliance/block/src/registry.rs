//! [`Registry`]: all bdevs of a process, by name, alias and UUID. Control plane only.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use uuid::Uuid;

use crate::BlockError;
use crate::bdev::{Bdev, BdevOptions};
use crate::device::BlockDevice;

/// Bdevs by name. Shared by control threads; I/O never comes here.
#[derive(Debug, Default)]
pub struct Registry {
    entries: RwLock<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_name: BTreeMap<String, Arc<Bdev>>,
    by_alias: BTreeMap<String, String>,
    by_uuid: BTreeMap<Uuid, String>,
}

impl Entries {
    /// Lookup order: name, alias, UUID in text.
    fn find(&self, key: &str) -> Option<&Arc<Bdev>> {
        if let Some(bdev) = self.by_name.get(key) {
            return Some(bdev);
        }
        if let Some(name) = self.by_alias.get(key) {
            return self.by_name.get(name);
        }
        let uuid = Uuid::parse_str(key).ok()?;
        self.by_name.get(self.by_uuid.get(&uuid)?)
    }
}

impl Registry {
    /// Most bdevs of one registry.
    pub const BDEVS_MAX: usize = 65_536;

    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `device`. `now` starts the clock of its limits.
    ///
    /// # Errors
    /// [`BlockError::Exists`] when a name or the UUID is taken, [`BlockError::RegistryFull`] at the
    /// limit, and the errors of [`Bdev::new`].
    pub fn create(
        &self,
        options: BdevOptions,
        device: Arc<dyn BlockDevice>,
        now: Instant,
    ) -> Result<Arc<Bdev>, BlockError> {
        let bdev = Bdev::new(options, device, now)?;
        let mut entries = self.write();
        if entries.by_name.len() >= Self::BDEVS_MAX {
            return Err(BlockError::RegistryFull {
                limit: Self::BDEVS_MAX,
            });
        }
        for key in std::iter::once(bdev.name()).chain(bdev.aliases().iter().map(String::as_str)) {
            if let Some(owner) = entries.find(key) {
                let owner = owner.name().to_owned();
                return Err(BlockError::Exists {
                    key: key.to_owned(),
                    owner,
                });
            }
        }
        if let Some(owner) = entries.by_uuid.get(&bdev.uuid()) {
            let owner = owner.clone();
            return Err(BlockError::Exists {
                key: bdev.uuid().to_string(),
                owner,
            });
        }
        for alias in bdev.aliases() {
            entries
                .by_alias
                .insert(alias.clone(), bdev.name().to_owned());
        }
        entries.by_uuid.insert(bdev.uuid(), bdev.name().to_owned());
        entries
            .by_name
            .insert(bdev.name().to_owned(), Arc::clone(&bdev));
        Ok(bdev)
    }

    /// The bdev with this name, alias or UUID.
    ///
    /// # Errors
    /// [`BlockError::NotFound`].
    pub fn get(&self, key: &str) -> Result<Arc<Bdev>, BlockError> {
        let entries = self.read();
        entries
            .find(key)
            .cloned()
            .ok_or_else(|| BlockError::NotFound {
                key: key.to_owned(),
            })
    }

    /// The bdev with this UUID.
    ///
    /// # Errors
    /// [`BlockError::UuidNotFound`].
    pub fn get_by_uuid(&self, uuid: Uuid) -> Result<Arc<Bdev>, BlockError> {
        let entries = self.read();
        let name = entries.by_uuid.get(&uuid);
        name.and_then(|name| entries.by_name.get(name))
            .cloned()
            .ok_or(BlockError::UuidNotFound { uuid })
    }

    /// All bdevs, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Bdev>> {
        self.read().by_name.values().cloned().collect()
    }

    /// At most `limit` bdevs whose names come after `after`: one page of a listing.
    #[must_use]
    pub fn page(&self, after: Option<&str>, limit: usize) -> Vec<Arc<Bdev>> {
        use std::ops::Bound;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.read();
        entries
            .by_name
            .range::<str, _>((start, Bound::Unbounded))
            .take(limit)
            .map(|(_, bdev)| Arc::clone(bdev))
            .collect()
    }

    /// How many bdevs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().by_name.len()
    }

    /// Whether there is no bdev.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes a bdev that nobody uses.
    ///
    /// # Errors
    /// [`BlockError::NotFound`], [`BlockError::Claimed`] or [`BlockError::Open`]; the bdev then
    /// stays as it was.
    pub fn delete(&self, key: &str) -> Result<Arc<Bdev>, BlockError> {
        let mut entries = self.write();
        let bdev = entries.find(key).cloned();
        let bdev = bdev.ok_or_else(|| BlockError::NotFound {
            key: key.to_owned(),
        })?;
        bdev.retire()?;
        entries.by_name.remove(bdev.name());
        entries.by_uuid.remove(&bdev.uuid());
        for alias in bdev.aliases() {
            entries.by_alias.remove(alias);
        }
        Ok(bdev)
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
