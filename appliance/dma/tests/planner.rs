//! The planner's verdict is what happens.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use dma::planner::{Plan, PlanInput, PlanPools, PoolKind, Refusal, Taker, plan};
use dma::{
    BackingPreference, ChannelOptions, DmaError, IoBuf, IobufChannel, IobufOptions, IobufPool,
};
use proptest::prelude::*;

fn taker(name: &str, small_cache: u32, large_cache: u32) -> Taker {
    Taker {
        name: name.to_owned(),
        small_cache,
        large_cache,
        channels: None,
    }
}

fn usual(threads: u32) -> PlanInput {
    PlanInput {
        threads,
        transports: vec![taker("nvmf_tcp", 256, 32)],
        devices: vec![taker("bdev", 128, 16)],
        pools: PlanPools {
            small_pool_count: 8192,
            large_pool_count: 1024,
            reserve_small: 64,
        },
    }
}

#[test]
fn a_plan_says_who_takes_what() {
    let plan = plan(&usual(4)).unwrap();
    let shares: Vec<_> = plan
        .shares
        .iter()
        .map(|s| (s.name.as_str(), s.channels, s.small, s.large))
        .collect();
    assert_eq!(shares, [("nvmf_tcp", 4, 1024, 128), ("bdev", 4, 512, 64)]);
    assert_eq!(
        (plan.small_taken, plan.small_reserve, plan.small_left),
        (1536, 64, 6592)
    );
    assert_eq!((plan.large_taken, plan.large_left), (192, 832));
}

#[test]
fn a_refusal_names_the_sum_and_the_option_to_change() {
    let refusal = plan(&usual(32)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "small iobufs do not suffice: nvmf_tcp 32 x 256 + bdev 32 x 128 + reserve 64 = 12352 are \
         needed, small_pool_count is 8192; raise small_pool_count to at least 12352 or lower \
         iobuf_small_cache_size of nvmf_tcp"
    );
    let mut input = usual(32);
    input.pools.small_pool_count = 12_352;
    let refusal = plan(&input).unwrap_err();
    assert!(
        refusal
            .to_string()
            .contains("= 1536 are needed, large_pool_count is 1024")
    );
    input.pools.large_pool_count = 1536;
    assert_eq!(plan(&input).unwrap().large_left, 0);
}

#[test]
fn numbers_that_overflow_are_refused_not_wrapped() {
    let mut input = usual(0);
    let all = u32::MAX;
    input.pools = PlanPools {
        small_pool_count: all,
        large_pool_count: all,
        reserve_small: all,
    };
    assert!(plan(&input).is_ok());
    input.threads = 4096;
    input.devices.clear();
    input.transports[0].small_cache = all;
    let refusal = plan(&input).unwrap_err();
    let Refusal::Buffers(shortage) = refusal else {
        panic!("{refusal}")
    };
    assert_eq!(shortage.needed, u64::from(all) * 4097);
    assert_eq!(shortage.pool, PoolKind::Small);
    input.threads = all;
    input.transports.push(taker("other", 0, 0));
    assert!(matches!(plan(&input), Err(Refusal::Channels { .. })));
}

