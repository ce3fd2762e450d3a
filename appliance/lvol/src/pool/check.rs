//! The check: are the records of the pool whole, and do they say the same?
//!
//! It walks all records, so many in a step of the worker, and I/O and calls go on in between. What commits
//! change behind the place where the walk is, the walk is told: it need not begin again, and what it says at
//! its end is true of the end.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Instant;

use metastore::pool::Table;

use super::open::next_records;
use super::repair::{Fix, Problem};
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{
    CHUNK_CLUSTERS, FreeChunk, LayerId, LayerRecord, NameRecord, OperationRecord, chunk_key,
    decode_piece, parse_chunk_key, parse_layer_key, parse_operation_key, parse_piece_key,
};
use crate::map::{PIECE_SLOTS, SlotContent};

/// Records looked at in one step.
const RECORDS_PER_STEP: usize = 256;
/// Chunks of free clusters compared in one step.
const CHUNKS_PER_STEP: u64 = 32;
/// Findings of one walk; a repair goes on with another walk when there are more.
pub(super) const FINDINGS_MAX: usize = 4096;

/// Words of a chunk's bitmap.
const WORDS: usize = (CHUNK_CLUSTERS / 64) as usize;

type Slots = [SlotContent; PIECE_SLOTS];

/// Something that is wrong with a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Which record.
    pub record: String,
    /// What is wrong with it.
    pub problem: String,
    /// What a repair does about it; after a repair, what it did.
    pub action: String,
    /// Volumes and snapshots whose data it concerns, as far as is known.
    pub volumes: Vec<String>,
}

/// What a check or a repair has found, and what it took.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Checkup {
    /// What is wrong; nothing if all is well. After a repair: what was wrong before.
    pub findings: Vec<Finding>,
    /// Steps of the worker that it took.
    pub steps: u64,
    /// Records that were looked at.
    pub records: u64,
    /// The most in one step.
    pub records_per_step_max: u64,
}

/// Where the walk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Layers,
    Names,
    Operations,
    Map,
    /// Who has the clusters that several have.
    Owners,
    Sums,
    Node,
    Free,
    Judge,
    Fixing,
}

/// What the walk has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What is wrong with single records.
    pub(super) problems: Vec<Problem>,
    /// Keys of names whose records cannot be read, and why.
    pub(super) damaged_names: Vec<(Vec<u8>, String)>,
    /// Why records of layers cannot be read.
    pub(super) damaged_layers: BTreeMap<LayerId, String>,
    /// Pieces that cannot be read, and why.
    pub(super) damaged_pieces: BTreeMap<(LayerId, u64), String>,
    /// A bit for each cluster that a map has, by chunk.
    owned: BTreeMap<u64, Box<[u64; WORDS]>>,
    /// Clusters that several slots have: how many more than one.
    more: BTreeMap<u64, u32>,
    /// Who has the clusters that several have.
    pub(super) owners: BTreeMap<u64, Vec<(LayerId, u64)>>,
    /// Clusters by layer, as the maps say. Of each layer that has any piece.
    pub(super) counts: HashMap<LayerId, u64>,
    /// One past the last slot that a layer has.
    pub(super) ends: HashMap<LayerId, u64>,
    /// Chunks of free clusters that do not say what the maps say, and why.
    pub(super) wrong_chunks: BTreeMap<u64, String>,
}

impl Seen {
    fn own(&mut self, cluster: u64) {
        let chunk = self.owned.entry(cluster / CHUNK_CLUSTERS);
        let chunk = chunk.or_insert_with(|| Box::new([0; WORDS]));
        let (word, bit) = place(cluster);
        if chunk[word] & bit != 0 {
            *self.more.entry(cluster).or_default() += 1;
        }
        chunk[word] |= bit;
    }

    fn disown(&mut self, cluster: u64) {
        if let Some(more) = self.more.get_mut(&cluster) {
            *more -= 1;
            if *more == 0 {
                self.more.remove(&cluster);
            }
            return;
        }
        if let Some(chunk) = self.owned.get_mut(&(cluster / CHUNK_CLUSTERS)) {
            let (word, bit) = place(cluster);
            chunk[word] &= !bit;
        }
    }

