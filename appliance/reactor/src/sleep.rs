//! The hand-off between a reactor that goes to sleep and those that wake it.
//!
//! It is one pattern of two sides, each of which publishes first and looks second:
//!
//! | sender | reactor |
//! |---|---|
//! | 1. publish work (push to a queue) | 1. [`SleepGate::announce`]: flag := asleep |
//! | 2. fence | 2. fence |
//! | 3. flag says asleep? notify | 3. look at all work once more; none? sleep |
//!
//! Of the two looks at least one sees what the other side published: the two sequentially
//! consistent fences have an order. If the sender's is first, the reactor's second look finds the
//! work; if the reactor's is first, the sender finds the flag. So no wake-up is lost, and a sender
//! pays one fence and one load while the reactor is awake.
//!
//! The module is small, stands alone and is built over loom's atomics under `--cfg loom`, where
//! `tests/loom_sleep.rs` runs it through all interleavings.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const NOTIFIED: u32 = 2;

/// Ends the sleep of the one that waits.
///
/// A notification given before the sleep began must end it at once (as an eventfd's does).
pub trait Notify {
    /// Called at most once per sleep.
    fn notify(&self);
}

/// The flag between one sleeper and any number of wakers. See the module.
#[derive(Debug)]
pub struct SleepGate<N> {
    state: AtomicU32,
    notify: N,
}

impl<N: Notify> SleepGate<N> {
    /// A gate whose sleeper is awake.
    pub fn new(notify: N) -> SleepGate<N> {
        SleepGate {
            state: AtomicU32::new(AWAKE),
            notify,
        }
    }

    /// Waker's side: work was published, the sleeper must look at it.
    ///
    /// After the call the sleeper looks at all work at least once before it sleeps (again).
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == ASLEEP {
            self.wake_sleeper();
        }
    }

    #[cold]
    fn wake_sleeper(&self) {
        // Only the first of several wakers pays for the notification.
        let first =
            self.state
                .compare_exchange(ASLEEP, NOTIFIED, Ordering::AcqRel, Ordering::Relaxed);
        if first.is_ok() {
            self.notify.notify();
        }
    }

    /// Sleeper's side: says that it is about to sleep. It must then look at all work once more,
    /// and sleep only if there is none; in either case [`SleepGate::retract`] follows.
    pub fn announce(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeper's side, after [`SleepGate::announce`]: whether somebody has woken it since. A sleep
    /// would end at once; this only spares it.
    pub fn is_notified(&self) -> bool {
        self.state.load(Ordering::Relaxed) == NOTIFIED
    }

    /// Sleeper's side: it is awake and looks at work.
    pub fn retract(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
        // A waker that saw "notified" did not notify. What it published is seen before the next
        // sleep in any case; the fence has it seen now.
        fence(Ordering::SeqCst);
    }

    /// What the gate notifies with.
    pub fn notifier(&self) -> &N {
        &self.notify
    }
}
