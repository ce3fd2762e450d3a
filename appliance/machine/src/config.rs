//! What is wanted of the host.

use serde::{Deserialize, Serialize};

use crate::PciAddress;

/// What is wanted of the host. The default wants nothing and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Huge pages.
    pub hugepages: Vec<HugepageRule>,
    /// Memory that huge pages leave to everything else, in MiB, spread evenly over the NUMA nodes.
    pub memory_kept_mib: u64,
    /// NVMe controllers for user space.
    pub vfio: Vec<Selector>,
    /// Controllers that `vfio` does not take although it names them (`class = "nvme"`).
    pub except: Vec<Selector>,
    /// Network ports that are to be in a mode; others are left as they are.
    pub nic: Vec<NicRule>,
    /// The interface by which the node is reached. The ones with a default route are always taken to
    /// be such, whatever stands here.
    pub management: Option<Selector>,
    /// What was bound to vfio-pci by this program since the host was started. A claim that nothing
    /// asks for any more is given back. Drivers and addresses change with a reboot: keep claims
    /// where a reboot forgets them.
    pub claims: Vec<Claim>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hugepages: Vec::new(),
            memory_kept_mib: 512,
            vfio: Vec::new(),
            except: Vec::new(),
            nic: Vec::new(),
            management: None,
            claims: Vec::new(),
        }
    }
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HugepageRule {
    /// NUMA node; spread evenly over all nodes with memory when absent.
    #[serde(default)]
    pub node: Option<u32>,
    /// Size of a page in KiB: 2048 or 1048576 on x86-64.
    pub size_kib: u64,
    /// How many pages there should be at least.
    pub pages: u64,
    /// What it means to get fewer.
    #[serde(default)]
    pub reservation: Reservation,
}

/// What it means when the kernel finds fewer huge pages than wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reservation {
    /// A failure.
    #[default]
    Required,
    /// As many as there are will do.
    BestEffort,
}

/// How a device or an interface is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// PCI address.
    Address(PciAddress),
    /// Serial number of an NVMe controller. Only the kernel's nvme driver shows it: a controller
    /// without that driver is found by its serial only if a [`Claim`] remembers it.
    Serial(String),
    /// Physical slot, as in `/sys/bus/pci/slots`.
    Slot(String),
    /// Every device of a class; `nvme` is the one class there is.
    Class(String),
    /// Name of a network interface. A port on vfio-pci has none: a [`Claim`] remembers it, and its
    /// MAC address.
    Interface(String),
    /// MAC address of a network interface, as in `52:54:00:12:34:56`.
    Mac(String),
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Serial(serial) => write!(f, "serial {serial:?}"),
            Self::Slot(slot) => write!(f, "slot {slot:?}"),
            Self::Class(class) => write!(f, "class {class:?}"),
            Self::Interface(name) => write!(f, "interface {name:?}"),
            Self::Mac(mac) => write!(f, "mac {mac:?}"),
        }
    }
}

/// The mode of a network port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicRule {
    /// The port: address, slot, interface or mac.
    pub port: Selector,
    /// Who drives it.
    pub mode: NicMode,
    /// With mode `verbs`: where the port has no RDMA device of its own, the kernel's software makes
    /// one (`rdma_rxe`). For trying things out, not for speed.
    #[serde(default)]
    pub soft_roce: bool,
}

/// Who drives a network port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicMode {
    /// The kernel.
    Kernel,
    /// The kernel, with an RDMA device beside the interface.
    Verbs,
    /// User space.
    Vfio,
}

/// A function that was bound to vfio-pci, and where it goes when it is given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The function.
    pub address: PciAddress,
    /// Who had it before.
    pub former: Former,
    /// What it was called by that only the former driver shows: serial, interface, mac.
    #[serde(default)]
    pub known_as: Vec<Selector>,
}

/// Who had a function before it was bound to vfio-pci.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Former {
    /// A driver, by name.
    Driver(String),
    /// Nobody: it is left without a driver again.
    Nobody,
    /// That is not known: the kernel chooses as it does for a new device.
    Unknown,
}
