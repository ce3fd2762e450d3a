//! One slot: where the granules of one cluster of a layer are.
//!
//! The entry is one word: a tag and a cluster. FULL, ZERO and EMPTY say everything by themselves.
//! Only PARTIAL needs the bitmaps, which a sequence counter guards: a writer makes it odd, changes
//! entry and bitmaps, makes it even; a reader that saw it odd or changed reads again. Everything is
//! an atomic, so that a torn read is merely thrown away.
//!
//! What holds between two changes, `whole` being all granules of a cluster:
//! - no granule is both written and zero;
//! - EMPTY: none is either. FULL: all are written. ZERO: all are zero;
//! - PARTIAL without a cluster (number 0, the pool's header): none is written, some are zero;
//! - a granule may be locked in any state; a slot with a locked granule keeps its cluster.

use std::num::NonZeroU64;

use thiserror::Error;

use super::atomic::{AtomicU64, Ordering, fence};
use super::granule::{GranuleRange, Granules, WORDS};

/// Turns of a spin before the thread yields its processor to the writer that may need it.
#[cfg(not(loom))]
const SPINS: u32 = 64;

/// Number of a cluster on the base device. Cluster 0 is the pool's header and holds no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cluster(u64);

impl Cluster {
    /// Largest number: the entry of a slot has 62 bits for it.
    pub const MAX: u64 = u64::MAX >> 2;

    /// Stands for data that are lost: a slot that has it can be neither read nor written until it is zeroed.
    /// Beyond every pool, and its bytes can still be counted.
    pub const LOST: Self = Self(1 << 38);

    /// Does it stand for lost data?
    #[must_use]
    pub const fn is_lost(self) -> bool {
        self.0 == Self::LOST.0
    }

    /// Cluster `number`; `None` for the header and for numbers past [`Self::MAX`].
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number == 0 || number > Self::MAX {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number, as what it never is 0.
    #[must_use]
    pub fn number(self) -> NonZeroU64 {
        NonZeroU64::new(self.0).expect("no cluster is 0: `new` makes none")
    }
}

/// Another thread holds a lock on a granule, or the slot is not what the call needs: try again
/// at the next poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a granule is locked by another i/o")]
pub struct Busy;

/// Where a granule is read from, as far as one layer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The layer's own cluster, at the granule's place in it.
    Own(Cluster),
    /// Zeroes.
    Zero,
    /// Whatever the parent has.
    Parent,
}

/// What a slot said at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Every granule is from the same source.
    Whole(Source),
    /// Granules differ, or may.
    Mixed {
        /// The slot's cluster, if it has one. Without one nothing is written.
        cluster: Option<Cluster>,
        /// Granules in the cluster.
        written: Granules,
        /// Granules that are zeroes.
        zero: Granules,
    },
}

impl Look {
    /// Source of one granule.
    #[must_use]
    pub const fn source(&self, granule: u16) -> Source {
        match *self {
            Self::Whole(source) => source,
            Self::Mixed {
                cluster: Some(cluster),
                written,
                ..
            } if written.test(granule) => Source::Own(cluster),
            Self::Mixed { zero, .. } if zero.test(granule) => Source::Zero,
            Self::Mixed { .. } => Source::Parent,
        }
    }

    /// The slot's cluster, if it has one.
    #[must_use]
    pub const fn cluster(&self) -> Option<Cluster> {
        match *self {
            Self::Whole(Source::Own(cluster)) => Some(cluster),
            Self::Whole(_) => None,
            Self::Mixed { cluster, .. } => cluster,
        }
    }

    /// Stretches of `range` from one source each, in rising order.
    #[must_use]
    pub const fn runs(self, range: GranuleRange) -> LookRuns {
        LookRuns {
            look: self,
            at: range.start,
            end: range.end,
        }
    }
}

/// Iterator over stretches of one source, see [`Look::runs`].
#[derive(Debug, Clone)]
pub struct LookRuns {
    look: Look,
    at: u16,
    end: u16,
}

