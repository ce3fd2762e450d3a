//! The check: are the records of the pool whole, and do they say the same?

use std::collections::HashMap;

use metastore::pool::Table;

use super::worker::{PoolWorker, load_chunk};
use crate::LvolError;
use crate::format::{
    CHUNK_CLUSTERS, LayerId, LayerRecord, NameRecord, Parent, decode_piece, parse_layer_key,
    parse_piece_key,
};
use crate::map::SlotContent;

/// Records read at a time.
const SCAN_RECORDS: usize = 256;

/// Something that is wrong with a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which record.
    pub record: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What the walk has found so far.
#[derive(Debug, Default)]
struct Walk {
    findings: Vec<Finding>,
    /// A bit for each cluster that a map or the pool itself has.
    owned: Vec<u64>,
    layers: HashMap<LayerId, LayerRecord>,
    /// Clusters by layer, as the maps say.
    clusters: HashMap<LayerId, u64>,
}

impl Walk {
    fn find(&mut self, record: impl Into<String>, problem: impl Into<String>) {
        self.findings.push(Finding {
            record: record.into(),
            problem: problem.into(),
        });
    }

    fn own(&mut self, cluster: u64, owner: &str) {
        let (word, bit) = ((cluster / 64) as usize, 1 << (cluster % 64));
        match self.owned.get_mut(word) {
            Some(bits) if *bits & bit == 0 => *bits |= bit,
            Some(_) => self.find(
                owner,
                format!("has cluster {cluster}, which another has too"),
            ),
            None => self.find(owner, format!("has cluster {cluster}, past the pool's end")),
        }
    }
}

impl PoolWorker {
    /// Everything that is wrong. Commits first, so that the records say what is.
    pub(super) fn check(&mut self) -> Result<Vec<Finding>, LvolError> {
        self.commit_now()?;
        let superblock = self.metadata.superblock();
        let mut walk = Walk {
            owned: vec![0; superblock.clusters.div_ceil(64) as usize],
            ..Walk::default()
        };
        walk.own(0, "the superblock");
        for extent in &superblock.metadata {
            for cluster in extent.start..extent.start + extent.clusters {
                walk.own(cluster, "the metadata");
            }
        }
        self.check_layers(&mut walk)?;
        self.check_names(&mut walk)?;
        let fixed: u64 = walk
            .owned
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        let fixed_bits = walk.owned.clone();
        self.check_map(&mut walk)?;
        self.check_free(&mut walk, &fixed_bits, fixed)?;
        for (record, problem) in self.missing_externals() {
            walk.find(record, problem);
        }
        Ok(walk.findings)
    }

    /// Calls `each` with every record of a table.
    fn for_each_record(
        &self,
        table: Table,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), LvolError> {
        let mut from = Vec::new();
        loop {
            let store = self.usable_store()?;
            let entries = store.scan(table, from.as_slice().., SCAN_RECORDS)?;
            let Some((last, _)) = entries.last() else {
                return Ok(());
            };
            from.clone_from(last);
            from.push(0);
            for (key, value) in &entries {
                each(key, value);
            }
        }
    }

    fn check_layers(&self, walk: &mut Walk) -> Result<(), LvolError> {
        self.for_each_record(Table::Layers, |key, value| {
            let Some(layer) = parse_layer_key(key) else {
                return walk.find(format!("layer {key:02x?}"), "has a key that is none");
            };
            match LayerRecord::decode(value) {
                Ok(record) => drop(walk.layers.insert(layer, record)),
                Err(error) => walk.find(format!("layer {}", layer.0), error.to_string()),
            }
        })?;
        let mut children: HashMap<LayerId, u32> = HashMap::new();
        for record in walk.layers.values() {
            if let Parent::Layer(parent) = record.parent {
                *children.entry(parent).or_default() += 1;
            }
        }
        for (layer, record) in walk.layers.clone() {
            let name = format!("layer {}", layer.0);
            if let Parent::Layer(parent) = record.parent
                && !walk.layers.contains_key(&parent)
            {
                walk.find(
                    &*name,
                    format!("lies on layer {}, which is not there", parent.0),
                );
            }
            let lie_on_it = children.get(&layer).copied().unwrap_or(0);
            if record.children != lie_on_it {
                let problem = format!("says {} layers, {lie_on_it} lie on it", record.children);
                walk.find(name, problem);
            }
        }
        Ok(())
    }

