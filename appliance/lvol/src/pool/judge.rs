//! What the records of a pool say of each other: the part of a check that comes after the walk.

use std::collections::{BTreeMap, HashMap};

use metastore::pool::Table;

use super::check::{FINDINGS_MAX, Seen};
use super::repair::{Fix, Problem};
use super::worker::PoolWorker;
use crate::format::{LayerId, LayerState, NameKind, Parent};

/// Names told with a finding.
const NAMES_MAX: usize = 16;

/// The records of the pool beside each other.
struct Judge<'a> {
    worker: &'a PoolWorker,
    seen: &'a Seen,
    problems: Vec<Problem>,
    /// Layers that something needs and that have no record, and why.
    missing: BTreeMap<LayerId, String>,
    /// Layers that a layer lies on, as it will be.
    parents: HashMap<LayerId, LayerId>,
    names: BTreeMap<LayerId, Vec<&'a String>>,
}

impl PoolWorker {
    /// What the records say of each other, when each was looked at. In the order in which it is repaired.
    pub(super) fn judge(&self, seen: &Seen) -> Vec<Problem> {
        let mut names: BTreeMap<LayerId, Vec<&String>> = BTreeMap::new();
        for (name, entry) in &self.names {
            names.entry(entry.record.layer).or_default().push(name);
        }
        let mut judge = Judge {
            worker: self,
            seen,
            problems: seen.problems.clone(),
            missing: BTreeMap::new(),
            parents: HashMap::new(),
            names,
        };
        judge.parents();
        judge.pieces();
        judge.names();
        judge.counts();
        judge.problems.truncate(FINDINGS_MAX);
        judge.problems
    }

    /// Volumes and snapshots that show anything of a layer.
    pub(super) fn names_over(&self, layer: LayerId) -> Vec<String> {
        let mut over: HashMap<LayerId, bool> = HashMap::from([(layer, true)]);
        let shows = |start: LayerId, over: &mut HashMap<LayerId, bool>| {
            let (mut at, mut path) = (start, Vec::new());
            let result = loop {
                if let Some(known) = over.get(&at) {
                    break *known;
                }
                path.push(at);
                let record = self.layers.get(&at).or_else(|| self.circular.get(&at));
                match record.map(|record| &record.parent) {
                    // Longer than there are layers: a circle.
                    Some(Parent::Layer(parent)) if path.len() <= self.layers.len() => at = *parent,
                    _ => break false,
                }
            };
            over.extend(path.into_iter().map(|layer| (layer, result)));
            result
        };
        let names = self.names.iter();
        let names = names.filter(|(_, entry)| shows(entry.record.layer, &mut over));
        names.map(|(name, _)| name.clone()).collect()
    }
}

