//! RDMA devices with their ports and GIDs, as sysfs shows them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::source::{functions, names, text, value};
use super::users;
use crate::{Host, PciAddress};

pub(crate) const RDMA_FOLDER: &str = "sys/class/infiniband";
/// Where defaults of the connection manager are, if somebody made the folders.
const CM_FOLDER: &str = "sys/kernel/config/rdma_cm";
/// Most GIDs that are read of a port. Adapters have 256 at most.
const GIDS_MAX: usize = 1024;
/// What an interface's MTU must be at least for packets of 4096 bytes: RoCE v2 adds up to 96.
const INTERFACE_MTU_MIN: u32 = 4200;
/// What the kernel calls the kind of GID that is routed.
const ROCE_V2: &str = "RoCE v2";

/// An RDMA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaNode {
    /// Name: `mlx5_0`, `rxe0`.
    pub name: String,
    /// The interface that a software device is on; `None` for hardware.
    pub parent: Option<String>,
    /// The function that it is on, or that the interface of a software device is on.
    pub pci: Option<PciAddress>,
    /// Globally unique identifier of the node, as in `5054:00ff:fe12:3456`.
    pub node_guid: String,
    /// Ports, by number.
    pub ports: Vec<RdmaPort>,
}

/// A port of an RDMA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaPort {
    /// Its number, from 1.
    pub number: u32,
    /// State: `ACTIVE`, `DOWN`.
    pub state: String,
    /// `Ethernet` or `InfiniBand`.
    pub link_layer: String,
    /// Speed, as the kernel says it: `100 Gb/sec (4X EDR)`.
    pub rate: String,
    /// The interface beside it, with its MTU in bytes; `None` for InfiniBand without IP.
    pub interface: Option<(String, Option<u32>)>,
    /// Type of service of connections that ask for none, where somebody has set a default.
    pub default_tos: Option<u8>,
    /// Addresses, by index.
    pub gids: Vec<RdmaGid>,
}

/// An address of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaGid {
    /// Its index.
    pub index: u32,
    /// Its bytes, as an IPv6 address.
    pub gid: Ipv6Addr,
    /// `IB/RoCE v1` or `RoCE v2`.
    pub kind: String,
    /// The interface whose address it is: a VLAN has its own.
    pub interface: Option<String>,
}

impl RdmaGid {
    /// The IP address that it stands for.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self.gid.to_ipv4_mapped() {
            Some(address) => address.into(),
            None => self.gid.into(),
        }
    }

    /// Whether routers pass it on, which is also what NVMe hosts connect to.
    #[must_use]
    pub fn is_roce_v2(&self) -> bool {
        self.kind == ROCE_V2
    }
}

impl RdmaNode {
    /// The devices of a host, by name. Reads only; what is not shown is absent.
    #[must_use]
    pub fn read(host: &dyn Host) -> Vec<Self> {
        let device = |name: String| {
            let folder = format!("{RDMA_FOLDER}/{name}");
            let parent = text(host, &format!("{folder}/parent"));
            let target = match &parent {
                Some(interface) => host.link(&format!("sys/class/net/{interface}")),
                None => host.link(&folder),
            };
            let mut ports: Vec<RdmaPort> = names(host, &format!("{folder}/ports"))
                .into_iter()
                .filter_map(|port| RdmaPort::read(host, &name, port.parse().ok()?))
                .collect();
            ports.sort_by_key(|port| port.number);
            Self {
                pci: target.ok().and_then(|target| functions(&target).pop()),
                node_guid: text(host, &format!("{folder}/node_guid")).unwrap_or_default(),
                ports,
                parent,
                name,
            }
        };
        names(host, RDMA_FOLDER).into_iter().map(device).collect()
    }
}

/// Processes that have a device open, as `name[pid]`.
pub(crate) fn rdma_users(host: &dyn Host, device: &str) -> Vec<String> {
    let folder = "sys/class/infiniband_verbs";
    let is_its = |node: &String| {
        text(host, &format!("{folder}/{node}/ibdev")).is_some_and(|name| name == device)
    };
    let Ok(users) = users::read(host) else {
        return Vec::new();
    };
    let nodes = names(host, folder).into_iter().filter(is_its);
    nodes
        .flat_map(|node| users::of(&users, &format!("/dev/infiniband/{node}")))
        .collect()
}

/// `4: ACTIVE` as `ACTIVE`.
fn without_number(text: String) -> String {
    match text.split_once(": ") {
        Some((_, name)) => name.to_owned(),
        None => text,
    }
}

impl RdmaPort {
    fn read(host: &dyn Host, device: &str, number: u32) -> Option<Self> {
        let folder = format!("{RDMA_FOLDER}/{device}/ports/{number}");
        let state = without_number(text(host, &format!("{folder}/state"))?);
        let gids = gids(host, &folder);
        // A VLAN's MTU is at most that of the interface below it, which is the first to have one.
        let interface = gids.iter().find_map(|gid| gid.interface.clone());
        let interface = interface.or_else(|| text(host, &format!("{RDMA_FOLDER}/{device}/parent")));
        let interface = interface.map(|name| {
            let mtu = value(host, &format!("sys/class/net/{name}/mtu"));
            (name, mtu)
        });
        let defaults = format!("{CM_FOLDER}/{device}/ports/{number}");
        Some(Self {
            number,
            state,
            link_layer: text(host, &format!("{folder}/link_layer")).unwrap_or_default(),
            rate: text(host, &format!("{folder}/rate")).unwrap_or_default(),
            interface,
            default_tos: value(host, &format!("{defaults}/default_roce_tos")),
            gids,
        })
    }

    /// What stands in the way of NVMe over RDMA on this port, or slows it, with what to do.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.state != "ACTIVE" {
            problems.push(format!(
                "the port is {}: look at the link and whether the interface is up",
                self.state
            ));
        }
        if self.link_layer != "Ethernet" {
            return problems;
        }
        if !self.gids.iter().any(RdmaGid::is_roce_v2) {
            problems.push("no GID of RoCE v2: give the interface an address".to_owned());
        }
        if let Some((name, Some(mtu))) = &self.interface
            && *mtu < INTERFACE_MTU_MIN
        {
            problems.push(format!(
                "MTU {mtu} of {name}: {INTERFACE_MTU_MIN} gives packets of 4096 bytes"
            ));
        }
        problems
    }
}

fn gids(host: &dyn Host, folder: &str) -> Vec<RdmaGid> {
    let indices: BTreeMap<u32, String> = names(host, &format!("{folder}/gids"))
        .into_iter()
        .filter_map(|name| Some((name.parse().ok()?, name)))
        .take(GIDS_MAX)
        .collect();
    let gid = |(index, name): (u32, String)| {
        // An entry that is free reads as zeros, or its attributes not at all.
        let gid: Ipv6Addr = value(host, &format!("{folder}/gids/{name}"))?;
        let of = |what: &str| text(host, &format!("{folder}/gid_attrs/{what}/{name}"));
        (!gid.is_unspecified()).then(|| RdmaGid {
            index,
            gid,
            kind: of("types").unwrap_or_default(),
            interface: of("ndevs"),
        })
    };
    indices.into_iter().filter_map(gid).collect()
}
