//! Making the state be what a document says.

use std::collections::{BTreeMap, BTreeSet};

use api::fields::differences;
use api::v1::{
    self, BdevSpec, Change as ApiChange, ChangeAction, Document, ListenerSpec, SubsystemDocument,
    SubsystemSpec, bdev_spec::Kind,
};

use super::bdevs::split_drive_namespace;
use super::bdevs::{DRIVE_FEATURES, base_of, size_of};
use super::pools::split_volume;
use super::subsystems::normalise_address;
use super::{Edit, Key, Model, Object, Transaction};
use crate::error::ControlError;

impl Model {
    /// The whole state as a document.
    #[must_use]
    pub fn document(&self) -> Document {
        let subsystems = self.subsystems.values().map(|entry| SubsystemDocument {
            subsystem: Some(entry.subsystem.spec.clone()),
            namespaces: entry.namespaces.values().map(|n| n.spec.clone()).collect(),
            listeners: entry.listeners.values().map(|l| l.spec.clone()).collect(),
            hosts: entry.hosts.values().map(|h| h.spec.clone()).collect(),
        });
        Document {
            transports: self
                .transports
                .values()
                .map(|stored| stored.spec.clone())
                .collect(),
            bdevs: self
                .bdevs
                .values()
                .map(|stored| stored.spec.clone())
                .collect(),
            subsystems: subsystems.collect(),
            pools: self
                .pools
                .values()
                .map(|stored| stored.spec.clone())
                .collect(),
        }
    }
}

