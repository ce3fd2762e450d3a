//! Edits of the desired state, made so.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use api::v1::{
    AnaState as AnaStateMessage, BdevSpec, ListenerSpec, NamespaceSpec, SubsystemSpec,
    TransportSpec, bdev_spec::Kind,
};
use block::delay::DelayLayer;
use block::error::ErrorLayer;
use block::{Bdev, BdevOptions, ClaimKind};
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::Nsid;
use nvmf::{
    AnaGroupId, AnaState, NamespaceConfig, SubsystemOptions, TargetError, Ticket, Visibility,
    WriteProtect,
};

use super::devices::{self, Opened};
use super::{NvmfRuntime, drives, refused, settle, settle_one, transports};
use crate::error::chain;
use crate::model::{Edit, Key, Object};
use crate::runtime::{Prepared, RuntimeError, Settled, at_once};

type Applied = Result<Settled, RuntimeError>;

pub(super) fn pending(reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Pending(reason.into())
}

pub(super) fn wrong(what: impl Into<String>) -> RuntimeError {
    RuntimeError::Refused(what.into())
}

fn of_target(error: TargetError) -> RuntimeError {
    refused(&error)
}

fn nqn(text: &str) -> Result<Nqn, RuntimeError> {
    text.parse()
        .map_err(|error: fabric_wire::NqnError| refused(&error))
}

impl NvmfRuntime {
    pub(super) fn apply_edit(&self, edit: &Edit, prepared: Option<Prepared>) -> Applied {
        match (&edit.key, &edit.old, &edit.new) {
            (Key::Transport(_), _, Some(Object::Transport(new))) => self.put_transport(&new.spec),
            (Key::Transport(trtype), _, None) => self.remove_transport(trtype),
            (Key::Bdev(_), None, Some(Object::Bdev(new))) => self.add_bdev(&new.spec, prepared),
            (Key::Bdev(_), Some(Object::Bdev(old)), Some(Object::Bdev(new))) => {
                self.change_bdev(&old.spec, &new.spec, prepared)
            }
            (Key::Bdev(name), _, None) => self.remove_bdev(name),
            (Key::Pool(name), None, Some(Object::Pool(_))) => {
                self.pools.put(name, prepared)?;
                Ok(at_once())
            }
            // What changes of it is for the next time that it is opened.
            (Key::Pool(_), Some(_), Some(Object::Pool(_))) => Ok(at_once()),
            (Key::Pool(name), _, None) => self.pools.remove(name),
            (Key::Subsystem(_), None, Some(Object::Subsystem(new))) => {
                self.add_subsystem(&new.spec)
            }
            (Key::Subsystem(_), Some(_), Some(Object::Subsystem(new))) => {
                self.change_subsystem(&new.spec)
            }
            (Key::Subsystem(name), _, None) => self.remove_subsystem(name),
            (Key::Namespace(of, _), None, Some(Object::Namespace(new))) => {
                self.add_namespace(of, &new.spec)
            }
            (Key::Namespace(of, _), Some(Object::Namespace(old)), Some(Object::Namespace(new))) => {
                self.change_namespace(of, &old.spec, &new.spec)
            }
            (Key::Namespace(of, nsid), _, None) => self.remove_namespace(of, *nsid),
            (Key::Listener(of, _), None, Some(Object::Listener(new))) => {
                self.add_listener(of, &new.spec)
            }
            (Key::Listener(of, _), Some(_), Some(Object::Listener(new))) => {
                self.change_listener(of, &new.spec)
            }
            (Key::Listener(of, uri), _, None) => self.remove_listener(of, uri),
            (Key::Host(of, host), _, Some(_)) => {
                let subsystem = self.wanted(of)?;
                subsystem
                    .add_host(nqn(host)?)
                    .map(settle_one)
                    .map_err(of_target)
            }
            (Key::Host(of, host), _, None) => match self.subsystem(of) {
                Some(subsystem) => self.remove_host(&subsystem, &nqn(host)?),
                None => Ok(at_once()),
            },
            _ => Err(wrong("the edit names one kind of object and holds another")),
        }
    }

    /// The subsystem that an edit rests on.
    fn wanted(&self, of: &str) -> Result<Arc<nvmf::Subsystem>, RuntimeError> {
        self.subsystem(of)
            .ok_or_else(|| pending(format!("subsystem {of} is not in place")))
    }

