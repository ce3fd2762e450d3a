//! Cost of the block layer: nanoseconds per operation, and what a file on this machine gives.
//!
//! `cargo bench -p block`. Set `ADIT_BENCH_DIR` to a folder on the file system to measure.

#![expect(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::file::{File, FileOptions};
use block::malloc::{Malloc, MallocOptions};
use block::null::{Null, NullOptions};
use block::{
    Bdev, BdevChannel, BdevOptions, BlockDevice, ChannelContext, Io, Op, QosLimits, Submit,
};
use dma::{BackingPreference, ChannelOptions, IobufChannel, IobufOptions, IobufPool, Payload};

const ROUNDS: u32 = 7;
const MALLOC_BYTES: u64 = 64 << 20;

fn main() {
    let pool = pool();
    let buffers = pool.channel("bench", ChannelOptions::default()).unwrap();
    let null = Null::new(NullOptions {
        block_size: 512,
        block_count: 1 << 30,
    })
    .unwrap();
    let malloc = |transparent_huge| {
        let options = MallocOptions::new(512, MALLOC_BYTES / 512);
        Malloc::new(MallocOptions {
            transparent_huge: Some(transparent_huge),
            ..options
        })
        .unwrap()
    };

    println!("{:<44} {:>12} {:>12}", "", "best ns/op", "median ns/op");
    let mut channel = open(null.clone(), &pool);
    measure("null, flush", || flush(&mut channel));
    measure("null, 4 KiB read, lent", || read_lent(&mut channel, 0));
    let bdev = Arc::clone(channel.bdev());
    // The clock stands still here, so it lives on the burst.
    let limits = QosLimits {
        rw_ios_per_sec: 1 << 40,
        burst_ms: 60_000,
        ..QosLimits::default()
    };
    bdev.set_qos(&limits, Instant::now()).unwrap();
    measure("null, 4 KiB read, lent, IOPS limit never met", || {
        read_lent(&mut channel, 0);
    });

    let mut random = 1;
    let mut payload = Payload::from(buffers.get(4096).unwrap());
    let op = Op::Write { fua: false };
    for (pages, device) in [("4 KiB pages", malloc(false)), ("huge pages", malloc(true))] {
        println!("malloc of 64 MiB, {pages}");
        let mut channel = open(device, &pool);
        fill(&mut channel, &buffers);
        measure("  4 KiB random read, lent", || {
            read_lent(&mut channel, next_lba(&mut random));
        });
        measure("  4 KiB random read, copied", || {
            payload = transfer(
                &mut channel,
                Op::Read,
                next_lba(&mut random),
                payload.take(),
            );
        });
        measure("  4 KiB random write", || {
            payload = transfer(&mut channel, op, next_lba(&mut random), payload.take());
        });
        measure("  4 KiB write, same block (cached)", || {
            payload = transfer(&mut channel, op, 0, payload.take());
        });
    }
    let region = dma::Region::allocate(&dma::RegionOptions {
        len: 4096,
        backing: BackingPreference::Plain4K,
        ..Default::default()
    });
    let region = region.unwrap();
    let bytes = vec![1; 4096];
    measure("for comparison: lending alone", || {
        std::hint::black_box(region.lend(0, 4096));
    });
    measure("for comparison: the 4 KiB copy alone, cached", || {
        region.write_at(0, &bytes);
    });

    file_random_read(&pool, &buffers);
}

fn pool() -> Arc<IobufPool> {
    let options = IobufOptions {
        small_pool_count: 1024,
        large_pool_count: 32,
        backing: BackingPreference::Auto,
        ..IobufOptions::default()
    };
    IobufPool::new(options).unwrap()
}

fn open(device: Arc<dyn BlockDevice>, pool: &Arc<IobufPool>) -> BdevChannel {
    let bdev = Bdev::new(BdevOptions::named("disk"), device, Instant::now()).unwrap();
    let context = ChannelContext::new("bench", Waker::noop().clone()).with_pool(Arc::clone(pool));
    bdev.open(&context).unwrap()
}

