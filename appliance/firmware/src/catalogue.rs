//! Everything that a profile may ask for.

use serde::{Deserialize, Serialize};

use crate::read::{Node, boot, cpu, nic, nvme, platform};
use crate::value::Value;

/// The type of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Number {
        /// The least that makes sense.
        min: u64,
        /// The most that makes sense.
        max: u64,
    },
    /// One of some words.
    Choice(&'static [&'static str]),
    /// A list of words.
    Words,
}

/// When the current value is as wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It is the same.
    Equal,
    /// It is not less.
    AtLeast,
    /// It is not more.
    AtMost,
    /// All that is wanted is among it.
    Contains,
}

/// Who changes a setting, and when that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// A command to the drive; holds at once.
    Drive,
    /// Format NVM: destroys what the namespace holds.
    Format,
    /// The kernel, by a file or a tool; holds at once and until the next start.
    Kernel,
    /// Setup of the firmware, or its BMC; holds after a restart.
    Setup,
    /// New firmware; holds after a reset or a restart.
    Update,
}

impl Effect {
    /// What has to be done, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drive => "aditctl firmware apply",
            Self::Format => "aditctl firmware apply, destroys data",
            Self::Kernel => "the kernel, until the next start",
            Self::Setup => "firmware setup, needs a restart",
            Self::Update => "a firmware update",
        }
    }
}

/// What was found out about one setting of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The current value.
    Value {
        /// It.
        value: Value,
        /// Where it was read.
        source: String,
    },
    /// It cannot be read.
    Unreadable {
        /// Why.
        why: String,
        /// Where it was looked for.
        source: String,
    },
}

impl Reading {
    pub(crate) fn value(value: impl Into<Value>, source: impl Into<String>) -> Self {
        let (value, source) = (value.into(), source.into());
        Self::Value { value, source }
    }

    pub(crate) fn unreadable(why: impl Into<String>, source: impl Into<String>) -> Self {
        let (why, source) = (why.into(), source.into());
        Self::Unreadable { why, source }
    }

    /// Where it was read, or looked for.
    #[must_use]
    pub fn source(&self) -> &str {
        match self {
            Self::Value { source, .. } | Self::Unreadable { source, .. } => source,
        }
    }
}

/// A setting of one object, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What has the setting: `eth0`, `drive a`; empty for the node.
    pub object: String,
    /// What was found out.
    pub reading: Reading,
}

/// Something that a profile may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Table of the profile.
    pub section: &'static str,
    /// Key in that table. Its end tells the unit.
    pub key: &'static str,
    /// Type of the value.
    pub kind: Kind,
    /// How it is compared.
    pub rule: Rule,
    /// Who changes it.
    pub effect: Effect,
    /// What it is, in a sentence.
    pub about: &'static str,
    /// Where it is read.
    pub read_from: &'static str,
    /// What has it; empty: none, so that it does not apply.
    pub(crate) read: fn(&Node) -> Vec<Found>,
}

impl Setting {
    /// `section.key`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }
}

/// A setting by the parts of its name.
#[must_use]
pub fn setting(section: &str, key: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|setting| setting.section == section && setting.key == key)
}

const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max }
}

