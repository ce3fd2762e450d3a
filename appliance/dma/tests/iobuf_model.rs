//! Random use of a pool over several channels, against a model that predicts every hand-over.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use dma::{
    BackingPreference, ChannelOptions, IoBuf, IobufChannel, IobufOptions, IobufPool, PoolStats,
};
use proptest::prelude::*;

const SMALL_BUFSIZE: usize = 4096;
const CHANNELS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Get {
        channel: usize,
        large: bool,
    },
    GetOrWait {
        channel: usize,
        large: bool,
    },
    GetReserved {
        channel: usize,
    },
    Share {
        held: usize,
    },
    Drop {
        held: usize,
    },
    Poll {
        channel: usize,
    },
    Cancel {
        token: usize,
    },
    Grow {
        small: u32,
        large: u32,
    },
    Reopen {
        channel: usize,
        small_cache: u32,
        large_cache: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let channel = || 0..CHANNELS;
    let large = || prop::bool::weighted(0.3);
    let step = prop_oneof![
        4 => (channel(), large()).prop_map(|(channel, large)| Step::Get { channel, large }),
        6 => (channel(), large()).prop_map(|(channel, large)| Step::GetOrWait { channel, large }),
        1 => channel().prop_map(|channel| Step::GetReserved { channel }),
        1 => any::<usize>().prop_map(|held| Step::Share { held }),
        8 => any::<usize>().prop_map(|held| Step::Drop { held }),
        5 => channel().prop_map(|channel| Step::Poll { channel }),
        1 => any::<usize>().prop_map(|token| Step::Cancel { token }),
        1 => (0u32..3, 0u32..3).prop_map(|(small, large)| Step::Grow { small, large }),
        1 => (channel(), 0u32..4, 0u32..3).prop_map(|(channel, small_cache, large_cache)| {
            Step::Reopen { channel, small_cache, large_cache }
        }),
    ];
    prop::collection::vec(step, 1..300)
}

/// What is expected of one channel.
#[derive(Default)]
struct Expected {
    inbox: VecDeque<u64>,
    got: [u64; 2],
    retry: [u64; 2],
}

struct World {
    pool: Arc<IobufPool>,
    channels: Vec<Option<IobufChannel>>,
    expected: Vec<Expected>,
    /// Who waits: channel and token, per size.
    queues: [VecDeque<(usize, u64)>; 2],
    /// Which size a token waits for.
    sizes: BTreeMap<u64, usize>,
    held: Vec<IoBuf>,
    next_token: u64,
}

impl World {
    fn new(small: u32, large: u32, reserve: u32) -> Self {
        let pool = IobufPool::new(IobufOptions {
            small_pool_count: small + reserve,
            large_pool_count: large,
            reserve_small: reserve,
            small_bufsize: SMALL_BUFSIZE as u32,
            large_bufsize: 8192,
            backing: BackingPreference::Plain4K,
            ..IobufOptions::default()
        })
        .unwrap();
        let mut world = Self {
            pool,
            channels: Vec::new(),
            expected: Vec::new(),
            queues: Default::default(),
            sizes: BTreeMap::new(),
            held: Vec::new(),
            next_token: 0,
        };
        for _ in 0..CHANNELS {
            let channel = world.open(1, 1);
            world.channels.push(channel);
            world.expected.push(Expected::default());
        }
        world
    }

    fn open(&self, small_cache: u32, large_cache: u32) -> Option<IobufChannel> {
        let options = ChannelOptions {
            small_cache,
            large_cache,
            ..ChannelOptions::default()
        };
        self.pool.channel("model", options).ok()
    }

    /// `count` buffers of a size became free: the model serves its queue.
    fn serve(&mut self, size: usize, count: usize) {
        for _ in 0..count {
            if let Some((channel, token)) = self.queues[size].pop_front() {
                self.expected[channel].inbox.push_back(token);
            }
        }
    }

    /// A fresh buffer: nobody else has it. Writes a mark that must still be there at the end.
    fn hold(&mut self, mut buf: IoBuf) {
        let mark = self.next_mark();
        buf.as_mut_slice()[..8].copy_from_slice(&mark);
        self.held.push(buf);
    }

