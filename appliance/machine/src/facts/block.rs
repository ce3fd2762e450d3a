//! Block devices and who holds them.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{functions, names, text, value, vital};
use super::users::{self, Users};
use super::{BlockDevice, Holder};
use crate::{FactsError, Host, PciAddress};

const CLASS: &str = "sys/class/block";

pub(super) fn read(host: &dyn Host, users: &Users) -> Result<Vec<BlockDevice>, FactsError> {
    let in_use = InUse::read(host)?;
    let mut devices: Vec<BlockDevice> = names(host, CLASS)
        .into_iter()
        .filter_map(|name| device(host, users, &in_use, name))
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    claims(host, &mut devices);
    Ok(devices)
}

/// One device; `None` for what cannot be used: a hidden path, or an empty virtual device.
fn device(host: &dyn Host, users: &Users, in_use: &InUse, name: String) -> Option<BlockDevice> {
    let folder = format!("{CLASS}/{name}");
    let target = host.link(&folder).ok()?;
    if text(host, &format!("{folder}/hidden")).as_deref() == Some("1") {
        return None;
    }
    let number = text(host, &format!("{folder}/dev"))?;
    let sectors: Option<u64> = value(host, &format!("{folder}/size"));
    let pci = reached_through(host, &target);
    let is_partition = host.exists(&format!("{folder}/partition"));
    let mut holders = in_use.holders(host, &name, &number);
    let process = users::of(users, &format!("/dev/{name}"));
    holders.extend(process.into_iter().map(Holder::Process));
    if pci.is_empty() && holders.is_empty() && sectors == Some(0) {
        return None;
    }
    Some(BlockDevice {
        bytes: sectors.and_then(|each| each.checked_mul(512)),
        partition_of: if is_partition {
            target.rsplit('/').nth(1).map(str::to_owned)
        } else {
            None
        },
        holders: holders.into_iter().collect(),
        name,
        number,
        pci,
    })
}

/// The functions on the way to a disk. A multipath namespace hangs below its subsystem, which links
/// to the controllers.
fn reached_through(host: &dyn Host, target: &str) -> Vec<PciAddress> {
    if let Some(last) = functions(target).pop() {
        return vec![last];
    }
    let mut way = target
        .split('/')
        .skip_while(|name| *name != "nvme-subsystem");
    let Some(subsystem) = way.nth(1) else {
        return Vec::new();
    };
    let folder = format!("sys/class/nvme-subsystem/{subsystem}");
    let mut found: Vec<PciAddress> = names(host, &folder)
        .into_iter()
        .filter(|name| name.starts_with("nvme"))
        .filter_map(|name| functions(&host.link(&format!("{folder}/{name}")).ok()?).pop())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Asks the kernel for each device behind a function whether somebody has it that nothing else here
/// shows.
fn claims(host: &dyn Host, devices: &mut [BlockDevice]) {
    let explains = |holder: &Holder| !matches!(holder, Holder::Process(_));
    // Partitions first: the claim on a partition is one on its disk as well.
    for partitions in [true, false] {
        for at in 0..devices.len() {
            let each = &devices[at];
            if each.pci.is_empty() || each.partition_of.is_some() != partitions {
                continue;
            }
            let mut known = devices.iter().filter(|other| {
                other.name == each.name || other.partition_of.as_ref() == Some(&each.name)
            });
            if known.any(|other| other.holders.iter().any(explains)) {
                continue;
            }
            if host.is_claimed(&format!("dev/{}", each.name)) == Some(true) {
                devices[at].holders.push(Holder::Kernel);
            }
        }
    }
}

/// What the kernel shows of use, by device number and by name.
struct InUse {
    by_number: BTreeMap<String, BTreeSet<Holder>>,
    by_name: BTreeMap<String, BTreeSet<Holder>>,
}

impl InUse {
    fn read(host: &dyn Host) -> Result<Self, FactsError> {
        let mut all = Self {
            by_number: BTreeMap::new(),
            by_name: BTreeMap::new(),
        };
        let path = "proc/self/mountinfo";
        let here = host.read(path).map_err(|source| FactsError::Read {
            path: path.to_owned(),
            source,
        })?;
        all.mounts(&here);
        // In a container this is the host's; the exclusive open catches other namespaces.
        if let Ok(first) = host.read("proc/1/mountinfo") {
            all.mounts(&first);
        }
        for line in vital(host, "proc/swaps")?.lines().skip(1) {
            if let Some(name) = line
                .split_whitespace()
                .next()
                .and_then(|t| t.strip_prefix("/dev/"))
            {
                all.by_name
                    .entry(name.to_owned())
                    .or_default()
                    .insert(Holder::Swap);
            }
        }
        for uuid in names(host, "sys/fs/btrfs") {
            for name in names(host, &format!("sys/fs/btrfs/{uuid}/devices")) {
                all.by_name
                    .entry(name)
                    .or_default()
                    .insert(Holder::Btrfs(uuid.clone()));
            }
        }
        Ok(all)
    }

    /// Lines of mountinfo: `36 35 98:0 /root /mount/point options optional - type source options`.
    /// The number of a btrfs is not that of its device, so the source counts as well.
    fn mounts(&mut self, text: &str) {
        for line in text.lines() {
            let mut fields = line.split(' ');
            let (Some(number), Some(point)) = (fields.nth(2), fields.nth(1)) else {
                continue;
            };
            let holder = Holder::Mount(unescaped(point));
            let source = fields
                .skip_while(|field| *field != "-")
                .nth(2)
                .unwrap_or_default();
            if let Some(name) = source.strip_prefix("/dev/") {
                self.by_name
                    .entry(unescaped(name))
                    .or_default()
                    .insert(holder.clone());
            }
            self.by_number
                .entry(number.to_owned())
                .or_default()
                .insert(holder);
        }
    }

    fn holders(&self, host: &dyn Host, name: &str, number: &str) -> BTreeSet<Holder> {
        let mut found = self.by_number.get(number).cloned().unwrap_or_default();
        let mapper = mapper(host, name).map(|mapper| format!("mapper/{mapper}"));
        for name in std::iter::once(name).chain(mapper.as_deref()) {
            found.extend(self.by_name.get(name).into_iter().flatten().cloned());
        }
        for above in names(host, &format!("{CLASS}/{name}/holders")) {
            let text = match mapper_of(host, &above) {
                Some(mapper) => format!("{above} ({mapper})"),
                None => above,
            };
            found.insert(Holder::Device(text));
        }
        found
    }
}

/// The name that device-mapper gives a device.
fn mapper(host: &dyn Host, name: &str) -> Option<String> {
    if name.starts_with("dm-") {
        mapper_of(host, name)
    } else {
        None
    }
}

fn mapper_of(host: &dyn Host, name: &str) -> Option<String> {
    text(host, &format!("{CLASS}/{name}/dm/name")).filter(|name| !name.is_empty())
}

/// A path with the kernel's octal escapes (`\040` is a space) undone.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let digits = escape.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spaces_in_a_mount_point_are_shown() {
        assert_eq!(unescaped(r"/mnt/a\040b\134c"), r"/mnt/a b\c");
        assert_eq!(unescaped(r"/mnt/\9"), r"/mnt/\9");
    }

    proptest! {
        #[test]
        fn any_mountinfo_is_read_without_a_panic(text in "[ -~\n]{0,200}") {
            let mut all = InUse { by_number: BTreeMap::new(), by_name: BTreeMap::new() };
            all.mounts(&text);
            let _ = unescaped(&text);
        }
    }
}
