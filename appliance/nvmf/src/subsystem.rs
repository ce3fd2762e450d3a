//! Subsystems: configuration snapshots, states, controllers and access.

mod changes;
mod reserve;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::{Cntlid, Nsid};

pub(crate) use self::changes::Changes;
use crate::config::{
    AnaGroupId, AnaState, ListenerConfig, NamespaceConfig, SubsystemConfig, Visibility,
    WriteProtect,
};
use crate::controller::Controller;
use crate::error::TargetError;
use crate::events::TargetEvent;
use crate::group_namespace::Pauses;
use crate::inbox::{GroupHandle, Message, ReservationChange};
use crate::limits::ANA_GROUPS_MAX;
use crate::reservation::{
    HostId, ReservationKey, ReservationRecord, ReservationStore, Reservations, View,
};
use crate::target::Target;
use crate::ticket::{Part, Ticket};

/// What a subsystem is made from. The names and defaults are SPDK's.
#[derive(Clone, Debug)]
pub struct SubsystemOptions {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Model number, at most 40 ASCII characters.
    pub model: String,
    /// Whether every host may connect; off by default.
    pub allow_any_host: bool,
    /// Highest namespace number, 32 by default.
    pub max_namespaces: u32,
    /// Lowest controller identifier, 1 by default.
    pub min_cntlid: u16,
    /// Highest controller identifier, FFEFh by default.
    pub max_cntlid: u16,
    /// Whether ANA is reported, off by default.
    pub ana_reporting: bool,
}

impl SubsystemOptions {
    /// The defaults under a name.
    pub fn new(nqn: Nqn) -> Self {
        Self {
            nqn,
            serial: "00000000000000000000".into(),
            model: "Adit bdev Controller".into(),
            allow_any_host: false,
            max_namespaces: 32,
            min_cntlid: 1,
            max_cntlid: 0xffef,
            ana_reporting: false,
        }
    }

    fn check(&self) -> Result<(), TargetError> {
        for (field, value, max) in [
            ("serial number", &self.serial, 20),
            ("model number", &self.model, 40),
        ] {
            let is_printable = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if value.is_empty() || value.len() > max || !is_printable {
                return Err(TargetError::BadString {
                    field,
                    value: value.clone(),
                    max,
                });
            }
        }
        if self.min_cntlid == 0 || self.max_cntlid > 0xffef || self.min_cntlid > self.max_cntlid {
            return Err(TargetError::BadCntlidRange {
                min: self.min_cntlid,
                max: self.max_cntlid,
            });
        }
        Ok(())
    }
}

/// A subsystem's state. The names are SPDK's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsystemState {
    /// No host can connect.
    Inactive,
    /// On its way to active.
    Activating,
    /// Hosts connect and do I/O.
    Active,
    /// A pause was asked for; commands that had begun still run.
    Pausing,
    /// New commands on the paused namespaces wait.
    Paused,
    /// On its way from paused to active.
    Resuming,
    /// Its controllers are being ended.
    Deactivating,
}

impl SubsystemState {
    /// The state's name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Deactivating => "deactivating",
        }
    }
}

/// Tells a subsystem from a later one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SubsystemUid(pub(crate) u64);

struct Inner {
    config: Arc<SubsystemConfig>,
    is_active: bool,
    /// The pauses in force, by namespace (`Nsid::ALL` for all), with whether each is complete.
    pauses: BTreeMap<Nsid, Vec<PauseProbe>>,
    /// The same as the poll groups know it.
    told_pauses: Arc<Pauses>,
    stopping: Option<PauseProbe>,
    controllers: BTreeMap<u16, Arc<Controller>>,
    /// Of every namespace.
    reservations: BTreeMap<Nsid, Arc<Reservations>>,
    next_cntlid: u16,
    /// Poll groups that have queue pairs of this subsystem.
    groups: Vec<Arc<GroupHandle>>,
}

/// Tells whether the part of a pause is still held anywhere.
struct PauseProbe(Weak<Part>);