    // Transports.

    /// A change makes a new transport in the place of the old one: connections made from then on
    /// have its options, those that are up keep theirs.
    fn put_transport(&self, spec: &TransportSpec) -> Applied {
        let transport = transports::make(spec)?;
        let target = self.plane.target();
        let failed = target.put_transport(transport).map_err(of_target)?;
        for error in failed {
            // The listener's own edit is retried by the control plane when its address is back.
            tracing::error!(
                error = chain(&error),
                "a listener did not survive the change"
            );
        }
        Ok(at_once())
    }

    fn remove_transport(&self, trtype: &str) -> Applied {
        self.plane.target().remove_transport(trtype);
        Ok(at_once())
    }

    // Block devices.

    fn add_bdev(&self, spec: &BdevSpec, prepared: Option<Prepared>) -> Applied {
        if drives::of(spec).is_some() {
            self.drives.put(spec, prepared)?;
            return Ok(at_once());
        }
        let opened = match base_of(spec) {
            Some(base_name) => {
                let base = self.base(base_name)?;
                let claim = base
                    .claim(&spec.name, ClaimKind::Exclusive)
                    .map_err(|error| refused(&error))?;
                let device = devices::layer(spec, base.device())?;
                self.lock()
                    .claims
                    .insert(Key::Bdev(spec.name.clone()), claim);
                Opened {
                    device,
                    notice: None,
                }
            }
            None => opened(prepared)?,
        };
        let options = BdevOptions {
            name: spec.name.clone(),
            uuid: spec.uuid.as_deref().and_then(|uuid| uuid.parse().ok()),
            aliases: Vec::new(),
        };
        let created = self
            .plane
            .registry()
            .create(options, opened.device, Instant::now());
        let bdev = created.map_err(|error| {
            self.lock().claims.remove(&Key::Bdev(spec.name.clone()));
            refused(&error)
        })?;
        if let Some(notice) = opened.notice {
            tracing::warn!(bdev = spec.name, "{notice}");
            self.lock().notices.insert(spec.name.clone(), notice);
        }
        set_qos(&bdev, spec)?;
        Ok(at_once())
    }

    fn base(&self, name: &str) -> Result<Arc<Bdev>, RuntimeError> {
        let found = self.plane.registry().get(name);
        found.map_err(|_| pending(format!("the device below, {name}, is not in place")))
    }

    fn change_bdev(&self, old: &BdevSpec, new: &BdevSpec, prepared: Option<Prepared>) -> Applied {
        if let Some(nvme) = drives::of(new) {
            let drive = self.drives.get(&new.name);
            return drive.map_or_else(|| Ok(at_once()), |drive| drive.change(nvme));
        }
        let Ok(bdev) = self.plane.registry().get(&new.name) else {
            // It never came to be in place: this is its first time.
            return self.add_bdev(new, prepared);
        };
        let device = bdev.device();
        match &new.kind {
            Some(Kind::Error(spec)) => {
                if let Some(layer) = device.downcast_ref::<ErrorLayer>() {
                    devices::set_rules(layer, &spec.rules)?;
                }
            }
            Some(Kind::Delay(spec)) => {
                if let Some(layer) = device.downcast_ref::<DelayLayer>() {
                    layer.set_delays(&devices::delays(spec));
                }
            }
            _ => {}
        }
        set_qos(&bdev, new)?;
        if size_of_spec(old) == size_of_spec(new) {
            return Ok(at_once());
        }
        self.resize(&bdev, size_of_spec(new))
    }

    fn resize(&self, bdev: &Arc<Bdev>, size_bytes: Option<u64>) -> Applied {
        let Some(size_bytes) = size_bytes else {
            return Ok(at_once());
        };
        let block_count = size_bytes / u64::from(bdev.geometry().block_size);
        bdev.resize(block_count).map_err(|error| refused(&error))?;
        let mut tickets = Vec::new();
        for subsystem in self.all_subsystems() {
            for namespace in subsystem.config().namespaces.values() {
                if Arc::ptr_eq(&namespace.bdev, bdev) {
                    tickets.extend(subsystem.namespace_resized(namespace.nsid).ok());
                }
            }
        }
        Ok(settle(tickets))
    }

