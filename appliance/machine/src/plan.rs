//! What has to be done to a host, and what may not be.

mod devices;
mod hugepages;
mod select;
mod text;

pub(crate) use devices::{users, why_not};
pub(crate) use text::pool;

use serde::{Deserialize, Serialize};

use crate::{Claim, Config, Facts, Former, Holder, IommuGap, PciAddress, Reservation, Selector};

/// What [`plan`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What has to be done, in this order.
    pub actions: Vec<Action>,
    /// What was asked for and is not done.
    pub refusals: Vec<Refusal>,
    /// What is worth knowing: what is so already, or less than it could be.
    pub notes: Vec<String>,
}

/// One change of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Lets go of cached pages of files and moves the rest together, so that huge pages find room.
    CompactMemory,
    /// Raises the number of huge pages of one size on one node; never lowers it.
    ReserveHugepages {
        /// The node; `None` for a kernel without NUMA.
        node: Option<u32>,
        /// Size of a page in KiB.
        size_kib: u64,
        /// Pages that there are to be.
        pages: u64,
        /// What it means to get fewer.
        reservation: Reservation,
    },
    /// Takes a function from its driver and gives it to vfio-pci.
    Bind {
        /// The function.
        address: PciAddress,
        /// Its IOMMU group.
        group: u32,
        /// Who has it now.
        former: Former,
        /// What it is called by that vfio-pci does not show.
        known_as: Vec<Selector>,
    },
    /// Takes a function from vfio-pci and gives it back.
    GiveBack {
        /// The function.
        address: PciAddress,
        /// Who gets it.
        to: Former,
    },
    /// Makes a soft-RoCE device on an interface.
    AddSoftRoce {
        /// Its name.
        name: String,
        /// The interface.
        interface: String,
    },
    /// Takes a soft-RoCE device away that such an action made.
    RemoveSoftRoce {
        /// Its name.
        name: String,
    },
}

/// Something that is not done, with every reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is not done.
    pub subject: Subject,
    /// Why; never empty.
    pub reasons: Vec<Reason>,
}

/// What a refusal is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Subject {
    /// Huge pages are not reserved.
    Hugepages {
        /// The node, as the rule names it.
        node: Option<u32>,
        /// Size of a page in KiB.
        size_kib: u64,
    },
    /// The management interface was not found.
    Management(String),
    /// A selector of the configuration names nothing: where it stands, and what it says.
    Selector(String, String),
    /// A function is not given to vfio-pci.
    Bind(PciAddress),
    /// A function is not given back.
    GiveBack(PciAddress),
    /// A port is not in the mode that it should be in.
    Port(PciAddress),
}

/// Why something is not done. `Display` says it in a sentence, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// There is no such NUMA node; those that there are.
    NoNode(Vec<u32>),
    /// The kernel does not offer this size; those that it does, in KiB.
    NoPageSize(Vec<u64>),
    /// Two rules are for the same node and size.
    TwoRules,
    /// The node has too little memory.
    TooLittleMemory {
        /// Memory that the new pages take.
        wanted_kib: u64,
        /// Memory that can be had.
        available_kib: u64,
        /// Memory of the node that is kept for everything else.
        kept_kib: u64,
    },
    /// Nothing is called so.
    NotFound,
    /// No controller shows the serial; so many have no driver that could tell theirs.
    SerialNotShown(usize),
    /// Several are called so.
    Ambiguous(Vec<PciAddress>),
    /// Only `nvme` is a class.
    UnknownClass,
    /// A selector of this kind cannot stand here.
    WrongSelector,
    /// The function is no NVMe controller; its class.
    NotNvme(u32),
    /// The function is no network controller; its class.
    NotNic(u32),
    /// Two entries want different modes.
    TwoModes,
    /// There is no IOMMU.
    NoIommu(IommuGap),
    /// There is an IOMMU, and it does not cover this function.
    NoGroup,
    /// The vfio-pci driver is not loaded.
    VfioNotLoaded,
    /// The function shares its group with another that the kernel drives.
    ForeignMember {
        /// The group.
        group: u32,
        /// The other member.
        member: String,
        /// Its driver; `None` for what is no PCI function.
        driver: Option<String>,
    },
    /// A disk behind the function is in use.
    Held {
        /// The disk or partition.
        device: String,
        /// Who has it.
        holder: Holder,
    },
    /// The node is reached through the function: by this interface.
    Management(String),
    /// Nothing says which port the node is reached by.
    ManagementUnknown,
    /// An interface of the function belongs to another.
    Enslaved {
        /// The interface.
        interface: String,
        /// The bond, bridge or VLAN.
        upper: String,
    },
    /// Virtual functions are enabled on it.
    VirtualFunctions(u32),
    /// It is behind Intel VMD, which has it wholly.
    BehindVmd(PciAddress),
    /// Somebody has reserved it for another driver.
    Overridden(String),
    /// `except` names a serial, and this one shows none.
    ExceptUnclear(String),
    /// Processes drive it from user space.
    InUse(Vec<String>),
    /// No driver has the port.
    NoDriver,
    /// The port has no RDMA device.
    NoRdma,
    /// The port has no interface that a soft-RoCE device could be on.
    NoInterface,
    /// Soft-RoCE is asked for on a port whose mode is not `verbs`.
    SoftRoceWithoutVerbs,
}

/// What has to be done so that the host described by `facts` is as `config` wants. Pure.
///
/// Nothing in the plan takes away what somebody uses: a mounted or open disk, the interface that the
/// node is reached by, a group shared with what the kernel drives, a reservation of memory.
#[must_use]
pub fn plan(facts: &Facts, config: &Config) -> Plan {
    let mut plan = Plan::default();
    hugepages::plan(facts, config, &mut plan);
    devices::plan(facts, config, &mut plan);
    plan.refusals.sort_by(|a, b| a.subject.cmp(&b.subject));
    plan
}

/// What the caller has to remember, from before the action on, so that a function can be given back.
#[must_use]
pub fn claim_of(action: &Action) -> Option<Claim> {
    match action {
        Action::Bind {
            address,
            former,
            known_as,
            ..
        } => Some(Claim {
            address: *address,
            former: former.clone(),
            known_as: known_as.clone(),
        }),
        _ => None,
    }
}

impl Plan {
    fn refuse(&mut self, subject: Subject, reasons: Vec<Reason>) {
        self.refusals.push(Refusal { subject, reasons });
    }
}
