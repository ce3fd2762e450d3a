//! The log of first writes: changes of maps are on the device before a host is told of them.
//!
//! What changes a map (a first write, zeroes) is acknowledged before the next commit has it. Should the
//! program die in between, the pages of the log tell: [`super::replay`] reads them when the pool is opened.
//!
//! The log is a ring of pages, one logical block of the device each. Channels take pages by their numbers
//! from one counter, without a lock, and write them by themselves; a page is free again once a commit covers
//! it and nothing writes to it any more. When there is none the channel asks for a commit and waits for it.
//!
//! A page carries the epoch of its time. The commit that begins epoch `e` covers all pages of earlier ones:
//! their changes pass the [`Gate`] before the commit looks at the maps, or are written to the log again with
//! the new epoch first. So nothing is seen in a map that neither a commit nor the log has.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::{Extent, LogEntry, LogHeader, Superblock, encode_log_page, log_entries_max};
use crate::map::{Gate, GateSide, Granularity};

/// Bytes of a log when nothing else is said, and the most that one has.
pub(crate) const LOG_BYTES_MAX: u64 = 4 << 20;
/// A log is at most this share of its pool.
const LOG_SHARE: u64 = 64;

/// The ring, and how far it is.
#[derive(Debug)]
pub(crate) struct WriteLog {
    pool_uuid: [u8; 16],
    page_bytes: usize,
    /// First block of the device.
    first_block: u64,
    pages: u64,
    pub(crate) gate: Arc<Gate>,
    /// Number of the next page.
    head: AtomicU64,
    /// Pages from here on may not be written over.
    tail: AtomicU64,
    /// Pages before this are covered by a commit.
    covered: AtomicU64,
    /// Epoch of the last commit.
    committed: AtomicU64,
    /// One more than the highest epoch of a change that is in a map.
    applied: AtomicU64,
    /// Places of the ring that the device may still write to, for nobody waits for it.
    stuck: Mutex<HashSet<u64>>,
    stuck_count: AtomicU64,
    /// Channels whose pages a commit overtook, until their changes are in the maps.
    pub(crate) overtaken: AtomicU64,
    /// The device keeps what it has acknowledged when its power goes.
    pub(crate) survives_power_loss: bool,
}

/// Consecutive pages of the ring, to be written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogPages {
    /// Number of the first.
    pub(crate) first: u64,
    /// How many; at least 1.
    pub(crate) count: u64,
    /// So many pages are in use that a commit should not be far.
    pub(crate) is_filling: bool,
}

impl WriteLog {
    /// Clusters of a log of `bytes` bytes, for a pool of `pool_bytes`.
    pub(crate) fn clusters(bytes: u64, pool_bytes: u64, granularity: Granularity) -> u64 {
        let bytes = bytes.min(LOG_BYTES_MAX).min(pool_bytes / LOG_SHARE);
        (bytes / granularity.cluster_size()).max(1)
    }

    /// The log of a pool, if it has one. The next page is number `head`, and those from `tail` on are in use.
    pub(crate) fn new(
        superblock: &Superblock,
        survives_power_loss: bool,
        committed: u64,
        epoch: u64,
        pages: std::ops::Range<u64>,
    ) -> Option<Self> {
        let extent = superblock.log?;
        Some(Self {
            pool_uuid: superblock.pool_uuid,
            page_bytes: superblock.block_size as usize,
            first_block: first_byte(extent, superblock) / u64::from(superblock.block_size),
            pages: log_bytes(extent, superblock) / u64::from(superblock.block_size),
            gate: Gate::new(epoch),
            head: AtomicU64::new(pages.end),
            tail: AtomicU64::new(pages.start),
            covered: AtomicU64::new(pages.start),
            committed: AtomicU64::new(committed),
            applied: AtomicU64::new(if pages.is_empty() { 0 } else { epoch + 1 }),
            stuck: Mutex::default(),
            stuck_count: AtomicU64::new(0),
            overtaken: AtomicU64::new(0),
            survives_power_loss,
        })
    }

    /// Entries that fit into a page.
    pub(crate) fn entries_per_page(&self) -> usize {
        log_entries_max(self.page_bytes)
    }

    /// Bytes of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Block of the device at which a page lies.
    pub(crate) fn block_of(&self, number: u64) -> u64 {
        self.first_block + number % self.pages
    }

