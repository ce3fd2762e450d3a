//! Payloads of channels that were dropped with commands in flight.
//!
//! The device may still write them, so they stay with their thread (a buffer belongs to one) until
//! the owner says that the device has let go: it deleted the queue, or reset the controller. A
//! bounce region stays with the queue: any thread can give it back, and the one of the channel may
//! never come to it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use dma::{Payload, Region};

use crate::device::DmaMapper;

struct Orphan {
    released: Arc<AtomicBool>,
    payloads: Vec<Payload>,
}

impl Drop for Orphan {
    fn drop(&mut self) {
        if !self.released.load(SeqCst) {
            // The thread ends and the device has not let go. Lost memory beats memory that is
            // given to another and then overwritten.
            for payload in self.payloads.drain(..) {
                std::mem::forget(payload);
            }
        }
    }
}

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static ORPHANS: RefCell<Vec<Orphan>> = const { RefCell::new(Vec::new()) };
}

/// Keeps payloads until `released` is set.
pub(crate) fn keep(released: Arc<AtomicBool>, payloads: Vec<Payload>) {
    let orphan = Orphan { released, payloads };
    ORPHANS.with_borrow_mut(|orphans| orphans.push(orphan));
    COUNT.set(COUNT.get() + 1);
}

/// Frees what the device has let go of on this thread.
#[inline]
pub(crate) fn collect() {
    if COUNT.get() != 0 {
        collect_some();
    }
}

#[cold]
fn collect_some() {
    let free = ORPHANS.with_borrow_mut(|orphans| {
        let released = |orphan: &mut Orphan| orphan.released.load(SeqCst);
        orphans.extract_if(.., released).collect::<Vec<_>>()
    });
    COUNT.set(COUNT.get().saturating_sub(free.len()));
}

/// What a channel left with its queue.
#[derive(Debug)]
pub(crate) struct Left {
    /// Set once the device has let go of the payloads.
    released: Arc<AtomicBool>,
    /// A bounce region that the device may write.
    bounce: Option<Arc<Region>>,
}

impl Left {
    pub(crate) fn new(released: Arc<AtomicBool>, bounce: Option<Arc<Region>>) -> Self {
        Self { released, bounce }
    }

    /// The device has let go of it.
    pub(crate) fn release(mut self, mapper: &dyn DmaMapper) {
        if let Some(region) = self.bounce.take() {
            mapper.unmap(&region);
        }
        self.released.store(true, SeqCst);
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        // The controller went away and the device has not let go: see `Orphan`.
        std::mem::forget(self.bounce.take());
    }
}
