//! Network ports for data, and their RDMA devices.

use machine::{NetInterface, PciDevice};

use super::Node;
use super::platform::express;
use crate::catalogue::{Found, Reading};
use crate::tree::{Tree, number, shown};

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

pub(crate) fn flow_control(node: &Node) -> Vec<Found> {
    node.each_port(|_, port, _| {
        let why = format!(
            "the kernel tells it over netlink only: dcb pfc show dev {}",
            port.name
        );
        Reading::unreadable(why, "-")
    })
}
