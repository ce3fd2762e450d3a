//! NUMA nodes and huge pages.

use super::source::{names, text, value};
use super::{HugepagePool, NumaNode};
use crate::Host;

const NODES: &str = "sys/devices/system/node";

/// The folder with the huge pages of a node, or of the machine.
pub(crate) fn hugepages_folder(node: Option<u32>) -> String {
    match node {
        Some(node) => format!("{NODES}/node{node}/hugepages"),
        None => "sys/kernel/mm/hugepages".to_owned(),
    }
}

pub(super) fn read(host: &dyn Host) -> Vec<NumaNode> {
    let number = |name: &String| name.strip_prefix("node")?.parse().ok();
    let mut numbers: Vec<u32> = names(host, NODES).iter().filter_map(number).collect();
    numbers.sort_unstable();
    if numbers.is_empty() {
        // A kernel without NUMA shows the machine as a whole.
        let meminfo = text(host, "proc/meminfo").unwrap_or_default();
        let cpus = value(host, "sys/devices/system/cpu/online").unwrap_or_default();
        return vec![node(host, None, cpus, &meminfo)];
    }
    let each = |number: u32| {
        let meminfo = text(host, &format!("{NODES}/node{number}/meminfo")).unwrap_or_default();
        let cpus = value(host, &format!("{NODES}/node{number}/cpulist")).unwrap_or_default();
        node(host, Some(number), cpus, &meminfo)
    };
    numbers.into_iter().map(each).collect()
}

fn node(host: &dyn Host, node: Option<u32>, cpus: crate::CpuList, meminfo: &str) -> NumaNode {
    let kib = |name: &str| amount_kib(meminfo, name);
    // Pages of files can be let go of; those of an initramfs are on neither list.
    let cache = kib("Active(file)").saturating_add(kib("Inactive(file)"));
    NumaNode {
        node,
        cpus,
        memory_kib: kib("MemTotal"),
        available_kib: kib("MemFree").saturating_add(cache),
        hugepages: pools(host, node),
    }
}

fn pools(host: &dyn Host, node: Option<u32>) -> Vec<HugepagePool> {
    let folder = hugepages_folder(node);
    let pool = |name: &String| {
        let size_kib = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let count = |file: &str| value(host, &format!("{folder}/{name}/{file}"));
        Some(HugepagePool {
            size_kib,
            total: count("nr_hugepages")?,
            free: count("free_hugepages").unwrap_or(0),
            surplus: count("surplus_hugepages").unwrap_or(0),
        })
    };
    let mut pools: Vec<HugepagePool> = names(host, &folder).iter().filter_map(pool).collect();
    pools.sort_by_key(|pool| pool.size_kib);
    pools
}

/// A line of meminfo, `MemTotal:  100 kB`, on a node with `Node 0 ` before it.
fn amount_kib(meminfo: &str, name: &str) -> u64 {
    let amount = |line: &str| {
        let (before, after) = line.split_once(':')?;
        if before.split_whitespace().next_back() != Some(name) {
            return None;
        }
        after.split_whitespace().next()?.parse().ok()
    };
    meminfo.lines().find_map(amount).unwrap_or(0)
}
