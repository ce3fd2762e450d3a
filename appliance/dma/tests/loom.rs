//! Every interleaving (up to a bound of preemptions) of the hand-over between two threads.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p dma --release --test loom`
#![cfg(loom)]
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::sync::Arc;
use std::task::{Wake, Waker};

use dma::{BackingPreference, ChannelOptions, IobufChannel, IobufOptions, IobufPool};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};

/// A reactor's wake: a flag that it reads and clears before it sleeps.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        // A swap, as loom gives plain stores no place among read-modify-writes.
        self.0.swap(true, Ordering::AcqRel);
    }
}

struct Reactor {
    flag: Arc<Flag>,
    channel: IobufChannel,
}

impl Reactor {
    fn new(pool: &Arc<IobufPool>, small_cache: u32) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let options = ChannelOptions {
            small_cache,
            large_cache: 0,
            waker,
        };
        Self {
            flag,
            channel: pool.channel("model", options).unwrap(),
        }
    }

    /// Polls until nobody woke it: what it does before it sleeps. Returns the tokens served.
    fn turn(&mut self) -> usize {
        let mut served = Vec::new();
        loop {
            self.channel.poll(&mut served);
            if !self.was_woken() {
                return served.len();
            }
        }
    }

    fn was_woken(&self) -> bool {
        self.flag.0.swap(false, Ordering::AcqRel)
    }
}

/// Opens once; who waits for it goes on then.
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(false), Condvar::new()))
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        let mut open = self.0.lock().unwrap();
        while !*open {
            open = self.1.wait(open).unwrap();
        }
    }
}

fn pool(small: u32) -> Arc<IobufPool> {
    IobufPool::new(IobufOptions {
        small_pool_count: small,
        large_pool_count: 1,
        reserve_small: 0,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    })
    .unwrap()
}

fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

/// One thread has all buffers, in its cache and in use; the other waits for both. However
/// they interleave, nobody waits for ever beside an idle cache.
#[test]
fn a_sleeping_cache_never_keeps_what_others_wait_for() {
    check(None, || {
        let pool = pool(2);
        let mut holder = Reactor::new(&pool, 2);
        let (queued, checked) = (Gate::new(), Gate::new());
        let waiter = {
            let (pool, queued, checked) = (pool.clone(), queued.clone(), checked.clone());
            loom::thread::spawn(move || {
                let mut waiter = Reactor::new(&pool, 0);
                let mut expected = 0;
                let mut held = Vec::new();
                for token in 0..2 {
                    match waiter.channel.get_or_wait(1, token).unwrap() {
                        Some(buf) => held.push(buf),
                        None => expected += 1,
                    }
                }
                queued.open();
                checked.pass();
                assert_eq!(waiter.turn(), expected);
            })
        };
        let buf = holder.channel.get(1);
        drop(buf);
        holder.turn();
        queued.pass();
        // Awake only if the flag says so.
        if holder.was_woken() {
            holder.turn();
        }
        let stats = pool.stats().small;
        assert!(
            stats.waiting == 0 || stats.cached == 0,
            "a lost wake-up: {stats:?}"
        );
        checked.open();
        waiter.join().unwrap();
    });
}

/// A cancelled wait and a returned buffer cross; the buffer is never lost.
#[test]
fn a_cancelled_wait_loses_no_buffer() {
    check(None, || {
        let pool = pool(1);
        let holder = Reactor::new(&pool, 1);
        let buf = holder.channel.get(1).unwrap();
        let waiter = {
            let pool = pool.clone();
            loom::thread::spawn(move || {
                let mut waiter = Reactor::new(&pool, 0);
                if waiter.channel.get_or_wait(1, 7).unwrap().is_none() && waiter.turn() == 0 {
                    assert!(waiter.channel.cancel_wait(7));
                }
            })
        };
        drop(buf);
        waiter.join().unwrap();
        let stats = pool.stats().small;
        assert_eq!((stats.free + stats.cached, stats.waiting), (1, 0));
    });
}

/// A channel closes while a buffer is on its way to it.
#[test]
fn a_closing_waiter_loses_no_buffer() {
    check(None, || {
        let pool = pool(1);
        let holder = Reactor::new(&pool, 0);
        let buf = holder.channel.get(1).unwrap();
        let waiter = {
            let pool = pool.clone();
            loom::thread::spawn(move || {
                let waiter = Reactor::new(&pool, 0);
                drop(waiter.channel.get_or_wait(1, 7).unwrap());
            })
        };
        drop(buf);
        waiter.join().unwrap();
        let stats = pool.stats().small;
        assert_eq!((stats.free, stats.waiting), (1, 0));
    });
}