    pub(super) fn is_owned(&self, cluster: u64) -> bool {
        let (word, bit) = place(cluster);
        let chunk = self.owned.get(&(cluster / CHUNK_CLUSTERS));
        chunk.is_some_and(|chunk| chunk[word] & bit != 0)
    }

    /// A chunk of what maps have.
    pub(super) fn owned_of(&self, chunk: u64) -> [u64; WORDS] {
        self.owned.get(&chunk).map_or([0; WORDS], |words| **words)
    }

    /// Clusters that maps have.
    pub(super) fn owned_count(&self) -> u64 {
        let words = self.owned.values().flat_map(|chunk| chunk.iter());
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    fn add(&mut self, layer: LayerId, index: u64, slots: &Slots) {
        let mut count = 0;
        for cluster in slots.iter().filter_map(SlotContent::data_cluster) {
            self.own(cluster.get());
            count += 1;
        }
        *self.counts.entry(layer).or_default() += count;
        if let Some(last) = slots.iter().rposition(|slot| *slot != SlotContent::Empty) {
            let end = index.saturating_mul(PIECE_SLOTS as u64) + last as u64 + 1;
            let known = self.ends.entry(layer).or_default();
            *known = end.max(*known);
        }
    }

    fn remove(&mut self, layer: LayerId, slots: &Slots) {
        let mut count = 0;
        for cluster in slots.iter().filter_map(SlotContent::data_cluster) {
            self.disown(cluster.get());
            count += 1;
        }
        let known = self.counts.entry(layer).or_default();
        *known = known.saturating_sub(count);
    }
}

fn place(cluster: u64) -> (usize, u64) {
    let index = cluster % CHUNK_CLUSTERS;
    ((index / 64) as usize, 1 << (index % 64))
}

/// Gets what a check or a repair has found.
pub(super) type Told = Box<dyn FnOnce(Result<Checkup, LvolError>) + Send>;

/// A check or a repair under way.
pub(super) struct Checking {
    phase: Phase,
    /// Key at which the phase goes on.
    from: Vec<u8>,
    pub(super) seen: Seen,
    repairs: bool,
    /// What is to be repaired.
    pub(super) fixes: VecDeque<Problem>,
    /// Repaired since the last walk.
    fixed: u64,
    report: Checkup,
    told: Told,
}

/// What became of a step.
pub(super) enum Step {
    /// More can be done at once.
    Going,
    /// What is to be repaired is in use; later again.
    Later,
    /// All is done.
    Done,
}

impl Checking {
    /// Does it want to know what commits change?
    pub(super) fn follows(&self) -> bool {
        self.phase >= Phase::Map
    }

    /// The record of a piece was changed by a commit, or by a repair.
    pub(super) fn saw(&mut self, layer: LayerId, index: u64, old: Option<&Slots>, new: &Slots) {
        let is_ahead = self.phase < Phase::Map
            || self.phase == Phase::Map
                && crate::format::piece_key(layer, index)[..] >= self.from[..];
        if is_ahead {
            return;
        }
        self.seen.damaged_pieces.remove(&(layer, index));
        if let Some(old) = old {
            self.seen.remove(layer, old);
        }
        self.seen.add(layer, index, new);
    }

    pub(super) fn find(&mut self, problem: Problem) {
        if self.seen.problems.len() < FINDINGS_MAX {
            self.seen.problems.push(problem);
        }
    }

    fn next_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.from.clear();
    }
}

impl PartialOrd for Phase {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (*self as u8).partial_cmp(&(*other as u8))
    }
}

impl PoolWorker {
    /// Begins a check, or a repair. Commits first, so that the records say what is.
    pub(super) fn begin_check(&mut self, repairs: bool, told: Told) {
        if self.checking.is_some() {
            return told(Err(LvolError::Refused {
                name: self.metadata.superblock().name,
                problem: "is being checked or repaired already; wait for that".to_owned(),
            }));
        }
        if let Err(error) = self.commit_now() {
            return told(Err(error));
        }
        self.checking = Some(Box::new(Checking {
            phase: Phase::Layers,
            from: Vec::new(),
            seen: Seen::default(),
            repairs,
            fixes: VecDeque::new(),
            fixed: 0,
            report: Checkup::default(),
            told,
        }));
    }

