//! Configuration as immutable snapshots: what the control side builds and every poll group reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block::Bdev;
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::Nsid;
use uuid::Uuid;

/// Asymmetric namespace access state (NVMe Base 2.1, section 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum AnaState {
    /// Commands run at full speed.
    #[default]
    Optimized = 0x1,
    /// Commands run, another path is better.
    NonOptimized = 0x2,
    /// Commands fail; another path may work.
    Inaccessible = 0x3,
    /// Commands fail and will never work again on this path.
    PersistentLoss = 0x4,
    /// The state is about to change; the host waits at most ANATT.
    Change = 0xf,
}

/// An ANA group identifier, 1 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AnaGroupId(pub u32);

/// Who sees a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Every host that may connect.
    #[default]
    AllHosts,
    /// These hosts only.
    Hosts(BTreeSet<Nqn>),
}

/// Write protection of a namespace (feature 84h; NVMe Base 2.1, section 8.1.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum WriteProtect {
    /// Writes are allowed.
    #[default]
    None = 0,
    /// Writes are refused until the state is set back.
    WriteProtect = 1,
}

/// One namespace of a subsystem.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// Its number within the subsystem.
    pub nsid: Nsid,
    /// The block device behind it.
    pub bdev: Arc<Bdev>,
    /// Never changes for the life of the data.
    pub uuid: Uuid,
    /// NGUID, zeroes when there is none.
    pub nguid: [u8; 16],
    /// EUI-64, zeroes when there is none.
    pub eui64: [u8; 8],
    /// The ANA group that it is in.
    pub ana_group: AnaGroupId,
    /// The hosts that see it.
    pub visibility: Visibility,
    /// Whether hosts may write; the target's setting, a host may set feature 84h on top.
    pub write_protect: WriteProtect,
}

impl NamespaceConfig {
    /// Whether a host sees this namespace.
    pub fn is_visible_to(&self, host: &Nqn) -> bool {
        match &self.visibility {
            Visibility::AllHosts => true,
            Visibility::Hosts(hosts) => hosts.contains(host),
        }
    }
}

/// An address at which a subsystem is reached, and its ANA states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// The address as configured.
    pub address: Arc<TransportAddress>,
    /// The state of groups that `ana` does not name.
    pub ana_default: AnaState,
    /// The state of single groups.
    pub ana: BTreeMap<AnaGroupId, AnaState>,
}

impl ListenerConfig {
    /// The state of a group at this address.
    pub fn ana_state(&self, group: AnaGroupId) -> AnaState {
        self.ana.get(&group).copied().unwrap_or(self.ana_default)
    }
}

/// A subsystem's configuration: immutable; a change makes the next one.
#[derive(Clone, Debug)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: Nqn,
    /// At most 20 ASCII bytes.
    pub serial: String,
    /// At most 40 ASCII bytes.
    pub model: String,
    /// Whether every host may connect.
    pub allow_any_host: bool,
    /// Hosts that may connect.
    pub hosts: BTreeSet<Nqn>,
    /// Namespaces by number.
    pub namespaces: BTreeMap<Nsid, Arc<NamespaceConfig>>,
    /// Addresses.
    pub listeners: Vec<ListenerConfig>,
    /// Highest namespace number allowed.
    pub max_namespaces: u32,
    /// Lowest controller identifier handed out.
    pub min_cntlid: u16,
    /// Highest controller identifier handed out, at most FFEFh.
    pub max_cntlid: u16,
    /// Whether ANA is reported to hosts.
    pub ana_reporting: bool,
    /// Counts the changes of this subsystem.
    pub version: u64,
    /// Counts the changes of ANA states, groups and memberships (ANA log page CHGCNT).
    pub ana_change_count: u64,
}

impl SubsystemConfig {
    /// Whether a host may connect.
    pub fn allows_host(&self, host: &Nqn) -> bool {
        self.allow_any_host || self.hosts.contains(host)
    }

    /// Whether no path to any namespace is in a state that forbids I/O.
    pub(crate) fn is_accessible_everywhere(&self) -> bool {
        let mut states = self
            .listeners
            .iter()
            .flat_map(|listener| listener.ana.values().chain([&listener.ana_default]));
        states.all(|state| matches!(state, AnaState::Optimized | AnaState::NonOptimized))
    }

    /// The listener at an address.
    pub fn listener(&self, address: &TransportAddress) -> Option<&ListenerConfig> {
        self.listeners
            .iter()
            .find(|listener| *listener.address == *address)
    }

    /// The namespaces that a host sees, in ascending order.
    pub fn visible_namespaces<'a>(
        &'a self,
        host: &'a Nqn,
    ) -> impl Iterator<Item = &'a Arc<NamespaceConfig>> {
        self.namespaces
            .values()
            .filter(move |namespace| namespace.is_visible_to(host))
    }
}
