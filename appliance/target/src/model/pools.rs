//! Rules of pools, as far as the node has them: which are attached. What is in a pool, the pool
//! itself knows.

use std::sync::Arc;

use api::v1::{Address, HostSpec, ListenerSpec, NamespaceSpec, PoolSpec, SubsystemSpec};

use super::validate::Check;
use super::{Key, Model, Object, Stored, Transaction};
use crate::error::ControlError;

/// Longest name of a pool.
const POOL_NAME_MAX: usize = 63;
/// Longest name of a volume or a snapshot without its pool.
const VOLUME_NAME_MAX: usize = 127;

/// The pool and the rest of `POOL/REST`.
pub(crate) fn split_volume(name: &str) -> Option<(&str, &str)> {
    name.split_once('/')
}

/// Checks the name of a volume (`NAME`) or of a snapshot (`NAME@SNAP`) and gives its parts: the pool
/// and the rest.
///
/// # Errors
/// The field, and the form that is right.
pub(crate) fn check_volume_name<'a>(
    name: &'a str,
    is_snapshot: bool,
    field: &str,
) -> Result<(&'a str, &'a str), ControlError> {
    let is_plain = |part: &str| {
        let is_letter = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        part.bytes().all(is_letter) && !part.is_empty()
    };
    let parts = split_volume(name).filter(|(pool, rest)| {
        let is_right = match rest.split_once('@') {
            Some((volume, snapshot)) => is_snapshot && is_plain(volume) && is_plain(snapshot),
            None => !is_snapshot && is_plain(rest),
        };
        is_right && rest.len() <= VOLUME_NAME_MAX && is_pool_name(pool)
    });
    parts.ok_or_else(|| {
        let (what, form) = if is_snapshot {
            ("snapshot", "POOL/NAME@SNAP")
        } else {
            ("volume", "POOL/NAME")
        };
        let problem = format!(
            "must be {form}; {form} without the pool has 1 to {VOLUME_NAME_MAX} letters, digits \
             and ._:-"
        );
        ControlError::field(format!("{what} {name:?}"), field, problem)
    })
}

fn is_pool_name(name: &str) -> bool {
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=POOL_NAME_MAX).contains(&name.len())
        && name.bytes().all(is_letter)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

impl Model {
    /// The object that answers for a block device of this name: the device itself, the drive of
    /// the namespace, or the pool of the volume. `None` when there is neither.
    #[must_use]
    pub fn key_of_bdev(&self, name: &str) -> Option<Key> {
        if self.bdevs.contains_key(name) {
            return Some(Key::Bdev(name.to_owned()));
        }
        if let Some(drive) = self.drive_of(name) {
            return Some(Key::Bdev(drive.spec.name.clone()));
        }
        let (pool, _) = split_volume(name)?;
        let is_there = self.pools.contains_key(pool);
        is_there.then(|| Key::Pool(pool.to_owned()))
    }

    /// The pool that the node's own state is kept in.
    #[must_use]
    pub fn system_pool(&self) -> Option<String> {
        let mut pools = self.pools.values();
        let found = pools.find(|pool| pool.spec.system());
        found.map(|pool| pool.spec.name.clone())
    }

    /// Snapshots of a volume that something uses, in order.
    #[must_use]
    pub fn snapshots_in_use(&self, volume: &str) -> Vec<String> {
        let is_of = |name: &&String| {
            let rest = name.strip_prefix(volume);
            rest.is_some_and(|rest| rest.starts_with('@'))
        };
        let mut names: Vec<String> = self.bdev_users.keys().filter(is_of).cloned().collect();
        names.sort_unstable();
        names
    }

    /// Who uses volumes of a pool, with the volume.
    pub fn users_of_volumes(&self, pool: &str) -> impl Iterator<Item = (&str, &Key)> {
        let of_pool = move |name: &str| split_volume(name).is_some_and(|(found, _)| found == pool);
        self.bdev_users
            .iter()
            .filter(move |(name, _)| of_pool(name) && !self.bdevs.contains_key(*name))
            .flat_map(|(name, users)| users.iter().map(|user| (name.as_str(), user)))
    }
}

