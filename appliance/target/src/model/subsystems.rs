//! Rules of subsystems and of what hangs under them.

use std::sync::Arc;

use api::v1::{
    Address, AnaGroupState, AnaState, HostSpec, ListenerSpec, NamespaceSpec, SubsystemSpec,
};

use super::validate::{Check, mask_error};
use super::{Key, Object, Stored, SubsystemEntry, Transaction, transports};
use crate::error::ControlError;

const VISIBLE_TO_MAX: usize = 64;
/// Largest controller ID; the rest is reserved (NVMe Base 2.1, Identify Controller, CNTLID).
const CNTLID_MAX: u32 = 0xFFEF;

pub(super) fn trtype(spec: &ListenerSpec) -> &str {
    spec.address
        .as_ref()
        .map_or("", |address| address.trtype.as_str())
}

fn exists(key: &Key, differences: Vec<api::fields::Difference>) -> ControlError {
    ControlError::Exists {
        kind: key.kind(),
        name: key.name(),
        differences,
    }
}

impl Transaction<'_> {
    /// Creates a subsystem; nothing happens when it is there and the same.
    ///
    /// # Errors
    /// Wrong fields, one with other options, the limit.
    pub fn create_subsystem(
        &mut self,
        mut spec: SubsystemSpec,
    ) -> Result<Arc<Stored<SubsystemSpec>>, ControlError> {
        self.normalise_subsystem(&mut spec)?;
        let key = Key::Subsystem(spec.nqn.clone());
        if let Some(there) = self.model.subsystems.get(&spec.nqn) {
            let differences = api::fields::differences(&there.subsystem.spec, &spec);
            if differences.is_empty() {
                return Ok(there.subsystem.clone());
            }
            return Err(exists(&key, differences));
        }
        if self.model.subsystems.len() >= self.model.limits.subsystems_max {
            let max = self.model.limits.subsystems_max;
            let option = "limits.subsystems_max";
            return Err(ControlError::Limit {
                what: "subsystems",
                max,
                option,
            });
        }
        Ok(self.put_subsystem(key, spec))
    }

    /// Changes the fields that `paths` names.
    ///
    /// # Errors
    /// No such subsystem, another generation, a field that is fixed or wrong.
    pub fn update_subsystem(
        &mut self,
        spec: &SubsystemSpec,
        paths: &[String],
        expected: Option<u64>,
    ) -> Result<Arc<Stored<SubsystemSpec>>, ControlError> {
        let key = Key::Subsystem(spec.nqn.clone());
        let there = self.subsystem(&spec.nqn)?.subsystem.clone();
        Self::expect_generation(&key, expected, there.generation)?;
        let what = || format!("subsystem {:?}", spec.nqn);
        let allowed = ["allow_any_host", "admin_label", "max_namespaces"];
        let mut new = api::fields::update(&there.spec, spec, paths, &allowed)
            .map_err(|error| mask_error(what(), &error))?;
        self.normalise_subsystem(&mut new)?;
        if new.max_namespaces() < there.spec.max_namespaces() {
            let problem = format!(
                "is {} and can only grow: hosts have read it",
                there.spec.max_namespaces()
            );
            return Err(ControlError::field(
                what(),
                "subsystem.max_namespaces",
                problem,
            ));
        }
        if new == there.spec {
            return Ok(there);
        }
        Ok(self.put_subsystem(key, new))
    }

    /// Deletes a subsystem with everything under it.
    ///
    /// # Errors
    /// None of this name unless `allow_missing`, or another generation.
    pub fn delete_subsystem(
        &mut self,
        nqn: &str,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let key = Key::Subsystem(nqn.to_owned());
        let Some(entry) = self.model.subsystems.get(nqn) else {
            return if allow_missing {
                Ok(())
            } else {
                Err(Self::not_found(&key))
            };
        };
        Self::expect_generation(&key, expected, entry.subsystem.generation)?;
        let mut below: Vec<_> = entry
            .listeners
            .keys()
            .map(|uri| Key::Listener(nqn.to_owned(), uri.clone()))
            .collect();
        below.extend(
            entry
                .hosts
                .keys()
                .map(|host| Key::Host(nqn.to_owned(), host.clone())),
        );
        below.extend(
            entry
                .namespaces
                .keys()
                .map(|nsid| Key::Namespace(nqn.to_owned(), *nsid)),
        );
        for key in below {
            self.put(key, None);
        }
        self.put(key, None);
        Ok(())
    }

    /// Adds a namespace. Without an NSID the lowest that is free is taken; the same request again
    /// finds the same namespace.
    ///
    /// # Errors
    /// Wrong fields, no such subsystem or device, one with other options, a device in use, no NSID.
    pub fn create_namespace(
        &mut self,
        nqn: &str,
        mut spec: NamespaceSpec,
    ) -> Result<Arc<Stored<NamespaceSpec>>, ControlError> {
        let entry = self.subsystem(nqn)?;
        let max = entry.subsystem.spec.max_namespaces();
        let bdev_uuid = match self.model.find_bdev(&spec.bdev_name) {
            Some(bdev) => {
                spec.bdev_name = bdev.spec.name.clone();
                Some(bdev.spec.uuid().to_owned())
            }
            // A volume: its pool knows its UUID, and whether there is such a volume.
            None if self.model.key_of_bdev(&spec.bdev_name).is_some() => None,
            None => return Err(Self::not_found(&Key::Bdev(spec.bdev_name.clone()))),
        };
        if spec.nsid == 0 {
            let of_bdev = entry
                .namespaces
                .values()
                .find(|n| n.spec.bdev_name == spec.bdev_name);
            let free = || (1..=max).find(|nsid| !entry.namespaces.contains_key(nsid));
            let Some(nsid) = of_bdev.map(|n| n.spec.nsid).or_else(free) else {
                return Err(ControlError::Precondition {
                    subject: nqn.to_owned(),
                    problem: format!(
                        "all {max} NSIDs of {nqn} are taken; raise its max_namespaces"
                    ),
                });
            };
            spec.nsid = nsid;
        }
        normalise_namespace(nqn, max, bdev_uuid.as_deref(), &mut spec)?;
        let key = Key::Namespace(nqn.to_owned(), spec.nsid);
        if let Some(there) = entry.namespaces.get(&spec.nsid) {
            let differences = api::fields::differences(&there.spec, &spec);
            if differences.is_empty() {
                return Ok(there.clone());
            }
            return Err(exists(&key, differences));
        }
        self.free_bdev(&spec.bdev_name)?;
        Ok(self.put_namespace(key, spec))
    }

    /// Changes the fields that `paths` names.
    ///
    /// # Errors
    /// No such namespace, another generation, a field that is fixed or wrong.
    pub fn update_namespace(
        &mut self,
        nqn: &str,
        spec: &NamespaceSpec,
        paths: &[String],
        expected: Option<u64>,
    ) -> Result<Arc<Stored<NamespaceSpec>>, ControlError> {
        let key = Key::Namespace(nqn.to_owned(), spec.nsid);
        let entry = self.subsystem(nqn)?;
        let max = entry.subsystem.spec.max_namespaces();
        let there = entry.namespaces.get(&spec.nsid).cloned();
        let there = there.ok_or_else(|| Self::not_found(&key))?;
        Self::expect_generation(&key, expected, there.generation)?;
        let allowed = ["anagrpid", "no_auto_visible", "visible_to", "write_protect"];
        let mut new = api::fields::update(&there.spec, spec, paths, &allowed)
            .map_err(|error| mask_error(format!("namespace {}", key.name()), &error))?;
        normalise_namespace(nqn, max, there.spec.uuid.as_deref(), &mut new)?;
        if new == there.spec {
            return Ok(there);
        }
        Ok(self.put_namespace(key, new))
    }

    /// Removes a namespace; its device stays.
    ///
    /// # Errors
    /// No such namespace unless `allow_missing`, or another generation.
    pub fn delete_namespace(
        &mut self,
        nqn: &str,
        nsid: u32,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let key = Key::Namespace(nqn.to_owned(), nsid);
        let there = self
            .model
            .subsystems
            .get(nqn)
            .and_then(|entry| entry.namespaces.get(&nsid));
        let generation = there.map(|there| there.generation);
        self.delete(key, generation, expected, allow_missing)
    }

    /// Adds a listener, and its transport with the defaults when there is none.
    ///
    /// # Errors
    /// Wrong fields, no such subsystem, one with other options, the limit.
    pub fn create_listener(
        &mut self,
        nqn: &str,
        mut spec: ListenerSpec,
    ) -> Result<Arc<Stored<ListenerSpec>>, ControlError> {
        let uri = normalise_address(&mut spec.address, "listener.address")?;
        let key = Key::Listener(nqn.to_owned(), uri.clone());
        let entry = self.subsystem(nqn)?;
        let there = entry.listeners.get(&uri).cloned();
        let count = entry.listeners.len();
        let groups_max = entry.subsystem.spec.max_namespaces();
        if let Some(there) = &there
            && spec.ana_state() == AnaState::Unspecified
            && spec.ana_groups.is_empty()
        {
            // States are set by a call of their own: a create that names none asks for none.
            spec.ana_state = there.spec.ana_state;
            spec.ana_groups = there.spec.ana_groups.clone();
        }
        normalise_listener(&key, groups_max, &mut spec)?;
        if let Some(there) = there {
            let differences = api::fields::differences(&there.spec, &spec);
            if differences.is_empty() {
                return Ok(there);
            }
            return Err(exists(&key, differences));
        }
        let max = self.model.limits.listeners_per_subsystem_max;
        if count >= max {
            let option = "limits.listeners_per_subsystem_max";
            return Err(ControlError::Limit {
                what: "listeners of this subsystem",
                max,
                option,
            });
        }
        self.ensure_transport(trtype(&spec))?;
        Ok(self.put_listener(key, spec))
    }

    /// Sets the state of one ANA group, or of all when it is 0.
    ///
    /// # Errors
    /// Wrong fields, no such listener, another generation, or ANA is not reported.
    pub fn set_ana_state(
        &mut self,
        nqn: &str,
        address: Option<Address>,
        anagrpid: u32,
        state: AnaState,
        expected: Option<u64>,
    ) -> Result<Arc<Stored<ListenerSpec>>, ControlError> {
        let mut address = address;
        let uri = normalise_address(&mut address, "address")?;
        let key = Key::Listener(nqn.to_owned(), uri.clone());
        let entry = self.subsystem(nqn)?;
        let groups_max = entry.subsystem.spec.max_namespaces();
        let reports = entry.subsystem.spec.ana_reporting();
        let there = entry
            .listeners
            .get(&uri)
            .cloned()
            .ok_or_else(|| Self::not_found(&key))?;
        Self::expect_generation(&key, expected, there.generation)?;
        if state == AnaState::Unspecified {
            let problem =
                "must be optimized, non_optimized, inaccessible, persistent_loss or change";
            return Err(ControlError::field("the path state", "ana_state", problem));
        }
        if !reports {
            return Err(ControlError::Precondition {
                subject: nqn.to_owned(),
                problem: format!(
                    "{nqn} was created without ana_reporting: hosts would not see a state; create it \
                     anew with ana_reporting"
                ),
            });
        }
        let mut new = there.spec.clone();
        if anagrpid == 0 {
            new.ana_state = state.into();
            new.ana_groups.clear();
        } else {
            new.ana_groups.retain(|group| group.anagrpid != anagrpid);
            new.ana_groups.push(AnaGroupState {
                anagrpid,
                ana_state: state.into(),
            });
        }
        normalise_listener(&key, groups_max, &mut new)?;
        if new == there.spec {
            return Ok(there);
        }
        Ok(self.put_listener(key, new))
    }

    /// Removes a listener.
    ///
    /// # Errors
    /// No such listener unless `allow_missing`, another generation, or a wrong address.
    pub fn delete_listener(
        &mut self,
        nqn: &str,
        address: Option<Address>,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let mut address = address;
        let uri = normalise_address(&mut address, "address")?;
        let there = self
            .model
            .subsystems
            .get(nqn)
            .and_then(|entry| entry.listeners.get(&uri));
        let generation = there.map(|there| there.generation);
        self.delete(
            Key::Listener(nqn.to_owned(), uri),
            generation,
            expected,
            allow_missing,
        )
    }

    /// Lets a host in.
    ///
    /// # Errors
    /// Wrong NQN, no such subsystem, the limit.
    pub fn create_host(
        &mut self,
        nqn: &str,
        spec: HostSpec,
    ) -> Result<Arc<Stored<HostSpec>>, ControlError> {
        let mut check = Check::new(format!("host {:?}", spec.nqn), "host");
        check.nqn("nqn", &spec.nqn);
        check.finish()?;
        let entry = self.subsystem(nqn)?;
        if let Some(there) = entry.hosts.get(&spec.nqn) {
            return Ok(there.clone());
        }
        let max = self.model.limits.hosts_per_subsystem_max;
        if entry.hosts.len() >= max {
            let option = "limits.hosts_per_subsystem_max";
            return Err(ControlError::Limit {
                what: "hosts of this subsystem",
                max,
                option,
            });
        }
        let key = Key::Host(nqn.to_owned(), spec.nqn.clone());
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        self.put(key, Some(Object::Host(stored.clone())));
        Ok(stored)
    }

    /// Lets a host no longer in.
    ///
    /// # Errors
    /// No such host unless `allow_missing`, or another generation.
    pub fn delete_host(
        &mut self,
        nqn: &str,
        host: &str,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let there = self
            .model
            .subsystems
            .get(nqn)
            .and_then(|entry| entry.hosts.get(host));
        let generation = there.map(|there| there.generation);
        self.delete(
            Key::Host(nqn.to_owned(), host.to_owned()),
            generation,
            expected,
            allow_missing,
        )
    }

    fn delete(
        &mut self,
        key: Key,
        generation: Option<u64>,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let Some(generation) = generation else {
            return if allow_missing {
                Ok(())
            } else {
                Err(Self::not_found(&key))
            };
        };
        Self::expect_generation(&key, expected, generation)?;
        self.put(key, None);
        Ok(())
    }

    fn subsystem(&self, nqn: &str) -> Result<&SubsystemEntry, ControlError> {
        let key = || Key::Subsystem(nqn.to_owned());
        self.model
            .subsystems
            .get(nqn)
            .ok_or_else(|| Self::not_found(&key()))
    }

    fn normalise_subsystem(&self, spec: &mut SubsystemSpec) -> Result<(), ControlError> {
        let mut check = Check::new(format!("subsystem {:?}", spec.nqn), "subsystem");
        check.nqn("nqn", &spec.nqn);
        let is_discovery = spec.nqn == fabric_wire::DISCOVERY_NQN;
        check.that(
            !is_discovery,
            "nqn",
            "is that of the discovery subsystem, which is always there",
        );
        let serial = spec
            .serial_number
            .get_or_insert_with(|| serial_of(&spec.nqn));
        check.printable("serial_number", serial, 20);
        let model = spec
            .model_number
            .get_or_insert_with(|| "Adit NVMe-oF controller".to_owned());
        check.printable("model_number", model, 40);
        let label = spec.admin_label.get_or_insert_default();
        check.that(
            label.len() <= 128,
            "admin_label",
            "must be at most 128 bytes",
        );
        let max = self.model.limits.namespaces_per_subsystem_max;
        check.number(
            "max_namespaces",
            &mut spec.max_namespaces,
            32.min(max),
            1..=max,
        );
        spec.allow_any_host.get_or_insert(false);
        spec.ana_reporting.get_or_insert(true);
        let min = check.number("min_cntlid", &mut spec.min_cntlid, 1, 1..=CNTLID_MAX);
        let max = check.number(
            "max_cntlid",
            &mut spec.max_cntlid,
            CNTLID_MAX,
            1..=CNTLID_MAX,
        );
        check.that(min <= max, "max_cntlid", "must not be below min_cntlid");
        spec.dmrsl.get_or_insert(0);
        check.number("wzsl", &mut spec.wzsl, 0, 0..=31);
        check.only(
            "passthrough",
            &mut spec.passthrough,
            false,
            "no device here takes raw commands",
        );
        check.finish()
    }

    fn put_subsystem(&mut self, key: Key, spec: SubsystemSpec) -> Arc<Stored<SubsystemSpec>> {
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        self.put(key, Some(Object::Subsystem(stored.clone())));
        stored
    }

    fn put_namespace(&mut self, key: Key, spec: NamespaceSpec) -> Arc<Stored<NamespaceSpec>> {
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        self.put(key, Some(Object::Namespace(stored.clone())));
        stored
    }

    pub(super) fn put_listener(
        &mut self,
        key: Key,
        spec: ListenerSpec,
    ) -> Arc<Stored<ListenerSpec>> {
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        self.put(key, Some(Object::Listener(stored.clone())));
        stored
    }
}