impl Iterator for LookRuns {
    type Item = (GranuleRange, Source);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let start = self.at;
        let source = self.look.source(start);
        self.at = if matches!(self.look, Look::Whole(_)) {
            self.end
        } else {
            (start + 1..self.end)
                .find(|granule| self.look.source(*granule) != source)
                .unwrap_or(self.end)
        };
        Some((GranuleRange::new(start, self.at), source))
    }
}

/// A slot's content by value: what is encoded, decoded, and moved between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlotContent {
    /// Nothing: all is the parent's.
    #[default]
    Empty,
    /// Every granule is in the cluster.
    Full(Cluster),
    /// Every granule is zeroes.
    Zero,
    /// The bitmaps tell.
    Partial {
        /// The cluster, if anything is written.
        cluster: Option<Cluster>,
        /// Granules in the cluster.
        written: Granules,
        /// Granules that are zeroes.
        zero: Granules,
    },
}

impl SlotContent {
    /// The cluster, if there is one.
    #[must_use]
    pub const fn cluster(&self) -> Option<Cluster> {
        match *self {
            Self::Full(cluster) => Some(cluster),
            Self::Partial { cluster, .. } => cluster,
            Self::Empty | Self::Zero => None,
        }
    }

    /// The cluster of the device, if there is one: not what is lost.
    #[must_use]
    pub fn data_cluster(&self) -> Option<Cluster> {
        self.cluster().filter(|cluster| !cluster.is_lost())
    }
}

/// Tag and cluster in one word: the two low bits are the tag.
mod entry {
    pub(super) const EMPTY: u64 = 0;
    pub(super) const FULL: u64 = 1;
    pub(super) const PARTIAL: u64 = 2;
    pub(super) const ZERO: u64 = 3;

    pub(super) const fn tag(entry: u64) -> u64 {
        entry & 3
    }
}

/// A slot's state by value, with the invariants of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) cluster: Option<Cluster>,
    pub(super) written: Granules,
    pub(super) zero: Granules,
}

impl State {
    pub(super) const EMPTY: Self = Self {
        cluster: None,
        written: Granules::NONE,
        zero: Granules::NONE,
    };

    /// Is no granule read from the parent?
    pub(super) fn covers(&self, whole: Granules) -> bool {
        self.written.or(self.zero) == whole
    }

    fn entry(&self, whole: Granules) -> u64 {
        match self.cluster {
            Some(Cluster(number)) if self.written == whole => number << 2 | entry::FULL,
            Some(Cluster(number)) => number << 2 | entry::PARTIAL,
            None if self.zero == whole => entry::ZERO,
            None if self.zero.is_empty() => entry::EMPTY,
            None => entry::PARTIAL,
        }
    }

    /// What to encode: a cluster that nothing is written in is not there.
    pub(super) fn content(&self, whole: Granules) -> SlotContent {
        let cluster = self.cluster.filter(|_| !self.written.is_empty());
        match cluster {
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

    /// The state that `content` says; `None` if it breaks an invariant.
    pub(super) fn from_content(content: &SlotContent, whole: Granules) -> Option<Self> {
        Some(match *content {
            SlotContent::Empty => Self::EMPTY,
            SlotContent::Full(cluster) => Self {
                cluster: Some(cluster),
                written: whole,
                zero: Granules::NONE,
            },
            SlotContent::Zero => Self {
                zero: whole,
                ..Self::EMPTY
            },
            SlotContent::Partial {
                cluster,
                written,
                zero,
            } => {
                let sound = !written.intersects(zero)
                    && whole.contains(written.or(zero))
                    && cluster.is_some() != written.is_empty();
                return sound.then_some(Self {
                    cluster,
                    written,
                    zero,
                });
            }
        })
    }
}

/// What a writer may change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draft {
    pub(super) state: State,
    pub(super) locked: Granules,
}

/// Bitmaps of a slot and the sequence counter that guards them together with the entry.
#[derive(Debug)]
pub(super) struct Bitmaps {
    /// Odd while a writer is at work.
    sequence: AtomicU64,
    written: [AtomicU64; WORDS],
    zero: [AtomicU64; WORDS],
    locked: [AtomicU64; WORDS],
}

impl Bitmaps {
    pub(super) fn new() -> Self {
        let words = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            sequence: AtomicU64::new(0),
            written: words(),
            zero: words(),
            locked: words(),
        }
    }
}