    /// Does a step of the check. True if there is more that can be done now.
    pub(super) fn check_some(&mut self, now: Instant) -> bool {
        if self.check_at.is_some() {
            return false;
        }
        let Some(mut checking) = self.checking.take() else {
            return false;
        };
        checking.report.steps += 1;
        let step = if checking.phase == Phase::Fixing {
            // Commits tell it what they change.
            self.checking = Some(checking);
            let step = self.fix_some();
            let Some(back) = self.checking.take() else {
                return false;
            };
            checking = back;
            step
        } else {
            self.walk_some(&mut checking)
        };
        match step {
            Ok(Step::Going) => {
                self.checking = Some(checking);
                true
            }
            Ok(Step::Later) => {
                self.check_at = Some(now + super::garbage::COLLECT_RETRY);
                self.checking = Some(checking);
                false
            }
            Ok(Step::Done) => {
                let Checking {
                    told,
                    mut report,
                    repairs,
                    ..
                } = *checking;
                report.findings.extend(self.missing_externals());
                report.findings.extend(self.log_findings.iter().cloned());
                if repairs {
                    // They were told; there is nothing that could be done.
                    self.log_findings.clear();
                    self.fault_what_is_damaged();
                    self.collect_again();
                }
                told(Ok(report));
                true
            }
            Err(error) => {
                (checking.told)(Err(error));
                true
            }
        }
    }

    fn walk_some(&mut self, checking: &mut Checking) -> Result<Step, LvolError> {
        let (table, next) = match checking.phase {
            Phase::Layers => (Table::Layers, Phase::Names),
            Phase::Names => (Table::Names, Phase::Operations),
            Phase::Operations => (Table::Operations, Phase::Map),
            Phase::Map => (Table::Map, Phase::Owners),
            Phase::Owners => {
                self.add_metadata_conflicts(checking);
                if checking.seen.owners.is_empty() && checking.seen.more.is_empty() {
                    checking.next_phase(Phase::Sums);
                    return Ok(Step::Going);
                }
                (Table::Map, Phase::Sums)
            }
            Phase::Sums => (Table::Sums, Phase::Node),
            Phase::Node => (Table::Node, Phase::Free),
            Phase::Free => return self.compare_free(checking),
            Phase::Judge | Phase::Fixing => return Ok(self.end_walk(checking)),
        };
        let store = self.usable_store()?;
        let mut from = checking.from.clone();
        let entries = next_records(store, table, &mut from, RECORDS_PER_STEP)?;
        checking.count(entries.len() as u64);
        if entries.is_empty() {
            checking.next_phase(next);
            return Ok(Step::Going);
        }
        for (key, value) in &entries {
            match checking.phase {
                Phase::Layers => self.look_at_layer(checking, key, value),
                Phase::Names => self.look_at_name(checking, key, value),
                Phase::Operations => look_at_operation(checking, key, value),
                Phase::Map => self.look_at_piece(checking, key, value),
                Phase::Sums => self.look_at_sums(checking, key, value),
                Phase::Node => self.look_at_node(checking, key, value),
                _ => self.look_for_owners(checking, key, value),
            }
        }
        checking.from = from;
        Ok(Step::Going)
    }

    fn is_staged(&self, table: Table, key: &[u8]) -> bool {
        self.staged.contains_key(&(table, key.to_vec()))
    }

    fn look_at_layer(&self, checking: &mut Checking, key: &[u8], value: &[u8]) {
        let Some(layer) = parse_layer_key(key) else {
            return checking.find(no_key("layer", Table::Layers, key));
        };
        if self.is_staged(Table::Layers, key) {
            return;
        }
        let known = self.layers.get(&layer);
        let problem = match LayerRecord::decode(value) {
            Ok(record) if known.is_none_or(|known| *known == record) => return,
            Ok(_) => "is not what was read when the pool was opened".to_owned(),
            Err(error) => error.to_string(),
        };
        if known.is_some() {
            let action = "writes it again from memory";
            let name = format!("layer {}", layer.0);
            checking.find(Problem::new(
                name,
                problem,
                action,
                Fix::RewriteLayer(layer),
            ));
        } else {
            checking.seen.damaged_layers.insert(layer, problem);
        }
    }

