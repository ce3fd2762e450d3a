//! Nanoseconds per call of the iobuf hot path. `cargo bench -p dma`.

use std::hint::black_box;
use std::time::Instant;

use dma::{BackingPreference, ChannelOptions, IoBuf, IobufChannel, IobufOptions, IobufPool};

const ROUNDS: u32 = 9;

/// Prints the best of several rounds: the machine may have been busy in the others.
fn measure(name: &str, calls: u32, mut run: impl FnMut()) {
    run();
    let best = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_nanos() as f64 / f64::from(calls)
    });
    println!("{name:<52} {:>8.2} ns", best.fold(f64::INFINITY, f64::min));
}

fn burst(channel: &IobufChannel, held: &mut Vec<IoBuf>, depth: usize, calls: u32) {
    for _ in 0..calls as usize / depth {
        for _ in 0..depth {
            held.push(channel.get(4096).expect("the pool is large enough"));
        }
        held.clear();
    }
}

fn main() {
    let options = IobufOptions {
        backing: BackingPreference::Auto,
        ..IobufOptions::default()
    };
    let pool = IobufPool::new(options).expect("a pool");
    for notice in pool.notices() {
        println!("note: {notice}");
    }
    let cached = ChannelOptions::default();
    let bare = ChannelOptions {
        small_cache: 0,
        large_cache: 0,
        ..ChannelOptions::default()
    };
    let mut channel = pool.channel("bench", cached).expect("a channel");
    let direct = pool.channel("bench_bare", bare).expect("a channel");
    let calls = 1_000_000;

    measure("get + drop, from the cache", calls, || {
        for _ in 0..calls {
            black_box(channel.get(black_box(4096)));
        }
    });
    measure("get_or_wait + drop, from the cache", calls, || {
        for token in 0..calls {
            let _ = black_box(channel.get_or_wait(black_box(4096), u64::from(token)));
        }
    });
    let mut held = Vec::with_capacity(1024);
    measure("get + drop, 32 held, from the cache", calls, || {
        burst(&channel, &mut held, 32, calls);
    });
    measure(
        "get + drop, 512 held, 128 cached (batches of 32)",
        calls,
        || {
            burst(&channel, &mut held, 512, calls);
        },
    );
    measure("get + drop, no cache (a lock each way)", calls, || {
        for _ in 0..calls {
            black_box(direct.get(black_box(4096)));
        }
    });
    let mut buf = channel.get(8192).expect("a buffer");
    measure("share + drop", calls, || {
        for _ in 0..calls {
            black_box(buf.share(0..4096));
        }
    });
    let mut served = Vec::new();
    measure("poll, nothing to do", calls, || {
        for _ in 0..calls {
            black_box(channel.poll(&mut served));
        }
    });
    copies();
}

fn copies() {
    let region = dma::Region::allocate(&dma::RegionOptions {
        len: 8 << 20,
        prefault: true,
        ..dma::RegionOptions::default()
    });
    let region = region.expect("a region");
    let calls = 20_000;
    for len in [512, 4096, 131_072] {
        let mut into = vec![0u8; len];
        measure(&format!("region.read_at, {len} bytes"), calls, || {
            for _ in 0..calls {
                region.read_at(black_box(4096), &mut into);
            }
        });
        let from = vec![1u8; len];
        let mut plain = vec![0u8; len];
        measure(
            &format!("slice copy, {len} bytes (to compare)"),
            calls,
            || {
                for _ in 0..calls {
                    plain.copy_from_slice(black_box(&from));
                    black_box(&mut plain);
                }
            },
        );
    }
}
