//! The desired state: what the node shall be.
//!
//! Plain data and pure rules. A call opens a [`Transaction`], which changes the model in place and
//! remembers how to take each step back; a call costs what it changes, not what there is. Finished, it
//! gives a [`Change`]: the edits, under one new revision, for the store, the data plane and the event
//! stream. Dropped, it leaves the model as it was.

mod bdevs;
mod document;
mod pools;
mod record;
mod subsystems;
mod transaction;
mod transports;
mod validate;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::v1::{
    BdevSpec, HostSpec, ListenerSpec, NamespaceSpec, PoolSpec, SubsystemSpec, TransportSpec,
};

pub(crate) use self::bdevs::{KINDS, base_of, normal_limits};
pub(crate) use self::pools::{check_volume_name, split_volume};
pub use self::record::{RecordError, agent_state, batch, reservations};
pub use self::transaction::{AgentState, Change, SavedReservation, Transaction};
pub(crate) use self::transports::BUILT_IN;

/// Names one object. The order is that in which things are put in place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// By type.
    Transport(String),
    /// By name.
    Bdev(String),
    /// By name.
    Pool(String),
    /// By NQN.
    Subsystem(String),
    /// By NQN and NSID.
    Namespace(String, u32),
    /// By NQN and address as a URI.
    Listener(String, String),
    /// By NQN of the subsystem and of the host.
    Host(String, String),
}

impl Key {
    /// "transport", "bdev", "pool", "subsystem", "namespace", "listener" or "host".
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Key::Transport(_) => "transport",
            Key::Bdev(_) => "bdev",
            Key::Pool(_) => "pool",
            Key::Subsystem(_) => "subsystem",
            Key::Namespace(..) => "namespace",
            Key::Listener(..) => "listener",
            Key::Host(..) => "host",
        }
    }

    /// The name as people see it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Key::Transport(name) | Key::Bdev(name) | Key::Pool(name) | Key::Subsystem(name) => {
                name.clone()
            }
            Key::Namespace(nqn, nsid) => format!("{nqn}/{nsid}"),
            Key::Listener(nqn, other) | Key::Host(nqn, other) => format!("{nqn}/{other}"),
        }
    }
}

/// A specification and when it was last changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored<S> {
    /// In normal form: every default is filled in.
    pub spec: S,
    /// Revision that wrote it.
    pub generation: u64,
}

/// An object of any kind. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// See [`Key::Transport`].
    Transport(Arc<Stored<TransportSpec>>),
    /// See [`Key::Bdev`].
    Bdev(Arc<Stored<BdevSpec>>),
    /// See [`Key::Pool`].
    Pool(Arc<Stored<PoolSpec>>),
    /// See [`Key::Subsystem`].
    Subsystem(Arc<Stored<SubsystemSpec>>),
    /// See [`Key::Namespace`].
    Namespace(Arc<Stored<NamespaceSpec>>),
    /// See [`Key::Listener`].
    Listener(Arc<Stored<ListenerSpec>>),
    /// See [`Key::Host`].
    Host(Arc<Stored<HostSpec>>),
}

/// One step of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Which object.
    pub key: Key,
    /// As it was; `None` when it is new.
    pub old: Option<Object>,
    /// As it is now; `None` when it is gone.
    pub new: Option<Object>,
}

impl Edit {
    /// The step that takes this one back.
    #[must_use]
    pub fn inverse(&self) -> Edit {
        Edit {
            key: self.key.clone(),
            old: self.new.clone(),
            new: self.old.clone(),
        }
    }
}

/// Bounds on what there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Subsystems.
    pub subsystems_max: usize,
    /// Namespaces of one subsystem; the bound of `max_namespaces`.
    pub namespaces_per_subsystem_max: u32,
    /// Listeners of one subsystem.
    pub listeners_per_subsystem_max: usize,
    /// Hosts of one subsystem.
    pub hosts_per_subsystem_max: usize,
    /// Block devices.
    pub bdevs_max: usize,
    /// Pools. Each has a thread.
    pub pools_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            subsystems_max: 8192,
            namespaces_per_subsystem_max: 1024,
            listeners_per_subsystem_max: 64,
            hosts_per_subsystem_max: 4096,
            bdevs_max: 16_384,
            pools_max: 64,
        }
    }
}

/// A subsystem with what hangs under it.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsystemEntry {
    /// The subsystem itself.
    pub subsystem: Arc<Stored<SubsystemSpec>>,
    /// By NSID.
    pub namespaces: BTreeMap<u32, Arc<Stored<NamespaceSpec>>>,
    /// By address as a URI.
    pub listeners: BTreeMap<String, Arc<Stored<ListenerSpec>>>,
    /// By NQN.
    pub hosts: BTreeMap<String, Arc<Stored<HostSpec>>>,
}

