//! Objects as messages: the specification, whether it is in place, and what the data plane knows.

use std::sync::Arc;

use api::v1::{self, BdevSpec, HostSpec, ListenerSpec, NamespaceSpec, ObjectState, TransportSpec};

use super::ready;
use crate::control::View;
use crate::error::ControlError;
use crate::model::{Key, Stored, SubsystemEntry};
use crate::runtime::Runtime;

/// Makes messages of objects.
#[derive(Clone, Copy)]
pub(super) struct Describe<'a> {
    pub(super) view: View<'a>,
    pub(super) runtime: &'a Arc<dyn Runtime>,
}

impl Describe<'_> {
    fn status(&self, key: &Key) -> v1::Status {
        match self.view.pending.get(key) {
            None => ready(),
            Some(pending) => v1::Status {
                state: ObjectState::Pending.into(),
                reason: pending.reason.clone(),
            },
        }
    }

    pub(super) fn transport(&self, stored: &Stored<TransportSpec>) -> v1::Transport {
        let trtype = &stored.spec.trtype;
        let listeners = self.view.model.listeners_of(trtype);
        let mut transport = v1::Transport {
            spec: Some(stored.spec.clone()),
            generation: stored.generation,
            status: Some(self.status(&Key::Transport(trtype.clone()))),
            listeners: u32::try_from(listeners).unwrap_or(u32::MAX),
            ..v1::Transport::default()
        };
        self.runtime.describe_transport(&mut transport);
        transport
    }

    pub(super) fn bdev(&self, stored: &Stored<BdevSpec>) -> v1::Bdev {
        let name = &stored.spec.name;
        let users: Vec<_> = self.view.model.bdev_users(name).collect();
        let claim_type = match users.first() {
            Some(Key::Namespace(..)) => "namespace",
            Some(Key::Pool(_)) => "pool",
            Some(_) => "layer",
            None => "",
        };
        let mut bdev = v1::Bdev {
            spec: Some(stored.spec.clone()),
            generation: stored.generation,
            status: Some(self.status(&Key::Bdev(name.clone()))),
            aliases: vec![stored.spec.uuid().to_owned()],
            claimed: !users.is_empty(),
            claim_type: claim_type.to_owned(),
            claimed_by: users.into_iter().map(Key::name).collect(),
            ..v1::Bdev::default()
        };
        self.runtime.describe_bdev(&mut bdev);
        bdev
    }

    /// A volume or a snapshot as a block device.
    pub(super) fn volume(&self, volume: &v1::Volume) -> v1::Bdev {
        let stored = Stored {
            spec: BdevSpec {
                name: volume.name.clone(),
                uuid: Some(volume.uuid.clone()),
                qos: volume.qos,
                kind: None,
            },
            generation: 0,
        };
        let status = volume.status.clone();
        v1::Bdev {
            status,
            ..self.bdev(&stored)
        }
    }

    /// A namespace of a drive, as a block device of its own.
    pub(super) fn namespace_of_drive(&self, name: &str) -> Option<v1::Bdev> {
        let drive = self.view.model.drive_of(name)?;
        let of_drive = self.bdev(drive);
        let found = of_drive.nvme.iter().flat_map(|nvme| &nvme.namespaces);
        let found = found.into_iter().find(|found| found.bdev_name == name)?;
        let stored = Stored {
            spec: BdevSpec {
                name: name.to_owned(),
                uuid: Some(found.uuid.clone()),
                qos: None,
                kind: drive.spec.kind.clone(),
            },
            generation: drive.generation,
        };
        let mut bdev = self.bdev(&stored);
        bdev.status = of_drive.status;
        Some(bdev)
    }

    pub(super) fn subsystem(&self, entry: &SubsystemEntry) -> v1::Subsystem {
        let nqn = &entry.subsystem.spec.nqn;
        let mut subsystem = v1::Subsystem {
            spec: Some(entry.subsystem.spec.clone()),
            generation: entry.subsystem.generation,
            status: Some(self.status(&Key::Subsystem(nqn.clone()))),
            subtype: "NVMe".to_owned(),
            state: v1::SubsystemState::Inactive.into(),
            namespaces: entry
                .namespaces
                .values()
                .map(|n| self.namespace(nqn, n))
                .collect(),
            listeners: entry
                .listeners
                .values()
                .map(|l| self.listener(nqn, l))
                .collect(),
            hosts: entry.hosts.values().map(|h| self.host(nqn, h)).collect(),
            ..v1::Subsystem::default()
        };
        self.runtime.describe_subsystem(&mut subsystem);
        subsystem
    }

    pub(super) fn namespace(&self, nqn: &str, stored: &Stored<NamespaceSpec>) -> v1::Namespace {
        let mut namespace = v1::Namespace {
            nqn: nqn.to_owned(),
            spec: Some(stored.spec.clone()),
            generation: stored.generation,
            status: Some(self.status(&Key::Namespace(nqn.to_owned(), stored.spec.nsid))),
            ..v1::Namespace::default()
        };
        self.runtime.describe_namespace(&mut namespace);
        namespace
    }

    pub(super) fn listener(&self, nqn: &str, stored: &Stored<ListenerSpec>) -> v1::Listener {
        let uri = stored
            .spec
            .address
            .as_ref()
            .map(v1::Address::uri)
            .unwrap_or_default();
        let mut listener = v1::Listener {
            nqn: nqn.to_owned(),
            spec: Some(stored.spec.clone()),
            generation: stored.generation,
            status: Some(self.status(&Key::Listener(nqn.to_owned(), uri))),
            ..v1::Listener::default()
        };
        self.runtime.describe_listener(&mut listener);
        listener
    }

    pub(super) fn host(&self, nqn: &str, stored: &Stored<HostSpec>) -> v1::Host {
        let mut host = v1::Host {
            subsystem_nqn: nqn.to_owned(),
            spec: Some(stored.spec.clone()),
            generation: stored.generation,
            ..v1::Host::default()
        };
        self.runtime.describe_host(&mut host);
        host
    }
}

impl super::Services {
    /// Reads the state with the means to make messages of it.
    pub(super) fn describe<T>(&self, read: impl FnOnce(Describe<'_>) -> T) -> T {
        self.control.read(|view| {
            read(Describe {
                view,
                runtime: self.control.runtime(),
            })
        })
    }
}

impl<'a> Describe<'a> {
    /// The subsystem of this name, or all when it is empty.
    pub(super) fn of_subsystem(
        &self,
        nqn: &str,
    ) -> Result<impl Iterator<Item = (&'a String, &'a SubsystemEntry)> + use<'a>, ControlError>
    {
        let subsystems = self.view.model.subsystems();
        let one = if nqn.is_empty() {
            None
        } else {
            subsystems.get_key_value(nqn)
        };
        if !nqn.is_empty() && one.is_none() {
            return Err(ControlError::NotFound {
                kind: "subsystem",
                name: nqn.to_owned(),
            });
        }
        let all = nqn.is_empty().then_some(subsystems);
        Ok(one.into_iter().chain(all.into_iter().flatten()))
    }
}
