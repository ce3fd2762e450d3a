//! Network interfaces and default routes.

use std::collections::BTreeMap;

use super::source::{functions, names, text, value, vital};
use super::{NetInterface, RouteFamily};
use crate::{FactsError, Host};

/// Route flags of the kernel: it is in use; it refuses.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;

pub(super) fn read(host: &dyn Host) -> Result<Vec<NetInterface>, FactsError> {
    let mut routes: BTreeMap<String, Vec<RouteFamily>> = BTreeMap::new();
    for name in default_ipv4(&vital(host, "proc/net/route")?) {
        routes.entry(name).or_default().push(RouteFamily::Ipv4);
    }
    for name in default_ipv6(&vital(host, "proc/net/ipv6_route")?) {
        routes.entry(name).or_default().push(RouteFamily::Ipv6);
    }
    let interface = |name: String| {
        let folder = format!("sys/class/net/{name}");
        // bonding_masters is a file in this folder.
        let target = host.link(&folder).ok()?;
        let file = |attribute: &str| format!("{folder}/{attribute}");
        let entries = names(host, &folder);
        let beside = |prefix: &str| -> Vec<String> {
            entries
                .iter()
                .filter_map(|each| each.strip_prefix(prefix))
                .map(str::to_owned)
                .collect()
        };
        let mut families = routes.remove(&name).unwrap_or_default();
        families.sort();
        families.dedup();
        Some(NetInterface {
            mac: text(host, &file("address")).unwrap_or_default(),
            pci: functions(&target).pop(),
            state: text(host, &file("operstate")).unwrap_or_default(),
            speed_mbps: value(host, &file("speed")),
            mtu: value(host, &file("mtu")),
            upper: beside("upper_"),
            lower: beside("lower_"),
            default_routes: families,
            name,
        })
    };
    Ok(names(host, "sys/class/net")
        .into_iter()
        .filter_map(interface)
        .collect())
}

/// Interfaces of the lines `name destination gateway flags refcount use metric mask ...` whose
/// destination is everything.
fn default_ipv4(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, destination, _, flags, _, _, _, mask, ..] = fields.as_slice() else {
            return None;
        };
        let is_default = *destination == "00000000" && *mask == "00000000";
        (is_default && leads_out(flags)).then(|| (*name).to_owned())
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Interfaces of the lines `destination prefix source prefix next metric refcount use flags name`
/// whose destination is everything. The kernel ends the table with a rejecting one on `lo`.
fn default_ipv6(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, prefix, _, _, _, _, _, _, flags, name] = fields.as_slice() else {
            return None;
        };
        let is_default = destination.bytes().all(|each| each == b'0') && *prefix == "00";
        (is_default && *name != "lo" && leads_out(flags)).then(|| (*name).to_owned())
    };
    text.lines().filter_map(line).collect()
}

fn leads_out(flags: &str) -> bool {
    // A route that cannot be understood counts: better one NIC too many is spared.
    u32::from_str_radix(flags, 16).map_or(true, |bits| bits & (RTF_UP | RTF_REJECT) == RTF_UP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_to_everything_that_are_up_are_default_routes() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
            eth1\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\n\
            eth2\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\nshort 0 0\n";
        assert_eq!(default_ipv4(text), ["eth0"]);
    }

    #[test]
    fn the_kernels_closing_ipv6_route_is_no_default_route() {
        let zero = "00000000000000000000000000000000";
        let line = |flags: &str, name: &str| {
            format!("{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 {flags} {name}\n")
        };
        let text = line("00000003", "eth0") + &line("00200200", "lo") + "junk\n";
        assert_eq!(default_ipv6(&text), ["eth0"]);
    }
}
