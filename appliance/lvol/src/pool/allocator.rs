//! Which clusters are free.
//!
//! On the device a cluster is used when a layer's map has it; that is what the chunks of the FREE
//! table say, and they change in the transaction that changes the maps. In memory more are *taken*:
//! the header, the metadata, what waits to become metadata, what was handed to channels, and what was
//! freed and may not be used again yet. After a crash those are free again by themselves.

use std::collections::{BTreeSet, HashMap};

use crate::format::{CHUNK_CLUSTERS, Extent, FreeChunk};
use crate::map::Cluster;

const WORDS: usize = (CHUNK_CLUSTERS / 64) as usize;

/// A chunk of clusters in memory.
#[derive(Debug)]
struct Chunk {
    /// As the device has it.
    used: FreeChunk,
    taken: Box<[u64; WORDS]>,
    /// Clusters that are not taken.
    free: u64,
    /// Its record cannot be read: it stays as it is until it is repaired.
    is_damaged: bool,
}

/// Free and taken clusters of a pool. Loads chunks as it needs them.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Clusters of the device, the header included.
    clusters: u64,
    chunks: HashMap<u64, Chunk>,
    /// Where the last search ended.
    cursor: u64,
    /// Clusters in maps on the device.
    used: u64,
    /// Clusters taken only in memory, and for ever: header, metadata, what waits to become metadata.
    fixed: Vec<Extent>,
    fixed_clusters: u64,
    /// Clusters handed to channels or freed and waiting.
    outstanding: u64,
}

/// Reads a chunk's record; absent is an empty one. `None` if it is damaged: nothing of it is free then.
pub(crate) trait ChunkSource {
    type Error;
    fn chunk(&mut self, number: u64) -> Result<Option<FreeChunk>, Self::Error>;
}

impl<E, F: FnMut(u64) -> Result<Option<FreeChunk>, E>> ChunkSource for F {
    type Error = E;
    fn chunk(&mut self, number: u64) -> Result<Option<FreeChunk>, E> {
        self(number)
    }
}

impl Allocator {
    /// For a device of `clusters`, `used` of which are in maps. `own` is where metadata and log lie.
    pub(crate) fn new(clusters: u64, used: u64, own: impl IntoIterator<Item = Extent>) -> Self {
        let mut allocator = Self {
            clusters,
            chunks: HashMap::new(),
            cursor: 0,
            used,
            fixed: Vec::new(),
            fixed_clusters: 0,
            outstanding: 0,
        };
        allocator.fix(Extent {
            start: 0,
            clusters: 1,
        });
        own.into_iter().for_each(|extent| allocator.fix(extent));
        allocator
    }

    /// Clusters that nothing has.
    pub(crate) fn free(&self) -> u64 {
        self.clusters
            .saturating_sub(self.used + self.fixed_clusters + self.outstanding)
    }

    /// Clusters in maps on the device.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Clusters of the device.
    pub(crate) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Clusters of the header and the metadata, its reserve included.
    pub(crate) fn fixed_clusters(&self) -> u64 {
        self.fixed_clusters
    }

    /// The device has grown to so many clusters.
    pub(crate) fn grow(&mut self, clusters: u64) {
        let before = self.clusters;
        self.clusters = before.max(clusters);
        // Chunks that are loaded hold what lay past the old end as taken.
        for cluster in before..self.clusters.min(before.next_multiple_of(CHUNK_CLUSTERS)) {
            self.clear_taken(cluster);
        }
    }

    /// Takes one cluster, or none if there is none.
    pub(crate) fn take<S: ChunkSource>(
        &mut self,
        source: &mut S,
    ) -> Result<Option<Cluster>, S::Error> {
        if self.free() == 0 {
            return Ok(None);
        }
        let chunks = self.clusters.div_ceil(CHUNK_CLUSTERS);
        for _ in 0..chunks {
            let number = self.cursor % chunks;
            let chunk = self.load(number, source)?;
            if let Some(index) = chunk.first_free() {
                chunk.set_taken(index);
                self.outstanding += 1;
                return Ok(Cluster::new(number * CHUNK_CLUSTERS + index));
            }
            self.cursor = (number + 1) % chunks;
        }
        Ok(None)
    }

    /// Takes this cluster, if nothing has it.
    pub(crate) fn take_this<S: ChunkSource>(
        &mut self,
        cluster: Cluster,
        source: &mut S,
    ) -> Result<bool, S::Error> {
        if cluster.get() >= self.clusters {
            return Ok(false);
        }
        let chunk = self.load(cluster.get() / CHUNK_CLUSTERS, source)?;
        let index = cluster.get() % CHUNK_CLUSTERS;
        if chunk.is_taken(index) {
            return Ok(false);
        }
        chunk.set_taken(index);
        self.outstanding += 1;
        Ok(true)
    }

