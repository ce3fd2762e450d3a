//! A piece: 128 slots of one layer, shared by all threads.
//!
//! # A first write
//! 1. [`Piece::lock`] the granules; if somebody has one, try again at the next poll.
//! 2. [`Piece::look`]: granules that were written in between need no lock but do no harm; if the
//!    slot has no cluster, [`Piece::allocate`] one, and put one's own back if the race is lost.
//!    The lock keeps the cluster in the slot.
//! 3. Fill what the write leaves of its granules from the parent, write the data.
//! 4. [`Piece::complete_write`], or [`Piece::unlock`] if the write failed.
//!
//! Writes to granules that are written already touch none of this.
//!
//! # What changes give back
//! A [`Change`] tells whether a cluster came free (to quarantine: I/O that looked earlier may still
//! be on its way to it) and whether the piece must be queued for the next commit.

use std::sync::OnceLock;

use thiserror::Error;

use super::atomic::{AtomicU64, Ordering};
use super::granule::{Granularity, GranuleRange, Granules};
use super::slot::{
    Bitmaps, Busy, Cluster, Draft, Look, Slot, SlotContent, Source, State, entry_without_bitmaps,
    full_cluster, look_at_entry,
};

/// Slots of a piece.
pub const PIECE_SLOTS: usize = 128;

/// A slot's content that cannot be put into the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PieceError {
    /// A granule of the slot is locked; try again at the next poll.
    #[error("slot {slot} is in use by a first write")]
    Busy {
        /// Index in the piece.
        slot: usize,
    },
    /// The slot has content of its own.
    #[error("slot {slot} is not empty")]
    NotEmpty {
        /// Index in the piece.
        slot: usize,
    },
    /// Granules both written and zero, or past the cluster's end, or written without a cluster, or
    /// a cluster with nothing written.
    #[error("slot {slot} has bitmaps that contradict each other")]
    Contradiction {
        /// Index in the piece.
        slot: usize,
    },
    /// More contents than slots.
    #[error("{contents} slots in a piece of {PIECE_SLOTS}")]
    TooManySlots {
        /// Contents given.
        contents: usize,
    },
}

/// What a change of a slot means for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "a freed cluster goes to quarantine, and a piece to be queued would never be committed"]
pub struct Change {
    /// The slot's cluster, if the slot gave it up.
    pub freed: Option<Cluster>,
    /// No granule of the slot is read from the parent any more.
    pub covers: bool,
    /// The piece was clean: put it on the list of dirty pieces.
    pub queue: bool,
}

/// 128 consecutive slots of a layer.
#[derive(Debug)]
pub struct Piece {
    whole: Granules,
    dirty: AtomicU64,
    /// How often it is held. See [`Piece::hold`].
    held: AtomicU64,
    entries: [AtomicU64; PIECE_SLOTS],
    /// Made when the first slot needs it: 14 KiB that a piece of full clusters does without.
    bitmaps: OnceLock<Box<[Bitmaps]>>,
}

impl Piece {
    /// A clean piece of empty slots.
    #[must_use]
    pub fn new(granularity: Granularity) -> Self {
        Self {
            whole: granularity.whole().into(),
            dirty: AtomicU64::new(0),
            held: AtomicU64::new(0),
            entries: std::array::from_fn(|_| AtomicU64::new(0)),
            bitmaps: OnceLock::new(),
        }
    }

    /// A clean piece with the given slots; those that are not given are empty.
    ///
    /// # Errors
    /// [`PieceError::Contradiction`] and [`PieceError::TooManySlots`]: the record is damaged.
    pub fn from_contents(
        granularity: Granularity,
        contents: &[SlotContent],
    ) -> Result<Self, PieceError> {
        if contents.len() > PIECE_SLOTS {
            return Err(PieceError::TooManySlots {
                contents: contents.len(),
            });
        }
        let piece = Self::new(granularity);
        for (slot, content) in contents.iter().enumerate() {
            let state = State::from_content(content, piece.whole)
                .ok_or(PieceError::Contradiction { slot })?;
            match entry_without_bitmaps(content) {
                Some(entry) => piece.entries[slot].store(entry, Ordering::Release),
                None => piece.slot(slot).change(|draft| draft.state = state),
            }
        }
        Ok(piece)
    }

    /// The slot's cluster, if the slot is full: one atomic load and no more.
    ///
    /// # Panics
    /// If `slot` is not below [`PIECE_SLOTS`].
    #[must_use]
    #[inline]
    pub fn full(&self, slot: usize) -> Option<Cluster> {
        full_cluster(self.entries[slot].load(Ordering::Acquire))
    }

    /// What a slot says now, as of one moment. One atomic load unless it is partial.
    ///
    /// # Panics
    /// As all calls with a slot: if `slot` is not below [`PIECE_SLOTS`].
    #[must_use]
    #[inline]
    pub fn look(&self, slot: usize) -> Look {
        match look_at_entry(self.entries[slot].load(Ordering::Acquire)) {
            Some(look) => look,
            None => self.slot(slot).look(),
        }
    }

