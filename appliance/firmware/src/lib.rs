//! What the firmware of a node, its drives and its network ports should be set to, and what they are.
//!
//! What it is, in the order of use:
//! - [`SETTINGS`]: everything that a profile may ask for, each with its type, how it is compared, who
//!   changes it, and where it is read.
//! - [`Profile`]: what is wanted and why, read from TOML. [`Profile::parse`] is strict and lists every
//!   problem of a file, not only the first. Profiles that come with the program are in [`BUILT_IN`].
//! - [`Node`]: what is. It reads sysfs, procfs, configfs, ACPI tables, EFI variables and PCI
//!   configuration space below a folder ([`Tree`]), and is given what is known of drives that the
//!   kernel does not drive ([`Drive`]).
//! - [`Readings`]: the same of a node elsewhere, as its agent tells it.
//! - [`check`]: both together, a [`Report`] with an [`Item`] for each setting of each object: wanted,
//!   current, where that was read, or why it cannot be.
//! - [`changes`]: what of a profile can be set on drives that `aditd` drives.
//!
//! What it is not: it changes nothing, sends no command to a device, and speaks to no service. What
//! only a command to a drive or a netlink socket tells is given by the caller or called unreadable.
//!
//! Threading: none; nothing here sleeps or reads a clock.
//!
//! Errors: [`ProfileError`] for a profile that cannot be used. What of a node cannot be read is no
//! error but a [`Reading::Unreadable`]. Bytes from firmware, whatever they are, never panic.

mod acpi;
mod catalogue;
mod check;
mod drives;
mod efi;
mod pci_config;
mod plan;
mod profile;
mod read;
mod schema;
mod tree;
mod value;

pub use crate::acpi::{Dmar, TableError, parse_dmar, parse_ivrs};
pub use crate::catalogue::{Effect, Found, Kind, Reading, Rule, SETTINGS, Setting, setting};
pub use crate::check::{Item, Report, Totals, Verdict, check};
pub use crate::drives::{Drive, DriveNamespace, Known};
pub use crate::efi::{
    BootOption, EfiError, Medium, parse_boot_order, parse_flag, parse_load_option,
};
pub use crate::pci_config::{ExpressCapability, find_express_capability};
pub use crate::plan::{Change, DriveState, LbaFormat, NamespaceState, Plan, changes};
pub use crate::profile::{BUILT_IN, FirmwareRule, Problem, Profile, ProfileError, Wanted};
pub use crate::read::{Node, Readings};
pub use crate::schema::{json_schema, settings_table};
pub use crate::tree::Tree;
pub use crate::value::Value;
