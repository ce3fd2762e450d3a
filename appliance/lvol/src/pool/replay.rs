//! The log of first writes when a pool is opened: what it has that no commit has goes into the maps.
//!
//! The maps may have some of it already: a commit takes what is there when it looks, and may have been cut
//! between two transactions. So each slot is as after some of its changes, and all of them are made again, in
//! their order: the last change of each granule decides. A cluster that a slot has from a later change than the
//! one that is being made is left alone; a later one puts that granule right.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::check::Finding;
use super::disk::Disk;
use super::worker::{PoolWorker, load_chunk};
use super::write_log::{WriteLog, first_byte, log_bytes};
use crate::LvolError;
use crate::format::{
    Extent, LayerId, LayerState, LogChange, LogEntry, Parent, Superblock, decode_log_page,
};
use crate::map::{Change, Cluster, Granules, PIECE_SLOTS, Piece, SlotContent};

/// Bytes of the log read at a time.
const READ_BYTES: usize = 128 << 10;
/// Epochs and pages that are passed over when the highest ones could not be read: more than can have begun
/// since the last commit, and more rounds than the log can have made.
const UNKNOWN_MAX: u64 = 1 << 32;
/// Findings about the log that are kept.
const FINDINGS_MAX: usize = 64;

/// What the log holds.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// By page number: what no commit has.
    entries: BTreeMap<u64, Vec<LogEntry>>,
    /// One past the highest number of a page, whether a commit has it or not.
    head: u64,
    /// The highest epoch of a page.
    epoch: u64,
    /// Bytes that could not be read.
    unreadable: u64,
}

/// A slot of a layer.
type Place = (LayerId, u64);

/// A slot while changes are made.
#[derive(Debug, Clone, Copy)]
struct Slot {
    cluster: Option<Cluster>,
    written: Granules,
    zero: Granules,
}

/// Slots that the log changes, and whose clusters are whose.
#[derive(Debug, Default)]
struct Replay {
    slots: HashMap<Place, Slot>,
    /// Clusters of these slots as the maps had them.
    before: HashSet<Cluster>,
    /// Clusters that were free.
    taken: HashSet<Cluster>,
    /// Who had a cluster last, of those that no slot has any more.
    last: HashMap<Cluster, Place>,
    /// Granules of changes that were passed over, until a later one puts them right.
    passed: HashMap<Place, Granules>,
    /// What could not be used, and why.
    refused: Vec<(LogEntry, &'static str)>,
    made: u64,
}

/// Reads a log. Pages of other pools, torn pages, and what lay there before are passed over.
pub(super) fn scan(disk: &Disk, superblock: &Superblock, committed: u64) -> Scan {
    let mut scan = Scan::default();
    let Some(extent) = superblock.log else {
        return scan;
    };
    let (start, len) = (
        first_byte(extent, superblock),
        log_bytes(extent, superblock),
    );
    let page_bytes = superblock.block_size as usize;
    let pages = len / page_bytes as u64;
    let granules = superblock.granularity.granules();
    let mut bytes = vec![0; READ_BYTES];
    for offset in (0..len).step_by(READ_BYTES) {
        let part = &mut bytes[..(len - offset).min(READ_BYTES as u64) as usize];
        if let Err(error) = disk.read(start + offset, part) {
            let error = crate::chain(&error);
            tracing::error!(error, "a part of the log of first writes cannot be read");
            scan.unreadable += part.len() as u64;
            continue;
        }
        let first = offset / page_bytes as u64;
        for (place, page) in (first..).zip(part.chunks_exact(page_bytes)) {
            let Ok((header, entries)) = decode_log_page(page, granules) else {
                continue;
            };
            let is_here = header.number % pages == place && header.number < u64::MAX - pages;
            if header.pool_uuid != superblock.pool_uuid || !is_here {
                continue;
            }
            scan.head = scan.head.max(header.number + 1);
            scan.epoch = scan.epoch.max(header.epoch);
            if header.epoch >= committed {
                scan.entries.insert(header.number, entries);
            }
        }
    }
    if scan.unreadable > 0 {
        scan.epoch = scan.epoch.max(committed) + UNKNOWN_MAX;
        scan.head = scan.head.next_multiple_of(pages) + UNKNOWN_MAX * pages;
    }
    scan
}

impl Scan {
    /// Numbers of pages in use: from the first that no commit has to the next that is taken.
    fn pages(&self) -> Range<u64> {
        let first = self.entries.first_key_value();
        first.map_or(self.head, |(number, _)| *number)..self.head
    }
}

impl PoolWorker {
    /// Puts what the log has into the maps, or leaves it when it cannot be believed; commits, so that no later
    /// open finds it again.
    pub(super) fn use_log(&mut self, scan: &Scan) -> Result<(), LvolError> {
        let superblock = self.metadata.superblock();
        let committed = self.pool.log_epoch;
        let epoch = scan.epoch.max(committed);
        self.start_log(&superblock, epoch, scan.pages());
        if scan.unreadable > 0 {
            let problem = format!(
                "{} bytes could not be read when the pool was opened",
                scan.unreadable
            );
            self.log_findings
                .push(finding("log of first writes".to_owned(), problem));
        } else if scan.entries.is_empty() {
            return Ok(());
        }
        let is_trusted = self.log_is_trusted();
        if is_trusted {
            self.replay(scan)?;
        } else if self.was_pool_damaged {
            let problem = "was not used, as the record of the pool is damaged".to_owned();
            self.log_findings
                .push(finding("log of first writes".to_owned(), problem));
        } else {
            let pool = superblock.name;
            tracing::info!(
                pool,
                "the log of first writes is not used: the device has a volatile cache and may have lost power"
            );
        }
        match self.commit_now() {
            // It is in the maps in memory, and stays in the log.
            Err(error) if is_trusted && self.fault.is_none() => {
                tracing::warn!(
                    error = crate::chain(&error),
                    "what the log had is not committed yet"
                );
                Ok(())
            }
            result => result,
        }
    }