    /// Stretches of `granules` and where each is read from, as of one moment.
    pub fn look_runs(
        &self,
        slot: usize,
        granules: GranuleRange,
    ) -> impl Iterator<Item = (GranuleRange, Source)> + use<> {
        self.look(slot).runs(granules)
    }

    /// Locks all of `granules` for a first write, or none of them if one is locked already.
    #[must_use]
    pub fn lock(&self, slot: usize, granules: Granules) -> bool {
        debug_assert!(
            self.whole.contains(granules),
            "granules past the cluster's end"
        );
        self.slot(slot).change(|draft| {
            let free = !draft.locked.intersects(granules);
            if free {
                draft.locked = draft.locked.or(granules);
            }
            free
        })
    }

    /// Gives `granules` back unwritten, after a write that failed.
    ///
    /// The slot gives its cluster up if nothing is written in it and nobody else is about to.
    pub fn unlock(&self, slot: usize, granules: Granules) -> Change {
        let whole = self.whole;
        // Nothing that a commit would store changes here: the piece stays as dirty as it was.
        self.slot(slot).change(|draft| {
            draft.locked = draft.locked.minus(granules);
            Change {
                freed: release(draft),
                covers: draft.state.covers(whole),
                queue: false,
            }
        })
    }

    /// Gives the slot a cluster. The caller holds a lock on one of its granules.
    ///
    /// # Errors
    /// The slot's cluster, if it has one already: use that, and put `cluster` back.
    pub fn allocate(&self, slot: usize, cluster: Cluster) -> Result<(), Cluster> {
        self.slot(slot).change(|draft| {
            debug_assert!(
                !draft.locked.is_empty(),
                "a cluster for a slot that nobody locked"
            );
            match draft.state.cluster {
                Some(winner) => Err(winner),
                None => {
                    draft.state.cluster = Some(cluster);
                    Ok(())
                }
            }
        })
    }

    /// The data of `granules`, which the caller locked, is on the base device.
    pub fn complete_write(&self, slot: usize, granules: Granules) -> Change {
        let covers = self.slot(slot).change(|draft| {
            debug_assert!(
                draft.locked.contains(granules),
                "a write that locked nothing"
            );
            debug_assert!(draft.state.cluster.is_some(), "a write to no cluster");
            draft.locked = draft.locked.minus(granules);
            if draft.state.cluster.is_some() {
                draft.state.written = draft.state.written.or(granules);
                draft.state.zero = draft.state.zero.minus(granules);
            }
            draft.state.covers(self.whole)
        });
        Change {
            freed: None,
            covers,
            queue: self.mark_dirty(),
        }
    }

    /// Makes `granules` read as zeroes: hidden if the layer `has_parent`, else just not there.
    ///
    /// The slot gives its cluster up if nothing is written in it and nobody is about to.
    ///
    /// # Errors
    /// [`Busy`] if one of them is locked: its write comes first.
    pub fn zero(&self, slot: usize, granules: Granules, has_parent: bool) -> Result<Change, Busy> {
        debug_assert!(
            self.whole.contains(granules),
            "granules past the cluster's end"
        );
        let outcome = self.slot(slot).change(|draft| {
            if draft.locked.intersects(granules) {
                return Err(Busy);
            }
            let before = draft.state;
            draft.state.written = before.written.minus(granules);
            draft.state.zero = if has_parent {
                before.zero.or(granules)
            } else {
                before.zero.minus(granules)
            };
            let freed = release(draft);
            Ok((freed, draft.state.covers(self.whole), draft.state != before))
        });
        let (freed, covers, changed) = outcome?;
        Ok(Change {
            freed,
            covers,
            queue: changed && self.mark_dirty(),
        })
    }

    /// Would [`Self::complete_zero`] of these change anything?
    #[must_use]
    pub fn is_changed_by_zero(&self, slot: usize, granules: Granules, has_parent: bool) -> bool {
        let (written, zero) = match self.look(slot) {
            Look::Whole(Source::Own(_)) => (self.whole, Granules::NONE),
            Look::Whole(Source::Zero) => (Granules::NONE, self.whole),
            Look::Whole(Source::Parent) => (Granules::NONE, Granules::NONE),
            Look::Mixed { written, zero, .. } => (written, zero),
        };
        written.intersects(granules) || (has_parent && !zero.contains(granules))
    }

    /// As [`Self::zero`], of granules that the caller has locked: the lock goes.
    pub fn complete_zero(&self, slot: usize, granules: Granules, has_parent: bool) -> Change {
        let (freed, covers) = self.slot(slot).change(|draft| {
            debug_assert!(
                draft.locked.contains(granules),
                "zeroes where nothing was locked"
            );
            draft.locked = draft.locked.minus(granules);
            draft.state.written = draft.state.written.minus(granules);
            draft.state.zero = if has_parent {
                draft.state.zero.or(granules)
            } else {
                draft.state.zero.minus(granules)
            };
            (release(draft), draft.state.covers(self.whole))
        });
        Change {
            freed,
            covers,
            queue: self.mark_dirty(),
        }
    }

