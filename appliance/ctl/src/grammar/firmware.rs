//! Firmware and drives beside what they should be.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum FirmwareVerb {
    /// Show all that a profile asks for: wanted, current, and where that was read
    ///
    /// Run it on the node itself, as root: it reads /sys, /proc, ACPI tables and EFI variables, and asks
    /// aditd for the drives. Of a node behind tcp: only the drives are seen. Exit codes: 0 all is as
    /// wanted, 3 something is not, 4 nothing is known to be wrong, but something cannot be read.
    Check(FirmwareLook),
    /// Show what is not as a profile wants it, why that matters, and who changes it
    ///
    /// Exit codes as those of check.
    Diff(FirmwareLook),
    /// Set features and formats of the drives that aditd drives; without --yes say what would be done
    ///
    /// A format destroys what the namespace holds: the serial number of each such drive has to be typed,
    /// with --serial or when asked. A namespace in use is not formatted. Exit codes as those of check, of
    /// the settings of drives.
    Apply(FirmwareApply),
    /// List the profiles that come with the program
    Profiles,
}

#[derive(Debug, Args)]
pub(crate) struct FirmwareLook {
    /// A file, or the name of a profile that comes with the program; see firmware profiles
    pub(crate) profile: String,
    /// Only settings whose name begins so, as in nvme or cpu.smt
    #[arg(long, value_name = "PREFIX")]
    pub(crate) only: Vec<String>,
    /// Do not mind what cannot be read: exit 0, not 4
    #[arg(long)]
    pub(crate) allow_unreadable: bool,
    /// Read below this folder in place of /; aditd is not asked then
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct FirmwareApply {
    /// A file, or the name of a profile that comes with the program
    pub(crate) profile: String,
    /// Only this drive [default: all]
    #[arg(long, value_name = "NAME")]
    pub(crate) drive: Vec<String>,
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Serial number of a drive that may be formatted
    #[arg(long, value_name = "SERIAL")]
    pub(crate) serial: Vec<String>,
}