/// One operation per call; the clock is read once per batch, as a reactor does once per turn.
fn measure(name: &str, mut operation: impl FnMut()) {
    const BATCH: u32 = 200_000;
    let mut results: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..BATCH {
                operation();
            }
            start.elapsed().as_nanos() as f64 / f64::from(BATCH)
        })
        .collect();
    results.sort_by(f64::total_cmp);
    println!(
        "{name:<44} {:>12.1} {:>12.1}",
        results[0],
        results[results.len() / 2]
    );
}

thread_local! {
    static NOW: Instant = Instant::now();
}

fn transfer(channel: &mut BdevChannel, op: Op, lba: u64, payload: Payload) -> Payload {
    let now = NOW.with(|now| *now);
    match channel.submit(Io::with_payload(op, lba, 8, payload, 1), now) {
        Submit::Done(completion) => {
            assert!(completion.result.is_ok());
            completion.io.payload
        }
        Submit::Pending => panic!("a RAM device answers at once"),
    }
}

fn read_lent(channel: &mut BdevChannel, lba: u64) {
    drop(transfer(channel, Op::Read, lba, Payload::None));
}

fn flush(channel: &mut BdevChannel) {
    drop(transfer(channel, Op::Flush, 0, Payload::None));
}

/// A multiple of 8 blocks within the malloc device.
fn next_lba(random: &mut u64) -> u64 {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*random >> 33) % (MALLOC_BYTES / 4096) * 8
}

fn fill(channel: &mut BdevChannel, buffers: &IobufChannel) {
    let mut payload = Payload::from(buffers.get(4096).unwrap());
    for lba in (0..MALLOC_BYTES / 512).step_by(8) {
        payload = transfer(channel, Op::Write { fua: false }, lba, payload);
    }
}

/// 4 KiB random reads of a file, 32 in flight, for two seconds.
fn file_random_read(pool: &Arc<IobufPool>, buffers: &IobufChannel) {
    const BYTES: u64 = 256 << 20;
    let folder = match std::env::var_os("ADIT_BENCH_DIR") {
        Some(folder) => tempfile::tempdir_in(folder).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let options = FileOptions::create(folder.path().join("disk"), BYTES);
    let (file, notice) = File::open(FileOptions {
        block_size: 4096,
        ..options
    })
    .unwrap();
    if let Some(notice) = notice {
        println!("{notice}");
    }
    let mut channel = open(file, pool);
    let mut done = Vec::new();
    for chunk in 0..BYTES / 131_072 {
        let mut buf = buffers.get(131_072).unwrap();
        buf.as_mut_slice().fill(chunk as u8);
        let io = Io::with_payload(Op::Write { fua: false }, chunk * 32, 32, buf.into(), 0);
        let _ = channel.submit(io, Instant::now());
        while channel.in_flight() > 0 {
            channel.poll(Instant::now(), &mut done);
        }
        done.clear();
    }
    let mut random = 1;
    let mut count = 0u64;
    let start = Instant::now();
    for tag in 0..32 {
        let lba = next_lba(&mut random) / 8;
        let payload = buffers.get(4096).unwrap().into();
        let _ = channel.submit(Io::with_payload(Op::Read, lba, 1, payload, tag), start);
    }
    while start.elapsed() < Duration::from_secs(2) {
        let now = Instant::now();
        channel.poll(now, &mut done);
        for completion in done.drain(..) {
            assert!(completion.result.is_ok());
            count += 1;
            let lba = next_lba(&mut random) / 8;
            let io = Io::with_payload(Op::Read, lba, 1, completion.io.payload, completion.io.tag);
            let _ = channel.submit(io, now);
        }
    }
    let elapsed = start.elapsed();
    while channel.in_flight() > 0 {
        channel.poll(Instant::now(), &mut done);
    }
    let reads = channel
        .bdev()
        .statistics()
        .kind(block::OpKind::Read)
        .clone();
    println!(
        "file, 4 KiB random read, 32 in flight: {:.0} IOPS, p50 {:?}, p99 {:?}",
        count as f64 / elapsed.as_secs_f64(),
        reads.histogram.quantile(0.5).unwrap(),
        reads.histogram.quantile(0.99).unwrap(),
    );
}
