//! What a volume costs over its bare device, and what calls about many volumes take.
//!
//! `cargo bench -p lvol`. Everything runs on one thread over a RAM disk: the worker is stepped when
//! an I/O waits for it.

#![expect(clippy::unwrap_used, reason = "a bench may stop at the first surprise")]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::malloc::{Malloc, MallocOptions};
use block::{
    Bdev, BdevChannel, BdevOptions, BlockDevice, ChannelContext, Completion, Io, Op, Submit,
};
use dma::{BackingPreference, ChannelOptions, IobufChannel, IobufOptions, IobufPool, Payload};
use lvol::{CreateOptions, Host, LvolError, NewVolume, Pool, PoolOptions, PoolWorker, Promise};

const DEVICE_BYTES: u64 = 2 << 30;
const VOLUME_BYTES: u64 = 1 << 30;
const BLOCK: u64 = 4096;
const ROUNDS: usize = 5;

#[derive(Debug)]
struct Clock;

impl Host for Clock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, _: Option<BorrowedFd<'_>>, _: Option<Instant>) {
        std::hint::spin_loop();
    }
}

struct Bench {
    base: Arc<Bdev>,
    buffers: Arc<IobufPool>,
    payloads: IobufChannel,
    pool: Pool,
    worker: PoolWorker,
}

fn main() {
    let mut bench = Bench::new();
    bench.data_path();
    drop(bench);
    many_volumes();
    chain_of_snapshots();
}

fn buffers() -> Arc<IobufPool> {
    let options = IobufOptions {
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    };
    IobufPool::new(options).unwrap()
}

impl Bench {
    fn new() -> Self {
        Self::with_device(DEVICE_BYTES)
    }

    fn with_device(bytes: u64) -> Self {
        let device = Malloc::new(MallocOptions::new(BLOCK as u32, bytes / BLOCK)).unwrap();
        let base = Bdev::new(BdevOptions::named("base"), device, Instant::now()).unwrap();
        let buffers = buffers();
        let options = PoolOptions::new(Arc::clone(&buffers));
        let create = CreateOptions::named("tank");
        let (pool, worker) = PoolWorker::create(
            &base,
            &create,
            options,
            Box::new(Clock),
            Waker::noop().clone(),
        )
        .unwrap();
        let payloads = buffers.channel("bench", ChannelOptions::default()).unwrap();
        Self {
            base,
            buffers,
            payloads,
            pool,
            worker,
        }
    }

    fn wait<T>(&mut self, promise: &Promise<T>) -> Result<T, LvolError> {
        loop {
            if let Some(answer) = promise.try_take() {
                return answer;
            }
            self.worker.step(Instant::now());
        }
    }

    fn create(&mut self, name: &str, size_bytes: u64) -> Promise<lvol::VolumeInfo> {
        self.pool.create_volume(NewVolume {
            name: name.to_owned(),
            size_bytes,
            ..NewVolume::default()
        })
    }

    fn volume(&mut self, name: &str) -> BdevChannel {
        let promise = self.pool.device(name);
        let device = self.wait(&promise).unwrap();
        self.open(device)
    }

    fn open(&self, device: Arc<dyn BlockDevice>) -> BdevChannel {
        let bdev = Bdev::new(BdevOptions::named("d"), device, Instant::now()).unwrap();
        let context = ChannelContext::new("bench", Waker::noop().clone())
            .with_pool(Arc::clone(&self.buffers));
        bdev.open(&context).unwrap()
    }

    /// Nanoseconds of one I/O, `depth` in flight.
    fn run(
        &mut self,
        channel: &mut BdevChannel,
        op: Op,
        depth: u64,
        count: u64,
        mut place: impl FnMut() -> u64,
    ) -> f64 {
        let mut done: Vec<Completion> = Vec::new();
        let mut payloads: Vec<Payload> = (0..depth)
            .map(|_| self.payloads.get(BLOCK as usize).unwrap().into())
            .collect();
        let start = Instant::now();
        let (mut started, mut ended) = (0, 0);
        while ended < count {
            while started < count
                && let Some(payload) = payloads.pop()
            {
                started += 1;
                let io = Io::with_payload(op, place(), 1, payload, started);
                match channel.submit(io, start) {
                    Submit::Done(completion) => done.push(completion),
                    Submit::Pending => {}
                }
            }
            if done.is_empty() {
                self.worker.step(start);
                channel.poll(start, &mut done);
            }
            for completion in done.drain(..) {
                completion.result.unwrap();
                ended += 1;
                payloads.push(completion.io.payload);
            }
        }
        start.elapsed().as_nanos() as f64 / count as f64
    }

    fn best(&mut self, channel: &mut BdevChannel, op: Op) -> f64 {
        let mut random = 7;
        (0..ROUNDS)
            .map(|_| self.run(channel, op, 32, 300_000, || next(&mut random)))
            .fold(f64::MAX, f64::min)
    }

