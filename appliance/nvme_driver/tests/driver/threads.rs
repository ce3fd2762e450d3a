//! Channels on threads of their own, while the owner resets the controller.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Waker;
use std::time::Instant;

use block::{BlockDevice, Channel, ChannelContext, Io, Op, Submit};
use dma::{ChannelOptions, IobufPool, Payload};
use nvme_driver::{ControllerOptions, NvmeNamespace};
use nvme_emu::EmuOptions;

use crate::rig::{Host, bytes, driver_options};

const ROUNDS: u64 = 200;
const BATCH: u64 = 16;

/// Opens a channel; while the controller is being reset there is none to be had.
fn open(namespace: &NvmeNamespace, context: &ChannelContext) -> Box<dyn Channel> {
    loop {
        match namespace.open_channel(context) {
            Ok(channel) => return channel,
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn run(channel: &mut dyn Channel, ios: Vec<Io>, now: Instant) -> Vec<Payload> {
    let count = ios.len();
    for io in ios {
        assert!(matches!(channel.submit(io, now), Submit::Pending));
    }
    let mut done = Vec::new();
    while done.len() < count {
        if channel.poll(now, &mut done) == 0 {
            std::thread::yield_now();
        }
    }
    done.sort_by_key(|completion| completion.io.tag);
    done.into_iter()
        .map(|completion| {
            completion.result.unwrap();
            completion.io.payload
        })
        .collect()
}

/// Writes and reads its own blocks; now and then on a new channel, once dropped in full flight.
fn worker(namespace: &NvmeNamespace, pool: &Arc<IobufPool>, first: u64, now: Instant) {
    let caches = ChannelOptions {
        small_cache: 0,
        large_cache: 0,
        ..ChannelOptions::default()
    };
    let bufs = pool.channel("worker", caches).unwrap();
    let buffer = |fill: u8| {
        let mut buf = bufs.get(512).unwrap();
        buf.as_mut_slice().fill(fill);
        Payload::Buf(buf)
    };
    let context = ChannelContext::new("worker", Waker::noop().clone()).with_pool(Arc::clone(pool));
    let mut channel = open(namespace, &context);
    for round in 0..ROUNDS {
        let fill = round as u8 + 1;
        let ios = |op: Op, fill: u8| {
            (0..BATCH)
                .map(|at| Io::with_payload(op, first + at, 1, buffer(fill), at))
                .collect::<Vec<_>>()
        };
        run(&mut *channel, ios(Op::Write { fua: false }, fill), now);
        for payload in run(&mut *channel, ios(Op::Read, 0), now) {
            assert_eq!(bytes(&payload), [fill; 512]);
        }
        if round % 10 == 9 {
            for io in ios(Op::Read, 0) {
                assert!(matches!(channel.submit(io, now), Submit::Pending));
            }
            channel.poll(now, &mut Vec::new());
            drop(channel);
            channel = open(namespace, &context);
        }
    }
}

#[test]
fn resets_under_threads_lose_nothing() {
    let options = ControllerOptions {
        // As many as it takes: how many resets an I/O meets depends on the threads' luck.
        retries: u8::MAX,
        ..driver_options()
    };
    let mut host = Host::running(EmuOptions::default(), options);
    let (namespace, pool, now) = (host.namespace(), Arc::clone(&host.pool), host.now);
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for first in [0, 1000] {
            let (namespace, pool, ended) = (&namespace, &pool, &ended);
            scope.spawn(move || {
                // Counts also when the worker fails, so that the owner does not wait for ever.
                struct Ended<'a>(&'a AtomicUsize);
                impl Drop for Ended<'_> {
                    fn drop(&mut self) {
                        self.0.fetch_add(1, SeqCst);
                    }
                }
                let _ended = Ended(ended);
                worker(namespace, pool, first, now);
            });
        }
        let mut turns = 0u64;
        while ended.load(SeqCst) < 2 {
            turns += 1;
            if turns.is_multiple_of(200) {
                host.controller.reset();
            }
            // Time stands still: no deadline passes.
            host.controller.poll(now, &mut host.events);
            host.emu().step();
            std::thread::yield_now();
        }
    });
    let stats = host.controller.stats();
    assert_eq!(stats.timeouts, 0);
    assert!(stats.resets > 0);
}