impl PauseProbe {
    fn is_done(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// A subsystem of a target.
pub struct Subsystem {
    uid: SubsystemUid,
    nqn: Nqn,
    target: Weak<Target>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subsystem")
            .field("nqn", &self.nqn)
            .finish_non_exhaustive()
    }
}

impl Subsystem {
    pub(crate) fn new(
        uid: SubsystemUid,
        options: SubsystemOptions,
        target: Weak<Target>,
    ) -> Result<Arc<Self>, TargetError> {
        options.check()?;
        let nqn = options.nqn.clone();
        let config = SubsystemConfig {
            nqn: options.nqn,
            serial: options.serial,
            model: options.model,
            allow_any_host: options.allow_any_host,
            hosts: BTreeSet::new(),
            namespaces: BTreeMap::new(),
            listeners: Vec::new(),
            max_namespaces: options.max_namespaces,
            min_cntlid: options.min_cntlid,
            max_cntlid: options.max_cntlid,
            ana_reporting: options.ana_reporting,
            version: 0,
            ana_change_count: 0,
        };
        Ok(Arc::new(Self {
            uid,
            nqn,
            target,
            inner: Mutex::new(Inner {
                next_cntlid: config.min_cntlid,
                config: Arc::new(config),
                is_active: false,
                pauses: BTreeMap::new(),
                told_pauses: Arc::default(),
                stopping: None,
                controllers: BTreeMap::new(),
                reservations: BTreeMap::new(),
                groups: Vec::new(),
            }),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held left plain data behind: go on with it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Reading. Never pauses anything.

    /// Its name.
    pub fn nqn(&self) -> &Nqn {
        &self.nqn
    }

    pub(crate) fn uid(&self) -> SubsystemUid {
        self.uid
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<SubsystemConfig> {
        Arc::clone(&self.lock().config)
    }

    /// Its state now.
    pub fn state(&self) -> SubsystemState {
        let inner = self.lock();
        if inner
            .stopping
            .as_ref()
            .is_some_and(|probe| !probe.is_done())
        {
            return SubsystemState::Deactivating;
        }
        let mut pauses = inner.pauses.values().flatten().peekable();
        if !inner.is_active {
            SubsystemState::Inactive
        } else if pauses.peek().is_none() {
            SubsystemState::Active
        } else if pauses.all(PauseProbe::is_done) {
            SubsystemState::Paused
        } else {
            SubsystemState::Pausing
        }
    }

    /// The controllers, by identifier.
    pub fn controllers(&self) -> Vec<Arc<Controller>> {
        self.lock().controllers.values().cloned().collect()
    }

    // States.

    /// Lets hosts connect. Starting a started subsystem changes nothing.
    pub fn start(&self) {
        self.lock().is_active = true;
        self.tell_discovery();
    }

    /// Ends every controller and lets no host connect. The ticket is done once the last queue
    /// pair is gone and no device holds I/O of it.
    pub fn stop(&self) -> Ticket {
        let (ticket, part) = Ticket::new();
        let controllers = {
            let mut inner = self.lock();
            inner.is_active = false;
            inner.stopping = Some(PauseProbe(Arc::downgrade(&part)));
            inner.controllers.values().cloned().collect::<Vec<_>>()
        };
        for controller in controllers {
            controller.end_because("subsystem stopped", Some(Arc::clone(&part)));
        }
        self.tell_discovery();
        ticket
    }

    /// Pauses one namespace, or all with [`Nsid::ALL`]: commands that have begun end, new ones
    /// wait. Pauses add up; each is ended by one [`Subsystem::resume`]. The caller sets the
    /// deadline: a pause that takes too long is resumed like any other. A pause belongs to the
    /// number: it holds also for a namespace that is added under it before the resume.
    ///
    /// # Errors
    /// The namespace is not there, or the subsystem is not active.
    pub fn pause(&self, nsid: Nsid) -> Result<Ticket, TargetError> {
        let (ticket, part) = Ticket::new();
        let mut inner = self.lock();
        self.check_active(&inner)?;
        self.check_namespace(&inner, nsid)?;
        inner
            .pauses
            .entry(nsid)
            .or_default()
            .push(PauseProbe(Arc::downgrade(&part)));
        self.tell_pauses(&mut inner, Some(&part));
        Ok(ticket)
    }

    /// Ends one pause of a namespace.
    ///
    /// # Errors
    /// No such pause is in force.
    pub fn resume(&self, nsid: Nsid) -> Result<(), TargetError> {
        let mut inner = self.lock();
        let pauses = inner
            .pauses
            .get_mut(&nsid)
            .filter(|pauses| !pauses.is_empty())
            .ok_or_else(|| TargetError::WrongState {
                nqn: self.nqn.clone(),
                state: "not paused",
            })?;
        pauses.pop();
        if pauses.is_empty() {
            inner.pauses.remove(&nsid);
        }
        self.tell_pauses(&mut inner, None);
        Ok(())
    }

    /// Sends the pauses in force to the poll groups. Always all of them: a group that came late, or
    /// left and came back, counts none twice.
    fn tell_pauses(&self, inner: &mut Inner, part: Option<&Arc<Part>>) {
        let count = |pauses: &Vec<PauseProbe>| u32::try_from(pauses.len()).unwrap_or(u32::MAX);
        inner.told_pauses = Arc::new(Pauses {
            sequence: inner.told_pauses.sequence + 1,
            counts: inner
                .pauses
                .iter()
                .map(|(nsid, pauses)| (*nsid, count(pauses)))
                .collect(),
        });
        for group in &inner.groups {
            let pauses = Arc::clone(&inner.told_pauses);
            group.send(Message::Pauses(self.uid, pauses, part.cloned()));
        }
    }

    fn check_active(&self, inner: &Inner) -> Result<(), TargetError> {
        if inner.is_active {
            return Ok(());
        }
        Err(TargetError::WrongState {
            nqn: self.nqn.clone(),
            state: "inactive",
        })
    }

    fn check_namespace(&self, inner: &Inner, nsid: Nsid) -> Result<(), TargetError> {
        if nsid == Nsid::ALL || inner.config.namespaces.contains_key(&nsid) {
            return Ok(());
        }
        Err(TargetError::NoNamespace {
            nqn: self.nqn.clone(),
            nsid,
        })
    }

    // Configuration.

    /// Makes the next snapshot and sends it to the poll groups that have queue pairs here.
    fn change(
        &self,
        edit: impl FnOnce(&mut SubsystemConfig) -> Result<Changes, TargetError>,
    ) -> Result<Ticket, TargetError> {
        self.change_with(ReservationRecord::default(), edit)
    }

    /// As `change`; `record` is of the namespace that is added, if one is.
    fn change_with(
        &self,
        record: ReservationRecord,
        edit: impl FnOnce(&mut SubsystemConfig) -> Result<Changes, TargetError>,
    ) -> Result<Ticket, TargetError> {
        let (ticket, part) = Ticket::new();
        let (changes, controllers, old, config) = {
            let mut inner = self.lock();
            let mut config = SubsystemConfig::clone(&inner.config);
            let changes = edit(&mut config)?;
            config.version += 1;
            if changes.ana || changes.ana_members {
                config.ana_change_count += 1;
            }
            inner.keep_reservations(&config, &changes, record);
            let config = Arc::new(config);
            let old = std::mem::replace(&mut inner.config, Arc::clone(&config));
            for group in &inner.groups {
                group.send(Message::Subsystem(
                    self.uid,
                    Arc::clone(&config),
                    Arc::clone(&part),
                ));
            }
            (
                changes,
                inner.controllers.values().cloned().collect::<Vec<_>>(),
                old,
                config,
            )
        };
        for controller in &controllers {
            controller.subsystem_changed(&old, &config, &changes);
            if controller.is_refused_by(&config) {
                controller.end_because("access taken away", Some(Arc::clone(&part)));
            }
        }
        if changes.discovery {
            self.tell_discovery();
        }
        Ok(ticket)
    }

    fn tell_discovery(&self) {
        if let Some(target) = self.target.upgrade() {
            target.discovery_changed();
        }
    }

    /// Adds a namespace. With [`Nsid`] 0 it gets the lowest free number, which is returned.
    ///
    /// # Errors
    /// The number is taken or above the limit.
    pub fn add_namespace(&self, namespace: NamespaceConfig) -> Result<(Nsid, Ticket), TargetError> {
        self.add_namespace_with_reservations(namespace, ReservationRecord::default())
    }

    /// As [`Subsystem::add_namespace`], with what a [`ReservationStore`] has kept of it.
    ///
    /// # Errors
    /// The number is taken or above the limit.
    pub fn add_namespace_with_reservations(
        &self,
        mut namespace: NamespaceConfig,
        record: ReservationRecord,
    ) -> Result<(Nsid, Ticket), TargetError> {
        let mut nsid = namespace.nsid;
        let ticket = self.change_with(record.restored(), |config| {
            if nsid.0 == 0 {
                nsid = (1..=config.max_namespaces)
                    .map(Nsid)
                    .find(|nsid| !config.namespaces.contains_key(nsid))
                    .unwrap_or(Nsid(config.max_namespaces.saturating_add(1)));
            }
            if nsid.0 > config.max_namespaces {
                return Err(TargetError::TooManyNamespaces {
                    nqn: self.nqn.clone(),
                    max: config.max_namespaces,
                });
            }
            if config.namespaces.contains_key(&nsid) {
                return Err(TargetError::NamespaceExists {
                    nqn: self.nqn.clone(),
                    nsid,
                });
            }
            namespace.nsid = nsid;
            check_ana_group(namespace.ana_group)?;
            config.namespaces.insert(nsid, Arc::new(namespace));
            Ok(Changes::member(nsid))
        })?;
        Ok((nsid, ticket))
    }

    /// Removes a namespace: new commands fail, the ticket is done when those under way have ended.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn remove_namespace(&self, nsid: Nsid) -> Result<Ticket, TargetError> {
        self.change(|config| {
            config
                .namespaces
                .remove(&nsid)
                .ok_or(TargetError::NoNamespace {
                    nqn: self.nqn.clone(),
                    nsid,
                })?;
            Ok(Changes::member(nsid))
        })
    }

    fn change_namespace(
        &self,
        nsid: Nsid,
        is_ana_change: bool,
        edit: impl FnOnce(&mut NamespaceConfig),
    ) -> Result<Ticket, TargetError> {
        self.change(|config| {
            let namespace = config
                .namespaces
                .get_mut(&nsid)
                .ok_or(TargetError::NoNamespace {
                    nqn: self.nqn.clone(),
                    nsid,
                })?;
            edit(Arc::make_mut(namespace));
            Ok(if is_ana_change {
                // The ANA event is instead of the namespace event, not beside it.
                Changes {
                    ana: true,
                    ..Changes::default()
                }
            } else {
                Changes {
                    namespaces: vec![nsid],
                    ..Changes::default()
                }
            })
        })
    }

    /// Tells hosts that a namespace's device has another size now.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn namespace_resized(&self, nsid: Nsid) -> Result<Ticket, TargetError> {
        self.change_namespace(nsid, false, |_| {})
    }

    /// Sets or clears the write protection of a namespace.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn set_write_protect(
        &self,
        nsid: Nsid,
        write_protect: WriteProtect,
    ) -> Result<Ticket, TargetError> {
        self.change_namespace(nsid, false, |namespace| {
            namespace.write_protect = write_protect;
        })
    }

    /// A host's Set Features 84h. The target's owner learns of it from [`Target::take_events`].
    pub(crate) fn set_write_protect_by_host(
        &self,
        nsid: Nsid,
        write_protect: WriteProtect,
    ) -> Result<Ticket, TargetError> {
        let ticket = self.set_write_protect(nsid, write_protect)?;
        if let Some(target) = self.target.upgrade() {
            target.tell(TargetEvent::WriteProtectChanged {
                nqn: self.nqn.clone(),
                nsid,
                write_protect,
            });
        }
        Ok(ticket)
    }

    /// Sets who sees a namespace.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn set_visibility(
        &self,
        nsid: Nsid,
        visibility: Visibility,
    ) -> Result<Ticket, TargetError> {
        self.change_namespace(nsid, false, |namespace| namespace.visibility = visibility)
    }

    /// Moves a namespace to another ANA group.
    ///
    /// # Errors
    /// There is no such namespace, or the group's number is out of range.
    pub fn set_ana_group(&self, nsid: Nsid, group: AnaGroupId) -> Result<Ticket, TargetError> {
        check_ana_group(group)?;
        self.change_namespace(nsid, true, |namespace| namespace.ana_group = group)
    }

    /// Sets the ANA state of one group, or of all with `None`, at one address.
    ///
    /// # Errors
    /// The subsystem is not reached at this address, or the group's number is out of range.
    pub fn set_ana_state(
        &self,
        address: &TransportAddress,
        group: Option<AnaGroupId>,
        state: AnaState,
    ) -> Result<Ticket, TargetError> {
        group.map_or(Ok(()), check_ana_group)?;
        self.change(|config| {
            let listener = self.find_listener(config, address)?;
            match group {
                Some(group) => {
                    listener.ana.insert(group, state);
                }
                None => {
                    listener.ana.clear();
                    listener.ana_default = state;
                }
            }
            Ok(Changes {
                ana: true,
                ..Changes::default()
            })
        })
    }

    /// Sets the ANA states of all groups at one address at once.
    ///
    /// # Errors
    /// The subsystem is not reached at this address.
    pub fn set_ana_states(
        &self,
        address: &TransportAddress,
        default: AnaState,
        states: BTreeMap<AnaGroupId, AnaState>,
    ) -> Result<Ticket, TargetError> {
        self.change(|config| {
            let listener = self.find_listener(config, address)?;
            listener.ana_default = default;
            listener.ana = states;
            Ok(Changes {
                ana: true,
                ..Changes::default()
            })
        })
    }

    fn find_listener<'a>(
        &self,
        config: &'a mut SubsystemConfig,
        address: &TransportAddress,
    ) -> Result<&'a mut ListenerConfig, TargetError> {
        config
            .listeners
            .iter_mut()
            .find(|listener| *listener.address == *address)
            .ok_or_else(|| TargetError::NoListener {
                nqn: self.nqn.clone(),
                address: address.to_string(),
            })
    }