    fn remove_bdev(&self, name: &str) -> Applied {
        if self.drives.get(name).is_some() {
            return self.drives.remove(name);
        }
        let registry = self.plane.registry();
        if registry.get(name).is_ok() {
            registry.delete(name).map_err(|error| refused(&error))?;
        }
        let mut state = self.lock();
        state.notices.remove(name);
        state.claims.remove(&Key::Bdev(name.to_owned()));
        Ok(at_once())
    }

    // Subsystems.

    fn add_subsystem(&self, spec: &SubsystemSpec) -> Applied {
        let name = nqn(&spec.nqn)?;
        let defaults = SubsystemOptions::new(name);
        let id = |value: Option<u32>, default| {
            value
                .and_then(|value| u16::try_from(value).ok())
                .unwrap_or(default)
        };
        let options = SubsystemOptions {
            serial: spec.serial_number.clone().unwrap_or(defaults.serial),
            model: spec.model_number.clone().unwrap_or(defaults.model),
            allow_any_host: spec.allow_any_host.unwrap_or(false),
            max_namespaces: spec.max_namespaces.unwrap_or(defaults.max_namespaces),
            min_cntlid: id(spec.min_cntlid, defaults.min_cntlid),
            max_cntlid: id(spec.max_cntlid, defaults.max_cntlid),
            ana_reporting: spec.ana_reporting.unwrap_or(true),
            nqn: defaults.nqn,
        };
        let subsystem = self
            .plane
            .target()
            .create_subsystem(options)
            .map_err(of_target)?;
        subsystem.start();
        Ok(at_once())
    }

    fn change_subsystem(&self, spec: &SubsystemSpec) -> Applied {
        let Some(subsystem) = self.subsystem(&spec.nqn) else {
            return self.add_subsystem(spec);
        };
        let mut tickets = Vec::new();
        let config = subsystem.config();
        let allow = spec.allow_any_host.unwrap_or(false);
        if allow != config.allow_any_host {
            tickets.push(subsystem.set_allow_any_host(allow).map_err(of_target)?);
        }
        if let Some(max) = spec.max_namespaces
            && max != config.max_namespaces
        {
            tickets.push(subsystem.set_max_namespaces(max).map_err(of_target)?);
        }
        Ok(settle(tickets))
    }

    fn remove_subsystem(&self, name: &str) -> Applied {
        match self.plane.target().delete_subsystem(&nqn(name)?) {
            Ok(ticket) => Ok(settle_one(ticket)),
            // It never came to be in place.
            Err(TargetError::NoSubsystem { .. }) => Ok(at_once()),
            Err(error) => Err(of_target(error)),
        }
    }

    // Namespaces.

    fn add_namespace(&self, of: &str, spec: &NamespaceSpec) -> Applied {
        let subsystem = self.wanted(of)?;
        let bdev = self
            .plane
            .registry()
            .get(&spec.bdev_name)
            .map_err(|_| pending(self.no_bdev(&spec.bdev_name)))?;
        let owner = format!("{of}/{}", spec.nsid);
        let claim = bdev
            .claim(&owner, ClaimKind::Shared)
            .map_err(|error| refused(&error))?;
        let uuid = spec.uuid.as_deref().and_then(|uuid| uuid.parse().ok());
        let uuid = uuid.unwrap_or_else(|| bdev.uuid());
        let config = NamespaceConfig {
            nsid: Nsid(spec.nsid),
            uuid,
            nguid: hex(spec.nguid.as_deref(), "nguid")?
                .or_else(|| self.pools.nguid(&spec.bdev_name))
                .unwrap_or(*uuid.as_bytes()),
            eui64: hex(spec.eui64.as_deref(), "eui64")?.unwrap_or_default(),
            bdev,
            ana_group: ana_group(spec),
            visibility: visibility(spec)?,
            write_protect: write_protect(spec),
        };
        let kept = self.reservations.as_ref();
        let kept = kept.map(|kept| kept.of(of, spec.nsid, uuid));
        let (_, ticket) = subsystem
            .add_namespace_with_reservations(config, kept.unwrap_or_default())
            .map_err(of_target)?;
        self.lock()
            .claims
            .insert(Key::Namespace(of.to_owned(), spec.nsid), claim);
        Ok(settle_one(ticket))
    }

    /// Why there is no block device of this name.
    fn no_bdev(&self, name: &str) -> String {
        match name.split_once('/') {
            Some((pool, _)) if self.pools.get(pool).is_some() => {
                format!("pool {pool} has no volume {name}")
            }
            _ => format!("block device {name} is not in place"),
        }
    }

