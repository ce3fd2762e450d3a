//! The gate between changes of the map and commits.
//!
//! A change of the map that is in the log stands in a page with the epoch of its time, and a commit covers
//! the pages of all epochs before its own. So a change with epoch `e` must be in the map before the commit
//! of `e + 1` looks at it, or must not be made at all with that epoch. Whoever changes the map passes the
//! gate: inside, the epoch is looked at and the change made. [`Gate::advance`] makes a new epoch known and
//! waits until nobody is inside who may have seen the old one. Being inside takes nanoseconds and no I/O.
//!
//! It is a [`fence::light`] between entering and the look, a [`fence::heavy`] between the new epoch and the
//! look at who is inside: either the one sees the new epoch, or the other who is inside.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::atomic::{AtomicU64, Ordering};
use super::fence;

/// Turns of a spin before the thread yields its processor to the one that is inside.
#[cfg(not(loom))]
const SPINS: u32 = 64;
/// No page is being written.
const NONE: u64 = u64::MAX;

/// One channel's part, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Side {
    /// Odd while somebody is inside.
    passed: AtomicU64,
    /// No page with a lower number is being written.
    oldest: AtomicU64,
}

/// The epoch, and who may be inside.
#[derive(Debug)]
pub struct Gate {
    epoch: AtomicU64,
    /// Cold: taken to open and close a channel, and by commits.
    sides: Mutex<Vec<Arc<Side>>>,
}

impl Gate {
    /// A gate at this epoch.
    #[must_use]
    pub fn new(epoch: u64) -> Arc<Self> {
        fence::prepare();
        Arc::new(Self {
            epoch: AtomicU64::new(epoch),
            sides: Mutex::new(Vec::new()),
        })
    }

    /// Adds one who passes. Dropping it takes it out.
    #[must_use]
    pub fn register(self: &Arc<Self>) -> GateSide {
        let side = Arc::new(Side {
            passed: AtomicU64::new(0),
            oldest: AtomicU64::new(NONE),
        });
        self.lock().push(Arc::clone(&side));
        GateSide {
            gate: Arc::clone(self),
            side,
            single: PhantomData,
        }
    }

    /// The epoch now.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Begins the next epoch. When it returns, all changes of earlier ones are in the map, or never will be.
    pub fn advance(&self) -> u64 {
        let sides = self.lock();
        let next = self.epoch.load(Ordering::Relaxed) + 1;
        self.epoch.store(next, Ordering::SeqCst);
        fence::heavy();
        for side in sides.iter() {
            let seen = side.passed.load(Ordering::Acquire);
            let mut spins = 0;
            // Not until nobody is inside: only who is inside now may have seen the old epoch.
            while seen % 2 == 1 && side.passed.load(Ordering::Acquire) == seen {
                pause(&mut spins);
            }
        }
        next
    }

    /// No page with a lower number is being written, if what was asked before was `below`.
    #[must_use]
    pub fn oldest(&self, below: u64) -> u64 {
        let sides = self.lock();
        let oldest = sides.iter().map(|side| side.oldest.load(Ordering::Acquire));
        oldest.fold(below, u64::min)
    }

    /// A thread that panicked with the list held cannot have left it half changed.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Side>>> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One channel's way through. It may move between threads, but only one at a time uses it.
#[derive(Debug)]
pub struct GateSide {
    gate: Arc<Gate>,
    side: Arc<Side>,
    /// Not `Sync`: who is inside has one writer.
    single: PhantomData<Cell<()>>,
}

impl GateSide {
    /// Makes a change if the epoch is still this one. A commit of a later epoch has it then.
    ///
    /// `change` must be short and do no I/O.
    pub fn pass<T>(&self, epoch: u64, change: impl FnOnce() -> T) -> Option<T> {
        let passed = self.side.passed.load(Ordering::Relaxed);
        // Release: who sees this one sees what was changed the time before.
        self.side.passed.store(passed + 1, Ordering::Release);
        let _inside = Inside(&self.side, passed + 2);
        fence::light();
        (self.gate.epoch.load(Ordering::Acquire) == epoch).then(change)
    }