impl Transaction<'_> {
    /// Makes the state be what the document says; what it does not name goes, unless `keep_others`.
    ///
    /// # Errors
    /// As the calls for single objects; a fixed field that differs is a precondition that failed.
    pub fn apply(&mut self, document: &Document, keep_others: bool) -> Result<(), ControlError> {
        check_twice(document)?;
        if !keep_others {
            self.delete_others(document)?;
        }
        for spec in &document.transports {
            self.apply_transport(spec)?;
        }
        // Pools come after the devices they are on, and before layers over their volumes.
        let (over_volumes, plain): (Vec<_>, Vec<_>) = bases_first(&document.bdevs)?
            .into_iter()
            .partition(|spec| rests_on_volume(spec, document));
        for spec in plain {
            self.apply_bdev(spec)?;
        }
        for spec in &document.pools {
            if let Some(system) = spec.system
                && self.model.pools.contains_key(&spec.name)
            {
                self.set_system_pool(&spec.name, system)?;
            }
            self.attach_pool(spec.clone()).map_err(fixed_pool)?;
        }
        for spec in over_volumes {
            self.apply_bdev(spec)?;
        }
        for subsystem in &document.subsystems {
            self.apply_subsystem(subsystem)?;
        }
        Ok(())
    }

    fn delete_others(&mut self, document: &Document) -> Result<(), ControlError> {
        let wanted = Wanted::of(document, self.model)?;
        let mut keys = self.model.keys();
        // What hangs under something goes before it; layers before what they lie on.
        keys.reverse();
        let mut stacked = Vec::new();
        for key in keys.into_iter().filter(|key| !wanted.keys.contains(key)) {
            match &key {
                // Its parent took it along, or will.
                Key::Namespace(nqn, _) | Key::Listener(nqn, _) | Key::Host(nqn, _)
                    if !wanted.keys.contains(&Key::Subsystem(nqn.clone())) => {}
                Key::Subsystem(nqn) => self.delete_subsystem(nqn, None, true)?,
                Key::Bdev(_) | Key::Pool(_) => stacked.push(key),
                Key::Transport(trtype) => {
                    if !wanted.trtypes.contains(trtype) && self.model.listeners_of(trtype) == 0 {
                        self.put(key, None);
                    }
                }
                _ => self.put(key, None),
            }
        }
        self.delete_stacked(stacked)
    }

    /// Deletes devices and lets go of pools, each before what it lies on.
    fn delete_stacked(&mut self, mut keys: Vec<Key>) -> Result<(), ControlError> {
        while !keys.is_empty() {
            let before = keys.len();
            let mut refused = None;
            keys.retain(|key| {
                let deleted = match key {
                    Key::Pool(name) => self.detach_pool(name, None, true),
                    key => self.delete_bdev(&key.name(), None, true),
                };
                deleted.map_err(|error| refused = Some(error)).is_err()
            });
            if let Some(error) = refused
                && keys.len() == before
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn apply_bdev(&mut self, spec: &BdevSpec) -> Result<(), ControlError> {
        let Some(there) = self.model.bdevs.get(&spec.name).cloned() else {
            return self.create_bdev(spec.clone()).map(|_| ());
        };
        // A document is the whole truth: no limits in it means no limits.
        let mut wanted = spec.clone();
        wanted.qos.get_or_insert_default();
        let mut wanted = self.normal_bdev(wanted, Some(&there))?;
        if let (Some(Kind::File(wanted)), Some(Kind::File(there))) =
            (&mut wanted.kind, &there.spec.kind)
            && wanted.size_bytes.is_none()
        {
            wanted.size_bytes = there.size_bytes;
        }
        if let Some(size) = size_of(&wanted).filter(|size| Some(*size) != size_of(&there.spec)) {
            self.resize_bdev(&spec.name, size, None)?;
        }
        let there = self.model.bdevs.get(&spec.name).cloned().unwrap_or(there);
        let changed = differences(&there.spec, &wanted);
        let fixed: Vec<_> = changed
            .iter()
            .filter(|d| !["qos", "error.rules"].contains(&d.field.as_str()))
            .filter(|d| !DRIVE_FEATURES.contains(&d.field.as_str()))
            .filter(|d| !d.field.starts_with("qos.") && !d.field.contains("_latency_us"))
            .cloned()
            .collect();
        if !fixed.is_empty() {
            return Err(fixed_differs(&Key::Bdev(spec.name.clone()), &fixed));
        }
        if !changed.is_empty() {
            self.put_bdev(Key::Bdev(spec.name.clone()), wanted);
        }
        Ok(())
    }

    fn apply_subsystem(&mut self, document: &SubsystemDocument) -> Result<(), ControlError> {
        let spec = subsystem_of(document)?;
        let nqn = spec.nqn.as_str();
        if let Some(entry) = self.model.subsystems.get(nqn) {
            let there = entry.subsystem.spec.clone();
            // Bring the wanted one to normal form by the rules of create, then compare.
            let changed = match self.create_subsystem(spec.clone()) {
                Ok(_) => Vec::new(),
                Err(ControlError::Exists { differences, .. }) => differences,
                Err(error) => return Err(error),
            };
            let changeable = ["allow_any_host", "admin_label", "max_namespaces"];
            let is_fixed = |d: &&api::fields::Difference| !changeable.contains(&d.field.as_str());
            let fixed: Vec<_> = changed.iter().filter(is_fixed).cloned().collect();
            if !fixed.is_empty() {
                return Err(fixed_differs(&Key::Subsystem(nqn.to_owned()), &fixed));
            }
            if !changed.is_empty() {
                let mut full = spec.clone();
                full.allow_any_host.get_or_insert(false);
                full.admin_label.get_or_insert_default();
                full.max_namespaces.get_or_insert(there.max_namespaces());
                let paths: Vec<_> = changed.into_iter().map(|d| d.field).collect();
                self.update_subsystem(&full, &paths, None)?;
            }
        } else {
            self.create_subsystem(spec.clone())?;
        }
        for namespace in &document.namespaces {
            self.apply_namespace(nqn, namespace)?;
        }
        for listener in &document.listeners {
            self.apply_listener(nqn, listener)?;
        }
        for host in &document.hosts {
            self.create_host(nqn, host.clone())?;
        }
        Ok(())
    }

    fn apply_namespace(&mut self, nqn: &str, spec: &v1::NamespaceSpec) -> Result<(), ControlError> {
        let changed = match self.create_namespace(nqn, spec.clone()) {
            Ok(_) => return Ok(()),
            Err(ControlError::Exists {
                differences,
                name,
                kind,
            }) => (differences, name, kind),
            Err(error) => return Err(error),
        };
        let (differences, name, kind) = changed;
        let changeable = ["anagrpid", "no_auto_visible", "visible_to", "write_protect"];
        let fixed: Vec<_> = differences
            .iter()
            .filter(|d| !changeable.contains(&d.field.as_str()))
            .collect();
        if !fixed.is_empty() {
            let differences = fixed.into_iter().cloned().collect();
            return Err(ControlError::Exists {
                kind,
                name,
                differences,
            });
        }
        let nsid = name
            .rsplit_once('/')
            .and_then(|(_, nsid)| nsid.parse().ok())
            .unwrap_or(spec.nsid);
        let mut full = spec.clone();
        full.nsid = nsid;
        full.anagrpid.get_or_insert(nsid);
        full.no_auto_visible.get_or_insert(false);
        full.write_protect.get_or_insert(false);
        let paths: Vec<_> = differences.into_iter().map(|d| d.field).collect();
        self.update_namespace(nqn, &full, &paths, None).map(|_| ())
    }

    fn apply_listener(&mut self, nqn: &str, spec: &ListenerSpec) -> Result<(), ControlError> {
        let mut full = spec.clone();
        // A document is the whole truth: no state in it means optimized.
        if full.ana_state() == v1::AnaState::Unspecified {
            full.ana_state = v1::AnaState::Optimized.into();
        }
        match self.create_listener(nqn, full.clone()) {
            Err(ControlError::Exists { .. }) => {
                let (address, state) = (full.address.clone(), full.ana_state());
                self.set_ana_state(nqn, address.clone(), 0, state, None)?;
                for group in &full.ana_groups {
                    let state = group.ana_state();
                    self.set_ana_state(nqn, address.clone(), group.anagrpid, state, None)?;
                }
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }

    /// What this transaction did, for the answer: one entry per object, those that came out as they
    /// were left out.
    #[must_use]
    pub fn changes(&self) -> Vec<ApiChange> {
        let mut first_and_last: BTreeMap<&Key, (usize, Option<&Object>, Option<&Object>)> =
            BTreeMap::new();
        for (index, Edit { key, old, new }) in self.edits().iter().enumerate() {
            let entry = first_and_last
                .entry(key)
                .or_insert((index, old.as_ref(), None));
            entry.2 = new.as_ref();
        }
        let mut changes: Vec<_> = first_and_last.into_iter().collect();
        changes.sort_by_key(|(_, (index, ..))| *index);
        changes
            .into_iter()
            .filter_map(|(key, (_, old, new))| change(key, old, new))
            .collect()
    }
}

fn change(key: &Key, old: Option<&Object>, new: Option<&Object>) -> Option<ApiChange> {
    let mut told = Vec::new();
    let action = match (old, new) {
        (None, None) => return None,
        (None, Some(_)) => ChangeAction::Create,
        (Some(_), None) => ChangeAction::Delete,
        (Some(old), Some(new)) => {
            told = object_differences(old, new);
            if told.is_empty() {
                return None;
            }
            ChangeAction::Update
        }
    };
    Some(ApiChange {
        action: action.into(),
        kind: key.kind().to_owned(),
        name: key.name(),
        differences: told,
    })
}

fn object_differences(old: &Object, new: &Object) -> Vec<String> {
    let found = match (old, new) {
        (Object::Transport(a), Object::Transport(b)) => differences(&a.spec, &b.spec),
        (Object::Bdev(a), Object::Bdev(b)) => differences(&a.spec, &b.spec),
        (Object::Pool(a), Object::Pool(b)) => differences(&a.spec, &b.spec),
        (Object::Subsystem(a), Object::Subsystem(b)) => differences(&a.spec, &b.spec),
        (Object::Namespace(a), Object::Namespace(b)) => differences(&a.spec, &b.spec),
        (Object::Listener(a), Object::Listener(b)) => differences(&a.spec, &b.spec),
        (Object::Host(a), Object::Host(b)) => differences(&a.spec, &b.spec),
        _ => Vec::new(),
    };
    found
        .into_iter()
        .map(|d| format!("{}: {} becomes {}", d.field, d.first, d.second))
        .collect()
}

fn fixed_differs(key: &Key, fixed: &[api::fields::Difference]) -> ControlError {
    let told: Vec<_> = fixed
        .iter()
        .map(|d| format!("{} is {}, not {}", d.field, d.first, d.second))
        .collect();
    ControlError::Precondition {
        subject: key.name(),
        problem: format!(
            "{} {} cannot be changed so in place ({}); delete it first",
            key.kind(),
            key.name(),
            told.join(", ")
        ),
    }
}

fn subsystem_of(document: &SubsystemDocument) -> Result<&SubsystemSpec, ControlError> {
    document.subsystem.as_ref().ok_or_else(|| {
        ControlError::field(
            "the document",
            "subsystems.subsystem",
            "must be set, with its nqn",
        )
    })
}

/// Refuses a document that names an object twice: which one counts would be a guess.
fn check_twice(document: &Document) -> Result<(), ControlError> {
    let mut seen = BTreeSet::new();
    let bdevs = document
        .bdevs
        .iter()
        .map(|spec| ("bdevs", spec.name.as_str()));
    let transports = document
        .transports
        .iter()
        .map(|spec| ("transports", spec.trtype.as_str()));
    let subsystems = document
        .subsystems
        .iter()
        .filter_map(|s| s.subsystem.as_ref())
        .map(|spec| ("subsystems", spec.nqn.as_str()));
    let pools = document
        .pools
        .iter()
        .map(|spec| ("pools", spec.name.as_str()));
    for (list, name) in bdevs.chain(transports).chain(subsystems).chain(pools) {
        if !seen.insert((list, name)) {
            let problem = format!("{name:?} is named twice");
            return Err(ControlError::field(
                "the document",
                format!("document.{list}"),
                problem,
            ));
        }
    }
    Ok(())
}

/// A pool on another device than it is on: that is no change in place.
fn fixed_pool(error: ControlError) -> ControlError {
    match error {
        ControlError::Exists {
            name, differences, ..
        } => fixed_differs(&Key::Pool(name), &differences),
        error => error,
    }
}

/// Whether a layer lies on a volume, itself or by way of other layers.
fn rests_on_volume(spec: &BdevSpec, document: &Document) -> bool {
    let find = |name: &str| document.bdevs.iter().find(|spec| spec.name == name);
    let mut below = base_of(spec);
    // `bases_first` has found that there is no circle.
    while let Some(name) = below {
        match find(name) {
            Some(spec) => below = base_of(spec),
            None => {
                let pool = split_volume(name).map(|(pool, _)| pool);
                return pool.is_some_and(|pool| document.pools.iter().any(|p| p.name == pool));
            }
        }
    }
    false
}

/// Devices in an order in which each comes after the one it lies on.
fn bases_first(bdevs: &[BdevSpec]) -> Result<Vec<&BdevSpec>, ControlError> {
    let names: BTreeSet<_> = bdevs.iter().map(|spec| spec.name.as_str()).collect();
    // A layer on a namespace comes after the drive.
    let answers = |base: &'_ str| {
        let drive = split_drive_namespace(base).map(|(drive, _)| drive.to_owned());
        let drive = drive.filter(|drive| !names.contains(base) && names.contains(drive.as_str()));
        drive.unwrap_or_else(|| base.to_owned())
    };
    let mut placed = BTreeSet::new();
    let mut order = Vec::with_capacity(bdevs.len());
    let mut left: Vec<_> = bdevs.iter().collect();
    while !left.is_empty() {
        let before = left.len();
        left.retain(|spec| {
            let waits = base_of(spec).map(answers).is_some_and(|base| {
                names.contains(base.as_str()) && !placed.contains(base.as_str())
            });
            if !waits {
                placed.insert(spec.name.as_str());
                order.push(*spec);
            }
            waits
        });
        if left.len() == before {
            let circle: Vec<_> = left.iter().map(|spec| spec.name.as_str()).collect();
            let problem = format!("{} lie on each other in a circle", circle.join(", "));
            return Err(ControlError::field(
                "the document",
                "document.bdevs",
                problem,
            ));
        }
    }
    Ok(order)
}

/// What a document names.
struct Wanted {
    keys: BTreeSet<Key>,
    trtypes: BTreeSet<String>,
}

impl Wanted {
    fn of(document: &Document, model: &Model) -> Result<Wanted, ControlError> {
        let mut keys = BTreeSet::new();
        let mut trtypes = BTreeSet::new();
        for spec in &document.transports {
            keys.insert(Key::Transport(spec.trtype.to_ascii_lowercase()));
        }
        keys.extend(
            document
                .bdevs
                .iter()
                .map(|spec| Key::Bdev(spec.name.clone())),
        );
        keys.extend(document.pools.iter().map(|p| Key::Pool(p.name.clone())));
        for subsystem in &document.subsystems {
            let nqn = &subsystem_of(subsystem)?.nqn;
            keys.insert(Key::Subsystem(nqn.clone()));
            for listener in &subsystem.listeners {
                let mut address = listener.address.clone();
                let uri = normalise_address(&mut address, "document.subsystems.listeners.address")?;
                keys.insert(Key::Listener(nqn.clone(), uri));
                trtypes.extend(address.map(|address| address.trtype));
            }
            keys.extend(
                subsystem
                    .hosts
                    .iter()
                    .map(|h| Key::Host(nqn.clone(), h.nqn.clone())),
            );
            for namespace in &subsystem.namespaces {
                let nsid = match namespace.nsid {
                    // The one that shows this device already.
                    0 => model
                        .subsystems
                        .get(nqn)
                        .and_then(|entry| {
                            let name = &namespace.bdev_name;
                            entry
                                .namespaces
                                .values()
                                .find(|n| n.spec.bdev_name == *name)
                        })
                        .map(|found| found.spec.nsid),
                    nsid => Some(nsid),
                };
                keys.extend(nsid.map(|nsid| Key::Namespace(nqn.clone(), nsid)));
            }
        }
        Ok(Wanted { keys, trtypes })
    }
}
