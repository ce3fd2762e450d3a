//! A submission queue and its completion queue, as the host sees them.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use dma::Region;
use nvme_spec::pcie::{cq_doorbell, doorbell_index, doorbell_stride, sq_doorbell};
use nvme_spec::registers::Cap;
use nvme_spec::{Cqe, Qid, Sqe};

use crate::device::Registers;
use crate::memory::{ADMIN_ENTRIES, Layout};

/// Offsets of a doorbell's shadow and of its event index.
#[derive(Clone, Copy, Debug)]
struct Shadow {
    value: usize,
    event: usize,
}

#[derive(Clone, Copy, Debug)]
struct Doorbell {
    register: u32,
    shadow: Option<Shadow>,
    /// What the device was told last.
    rung: u32,
}

/// A queue pair. The holder sees to it that no more commands are outstanding than there are
/// entries less one, so that neither queue can overflow.
#[derive(Debug)]
pub(crate) struct Ring {
    region: Arc<Region>,
    sq: usize,
    cq: usize,
    entries: u32,
    sq_tail: u32,
    cq_head: u32,
    phase: bool,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
}

impl Ring {
    /// The pair `qid`, empty, as the controller has it once it was created.
    pub(crate) fn new(layout: &Layout, cap: Cap, qid: Qid, shadow: bool) -> Self {
        let entries = if qid.is_admin() {
            ADMIN_ENTRIES
        } else {
            layout.entries()
        };
        let doorbell = |register, is_completion| {
            let at = doorbell_index(qid, is_completion) * doorbell_stride(cap);
            let at = at as usize;
            // The buffers are a page each; queues beyond them use the registers.
            let shadow = (shadow && !qid.is_admin() && at < 4096).then_some(Shadow {
                value: layout.shadow() + at,
                event: layout.event_index() + at,
            });
            Doorbell {
                register,
                shadow,
                rung: 0,
            }
        };
        Self {
            region: Arc::clone(&layout.region),
            sq: layout.sq(qid.0),
            cq: layout.cq(qid.0),
            entries: u32::from(entries),
            sq_tail: 0,
            cq_head: 0,
            phase: true,
            sq_doorbell: doorbell(sq_doorbell(cap, qid), false),
            cq_doorbell: doorbell(cq_doorbell(cap, qid), true),
        }
    }

    /// Clears the completion queue, so that no entry has the phase of a new one, and the shadow
    /// doorbells. Before the controller is told of the queue.
    pub(crate) fn clear(&self) {
        self.region.zero(self.cq, self.entries as usize * 16);
        for doorbell in [&self.sq_doorbell, &self.cq_doorbell] {
            if let Some(shadow) = doorbell.shadow {
                self.region.store_u32(shadow.value, 0);
                self.region.store_u32(shadow.event, 0);
            }
        }
    }

    /// Puts a command into the queue. The device hears of it by [`Ring::ring_sq`].
    #[inline]
    pub(crate) fn push(&mut self, sqe: &Sqe) {
        let words: [u64; 8] = zerocopy::transmute!(*sqe);
        let at = self.sq + self.sq_tail as usize * 64;
        self.region.store_words(at, &words);
        self.sq_tail += 1;
        if self.sq_tail == self.entries {
            self.sq_tail = 0;
        }
    }

    /// Takes the next completion. The device hears of it by [`Ring::ring_cq`].
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Cqe> {
        let at = self.cq + self.cq_head as usize * 16;
        let last = u32::from_le(self.region.load_u32(at + 12));
        if (last >> 16 & 1 != 0) != self.phase {
            return None;
        }
        let words = self.region.load_words::<2>(at);
        self.cq_head += 1;
        if self.cq_head == self.entries {
            self.cq_head = 0;
            self.phase = !self.phase;
        }
        Some(zerocopy::transmute!(words))
    }

    /// Tells the device of new commands, if there are any.
    #[inline]
    pub(crate) fn ring_sq(&mut self, registers: &dyn Registers) {
        self.sq_doorbell.ring(&self.region, registers, self.sq_tail);
    }

    /// Tells the device of entries taken, if there are any.
    #[inline]
    pub(crate) fn ring_cq(&mut self, registers: &dyn Registers) {
        self.cq_doorbell.ring(&self.region, registers, self.cq_head);
    }
}

impl Doorbell {
    #[inline]
    fn ring(&mut self, region: &Region, registers: &dyn Registers, value: u32) {
        if value == self.rung {
            return;
        }
        let old = std::mem::replace(&mut self.rung, value);
        let Some(shadow) = self.shadow else {
            registers.write32(self.register, value);
            return;
        };
        region.store_u32(shadow.value, value.to_le());
        // The device writes its event index, then looks at the doorbell; we do the same the other
        // way round. Without the fence both could miss the other's store.
        fence(Ordering::SeqCst);
        let event = u32::from_le(region.load_u32(shadow.event));
        if passes(event, old, value) {
            registers.write32(self.register, value);
        }
    }
}

/// Whether going from `old` to `new` passes `event`, all modulo 2^16.
fn passes(event: u32, old: u32, new: u32) -> bool {
    let (event, old, new) = (event as u16, old as u16, new as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_is_rung_when_the_event_index_is_passed() {
        assert!(passes(0, 0, 1));
        assert!(passes(5, 4, 7));
        assert!(passes(5, 5, 6));
        assert!(!passes(5, 6, 7));
        assert!(!passes(7, 4, 6));
        // The queue wraps: from 14 to 2, the device sleeps at 14.
        assert!(passes(14, 14, 2));
    }
}