    /// Raises or lowers the highest namespace number. Hosts learn of it when they connect anew.
    ///
    /// # Errors
    /// A namespace above the new limit exists.
    pub fn set_max_namespaces(&self, max_namespaces: u32) -> Result<Ticket, TargetError> {
        self.change(|config| {
            if let Some((nsid, _)) = config.namespaces.last_key_value()
                && nsid.0 > max_namespaces
            {
                return Err(TargetError::NamespaceExists {
                    nqn: self.nqn.clone(),
                    nsid: *nsid,
                });
            }
            config.max_namespaces = max_namespaces;
            Ok(Changes::default())
        })
    }

    /// Makes the subsystem reachable at an address at which the target listens.
    ///
    /// # Errors
    /// It is already.
    pub fn add_listener(
        &self,
        address: Arc<TransportAddress>,
        ana_state: AnaState,
    ) -> Result<Ticket, TargetError> {
        self.change(|config| {
            if config.listener(&address).is_some() {
                return Err(TargetError::ListenerExists {
                    nqn: self.nqn.clone(),
                    address: address.to_string(),
                });
            }
            config.listeners.push(ListenerConfig {
                address,
                ana_default: ana_state,
                ana: BTreeMap::new(),
            });
            Ok(Changes::DISCOVERY)
        })
    }