fn takers(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Taker>> {
    prop::collection::vec(
        (0u32..40, 0u32..12, prop::option::of(0u32..4)),
        0..=names.len(),
    )
    .prop_map(move |sizes| {
        sizes
            .into_iter()
            .zip(names)
            .map(|((small_cache, large_cache, channels), name)| Taker {
                name: (*name).to_owned(),
                small_cache,
                large_cache,
                channels,
            })
            .collect()
    })
}

fn inputs() -> impl Strategy<Value = PlanInput> {
    let pools = (0u32..20, 1u32..300, 1u32..100).prop_map(|(reserve_small, small, large)| {
        let small_pool_count = reserve_small + small;
        PlanPools {
            small_pool_count,
            large_pool_count: large,
            reserve_small,
        }
    });
    let (transports, devices) = (takers(&["tcp", "rdma"]), takers(&["bdev", "accel", "raid"]));
    (1u32..6, transports, devices, pools).prop_map(|(threads, transports, devices, pools)| {
        PlanInput {
            threads,
            transports,
            devices,
            pools,
        }
    })
}

fn pool_of(pools: PlanPools) -> std::sync::Arc<IobufPool> {
    IobufPool::new(IobufOptions {
        small_pool_count: pools.small_pool_count,
        large_pool_count: pools.large_pool_count,
        reserve_small: pools.reserve_small,
        small_bufsize: 4096,
        large_bufsize: 8192,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    })
    .unwrap()
}

/// All channels of the input, in an order that `seed` picks.
fn openings(input: &PlanInput, seed: u64) -> Vec<&Taker> {
    let mut all: Vec<&Taker> = input
        .transports
        .iter()
        .chain(&input.devices)
        .flat_map(|taker| {
            std::iter::repeat_n(taker, taker.channels.unwrap_or(input.threads) as usize)
        })
        .collect();
    let mut state = seed;
    for index in (1..all.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        all.swap(index, (state >> 33) as usize % (index + 1));
    }
    all
}

fn assert_really_so(plan: &Plan, pool: &IobufPool, channels: &[IobufChannel]) {
    let stats = pool.stats();
    assert_eq!(stats.small.free, plan.small_left);
    assert_eq!(stats.large.free, plan.large_left);
    assert_eq!(stats.small.cached, plan.small_taken);
    assert_eq!(stats.large.cached, plan.large_taken);
    assert_eq!(stats.reserve_free, plan.small_reserve);
    for share in &plan.shares {
        let of_module = stats
            .modules
            .iter()
            .find(|module| module.module == share.name);
        let (small, large) = of_module.map_or((0, 0), |m| (m.small.cached, m.large.cached));
        assert_eq!(
            (u64::from(small), u64::from(large)),
            (share.small, share.large)
        );
    }
    // Every buffer that a cache was promised is there, without a visit to the central pool.
    for channel in channels {
        let stats = channel.stats();
        let held: Vec<IoBuf> = (0..stats.small.cache_size)
            .map(|_| channel.get(1).unwrap())
            .collect();
        assert_eq!(channel.stats().small.main, 0);
        assert_eq!(held.len(), stats.small.cache_size as usize);
    }
}

fn quiet() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(quiet())]
    #[test]
    fn the_verdict_equals_what_happens(
        input in inputs(),
        seed in any::<u64>(),
        busy in 0usize..50,
    ) {
        let pool = pool_of(input.pools);
        prop_assert_eq!(pool.plan_pools(), input.pools);
        let verdict = plan(&input);
        // Buffers in use at the moment change nothing about it.
        let (small_cache, large_cache) = (0, 0);
        let options = ChannelOptions { small_cache, large_cache, ..ChannelOptions::default() };
        let other = pool.channel("busy", options).unwrap();
        let held: Vec<_> = (0..busy).map_while(|_| other.get(1)).collect();
        let mut channels = Vec::new();
        let mut refused = None;
        for taker in openings(&input, seed) {
            let Taker { small_cache, large_cache, .. } = *taker;
            let options = ChannelOptions { small_cache, large_cache, ..ChannelOptions::default() };
            match pool.channel(&taker.name, options) {
                Ok(channel) => channels.push(channel),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match verdict {
            Ok(plan) => {
                prop_assert!(refused.is_none(), "{:?}", refused);
                if held.is_empty() {
                    assert_really_so(&plan, &pool, &channels);
                }
            }
            Err(refusal) => {
                let is_shortage = matches!(refused, Some(DmaError::DoesNotFit { .. }));
                prop_assert!(is_shortage, "planned: {}, but nothing was refused", refusal);
                // What the refusal asks for is enough, and one less is not.
                let Refusal::Buffers(shortage) = refusal else { panic!("few channels") };
                let mut enough = input.clone();
                let count = match shortage.pool {
                    PoolKind::Small => &mut enough.pools.small_pool_count,
                    PoolKind::Large => &mut enough.pools.large_pool_count,
                };
                *count = u32::try_from(shortage.needed).unwrap();
                let short_of = |input: &PlanInput| match plan(input) {
                    Err(Refusal::Buffers(shortage)) => Some(shortage.pool),
                    _ => None,
                };
                prop_assert!(short_of(&enough) != Some(shortage.pool));
            }
        }
    }

    #[test]
    fn growth_by_what_is_missing_makes_room(input in inputs()) {
        let pool = pool_of(input.pools);
        let missing = |kind| match plan(&PlanInput { pools: pool.plan_pools(), ..input.clone() }) {
            Err(Refusal::Buffers(s)) if s.pool == kind => u32::try_from(s.needed - s.have).unwrap(),
            _ => 0,
        };
        let small = missing(PoolKind::Small);
        pool.grow(small, 0).unwrap();
        let large = missing(PoolKind::Large);
        pool.grow(0, large).unwrap();
        let mut open = Vec::new();
        for taker in openings(&input, 1) {
            let Taker { small_cache, large_cache, .. } = *taker;
            let options = ChannelOptions { small_cache, large_cache, ..ChannelOptions::default() };
            open.push(pool.channel(&taker.name, options).unwrap());
        }
    }
}
