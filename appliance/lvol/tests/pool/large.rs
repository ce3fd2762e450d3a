//! What opening reads of a pool with millions of clusters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Instant;

use block::{
    Bdev, BdevChannel, BdevOptions, BlockDevice, BlockError, Channel, ChannelContext, Completion,
    Geometry, Io, IoError, Op, Submit,
};
use dma::{IobufPool, Payload};
use lvol::{CreateOptions, LvolError, NewVolume, Pool, PoolOptions, PoolWorker, Promise};

use crate::rig::{Clock, buffers};

const CLUSTER: u64 = 64 << 10;
const BLOCK: usize = 4096;
/// Bytes of the log of first writes: all of it is read.
const LOG: u64 = 4 << 20;
/// What the host writes. The device keeps no block of it.
const FILL: u8 = 0xda;
const DEPTH: u64 = 32;

/// A device that keeps nothing of the host's: room for a pool that no memory could hold. Its own channel.
#[derive(Debug, Clone)]
struct Forgetful {
    block_count: u64,
    kept: Arc<Mutex<HashMap<u64, Box<[u8]>>>>,
    bytes_read: Arc<AtomicU64>,
}

impl Forgetful {
    fn run(&self, io: &mut Io) -> Result<(), IoError> {
        let mut kept = self.kept.lock().unwrap();
        let range = io.lba.0..io.lba.0 + u64::from(io.blocks);
        match io.op {
            Op::Read => {
                let Payload::Buf(buffer) = &mut io.payload else {
                    return Err(IoError::InvalidField);
                };
                for (at, part) in range.zip(buffer.as_mut_slice().chunks_exact_mut(BLOCK)) {
                    match kept.get(&at) {
                        Some(block) => part.copy_from_slice(block),
                        None => part.fill(0),
                    }
                }
                let bytes = u64::from(io.blocks) * BLOCK as u64;
                self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
            }
            Op::Write { .. } => {
                let mut part = vec![0; BLOCK];
                for (number, at) in range.enumerate() {
                    io.payload.copy_range_to(number * BLOCK, &mut part);
                    if part.iter().any(|byte| *byte != FILL) {
                        kept.insert(at, part.clone().into());
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl BlockDevice for Forgetful {
    fn kind(&self) -> &'static str {
        "forgetful"
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(BLOCK as u32, self.block_count)
    }

    fn open_channel(&self, _: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        Ok(Box::new(self.clone()))
    }

    fn resize(&self, _: u64) -> Result<(), BlockError> {
        Err(BlockError::ResizeUnsupported { kind: self.kind() })
    }
}

impl Channel for Forgetful {
    fn submit(&mut self, mut io: Io, _: Instant) -> Submit {
        let result = self.run(&mut io);
        Submit::Done(io.complete(result))
    }

    fn poll(&mut self, _: Instant, _: &mut Vec<Completion>) -> usize {
        0
    }

    fn in_flight(&self) -> usize {
        0
    }
}

fn options(buffers: &Arc<IobufPool>) -> PoolOptions {
    PoolOptions::new(Arc::clone(buffers))
}

fn wait<T>(worker: &mut PoolWorker, promise: &Promise<T>) -> Result<T, LvolError> {
    loop {
        if let Some(answer) = promise.try_take() {
            return answer;
        }
        worker.step(Instant::now());
    }
}

fn open_volume(pool: &Pool, worker: &mut PoolWorker, buffers: &Arc<IobufPool>) -> BdevChannel {
    let promise = pool.device("v");
    let device = wait(worker, &promise).unwrap();
    let bdev = Bdev::new(BdevOptions::named("volume"), device, Instant::now()).unwrap();
    let context = ChannelContext::new("test", Waker::noop().clone()).with_pool(Arc::clone(buffers));
    bdev.open(&context).unwrap()
}

/// Writes a granule of each cluster of the volume.
fn map_all(
    worker: &mut PoolWorker,
    channel: &mut BdevChannel,
    pool: &Arc<IobufPool>,
    clusters: u64,
) {
    let payloads = pool
        .channel("test", dma::ChannelOptions::default())
        .unwrap();
    let mut free: Vec<Payload> = (0..DEPTH)
        .map(|_| {
            let mut buffer = payloads.get(BLOCK).unwrap();
            buffer.as_mut_slice().fill(FILL);
            buffer.into()
        })
        .collect();
    let (mut next, mut ended) = (0, 0);
    let mut done = Vec::new();
    let now = Instant::now();
    while ended < clusters {
        while next < clusters
            && let Some(payload) = free.pop()
        {
            let lba = next * (CLUSTER / BLOCK as u64);
            let io = Io::with_payload(Op::Write { fua: false }, lba, 1, payload, next);
            next += 1;
            if let Submit::Done(completion) = channel.submit(io, now) {
                done.push(completion);
            }
        }
        if done.is_empty() {
            worker.step(Instant::now());
            channel.poll(now, &mut done);
        }
        for completion in done.drain(..) {
            completion.result.unwrap();
            free.push(completion.io.payload);
            ended += 1;
        }
    }
}

/// Bytes read by an open of a pool with so many clusters mapped: after a clean close, or without one.
fn bytes_read_to_open(mapped: u64, clean: bool) -> u64 {
    let device = Forgetful {
        block_count: (mapped + mapped / 8 + 4096) * (CLUSTER / BLOCK as u64),
        kept: Arc::default(),
        bytes_read: Arc::default(),
    };
    let buffers = buffers();
    let bdev = || {
        let device = Arc::new(device.clone());
        Bdev::new(BdevOptions::named("base"), device, Instant::now()).unwrap()
    };
    let create = CreateOptions {
        cluster_size: CLUSTER,
        ..CreateOptions::named("tank")
    };
    let waker = || Waker::noop().clone();
    let (pool, mut worker) = PoolWorker::create(
        &bdev(),
        &create,
        options(&buffers),
        Box::new(Clock),
        waker(),
    )
    .unwrap();
    let new = NewVolume {
        name: "v".to_owned(),
        size_bytes: mapped * CLUSTER,
        ..NewVolume::default()
    };
    let promise = pool.create_volume(new);
    wait(&mut worker, &promise).unwrap();
    let mut channel = open_volume(&pool, &mut worker, &buffers);
    map_all(&mut worker, &mut channel, &buffers, mapped);
    drop(channel);
    let promise = if clean { pool.close() } else { pool.commit() };
    wait(&mut worker, &promise).unwrap();
    drop((pool, worker));
    device.bytes_read.store(0, Ordering::Relaxed);
    let (pool, mut worker) =
        PoolWorker::open(&bdev(), options(&buffers), Box::new(Clock), waker()).unwrap();
    let read = device.bytes_read.load(Ordering::Relaxed) - LOG;
    let promise = pool.info();
    assert_eq!(wait(&mut worker, &promise).unwrap().used_clusters, mapped);
    read
}

/// Goal: opening is bounded at any size. `ADIT_CLUSTERS` says how many; 10,000,000 by `make soak`.
#[test]
fn opening_reads_the_same_with_a_thousand_and_with_millions_of_clusters() {
    let many = std::env::var("ADIT_CLUSTERS").map_or(500_000, |number| number.parse().unwrap());
    for clean in [true, false] {
        let read = [1000, many].map(|clusters| bytes_read_to_open(clusters, clean));
        println!("clean {clean}: the log and {read:?} bytes with 1,000 and {many} clusters");
        assert!(read[1] < 2 * read[0], "clean {clean}: {read:?}");
    }
}