    /// Makes the subsystem unreachable at an address; its controllers there end.
    ///
    /// # Errors
    /// It is not reachable there.
    pub fn remove_listener(&self, address: &TransportAddress) -> Result<Ticket, TargetError> {
        self.change(|config| {
            let before = config.listeners.len();
            config
                .listeners
                .retain(|listener| *listener.address != *address);
            if config.listeners.len() == before {
                return Err(TargetError::NoListener {
                    nqn: self.nqn.clone(),
                    address: address.to_string(),
                });
            }
            Ok(Changes::DISCOVERY)
        })
    }

    /// Lets a host connect.
    ///
    /// # Errors
    /// None now.
    pub fn add_host(&self, host: Nqn) -> Result<Ticket, TargetError> {
        self.change(|config| {
            config.hosts.insert(host);
            Ok(Changes::DISCOVERY)
        })
    }

    /// Lets a host no longer connect; its controllers end. The ticket is done when they are gone.
    ///
    /// # Errors
    /// None now.
    pub fn remove_host(&self, host: &Nqn) -> Result<Ticket, TargetError> {
        self.change(|config| {
            config.hosts.remove(host);
            Ok(Changes::DISCOVERY)
        })
    }

    /// Lets every host connect, or only those named.
    ///
    /// # Errors
    /// None now.
    pub fn set_allow_any_host(&self, allow: bool) -> Result<Ticket, TargetError> {
        self.change(|config| {
            config.allow_any_host = allow;
            Ok(Changes::DISCOVERY)
        })
    }

