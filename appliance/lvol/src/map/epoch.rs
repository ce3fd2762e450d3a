//! Epochs: how the pool learns that no I/O is left that saw an older state.
//!
//! Each channel counts its I/Os in flight by the epoch they entered, in three buckets that only it
//! writes. The pool's epoch goes from `e` to `e + 1` when no I/O of `e - 1` is left, so that all
//! I/Os in flight are of two epochs. What happened in epoch `e` is past for all I/O once the epoch
//! is `e + 2`: that is a [`Grace`].
//!
//! An I/O enters by adding to its bucket and then reading the epoch again; if that moved, it takes
//! the count back and starts over. Between its two steps there is a [`fence::light`], between the
//! steps of the side that advances (a new epoch, a look at the counts) a [`fence::heavy`]: either the
//! one sees the count, or the other the new epoch. What an I/O reads after entering (a volume's view,
//! the map) is therefore not older than the grace period that could have missed it.
//!
//! The third bucket keeps a late count of an I/O that starts over away from the one that the next
//! advance looks at. If it does get there, it delays that advance and nothing else.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fence;

const BUCKETS: usize = 3;

/// One channel's I/Os in flight, by epoch modulo 3. On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct InFlight([AtomicU64; BUCKETS]);

/// A pool's epoch and its channels.
#[derive(Debug)]
pub struct Epoch {
    current: AtomicU64,
    /// Somebody waits for a grace period: channels report when they have drained a bucket.
    awaited: AtomicBool,
    /// Cold: taken to register, to unregister, and to advance.
    channels: Mutex<Vec<Arc<InFlight>>>,
}

/// Has every I/O ended that was in flight when this was made? Ask [`Epoch::has_ended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grace {
    ends_at: u64,
}

impl Epoch {
    /// An epoch with no channels.
    #[must_use]
    pub fn new() -> Arc<Self> {
        fence::prepare();
        Arc::new(Self {
            // Above the first, so that "the one before" is a number.
            current: AtomicU64::new(BUCKETS as u64),
            awaited: AtomicBool::new(false),
            channels: Mutex::new(Vec::new()),
        })
    }

    /// Adds a channel. It may be moved to the thread that uses it. Dropping it takes it out.
    #[must_use]
    pub fn register(self: &Arc<Self>) -> EpochChannel {
        let in_flight = Arc::new(InFlight::default());
        self.lock().push(Arc::clone(&in_flight));
        EpochChannel {
            epoch: Arc::clone(self),
            in_flight,
            single: PhantomData,
        }
    }

    /// Begins a grace period: it ends when all I/O that is in flight now has.
    ///
    /// It may also wait for I/O that enters before the epoch next advances, never for later ones:
    /// under steady load it takes the life of two I/Os at most.
    pub fn grace(&self) -> Grace {
        self.awaited.store(true, Ordering::SeqCst);
        Grace {
            ends_at: self.current.load(Ordering::SeqCst) + 2,
        }
    }

    /// Has the grace period ended? Advances the epoch as far as I/O allows.
    ///
    /// While it has not, [`EpochChannel::leave`] tells when to ask again.
    pub fn has_ended(&self, grace: Grace) -> bool {
        while self.current.load(Ordering::SeqCst) < grace.ends_at {
            if !self.try_advance() {
                return false;
            }
        }
        true
    }

    /// Nobody waits for a grace period any more: channels need not report.
    ///
    /// For the one that asks for grace periods, when its last has ended.
    pub fn stop_awaiting(&self) {
        self.awaited.store(false, Ordering::SeqCst);
    }

    /// Goes to the next epoch if no I/O is left of the one before the current. True if it went.
    pub fn try_advance(&self) -> bool {
        // Held to the end: a channel that registers later enters the new epoch.
        let channels = self.lock();
        // After the epoch before this was made known, and that somebody waits.
        fence::heavy();
        let current = self.current.load(Ordering::SeqCst);
        let before = bucket(current - 1);
        if channels
            .iter()
            .any(|channel| channel.0[before].load(Ordering::Acquire) != 0)
        {
            return false;
        }
        self.current.store(current + 1, Ordering::SeqCst);
        true
    }

    /// Channels registered now.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.lock().len()
    }

    /// A thread that panicked with the list held cannot have left it half changed.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<InFlight>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One channel's part: it may move between threads, but only one at a time uses it.
///
/// To drop it says that none of its I/O is left.
#[derive(Debug)]
pub struct EpochChannel {
    epoch: Arc<Epoch>,
    in_flight: Arc<InFlight>,
    /// Not `Sync`: the counts have one writer.
    single: PhantomData<Cell<()>>,
}

impl EpochChannel {
    /// An I/O begins. The token goes to [`Self::leave`] when it has ended.
    ///
    /// Look at the volume's view and the map after this, not before.
    #[inline]
    #[must_use = "an I/O that never leaves holds up every grace period"]
    pub fn enter(&self) -> u8 {
        let mut epoch = self.epoch.current.load(Ordering::Relaxed);
        loop {
            let token = bucket(epoch);
            let count = &self.in_flight.0[token];
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            fence::light();
            // With it comes all that changed before that epoch.
            let now = self.epoch.current.load(Ordering::Acquire);
            if now == epoch {
                return token as u8;
            }
            // Advances are rare and each needs others' I/O to end: this does not go on for long.
            count.store(count.load(Ordering::Relaxed) - 1, Ordering::Release);
            epoch = now;
        }
    }