    fn look_at_name(&self, checking: &mut Checking, key: &[u8], value: &[u8]) {
        if self.is_staged(Table::Names, key) {
            return;
        }
        let name = String::from_utf8(key.to_vec()).ok();
        let known = name.as_ref().and_then(|name| self.names.get(name));
        let problem = match NameRecord::decode(value) {
            Ok(record) if known.is_some_and(|known| known.record == record) => return,
            Ok(_) if name.is_none() => "its name is not text".to_owned(),
            Ok(_) => "is not what was read when the pool was opened".to_owned(),
            Err(error) => error.to_string(),
        };
        match (known, name) {
            (Some(_), Some(name)) => {
                let action = "writes it again from memory";
                let record = format!("volume {name:?}");
                checking.find(
                    Problem::new(record, problem, action, Fix::RewriteName(name.clone()))
                        .about(vec![name]),
                );
            }
            _ => checking.seen.damaged_names.push((key.to_vec(), problem)),
        }
    }

    fn look_at_piece(&self, checking: &mut Checking, key: &[u8], value: &[u8]) {
        let Some((layer, index)) = parse_piece_key(key) else {
            return checking.find(no_key("piece", Table::Map, key));
        };
        match decode_piece(value, self.shared.granularity, self.allocator.clusters()) {
            Ok(slots) => checking.seen.add(layer, index, &slots),
            Err(error) => {
                checking.seen.counts.entry(layer).or_default();
                if checking.seen.damaged_pieces.len() < FINDINGS_MAX {
                    let problem = error.to_string();
                    checking.seen.damaged_pieces.insert((layer, index), problem);
                }
            }
        }
    }

    fn look_for_owners(&self, checking: &mut Checking, key: &[u8], value: &[u8]) {
        let Some((layer, index)) = parse_piece_key(key) else {
            return;
        };
        let clusters = self.allocator.clusters();
        let Ok(slots) = decode_piece(value, self.shared.granularity, clusters) else {
            return;
        };
        for cluster in slots.iter().filter_map(SlotContent::data_cluster) {
            let seen = &mut checking.seen;
            let is_shared = seen.more.contains_key(&cluster.get());
            if seen.owners.contains_key(&cluster.get()) || is_shared {
                if !seen.owners.contains_key(&cluster.get()) && seen.owners.len() >= FINDINGS_MAX {
                    continue;
                }
                let owners = seen.owners.entry(cluster.get()).or_default();
                owners.push((layer, index));
            }
        }
    }

    /// Clusters of the metadata that a map has too.
    fn add_metadata_conflicts(&self, checking: &mut Checking) {
        if !checking.from.is_empty() {
            return;
        }
        let superblock = self.metadata.superblock();
        for extent in superblock.metadata.iter().chain(&superblock.log) {
            for cluster in extent.start..extent.start + extent.clusters {
                if checking.seen.is_owned(cluster) {
                    checking.seen.owners.entry(cluster).or_default();
                }
            }
        }
    }

    fn compare_free(&self, checking: &mut Checking) -> Result<Step, LvolError> {
        let store = self.usable_store()?;
        let chunks = self.allocator.clusters().div_ceil(CHUNK_CLUSTERS);
        let first = match checking.from.as_slice() {
            [] => 0,
            key => parse_chunk_key(key).unwrap_or(chunks),
        };
        if first >= chunks {
            // Records of what the pool does not have.
            let end = chunk_key(chunks);
            for (key, _) in store.scan(Table::Free, &end[..].., RECORDS_PER_STEP)? {
                checking.find(no_key("free clusters", Table::Free, &key));
            }
            checking.next_phase(Phase::Judge);
            return Ok(Step::Going);
        }
        let end = (first + CHUNKS_PER_STEP).min(chunks);
        checking.count(end - first);
        for number in first..end {
            let record = store.get(Table::Free, &chunk_key(number))?;
            let problem = match record.map(|record| FreeChunk::decode(&record)) {
                Some(Err(error)) => error.to_string(),
                Some(Ok(chunk)) if *chunk.used == checking.seen.owned_of(number) => continue,
                None if checking.seen.owned_of(number) == [0; WORDS] => continue,
                _ => "does not say what the maps say".to_owned(),
            };
            checking.seen.wrong_chunks.insert(number, problem);
        }
        checking.from = chunk_key(end).to_vec();
        Ok(Step::Going)
    }

