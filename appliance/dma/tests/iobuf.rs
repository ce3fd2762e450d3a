//! What iobuf pools, channels and buffers promise, case by case.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use dma::planner::Refusal;
use dma::{
    BackingPreference, ChannelOptions, DmaError, IoBuf, IobufChannel, IobufOptions, IobufPool,
    Payload, Region, RegionOptions,
};

fn options(small: u32, large: u32, reserve: u32) -> IobufOptions {
    IobufOptions {
        small_pool_count: small + reserve,
        large_pool_count: large,
        reserve_small: reserve,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    }
}

fn pool(small: u32, large: u32, reserve: u32) -> Arc<IobufPool> {
    IobufPool::new(options(small, large, reserve)).unwrap()
}

fn channel(pool: &Arc<IobufPool>, small_cache: u32, large_cache: u32) -> IobufChannel {
    let options = ChannelOptions {
        small_cache,
        large_cache,
        ..ChannelOptions::default()
    };
    pool.channel("test", options).unwrap()
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    fn channel(self: &Arc<Self>, pool: &Arc<IobufPool>, small_cache: u32) -> IobufChannel {
        let waker = Waker::from(Arc::clone(self));
        pool.channel(
            "woken",
            ChannelOptions {
                small_cache,
                large_cache: 0,
                waker,
            },
        )
        .unwrap()
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn tokens(served: &[(u64, IoBuf)]) -> Vec<u64> {
    served.iter().map(|(token, _)| *token).collect()
}

#[test]
fn buffers_are_zeroed_at_first_page_aligned_and_of_the_asked_length() {
    let pool = pool(4, 2, 0);
    let channel = channel(&pool, 0, 0);
    for (len, capacity) in [
        (0, 8192),
        (1, 8192),
        (8192, 8192),
        (8193, 135_168),
        (135_168, 135_168),
    ] {
        let mut buf = channel.get(len).unwrap();
        assert_eq!((buf.len(), buf.capacity()), (len, capacity));
        assert_eq!(buf.addr() % 4096, 0);
        assert!(buf.as_slice().iter().all(|byte| *byte == 0));
        buf.set_len(capacity);
        buf.as_mut_slice()[capacity - 1] = 0;
    }
    assert!(channel.get(135_169).is_none(), "longer than a large buffer");
}

#[test]
fn addresses_are_found_again_through_region_index_and_offset() {
    let pool = pool(2, 2, 1);
    pool.grow(3, 1).unwrap();
    let regions = pool.regions();
    assert_eq!(regions.len(), 2);
    let channel = channel(&pool, 0, 0);
    let mut held: Vec<IoBuf> = (0..5).map(|_| channel.get(10).unwrap()).collect();
    held.extend((0..3).map(|_| channel.get(9000).unwrap()));
    held.push(channel.get_reserved(10).unwrap());
    for buf in &held {
        assert_eq!(
            regions[buf.region_index()].addr() + buf.region_offset(),
            buf.addr()
        );
    }
    let mut addresses: Vec<usize> = held.iter().map(IoBuf::addr).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 9);
    let tail = held[0].split_to(4);
    assert_eq!(held[0].region_offset(), tail.region_offset() + 4);
}

#[test]
fn what_was_used_last_is_used_again_first() {
    let pool = pool(64, 1, 0);
    let channel = channel(&pool, 32, 0);
    let first = channel.get(1).unwrap().addr();
    let second = channel.get(1).unwrap().addr();
    assert_eq!(first, second);
}

#[test]
fn waiters_are_served_in_order_before_any_cache() {
    let pool = pool(2, 1, 0);
    let (mut a, mut b) = (channel(&pool, 1, 0), channel(&pool, 1, 0));
    let held = [a.get(1).unwrap(), b.get(1).unwrap()];
    assert!(b.get_or_wait(10, 1).unwrap().is_none());
    assert!(a.get_or_wait(20, 2).unwrap().is_none());
    assert!(b.get_or_wait(30, 3).unwrap().is_none());
    assert!(a.get(1).is_none());
    drop(held);
    assert_eq!(pool.stats().small.cached, 0, "handed over, not cached");
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    a.poll(&mut of_a);
    b.poll(&mut of_b);
    assert_eq!((tokens(&of_a), tokens(&of_b)), (vec![2], vec![1]));
    assert_eq!(of_a[0].1.len(), 20);
    of_a.clear();
    b.poll(&mut of_b);
    assert_eq!(tokens(&of_b), [1, 3]);
}

#[test]
fn small_and_large_requests_wait_in_queues_of_their_own() {
    let pool = pool(1, 1, 0);
    let mut channel = channel(&pool, 0, 0);
    let (small, large) = (channel.get(1).unwrap(), channel.get(9000).unwrap());
    assert!(channel.get_or_wait(1, 1).unwrap().is_none());
    assert!(channel.get_or_wait(9000, 2).unwrap().is_none());
    drop(large);
    let mut served = Vec::new();
    channel.poll(&mut served);
    assert_eq!(tokens(&served), [2]);
    drop(small);
    channel.poll(&mut served);
    assert_eq!(tokens(&served), [2, 1]);
}

#[test]
fn the_waker_is_called_once_until_the_channel_polls() {
    let pool = pool(3, 1, 0);
    let wakes = Arc::new(Wakes::default());
    let mut waits = wakes.channel(&pool, 0);
    let holds = channel(&pool, 0, 0);
    let held: Vec<IoBuf> = (0..3).map(|_| holds.get(1).unwrap()).collect();
    for token in 0..3 {
        assert!(waits.get_or_wait(1, token).unwrap().is_none());
    }
    assert_eq!(wakes.count(), 0);
    drop(held);
    assert_eq!(wakes.count(), 1);
    let mut served = Vec::new();
    assert_eq!(waits.poll(&mut served), 3);
    assert_eq!(tokens(&served), [0, 1, 2]);
    assert_eq!(waits.poll(&mut served), 0);
}

#[test]
fn idle_caches_are_given_up_to_waiters() {
    let pool = pool(4, 1, 0);
    let wakes = Arc::new(Wakes::default());
    let mut idle = wakes.channel(&pool, 4);
    let mut waits = channel(&pool, 0, 0);
    assert_eq!(idle.stats().small.cached, 4);
    for token in 0..2 {
        assert!(waits.get_or_wait(1, token).unwrap().is_none());
    }
    assert_eq!(
        wakes.count(),
        1,
        "the first waiter asks, later ones need not"
    );
    let mut served = Vec::new();
    assert_eq!(idle.poll(&mut served), 0);
    assert_eq!(idle.stats().small.cached, 2, "as many as wait, no more");
    waits.poll(&mut served);
    assert_eq!(tokens(&served), [0, 1]);
}

#[test]
fn a_cancelled_wait_passes_its_turn_on() {
    let pool = pool(1, 1, 0);
    let mut channel = channel(&pool, 0, 0);
    let held = channel.get(1).unwrap();
    for token in 1..=3 {
        assert!(channel.get_or_wait(1, token).unwrap().is_none());
    }
    assert!(channel.cancel_wait(1), "while it waits");
    assert!(!channel.cancel_wait(1));
    drop(held);
    assert!(channel.cancel_wait(2), "served, but not polled yet");
    let mut served = Vec::new();
    channel.poll(&mut served);
    assert_eq!(tokens(&served), [3]);
    assert!(!channel.cancel_wait(3), "in the caller's hands");
}

#[test]
fn the_queue_of_waiters_is_bounded() {
    let options = IobufOptions {
        max_waiters: 2,
        ..options(1, 1, 0)
    };
    let pool = IobufPool::new(options).unwrap();
    let mut channel = channel(&pool, 0, 0);
    let held = channel.get(1).unwrap();
    assert!(channel.get_or_wait(1, 1).unwrap().is_none());
    assert!(channel.get_or_wait(1, 2).unwrap().is_none());
    let error = channel.get_or_wait(1, 3).unwrap_err();
    assert!(
        matches!(
            error,
            DmaError::WaitersFull {
                pool: "small",
                bound: 2
            }
        ),
        "{error}"
    );
    assert!(!channel.cancel_wait(3));
    let error = channel.get_or_wait(135_169, 3).unwrap_err();
    assert!(matches!(error, DmaError::TooLong { .. }), "{error}");
    drop(held);
}

#[test]
fn the_reserve_serves_admin_commands_only_and_is_filled_again() {
    let pool = pool(1, 1, 2);
    let mut channel = channel(&pool, 1, 0);
    let normal = channel.get_reserved(1).unwrap();
    assert_eq!(pool.stats().reserve_free, 2, "it is touched last");
    let reserved = [
        channel.get_reserved(1).unwrap(),
        channel.get_reserved(8192).unwrap(),
    ];
    assert!(channel.get_reserved(1).is_none());
    assert!(channel.get(1).is_none());
    assert!(channel.get_or_wait(1, 7).unwrap().is_none());
    drop(reserved);
    let mut served = Vec::new();
    assert_eq!(
        channel.poll(&mut served),
        0,
        "the reserve is not for waiters"
    );
    assert_eq!(pool.stats().reserve_free, 2);
    drop(normal);
    assert_eq!(channel.poll(&mut served), 1);
    let large = channel.get_reserved(9000).unwrap();
    assert!(
        channel.get_reserved(9000).is_none(),
        "there is no reserve of large buffers"
    );
    drop(large);
}

#[test]
fn growth_serves_who_waits() {
    let pool = pool(1, 1, 0);
    let mut channel = channel(&pool, 0, 0);
    let held = channel.get(1).unwrap();
    for token in 0..3 {
        assert!(channel.get_or_wait(1, token).unwrap().is_none());
    }
    pool.grow(2, 0).unwrap();
    let mut served = Vec::new();
    channel.poll(&mut served);
    assert_eq!(tokens(&served), [0, 1]);
    assert_eq!(pool.stats().small.total, 3);
    assert_eq!(pool.plan_pools().small_pool_count, 3);
    drop((held, served));
}

#[test]
fn a_refused_channel_names_the_sum_and_the_option() {
    let pool = pool(256, 32, 64);
    let _first = channel(&pool, 128, 16);
    let _second = channel(&pool, 100, 16);
    let options = ChannelOptions {
        small_cache: 50,
        large_cache: 0,
        ..ChannelOptions::default()
    };
    let error = pool.channel("nvmf_tcp", options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no iobuf channel for module nvmf_tcp: small iobufs do not suffice: test 1 x 128 + \
         test 1 x 100 + nvmf_tcp 1 x 50 + reserve 64 = 342 are needed, small_pool_count is 320; \
         raise small_pool_count to at least 342 or lower iobuf_small_cache_size of test"
    );
    let options = ChannelOptions {
        small_cache: 0,
        large_cache: 1,
        ..ChannelOptions::default()
    };
    let error = pool.channel("nvmf_tcp", options).unwrap_err();
    let DmaError::DoesNotFit {
        refusal: Refusal::Buffers(shortage),
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((shortage.needed, shortage.have), (33, 32));
}

#[test]
fn a_channel_fits_by_what_is_promised_not_by_what_is_in_use() {
    let pool = pool(8, 1, 0);
    let busy = channel(&pool, 0, 0);
    let held: Vec<IoBuf> = (0..8).map(|_| busy.get(1).unwrap()).collect();
    let late = channel(&pool, 8, 0);
    assert_eq!(late.stats().small.cached, 0);
    drop(held);
    assert_eq!(pool.stats().small.free, 8);
    drop(late.get(1).unwrap());
    assert!(late.stats().small.cached > 0, "filled as buffers come back");
}

#[test]
fn caches_are_refilled_and_relieved_in_batches() {
    let pool = pool(1024, 1, 0);
    let channel = channel(&pool, 64, 0);
    assert_eq!(pool.stats().small.free, 960, "populated");
    let held: Vec<IoBuf> = (0..64 + 32).map(|_| channel.get(1).unwrap()).collect();
    assert_eq!(channel.stats().small.main, 1, "one visit for 32");
    assert_eq!(channel.stats().small.cache, 95);
    assert_eq!(channel.stats().small.cached, 0);
    drop(held);
    let stats = channel.stats().small;
    assert!((32..=64).contains(&stats.cached), "{stats:?}");
    assert_eq!(pool.stats().small.free + u64::from(stats.cached), 1024);
}

#[test]
fn the_fewest_that_were_free_are_remembered() {
    let pool = pool(4, 2, 0);
    let channel = channel(&pool, 0, 0);
    let free_min = || (pool.stats().small.free_min, pool.stats().large.free_min);
    assert_eq!(free_min(), (4, 2));
    let buffers: Vec<_> = (0..3).map(|_| channel.get(512).unwrap()).collect();
    drop(buffers);
    assert_eq!(pool.stats().small.free, 4);
    assert_eq!(free_min(), (1, 2));
}

#[test]
fn counters_tell_cache_main_and_retry_apart() {
    let pool = pool(2, 1, 0);
    let mut channel = channel(&pool, 1, 0);
    let a = channel.get(1).unwrap();
    let b = channel.get(1).unwrap();
    assert!(channel.get(1).is_none());
    assert!(channel.get_or_wait(1, 1).unwrap().is_none());
    let stats = channel.stats().small;
    assert_eq!((stats.cache, stats.main, stats.retry), (1, 1, 2));
    assert_eq!(pool.stats().small.in_use(), 2);
    assert_eq!(pool.stats().small.waiting, 1);
    drop((a, b));
    channel.poll(&mut Vec::new());
    drop(channel);
    let stats = pool.stats();
    assert!(stats.channels.is_empty());
    let module = &stats.modules[0];
    assert_eq!((module.module.as_str(), module.channels), ("test", 0));
    assert_eq!(
        (module.small.cache, module.small.main, module.small.retry),
        (1, 1, 2)
    );
    assert_eq!((stats.small.free, stats.small.cache_size), (2, 0));
}

#[test]
fn buffers_outlive_their_channel_and_the_pool_handle() {
    let pool = pool(4, 1, 0);
    let first = channel(&pool, 4, 0);
    let mut buf = first.get(100).unwrap();
    drop(first);
    assert_eq!(pool.stats().small.free, 3);
    buf.as_mut_slice().fill(7);
    let mut second = channel(&pool, 0, 0);
    let rest: Vec<IoBuf> = (0..3).map(|_| second.get(1).unwrap()).collect();
    assert!(second.get_or_wait(1, 9).unwrap().is_none());
    drop(buf);
    let mut served = Vec::new();
    assert_eq!(
        second.poll(&mut served),
        1,
        "from a closed channel to a waiter"
    );
    drop((second, rest, pool));
    let (_, mut last) = served.pop().unwrap();
    last.as_mut_slice().fill(9);
    assert_eq!(last.as_slice(), [9]);
}

#[test]
fn a_closing_channel_leaves_no_waiter_and_no_buffer_behind() {
    let pool = pool(2, 1, 0);
    let mut other = channel(&pool, 0, 0);
    let held = [other.get(1).unwrap(), other.get(1).unwrap()];
    let closing = channel(&pool, 1, 0);
    assert!(closing.get_or_wait(1, 1).unwrap().is_none());
    assert!(closing.get_or_wait(1, 2).unwrap().is_none());
    assert!(other.get_or_wait(1, 3).unwrap().is_none());
    let [first, second] = held;
    drop(first);
    drop(closing);
    let mut served = Vec::new();
    other.poll(&mut served);
    assert_eq!(
        tokens(&served),
        [3],
        "the buffer served to the closed channel went on"
    );
    drop((second, served));
    assert_eq!(pool.stats().small.free, 2);
    assert_eq!(pool.stats().small.waiting, 0);
}

#[test]
fn shared_views_are_read_only_until_one_is_left() {
    let pool = pool(1, 1, 0);
    let channel = channel(&pool, 0, 0);
    let mut buf = channel.get(100).unwrap();
    buf.as_mut_slice().copy_from_slice(&[5; 100]);
    let mut view = buf.share(10..20);
    assert_eq!((view.len(), view.capacity()), (10, 10));
    assert_eq!(view.addr(), buf.addr() + 10);
    assert!(buf.try_as_mut_slice().is_none());
    assert!(view.try_as_mut_slice().is_none());
    assert!(!view.restore(10));
    assert_eq!(view.as_slice(), &buf.as_slice()[10..20]);
    let mut nested = view.split_to(4);
    assert!(
        nested.try_as_mut_slice().is_none(),
        "a part of a shared view is shared"
    );
    drop((buf, nested));
    view.as_mut_slice().fill(6);
    assert_eq!(pool.stats().small.in_use(), 1);
    assert!(view.restore(100));
    assert_eq!(view.as_slice()[13..21], [5, 6, 6, 6, 6, 6, 6, 5]);
    drop(view);
    assert_eq!(pool.stats().small.free, 1);
}

#[test]
fn split_views_are_written_apart() {
    let pool = pool(1, 1, 0);
    let channel = channel(&pool, 0, 0);
    let mut rest = channel.get(30).unwrap();
    let mut front = rest.split_to(10);
    let mut middle = rest.split_to(10);
    front.as_mut_slice().fill(1);
    middle.as_mut_slice().fill(2);
    rest.as_mut_slice().fill(3);
    assert_eq!(
        (front.capacity(), middle.capacity(), rest.capacity()),
        (10, 10, 8192 - 20)
    );
    drop((front, middle));
    assert!(rest.restore(30));
    assert_eq!(rest.as_slice(), [[1; 10], [2; 10], [3; 10]].concat());
}

#[test]
#[should_panic(expected = "read-only")]
fn writing_a_shared_view_panics() {
    let pool = pool(1, 1, 0);
    let mut buf = channel(&pool, 0, 0).get(100).unwrap();
    let _view = buf.share(0..1);
    let _ = buf.as_mut_slice();
}

#[test]
fn wrong_options_are_refused_by_name() {
    let base = || options(8, 8, 4);
    let wrong = [
        (
            "small_bufsize",
            IobufOptions {
                small_bufsize: 0,
                ..base()
            },
        ),
        (
            "small_bufsize",
            IobufOptions {
                small_bufsize: 5000,
                ..base()
            },
        ),
        (
            "large_bufsize",
            IobufOptions {
                large_bufsize: 4096,
                ..base()
            },
        ),
        (
            "large_bufsize",
            IobufOptions {
                large_bufsize: 9000,
                ..base()
            },
        ),
        (
            "small_pool_count",
            IobufOptions {
                small_pool_count: 4,
                ..base()
            },
        ),
        (
            "large_pool_count",
            IobufOptions {
                large_pool_count: 0,
                ..base()
            },
        ),
        (
            "max_waiters",
            IobufOptions {
                max_waiters: 0,
                ..base()
            },
        ),
    ];
    for (name, options) in wrong {
        let error = IobufPool::new(options).unwrap_err();
        assert!(
            matches!(error, DmaError::IobufOption { option, .. } if option == name),
            "{name}: {error}"
        );
    }
    let huge = IobufOptions {
        large_pool_count: u32::MAX,
        large_bufsize: 1 << 30,
        ..base()
    };
    assert!(matches!(
        IobufPool::new(huge),
        Err(DmaError::RegionLength { .. } | DmaError::Map { .. })
    ));
}

#[test]
fn the_number_of_channels_and_regions_is_bounded() {
    let pool = pool(1, 1, 0);
    let open: Vec<_> = (0..dma::MAX_CHANNELS)
        .map(|_| channel(&pool, 0, 0))
        .collect();
    let error = pool.channel("test", ChannelOptions::default()).unwrap_err();
    assert!(
        matches!(
            error,
            DmaError::DoesNotFit {
                refusal: Refusal::Channels { .. },
                ..
            }
        ),
        "{error}"
    );
    drop(open);
    for _ in 1..dma::MAX_REGIONS {
        pool.grow(1, 0).unwrap();
    }
    assert!(matches!(
        pool.grow(1, 0),
        Err(DmaError::TooManyRegions { .. })
    ));
}

#[test]
fn payloads_tell_their_length_and_copy_out() {
    let pool = pool(1, 1, 0);
    let channel = channel(&pool, 0, 0);
    let mut buf = channel.get(3).unwrap();
    buf.as_mut_slice().copy_from_slice(&[1, 2, 3]);
    let region = Region::allocate(&RegionOptions {
        len: 4096,
        backing: BackingPreference::Plain4K,
        ..RegionOptions::default()
    })
    .unwrap();
    region.write_at(100, &[4, 5, 6]);
    let mut payloads = [
        Payload::None,
        Payload::from(buf),
        Payload::from(region.lend(100, 3)),
    ];
    assert_eq!(payloads.each_ref().map(Payload::len), [0, 3, 3]);
    let mut two = [0; 2];
    payloads[1].copy_range_to(1, &mut two);
    assert_eq!(two, [2, 3]);
    payloads[2].copy_range_to(0, &mut two);
    assert_eq!(two, [4, 5]);
    assert!(matches!(payloads[1].take(), Payload::Buf(_)));
    assert!(payloads[1].is_empty());
}

#[test]
fn a_payload_is_small_enough_to_move() {
    assert_eq!(size_of::<IoBuf>(), 32);
    assert!(size_of::<Payload>() <= 40, "{}", size_of::<Payload>());
}