/// The desired state.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    limits: Limits,
    revision: u64,
    transports: BTreeMap<String, Arc<Stored<TransportSpec>>>,
    bdevs: BTreeMap<String, Arc<Stored<BdevSpec>>>,
    pools: BTreeMap<String, Arc<Stored<PoolSpec>>>,
    subsystems: BTreeMap<String, SubsystemEntry>,
    // Derived from the above by `set`.
    bdev_names_by_uuid: HashMap<String, String>,
    /// Who uses a block device or a volume: namespaces, layers and pools.
    bdev_users: HashMap<String, BTreeSet<Key>>,
    /// Listeners by transport type.
    listeners_by_trtype: HashMap<String, usize>,
    counts: Counts,
}

/// How many there are of what is counted nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Namespaces of all subsystems.
    pub namespaces: usize,
    /// Listeners of all subsystems.
    pub listeners: usize,
    /// Hosts of all subsystems.
    pub hosts: usize,
}

impl Model {
    /// An empty model.
    #[must_use]
    pub fn new(limits: Limits) -> Model {
        Model {
            limits,
            ..Model::default()
        }
    }

    /// Grows by one with every change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Bounds in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Transports by type.
    #[must_use]
    pub fn transports(&self) -> &BTreeMap<String, Arc<Stored<TransportSpec>>> {
        &self.transports
    }

    /// Block devices by name.
    #[must_use]
    pub fn bdevs(&self) -> &BTreeMap<String, Arc<Stored<BdevSpec>>> {
        &self.bdevs
    }

    /// Attached pools by name.
    #[must_use]
    pub fn pools(&self) -> &BTreeMap<String, Arc<Stored<PoolSpec>>> {
        &self.pools
    }

    /// Subsystems by NQN.
    #[must_use]
    pub fn subsystems(&self) -> &BTreeMap<String, SubsystemEntry> {
        &self.subsystems
    }

    /// Counts of what hangs under subsystems.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Listeners that use a transport.
    #[must_use]
    pub fn listeners_of(&self, trtype: &str) -> usize {
        self.listeners_by_trtype.get(trtype).copied().unwrap_or(0)
    }

    /// Who uses a block device or a volume.
    pub fn bdev_users(&self, name: &str) -> impl Iterator<Item = &Key> {
        self.bdev_users.get(name).into_iter().flatten()
    }

    /// A block device by name or UUID.
    #[must_use]
    pub fn find_bdev(&self, name_or_uuid: &str) -> Option<&Arc<Stored<BdevSpec>>> {
        self.bdevs.get(name_or_uuid).or_else(|| {
            let name = self
                .bdev_names_by_uuid
                .get(&name_or_uuid.to_ascii_lowercase())?;
            self.bdevs.get(name)
        })
    }

