//! The IOMMU: its groups, or what stands in its way.

use std::io;

use super::source::{names, numbered, text};
use super::users::{self, Users};
use super::{Group, Iommu, IommuGap};
use crate::Host;

pub(super) fn read(host: &dyn Host, users: &Users) -> Iommu {
    let folder = "sys/kernel/iommu_groups";
    let group = |number: u32| Group {
        number,
        members: names(host, &format!("{folder}/{number}/devices")),
        users: users::of(users, &format!("/dev/vfio/{number}")),
    };
    let groups: Vec<Group> = numbered(&names(host, folder))
        .into_iter()
        .map(group)
        .collect();
    Iommu {
        units: names(host, "sys/class/iommu"),
        gap: groups.is_empty().then(|| gap(host)),
        groups,
    }
}

/// Why there is no group. The firmware's tables come first: an emulated Intel IOMMU stands beside
/// an emulated AMD processor in many a virtual machine.
fn gap(host: &dyn Host) -> IommuGap {
    let command_line = text(host, "proc/cmdline").unwrap_or_default();
    if let Some(argument) = last(&command_line, &["iommu"], &["off"]) {
        return IommuGap::ArgumentForbids(argument);
    }
    let tables = match host.list("sys/firmware/acpi/tables") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return IommuGap::NotShown,
        other => other.unwrap_or_default(),
    };
    let has_table = |name: &str| tables.iter().any(|table| table == name);
    if has_table("DMAR") {
        return match last(&command_line, &["intel_iommu"], &["on", "off"]) {
            // Without the argument it is on in some kernels and off in others.
            Some(argument) if argument.ends_with("=off") => {
                IommuGap::ArgumentMissing(format!("intel_iommu=on in place of {argument}"))
            }
            Some(_) => IommuGap::Unexplained,
            None => IommuGap::ArgumentMissing("intel_iommu=on".to_owned()),
        };
    }
    if has_table("IVRS") {
        return match last(&command_line, &["amd_iommu"], &["off"]) {
            Some(argument) => IommuGap::ArgumentForbids(argument),
            None => IommuGap::Unexplained,
        };
    }
    if has_table("IORT") {
        return IommuGap::Unexplained;
    }
    let cpuinfo = text(host, "proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo
            .lines()
            .find(|line| line.split(':').next().map(str::trim) == Some(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim())
            .unwrap_or_default()
    };
    if field("flags").split(' ').any(|flag| flag == "hypervisor") {
        return IommuGap::Hypervisor("-device intel-iommu in QEMU".to_owned());
    }
    IommuGap::Firmware(match field("vendor_id") {
        "GenuineIntel" => "Intel VT-d (VT for Directed I/O)".to_owned(),
        "AuthenticAMD" => "AMD IOMMU (AMD-Vi)".to_owned(),
        _ => "IOMMU".to_owned(),
    })
}

/// The last `name=value` of the kernel command line with one of these values among those that a
/// comma separates.
fn last(command_line: &str, argument: &[&str], values: &[&str]) -> Option<String> {
    let mut found = None;
    for word in command_line.split_whitespace() {
        let Some((name, given)) = word.split_once('=') else {
            continue;
        };
        if argument.contains(&name) {
            let value = given.split(',').rfind(|value| values.contains(value));
            found = value.map(|value| format!("{name}={value}")).or(found);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_argument_counts() {
        let line = "quiet intel_iommu=on iommu=pt intel_iommu=sm_on,off";
        assert_eq!(
            last(line, &["intel_iommu"], &["on", "off"]).unwrap(),
            "intel_iommu=off"
        );
        assert_eq!(last(line, &["iommu"], &["off"]), None);
    }
}
