//! A plan in words.

use std::fmt::{Display, Formatter, Result};

use super::{Action, Plan, Reason, Refusal, Subject};
use crate::{Former, Holder, IommuGap, Reservation, VFIO_DRIVER};

/// Huge pages of one size in one place.
pub(crate) fn pool(node: Option<u32>, size_kib: u64) -> String {
    match node {
        Some(node) => format!("node {node}, huge pages of {size_kib} KiB"),
        None => format!("huge pages of {size_kib} KiB"),
    }
}

fn list<T: Display>(items: &[T]) -> String {
    items
        .iter()
        .map(T::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn mib(kib: u64) -> u64 {
    kib / 1024
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if self.actions.is_empty() {
            writeln!(f, "nothing to do")?;
        } else {
            writeln!(f, "to do:")?;
        }
        for action in &self.actions {
            writeln!(f, "  {action}")?;
        }
        if !self.refusals.is_empty() {
            writeln!(f, "refused:")?;
        }
        for refusal in &self.refusals {
            writeln!(f, "  {}", refusal.subject)?;
            for reason in &refusal.reasons {
                writeln!(f, "    {reason}")?;
            }
        }
        if !self.notes.is_empty() {
            writeln!(f, "notes:")?;
        }
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        Ok(())
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let reasons: Vec<String> = self.reasons.iter().map(Reason::to_string).collect();
        write!(f, "{}: {}", self.subject, reasons.join("; "))
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::CompactMemory => write!(f, "memory: drop cached files and compact"),
            Self::ReserveHugepages {
                node,
                size_kib,
                pages,
                reservation,
            } => {
                let how = match reservation {
                    Reservation::Required => "required",
                    Reservation::BestEffort => "best effort",
                };
                write!(f, "{}: reserve {pages}, {how}", pool(*node, *size_kib))
            }
            Self::Bind {
                address,
                group,
                former,
                ..
            } => {
                write!(
                    f,
                    "{address}: bind to {VFIO_DRIVER}, group {group}, taken from {former}"
                )
            }
            Self::GiveBack { address, to } => write!(f, "{address}: give back to {to}"),
            Self::AddSoftRoce { name, interface } => {
                write!(f, "{interface}: add soft-RoCE device {name}")
            }
            Self::RemoveSoftRoce { name } => write!(f, "soft-RoCE device {name}: remove"),
        }
    }
}

impl Display for Former {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Driver(driver) => write!(f, "{driver}"),
            Self::Nobody => write!(f, "nobody"),
            Self::Unknown => write!(f, "whichever driver the kernel chooses"),
        }
    }
}

impl Display for Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Hugepages { node, size_kib } => write!(f, "{}", pool(*node, *size_kib)),
            Self::Management(selector) => write!(f, "management: {selector}"),
            Self::Selector(place, selector) => write!(f, "{place}: {selector}"),
            Self::Bind(address) => write!(f, "{address}: bind to {VFIO_DRIVER}"),
            Self::GiveBack(address) => write!(f, "{address}: give back"),
            Self::Port(address) => write!(f, "{address}: mode of the port"),
        }
    }
}

impl Display for Holder {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Mount(point) => write!(f, "is mounted at {point}"),
            Self::Swap => write!(f, "is swap"),
            Self::Device(above) => write!(f, "is a part of {above}"),
            Self::Btrfs(uuid) => write!(f, "is a part of btrfs {uuid}"),
            Self::Process(process) => write!(f, "is open in {process}"),
            Self::Kernel => write!(
                f,
                "is held by the kernel, for another mount namespace or a volume manager"
            ),
        }
    }
}

