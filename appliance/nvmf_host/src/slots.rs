//! The commands outstanding on a queue.

use std::time::Instant;

use nvme_spec::{Cid, Cqe};

use crate::buffer::Buffer;
use crate::command::Direction;

/// Bits of a CID that name the slot; the rest is the slot's generation, so that an answer to a
/// command that has ended is noticed.
const SLOT_BITS: u32 = 12;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;
/// Generations 0 to 14: a CID is never FFFFh, which means "no command" elsewhere.
const GENERATIONS: u16 = 15;
/// Most slots of a queue.
pub(crate) const MAX_SLOTS: usize = 1 << SLOT_BITS;

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No command.
    Free,
    /// Outstanding.
    Active,
    /// Answered, but its buffer is still being sent.
    Answered,
}

/// One command.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) direction: Direction,
    generation: u16,
    pub(crate) opcode: u8,
    /// C2HData with LAST_PDU has come.
    pub(crate) is_last_seen: bool,
    pub(crate) has_bad_digest: bool,
    /// Its deadline has passed once, and an Abort was asked for.
    pub(crate) is_aborting: bool,
    /// Parts of its buffer that lie in the send queue.
    pub(crate) pieces: u32,
    /// R2Ts that have not been answered wholly.
    pub(crate) r2ts: u16,
    pub(crate) tag: u64,
    /// Bytes of data that the command moves.
    pub(crate) len: u32,
    /// Bytes received, or asked for by R2Ts, or sent in the capsule.
    pub(crate) moved: u32,
    pub(crate) deadline: Option<Instant>,
    pub(crate) buffer: Buffer,
    /// The answer, in phase `Answered`.
    pub(crate) cqe: Cqe,
    next_free: u16,
}

impl Slot {
    fn new(next_free: u16) -> Self {
        Self {
            phase: Phase::Free,
            direction: Direction::None,
            generation: 0,
            opcode: 0,
            is_last_seen: false,
            has_bad_digest: false,
            is_aborting: false,
            pieces: 0,
            r2ts: 0,
            tag: 0,
            len: 0,
            moved: 0,
            deadline: None,
            buffer: Buffer::None,
            cqe: Cqe::default(),
            next_free,
        }
    }
}

/// All slots of a queue. Their number never changes.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    free: u16,
    in_use: u16,
}

const NO_SLOT: u16 = u16::MAX;

impl Slots {
    /// `count` is 1 to [`MAX_SLOTS`].
    pub(crate) fn new(count: u16) -> Self {
        let next = |index: u16| {
            if index + 1 < count {
                index + 1
            } else {
                NO_SLOT
            }
        };
        Self {
            slots: (0..count).map(|index| Slot::new(next(index))).collect(),
            free: 0,
            in_use: 0,
        }
    }

    /// Takes a free slot.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<u16> {
        let index = self.free;
        let slot = self.slots.get_mut(usize::from(index))?;
        self.free = slot.next_free;
        self.in_use += 1;
        slot.phase = Phase::Active;
        slot.is_last_seen = false;
        slot.has_bad_digest = false;
        slot.is_aborting = false;
        slot.pieces = 0;
        slot.r2ts = 0;
        slot.moved = 0;
        Some(index)
    }

    /// Gives a slot back.
    #[inline]
    pub(crate) fn release(&mut self, index: u16) {
        let free = self.free;
        let slot = &mut self.slots[usize::from(index)];
        slot.phase = Phase::Free;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        slot.next_free = free;
        self.free = index;
        self.in_use -= 1;
    }

    /// The CID of the command in a slot.
    #[inline]
    pub(crate) fn cid(&self, index: u16) -> Cid {
        Cid(index | self.slots[usize::from(index)].generation << SLOT_BITS)
    }

    /// The slot of an outstanding command.
    #[inline]
    pub(crate) fn find(&mut self, cid: Cid) -> Option<(u16, &mut Slot)> {
        let index = cid.0 & SLOT_MASK;
        let slot = self.slots.get_mut(usize::from(index))?;
        let is_it = slot.phase == Phase::Active && slot.generation == cid.0 >> SLOT_BITS;
        is_it.then_some((index, slot))
    }

    #[inline]
    pub(crate) fn get(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    pub(crate) fn in_use(&self) -> u16 {
        self.in_use
    }

    pub(crate) fn capacity(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("made from a u16")
    }

    /// Every slot with its index.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Slot)> {
        (0..).zip(self.slots.iter_mut())
    }
}