/// What an entry says without the bitmaps; `None` if it needs them.
pub(super) fn look_at_entry(entry: u64) -> Option<Look> {
    match entry::tag(entry) {
        entry::FULL => Some(Look::Whole(Source::Own(Cluster(entry >> 2)))),
        entry::ZERO => Some(Look::Whole(Source::Zero)),
        entry::EMPTY => Some(Look::Whole(Source::Parent)),
        _ => None,
    }
}

/// The cluster of an entry that is full.
#[inline]
pub(super) fn full_cluster(entry: u64) -> Option<Cluster> {
    (entry::tag(entry) == entry::FULL).then_some(Cluster(entry >> 2))
}

/// Entry of a slot that has no bitmaps yet, and so no lock and nothing partial.
pub(super) fn entry_without_bitmaps(content: &SlotContent) -> Option<u64> {
    match *content {
        SlotContent::Empty => Some(entry::EMPTY),
        SlotContent::Full(Cluster(number)) => Some(number << 2 | entry::FULL),
        SlotContent::Zero => Some(entry::ZERO),
        SlotContent::Partial { .. } => None,
    }
}

/// A slot in its piece: entry, bitmaps, and all granules of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) entry: &'a AtomicU64,
    pub(super) bitmaps: &'a Bitmaps,
    pub(super) whole: Granules,
}

impl Slot<'_> {
    /// What the slot says now.
    pub(super) fn look(self) -> Look {
        let mut spins = 0;
        loop {
            // Most slots are not partial: one load, no counter.
            if let Some(look) = look_at_entry(self.entry.load(Ordering::Acquire)) {
                return look;
            }
            if let Some(look) = self.try_look_partial() {
                return look;
            }
            pause(&mut spins);
        }
    }

    fn try_look_partial(self) -> Option<Look> {
        let before = self.bitmaps.sequence.load(Ordering::Acquire);
        if before % 2 == 1 {
            return None;
        }
        let entry = self.entry.load(Ordering::Relaxed);
        let written = load(&self.bitmaps.written);
        let zero = load(&self.bitmaps.zero);
        // The loads above are done before the counter is read again.
        fence(Ordering::Acquire);
        if self.bitmaps.sequence.load(Ordering::Relaxed) != before {
            return None;
        }
        Some(look_at_entry(entry).unwrap_or(Look::Mixed {
            cluster: Cluster::new(entry >> 2),
            written,
            zero,
        }))
    }

    /// Changes the slot while no other writer does. `change` must be short and do no I/O.
    pub(super) fn change<T>(self, change: impl FnOnce(&mut Draft) -> T) -> T {
        let odd = self.begin();
        let mut draft = self.draft();
        let before = draft;
        let result = change(&mut draft);
        self.store(&before, &draft);
        self.bitmaps.sequence.store(odd + 1, Ordering::Release);
        result
    }

    /// Makes the counter odd; waits for the writer that has it.
    fn begin(self) -> u64 {
        let mut spins = 0;
        loop {
            let even = self.bitmaps.sequence.load(Ordering::Relaxed);
            if even.is_multiple_of(2)
                && self
                    .bitmaps
                    .sequence
                    .compare_exchange_weak(even, even + 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                // A reader that sees any store below also sees the odd counter.
                fence(Ordering::Release);
                return even + 1;
            }
            pause(&mut spins);
        }
    }

    /// Only for the writer that made the counter odd.
    fn draft(self) -> Draft {
        let entry = self.entry.load(Ordering::Relaxed);
        let state = match look_at_entry(entry) {
            Some(Look::Whole(Source::Own(cluster))) => State {
                cluster: Some(cluster),
                written: self.whole,
                zero: Granules::NONE,
            },
            Some(Look::Whole(Source::Zero)) => State {
                zero: self.whole,
                ..State::EMPTY
            },
            Some(_) => State::EMPTY,
            None => State {
                cluster: Cluster::new(entry >> 2),
                written: load(&self.bitmaps.written),
                zero: load(&self.bitmaps.zero),
            },
        };
        Draft {
            state,
            locked: load(&self.bitmaps.locked),
        }
    }

    fn store(self, before: &Draft, after: &Draft) {
        if before.locked != after.locked {
            store(&self.bitmaps.locked, after.locked);
        }
        if before.state == after.state {
            return;
        }
        // Also for a slot that is not partial any more: the words must not lag behind the state
        // when it becomes partial again, and it is cheaper than to tell the cases apart.
        store(&self.bitmaps.written, after.state.written);
        store(&self.bitmaps.zero, after.state.zero);
        // Release: who reads FULL sees the data's write as completed.
        self.entry
            .store(after.state.entry(self.whole), Ordering::Release);
    }
}

