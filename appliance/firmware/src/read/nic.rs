//! Network ports for data, and their RDMA devices.

use machine::{Dcb, Host as _, NetInterface, PciDevice};

use super::Node;
use super::platform::express;
use crate::catalogue::{Found, Reading};
use crate::tree::{Tree, number, shown};
use crate::value::Value;

const INFINIBAND: &str = "sys/class/infiniband";
const RDMA_CM: &str = "sys/kernel/config/rdma_cm";

fn config(function: &PciDevice) -> String {
    format!("/sys/bus/pci/devices/{}/config", function.address)
}

pub(crate) fn link_speed(node: &Node) -> Vec<Found> {
    node.each_port(|_, port, _| {
        let path = format!("/sys/class/net/{}/speed", port.name);
        match port.speed_mbps {
            Some(speed) => Reading::value(u64::from(speed), path),
            None => Reading::unreadable(format!("its link is {}", link(port)), path),
        }
    })
}

fn link(port: &NetInterface) -> &str {
    match port.state.as_str() {
        "" | "unknown" | "up" => "of a kind that has no speed",
        state => state,
    }
}

pub(crate) fn mtu(node: &Node) -> Vec<Found> {
    node.each_port(|_, port, _| {
        let path = format!("/sys/class/net/{}/mtu", port.name);
        match port.mtu {
            Some(mtu) => Reading::value(u64::from(mtu), path),
            None => Reading::unreadable("the kernel does not show it", path),
        }
    })
}

pub(crate) fn relaxed_ordering(node: &Node) -> Vec<Found> {
    node.each_port(|tree, _, function| {
        express(tree, function, |express| {
            Reading::value(express.relaxed_ordering, config(function))
        })
    })
}

pub(crate) fn max_read_request(node: &Node) -> Vec<Found> {
    node.each_port(|tree, _, function| {
        express(tree, function, |express| {
            let bytes = u64::from(express.max_read_request_bytes);
            Reading::value(bytes, config(function))
        })
    })
}

pub(crate) fn rdma_device(node: &Node) -> Vec<Found> {
    node.each_port(|_, port, function| {
        let there = rdma(port, function);
        let names = there.as_deref().unwrap_or("none");
        Reading::value(there.is_some(), format!("{} ({names})", shown(INFINIBAND)))
    })
}

/// The RDMA device of a port: on its interface, or on its function.
fn rdma(port: &NetInterface, function: &PciDevice) -> Option<String> {
    let is_of = |interface: &Option<String>| match interface {
        Some(interface) => *interface == port.name,
        None => true,
    };
    let mut devices = function.rdma.iter();
    let found = devices.find(|device| is_of(&device.interface));
    found.map(|device| device.name.clone())
}

/// A reading of the RDMA device of each port.
fn each_rdma(node: &Node, read: impl Fn(&Tree, &str) -> Reading) -> Vec<Found> {
    node.each_port(|tree, port, function| match rdma(port, function) {
        Some(device) => read(tree, &device),
        None => Reading::unreadable("the port has no RDMA device", shown(INFINIBAND)),
    })
}

pub(crate) fn gid_v2(node: &Node) -> Vec<Found> {
    each_rdma(node, |tree, device| {
        let folder = format!("{INFINIBAND}/{device}/ports");
        let ports = tree.names(&folder);
        let has_v2 = ports.iter().any(|port| {
            let types = format!("{folder}/{port}/gid_attrs/types");
            let mut names = tree.names(&types).into_iter();
            // Entries of the table that are not in use cannot be read.
            names.any(|name| {
                let text = tree.text(&format!("{types}/{name}"));
                text.is_ok_and(|text| text == "RoCE v2")
            })
        });
        Reading::value(has_v2, format!("{}/*/gid_attrs/types", shown(&folder)))
    })
}

pub(crate) fn default_tos(node: &Node) -> Vec<Found> {
    each_rdma(node, |tree, device| {
        let folder = format!("{RDMA_CM}/{device}/ports");
        let Some(port) = tree.names(&folder).into_iter().next() else {
            let why = format!("configfs shows it after: mkdir {}/{device}", shown(RDMA_CM));
            return Reading::unreadable(why, shown(&folder));
        };
        let path = format!("{folder}/{port}/default_roce_tos");
        tree.reading(&path, |text| number(text).map(Into::into))
    })
}

/// A reading of the data centre bridging of each port, which the kernel tells over netlink.
fn each_dcb(node: &Node, of: impl Fn(&Dcb) -> Value) -> Vec<Found> {
    node.each_port(|tree, port, _| match tree.root().dcb(&port.name) {
        Ok(dcb) => Reading::value(of(&dcb), "netlink, RTM_GETDCB"),
        Err(error) => {
            let why = format!("the kernel does not tell it ({error})");
            let tool = format!("dcb pfc show dev {}", port.name);
            Reading::unreadable(format!("{why}: {tool}"), "netlink, RTM_GETDCB")
        }
    })
}

fn flow_control_of(dcb: &Dcb) -> Value {
    let name = if dcb.paused.is_empty() { "none" } else { "pfc" };
    name.into()
}

/// The priority that may be paused; in words when it is none or several.
fn pfc_priority_of(dcb: &Dcb) -> Value {
    match dcb.paused.as_slice() {
        [] => "none".into(),
        [priority] => u64::from(*priority).into(),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            several.join(", ").into()
        }
    }
}

pub(crate) fn flow_control(node: &Node) -> Vec<Found> {
    each_dcb(node, flow_control_of)
}

pub(crate) fn pfc_priority(node: &Node) -> Vec<Found> {
    each_dcb(node, pfc_priority_of)
}

pub(crate) fn dscp_trust(node: &Node) -> Vec<Found> {
    each_dcb(node, |dcb| (!dcb.dscp.is_empty()).into())
}

/// Whether a port tells senders of congestion and slows down when it is told: for at least one
/// priority each. Few drivers show it.
pub(crate) fn ecn(node: &Node) -> Vec<Found> {
    node.each_port(|tree, port, _| {
        let folder = format!("sys/class/net/{}/ecn", port.name);
        let is_on = |side: &str| {
            let enable = format!("{folder}/{side}/enable");
            let mut names = tree.names(&enable).into_iter();
            names.any(|name| {
                tree.text(&format!("{enable}/{name}"))
                    .is_ok_and(|text| text == "1")
            })
        };
        if tree.exists(&folder) {
            Reading::value(is_on("roce_np") && is_on("roce_rp"), shown(&folder))
        } else {
            Reading::unreadable(
                "its driver does not show it: use the tool of its maker",
                shown(&folder),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paused_priority_is_a_number_only_when_it_is_one() {
        let with = |paused: &[u8]| Dcb {
            paused: paused.to_vec(),
            dscp: Vec::new(),
        };
        assert_eq!(pfc_priority_of(&with(&[3])), 3.into());
        assert_eq!(pfc_priority_of(&with(&[3, 4])), "3, 4".into());
        assert_eq!(pfc_priority_of(&with(&[])), "none".into());
        assert_eq!(flow_control_of(&with(&[])), "none".into());
        assert_eq!(flow_control_of(&with(&[3])), "pfc".into());
    }
}