    /// Takes up to `wanted` pages that lie behind one another; none if all are in use.
    ///
    /// The caller has looked at the epoch before: a commit that begins meanwhile must not take pages for
    /// covered that will carry its own.
    pub(crate) fn take(&self, wanted: u64) -> Option<LogPages> {
        loop {
            let first = self.head.load(Ordering::Relaxed);
            // A head that was read too early fails below.
            let used = first.saturating_sub(self.tail.load(Ordering::Acquire));
            let count = wanted
                .min(self.pages.saturating_sub(used))
                .min(self.pages - first % self.pages);
            if count == 0 {
                return None;
            }
            // Release: who sees the new head sees that a page is being written, and had its epoch read.
            let taken = self.head.compare_exchange_weak(
                first,
                first + count,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if taken.is_err() || self.is_stuck(first, count) {
                continue;
            }
            let half = self.pages / 2;
            return Some(LogPages {
                first,
                count,
                is_filling: used < half && used + count >= half,
            });
        }
    }

    /// As [`Self::take`], for a channel: says first that it may be writing.
    pub(crate) fn take_for(&self, side: &GateSide, is_idle: bool, wanted: u64) -> Option<LogPages> {
        if is_idle {
            side.set_oldest(self.head.load(Ordering::Relaxed));
        }
        let taken = self.take(wanted);
        if is_idle && taken.is_none() {
            side.clear_oldest();
        }
        taken
    }

    /// Fills `bytes` with pages of these numbers and as many entries as there are.
    pub(crate) fn encode(
        &self,
        pages: LogPages,
        epoch: u64,
        entries: &[LogEntry],
        bytes: &mut [u8],
    ) {
        let mut rest = entries;
        for (number, page) in (pages.first..).zip(bytes.chunks_exact_mut(self.page_bytes)) {
            let (here, others) = rest.split_at(rest.len().min(self.entries_per_page()));
            rest = others;
            let header = LogHeader {
                pool_uuid: self.pool_uuid,
                epoch,
                number,
            };
            encode_log_page(&header, here, page);
        }
        debug_assert!(rest.is_empty(), "more entries than pages");
    }

    /// A change with this epoch is in a map now.
    pub(crate) fn has_applied(&self, epoch: u64) {
        if self.applied.load(Ordering::Relaxed) <= epoch {
            self.applied.fetch_max(epoch + 1, Ordering::SeqCst);
        }
    }

    /// Is a change in a map that no commit has?
    pub(crate) fn is_uncommitted(&self) -> bool {
        self.applied.load(Ordering::SeqCst) > self.committed.load(Ordering::SeqCst)
    }

    /// Does a commit cover all pages that were ever taken?
    pub(crate) fn is_covered(&self) -> bool {
        self.head.load(Ordering::Acquire) == self.covered.load(Ordering::Relaxed)
    }

    /// A commit begins: its epoch, and the number before which it covers all pages.
    pub(crate) fn begin_commit(&self) -> (u64, u64) {
        // First: a page that is taken now may have the new epoch.
        let head = self.head.load(Ordering::Acquire);
        (self.gate.advance(), head)
    }

    /// It has ended well.
    pub(crate) fn end_commit(&self, epoch: u64, head: u64) {
        self.committed.store(epoch, Ordering::SeqCst);
        self.covered.store(head, Ordering::Relaxed);
        self.free_pages();
    }

    /// Frees what is covered and not being written. True if there are free pages.
    pub(crate) fn free_pages(&self) -> bool {
        let tail = self.gate.oldest(self.covered.load(Ordering::Relaxed));
        // It never goes back: a channel may say that it is as old as it was when the tail was read.
        let tail = self.tail.fetch_max(tail, Ordering::AcqRel).max(tail);
        self.head.load(Ordering::Relaxed) - tail < self.pages
    }

    /// The device may still write to these pages, and nobody will know when it has.
    pub(crate) fn abandon(&self, pages: LogPages) {
        let mut stuck = self.stuck();
        stuck.extend((pages.first..pages.first + pages.count).map(|number| number % self.pages));
        self.stuck_count.store(stuck.len() as u64, Ordering::SeqCst);
    }

    /// May the device still write to all of them?
    pub(crate) fn is_lost(&self) -> bool {
        self.stuck_count.load(Ordering::SeqCst) == self.pages
    }

    /// Rarely more than a look at the count.
    fn is_stuck(&self, first: u64, count: u64) -> bool {
        if self.stuck_count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let stuck = self.stuck();
        (first..first + count).any(|number| stuck.contains(&(number % self.pages)))
    }

    fn stuck(&self) -> MutexGuard<'_, HashSet<u64>> {
        // A panic while it was held left a plain set behind.
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// First byte of a log on the device.
pub(super) fn first_byte(extent: Extent, superblock: &Superblock) -> u64 {
    extent.start * superblock.granularity.cluster_size()
}

/// Bytes of a log that are used.
pub(super) fn log_bytes(extent: Extent, superblock: &Superblock) -> u64 {
    (extent.clusters * superblock.granularity.cluster_size()).min(LOG_BYTES_MAX)
}