    /// From here on what changes maps is logged.
    pub(super) fn start_log(&self, superblock: &Superblock, epoch: u64, pages: Range<u64>) {
        let committed = self.pool.log_epoch;
        let survives = !self.has_volatile_cache();
        let log = WriteLog::new(superblock, survives, committed, epoch, pages);
        if let Some(log) = log {
            // Nobody has set it: this is done once.
            let set = self.shared.log.set(log);
            debug_assert!(set.is_ok(), "a pool has one log");
        }
    }

    /// Gives a pool that has none a log, if there is a free cluster.
    pub(super) fn make_log(&mut self) -> Result<(), LvolError> {
        let superblock = self.metadata.superblock();
        if superblock.log.is_some() {
            return Ok(());
        }
        let cluster_size = superblock.granularity.cluster_size();
        let pool_bytes = superblock.clusters * cluster_size;
        let wanted = WriteLog::clusters(u64::MAX, pool_bytes, superblock.granularity);
        let wanted = wanted.min(self.data_clusters_free(false));
        let store = self.store.as_ref().ok_or(LvolError::Closed)?;
        let mut source = |number| load_chunk(store, number);
        let mut extents = self.allocator.take_extents(wanted, &mut source)?;
        extents.sort_by_key(|extent| std::cmp::Reverse(extent.clusters));
        let mut extents = extents.into_iter();
        let Some(log) = extents.next() else {
            let pool = superblock.name;
            tracing::warn!(pool, "no cluster is free for a log of first writes");
            return Ok(());
        };
        self.allocator.give_back(extents.as_slice());
        self.erase(log)?;
        self.metadata
            .store(|superblock| superblock.log = Some(log))?;
        self.start_log(&self.metadata.superblock(), self.pool.log_epoch, 0..0);
        Ok(())
    }

    /// What a volume had there could look like pages of a log.
    fn erase(&self, log: Extent) -> Result<(), LvolError> {
        let superblock = self.metadata.superblock();
        let start = first_byte(log, &superblock);
        let zeroes = vec![0; READ_BYTES];
        let len = log_bytes(log, &superblock);
        for offset in (0..len).step_by(READ_BYTES) {
            let len = (len - offset).min(READ_BYTES as u64) as usize;
            self.disk.write(start + offset, &zeroes[..len])?;
        }
        Ok(())
    }

    /// Can what the log says be believed? Its pages say that data are on the device; with a volatile cache
    /// they may not be any more.
    fn log_is_trusted(&self) -> bool {
        let boot_id = self.options.boot_id;
        let is_same_boot = boot_id != [0; 16]
            && self.metadata.superblock().boot_id == boot_id
            && !self.options.was_away;
        !self.was_pool_damaged && (!self.has_volatile_cache() || is_same_boot)
    }

    fn has_volatile_cache(&self) -> bool {
        self.shared.base.geometry().volatile_write_cache
    }

    /// Makes the changes that the log has and no commit.
    fn replay(&mut self, scan: &Scan) -> Result<(), LvolError> {
        let mut replay = Replay::default();
        for entry in scan.entries.values().flatten() {
            if let Err(why) = self.make_change(&mut replay, entry)? {
                replay.refused.push((*entry, why));
            }
        }
        let pool = self.metadata.superblock().name;
        let (made, refused) = (replay.made, replay.refused.len());
        tracing::info!(pool, made, refused, "the log of first writes was read");
        self.note_findings(&replay);
        self.put_replayed(replay)
    }