    fn change_namespace(&self, of: &str, old: &NamespaceSpec, new: &NamespaceSpec) -> Applied {
        let subsystem = self.wanted(of)?;
        let nsid = Nsid(new.nsid);
        if !subsystem.config().namespaces.contains_key(&nsid) {
            return self.add_namespace(of, new);
        }
        let mut tickets = Vec::new();
        if ana_group(old) != ana_group(new) {
            tickets.push(
                subsystem
                    .set_ana_group(nsid, ana_group(new))
                    .map_err(of_target)?,
            );
        }
        if visibility(old)? != visibility(new)? {
            tickets.push(
                subsystem
                    .set_visibility(nsid, visibility(new)?)
                    .map_err(of_target)?,
            );
        }
        if write_protect(old) != write_protect(new) {
            let protect = write_protect(new);
            tickets.push(
                subsystem
                    .set_write_protect(nsid, protect)
                    .map_err(of_target)?,
            );
        }
        Ok(settle(tickets))
    }

    fn remove_namespace(&self, of: &str, nsid: u32) -> Applied {
        if let Some(reservations) = &self.reservations {
            reservations.forget(of, nsid);
        }
        let claim = self
            .lock()
            .claims
            .remove(&Key::Namespace(of.to_owned(), nsid));
        let removed = self.subsystem(of).map(|s| s.remove_namespace(Nsid(nsid)));
        match removed {
            Some(Ok(ticket)) => Ok(Box::pin(async move {
                ticket.await;
                // Held until the last I/O has ended, so that the device is not deleted under it.
                drop(claim);
            })),
            // Gone with its subsystem, or it never came to be in place.
            None | Some(Err(TargetError::NoNamespace { .. })) => Ok(at_once()),
            Some(Err(error)) => Err(of_target(error)),
        }
    }

    // Listeners and hosts.

    fn add_listener(&self, of: &str, spec: &ListenerSpec) -> Applied {
        let subsystem = self.wanted(of)?;
        let address = listener_address(spec)?;
        let target = self.plane.target();
        target.listen(&address).map_err(|error| match &error {
            TargetError::NoTransport { .. } => pending(chain(&error)),
            TargetError::Listen { source, .. } => match source.kind() {
                ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse | ErrorKind::NetworkDown => {
                    pending(chain(&error))
                }
                _ => refused(&error),
            },
            _ => refused(&error),
        })?;
        let added = subsystem.add_listener(Arc::new(address.clone()), ana_default(spec));
        let mut tickets = vec![added.map_err(|error| {
            drop(target.stop_listening(&address));
            of_target(error)
        })?];
        tickets.extend(self.set_ana_groups(&subsystem, &address, spec)?);
        Ok(settle(tickets))
    }

    fn set_ana_groups(
        &self,
        subsystem: &nvmf::Subsystem,
        address: &TransportAddress,
        spec: &ListenerSpec,
    ) -> Result<Vec<Ticket>, RuntimeError> {
        let groups = spec.ana_groups.iter().map(|group| {
            let id = Some(AnaGroupId(group.anagrpid));
            subsystem
                .set_ana_state(address, id, ana_state(group.ana_state()))
                .map_err(of_target)
        });
        groups.collect()
    }

    fn change_listener(&self, of: &str, spec: &ListenerSpec) -> Applied {
        let subsystem = self.wanted(of)?;
        let address = listener_address(spec)?;
        if subsystem.config().listener(&address).is_none() {
            return self.add_listener(of, spec);
        }
        let states = spec
            .ana_groups
            .iter()
            .map(|group| (AnaGroupId(group.anagrpid), ana_state(group.ana_state())));
        let ticket = subsystem
            .set_ana_states(&address, ana_default(spec), states.collect())
            .map_err(of_target)?;
        Ok(settle_one(ticket))
    }

    fn remove_listener(&self, of: &str, uri: &str) -> Applied {
        let address: TransportAddress = uri
            .parse()
            .map_err(|error: fabric_wire::TransportAddressError| refused(&error))?;
        let Some(subsystem) = self.subsystem(of) else {
            // The subsystem went first, and its listeners with it, but not the address.
            return Ok(settle_one(self.plane.target().stop_listening(&address)));
        };
        match subsystem.remove_listener(&address) {
            Ok(ticket) => Ok(settle(vec![
                ticket,
                self.plane.target().stop_listening(&address),
            ])),
            Err(TargetError::NoListener { .. }) => Ok(at_once()),
            Err(error) => Err(of_target(error)),
        }
    }