    /// Takes up to `wanted` clusters in few runs, longest first within a chunk.
    pub(crate) fn take_extents<S: ChunkSource>(
        &mut self,
        wanted: u64,
        source: &mut S,
    ) -> Result<Vec<Extent>, S::Error> {
        let mut extents = Vec::new();
        let mut left = wanted;
        let chunks = self.clusters.div_ceil(CHUNK_CLUSTERS);
        for number in 0..chunks {
            while left > 0 {
                let chunk = self.load(number, source)?;
                let Some((start, len)) = chunk.longest_run(left) else {
                    break;
                };
                (start..start + len).for_each(|index| chunk.set_taken(index));
                extents.push(Extent {
                    start: number * CHUNK_CLUSTERS + start,
                    clusters: len,
                });
                left -= len;
            }
            if left == 0 {
                break;
            }
        }
        for extent in &extents {
            self.fixed.push(*extent);
            self.fixed_clusters += extent.clusters;
        }
        Ok(extents)
    }

    /// A cluster that was taken, or freed long enough ago, may be used again.
    pub(crate) fn release(&mut self, cluster: Cluster) {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.clear_taken(cluster.get());
    }

    /// The maps on the device will have these clusters, and those no more. Both were taken in memory
    /// and stay so; the added ones stop being outstanding, the removed ones begin.
    /// Returns the chunks' new records.
    pub(crate) fn update<S: ChunkSource>(
        &mut self,
        added: &[Cluster],
        removed: &[Cluster],
        source: &mut S,
    ) -> Result<Vec<(u64, FreeChunk)>, S::Error> {
        let mut changed = BTreeSet::new();
        for (clusters, add) in [(removed, false), (added, true)] {
            for cluster in clusters {
                let number = cluster.get() / CHUNK_CLUSTERS;
                let chunk = self.load(number, source)?;
                if chunk.is_damaged {
                    continue;
                }
                let (word, bit) = place(cluster.get());
                if add {
                    chunk.used.used[word] |= bit;
                } else {
                    chunk.used.used[word] &= !bit;
                }
                changed.insert(number);
            }
        }
        let (added, removed) = (added.len() as u64, removed.len() as u64);
        // Neither underflows unless the counters were damaged.
        self.used = (self.used + added).saturating_sub(removed);
        self.outstanding = (self.outstanding + removed).saturating_sub(added);
        let record = |number| (number, self.chunks[&number].used.clone());
        Ok(changed.into_iter().map(record).collect())
    }

    /// Does the record of its chunk say that the cluster is in a map?
    pub(crate) fn is_used<S: ChunkSource>(
        &mut self,
        cluster: Cluster,
        source: &mut S,
    ) -> Result<bool, S::Error> {
        let chunk = self.load(cluster.get() / CHUNK_CLUSTERS, source)?;
        let (word, bit) = place(cluster.get());
        Ok(chunk.used.used[word] & bit != 0)
    }

    /// What the maps have is this: the rest of a chunk that nobody holds is free. Returns how many clusters of
    /// the maps somebody else holds already; those are left as they were.
    pub(crate) fn repair_chunk<S: ChunkSource>(
        &mut self,
        number: u64,
        owned: &[u64; WORDS],
        source: &mut S,
    ) -> Result<u64, S::Error> {
        let (clusters, fixed) = (self.clusters, self.fixed.clone());
        let chunk = self.load(number, source)?;
        if chunk.is_damaged {
            let mut used = FreeChunk::default();
            used.used.copy_from_slice(owned);
            *chunk = Chunk::new(number, used, clusters, &fixed);
            return Ok(0);
        }
        let mut held = 0;
        for (word, owned) in owned.iter().enumerate() {
            let used = chunk.used.used[word];
            let free_again = used & !owned;
            let conflict = owned & !used & chunk.taken[word];
            let new = owned & !used & !conflict;
            held += u64::from(conflict.count_ones());
            chunk.used.used[word] = (used & !free_again) | new;
            chunk.taken[word] = (chunk.taken[word] & !free_again) | new;
            chunk.free += u64::from(free_again.count_ones());
            chunk.free -= u64::from(new.count_ones());
        }
        Ok(held)
    }

    /// The record of a chunk that is loaded.
    pub(crate) fn chunk_record(&self, number: u64) -> Option<&FreeChunk> {
        self.chunks.get(&number).map(|chunk| &chunk.used)
    }

    /// So many clusters are in maps.
    pub(crate) fn set_used(&mut self, used: u64) {
        self.used = used;
    }