impl Transaction<'_> {
    /// Attaches a pool; nothing happens when it is attached and on the same device.
    ///
    /// # Errors
    /// Wrong fields, one of this name on another device, a device that is missing or in use, the
    /// limit.
    pub fn attach_pool(
        &mut self,
        mut spec: PoolSpec,
    ) -> Result<Arc<Stored<PoolSpec>>, ControlError> {
        let mut check = Check::new(format!("pool {:?}", spec.name), "pool");
        check.that(
            is_pool_name(&spec.name),
            "name",
            "must be 1 to 63 letters, digits and ._-, the first a letter or digit",
        );
        check.that(
            !spec.bdev_name.is_empty(),
            "bdev_name",
            "names the block device that the pool is on",
        );
        if let Some(uuid) = &mut spec.uuid {
            check.uuid("uuid", uuid);
        }
        check.finish()?;
        let key = Key::Pool(spec.name.clone());
        if let Some(found) = self.model.find_bdev(&spec.bdev_name) {
            spec.bdev_name = found.spec.name.clone();
        }
        if let Some(there) = self.model.pools.get(&spec.name) {
            if spec.uuid.is_none() {
                spec.uuid = there.spec.uuid.clone();
            }
            spec.system = match spec.system {
                Some(true) => Some(true),
                Some(false) if there.spec.system() => None,
                _ => there.spec.system,
            };
            let differences = api::fields::differences(&there.spec, &spec);
            if differences.is_empty() {
                return Ok(there.clone());
            }
            return Err(ControlError::Exists {
                kind: key.kind(),
                name: key.name(),
                differences,
            });
        }
        let max = self.model.limits.pools_max;
        if self.model.pools.len() >= max {
            return Err(ControlError::Limit {
                what: "pools",
                max,
                option: "limits.pools_max",
            });
        }
        self.check_pool_name(&spec.name)?;
        spec.system = spec.system().then_some(true);
        if spec.system() {
            self.check_no_system_pool(&spec.name)?;
        }
        if let Some(Key::Pool(below)) = self.model.key_of_bdev(&spec.bdev_name) {
            let problem = format!("is a volume of pool {below:?}; a pool lies on a device below");
            let what = format!("pool {:?}", spec.name);
            return Err(ControlError::field(what, "pool.bdev_name", problem));
        }
        self.free_bdev(&spec.bdev_name)?;
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        self.put(key, Some(Object::Pool(stored.clone())));
        Ok(stored)
    }

    /// Refuses a second system pool.
    fn check_no_system_pool(&self, name: &str) -> Result<(), ControlError> {
        match self.model.system_pool() {
            Some(there) if there != name => Err(ControlError::Precondition {
                problem: format!(
                    "pool {there:?} is the system pool of this node already; pool set {there} \
                     --no-system comes first"
                ),
                subject: there,
            }),
            _ => Ok(()),
        }
    }

    /// Makes a pool the one that the node's own state is kept in, or not any more.
    ///
    /// # Errors
    /// None of this name, or another one is the system pool.
    pub fn set_system_pool(&mut self, name: &str, system: bool) -> Result<(), ControlError> {
        let key = Key::Pool(name.to_owned());
        let there = self.model.pools.get(name).cloned();
        let there = there.ok_or_else(|| Self::not_found(&key))?;
        if there.spec.system() == system {
            return Ok(());
        }
        if system {
            self.check_no_system_pool(name)?;
        }
        let spec = PoolSpec {
            // One that was given up is remembered: its drive may be away, and its mark is on it still.
            system: Some(system),
            ..there.spec.clone()
        };
        let generation = self.generation();
        let stored = Arc::new(Stored { spec, generation });
        self.put(key, Some(Object::Pool(stored)));
        Ok(())
    }

    /// Refuses a name whose volumes would hide block devices.
    fn check_pool_name(&self, name: &str) -> Result<(), ControlError> {
        let prefix = format!("{name}/");
        let mut bdevs = self.model.bdevs.keys();
        match bdevs.find(|bdev| bdev.starts_with(&prefix)) {
            Some(bdev) => {
                let problem = format!("would hide the block device {bdev:?}");
                let what = format!("pool {name:?}");
                Err(ControlError::field(what, "pool.name", problem))
            }
            None => Ok(()),
        }
    }

    /// Remembers which pool it is that is attached, whatever its name.
    ///
    /// # Errors
    /// None of this name, or it is known as another.
    pub fn identify_pool(&mut self, name: &str, uuid: &str) -> Result<(), ControlError> {
        let key = Key::Pool(name.to_owned());
        let Some(there) = self.model.pools.get(name) else {
            return Err(Self::not_found(&key));
        };
        match there.spec.uuid.as_deref() {
            Some(known) if known == uuid => return Ok(()),
            Some(known) => {
                return Err(ControlError::Precondition {
                    subject: name.to_owned(),
                    problem: format!("pool {name:?} has UUID {known}, not {uuid}"),
                });
            }
            None => {}
        }
        let spec = PoolSpec {
            uuid: Some(uuid.to_owned()),
            ..there.spec.clone()
        };
        // What it is has not changed: nor has its generation.
        let generation = there.generation;
        let stored = Arc::new(Stored { spec, generation });
        self.put(key, Some(Object::Pool(stored)));
        Ok(())
    }

    /// Gives a pool whose volumes nothing uses another name.
    ///
    /// # Errors
    /// None of this name, another generation, a user, a name that is wrong or taken.
    pub fn rename_pool(
        &mut self,
        name: &str,
        new_name: &str,
        expected: Option<u64>,
    ) -> Result<Arc<Stored<PoolSpec>>, ControlError> {
        let key = Key::Pool(name.to_owned());
        let there = self.model.pools.get(name).cloned();
        let there = there.ok_or_else(|| Self::not_found(&key))?;
        if !is_pool_name(new_name) {
            let problem = "must be 1 to 63 letters, digits and ._-, the first a letter or digit";
            return Err(ControlError::field(
                format!("pool {name:?}"),
                "new_name",
                problem,
            ));
        }
        if let Some(taken) = self.model.pools.get(new_name) {
            return Err(ControlError::Exists {
                kind: "pool",
                name: new_name.to_owned(),
                differences: api::fields::differences(&taken.spec, &there.spec),
            });
        }
        self.check_pool_name(new_name)?;
        self.forget_pool(name, expected, false)?;
        let spec = PoolSpec {
            name: new_name.to_owned(),
            ..there.spec.clone()
        };
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        let key = Key::Pool(new_name.to_owned());
        self.put(key, Some(Object::Pool(stored.clone())));
        Ok(stored)
    }

    /// Lets go of a pool whose volumes nothing uses.
    ///
    /// # Errors
    /// None of this name unless `allow_missing`, another generation, a user, or it is the system pool.
    pub fn detach_pool(
        &mut self,
        name: &str,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let there = self.model.pools.get(name);
        if there.is_some_and(|there| there.spec.system()) {
            return Err(ControlError::Precondition {
                subject: name.to_owned(),
                problem: format!(
                    "pool {name:?} is the system pool, which holds the node's own state; pool set \
                     {name} --no-system comes first"
                ),
            });
        }
        self.forget_pool(name, expected, allow_missing)
    }

    fn forget_pool(
        &mut self,
        name: &str,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let key = Key::Pool(name.to_owned());
        let Some(there) = self.model.pools.get(name) else {
            return if allow_missing {
                Ok(())
            } else {
                Err(Self::not_found(&key))
            };
        };
        Self::expect_generation(&key, expected, there.generation)?;
        let mut users: Vec<_> = self
            .model
            .users_of_volumes(name)
            .map(|(volume, key)| format!("{} {} ({volume})", key.kind(), key.name()))
            .collect();
        users.sort();
        if !users.is_empty() {
            return Err(ControlError::InUse {
                kind: "pool",
                name: name.to_owned(),
                users,
            });
        }
        self.put(key, None);
        Ok(())
    }

    /// Serves a volume: a subsystem, a namespace, a listener and hosts. A subsystem that is there is
    /// used as it is.
    ///
    /// # Errors
    /// As the calls for single objects; a subsystem that no host could connect to.
    pub fn share(
        &mut self,
        nqn: &str,
        volume: &str,
        address: Option<Address>,
        hosts: Vec<String>,
    ) -> Result<(), ControlError> {
        match self.model.subsystems.get(nqn) {
            None => {
                self.create_subsystem(SubsystemSpec {
                    nqn: nqn.to_owned(),
                    allow_any_host: Some(hosts.is_empty()),
                    ..SubsystemSpec::default()
                })?;
            }
            Some(entry) => {
                let is_open = entry.subsystem.spec.allow_any_host();
                if !is_open && hosts.is_empty() && entry.hosts.is_empty() {
                    return Err(ControlError::Precondition {
                        subject: nqn.to_owned(),
                        problem: format!(
                            "subsystem {nqn} is there and lets no host in; name the hosts, or allow \
                             any host on it"
                        ),
                    });
                }
            }
        }
        let namespace = NamespaceSpec {
            bdev_name: volume.to_owned(),
            ..NamespaceSpec::default()
        };
        match self.create_namespace(nqn, namespace) {
            // Shown already, perhaps with options of its own: it is shared.
            Ok(_) => {}
            Err(ControlError::Exists { .. }) if self.shows(nqn, volume) => {}
            Err(error) => return Err(error),
        }
        self.create_listener(
            nqn,
            ListenerSpec {
                address,
                ..ListenerSpec::default()
            },
        )?;
        for host in hosts {
            self.create_host(nqn, HostSpec { nqn: host })?;
        }
        Ok(())
    }

    fn shows(&self, nqn: &str, volume: &str) -> bool {
        let namespaces = self.model.subsystems.get(nqn).map(|e| &e.namespaces);
        namespaces.is_some_and(|all| all.values().any(|n| n.spec.bdev_name == volume))
    }

    /// Refuses when something uses a volume or a snapshot.
    ///
    /// # Errors
    /// Names the users.
    pub fn check_volume_free(&self, kind: &'static str, name: &str) -> Result<(), ControlError> {
        let users: Vec<_> = self
            .model
            .bdev_users(name)
            .map(|key| format!("{} {}", key.kind(), key.name()))
            .collect();
        if users.is_empty() {
            return Ok(());
        }
        Err(ControlError::InUse {
            kind,
            name: name.to_owned(),
            users,
        })
    }
}