    fn next_mark(&mut self) -> [u8; 8] {
        self.next_token += 1;
        self.next_token.to_le_bytes()
    }

    fn drop_held(&mut self, index: usize) {
        let buf = self.held.swap_remove(index);
        let returned = buf.is_sole().then(|| size_of(&buf));
        let before = self.pool.stats();
        drop(buf);
        let after = self.pool.stats();
        let Some(size) = returned.filter(|_| before.reserve_free == after.reserve_free) else {
            return;
        };
        self.serve_returned(size, &before, &after);
    }

    /// One buffer of a size was returned. A full cache gives a batch of its own along with it.
    fn serve_returned(&mut self, size: usize, before: &PoolStats, after: &PoolStats) {
        let cached = |stats: &PoolStats| [stats.small.cached, stats.large.cached][size] as usize;
        self.serve(size, (1 + cached(before)).saturating_sub(cached(after)));
    }

    fn poll(&mut self, index: usize) {
        let Some(channel) = &mut self.channels[index] else {
            return;
        };
        let before = channel.stats();
        let mut served = Vec::new();
        channel.poll(&mut served);
        let mut tokens: Vec<u64> = served.iter().map(|(token, _)| *token).collect();
        let mut expected: Vec<u64> = self.expected[index].inbox.drain(..).collect();
        // Each size has a queue of its own; between the two there is no order.
        tokens.sort_by_key(|token| self.sizes[token]);
        expected.sort_by_key(|token| self.sizes[token]);
        assert_eq!(
            tokens, expected,
            "channel {index}: who waited first is served first"
        );
        for (size, cached) in [before.small.cached, before.large.cached]
            .into_iter()
            .enumerate()
        {
            let wanted = self.queues[size].len();
            self.serve(size, wanted.min(cached as usize));
        }
        for (token, buf) in served {
            assert_eq!(self.sizes.remove(&token), Some(size_of(&buf)));
            self.hold(buf);
        }
    }

    fn cancel(&mut self, token: u64) {
        let waits = self
            .queues
            .iter()
            .flatten()
            .find(|(_, t)| *t == token)
            .map(|(c, _)| *c);
        let served = self.expected.iter().position(|e| e.inbox.contains(&token));
        let before = self.pool.stats();
        for index in 0..CHANNELS {
            let Some(channel) = &mut self.channels[index] else {
                continue;
            };
            let expected = waits == Some(index) || served == Some(index);
            assert_eq!(channel.cancel_wait(token), expected);
        }
        for queue in &mut self.queues {
            queue.retain(|(_, t)| *t != token);
        }
        if let Some(index) = served {
            let after = self.pool.stats();
            self.expected[index].inbox.retain(|t| *t != token);
            self.serve_returned(self.sizes[&token], &before, &after);
        }
        self.sizes.remove(&token);
    }