    /// Gives clusters back that were to become metadata.
    pub(crate) fn give_back(&mut self, extents: &[Extent]) {
        for extent in extents {
            self.fixed_clusters = self.fixed_clusters.saturating_sub(extent.clusters);
            // Part of a run may have become metadata.
            let end = extent.start + extent.clusters;
            let mut kept = Vec::with_capacity(self.fixed.len() + 1);
            for fixed in self.fixed.drain(..) {
                let fixed_end = fixed.start + fixed.clusters;
                for (start, until) in [
                    (fixed.start, fixed_end.min(extent.start)),
                    (fixed.start.max(end), fixed_end),
                ] {
                    if start < until {
                        kept.push(Extent {
                            start,
                            clusters: until - start,
                        });
                    }
                }
            }
            self.fixed = kept;
            for cluster in extent.start..end {
                if let Some(chunk) = self.chunks.get_mut(&(cluster / CHUNK_CLUSTERS))
                    && !chunk.is_damaged
                {
                    let (word, bit) = place(cluster);
                    if chunk.used.used[word] & bit == 0 && chunk.taken[word] & bit != 0 {
                        chunk.taken[word] &= !bit;
                        chunk.free += 1;
                    }
                }
            }
        }
    }

    fn fix(&mut self, extent: Extent) {
        self.fixed.push(extent);
        self.fixed_clusters += extent.clusters;
    }

    fn clear_taken(&mut self, cluster: u64) {
        if let Some(chunk) = self.chunks.get_mut(&(cluster / CHUNK_CLUSTERS))
            && !chunk.is_damaged
        {
            let (word, bit) = place(cluster);
            debug_assert!(chunk.taken[word] & bit != 0, "cluster {cluster} was free");
            debug_assert!(chunk.used.used[word] & bit == 0, "{cluster} is in a map");
            chunk.taken[word] &= !bit;
            chunk.free += 1;
        }
    }

    fn load<S: ChunkSource>(
        &mut self,
        number: u64,
        source: &mut S,
    ) -> Result<&mut Chunk, S::Error> {
        if !self.chunks.contains_key(&number) {
            let used = source.chunk(number)?;
            let is_damaged = used.is_none();
            let mut chunk =
                Chunk::new(number, used.unwrap_or_default(), self.clusters, &self.fixed);
            if is_damaged {
                chunk.is_damaged = true;
                chunk.taken.fill(u64::MAX);
                chunk.free = 0;
            }
            self.chunks.insert(number, chunk);
        }
        Ok(self
            .chunks
            .get_mut(&number)
            .expect("it was there or has just been put there"))
    }
}

/// Word and bit of a cluster in its chunk.
fn place(cluster: u64) -> (usize, u64) {
    let index = cluster % CHUNK_CLUSTERS;
    ((index / 64) as usize, 1 << (index % 64))
}

impl Chunk {
    fn new(number: u64, used: FreeChunk, clusters: u64, fixed: &[Extent]) -> Self {
        let mut taken = Box::new([0; WORDS]);
        taken.copy_from_slice(&used.used[..]);
        let first = number * CHUNK_CLUSTERS;
        let end = first + CHUNK_CLUSTERS;
        for extent in fixed {
            let (from, to) = (
                extent.start.max(first),
                (extent.start + extent.clusters).min(end),
            );
            for cluster in from..to {
                let (word, bit) = place(cluster);
                taken[word] |= bit;
            }
        }
        for cluster in clusters.max(first)..end {
            let (word, bit) = place(cluster);
            taken[word] |= bit;
        }
        let count: u32 = taken.iter().map(|word: &u64| word.count_ones()).sum();
        Self {
            used,
            taken,
            free: CHUNK_CLUSTERS - u64::from(count),
            is_damaged: false,
        }
    }

    fn first_free(&self) -> Option<u64> {
        if self.free == 0 {
            return None;
        }
        let word = self.taken.iter().position(|word| *word != u64::MAX)?;
        Some(word as u64 * 64 + u64::from(self.taken[word].trailing_ones()))
    }

    /// The first run of `wanted` free clusters, or the longest there is.
    fn longest_run(&self, wanted: u64) -> Option<(u64, u64)> {
        let mut best = None;
        let mut at = 0;
        while at < CHUNK_CLUSTERS {
            if self.is_taken(at) {
                at += 1;
                continue;
            }
            let start = at;
            while at < CHUNK_CLUSTERS && at - start < wanted && !self.is_taken(at) {
                at += 1;
            }
            if best.is_none_or(|(_, len)| at - start > len) {
                best = Some((start, at - start));
            }
            if at - start == wanted {
                break;
            }
        }
        best
    }

    fn is_taken(&self, index: u64) -> bool {
        let (word, bit) = place(index);
        self.taken[word] & bit != 0
    }

    fn set_taken(&mut self, index: u64) {
        let (word, bit) = place(index);
        debug_assert!(self.taken[word] & bit == 0, "cluster {index} is taken");
        self.taken[word] |= bit;
        self.free -= 1;
    }
}
