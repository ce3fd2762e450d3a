//! Payloads of channels that were dropped with commands in flight.
//!
//! The device may still write them, so they stay with their thread (a buffer belongs to one) until
//! the owner says that the device has let go: it deleted the queue, or reset the controller.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use dma::{Payload, Region};

struct Orphan {
    released: Arc<AtomicBool>,
    payloads: Vec<Payload>,
    /// A bounce region that the device may write.
    bounce: Option<Arc<Region>>,
}

impl Drop for Orphan {
    fn drop(&mut self) {
        if !self.released.load(SeqCst) {
            // The thread ends and the device has not let go. Lost memory beats memory that is
            // given to another and then overwritten.
            for payload in self.payloads.drain(..) {
                std::mem::forget(payload);
            }
            std::mem::forget(self.bounce.take());
        }
    }
}

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static ORPHANS: RefCell<Vec<Orphan>> = const { RefCell::new(Vec::new()) };
}

/// Keeps payloads until `released` is set.
pub(crate) fn keep(released: Arc<AtomicBool>, payloads: Vec<Payload>, bounce: Option<Arc<Region>>) {
    let orphan = Orphan {
        released,
        payloads,
        bounce,
    };
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