    /// Pages from this number on may be being written. To be said before they get their numbers.
    pub fn set_oldest(&self, number: u64) {
        self.side.oldest.store(number, Ordering::Release);
    }

    /// No page is being written.
    pub fn clear_oldest(&self) {
        self.set_oldest(NONE);
    }
}

impl Drop for GateSide {
    fn drop(&mut self) {
        self.gate
            .lock()
            .retain(|side| !Arc::ptr_eq(side, &self.side));
    }
}

/// Leaves also when the change panics: nobody would ever commit again.
struct Inside<'a>(&'a Side, u64);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // What was changed is seen by who sees this.
        self.0.passed.store(self.1, Ordering::Release);
    }
}

/// Whoever is inside leaves in nanoseconds, unless its thread was taken off the processor.
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_change_with_an_old_epoch_is_not_made() {
        let gate = Gate::new(5);
        let side = gate.register();
        assert_eq!(side.pass(5, || 1), Some(1));
        assert_eq!(gate.advance(), 6);
        assert_eq!(side.pass(5, || 1), None);
        assert_eq!(side.pass(6, || 1), Some(1));
    }

    #[test]
    fn the_oldest_page_is_that_of_all_channels() {
        let gate = Gate::new(1);
        let (a, b) = (gate.register(), gate.register());
        assert_eq!(gate.oldest(9), 9);
        a.set_oldest(4);
        b.set_oldest(7);
        assert_eq!(gate.oldest(9), 4);
        a.clear_oldest();
        assert_eq!(gate.oldest(9), 7);
        assert_eq!(gate.oldest(5), 5);
        drop(b);
        assert_eq!(gate.oldest(9), 9);
    }

    #[test]
    fn a_change_that_panics_does_not_close_the_gate() {
        let gate = Gate::new(1);
        let side = gate.register();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            side.pass(1, || panic!("on purpose"))
        }));
        assert!(panicked.is_err());
        assert_eq!(gate.advance(), 2);
    }

    /// Writers count up with the epoch they saw; after an advance no count of an older one changes.
    #[test]
    fn after_an_advance_nothing_is_changed_with_an_older_epoch() {
        const ROUNDS: usize = 300;
        let gate = Gate::new(0);
        let counts: Vec<AtomicU64> = (0..=ROUNDS).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for _ in 0..2 {
                let (gate, counts) = (&gate, &counts);
                scope.spawn(move || {
                    let side = gate.register();
                    loop {
                        let epoch = gate.epoch();
                        side.pass(epoch, || {
                            counts[epoch as usize].fetch_add(1, Ordering::Relaxed)
                        });
                        if epoch == ROUNDS as u64 {
                            return;
                        }
                        thread::yield_now();
                    }
                });
            }
            let mut before = 0;
            for round in 0..ROUNDS {
                gate.advance();
                let now = counts[round].load(Ordering::Relaxed);
                if round > 0 {
                    assert_eq!(counts[round - 1].load(Ordering::Relaxed), before, "{round}");
                }
                before = now;
            }
        });
    }
}

/// Every order of one that changes and one that commits. Run with
/// `RUSTFLAGS="--cfg loom" cargo test -p lvol --release --lib loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc as LoomArc;

    use super::*;

    #[test]
    fn loom_a_commit_sees_every_change_of_an_earlier_epoch() {
        loom::model(|| {
            let gate = Gate::new(1);
            let map = LoomArc::new(AtomicU64::new(0));
            let changer = {
                let (side, map) = (gate.register(), LoomArc::clone(&map));
                loom::thread::spawn(move || {
                    let is_changed = side.pass(1, || map.store(1, Ordering::Relaxed));
                    // To be dropped outside: the list is behind a lock that the model does not know.
                    (is_changed.is_some(), side)
                })
            };
            gate.advance();
            let seen = map.load(Ordering::Relaxed);
            let (is_changed, _side) = changer.join().unwrap();
            assert_eq!(seen == 1, is_changed);
        });
    }
}