    /// The I/O that entered with `token` has ended. True if somebody waits for a grace period and
    /// may find more of it over: wake the worker.
    ///
    /// # Panics
    /// If no I/O with that token is in flight.
    #[inline]
    pub fn leave(&self, token: u8) -> bool {
        let count = &self.in_flight.0[usize::from(token)];
        let left = count
            .load(Ordering::Relaxed)
            .checked_sub(1)
            .expect("each I/O leaves once, with the token it entered with");
        count.store(left, Ordering::Release);
        if left != 0 {
            return false;
        }
        // As for entering: either the worker sees the empty bucket, or this sees it waiting.
        fence::light();
        self.epoch.awaited.load(Ordering::Relaxed)
            && bucket(self.epoch.current.load(Ordering::Relaxed)) != usize::from(token)
    }

    /// I/Os in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
            .0
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

impl Drop for EpochChannel {
    fn drop(&mut self) {
        self.epoch
            .lock()
            .retain(|channel| !Arc::ptr_eq(channel, &self.in_flight));
    }
}

fn bucket(epoch: u64) -> usize {
    (epoch % BUCKETS as u64) as usize
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn grace_without_io_ends_at_once() {
        let epoch = Epoch::new();
        let _idle = epoch.register();
        let grace = epoch.grace();
        assert!(epoch.has_ended(grace));
        assert!(epoch.has_ended(grace), "what is over stays over");
    }

    #[test]
    fn grace_waits_for_io_that_entered_before_it() {
        let epoch = Epoch::new();
        let (a, b) = (epoch.register(), epoch.register());
        let (io_a, io_b) = (a.enter(), b.enter());
        let grace = epoch.grace();
        assert!(!epoch.has_ended(grace));
        assert!(a.leave(io_a), "the worker is to be woken");
        assert!(!epoch.has_ended(grace));
        assert!(b.leave(io_b));
        assert!(epoch.has_ended(grace));
    }

    #[test]
    fn grace_ends_although_io_never_pauses() {
        let epoch = Epoch::new();
        let channel = epoch.register();
        let mut oldest = channel.enter();
        for _ in 0..100 {
            let grace = epoch.grace();
            let mut replaced = 0;
            while !epoch.has_ended(grace) {
                assert!(replaced < 2, "it waits for no I/O of later epochs");
                let next = channel.enter();
                assert!(channel.leave(oldest), "the worker is to be woken");
                oldest = next;
                replaced += 1;
            }
            assert!(replaced > 0, "the oldest was in flight when it began");
        }
        assert_eq!(channel.in_flight(), 1);
    }

    #[test]
    fn channels_report_only_while_somebody_waits() {
        let epoch = Epoch::new();
        let channel = epoch.register();
        assert!(!channel.leave(channel.enter()));
        let (first, second) = (channel.enter(), channel.enter());
        let grace = epoch.grace();
        assert!(!epoch.has_ended(grace));
        assert!(!channel.leave(first), "another of the same epoch is left");
        assert!(channel.leave(second));
        assert!(epoch.has_ended(grace));
        epoch.stop_awaiting();
        assert!(!channel.leave(channel.enter()));
    }

    #[test]
    fn dropped_channel_holds_nothing_up() {
        let epoch = Epoch::new();
        let channel = epoch.register();
        let _ = channel.enter();
        let grace = epoch.grace();
        assert!(!epoch.has_ended(grace));
        drop(channel);
        assert_eq!(epoch.channels(), 0);
        assert!(epoch.has_ended(grace));
    }

    #[test]
    #[should_panic(expected = "each I/O leaves once")]
    fn leaving_twice_is_refused() {
        let epoch = Epoch::new();
        let channel = epoch.register();
        let token = channel.enter();
        channel.leave(token);
        channel.leave(token);
    }

    /// Readers look up the live one of many cells after entering; the writer retires a cell, waits
    /// a grace period, and poisons it. No reader may see a poisoned cell.
    #[test]
    fn nothing_is_reused_while_io_that_saw_it_is_in_flight() {
        const ROUNDS: usize = 3_000;
        const READERS: usize = 3;
        let epoch = Epoch::new();
        let poisoned: Vec<AtomicBool> = (0..=ROUNDS).map(|_| AtomicBool::new(false)).collect();
        let live = AtomicUsize::new(0);
        thread::scope(|scope| {
            for reader in 0..READERS {
                let (epoch, poisoned, live) = (&epoch, &poisoned, &live);
                scope.spawn(move || {
                    let mut channel = epoch.register();
                    let mut flight = Vec::new();
                    let mut turn = reader;
                    loop {
                        turn += 1;
                        let token = channel.enter();
                        let seen = live.load(Ordering::SeqCst);
                        flight.push((token, seen));
                        if flight.len() > 4 || turn.is_multiple_of(3) {
                            for (token, seen) in flight.drain(..) {
                                assert!(!poisoned[seen].load(Ordering::SeqCst), "cell {seen}");
                                channel.leave(token);
                            }
                        }
                        if flight.is_empty() && turn.is_multiple_of(64) {
                            // Channels come and go at any time.
                            channel = epoch.register();
                            thread::yield_now();
                        }
                        if seen == ROUNDS {
                            break;
                        }
                    }
                });
            }
            for (round, retired) in poisoned.iter().take(ROUNDS).enumerate() {
                live.store(round + 1, Ordering::SeqCst);
                let grace = epoch.grace();
                while !epoch.has_ended(grace) {
                    thread::yield_now();
                }
                retired.store(true, Ordering::SeqCst);
            }
        });
        assert_eq!(epoch.channels(), 0);
    }
}
