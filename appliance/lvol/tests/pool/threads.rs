//! Real threads: three write, one takes and deletes snapshots, one steps the worker.
//!
//! Each writer goes round its own blocks, which lie between those of the others in the same granules, one
//! write after another. So a snapshot, if it is of one moment, has of each writer all writes up to one and
//! none after it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::Waker;
use std::thread;
use std::time::Instant;

use block::malloc::{Malloc, MallocOptions};
use block::{Bdev, BdevChannel, BdevOptions, ChannelContext, Completion, Io, Op, Submit};
use dma::{ChannelOptions, IobufPool};
use lvol::{
    CreateOptions, Host, LvolError, NewVolume, Next, Pool, PoolOptions, PoolWorker, Promise, Volume,
};

use crate::model::stamped;
use crate::rig::buffers;

const WRITERS: u64 = 3;
const BLOCKS: u64 = 200;
const WRITES: u64 = 4000;

#[derive(Debug)]
struct RealHost;

impl Host for RealHost {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, _: Option<BorrowedFd<'_>>, _: Option<Instant>) {
        thread::yield_now();
    }
}

/// Ends the other threads whatever becomes of this one.
struct AtTheEnd<'a> {
    pool: Pool,
    ended: &'a AtomicBool,
}

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(self.pool.close());
    }
}

fn wait<T>(promise: &Promise<T>) -> Result<T, LvolError> {
    loop {
        match promise.try_take() {
            Some(answer) => return answer,
            None => thread::yield_now(),
        }
    }
}

fn open(device: Arc<Volume>, pool: &Arc<IobufPool>) -> BdevChannel {
    let bdev = Bdev::new(BdevOptions::named("v"), device, Instant::now()).unwrap();
    let context = ChannelContext::new("test", Waker::noop().clone()).with_pool(Arc::clone(pool));
    bdev.open(&context).unwrap()
}

fn run(channel: &mut BdevChannel, io: Io) -> Completion {
    let mut done = Vec::new();
    match channel.submit(io, Instant::now()) {
        Submit::Done(completion) => return completion,
        Submit::Pending => {}
    }
    loop {
        channel.poll(Instant::now(), &mut done);
        match done.pop() {
            Some(completion) => return completion,
            None => thread::yield_now(),
        }
    }
}

/// Writer `writer`'s block number `index`.
fn lba(writer: u64, index: u64) -> u64 {
    index * WRITERS + writer
}

fn write_all(writer: u64, device: Arc<Volume>, pool: &Arc<IobufPool>) {
    let mut channel = open(device, pool);
    let payloads = pool.channel("test", ChannelOptions::default()).unwrap();
    for number in 0..WRITES {
        let at = lba(writer, number % BLOCKS);
        let mut payload = payloads.get(512).unwrap();
        payload
            .as_mut_slice()
            .copy_from_slice(&stamped(&[number + 1]));
        let fua = number % 64 == 0;
        let io = Io::with_payload(Op::Write { fua }, at, 1, payload.into(), number);
        let mut payload = run(&mut channel, io).io.payload;
        // What this writer wrote last is what it reads.
        let at = lba(writer, (number * 7) % (number + 1).min(BLOCKS));
        let index = at / WRITERS;
        let io = Io::with_payload(Op::Read, at, 1, payload.take(), number);
        let completion = run(&mut channel, io);
        completion.result.unwrap();
        let mut read = vec![0; 512];
        completion.io.payload.copy_range_to(0, &mut read);
        let last = last_write(number, index);
        assert!(
            read == stamped(&[last]),
            "writer {writer} reads block {index} wrong"
        );
    }
}

/// The stamp of the last write to block `index` when write `number` was the last one of all.
fn last_write(number: u64, index: u64) -> u64 {
    if number < index {
        return 0;
    }
    number - (number - index) % BLOCKS + 1
}

