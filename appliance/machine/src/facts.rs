//! The host as it is.

mod block;
mod cpu;
mod iommu;
mod memory;
mod net;
mod pci;
mod rdma;
mod source;
mod users;

use serde::{Deserialize, Serialize};

use crate::{CpuList, FactsError, Host, PciAddress};

pub use self::rdma::{RdmaGid, RdmaNode, RdmaPort};

pub(crate) use memory::hugepages_folder;
pub(crate) use rdma::{RDMA_FOLDER, rdma_users};
pub(crate) use source::{last_name, text};

/// The host as it is. Lists are in the order of their keys, so equal hosts have equal facts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Command line of the running kernel.
    pub kernel_command_line: String,
    /// Whether the vfio-pci driver is loaded.
    pub vfio_loaded: bool,
    /// The IOMMU, or what stands in its way.
    pub iommu: Iommu,
    /// PCI functions, by address.
    pub pci: Vec<PciDevice>,
    /// Disks and partitions, by name.
    pub block: Vec<BlockDevice>,
    /// Network interfaces, by name.
    pub net: Vec<NetInterface>,
    /// NUMA nodes; one without a number's meaning when the kernel knows no NUMA.
    pub nodes: Vec<NumaNode>,
    /// CPUs.
    pub cpus: Cpus,
    /// Interrupts with an affinity, by number.
    pub irqs: Vec<Irq>,
}

/// The IOMMU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iommu {
    /// Units at work, as the kernel names them: `dmar0`, `ivhd0`.
    pub units: Vec<String>,
    /// Groups, by number.
    pub groups: Vec<Group>,
    /// Why there is no group; `None` when there is one.
    pub gap: Option<IommuGap>,
}

/// Functions that the IOMMU cannot tell apart: they have one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its number: the `N` of `/dev/vfio/N`.
    pub number: u32,
    /// Its members, as the kernel names them; most are PCI addresses.
    pub members: Vec<String>,
    /// Processes that have `/dev/vfio/N` open, as `name[pid]`.
    pub users: Vec<String>,
}

/// Why there is no IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IommuGap {
    /// The kernel wants an argument.
    ArgumentMissing(String),
    /// An argument switches it off.
    ArgumentForbids(String),
    /// The firmware does not offer it: the name of the switch.
    Firmware(String),
    /// This virtual machine has none: what its hypervisor should give it.
    Hypervisor(String),
    /// Firmware offers one, arguments allow it, and still there is none.
    Unexplained,
    /// Only root may see what the firmware offers.
    NotShown,
}

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class, subclass and programming interface: `0x010802` is NVMe.
    pub class: u32,
    /// Driver that has it.
    pub driver: Option<String>,
    /// The only driver that may have it, if one is named.
    pub driver_override: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// NUMA node, where the firmware says.
    pub node: Option<u32>,
    /// The functions on the way to it, from the root.
    pub parents: Vec<PciAddress>,
    /// Physical slot, where the firmware names them.
    pub slot: Option<String>,
    /// PCIe link, where there is one.
    pub link: Option<PciLink>,
    /// Virtual functions that are enabled on it.
    pub virtual_functions: u32,
    /// The physical function that it is a virtual one of.
    pub physical_function: Option<PciAddress>,
    /// The NVMe controller that the kernel drives on it.
    pub nvme: Option<NvmeController>,
    /// RDMA devices on it.
    pub rdma: Vec<RdmaDevice>,
    /// Processes that have it open through `/dev/vfio/devices`, as `name[pid]`.
    pub vfio_users: Vec<String>,
}

/// A PCIe link. Speeds in MT/s: PCIe 3.0 is 8000.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciLink {
    /// Speed now.
    pub speed_mts: Option<u32>,
    /// Highest speed of the function.
    pub speed_max_mts: Option<u32>,
    /// Lanes now.
    pub width: Option<u32>,
    /// Most lanes of the function.
    pub width_max: Option<u32>,
}

/// An NVMe controller as the kernel's driver shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeController {
    /// Name: `nvme0`.
    pub name: String,
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Namespaces that are attached.
    pub namespaces: Vec<NvmeNamespace>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeNamespace {
    /// Name of the block device: `nvme0n1`.
    pub name: String,
    /// Namespace ID.
    pub nsid: Option<u32>,
    /// Size in bytes.
    pub bytes: Option<u64>,
    /// Logical block size in bytes.
    pub block_bytes: Option<u32>,
}

/// An RDMA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaDevice {
    /// Name: `mlx5_0`, `rxe0`.
    pub name: String,
    /// The interface that a software device is on; `None` for hardware.
    pub interface: Option<String>,
}

/// A disk or a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Name: `nvme0n1p2`.
    pub name: String,
    /// Device number: `259:3`.
    pub number: String,
    /// Size in bytes.
    pub bytes: Option<u64>,
    /// The disk that it is a partition of.
    pub partition_of: Option<String>,
    /// Functions through which it is reached; several for a multipath namespace, none for a virtual
    /// device.
    pub pci: Vec<PciAddress>,
    /// Who uses it.
    pub holders: Vec<Holder>,
}

