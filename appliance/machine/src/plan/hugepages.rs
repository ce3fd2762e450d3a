//! Huge pages: how many on which node.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Plan, Reason, Subject};
use crate::{Config, Facts, HugepagePool, HugepageRule, NumaNode, Reservation};

/// A rule on one node.
struct Wish<'a> {
    node: &'a NumaNode,
    pool: &'a HugepagePool,
    pages: u64,
    reservation: Reservation,
}

pub(super) fn plan(facts: &Facts, config: &Config, plan: &mut Plan) {
    let mut wishes = Vec::new();
    for rule in &config.hugepages {
        match expanded(facts, rule) {
            Ok(more) => wishes.extend(more),
            Err(reason) => {
                let subject = Subject::Hugepages {
                    node: rule.node,
                    size_kib: rule.size_kib,
                };
                plan.refuse(subject, vec![reason]);
            }
        }
    }
    refuse_doubles(&mut wishes, plan);
    // What is required takes its memory first; large pages need it in one piece.
    wishes.sort_by_key(|wish| {
        let best_effort = wish.reservation == Reservation::BestEffort;
        (
            best_effort,
            std::cmp::Reverse(wish.pool.size_kib),
            wish.node.node,
        )
    });
    let nodes = facts
        .nodes
        .iter()
        .filter(|node| node.memory_kib > 0)
        .count()
        .max(1) as u64;
    let kept_kib = config.memory_kept_mib.saturating_mul(1024) / nodes;
    let mut taken_kib = BTreeMap::new();
    let mut actions = Vec::new();
    for wish in &wishes {
        let taken_kib: &mut u64 = taken_kib.entry(wish.node.node).or_insert(0);
        let keep_kib = kept_kib.saturating_add(*taken_kib);
        if let Some(pages) = pages(wish, keep_kib, kept_kib, plan) {
            let more = pages - wish.pool.reserved();
            *taken_kib = more
                .saturating_mul(wish.pool.size_kib)
                .saturating_add(*taken_kib);
            actions.push(Action::ReserveHugepages {
                node: wish.node.node,
                size_kib: wish.pool.size_kib,
                pages,
                reservation: wish.reservation,
            });
        }
    }
    if !actions.is_empty() {
        plan.actions.push(Action::CompactMemory);
        plan.actions.append(&mut actions);
    }
}

/// The nodes of a rule, each with its share.
fn expanded<'a>(facts: &'a Facts, rule: &HugepageRule) -> Result<Vec<Wish<'a>>, Reason> {
    let nodes: Vec<&NumaNode> = match rule.node {
        // A kernel without NUMA has what others call node 0.
        Some(wanted) => facts
            .nodes
            .iter()
            .filter(|node| node.node.unwrap_or(0) == wanted)
            .collect(),
        None => facts
            .nodes
            .iter()
            .filter(|node| node.memory_kib > 0)
            .collect(),
    };
    let count = nodes.len() as u64;
    if count == 0 {
        return Err(Reason::NoNode(
            facts.nodes.iter().filter_map(|node| node.node).collect(),
        ));
    }
    let share = |at: u64| rule.pages / count + u64::from(at < rule.pages % count);
    let wish = |(at, node): (u64, &'a NumaNode)| {
        let pool = node
            .hugepages
            .iter()
            .find(|pool| pool.size_kib == rule.size_kib);
        let offered = || node.hugepages.iter().map(|pool| pool.size_kib).collect();
        let pool = pool.ok_or_else(|| Reason::NoPageSize(offered()))?;
        Ok(Wish {
            node,
            pool,
            pages: share(at),
            reservation: rule.reservation,
        })
    };
    (0..).zip(nodes).map(wish).collect()
}

/// Which of two rules was meant cannot be known.
fn refuse_doubles(wishes: &mut Vec<Wish<'_>>, plan: &mut Plan) {
    let key = |wish: &Wish<'_>| (wish.node.node, wish.pool.size_kib);
    let mut seen = BTreeSet::new();
    let doubles: BTreeSet<_> = wishes
        .iter()
        .map(key)
        .filter(|each| !seen.insert(*each))
        .collect();
    for (node, size_kib) in &doubles {
        let subject = Subject::Hugepages {
            node: *node,
            size_kib: *size_kib,
        };
        plan.refuse(subject, vec![Reason::TwoRules]);
    }
    wishes.retain(|wish| !doubles.contains(&key(wish)));
}

/// The number to write, if one has to be written.
fn pages(wish: &Wish<'_>, keep_kib: u64, kept_kib: u64, plan: &mut Plan) -> Option<u64> {
    let Wish {
        node, pool, pages, ..
    } = *wish;
    let size_kib = pool.size_kib;
    let place = super::text::pool(node.node, size_kib);
    let reserved = pool.reserved();
    if reserved >= pages {
        if reserved > pages {
            plan.notes.push(format!(
                "{place}: {reserved} pages stay, {pages} were asked for"
            ));
        }
        return None;
    }
    let available_kib = node.available_kib.saturating_sub(keep_kib);
    let wanted_kib = (pages - reserved).saturating_mul(size_kib);
    if wanted_kib <= available_kib {
        return Some(pages);
    }
    if wish.reservation == Reservation::Required {
        let reason = Reason::TooLittleMemory {
            wanted_kib,
            available_kib,
            kept_kib,
        };
        plan.refuse(
            Subject::Hugepages {
                node: node.node,
                size_kib,
            },
            vec![reason],
        );
        return None;
    }
    let fit = reserved + available_kib / size_kib.max(1);
    plan.notes
        .push(format!("{place}: memory for {fit} of {pages} pages"));
    (fit > reserved).then_some(fit)
}