/// Everything that a profile may ask for, but firmware revisions, which are a list by model. In the
/// order in which it is shown.
pub const SETTINGS: &[Setting] = &[
    Setting {
        section: "boot",
        key: "uefi",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "The node was started by UEFI, not by a legacy BIOS.",
        read_from: "/sys/firmware/efi",
        read: boot::uefi,
    },
    Setting {
        section: "boot",
        key: "first",
        kind: Kind::Choice(&["network", "disk"]),
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "What the first active entry of the boot order boots from.",
        read_from: "EFI variables BootOrder and Boot####",
        read: boot::first,
    },
    Setting {
        section: "boot",
        key: "secure_boot",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "Firmware starts signed images only.",
        read_from: "EFI variable SecureBoot",
        read: boot::secure_boot,
    },
    Setting {
        section: "platform",
        key: "iommu",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "The IOMMU is offered by firmware and at work (Intel VT-d, AMD-Vi).",
        read_from: "/sys/kernel/iommu_groups, ACPI tables, /proc/cmdline",
        read: platform::iommu,
    },
    Setting {
        section: "platform",
        key: "interrupt_remapping",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "The IOMMU can remap interrupts.",
        read_from: "ACPI tables DMAR and IVRS",
        read: platform::interrupt_remapping,
    },
    Setting {
        section: "platform",
        key: "dma_protection",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "Firmware asks the kernel to keep DMA in bounds from the start (Intel).",
        read_from: "ACPI table DMAR",
        read: platform::dma_protection,
    },
    Setting {
        section: "platform",
        key: "sriov",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "Network ports offer virtual functions (SR-IOV).",
        read_from: "/sys/bus/pci/devices/*/sriov_totalvfs",
        read: platform::sriov,
    },
    Setting {
        section: "platform",
        key: "watchdog",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "There is a hardware watchdog.",
        read_from: "/sys/class/watchdog",
        read: platform::watchdog,
    },
    Setting {
        section: "platform",
        key: "watchdog_timeout_max_s",
        kind: number(1, 86_400),
        rule: Rule::AtMost,
        effect: Effect::Kernel,
        about: "After how many seconds without a sign of life the watchdog resets the node.",
        read_from: "/sys/class/watchdog/*/timeout",
        read: platform::watchdog_timeout,
    },
    Setting {
        section: "cpu",
        key: "governor",
        kind: Kind::Choice(&[
            "performance",
            "powersave",
            "schedutil",
            "ondemand",
            "conservative",
            "userspace",
        ]),
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "Who chooses the P-state of the CPUs.",
        read_from: "/sys/devices/system/cpu/cpufreq/*/scaling_governor",
        read: cpu::governor,
    },
    Setting {
        section: "cpu",
        key: "boost",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "CPUs may run faster than their base frequency.",
        read_from: "/sys/devices/system/cpu/intel_pstate/no_turbo, cpufreq/boost",
        read: cpu::boost,
    },
    Setting {
        section: "cpu",
        key: "idle_exit_latency_max_us",
        kind: number(0, 1_000_000),
        rule: Rule::AtMost,
        effect: Effect::Setup,
        about: "Time to leave the deepest C-state that is enabled, in microseconds.",
        read_from: "/sys/devices/system/cpu/cpu*/cpuidle/state*",
        read: cpu::idle_exit_latency,
    },
    Setting {
        section: "cpu",
        key: "smt",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "A core runs more than one thread (Hyper-Threading).",
        read_from: "/sys/devices/system/cpu/smt/active",
        read: cpu::smt,
    },
    Setting {
        section: "cpu",
        key: "features",
        kind: Kind::Words,
        rule: Rule::Contains,
        effect: Effect::Setup,
        about: "Features that the CPUs must show, by the names of the kernel.",
        read_from: "/proc/cpuinfo",
        read: cpu::features,
    },
    Setting {
        section: "cpu",
        key: "numa_nodes_per_socket",
        kind: number(1, 64),
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "NUMA nodes with CPUs on each socket (NPS on AMD, SNC on Intel).",
        read_from: "/sys/devices/system/node, /sys/devices/system/cpu/cpu*/topology",
        read: cpu::numa_nodes_per_socket,
    },
    Setting {
        section: "pcie",
        key: "aspm",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "Links of drives and network ports may sleep (ASPM L0s or L1).",
        read_from: "/sys/bus/pci/devices/*/config, Link Control",
        read: platform::aspm,
    },
    Setting {
        section: "pcie",
        key: "full_link",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "Links of drives and network ports have the speed and width that the device can have.",
        read_from: "/sys/bus/pci/devices/*/current_link_speed, current_link_width",
        read: platform::full_link,
    },
    Setting {
        section: "pcie",
        key: "numa_known",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "Firmware says to which NUMA node drives and network ports belong.",
        read_from: "/sys/bus/pci/devices/*/numa_node",
        read: platform::numa_known,
    },
    Setting {
        section: "nic",
        key: "link_speed_min_mbps",
        kind: number(10, 10_000_000),
        rule: Rule::AtLeast,
        effect: Effect::Setup,
        about: "Speed of the link of a data port, in megabits per second.",
        read_from: "/sys/class/net/*/speed",
        read: nic::link_speed,
    },
    Setting {
        section: "nic",
        key: "mtu_min",
        kind: number(68, 65_535),
        rule: Rule::AtLeast,
        effect: Effect::Kernel,
        about: "Longest packet of a data port, in bytes.",
        read_from: "/sys/class/net/*/mtu",
        read: nic::mtu,
    },
    Setting {
        section: "nic",
        key: "relaxed_ordering",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Setup,
        about: "A data port may let its PCIe writes overtake each other.",
        read_from: "/sys/bus/pci/devices/*/config, Device Control",
        read: nic::relaxed_ordering,
    },
    Setting {
        section: "nic",
        key: "max_read_request_min_bytes",
        kind: number(128, 4096),
        rule: Rule::AtLeast,
        effect: Effect::Setup,
        about: "How much a data port asks of memory at a time, in bytes.",
        read_from: "/sys/bus/pci/devices/*/config, Device Control",
        read: nic::max_read_request,
    },
    Setting {
        section: "roce",
        key: "device",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "A data port has an RDMA device.",
        read_from: "/sys/class/infiniband",
        read: nic::rdma_device,
    },
    Setting {
        section: "roce",
        key: "gid_v2",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "The RDMA device has an address for RoCE v2, which routers pass on.",
        read_from: "/sys/class/infiniband/*/ports/*/gid_attrs/types",
        read: nic::gid_v2,
    },
    Setting {
        section: "roce",
        key: "default_tos",
        kind: number(0, 255),
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "Type of Service of new connections: switches put them into a queue by it.",
        read_from: "/sys/kernel/config/rdma_cm/*/ports/*/default_roce_tos",
        read: nic::default_tos,
    },
    Setting {
        section: "roce",
        key: "flow_control",
        kind: Kind::Choice(&["pfc", "none"]),
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "Whether the port may be told to pause a priority (PFC).",
        read_from: "netlink, RTM_GETDCB",
        read: nic::flow_control,
    },
    Setting {
        section: "roce",
        key: "pfc_priority",
        kind: number(0, 7),
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "The one priority that may be paused.",
        read_from: "netlink, RTM_GETDCB",
        read: nic::pfc_priority,
    },
    Setting {
        section: "roce",
        key: "dscp_trust",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "The port tells the priority of a packet by its DSCP, not by a VLAN's header.",
        read_from: "netlink, RTM_GETDCB: there is an entry for a DSCP",
        read: nic::dscp_trust,
    },
    Setting {
        section: "roce",
        key: "ecn",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Kernel,
        about: "The port tells senders of congestion, and slows down when it is told (DCQCN).",
        read_from: "/sys/class/net/*/ecn, where the driver shows it",
        read: nic::ecn,
    },
    Setting {
        section: "nvme",
        key: "lba_data_bytes",
        kind: number(512, 65_536),
        rule: Rule::Equal,
        effect: Effect::Format,
        about: "Bytes of a logical block of a namespace.",
        read_from: "aditd (Identify Namespace); /sys/block/*/queue/logical_block_size",
        read: nvme::lba_data_bytes,
    },
    Setting {
        section: "nvme",
        key: "lba_metadata_bytes",
        kind: number(0, 65_535),
        rule: Rule::Equal,
        effect: Effect::Format,
        about: "Bytes of metadata of a logical block.",
        read_from: "aditd (Identify Namespace)",
        read: nvme::lba_metadata_bytes,
    },
    Setting {
        section: "nvme",
        key: "power_state",
        kind: number(0, 31),
        rule: Rule::Equal,
        effect: Effect::Drive,
        about: "Power state of the drive; 0 has the most power.",
        read_from: "aditd (Get Features, Power Management)",
        read: nvme::power_state,
    },
    Setting {
        section: "nvme",
        key: "write_cache",
        kind: Kind::Bool,
        rule: Rule::Equal,
        effect: Effect::Drive,
        about: "The volatile write cache of a drive that has one is on.",
        read_from: "aditd (Get Features, Volatile Write Cache); /sys/block/*/queue/write_cache",
        read: nvme::write_cache,
    },
    Setting {
        section: "nvme",
        key: "arbitration_burst",
        kind: number(0, 7),
        rule: Rule::Equal,
        effect: Effect::Drive,
        about: "Commands that the drive takes from a queue at a time, as a power of two; 7: no limit.",
        read_from: "aditd (Get Features, Arbitration)",
        read: nvme::arbitration_burst,
    },
];