/// Who uses a block device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A file system is mounted there.
    Mount(String),
    /// Swap.
    Swap,
    /// A block device on top: `dm-0 (vg-data)`, `md127`.
    Device(String),
    /// A btrfs of several devices, by its UUID.
    Btrfs(String),
    /// A process has it open: `name[pid]`.
    Process(String),
    /// The kernel has it, and nothing else here says for whom: another mount namespace, ZFS.
    Kernel,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetInterface {
    /// Name: `eth0`.
    pub name: String,
    /// MAC address.
    pub mac: String,
    /// The function that it is on.
    pub pci: Option<PciAddress>,
    /// State: `up`, `down`, `unknown`.
    pub state: String,
    /// Speed in Mbit/s, while there is a link.
    pub speed_mbps: Option<u32>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Interfaces on top of it: a bond, a bridge, a VLAN.
    pub upper: Vec<String>,
    /// Interfaces below it.
    pub lower: Vec<String>,
    /// Default routes that lead out of it.
    pub default_routes: Vec<RouteFamily>,
}

/// A family of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// Its number; `None` stands for the whole of a machine whose kernel knows no NUMA.
    pub node: Option<u32>,
    /// Its CPUs.
    pub cpus: CpuList,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Memory in KiB that is free or holds only pages of files.
    pub available_kib: u64,
    /// Huge pages, by size.
    pub hugepages: Vec<HugepagePool>,
}

/// Huge pages of one size on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepagePool {
    /// Size of a page in KiB.
    pub size_kib: u64,
    /// Pages that there are.
    pub total: u64,
    /// Pages that nobody has.
    pub free: u64,
    /// Pages above the reservation, which go when they are freed.
    pub surplus: u64,
}

impl HugepagePool {
    /// Pages that are reserved for good.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.total.saturating_sub(self.surplus)
    }
}

/// CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    /// CPUs that run.
    pub online: CpuList,
    /// CPUs that the scheduler leaves alone.
    pub isolated: CpuList,
    /// CPUs without a periodic tick.
    pub nohz_full: CpuList,
}

/// An interrupt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Irq {
    /// Its number.
    pub number: u32,
    /// Who handles it: `nvme0q1`.
    pub handlers: Vec<String>,
    /// The function that raises it.
    pub pci: Option<PciAddress>,
    /// CPUs that it may go to.
    pub affinity: CpuList,
    /// CPUs that it goes to.
    pub effective: CpuList,
}

impl Facts {
    /// Reads the host, and changes nothing. What a host does not have or does not show is absent in
    /// the facts. Without the rights of root that includes the open files of other processes, and
    /// whether the kernel has a disk for itself.
    ///
    /// # Errors
    /// Only when it cannot be told which devices are in use.
    pub fn read(host: &dyn Host) -> Result<Self, FactsError> {
        let users = users::read(host)?;
        let net = net::read(host)?;
        let pci = pci::read(host, &users);
        Ok(Self {
            kernel_command_line: source::text(host, "proc/cmdline").unwrap_or_default(),
            vfio_loaded: host.exists(&format!("sys/bus/pci/drivers/{}", crate::VFIO_DRIVER)),
            iommu: iommu::read(host, &users),
            block: block::read(host, &users)?,
            nodes: memory::read(host),
            cpus: cpu::cpus(host),
            irqs: cpu::irqs(host, &pci),
            net,
            pci,
        })
    }

    /// A function by its address.
    #[must_use]
    pub fn device(&self, address: PciAddress) -> Option<&PciDevice> {
        self.pci.iter().find(|device| device.address == address)
    }

    /// An IOMMU group by its number.
    #[must_use]
    pub fn group(&self, number: u32) -> Option<&Group> {
        self.iommu
            .groups
            .iter()
            .find(|group| group.number == number)
    }

    /// The functions that carry a default route, itself or through bonds, bridges and VLANs, with
    /// the interface of the route.
    #[must_use]
    pub fn management(&self) -> Vec<(PciAddress, String)> {
        let routed = self
            .net
            .iter()
            .filter(|each| !each.default_routes.is_empty());
        let mut found: Vec<_> = routed
            .flat_map(|each| {
                self.functions_below(&each.name)
                    .into_iter()
                    .map(move |at| (at, each))
            })
            .map(|(address, each)| (address, each.name.clone()))
            .collect();
        found.sort();
        found
    }

    /// The functions that an interface rests on.
    pub(crate) fn functions_below(&self, name: &str) -> Vec<PciAddress> {
        let mut names = vec![name];
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(name) = names.get(at) {
            at += 1;
            let Some(each) = self.net.iter().find(|each| each.name == *name) else {
                continue;
            };
            found.extend(each.pci);
            for lower in &each.lower {
                if !names.contains(&lower.as_str()) {
                    names.push(lower);
                }
            }
        }
        found
    }
}

impl PciDevice {
    /// Whether it is an NVMe controller.
    #[must_use]
    pub fn is_nvme(&self) -> bool {
        self.class >> 8 == 0x0108
    }

    /// Whether it is a network controller.
    #[must_use]
    pub fn is_nic(&self) -> bool {
        self.class >> 16 == 0x02
    }

    /// Whether it is a bridge between buses, which vfio lets stay in a group with its driver.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        matches!(self.class >> 8, 0x0604 | 0x0607 | 0x0609)
    }
}
