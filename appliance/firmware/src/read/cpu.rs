//! CPUs: P-states, C-states, threads, NUMA.

use std::collections::BTreeSet;

use super::Node;
use crate::catalogue::{Found, Reading};
use crate::tree::{Tree, flag, number, shown, unexpected, why};
use crate::value::Value;

const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";

/// Names `PREFIXn` in a folder.
fn numbered(tree: &Tree, folder: &str, prefix: &str) -> Vec<String> {
    let is_numbered = |name: &String| {
        let digits = name.strip_prefix(prefix).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut names = tree.names(folder);
    names.retain(is_numbered);
    names
}

pub(crate) fn governor(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        let folder = format!("{CPUS}/cpufreq");
        let policies = numbered(tree, &folder, "policy");
        let source = format!("{}/*/scaling_governor", shown(&folder));
        if policies.is_empty() {
            let why = "no driver for P-states is loaded: firmware keeps them to itself";
            return Reading::unreadable(why, source);
        }
        let mut governors = BTreeSet::new();
        for policy in policies {
            let path = format!("{folder}/{policy}/scaling_governor");
            match tree.text(&path) {
                Ok(governor) => governors.insert(governor),
                Err(error) => return Reading::unreadable(why(&error), shown(&path)),
            };
        }
        let governors: Vec<String> = governors.into_iter().collect();
        Reading::value(governors.join(" and "), source)
    })
}

pub(crate) fn boost(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        let no_turbo = format!("{CPUS}/intel_pstate/no_turbo");
        if tree.exists(&no_turbo) {
            return tree.reading(&no_turbo, |text| Ok((!flag(text)?).into()));
        }
        tree.reading(&format!("{CPUS}/cpufreq/boost"), |text| {
            flag(text).map(Into::into)
        })
    })
}

/// The largest exit latency of a state that is not disabled, of all CPUs.
pub(crate) fn idle_exit_latency(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        let mut deepest: Option<(u64, String, String)> = None;
        for cpu in numbered(tree, CPUS, "cpu") {
            let folder = format!("{CPUS}/{cpu}/cpuidle");
            for state in numbered(tree, &folder, "state") {
                let file = |name: &str| format!("{folder}/{state}/{name}");
                if tree.text(&file("disable")).is_ok_and(|text| text == "1") {
                    continue;
                }
                let latency = match tree.text(&file("latency")) {
                    Ok(text) => number(&text),
                    Err(error) => Err(why(&error)),
                };
                let latency = match latency {
                    Ok(latency) => latency,
                    Err(why) => return Reading::unreadable(why, shown(&file("latency"))),
                };
                if deepest.as_ref().is_none_or(|(most, ..)| latency > *most) {
                    let name = tree.text(&file("name")).unwrap_or_default();
                    deepest = Some((latency, shown(&file("latency")), name));
                }
            }
        }
        match deepest {
            Some((latency, path, name)) => Reading::value(latency, format!("{path} ({name})")),
            None => {
                let why = "the kernel shows no C-states";
                Reading::unreadable(why, format!("{}/cpu*/cpuidle", shown(CPUS)))
            }
        }
    })
}

pub(crate) fn smt(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        tree.reading(&format!("{CPUS}/smt/active"), |text| {
            flag(text).map(Into::into)
        })
    })
}

/// Flags that every CPU has.
pub(crate) fn features(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        tree.reading("proc/cpuinfo", |text| {
            let mut common: Option<BTreeSet<&str>> = None;
            for line in text.lines() {
                let Some((name, flags)) = line.split_once(':') else {
                    continue;
                };
                // x86 calls them flags, ARM Features.
                if !matches!(name.trim(), "flags" | "Features") {
                    continue;
                }
                let flags: BTreeSet<&str> = flags.split_whitespace().collect();
                common = Some(match common {
                    Some(common) => common.intersection(&flags).copied().collect(),
                    None => flags,
                });
            }
            let common = common.ok_or_else(|| unexpected(text, "flags of a CPU"))?;
            Ok(Value::List(common.into_iter().map(str::to_owned).collect()))
        })
    })
}

pub(crate) fn numa_nodes_per_socket(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        let nodes = numbered(tree, NODES, "node").into_iter().filter(|name| {
            let cpus = tree.text(&format!("{NODES}/{name}/cpulist"));
            cpus.is_ok_and(|cpus| !cpus.is_empty())
        });
        let nodes = nodes.count() as u64;
        let mut sockets = BTreeSet::new();
        for cpu in numbered(tree, CPUS, "cpu") {
            // One that is offline has none.
            let path = format!("{CPUS}/{cpu}/topology/physical_package_id");
            if let Ok(id) = tree.text(&path) {
                sockets.insert(id);
            }
        }
        let sockets = sockets.len() as u64;
        let source = format!("{} ({nodes} nodes, {sockets} sockets)", shown(NODES));
        if nodes == 0 || sockets == 0 {
            return Reading::unreadable("the kernel shows no nodes, or no sockets", source);
        }
        if !nodes.is_multiple_of(sockets) {
            let why = "sockets have different numbers of nodes, or memory is interleaved";
            return Reading::unreadable(why, source);
        }
        Reading::value(nodes / sockets, source)
    })
}
