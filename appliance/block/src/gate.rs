//! The write gate: makes compare-and-write atomic across threads.
//!
//! While a compare-and-write runs, no other operation that changes the device may run on any
//! channel of the same bdev. The gate closes for the whole device and for that short time only;
//! reads pass. A reader sees each logical block before or after the write, never between.
//!
//! Normal writes pay one atomic exchange and one load. Entering and closing are a Dekker pair: the
//! writer announces itself, then looks at the gate; the closer closes, then looks for writers. Both
//! with sequential consistency, so at least one sees the other. Nobody blocks: who may not go now
//! keeps its I/O in software and is woken when it may.
//!
//! Fairness: after an opening, channels whose writes were held back go first; the gate cannot close
//! again until each has had its turn.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

#[derive(Debug, Default)]
struct WriterSlot {
    /// Writes of this channel between enter and leave.
    entered: AtomicU64,
}

#[derive(Debug)]
struct Member {
    slot: Arc<WriterSlot>,
    waker: Waker,
    /// Writes of this channel were held back.
    held_back: bool,
    /// Wants the gate closed.
    wants_close: bool,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Member>,
}

impl State {
    fn wake(&self, wanted: impl Fn(&Member) -> bool) {
        for member in self.members.iter().filter(|member| wanted(member)) {
            member.waker.wake_by_ref();
        }
    }
}

/// The gate of one bdev.
#[derive(Debug, Default)]
pub(crate) struct WriteGate {
    /// A compare-and-write runs, or waits for the last writers to leave.
    closed: AtomicBool,
    /// Locked when the gate closes or opens, and by writers that met it closed.
    state: Mutex<State>,
}

impl WriteGate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes every channel of the bdev: a limit changed, or the device is gone.
    pub(crate) fn wake_all(&self) {
        self.lock().wake(|_| true);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// One channel's way through the gate.
#[derive(Debug)]
pub(crate) struct GateKey {
    gate: Arc<WriteGate>,
    slot: Arc<WriterSlot>,
    closed: bool,
}

impl GateKey {
    pub(crate) fn new(gate: &Arc<WriteGate>, waker: Waker) -> Self {
        let slot = Arc::<WriterSlot>::default();
        gate.lock().members.push(Member {
            slot: Arc::clone(&slot),
            waker,
            held_back: false,
            wants_close: false,
        });
        Self {
            gate: Arc::clone(gate),
            slot,
            closed: false,
        }
    }

    fn with_member(&self, state: &mut State, change: impl FnOnce(&mut Member)) {
        if let Some(member) = state
            .members
            .iter_mut()
            .find(|member| Arc::ptr_eq(&member.slot, &self.slot))
        {
            change(member);
        }
    }

    /// Announces a write. False: the gate is closed, keep the write and ask again when woken.
    #[inline]
    pub(crate) fn enter(&self) -> bool {
        // Only this thread writes the counter, so a swap does for an addition; what matters is
        // that it is ordered before the look at the gate.
        let entered = self.slot.entered.load(Ordering::Relaxed);
        self.slot.entered.swap(entered + 1, Ordering::SeqCst);
        if !self.gate.is_closed() {
            return true;
        }
        self.enter_failed()
    }

    #[cold]
    fn enter_failed(&self) -> bool {
        self.leave();
        let mut state = self.gate.lock();
        self.with_member(&mut state, |member| member.held_back = true);
        if !self.gate.is_closed() {
            // Opened since: whoever opened it did not know of us. Opening happens under this lock,
            // so it cannot be missed again.
            state.wake(|member| Arc::ptr_eq(&member.slot, &self.slot));
        }
        false
    }

    /// A write has ended. Who waits for it polls ([`GateKey::has_closed`]): telling it would cost
    /// every write another barrier.
    #[inline]
    pub(crate) fn leave(&self) {
        let entered = self.slot.entered.load(Ordering::Relaxed);
        self.slot.entered.store(entered - 1, Ordering::Release);
    }

    /// All writes that were held back have gone.
    pub(crate) fn caught_up(&self) {
        let mut state = self.gate.lock();
        self.with_member(&mut state, |member| member.held_back = false);
        state.wake(|member| member.wants_close);
    }

    /// Tries to have the device to itself. False: ask again when woken, or, if the gate has been
    /// closed, in the next turn.
    ///
    /// Once closed it stays closed, also while writes that had entered before are still running and
    /// this keeps answering false: they drain, new ones wait.
    pub(crate) fn try_close(&mut self) -> bool {
        let mut state = self.gate.lock();
        if !self.closed {
            let others_first = state.members.iter().any(|member| member.held_back);
            if others_first || self.gate.is_closed() {
                self.with_member(&mut state, |member| member.wants_close = true);
                return false;
            }
            self.gate.closed.store(true, Ordering::SeqCst);
            self.closed = true;
            self.with_member(&mut state, |member| member.wants_close = true);
        }
        state
            .members
            .iter()
            .all(|member| member.slot.entered.load(Ordering::SeqCst) == 0)
    }

    /// Whether this key has closed the gate. Until `try_close` says that all writers have left, it
    /// must be asked again and again: nobody wakes.
    pub(crate) fn has_closed(&self) -> bool {
        self.closed
    }

    /// Opens the gate and wakes who waits.
    pub(crate) fn open(&mut self) {
        if !self.closed {
            return;
        }
        self.closed = false;
        let mut state = self.gate.lock();
        self.gate.closed.store(false, Ordering::SeqCst);
        self.with_member(&mut state, |member| member.wants_close = false);
        state.wake(|member| member.held_back || member.wants_close);
    }

    /// No longer wants the gate: its compare-and-write was aborted.
    pub(crate) fn give_up(&mut self) {
        self.open();
        let mut state = self.gate.lock();
        self.with_member(&mut state, |member| member.wants_close = false);
    }
}

impl Drop for GateKey {
    fn drop(&mut self) {
        self.open();
        let mut state = self.gate.lock();
        state
            .members
            .retain(|member| !Arc::ptr_eq(&member.slot, &self.slot));
        state.wake(|member| member.wants_close);
    }
}