fn check_snapshot(device: Arc<Volume>, pool: &Arc<IobufPool>) {
    let mut channel = open(device, pool);
    let payloads = pool.channel("check", ChannelOptions::default()).unwrap();
    let mut payload = payloads
        .get((WRITERS * BLOCKS / 4 * 512) as usize)
        .unwrap()
        .into();
    let mut stamps = Vec::new();
    for quarter in 0..4 {
        let blocks = WRITERS * BLOCKS / 4;
        let io = Io::with_payload(Op::Read, quarter * blocks, blocks as u32, payload, 1);
        let completion = run(&mut channel, io);
        completion.result.unwrap();
        payload = completion.io.payload;
        let mut bytes = vec![0; payload.len()];
        payload.copy_range_to(0, &mut bytes);
        for block in bytes.chunks(512) {
            let stamp = u64::from_le_bytes(block[..8].try_into().unwrap());
            assert!(block == stamped(&[stamp]), "a torn block");
            stamps.push(stamp);
        }
    }
    for writer in 0..WRITERS {
        let last = (0..BLOCKS)
            .map(|index| stamps[lba(writer, index) as usize])
            .max()
            .unwrap();
        for index in 0..BLOCKS {
            let expected = last
                .checked_sub(1)
                .map_or(0, |last| last_write(last, index));
            let found = stamps[lba(writer, index) as usize];
            assert_eq!(
                found, expected,
                "writer {writer}, block {index}, up to write {last}"
            );
        }
    }
}

fn take_snapshots(pool: &Pool, buffers: &Arc<IobufPool>, ended: &AtomicBool) -> u64 {
    let mut number = 0;
    while !ended.load(Ordering::SeqCst) {
        let pairs = [("v".to_owned(), format!("s{number}"))];
        wait(&pool.create_snapshots(&pairs, 0)).unwrap();
        let name = format!("v@s{number}");
        check_snapshot(wait(&pool.device(&name)).unwrap(), buffers);
        if number >= 3 {
            // Not always the oldest: layers in between are merged.
            let old = if number % 2 == 0 {
                number - 3
            } else {
                number - 1
            };
            match wait(&pool.delete(&format!("v@s{old}"))) {
                Ok(_) | Err(LvolError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        number += 1;
    }
    number
}

#[test]
fn snapshots_under_writers_on_threads_are_of_one_moment() {
    let device = Malloc::new(MallocOptions::new(512, 64 << 11)).unwrap();
    let base = Bdev::new(BdevOptions::named("base"), device, Instant::now()).unwrap();
    let buffers = buffers();
    let options = PoolOptions::new(Arc::clone(&buffers));
    let create = CreateOptions {
        cluster_size: 64 << 10,
        ..CreateOptions::named("tank")
    };
    let (tell, told) = mpsc::channel();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            let (pool, mut worker) = PoolWorker::create(
                &base,
                &create,
                options,
                Box::new(RealHost),
                Waker::noop().clone(),
            )
            .unwrap();
            tell.send(pool).unwrap();
            while worker.step(Instant::now()) != Next::End {
                thread::yield_now();
            }
        });
        let pool = told.recv().unwrap();
        let _end = AtTheEnd {
            pool: pool.clone(),
            ended: &ended,
        };
        let new = NewVolume {
            name: "v".to_owned(),
            size_bytes: 1 << 20,
            ..NewVolume::default()
        };
        wait(&pool.create_volume(new)).unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let device = wait(&pool.device("v")).unwrap();
                let buffers = &buffers;
                scope.spawn(move || write_all(writer, device, buffers))
            })
            .collect();
        let taken = {
            let (pool, buffers, ended) = (pool.clone(), &buffers, &ended);
            scope.spawn(move || take_snapshots(&pool, buffers, ended))
        };
        for writer in writers {
            writer.join().unwrap();
        }
        ended.store(true, Ordering::SeqCst);
        println!("{} snapshots", taken.join().unwrap());
        let findings = wait(&pool.check()).unwrap();
        assert!(findings.is_empty(), "{findings:#?}");
        wait(&pool.close()).unwrap();
    });
}
