//! The host as data: what hardware there is, who uses it, and how it becomes what is wanted.
//!
//! What it is, in the order of use:
//! - [`Facts`]: PCI functions with their IOMMU groups, block devices and who holds them, network
//!   interfaces, huge pages, CPUs, interrupts. [`Facts::read`] reads them and changes nothing.
//! - [`Config`]: what is wanted: huge pages per node, functions for vfio, a mode per network port.
//! - [`plan`]: facts and configuration in, a [`Plan`] out. Pure. What was asked for and may not be
//!   done is a [`Refusal`] with every reason, not only the first.
//! - [`apply`]: carries one [`Action`] out, looks again before it does, and reads back what it wrote.
//!   An action that is already so is left alone, so a plan may be applied again at any time.
//! - [`verify`]: whether an action has taken effect. Some effects come late (`/dev/vfio/N`): the
//!   caller asks again, for as long as it cares to.
//! - [`lend`]: another driver has a function for a while, and [`Loan::give_back`] makes it what it was.
//! - [`RdmaNode::read`]: RDMA devices, their ports and GIDs, for who looks at nothing else.
//! - [`Uevent`]: what the kernel tells of a device; whether it asks for another look.
//!
//! What it is not: it loads no modules, makes no device nodes, drives no device, and keeps nothing
//! between calls. What a caller must remember to give a device back is a [`Claim`]; [`claim_of`]
//! makes it of an action.
//!
//! The host is a [`Host`]: [`Root`] is a folder that holds `sys/`, `proc/` and `dev/` (`/` in
//! life); tests wrap it with a kernel that reacts to writes.
//!
//! Threading: none; nothing here sleeps or reads a clock. A write into sysfs takes as long as the
//! kernel takes: reserving many huge pages, or taking a drive from its driver, can be seconds.
//!
//! Errors: [`FactsError`] when the host cannot be read so far that a plan would be safe;
//! [`ApplyError`] when an action failed. Both name the file.

mod address;
mod apply;
mod config;
mod cpu_list;
mod dcb;
mod error;
mod facts;
mod host;
mod loan;
pub mod netlink;
mod plan;
mod rdma_link;
mod uevent;

pub use crate::address::{PciAddress, PciAddressError};
pub use crate::apply::{Applied, Verification, apply, verify};
pub use crate::config::{
    Claim, Config, Former, HugepageRule, NicMode, NicRule, Reservation, Selector,
};
pub use crate::cpu_list::{CpuList, CpuListError};
pub use crate::dcb::Dcb;
pub use crate::error::{ApplyError, FactsError};
pub use crate::facts::{
    BlockDevice, Cpus, Facts, Group, Holder, HugepagePool, Iommu, IommuGap, Irq, NetInterface,
    NumaNode, NvmeController, NvmeNamespace, PciDevice, PciLink, RdmaDevice, RdmaGid, RdmaNode,
    RdmaPort, RouteFamily,
};
pub use crate::host::{Host, Root};
pub use crate::loan::{Loan, lend};
pub use crate::plan::{Action, Plan, Reason, Refusal, Subject, claim_of, plan};
pub use crate::rdma_link::RdmaLink;
pub use crate::uevent::{UEVENT_GROUPS, Uevent};

/// The driver that hands a PCI function to user space.
pub const VFIO_DRIVER: &str = "vfio-pci";