    /// To be called before the piece is changed in a way that only the next commit makes durable, or if the
    /// log may say what is not: no first write and no zeroes begin here until [`Self::let_go`], for what they
    /// would log rests on it. Who looks after having locked a granule sees it, or keeps the slot's cluster in
    /// its place by the lock.
    pub fn hold(&self) {
        self.held.fetch_add(1, Ordering::AcqRel);
    }

    /// What was changed is committed.
    pub fn let_go(&self) {
        self.held.fetch_sub(1, Ordering::AcqRel);
    }

    /// Do first writes and zeroes wait for a commit?
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire) != 0
    }

    /// Makes those of `granules` read as zeroes that are still read from the parent. What somebody has
    /// written meanwhile stays.
    ///
    /// # Errors
    /// [`Busy`] if one of them is locked: its write comes first.
    pub fn zero_missing(&self, slot: usize, granules: Granules) -> Result<Change, Busy> {
        let outcome = self.slot(slot).change(|draft| {
            if draft.locked.intersects(granules) {
                return Err(Busy);
            }
            let before = draft.state;
            let covered = before.written.or(before.zero);
            draft.state.zero = before.zero.or(granules.minus(covered));
            Ok((draft.state.covers(self.whole), draft.state != before))
        });
        let (covers, changed) = outcome?;
        Ok(Change {
            freed: None,
            covers,
            queue: changed && self.mark_dirty(),
        })
    }

    /// Empties the slot and returns what was in it, to give it to another layer's.
    ///
    /// Give first, wait a grace period, take then: who has looked at the child before must still
    /// find it in the parent.
    ///
    /// # Errors
    /// [`Busy`] if a granule is locked.
    pub fn take(&self, slot: usize) -> Result<(SlotContent, Change), Busy> {
        let content = self.slot(slot).change(|draft| {
            if !draft.locked.is_empty() {
                return Err(Busy);
            }
            let content = draft.state.content(self.whole);
            draft.state = State::EMPTY;
            Ok(content)
        })?;
        let queue = content != SlotContent::Empty && self.mark_dirty();
        Ok((
            content,
            Change {
                freed: None,
                covers: false,
                queue,
            },
        ))
    }

    /// Puts `content` into an empty slot.
    ///
    /// # Errors
    /// [`PieceError::Busy`], [`PieceError::NotEmpty`], [`PieceError::Contradiction`].
    pub fn give(&self, slot: usize, content: &SlotContent) -> Result<Change, PieceError> {
        let state =
            State::from_content(content, self.whole).ok_or(PieceError::Contradiction { slot })?;
        self.slot(slot).change(|draft| {
            if !draft.locked.is_empty() {
                return Err(PieceError::Busy { slot });
            }
            if draft.state != State::EMPTY {
                return Err(PieceError::NotEmpty { slot });
            }
            draft.state = state;
            Ok(())
        })?;
        let queue = state != State::EMPTY && self.mark_dirty();
        Ok(Change {
            freed: None,
            covers: state.covers(self.whole),
            queue,
        })
    }

    /// The slot's content as of one moment, to be encoded. Only completed writes are in it.
    #[must_use]
    pub fn snapshot_slot(&self, slot: usize) -> SlotContent {
        match self.look(slot) {
            Look::Whole(Source::Own(cluster)) => SlotContent::Full(cluster),
            Look::Whole(Source::Zero) => SlotContent::Zero,
            Look::Whole(Source::Parent) => SlotContent::Empty,
            Look::Mixed {
                cluster,
                written,
                zero,
            } => State {
                cluster,
                written,
                zero,
            }
            .content(self.whole),
        }
    }

    /// No slot has anything: the piece may be left out of chains. Only a moment's answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| entry.load(Ordering::Acquire) == 0)
    }

    /// Marks the piece for the next commit. True if it was clean: the caller queues it.
    ///
    /// Every change does this by itself, see [`Change::queue`].
    #[must_use]
    pub fn mark_dirty(&self) -> bool {
        // A swap also when it is dirty already: it is ordered with the committer's. Either that
        // comes later, and sees the change before this mark, or this one is told to queue.
        self.dirty.swap(1, Ordering::AcqRel) == 0
    }

    /// Marks the piece clean. True if it was dirty. What was marked before is seen by
    /// [`Piece::snapshot_slot`] after this; what changes later marks the piece again.
    pub fn mark_clean(&self) -> bool {
        self.dirty.swap(0, Ordering::AcqRel) == 1
    }

    /// Has a change not been committed?
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire) == 1
    }

    fn slot(&self, slot: usize) -> Slot<'_> {
        let bitmaps = self
            .bitmaps
            .get_or_init(|| (0..PIECE_SLOTS).map(|_| Bitmaps::new()).collect());
        Slot {
            entry: &self.entries[slot],
            bitmaps: &bitmaps[slot],
            whole: self.whole,
        }
    }
}

/// Takes the cluster out of a slot in which nothing is written, nor about to be.
fn release(draft: &mut Draft) -> Option<Cluster> {
    if draft.state.written.is_empty() && draft.locked.is_empty() {
        draft.state.cluster.take()
    } else {
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
