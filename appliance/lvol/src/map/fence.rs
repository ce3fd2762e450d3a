//! A pair of fences of which one costs nothing.
//!
//! [`light`] on one thread and [`heavy`] on another order memory as two `SeqCst` fences would. The light
//! one only keeps the compiler from moving code; the heavy one makes every thread of the process run a
//! fence (`membarrier(2)`, some microseconds). A true fence on the light side waits until what was copied
//! before it has left the processor's store buffer: 60 ns after 4 KiB.
//!
//! Where the kernel offers no `membarrier`, both are true fences. [`prepare`] finds out.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

use rustix::thread::{MembarrierCommand, membarrier};

use super::atomic::fence;

static PREPARED: Once = Once::new();
/// The kernel runs fences for us. A thread that does not see it yet runs its own: no harm.
static IS_ASYMMETRIC: AtomicBool = AtomicBool::new(false);

/// To be called before the first [`light`] that matters.
pub(super) fn prepare() {
    PREPARED.call_once(|| {
        let registered = membarrier(MembarrierCommand::RegisterPrivateExpedited);
        // The model checker knows nothing of what the kernel does.
        if registered.is_ok() && !cfg!(loom) {
            IS_ASYMMETRIC.store(true, Ordering::Relaxed);
        }
    });
}

/// For the frequent side.
#[inline]
pub(super) fn light() {
    if IS_ASYMMETRIC.load(Ordering::Relaxed) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// For the rare side.
pub(super) fn heavy() {
    fence(Ordering::SeqCst);
    if IS_ASYMMETRIC.load(Ordering::Relaxed) {
        membarrier(MembarrierCommand::PrivateExpedited)
            .expect("it is registered, and then it does not fail");
    }
}
