//! The hand-over between threads: nothing lost, nothing twice, nobody left asleep.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use dma::{BackingPreference, ChannelOptions, IoBuf, IobufOptions, IobufPool};

/// Far above anything but a lost wake-up.
const LOST: Duration = Duration::from_secs(60);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn waker() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

fn pool(small: u32, large: u32) -> Arc<IobufPool> {
    IobufPool::new(IobufOptions {
        small_pool_count: small,
        large_pool_count: large,
        reserve_small: 0,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    })
    .unwrap()
}

fn park(since: &mut Instant, who: usize) {
    thread::park_timeout(LOST);
    assert!(
        since.elapsed() < LOST,
        "thread {who}: a waiter or a wanted cache was never woken"
    );
    *since = Instant::now();
}

/// Pseudo-random numbers, the same in every run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// One thread's life: takes `quota` buffers, holds some, waits for some, cancels a few, marks
/// each, finds its mark again. A thread that can do nothing sleeps until it is woken.
fn work(pool: &Arc<IobufPool>, who: usize, caches: [u32; 2], quota: u64, running: &AtomicUsize) {
    let [small_cache, large_cache] = caches;
    let options = ChannelOptions {
        small_cache,
        large_cache,
        waker: waker(),
    };
    let mut channel = pool.channel("stress", options).unwrap();
    let mut rng = Rng(0x9E37_79B9 + who as u64);
    let mut held: Vec<(IoBuf, u64)> = Vec::new();
    let mut waiting: BTreeSet<u64> = BTreeSet::new();
    let mut served = Vec::new();
    let (mut done, mut token) = (0, 0);
    let mut awake = Instant::now();
    let mark = |buf: &mut IoBuf, token: u64| {
        let value = (who as u64) << 56 | token;
        buf.as_mut_slice()[..8].copy_from_slice(&value.to_le_bytes());
        value
    };
    loop {
        channel.poll(&mut served);
        for (token, mut buf) in served.drain(..) {
            assert!(
                waiting.remove(&token),
                "thread {who}: {token} was served twice"
            );
            let value = mark(&mut buf, token);
            held.push((buf, value));
            done += 1;
        }
        let more = done + (waiting.len() as u64) < quota;
        match rng.below(8) {
            0..=4 if more && held.len() + waiting.len() < 12 => {
                token += 1;
                let len = if rng.below(4) == 0 { 10_000 } else { 64 };
                match channel.get_or_wait(len, token).unwrap() {
                    Some(mut buf) => {
                        let value = mark(&mut buf, token);
                        held.push((buf, value));
                        done += 1;
                    }
                    None => drop(waiting.insert(token)),
                }
            }
            5 if rng.below(8) == 0 => {
                if let Some(token) = waiting.pop_first() {
                    assert!(channel.cancel_wait(token), "thread {who}: {token} was lost");
                }
            }
            _ if !held.is_empty() => {
                let index = rng.below(held.len() as u64) as usize;
                let (buf, value) = held.swap_remove(index);
                assert_eq!(buf.as_slice()[..8], value.to_le_bytes(), "in two hands");
            }
            _ if !more && waiting.is_empty() => break,
            _ if held.is_empty() && !waiting.is_empty() => park(&mut awake, who),
            _ => {}
        }
        if !held.is_empty() || waiting.is_empty() {
            awake = Instant::now();
        }
    }
    // Done, but the cache may hold what others wait for: sleep like an idle reactor.
    running.fetch_sub(1, Ordering::AcqRel);
    while running.load(Ordering::Acquire) > 0 {
        channel.poll(&mut served);
        assert!(served.is_empty());
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn stress(caches: &[[u32; 2]], small: u32, large: u32, quota: u64) {
    let pool = pool(small, large);
    let running = AtomicUsize::new(caches.len());
    thread::scope(|scope| {
        for (who, caches) in caches.iter().enumerate() {
            let (pool, running) = (&pool, &running);
            scope.spawn(move || work(pool, who, *caches, quota, running));
        }
    });
    let stats = pool.stats();
    assert_eq!(stats.small.free, u64::from(small), "{stats:?}");
    assert_eq!(stats.large.free, u64::from(large), "{stats:?}");
    assert_eq!(stats.small.waiting + stats.large.waiting, 0);
    let retried = stats.modules[0].small.retry;
    println!(
        "{retried} of {} requests for small buffers waited",
        quota * caches.len() as u64
    );
    assert!(retried > 0, "the pool was too large to test anything");
}

#[test]
fn nothing_is_lost_between_threads_with_caches() {
    stress(&[[4, 1], [4, 1], [2, 1]], 12, 4, 30_000);
}

#[test]
fn nothing_is_lost_where_caches_could_hold_all() {
    stress(&[[6, 2], [2, 0], [0, 0]], 8, 2, 20_000);
}

#[test]
fn nothing_is_lost_without_caches() {
    stress(&[[0, 0], [0, 0]], 3, 1, 20_000);
}

#[test]
fn order_is_kept_across_threads() {
    let pool = pool(1, 1);
    let options = || ChannelOptions {
        small_cache: 0,
        large_cache: 0,
        waker: waker(),
    };
    let channel = pool.channel("first", options()).unwrap();
    let held = channel.get(1).unwrap();
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for who in 0..4 {
            let (pool, order, options) = (&pool, &order, &options);
            let (queued, is_queued) = mpsc::channel();
            threads.push(scope.spawn(move || {
                let mut channel = pool.channel("other", options()).unwrap();
                assert!(channel.get_or_wait(1, who).unwrap().is_none());
                queued.send(()).unwrap();
                let (mut served, mut since) = (Vec::new(), Instant::now());
                while channel.poll(&mut served) == 0 {
                    park(&mut since, who as usize);
                }
                order.lock().unwrap().push(served[0].0);
                // Dropped here: the next in the queue is served.
            }));
            is_queued.recv().unwrap();
        }
        drop(held);
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3]);
}

#[test]
fn growth_and_statistics_are_safe_while_buffers_are_in_use() {
    let pool = pool(8, 2);
    let running = AtomicUsize::new(2);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        for who in 0..2 {
            let (pool, running) = (&pool, &running);
            scope.spawn(move || work(pool, who, [2, 1], 20_000, running));
        }
        let mut grown = 0;
        while running.load(Ordering::Acquire) > 0 {
            let stats = pool.stats();
            assert_eq!(stats.small.total, 8 + grown);
            assert!(stats.small.free <= stats.small.total);
            if grown < 16 && reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
                pool.grow(1, 0).unwrap();
                grown += 1;
            }
            thread::yield_now();
        }
    });
    let stats = pool.stats();
    assert_eq!(stats.small.free, stats.small.total);
}