    /// Everything has been looked at.
    fn end_walk(&mut self, checking: &mut Checking) -> Step {
        let problems = self.judge(&checking.seen);
        if !checking.repairs {
            checking.report.findings = problems.into_iter().map(|found| found.finding).collect();
            return Step::Done;
        }
        if problems.is_empty() {
            return Step::Done;
        }
        checking.fixes = problems.into();
        // What counts say is true once the records themselves are.
        let records_are_wrong = checking.fixes.iter().any(|problem| !problem.fix.counts());
        if records_are_wrong {
            checking.fixes.retain(|problem| !problem.fix.counts());
        }
        checking.phase = Phase::Fixing;
        Step::Going
    }

    /// Repairs one thing, or walks again.
    fn fix_some(&mut self) -> Result<Step, LvolError> {
        let Some(checking) = &mut self.checking else {
            return Ok(Step::Done);
        };
        let Some(mut problem) = checking.fixes.pop_front() else {
            if checking.fixed == 0 {
                return Ok(Step::Done);
            }
            // What was repaired shows what else there is.
            checking.fixed = 0;
            checking.seen = Seen::default();
            checking.next_phase(Phase::Layers);
            self.fault_what_is_damaged();
            return Ok(Step::Going);
        };
        if problem.fix.waits_for_grace() && (self.quarantined > 0 || !self.freed.is_empty()) {
            checking.fixes.push_front(problem);
            return Ok(Step::Later);
        }
        if let Fix::Name(layer, _) = problem.fix
            && self.drop_sums(layer)?
        {
            // It may become a volume's, and be written in place.
            self.commit_now()?;
            if let Some(checking) = &mut self.checking {
                checking.fixes.push_front(problem);
            }
            return Ok(Step::Going);
        }
        let left = self.apply(&problem.fix)?;
        let Some(checking) = &mut self.checking else {
            return Ok(Step::Done);
        };
        match left {
            None => checking.fixed += 1,
            Some(why) => problem.finding.action = format!("left as it is: {why}"),
        }
        let Finding {
            record,
            problem: what,
            action,
            ..
        } = &problem.finding;
        tracing::warn!(record, problem = what, action, "the pool is repaired");
        let known = checking.report.findings.iter();
        let is_known = known.clone().any(|known| *known == problem.finding);
        if !is_known && known.len() < FINDINGS_MAX {
            checking.report.findings.push(problem.finding);
        }
        Ok(Step::Going)
    }