    /// Any object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Object> {
        let under = |nqn: &String| self.subsystems.get(nqn);
        match key {
            Key::Transport(trtype) => self.transports.get(trtype).cloned().map(Object::Transport),
            Key::Bdev(name) => self.bdevs.get(name).cloned().map(Object::Bdev),
            Key::Pool(name) => self.pools.get(name).cloned().map(Object::Pool),
            Key::Subsystem(nqn) => {
                under(nqn).map(|entry| Object::Subsystem(entry.subsystem.clone()))
            }
            Key::Namespace(nqn, nsid) => under(nqn)?
                .namespaces
                .get(nsid)
                .cloned()
                .map(Object::Namespace),
            Key::Listener(nqn, uri) => under(nqn)?
                .listeners
                .get(uri)
                .cloned()
                .map(Object::Listener),
            Key::Host(nqn, host) => under(nqn)?.hosts.get(host).cloned().map(Object::Host),
        }
    }

    /// Every key, in the order in which things are put in place.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self
            .transports
            .keys()
            .cloned()
            .map(Key::Transport)
            .collect();
        keys.extend(self.bdevs.keys().cloned().map(Key::Bdev));
        keys.extend(self.pools.keys().cloned().map(Key::Pool));
        keys.extend(self.subsystems.keys().cloned().map(Key::Subsystem));
        for (nqn, entry) in &self.subsystems {
            keys.extend(
                entry
                    .namespaces
                    .keys()
                    .map(|nsid| Key::Namespace(nqn.clone(), *nsid)),
            );
            keys.extend(
                entry
                    .listeners
                    .keys()
                    .map(|uri| Key::Listener(nqn.clone(), uri.clone())),
            );
            keys.extend(
                entry
                    .hosts
                    .keys()
                    .map(|host| Key::Host(nqn.clone(), host.clone())),
            );
        }
        keys.sort();
        keys
    }

    /// Opens a transaction for the next revision.
    pub fn begin(&mut self) -> Transaction<'_> {
        Transaction::new(self)
    }

    /// Takes a finished change back. It must be the last one that was made.
    pub fn revert(&mut self, change: &Change) {
        debug_assert_eq!(change.revision, self.revision);
        for edit in change.edits.iter().rev() {
            self.set(&edit.key, edit.old.clone());
        }
        self.revision = change.revision - 1;
    }

    /// The only place where the maps change. Returns what was there.
    fn set(&mut self, key: &Key, new: Option<Object>) -> Option<Object> {
        let old = self.get(key);
        if let Some(old) = &old {
            self.forget(key, old);
        }
        if let Some(new) = &new {
            self.note(key, new);
        }
        match (key, new) {
            (Key::Transport(trtype), Some(Object::Transport(new))) => {
                self.transports.insert(trtype.clone(), new);
            }
            (Key::Transport(trtype), _) => {
                self.transports.remove(trtype);
            }
            (Key::Bdev(name), Some(Object::Bdev(new))) => {
                self.bdevs.insert(name.clone(), new);
            }
            (Key::Bdev(name), _) => {
                self.bdevs.remove(name);
            }
            (Key::Pool(name), Some(Object::Pool(new))) => {
                self.pools.insert(name.clone(), new);
            }
            (Key::Pool(name), _) => {
                self.pools.remove(name);
            }
            (Key::Subsystem(nqn), Some(Object::Subsystem(new))) => {
                if let Some(entry) = self.subsystems.get_mut(nqn) {
                    entry.subsystem = new;
                } else {
                    let entry = SubsystemEntry {
                        subsystem: new,
                        namespaces: BTreeMap::new(),
                        listeners: BTreeMap::new(),
                        hosts: BTreeMap::new(),
                    };
                    self.subsystems.insert(nqn.clone(), entry);
                }
            }
            (Key::Subsystem(nqn), _) => {
                self.subsystems.remove(nqn);
            }
            (Key::Namespace(nqn, _) | Key::Listener(nqn, _) | Key::Host(nqn, _), new) => {
                if let Some(entry) = self.subsystems.get_mut(nqn) {
                    entry.set(key, new);
                }
            }
        }
        old
    }

    fn note(&mut self, key: &Key, object: &Object) {
        match object {
            Object::Bdev(bdev) => {
                let name = bdev.spec.name.clone();
                self.bdev_names_by_uuid
                    .insert(bdev.spec.uuid().to_owned(), name);
                if let Some(base) = bdevs::base_of(&bdev.spec) {
                    self.note_user(base, key);
                }
            }
            Object::Pool(pool) => self.note_user(&pool.spec.bdev_name, key),
            Object::Namespace(namespace) => {
                self.note_user(&namespace.spec.bdev_name, key);
                self.counts.namespaces += 1;
            }
            Object::Listener(listener) => {
                let trtype = subsystems::trtype(&listener.spec).to_owned();
                *self.listeners_by_trtype.entry(trtype).or_default() += 1;
                self.counts.listeners += 1;
            }
            Object::Host(_) => self.counts.hosts += 1,
            Object::Transport(_) | Object::Subsystem(_) => {}
        }
    }

    fn note_user(&mut self, bdev: &str, user: &Key) {
        let users = self.bdev_users.entry(bdev.to_owned()).or_default();
        users.insert(user.clone());
    }

    fn forget(&mut self, key: &Key, object: &Object) {
        let mut forget_user = |bdev: &str| {
            if let Some(users) = self.bdev_users.get_mut(bdev) {
                users.remove(key);
                if users.is_empty() {
                    self.bdev_users.remove(bdev);
                }
            }
        };
        match object {
            Object::Bdev(bdev) => {
                if let Some(base) = bdevs::base_of(&bdev.spec) {
                    forget_user(base);
                }
                self.bdev_names_by_uuid.remove(bdev.spec.uuid());
            }
            Object::Pool(pool) => forget_user(&pool.spec.bdev_name),
            Object::Namespace(namespace) => {
                forget_user(&namespace.spec.bdev_name);
                self.counts.namespaces -= 1;
            }
            Object::Listener(listener) => {
                let trtype = subsystems::trtype(&listener.spec);
                if let Some(count) = self.listeners_by_trtype.get_mut(trtype) {
                    *count -= 1;
                }
                self.counts.listeners -= 1;
            }
            Object::Host(_) => self.counts.hosts -= 1,
            Object::Transport(_) | Object::Subsystem(_) => {}
        }
    }
}

impl SubsystemEntry {
    fn set(&mut self, key: &Key, new: Option<Object>) {
        match (key, new) {
            (Key::Namespace(_, nsid), Some(Object::Namespace(new))) => {
                self.namespaces.insert(*nsid, new);
            }
            (Key::Namespace(_, nsid), _) => {
                self.namespaces.remove(nsid);
            }
            (Key::Listener(_, uri), Some(Object::Listener(new))) => {
                self.listeners.insert(uri.clone(), new);
            }
            (Key::Listener(_, uri), _) => {
                self.listeners.remove(uri);
            }
            (Key::Host(_, host), Some(Object::Host(new))) => {
                self.hosts.insert(host.clone(), new);
            }
            (Key::Host(_, host), _) => {
                self.hosts.remove(host);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