impl Display for IommuGap {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::ArgumentMissing(argument) => {
                write!(f, "boot the kernel with the argument {argument}")
            }
            Self::ArgumentForbids(argument) => {
                write!(f, "boot the kernel without the argument {argument}")
            }
            Self::Firmware(switch) => write!(f, "switch on {switch} in the firmware"),
            Self::Hypervisor(switch) => {
                write!(f, "give this virtual machine one: {switch}")
            }
            Self::Unexplained => write!(
                f,
                "firmware offers one and the kernel's arguments allow it: see the kernel log for \
                 DMAR, AMD-Vi or SMMU"
            ),
            Self::NotShown => write!(f, "ask again as root, who may see what the firmware offers"),
        }
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::NoNode(nodes) if nodes.is_empty() => {
                write!(f, "this kernel knows no NUMA nodes: name node 0, or none")
            }
            Self::NoNode(nodes) => write!(f, "no such node: there is {}", list(nodes)),
            Self::NoPageSize(sizes) if sizes.is_empty() => {
                write!(f, "this kernel has no huge pages here")
            }
            Self::NoPageSize(sizes) => {
                write!(
                    f,
                    "no huge pages of this size: there is {} KiB",
                    list(sizes)
                )
            }
            Self::TwoRules => write!(f, "two rules are for this node and size: keep one"),
            Self::TooLittleMemory {
                wanted_kib,
                available_kib,
                kept_kib,
            } => write!(
                f,
                "{} MiB more are wanted, {} MiB can be had and {} MiB are kept: ask for fewer \
                 pages, or for best effort",
                mib(*wanted_kib),
                mib(*available_kib),
                mib(*kept_kib),
            ),
            Self::NotFound => write!(f, "nothing here is called so"),
            Self::SerialNotShown(silent) => write!(
                f,
                "no controller shows this serial; {silent} have no nvme driver that could tell \
                 theirs: name them by address or slot"
            ),
            Self::Ambiguous(found) => {
                write!(
                    f,
                    "several are called so, name one by address: {}",
                    list(found)
                )
            }
            Self::UnknownClass => write!(f, "there is no such class: nvme is one"),
            Self::WrongSelector => write!(
                f,
                "a controller is named by address, serial, slot or class, a port by address, slot, \
                 interface or mac"
            ),
            Self::NotNvme(class) => {
                write!(f, "class {class:#08x} is no NVMe controller (0x0108..)")
            }
            Self::NotNic(class) => {
                write!(f, "class {class:#08x} is no network controller (0x02....)")
            }
            Self::TwoModes => write!(f, "two entries want different modes: keep one"),
            _ => self.fmt_use(f),
        }
    }
}

impl Reason {
    /// Reasons that come of what is there and who uses it.
    fn fmt_use(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::NoIommu(gap) => write!(f, "there is no IOMMU: {gap}"),
            Self::NoGroup => write!(
                f,
                "the IOMMU does not cover it: use another slot, or look for a switch of this slot in \
                 the firmware"
            ),
            Self::VfioNotLoaded => {
                write!(f, "the driver {VFIO_DRIVER} is not there: load its module")
            }
            Self::ForeignMember {
                group,
                member,
                driver: Some(driver),
            } => write!(
                f,
                "{member}, driver {driver}, is in its IOMMU group {group}: take that one too, move \
                 one to another slot, or switch on ACS in the firmware"
            ),
            Self::ForeignMember {
                group,
                member,
                driver: None,
            } => write!(
                f,
                "{member}, which is no PCI function, is in its IOMMU group {group}: move the device \
                 to another slot"
            ),
            Self::Held { device, holder } => write!(f, "{device} {holder}"),
            Self::Management(interface) => {
                write!(f, "the node is reached through it: {interface}")
            }
            Self::ManagementUnknown => write!(
                f,
                "there is no default route and no management interface is named: it may be the one \
                 that the node is reached by"
            ),
            Self::Enslaved { interface, upper } => {
                write!(f, "{interface} is a part of {upper}: take it out first")
            }
            Self::VirtualFunctions(count) => {
                write!(
                    f,
                    "{count} virtual functions are enabled on it: disable them first"
                )
            }
            Self::BehindVmd(address) => write!(
                f,
                "it is behind Intel VMD at {address}: switch VMD off in the firmware"
            ),
            Self::Overridden(driver) => {
                write!(
                    f,
                    "its driver_override reserves it for {driver}: clear that first"
                )
            }
            Self::ExceptUnclear(selector) => write!(
                f,
                "it may be the one that `except` spares ({selector}), and it shows no serial: name \
                 it, or the exception, by address"
            ),
            Self::InUse(users) => write!(f, "it is in use by {}: stop that first", list(users)),
            Self::NoDriver => write!(f, "no driver has it: load the module of the port"),
            Self::NoRdma => write!(
                f,
                "it has no RDMA device: load the RDMA module of the port (mlx5_ib, irdma, \
                 bnxt_re), or ask for `soft_roce`"
            ),
            Self::NoInterface => write!(f, "it has no interface for a soft-RoCE device"),
            Self::SoftRoceWithoutVerbs => write!(f, "`soft_roce` goes with mode `verbs` only"),
            // Said by the caller.
            Self::NoNode(_)
            | Self::NoPageSize(_)
            | Self::TwoRules
            | Self::TooLittleMemory { .. }
            | Self::NotFound
            | Self::SerialNotShown(_)
            | Self::Ambiguous(_)
            | Self::UnknownClass
            | Self::WrongSelector
            | Self::NotNvme(_)
            | Self::NotNic(_)
            | Self::TwoModes => Ok(()),
        }
    }
}