fn load(words: &[AtomicU64; WORDS]) -> Granules {
    Granules::from_words(std::array::from_fn(|word| {
        words[word].load(Ordering::Relaxed)
    }))
}

fn store(words: &[AtomicU64; WORDS], set: Granules) {
    for (word, bits) in words.iter().zip(set.words()) {
        word.store(bits, Ordering::Relaxed);
    }
}

/// The other side's section is nanoseconds long, unless its thread was taken off the processor.
fn pause(spins: &mut u32) {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    if *spins < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
    *spins = spins.saturating_add(1);
}

/// Every order of a writer and a reader, or of two writers, on one slot. Run with
/// `RUSTFLAGS="--cfg loom" cargo test -p lvol --release --lib loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    struct Cell {
        entry: AtomicU64,
        bitmaps: Bitmaps,
    }

    impl Cell {
        fn new(cluster: Option<u64>, written: &[u16]) -> Arc<Self> {
            let cell = Self {
                entry: AtomicU64::new(0),
                bitmaps: Bitmaps::new(),
            };
            cell.slot().change(|draft| {
                draft.state.cluster = cluster.and_then(Cluster::new);
                written
                    .iter()
                    .for_each(|granule| draft.state.written.set(*granule));
            });
            Arc::new(cell)
        }

        fn slot(&self) -> Slot<'_> {
            let whole = Granules::from(GranuleRange::new(0, 256));
            Slot {
                entry: &self.entry,
                bitmaps: &self.bitmaps,
                whole,
            }
        }
    }

    fn model(body: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(body);
    }

    #[test]
    fn loom_reader_sees_entry_and_bitmaps_of_one_moment() {
        model(|| {
            let cell = Cell::new(Some(1), &[0, 64]);
            // The writer is the thread that runs first: the model follows a load back to the store
            // it races with, but not a store to the loads of another thread.
            let reader = {
                let cell = Arc::clone(&cell);
                loom::thread::spawn(move || check(&cell.slot().look()))
            };
            cell.slot().change(|draft| draft.state = State::EMPTY);
            cell.slot().change(|draft| {
                draft.state.cluster = Cluster::new(2);
                draft.state.written.set(128);
            });
            reader.join().unwrap();
        });
    }

    fn check(look: &Look) {
        match *look {
            Look::Whole(source) => assert_eq!(source, Source::Parent),
            Look::Mixed {
                cluster,
                written,
                zero,
            } => {
                let runs: Vec<_> = written.runs().map(|run| run.start).collect();
                let number = cluster.map(Cluster::get);
                assert!(zero.is_empty());
                assert!(
                    matches!(
                        (number, runs.as_slice()),
                        (Some(1), [0, 64]) | (Some(2), [128])
                    ),
                    "torn: {number:?} {runs:?}"
                );
            }
        }
    }

    #[test]
    fn loom_changes_of_two_writers_are_both_kept() {
        model(|| {
            let cell = Cell::new(Some(1), &[0]);
            let writer = {
                let cell = Arc::clone(&cell);
                loom::thread::spawn(move || {
                    cell.slot().change(|draft| draft.state.written.set(1));
                })
            };
            cell.slot().change(|draft| draft.state.written.set(200));
            writer.join().unwrap();
            let Look::Mixed { written, .. } = cell.slot().look() else {
                panic!("partial slot is not mixed")
            };
            assert!(written.test(0) && written.test(1) && written.test(200));
        });
    }
}