    fn check_names(&self, walk: &mut Walk) -> Result<(), LvolError> {
        let mut named: HashMap<LayerId, String> = HashMap::new();
        self.for_each_record(Table::Names, |key, value| {
            let name = String::from_utf8_lossy(key).into_owned();
            match NameRecord::decode(value) {
                Err(error) => walk.find(format!("volume {name:?}"), error.to_string()),
                Ok(record) => {
                    if !walk.layers.contains_key(&record.layer) {
                        let problem = format!("its layer {} is not there", record.layer.0);
                        walk.find(format!("volume {name:?}"), problem);
                    }
                    if let Some(other) = named.insert(record.layer, name.clone()) {
                        let problem = format!("has the layer of {other:?}");
                        walk.find(format!("volume {name:?}"), problem);
                    }
                }
            }
        })?;
        for (layer, record) in walk.layers.clone() {
            let is_live = record.state == crate::format::LayerState::Live;
            if is_live != named.contains_key(&layer) {
                let problem = if is_live {
                    "has no name"
                } else {
                    "is deleted and has a name"
                };
                walk.find(format!("layer {}", layer.0), problem);
            }
        }
        Ok(())
    }

    fn check_map(&self, walk: &mut Walk) -> Result<(), LvolError> {
        let clusters = self.allocator.clusters();
        self.for_each_record(Table::Map, |key, value| {
            let Some((layer, index)) = parse_piece_key(key) else {
                return walk.find(format!("piece {key:02x?}"), "has a key that is none");
            };
            let name = format!("piece {index} of layer {}", layer.0);
            if !walk.layers.contains_key(&layer) {
                walk.find(&*name, "its layer is not there");
            }
            match decode_piece(value, self.shared.granularity, clusters) {
                Err(error) => walk.find(name, error.to_string()),
                Ok(slots) => {
                    for cluster in slots.iter().filter_map(SlotContent::cluster) {
                        walk.own(cluster.get(), &name);
                        *walk.clusters.entry(layer).or_default() += 1;
                    }
                }
            }
        })?;
        for (layer, record) in walk.layers.clone() {
            let has = walk.clusters.get(&layer).copied().unwrap_or(0);
            if record.clusters != has {
                let problem = format!("says {} clusters, its map has {has}", record.clusters);
                walk.find(format!("layer {}", layer.0), problem);
            }
        }
        Ok(())
    }

    fn check_free(&self, walk: &mut Walk, fixed_bits: &[u64], fixed: u64) -> Result<(), LvolError> {
        let store = self.usable_store()?;
        let owned: u64 = walk
            .owned
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        if self.pool.used_clusters != owned - fixed {
            let problem = format!(
                "says {} clusters are used, the maps have {}",
                self.pool.used_clusters,
                owned - fixed
            );
            walk.find("the pool", problem);
        }
        let words = (CHUNK_CLUSTERS / 64) as usize;
        for number in 0..walk.owned.len().div_ceil(words) {
            let chunk = match load_chunk(store, number as u64) {
                Ok(chunk) => chunk,
                Err(LvolError::Damaged { record, source }) => {
                    walk.find(record, source.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let range = number * words..((number + 1) * words).min(walk.owned.len());
            let differs = range.clone().any(|word| {
                chunk.used[word - number * words] != walk.owned[word] & !fixed_bits[word]
            });
            if differs {
                walk.find(
                    format!("free clusters {number}"),
                    "does not say what the maps say",
                );
            }
        }
        Ok(())
    }
}