    fn make_change(
        &mut self,
        replay: &mut Replay,
        entry: &LogEntry,
    ) -> Result<Result<(), &'static str>, LvolError> {
        let is_known = self.layers.contains_key(&entry.layer)
            || self.damaged_layers.contains(&entry.layer)
            || self.circular.contains_key(&entry.layer);
        if !is_known {
            return Ok(Err("its layer is not there"));
        }
        let place = (entry.layer, entry.slot);
        let granules = Granules::from(entry.granules);
        let Some(mut slot) = self.slot(replay, place)? else {
            return Ok(Err("the piece of the map is damaged"));
        };
        match entry.change {
            LogChange::Zero => {
                slot.written = slot.written.minus(granules);
                // Rather too much: what reads as zeroes anyway may be said to.
                slot.zero = match self.layers.get(&entry.layer).map(|record| &record.parent) {
                    Some(Parent::None) => slot.zero.minus(granules),
                    _ => slot.zero.or(granules),
                };
                replay.settle(place, granules);
                replay.put(place, slot);
            }
            LogChange::Written(cluster) => {
                if let Some(why) = self.make_written(replay, place, slot, granules, cluster)? {
                    return Ok(Err(why));
                }
            }
        }
        replay.made += 1;
        Ok(Ok(()))
    }

