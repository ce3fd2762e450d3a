//! Reads that get memory of the device below, and what becomes of a cluster that is lent.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::malloc::{Malloc, MallocOptions};
use block::{Bdev, BdevChannel, BdevOptions, ChannelContext, Io, Op, Submit};
use dma::{ChannelOptions, IobufPool, Payload};
use lvol::{CreateOptions, NewVolume, Pool, PoolOptions, PoolWorker, Promise};

use crate::rig::{Clock, buffers};

const BLOCK: u64 = 4096;
const CLUSTER: u64 = 64 << 10;

/// A pool on a RAM device, and a volume of it.
struct Ram {
    buffers: Arc<IobufPool>,
    pool: Pool,
    worker: PoolWorker,
    channel: BdevChannel,
}

impl Ram {
    fn new(clusters: u64) -> Self {
        let options = MallocOptions::new(BLOCK as u32, clusters * CLUSTER / BLOCK);
        let device = Malloc::new(options).unwrap();
        let base = Bdev::new(BdevOptions::named("base"), device, Instant::now()).unwrap();
        let buffers = buffers();
        let create = CreateOptions {
            cluster_size: CLUSTER,
            ..CreateOptions::named("tank")
        };
        let (pool, mut worker) = PoolWorker::create(
            &base,
            &create,
            PoolOptions::new(Arc::clone(&buffers)),
            Box::new(Clock),
            Waker::noop().clone(),
        )
        .unwrap();
        let new = NewVolume {
            name: "v".to_owned(),
            size_bytes: 1 << 30,
            ..NewVolume::default()
        };
        let created = pool.create_volume(new);
        wait(&mut worker, &created);
        let device = pool.device("v");
        let device = wait(&mut worker, &device);
        let bdev = Bdev::new(BdevOptions::named("volume"), device, Instant::now()).unwrap();
        let context =
            ChannelContext::new("test", Waker::noop().clone()).with_pool(Arc::clone(&buffers));
        Self {
            channel: bdev.open(&context).unwrap(),
            buffers,
            pool,
            worker,
        }
    }

    fn run(&mut self, io: Io) -> Result<Payload, block::IoError> {
        let mut done = Vec::new();
        if let Submit::Done(completion) = self.channel.submit(io, Instant::now()) {
            done.push(completion);
        }
        loop {
            if let Some(completion) = done.pop() {
                return completion.result.map(|()| completion.io.payload);
            }
            self.worker.step(Instant::now());
            self.channel.poll(Instant::now(), &mut done);
        }
    }

    fn write(&mut self, block: u64, byte: u8, blocks: u64) -> Result<Payload, block::IoError> {
        let payloads = self.buffers.channel("test", ChannelOptions::default());
        let mut buffer = payloads.unwrap().get((blocks * BLOCK) as usize).unwrap();
        buffer.as_mut_slice().fill(byte);
        let op = Op::Write { fua: false };
        let io = Io::with_payload(op, block, blocks as u32, buffer.into(), 1);
        self.run(io)
    }

    /// A read that brings no memory.
    fn read(&mut self, block: u64, blocks: u32) -> Payload {
        self.run(Io::new(Op::Read, block, blocks, 1)).unwrap()
    }

    fn flush(&mut self) {
        self.run(Io::new(Op::Flush, 0, 0, 1)).unwrap();
    }

    fn free_clusters(&mut self) -> u64 {
        let info = self.pool.info();
        wait(&mut self.worker, &info).free_clusters
    }

    /// Steps as if a time had passed.
    fn later(&mut self, by: Duration) {
        for _ in 0..100 {
            self.worker.step(Instant::now() + by);
        }
    }
}

fn wait<T>(worker: &mut PoolWorker, promise: &Promise<T>) -> T {
    loop {
        if let Some(answer) = promise.try_take() {
            return answer.unwrap();
        }
        worker.step(Instant::now());
    }
}

fn bytes(payload: &Payload) -> Vec<u8> {
    let mut bytes = vec![0xee; payload.len()];
    payload.copy_range_to(0, &mut bytes);
    bytes
}

#[test]
fn what_is_in_one_place_is_lent_and_the_rest_is_put_together() {
    let mut ram = Ram::new(256);
    ram.write(1, 7, 2).unwrap();
    let lent = ram.read(1, 2);
    assert!(matches!(lent, Payload::Lent(_)), "{lent:?}");
    assert_eq!(bytes(&lent), vec![7; 8192]);
    let zeroes = ram.read(100, 1);
    assert_eq!(bytes(&zeroes), vec![0; 4096]);
    let mixed = ram.read(0, 4);
    assert!(matches!(mixed, Payload::Buf(_)), "{mixed:?}");
    let expected = [vec![0; 4096], vec![7; 8192], vec![0; 4096]].concat();
    assert_eq!(bytes(&mixed), expected);
    assert!(ram.channel.lends_range(0, 16));
    assert!(
        !ram.channel.lends_range(1, 16),
        "it ends in another cluster"
    );
}

#[test]
fn more_reads_than_leases_are_copied() {
    let mut ram = Ram::new(256);
    ram.write(0, 7, 1).unwrap();
    let reads: Vec<Payload> = (0..600).map(|_| ram.read(0, 1)).collect();
    assert!(reads.iter().all(|read| bytes(read) == vec![7; 4096]));
    let lent = reads.iter().filter(|read| matches!(read, Payload::Lent(_)));
    assert_eq!(lent.count(), 512);
    drop(reads);
    assert!(matches!(ram.read(0, 1), Payload::Lent(_)));
}

#[test]
fn a_lent_cluster_is_used_for_nothing_else_before_it_is_given_back() {
    let mut ram = Ram::new(256);
    ram.write(0, 7, 1).unwrap();
    ram.flush();
    let lent = ram.read(0, 1);
    let before = ram.free_clusters();
    ram.run(Io::new(Op::Unmap, 0, 16, 1)).unwrap();
    ram.flush();
    ram.later(Duration::from_secs(10));
    assert_eq!(ram.free_clusters(), before, "nobody may have it yet");

    // Whatever there is to be had is written.
    let mut block = 1 << 10;
    while ram.write(block, 9, 16).is_ok() {
        block += 16;
    }
    assert_eq!(bytes(&lent), vec![7; 4096], "another's data are there");
    drop(lent);
    let full = ram.free_clusters();
    ram.later(Duration::from_secs(20));
    assert_eq!(ram.free_clusters(), full + 1);
    ram.write(block, 9, 16).unwrap();
}