    /// Faults volumes whose records are damaged, and serves those again that are not.
    pub(super) fn fault_what_is_damaged(&mut self) {
        use std::sync::atomic::Ordering;

        use crate::format::{LayerState, NameKind, Parent};
        self.set_circles_aside();
        let mut children: HashMap<LayerId, u32> = HashMap::new();
        for record in self.layers.values().chain(self.circular.values()) {
            if let Parent::Layer(parent) = record.parent {
                *children.entry(parent).or_default() += 1;
            }
        }
        let mut named: HashMap<LayerId, u32> = HashMap::new();
        for entry in self.names.values() {
            *named.entry(entry.record.layer).or_default() += 1;
        }
        let children = |layer: &LayerId| children.get(layer).copied().unwrap_or(0);
        let garbage = self.layers.iter().filter(|(layer, record)| {
            record.state == LayerState::Garbage
                && (record.children != children(layer) || named.contains_key(*layer))
        });
        let suspect = garbage.map(|(layer, _)| *layer).collect();
        let before = std::mem::replace(&mut self.suspect, suspect);
        let good = before.difference(&self.suspect);
        let is_garbage = |layer: &&LayerId| {
            let record = self.layers.get(layer);
            record.is_some_and(|record| record.state == LayerState::Garbage)
        };
        self.garbage.extend(good.filter(is_garbage));
        let mut whole = HashMap::new();
        for (name, entry) in &self.names {
            let layer = entry.record.layer;
            let has_layers = self.is_whole(layer, &mut whole);
            let is_alone = entry.record.kind == NameKind::Snapshot
                || named[&layer] == 1 && children(&layer) == 0;
            let is_faulted = !(has_layers && is_alone);
            if entry.shared.faulted.swap(is_faulted, Ordering::SeqCst) != is_faulted {
                if is_faulted {
                    tracing::error!(name, "a layer of the volume is missing or damaged");
                }
                entry.shared.chains.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.shared.chains.fetch_add(1, Ordering::SeqCst);
    }

    /// Layers that could not be deleted are tried again.
    fn collect_again(&mut self) {
        let layers = self.layers.iter();
        let garbage = layers.filter(|(layer, record)| {
            let is_left = !self
                .names
                .values()
                .any(|entry| entry.shared.layer() == **layer);
            let is_garbage = record.state == crate::format::LayerState::Garbage;
            is_garbage && is_left && !self.suspect.contains(layer)
        });
        let garbage: Vec<LayerId> = garbage.map(|(layer, _)| *layer).collect();
        // Some may have been given up a moment ago.
        self.after_grace(move |worker| {
            let layers = garbage
                .into_iter()
                .filter(|layer| worker.layers.contains_key(layer));
            worker.garbage.extend(layers);
        });
    }

    /// Are this layer and all below it there? `known` is what was found before.
    fn is_whole(&self, layer: LayerId, known: &mut HashMap<LayerId, bool>) -> bool {
        let (mut at, mut path) = (layer, Vec::new());
        let whole = loop {
            if let Some(known) = known.get(&at) {
                break *known;
            }
            path.push(at);
            match self.layers.get(&at).map(|record| &record.parent) {
                None => break false,
                Some(crate::format::Parent::Layer(parent)) => at = *parent,
                Some(_) => break true,
            }
        };
        known.extend(path.into_iter().map(|layer| (layer, whole)));
        whole
    }

    /// Takes one layer out of each circle, so that no walk from a layer down is without end. It is the oldest:
    /// layers lie on older ones.
    fn set_circles_aside(&mut self) {
        let mut ended: HashSet<LayerId> = HashSet::new();
        let mut cut = BTreeSet::new();
        for start in self.layers.keys() {
            let (mut at, mut path, mut on_path) = (*start, Vec::new(), HashSet::new());
            while !ended.contains(&at) {
                if !on_path.insert(at) {
                    let begin = path.iter().position(|layer| *layer == at).unwrap_or(0);
                    cut.extend(path[begin..].iter().min().copied());
                    break;
                }
                path.push(at);
                match self.parent_of(at) {
                    Some(parent) => at = parent,
                    None => break,
                }
            }
            ended.extend(path);
        }
        for layer in cut {
            tracing::error!(layer = layer.0, "a layer lies on itself");
            if let Some(record) = self.layers.remove(&layer) {
                self.circular.insert(layer, record);
            }
        }
    }
}

impl Checking {
    fn count(&mut self, records: u64) {
        self.report.records += records;
        let most = &mut self.report.records_per_step_max;
        *most = records.max(*most);
    }
}

fn look_at_operation(checking: &mut Checking, key: &[u8], value: &[u8]) {
    let Some(id) = parse_operation_key(key) else {
        return checking.find(no_key("operation", Table::Operations, key));
    };
    if let Err(error) = OperationRecord::decode(value) {
        let fix = Fix::Delete(Table::Operations, key.to_vec());
        let action = "deletes it: what it did is done, what it had still to do is not";
        let record = format!("operation {id}");
        checking.find(Problem::new(record, error.to_string(), action, fix));
    }
}

fn no_key(what: &str, table: Table, key: &[u8]) -> Problem {
    let fix = Fix::Delete(table, key.to_vec());
    let problem = "has a key that nothing has".to_owned();
    Problem::new(format!("{what} {key:02x?}"), problem, "deletes it", fix)
}