    fn close(&mut self, index: usize) {
        let Some(channel) = self.channels[index].take() else {
            return;
        };
        let stats = channel.stats();
        for queue in &mut self.queues {
            queue.retain(|(channel, _)| *channel != index);
        }
        let expected = std::mem::take(&mut self.expected[index]);
        let mut freed = [stats.small.cached as usize, stats.large.cached as usize];
        for token in expected.inbox {
            freed[self.sizes[&token]] += 1;
        }
        drop(channel);
        self.serve(0, freed[0]);
        self.serve(1, freed[1]);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Get {
                channel: index,
                large,
            } => {
                let Some(channel) = &self.channels[index] else {
                    return;
                };
                let size = usize::from(large);
                match channel.get(length(large)) {
                    Some(buf) => {
                        self.expected[index].got[size] += 1;
                        self.hold(buf);
                    }
                    None => self.expected[index].retry[size] += 1,
                }
            }
            Step::GetOrWait {
                channel: index,
                large,
            } => {
                let Some(channel) = &self.channels[index] else {
                    return;
                };
                let size = usize::from(large);
                self.next_token += 1;
                match channel.get_or_wait(length(large), self.next_token).unwrap() {
                    Some(buf) => {
                        self.expected[index].got[size] += 1;
                        self.hold(buf);
                    }
                    None => {
                        self.expected[index].retry[size] += 1;
                        self.queues[size].push_back((index, self.next_token));
                        self.sizes.insert(self.next_token, size);
                    }
                }
            }
            Step::GetReserved { channel: index } => {
                let Some(channel) = &self.channels[index] else {
                    return;
                };
                match channel.get_reserved(10) {
                    Some(buf) => {
                        self.expected[index].got[0] += 1;
                        self.hold(buf);
                    }
                    None => self.expected[index].retry[0] += 1,
                }
            }
            Step::Share { held } => {
                if let Some(index) = held.checked_rem(self.held.len()) {
                    let buf = &mut self.held[index];
                    let len = buf.len();
                    let view = buf.share(0..len);
                    self.held.push(view);
                }
            }
            Step::Drop { held } => {
                if let Some(index) = held.checked_rem(self.held.len()) {
                    self.drop_held(index);
                }
            }
            Step::Poll { channel } => self.poll(channel),
            Step::Cancel { token } => {
                let index = token.checked_rem(self.sizes.len());
                let token = index.and_then(|index| self.sizes.keys().nth(index).copied());
                self.cancel(token.unwrap_or(u64::MAX));
            }
            Step::Grow { small, large } => {
                self.pool.grow(small, large).unwrap();
                self.serve(0, small as usize);
                self.serve(1, large as usize);
            }
            Step::Reopen {
                channel,
                small_cache,
                large_cache,
            } => {
                self.close(channel);
                self.channels[channel] = self.open(small_cache, large_cache);
            }
        }
    }

    /// What must hold after every step.
    fn check(&self) {
        let stats = self.pool.stats();
        let mut delivered = [0u64; 2];
        for token in self.expected.iter().flat_map(|expected| &expected.inbox) {
            delivered[self.sizes[token]] += 1;
        }
        let mut in_use = [BTreeSet::new(), BTreeSet::new()];
        for buf in &self.held {
            in_use[size_of(buf)].insert(buf.addr());
        }
        let reserve_used = stats.reserve_total - stats.reserve_free;
        assert_eq!(
            stats.small.in_use() + reserve_used,
            in_use[0].len() as u64 + delivered[0]
        );
        assert_eq!(stats.large.in_use(), in_use[1].len() as u64 + delivered[1]);
        for (size, class) in [&stats.small, &stats.large].into_iter().enumerate() {
            assert_eq!(class.waiting, self.queues[size].len() as u64);
            assert!(
                class.waiting == 0 || class.free == 0,
                "nobody waits beside free buffers"
            );
            assert!(class.cached <= class.cache_size);
        }
        for (channel, expected) in self.channels.iter().zip(&self.expected) {
            let Some(stats) = channel.as_ref().map(IobufChannel::stats) else {
                continue;
            };
            assert_eq!([stats.small.retry, stats.large.retry], expected.retry);
            let got = [stats.small, stats.large].map(|cache| cache.cache + cache.main);
            assert_eq!(got, expected.got);
        }
    }
}

fn size_of(buf: &IoBuf) -> usize {
    usize::from(buf.len() > SMALL_BUFSIZE)
}

fn length(large: bool) -> usize {
    if large { SMALL_BUFSIZE + 1 } else { 100 }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 400,
        max_shrink_iters: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn no_buffer_is_lost_or_in_two_hands_and_waiters_keep_their_order(
        small in 4u32..12, large in 4u32..8, reserve in 0u32..3, steps in steps(),
    ) {
        let mut world = World::new(small, large, reserve);
        world.check();
        for step in &steps {
            world.step(step);
            world.check();
        }
        // In the end all comes back, whatever order things go in.
        let pool = Arc::clone(&world.pool);
        if steps.len() % 2 == 0 {
            world.channels.clear();
            world.held.clear();
        } else {
            world.held.clear();
            world.channels.clear();
        }
        let stats = pool.stats();
        prop_assert_eq!(stats.small.free, stats.small.total);
        prop_assert_eq!(stats.large.free, stats.large.total);
        prop_assert_eq!(stats.reserve_free, stats.reserve_total);
        prop_assert_eq!(stats.small.waiting + stats.large.waiting, 0);
        prop_assert_eq!(stats.small.cache_size, 0);
    }
}