    // For poll groups and controllers.

    /// Notes that a poll group has queue pairs here and gives it the snapshot in force.
    pub(crate) fn attach(&self, group: &Arc<GroupHandle>) -> (Arc<SubsystemConfig>, Arc<Pauses>) {
        let mut inner = self.lock();
        inner.groups.push(Arc::clone(group));
        (Arc::clone(&inner.config), Arc::clone(&inner.told_pauses))
    }

    pub(crate) fn detach(&self, group: &Arc<GroupHandle>) {
        let mut inner = self.lock();
        if let Some(index) = inner
            .groups
            .iter()
            .position(|other| Arc::ptr_eq(other, group))
        {
            inner.groups.swap_remove(index);
        }
    }

    /// Hands out a controller identifier and keeps the controller that `make` makes with it.
    pub(crate) fn add_controller(
        &self,
        make: impl FnOnce(Cntlid) -> Arc<Controller>,
    ) -> Option<Arc<Controller>> {
        let mut inner = self.lock();
        if !inner.is_active {
            return None;
        }
        let (min, max) = (inner.config.min_cntlid, inner.config.max_cntlid);
        let start = inner.next_cntlid.clamp(min, max);
        let free = (start..=max)
            .chain(min..start)
            .find(|id| !inner.controllers.contains_key(id))?;
        inner.next_cntlid = if free == max { min } else { free + 1 };
        let controller = make(Cntlid(free));
        inner.controllers.insert(free, Arc::clone(&controller));
        Some(controller)
    }

    pub(crate) fn controller(&self, cntlid: Cntlid) -> Option<Arc<Controller>> {
        self.lock().controllers.get(&cntlid.0).cloned()
    }

    pub(crate) fn remove_controller(&self, cntlid: Cntlid) {
        self.lock().controllers.remove(&cntlid.0);
    }

    pub(crate) fn is_active(&self) -> bool {
        self.lock().is_active
    }
}

fn check_ana_group(group: AnaGroupId) -> Result<(), TargetError> {
    if (1..=ANA_GROUPS_MAX).contains(&group.0) {
        return Ok(());
    }
    Err(TargetError::BadAnaGroup {
        group: group.0,
        max: ANA_GROUPS_MAX,
    })
}