/// A serial number that is the same for the same name on every node: paths to one subsystem agree.
fn serial_of(nqn: &str) -> String {
    let uuid = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, nqn.as_bytes());
    uuid.simple()
        .to_string()
        .to_ascii_uppercase()
        .chars()
        .take(20)
        .collect()
}

fn normalise_namespace(
    nqn: &str,
    max: u32,
    bdev_uuid: Option<&str>,
    spec: &mut NamespaceSpec,
) -> Result<(), ControlError> {
    let mut check = Check::new(format!("namespace {} of {nqn}", spec.nsid), "namespace");
    if !(1..=max).contains(&spec.nsid) {
        let problem = format!(
            "{} must be 1 to {max}, the subsystem's max_namespaces",
            spec.nsid
        );
        check.wrong("nsid", problem);
    }
    // Without either, that of the volume as it is when the namespace is put in place.
    spec.uuid = spec.uuid.take().or_else(|| bdev_uuid.map(str::to_owned));
    if let Some(uuid) = &mut spec.uuid {
        check.uuid("uuid", uuid);
        let nguid = uuid.replace('-', "");
        spec.nguid.get_or_insert(nguid);
    }
    check.hex("nguid", &mut spec.nguid, 32);
    check.hex("eui64", &mut spec.eui64, 16);
    let nsid = spec.nsid.clamp(1, max);
    check.number("anagrpid", &mut spec.anagrpid, nsid, 1..=max);
    spec.no_auto_visible.get_or_insert(false);
    spec.write_protect.get_or_insert(false);
    spec.visible_to.sort();
    spec.visible_to.dedup();
    check.that(
        spec.visible_to.len() <= VISIBLE_TO_MAX,
        "visible_to",
        "at most 64 hosts fit",
    );
    for (index, host) in spec.visible_to.iter().enumerate() {
        check.nqn(&format!("visible_to[{index}]"), host);
    }
    check.finish()
}

