//! Steady I/O allocates nothing, on any device.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
#![expect(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::delay::{DelayLayer, Delays};
use block::file::{File, FileOptions};
use block::malloc::{Malloc, MallocOptions};
use block::null::{Null, NullOptions};
use block::{
    Bdev, BdevChannel, BdevOptions, BlockDevice, ChannelContext, Completion, Io, Op, QosLimits,
    Submit,
};
use dma::{BackingPreference, ChannelOptions, IobufChannel, IobufOptions, IobufPool, Payload};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Fails only while the thread ends; nobody counts then.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn pool() -> Arc<IobufPool> {
    let options = IobufOptions {
        small_pool_count: 256,
        large_pool_count: 16,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    };
    IobufPool::new(options).unwrap()
}

/// One round: 16 I/Os of each kind, in flight together, then polled to their end.
fn round(
    channel: &mut BdevChannel,
    buffers: &IobufChannel,
    now: &mut Instant,
    done: &mut Vec<Completion>,
) {
    let caw = Op::CompareAndWrite { fua: false };
    let zeroes = Op::WriteZeroes {
        unmap: false,
        fua: false,
    };
    let ops = [
        Op::Write { fua: false },
        Op::Read,
        Op::Compare,
        caw,
        zeroes,
        Op::Unmap,
        Op::Flush,
    ];
    for op in ops {
        for lba in 0..16u64 {
            let payload = match op {
                Op::Read if channel.lends() => Payload::None,
                Op::Read | Op::Write { .. } | Op::Compare => buffers.get(4096).unwrap().into(),
                Op::CompareAndWrite { .. } => buffers.get(8192).unwrap().into(),
                _ => Payload::None,
            };
            let io = Io::with_payload(op, lba * 8, 8, payload, lba);
            match channel.submit(io, *now) {
                Submit::Done(completion) => drop(completion),
                Submit::Pending => {}
            }
        }
        while channel.in_flight() > 0 {
            *now += Duration::from_micros(50);
            channel.poll(*now, done);
            done.clear();
        }
    }
}

fn check(name: &str, device: Arc<dyn BlockDevice>, limits: Option<QosLimits>) {
    let pool = pool();
    let buffers = pool.channel("test", ChannelOptions::default()).unwrap();
    let mut now = Instant::now();
    let bdev = Bdev::new(BdevOptions::named(name), device, now).unwrap();
    if let Some(limits) = limits {
        bdev.set_qos(&limits, now).unwrap();
    }
    let context = ChannelContext::new("test", Waker::noop().clone()).with_pool(Arc::clone(&pool));
    let mut channel = bdev.open(&context).unwrap();
    let mut done = Vec::new();
    for _ in 0..20 {
        round(&mut channel, &buffers, &mut now, &mut done);
    }
    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        round(&mut channel, &buffers, &mut now, &mut done);
    }
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!(
        allocations, 0,
        "{name}: {allocations} calls of the allocator in 11,200 I/Os"
    );
    assert_eq!(bdev.statistics().ops(), 120 * 112);
}

fn malloc() -> Arc<Malloc> {
    Malloc::new(MallocOptions::new(512, 2048)).unwrap()
}

#[test]
fn malloc_allocates_nothing_per_io() {
    check("malloc", malloc(), None);
}

#[test]
fn null_allocates_nothing_per_io() {
    let options = NullOptions {
        block_size: 512,
        block_count: 2048,
    };
    check("null", Null::new(options).unwrap(), None);
}

#[test]
fn file_allocates_nothing_per_io() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions::create(folder.path().join("disk"), 1 << 20);
    check("file", File::open(options).unwrap().0, None);
}

#[test]
fn limits_and_delays_allocate_nothing_per_io() {
    let limits = QosLimits {
        rw_ios_per_sec: 100_000,
        burst_ms: 1,
        ..QosLimits::default()
    };
    check("limited", malloc(), Some(limits));
    let delay = Duration::from_micros(30);
    let delays = Delays {
        avg_read: delay,
        avg_write: delay,
        ..Delays::default()
    };
    check("delayed", DelayLayer::new(malloc(), delays), None);
}
