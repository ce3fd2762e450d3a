//! CPUs and interrupts.

use std::collections::BTreeMap;

use super::source::{names, numbered, value};
use super::{Cpus, Irq, PciDevice};
use crate::Host;

pub(super) fn cpus(host: &dyn Host) -> Cpus {
    let list =
        |name: &str| value(host, &format!("sys/devices/system/cpu/{name}")).unwrap_or_default();
    Cpus {
        online: list("online"),
        isolated: list("isolated"),
        nohz_full: list("nohz_full"),
    }
}

/// Interrupts, by number. Those that nobody handles are left out.
pub(super) fn irqs(host: &dyn Host, pci: &[PciDevice]) -> Vec<Irq> {
    let mut raised_by = BTreeMap::new();
    for device in pci {
        let folder = format!("sys/bus/pci/devices/{}/msi_irqs", device.address);
        for number in numbered(&names(host, &folder)) {
            raised_by.insert(number, device.address);
        }
    }
    let irq = |number: u32| {
        let folder = format!("proc/irq/{number}");
        let is_handler = |name: &String| host.list(&format!("{folder}/{name}")).is_ok();
        let handlers: Vec<String> = names(host, &folder)
            .into_iter()
            .filter(is_handler)
            .collect();
        let pci = raised_by.get(&number).copied();
        if handlers.is_empty() && pci.is_none() {
            return None;
        }
        Some(Irq {
            number,
            handlers,
            pci,
            affinity: value(host, &format!("{folder}/smp_affinity_list"))?,
            effective: value(host, &format!("{folder}/effective_affinity_list"))
                .unwrap_or_default(),
        })
    };
    numbered(&names(host, "proc/irq"))
        .into_iter()
        .filter_map(irq)
        .collect()
}