fn normalise_listener(
    key: &Key,
    groups_max: u32,
    spec: &mut ListenerSpec,
) -> Result<(), ControlError> {
    let mut check = Check::new(format!("listener {}", key.name()), "listener");
    if AnaState::try_from(spec.ana_state).is_err() {
        check.wrong("ana_state", format!("{} is no path state", spec.ana_state));
    }
    if spec.ana_state() == AnaState::Unspecified {
        spec.ana_state = AnaState::Optimized.into();
    }
    spec.ana_groups.sort_by_key(|group| group.anagrpid);
    let mut before = None;
    for group in &spec.ana_groups {
        let id = group.anagrpid;
        if !(1..=groups_max).contains(&id) {
            let problem = format!("{id} must be 1 to {groups_max}, the subsystem's max_namespaces");
            check.wrong("ana_groups.anagrpid", problem);
        }
        if before.replace(id) == Some(id) {
            check.wrong("ana_groups.anagrpid", format!("{id} is named twice"));
        }
        if !matches!(AnaState::try_from(group.ana_state), Ok(s) if s != AnaState::Unspecified) {
            check.wrong("ana_groups.ana_state", format!("group {id} needs a state"));
        }
    }
    // A group in the state of all others needs no entry: one form for both.
    let all = spec.ana_state;
    spec.ana_groups.retain(|group| group.ana_state != all);
    check.only(
        "secure_channel",
        &mut spec.secure_channel,
        false,
        "TLS is not built yet",
    );
    check.finish()
}

/// Brings an address to normal form and gives its URI.
pub(super) fn normalise_address(
    address: &mut Option<Address>,
    field: &str,
) -> Result<String, ControlError> {
    let what = "the address";
    let Some(given) = address else {
        return Err(ControlError::field(what, field, "must be set"));
    };
    let trtype = given.trtype.to_ascii_lowercase();
    if !transports::BUILT_IN.contains(&trtype.as_str()) {
        let problem = format!(
            "{trtype:?} is not built in; there is {}",
            transports::BUILT_IN.join(", ")
        );
        return Err(ControlError::field(
            what,
            format!("{field}.trtype"),
            problem,
        ));
    }
    let socket = given.socket_addr().map_err(|error| {
        ControlError::field(
            what,
            format!("{field}.{}", error.field()),
            error.to_string(),
        )
    })?;
    let normal = Address::from_socket(&trtype, socket);
    let uri = normal.uri();
    *address = Some(normal);
    Ok(uri)
}