    fn data_path(&mut self) {
        let write = Op::Write { fua: false };
        let bare = Malloc::new(MallocOptions::new(BLOCK as u32, VOLUME_BYTES / BLOCK)).unwrap();
        let mut bare = self.open(bare);
        let promise = self.create("v", VOLUME_BYTES);
        self.wait(&promise).unwrap();
        let mut volume = self.volume("v");
        let blocks = VOLUME_BYTES / BLOCK;
        let mut at = 0;
        self.run(&mut bare, write, 32, blocks, || {
            at += 1;
            at - 1
        });
        // Each block once, in an order of no pattern.
        let before = self.base.statistics();
        let mut at = 0_u64;
        let first = self.run(&mut volume, write, 32, blocks, || {
            at = at.wrapping_add(0x9e37_79b1) % blocks;
            at
        });
        let after = self.base.statistics();
        println!("4 KiB random, depth 32, RAM disk, ns per I/O:");
        let bare_read = self.best(&mut bare, Op::Read);
        let read = self.best(&mut volume, Op::Read);
        println!(
            "  read   bare {bare_read:6.0}  volume {read:6.0}  {:.2} of its rate",
            bare_read / read
        );
        let bare_write = self.best(&mut bare, write);
        let mapped = self.best(&mut volume, write);
        println!(
            "  write  bare {bare_write:6.0}  volume {mapped:6.0}  {:.2} of its rate",
            bare_write / mapped
        );
        println!(
            "  first write  {first:6.0}  {:.2} of the rate on mapped clusters",
            mapped / first
        );
        drop((before, after));
        let start = Instant::now();
        let promise = self
            .pool
            .create_snapshots(&[("v".to_owned(), "s".to_owned())], 0);
        self.wait(&promise).unwrap();
        println!("  snapshot, {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    }
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random % (VOLUME_BYTES / BLOCK)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn many_volumes() {
    let mut bench = Bench::with_device(DEVICE_BYTES);
    let start = Instant::now();
    for number in 0..1000 {
        let promise = bench.create(&format!("one-{number}"), 1 << 40);
        bench.wait(&promise).unwrap();
    }
    println!(
        "1,000 volumes, one after another: {:.0} ms",
        milliseconds(start)
    );
    let start = Instant::now();
    for number in 0..1000 / 16 {
        let calls: Vec<_> = (0..16)
            .map(|call| bench.create(&format!("many-{number}-{call}"), 1 << 40))
            .collect();
        for call in &calls {
            bench.wait(call).unwrap();
        }
    }
    println!(
        "992 volumes, 16 calls in flight: {:.0} ms",
        milliseconds(start)
    );
    let calls: Vec<_> = (0..8000)
        .map(|number| {
            let call = bench.create(&format!("more-{number}"), 1 << 40);
            if number % 1000 == 999 {
                bench.worker.step(Instant::now());
                bench.worker.step(Instant::now());
            }
            call
        })
        .collect();
    for call in &calls {
        bench.wait(call).unwrap();
    }
    let base = Arc::clone(&bench.base);
    let promise = bench.pool.close();
    bench.wait(&promise).unwrap();
    drop(bench);
    let options = PoolOptions::new(buffers());
    let start = Instant::now();
    let (_, worker) =
        PoolWorker::open(&base, options, Box::new(Clock), Waker::noop().clone()).unwrap();
    println!(
        "opening a pool of 9,992 volumes: {:.1} ms",
        milliseconds(start)
    );
    drop(worker);
}

fn chain_of_snapshots() {
    let mut bench = Bench::with_device(DEVICE_BYTES);
    let promise = bench.create("v", VOLUME_BYTES);
    bench.wait(&promise).unwrap();
    let mut volume = bench.volume("v");
    let start = Instant::now();
    for number in 0..1000 {
        bench.run(&mut volume, Op::Write { fua: false }, 1, 1, || number);
        let pair = [("v".to_owned(), format!("s{number}"))];
        let promise = bench.pool.create_snapshots(&pair, 0);
        bench.wait(&promise).unwrap();
    }
    println!("a chain of 1,000 snapshots: {:.0} ms", milliseconds(start));
    let mut at = 0;
    let cost = bench.run(&mut volume, Op::Read, 1, 1000, || {
        at = (at + 1) % 1000;
        at
    });
    println!("  a 4 KiB read through it: {cost:.0} ns");
    let start = Instant::now();
    for number in 0..1000 {
        let promise = bench.pool.delete(&format!("v@s{}", (number * 7) % 1000));
        bench.wait(&promise).unwrap();
    }
    loop {
        let promise = bench.pool.info();
        if bench.wait(&promise).unwrap().layers == 1 {
            break;
        }
        bench.worker.step(Instant::now() + Duration::from_secs(1));
    }
    println!("  deleted and merged: {:.0} ms", milliseconds(start));
}