    /// The host's controllers end at once; their I/O that is with a device has the deadline.
    fn remove_host(&self, subsystem: &nvmf::Subsystem, host: &Nqn) -> Applied {
        let deadline = self.lock().host_deadline;
        let ticket = subsystem.remove_host(host).map_err(of_target)?;
        let host = host.clone();
        Ok(Box::pin(async move {
            if tokio::time::timeout(deadline, ticket).await.is_err() {
                tracing::warn!(%host, "the removed host's I/O has not ended within {} ms",
                    deadline.as_millis());
            }
        }))
    }
}

fn opened(prepared: Option<Prepared>) -> Result<Opened, RuntimeError> {
    let prepared = prepared.ok_or_else(|| pending("the device has not been opened yet"))?;
    let opened = prepared.downcast::<Opened>();
    opened
        .map(|opened| *opened)
        .map_err(|_| pending("the device has not been opened yet"))
}

/// The device below a layer.
fn base_of(spec: &BdevSpec) -> Option<&str> {
    match spec.kind.as_ref()? {
        Kind::Error(spec) => Some(&spec.base_bdev),
        Kind::Delay(spec) => Some(&spec.base_bdev),
        _ => None,
    }
}

fn size_of_spec(spec: &BdevSpec) -> Option<u64> {
    match spec.kind.as_ref()? {
        Kind::Malloc(spec) => Some(spec.size_bytes),
        Kind::Null(spec) => Some(spec.size_bytes),
        Kind::File(spec) => spec.size_bytes,
        Kind::Error(_) | Kind::Delay(_) | Kind::Nvme(_) => None,
    }
}

fn set_qos(bdev: &Bdev, spec: &BdevSpec) -> Result<(), RuntimeError> {
    let limits = devices::qos(spec.qos.as_ref());
    bdev.set_qos(&limits, Instant::now())
        .map_err(|error| refused(&error))
}

fn listener_address(spec: &ListenerSpec) -> Result<TransportAddress, RuntimeError> {
    let address = spec
        .address
        .as_ref()
        .ok_or_else(|| wrong("the listener has no address"))?;
    address
        .uri()
        .parse()
        .map_err(|error: fabric_wire::TransportAddressError| refused(&error))
}

fn ana_group(spec: &NamespaceSpec) -> AnaGroupId {
    AnaGroupId(spec.anagrpid.unwrap_or(spec.nsid).max(1))
}

fn ana_default(spec: &ListenerSpec) -> AnaState {
    ana_state(spec.ana_state())
}

fn ana_state(state: AnaStateMessage) -> AnaState {
    match state {
        AnaStateMessage::Unspecified | AnaStateMessage::Optimized => AnaState::Optimized,
        AnaStateMessage::NonOptimized => AnaState::NonOptimized,
        AnaStateMessage::Inaccessible => AnaState::Inaccessible,
        AnaStateMessage::PersistentLoss => AnaState::PersistentLoss,
        AnaStateMessage::Change => AnaState::Change,
    }
}

fn visibility(spec: &NamespaceSpec) -> Result<Visibility, RuntimeError> {
    if !spec.no_auto_visible.unwrap_or(false) {
        return Ok(Visibility::AllHosts);
    }
    let hosts = spec
        .visible_to
        .iter()
        .map(|host| nqn(host))
        .collect::<Result<_, _>>()?;
    Ok(Visibility::Hosts(hosts))
}

fn write_protect(spec: &NamespaceSpec) -> WriteProtect {
    if spec.write_protect.unwrap_or(false) {
        WriteProtect::WriteProtect
    } else {
        WriteProtect::None
    }
}

/// An identifier in hexadecimal digits.
fn hex<const N: usize>(
    text: Option<&str>,
    field: &'static str,
) -> Result<Option<[u8; N]>, RuntimeError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let bad = || {
        wrong(format!(
            "{field} {text:?} must be {} hexadecimal digits",
            2 * N
        ))
    };
    if digits.len() != 2 * N || !digits.is_ascii() {
        return Err(bad());
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| bad())?;
    }
    Ok(Some(bytes))
}