    /// Why not, if it cannot be.
    fn make_written(
        &mut self,
        replay: &mut Replay,
        place: Place,
        mut slot: Slot,
        granules: Granules,
        cluster: Cluster,
    ) -> Result<Option<&'static str>, LvolError> {
        if slot.cluster != Some(cluster) {
            if let Some((below, mut parent)) = self.merged_from(replay, place, cluster)? {
                // The slot was on its way from the layer below, which only a commit would have told.
                parent.written = parent.written.or(granules);
                parent.zero = parent.zero.minus(granules);
                slot.written = slot.written.minus(granules);
                slot.zero = slot.zero.minus(granules);
                replay.put(below, parent);
                replay.put(place, slot);
                return Ok(None);
            }
            match slot.cluster {
                None => {}
                // That one was never acknowledged: else it would have been freed by zeroes.
                Some(other) if replay.taken.contains(&other) => slot.written = Granules::NONE,
                Some(_) => {
                    let passed = replay.passed.entry(place).or_default();
                    *passed = passed.or(granules);
                    return Ok(None);
                }
            }
            if !self.take_for(replay, place, cluster)? {
                return Ok(Some("its cluster is another's"));
            }
            slot.cluster = Some(cluster);
        }
        slot.written = slot.written.or(granules);
        slot.zero = slot.zero.minus(granules);
        replay.settle(place, granules);
        replay.put(place, slot);
        Ok(None)
    }

    /// A slot as it is by now; none if its piece cannot be read.
    fn slot(&mut self, replay: &mut Replay, place: Place) -> Result<Option<Slot>, LvolError> {
        if let Some(slot) = replay.slots.get(&place) {
            return Ok(Some(*slot));
        }
        let (layer, number) = place;
        let piece = match self.piece(layer, number / PIECE_SLOTS as u64) {
            Ok(piece) => piece,
            Err(LvolError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let content = piece.map_or(SlotContent::Empty, |piece| {
            piece.snapshot_slot((number % PIECE_SLOTS as u64) as usize)
        });
        replay.before.extend(content.data_cluster());
        let whole = Granules::from(self.shared.granularity.whole());
        let slot = Slot::of(&content, whole);
        replay.slots.insert(place, slot);
        Ok(Some(slot))
    }

    /// The slot of the layer below that has the cluster, if that layer is being merged into this one.
    fn merged_from(
        &mut self,
        replay: &mut Replay,
        (layer, number): Place,
        cluster: Cluster,
    ) -> Result<Option<(Place, Slot)>, LvolError> {
        let Some(parent) = self.parent_of(layer) else {
            return Ok(None);
        };
        let is_merged = self
            .layers
            .get(&parent)
            .is_some_and(|record| record.state == LayerState::Garbage && record.children == 1);
        if !is_merged {
            return Ok(None);
        }
        let place = (parent, number);
        let slot = self.slot(replay, place)?;
        let found = slot.filter(|slot| slot.cluster == Some(cluster));
        Ok(found.map(|slot| (place, slot)))
    }

    /// Takes a cluster that is free, or that this slot has just given up.
    fn take_for(
        &mut self,
        replay: &mut Replay,
        place: Place,
        cluster: Cluster,
    ) -> Result<bool, LvolError> {
        if let Some(last) = replay.last.get(&cluster) {
            return Ok(*last == place && replay.last.remove(&cluster).is_some());
        }
        let store = self.store.as_ref().ok_or(LvolError::Closed)?;
        let mut source = |number| load_chunk(store, number);
        let is_taken = self.allocator.take_this(cluster, &mut source)?;
        if is_taken {
            replay.taken.insert(cluster);
        }
        Ok(is_taken)
    }

    /// What has changed is in the pieces, and what came free is freed by the next commit.
    fn put_replayed(&mut self, replay: Replay) -> Result<(), LvolError> {
        let whole = Granules::from(self.shared.granularity.whole());
        let mut pieces: BTreeMap<(LayerId, u64), Vec<(usize, SlotContent)>> = BTreeMap::new();
        let mut has: HashSet<Cluster> = HashSet::new();
        for ((layer, number), slot) in &replay.slots {
            let content = slot.content(whole);
            has.extend(content.data_cluster());
            let index = number / PIECE_SLOTS as u64;
            let slots = pieces.entry((*layer, index)).or_default();
            slots.push(((number % PIECE_SLOTS as u64) as usize, content));
        }
        for ((layer, index), slots) in pieces {
            let old = self.own_piece(layer, index)?;
            let mut contents: [SlotContent; PIECE_SLOTS] =
                std::array::from_fn(|slot| old.snapshot_slot(slot));
            for (slot, content) in slots {
                contents[slot] = content;
            }
            let piece = Piece::from_contents(self.shared.granularity, &contents)
                .expect("slots of a replay contradict nothing");
            let piece = Arc::new(piece);
            let queue = piece.mark_dirty();
            self.pieces.insert((layer, index), Arc::clone(&piece));
            let change = Change {
                queue,
                ..Change::default()
            };
            self.shared.note_piece(layer, index, &piece, change);
        }
        let freed = replay
            .before
            .iter()
            .filter(|cluster| !has.contains(cluster));
        self.shared.inbox().freed.extend(freed);
        for cluster in replay.taken.difference(&has) {
            self.allocator.release(*cluster);
        }
        Ok(())
    }

    fn note_findings(&mut self, replay: &Replay) {
        let mut findings = std::mem::take(&mut self.log_findings);
        let refused = replay.refused.iter().map(|(entry, why)| {
            tracing::error!(
                ?entry,
                why,
                "an entry of the log of first writes is not used"
            );
            let record = format!("log of first writes, layer {}", entry.layer.0);
            let problem = format!("what it has for cluster {} is not used: {why}", entry.slot);
            (entry.layer, finding(record, problem))
        });
        for (layer, mut finding) in refused.take(FINDINGS_MAX) {
            finding.volumes = self.names_over(layer);
            findings.push(finding);
        }
        for (place, granules) in &replay.passed {
            if !granules.is_empty() {
                // Of a write that failed, or the log lacks a page.
                tracing::warn!(?place, ?granules, "an entry of the log was passed over");
            }
        }
        self.log_findings = findings;
    }
}

fn finding(record: String, problem: String) -> Finding {
    Finding {
        record,
        problem,
        action: "nothing; the last writes before the crash may be missing there".to_owned(),
        volumes: Vec::new(),
    }
}

impl Replay {
    /// Puts a slot back; one in which nothing is written any more gives its cluster up.
    fn put(&mut self, place: Place, mut slot: Slot) {
        if slot.written.is_empty()
            && let Some(cluster) = slot.cluster.take()
            && !cluster.is_lost()
        {
            self.last.insert(cluster, place);
        }
        let old = self.slots.insert(place, slot);
        if let Some(cluster) = old.and_then(|old| old.cluster)
            && slot.cluster.is_some_and(|new| new != cluster)
        {
            self.last.insert(cluster, place);
        }
    }

    /// A later change has put these granules right.
    fn settle(&mut self, place: Place, granules: Granules) {
        if let Some(passed) = self.passed.get_mut(&place) {
            *passed = passed.minus(granules);
        }
    }
}

impl Slot {
    fn of(content: &SlotContent, whole: Granules) -> Self {
        let (written, zero) = match *content {
            SlotContent::Empty => (Granules::NONE, Granules::NONE),
            SlotContent::Full(_) => (whole, Granules::NONE),
            SlotContent::Zero => (Granules::NONE, whole),
            SlotContent::Partial { written, zero, .. } => (written, zero),
        };
        Self {
            cluster: content.cluster(),
            written,
            zero,
        }
    }

    fn content(&self, whole: Granules) -> SlotContent {
        match self.cluster {
            Some(cluster) if self.written == whole => SlotContent::Full(cluster),
            None if self.zero == whole => SlotContent::Zero,
            None if self.zero.is_empty() => SlotContent::Empty,
            cluster => SlotContent::Partial {
                cluster,
                written: self.written,
                zero: self.zero,
            },
        }
    }
}