impl Judge<'_> {
    fn find(&mut self, layer: LayerId, problem: Problem) {
        if self.problems.len() < FINDINGS_MAX {
            let mut names = self.worker.names_over(layer);
            names.truncate(NAMES_MAX);
            self.problems.push(problem.about(names));
        }
    }

    fn layer(layer: LayerId) -> String {
        format!("layer {}", layer.0)
    }

    /// Layers without a record, and what lies on what.
    fn parents(&mut self) {
        let worker = self.worker;
        let is_there = |layer: &LayerId| {
            worker.layers.contains_key(layer) || worker.circular.contains_key(layer)
        };
        for layer in &worker.damaged_layers {
            let why = self.seen.damaged_layers.get(layer);
            let why = why.map_or("its record is damaged", String::as_str);
            self.missing.insert(*layer, why.to_owned());
        }
        for layer in self.names.keys().filter(|layer| !is_there(layer)) {
            let why = "a volume's layer, is not there";
            self.missing.entry(*layer).or_insert(why.to_owned());
        }
        for layer in self.seen.counts.keys().filter(|layer| !is_there(layer)) {
            let why = "is not there, and pieces of its map are";
            self.missing.entry(*layer).or_insert(why.to_owned());
        }
        let mut cut = Vec::new();
        for (layer, record) in &worker.layers {
            if let Parent::Layer(parent) = record.parent {
                if is_there(&parent) || self.missing.contains_key(&parent) {
                    self.parents.insert(*layer, parent);
                } else {
                    cut.push((
                        *layer,
                        format!("lies on layer {}, which is not there", parent.0),
                    ));
                }
            }
        }
        for layer in worker.circular.keys() {
            cut.push((*layer, "lies on itself by way of its parents".to_owned()));
        }
        let is_sure = cut.is_empty();
        cut.sort_unstable();
        let action = "keeps what the layer itself has; what was seen through it is lost: reads of that \
                      fail";
        for (layer, problem) in cut {
            let problem = Problem::new(Self::layer(layer), problem, action, Fix::CutParent(layer));
            self.find(layer, problem);
        }
        self.make_layers(is_sure);
    }

    fn make_layers(&mut self, is_sure: bool) {
        let mut short = self
            .worker
            .layers
            .iter()
            .filter(|(layer, record)| record.children > self.children(**layer));
        // One layer is missing, and one misses a layer: they belong together.
        let candidate = short
            .next()
            .map(|(layer, record)| (*layer, record.children));
        let is_only = short.next().is_none() && self.missing.len() == 1 && is_sure;
        let missing: Vec<_> = self.missing.clone().into_iter().collect();
        for (layer, why) in missing {
            let parent = candidate.filter(|(parent, children)| {
                is_only && *children == self.children(*parent) + 1 && *parent < layer
            });
            let parent = parent.map(|(parent, _)| parent);
            let action = match parent {
                Some(parent) => format!(
                    "makes it again from its map, on layer {}, which misses one",
                    parent.0
                ),
                None => {
                    "makes it again from its map; whether something was seen through it nobody \
                         knows: reads of what it does not have fail"
                        .to_owned()
                }
            };
            let fix = Fix::MakeLayer(layer, parent);
            self.find(layer, Problem::new(Self::layer(layer), why, action, fix));
            if let Some(parent) = parent {
                self.parents.insert(layer, parent);
            }
        }
    }

    fn children(&self, layer: LayerId) -> u32 {
        self.parents
            .values()
            .filter(|parent| **parent == layer)
            .count() as u32
    }

    fn pieces(&mut self) {
        for ((layer, index), why) in &self.seen.damaged_pieces {
            let (layer, index) = (*layer, *index);
            let name = format!("piece {index} of layer {}", layer.0);
            let action = if self.worker.pieces.contains_key(&(layer, index)) {
                "writes it again from memory"
            } else {
                "keeps what can be read of it; the rest is lost: reads of that fail"
            };
            let fix = Fix::LosePiece(layer, index);
            self.find(layer, Problem::new(name, why, action, fix));
        }
        for (cluster, owners) in &self.seen.owners {
            let metadata = self.worker.is_metadata(*cluster);
            let Some((layer, index)) = owners.get(usize::from(!metadata)).copied() else {
                continue;
            };
            let first = match owners.first().filter(|_| !metadata) {
                Some((layer, index)) => format!("piece {index} of layer {}", layer.0),
                None => "the metadata".to_owned(),
            };
            let problem = format!("has cluster {cluster}, which {first} has too");
            let action = if metadata {
                "the slot is lost: reads of it fail"
            } else {
                "gives it a copy of its own; what it holds may be the other's"
            };
            let name = format!("piece {index} of layer {}", layer.0);
            let problem = Problem::new(name, problem, action, Fix::Share(*cluster));
            self.find(layer, problem);
        }
    }

    fn names(&mut self) {
        let worker = self.worker;
        let names = std::mem::take(&mut self.names);
        let mut children: HashMap<LayerId, u32> = HashMap::new();
        for parent in self.parents.values() {
            *children.entry(*parent).or_default() += 1;
        }
        let children = |layer: LayerId| children.get(&layer).copied().unwrap_or(0);
        for (layer, names) in &names {
            let is_volume = |name: &&&String| {
                worker
                    .names
                    .get(**name)
                    .is_some_and(|entry| entry.record.kind == NameKind::Volume)
            };
            let is_written = names.iter().any(|name| is_volume(&name));
            let lie_on_it = children(*layer);
            if names.len() > 1 || is_written && lie_on_it > 0 {
                let action = "gives each a layer of its own on it: all keep what they show";
                let problem = match names.as_slice() {
                    [name] => format!("{name:?} writes to it, and {lie_on_it} layers lie on it"),
                    [first, second, ..] => format!("{second:?} has it, and {first:?} too"),
                    [] => continue,
                };
                let fix = Fix::Separate(*layer);
                self.find(
                    *layer,
                    Problem::new(Self::layer(*layer), problem, action, fix),
                );
            }
            let state = worker.layers.get(layer).map(|record| record.state);
            if state == Some(LayerState::Garbage) {
                let problem = "is deleted and has a name";
                let fix = Fix::Revive(*layer);
                let action = "believes the name: it is not deleted";
                self.find(
                    *layer,
                    Problem::new(Self::layer(*layer), problem, action, fix),
                );
            }
        }
        let live = worker.layers.iter().chain(&worker.circular);
        let live = live.filter(|(_, record)| record.state == LayerState::Live);
        let mut unnamed: Vec<LayerId> = live
            .map(|(layer, _)| *layer)
            .chain(self.missing.keys().copied())
            .filter(|layer| !names.contains_key(layer))
            .collect();
        unnamed.sort_unstable();
        self.unnamed(&unnamed, children);
        self.uuids();
    }

    /// Layers that nobody can name, and names that nobody can read.
    fn unnamed(&mut self, unnamed: &[LayerId], children: impl Fn(LayerId) -> u32) {
        let damaged = self.seen.damaged_names.clone();
        let mut match_ = None;
        if let ([layer], [(key, _)]) = (unnamed, damaged.as_slice())
            && let Ok(name) = std::str::from_utf8(key)
            && (name.contains('@') || children(*layer) == 0)
        {
            match_ = Some(name.to_owned());
        }
        for (key, why) in &damaged {
            let name = String::from_utf8_lossy(key).into_owned();
            if match_.is_some() {
                continue;
            }
            let action =
                "deletes it; its data come back under the name recovered-N, of its layer N";
            let fix = Fix::Delete(Table::Names, key.clone());
            let record = format!("volume {name:?}");
            self.problems.push(Problem::new(record, why, action, fix));
        }
        for layer in unnamed {
            let (name, problem) = match &match_ {
                Some(name) => {
                    let why = damaged.first().map_or("", |(_, why)| why.as_str());
                    (
                        name.clone(),
                        format!("its name {name:?} cannot be read: {why}"),
                    )
                }
                None => {
                    let name = self.worker.free_name(*layer, children(*layer) > 0);
                    (name, "has no name".to_owned())
                }
            };
            let action =
                format!("names it {name:?}; its size is that of its data, its UUID is new");
            let fix = Fix::Name(*layer, name.clone());
            let record = match &match_ {
                Some(name) => format!("volume {name:?}"),
                None => Self::layer(*layer),
            };
            self.problems
                .push(Problem::new(record, problem, action, fix).about(vec![name]));
        }
    }

    fn uuids(&mut self) {
        let mut uuids: HashMap<[u8; 16], &String> = HashMap::new();
        for (name, entry) in &self.worker.names {
            let Some(first) = uuids.insert(entry.record.uuid, name) else {
                continue;
            };
            let problem = format!("has the UUID of {first:?}");
            let fix = Fix::NewUuid(name.clone());
            let record = format!("volume {name:?}");
            self.problems.push(
                Problem::new(record, problem, "gives it a new one", fix).about(vec![name.clone()]),
            );
        }
    }

    fn counts(&mut self) {
        let worker = self.worker;
        let mut found: HashMap<LayerId, u32> = HashMap::new();
        for parent in self.parents.values() {
            *found.entry(*parent).or_default() += 1;
        }
        let mut layers: Vec<_> = worker.layers.iter().collect();
        layers.sort_unstable_by_key(|(layer, _)| **layer);
        for (layer, record) in layers {
            let lie_on_it = found.get(layer).copied().unwrap_or(0);
            if record.children != lie_on_it {
                let problem = format!("says {} layers, {lie_on_it} lie on it", record.children);
                let fix = Fix::Children(*layer, lie_on_it);
                self.find(
                    *layer,
                    Problem::new(Self::layer(*layer), problem, "counts again", fix),
                );
            }
            let has = self.seen.counts.get(layer).copied().unwrap_or(0);
            if record.clusters != has {
                let problem = format!("says {} clusters, its map has {has}", record.clusters);
                let action = if record.clusters > has {
                    "counts again; where the others lay nobody knows: its volumes become read-only"
                } else {
                    "counts again"
                };
                let fix = Fix::Clusters(*layer);
                self.find(
                    *layer,
                    Problem::new(Self::layer(*layer), problem, action, fix),
                );
            }
        }
        self.free();
    }

    fn free(&mut self) {
        let action = "makes it again from the maps";
        let mut wrong: Vec<(String, String)> = Vec::new();
        if self.worker.was_pool_damaged {
            let problem = "its record was damaged when the pool was opened".to_owned();
            self.problems.push(Problem::new(
                "the pool".to_owned(),
                problem,
                "makes its counters again; the label is lost",
                Fix::PoolRecord,
            ));
        }
        let (says, has) = (self.worker.allocator.used(), self.seen.owned_count());
        if says != has {
            let problem = format!("says {says} clusters are used, the maps have {has}");
            wrong.push(("the pool".to_owned(), problem));
        }
        for (number, why) in &self.seen.wrong_chunks {
            wrong.push((format!("free clusters {number}"), why.clone()));
        }
        for (record, problem) in wrong {
            self.problems
                .push(Problem::new(record, problem, action, Fix::Free));
        }
    }
}
