//! Steady I/O allocates nothing at the host.

#![expect(unsafe_code, reason = "a counting allocator")]

mod served;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use nvme_spec::{Lba, Nsid};
use nvmf_host::perf::{PerfEngine, PerfOptions, PerfPhase, Workload};
use nvmf_host::{Completion, IoOp, IoQueue, IoRequest};
use served::{Served, host_options, subsystem_nqn};

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

/// What `work` allocates and frees.
fn counted<R>(total: &mut u64, work: impl FnOnce() -> R) -> R {
    let before = ALLOCATIONS.get();
    let result = work();
    *total += ALLOCATIONS.get() - before;
    result
}

/// Writes and reads in turn, `count` times, with `depth` requests outstanding; the buffers go
/// round. Returns what the host allocated.
fn run(served: &mut Served, queue: &mut IoQueue, buffers: &mut Vec<Vec<u8>>, count: u64) -> u64 {
    let blocks = (buffers[0].len() / 512) as u32;
    let mut completions: Vec<Completion> = Vec::with_capacity(64);
    let (mut allocations, mut begun, mut done) = (0, 0, 0);
    while done < count {
        counted(&mut allocations, || {
            let now = Instant::now();
            while begun < count && queue.has_room() {
                let Some(buffer) = buffers.pop() else { break };
                let lba = Lba(begun % 64 * u64::from(blocks));
                let op = match begun % 2 {
                    0 => IoOp::Write {
                        lba,
                        blocks,
                        fua: false,
                    },
                    _ => IoOp::Read { lba, blocks },
                };
                let request = IoRequest::new(Nsid(1), op, begun).with_buffer(buffer);
                assert!(queue.submit(request, now).is_accepted());
                begun += 1;
            }
            queue.poll(now, &mut completions);
            for completion in completions.drain(..) {
                assert!(completion.result.is_ok());
                buffers.push(completion.buffer.into_vec());
                done += 1;
            }
        });
        served.poll();
    }
    allocations
}

#[test]
fn steady_io_allocates_nothing() {
    for digests in [false, true] {
        // In the capsule, with an R2T, and long.
        for len in [4096, 16 << 10, 128 << 10] {
            let mut served = Served::ram();
            let mut options = host_options(1);
            options.header_digest = digests;
            options.data_digest = digests;
            options.io_queue_depth = 32;
            let mut controller = served.connect(options);
            let mut queue = controller.take_io_queues().pop().unwrap();
            let mut buffers = vec![vec![0xA5; len]; 32];
            run(&mut served, &mut queue, &mut buffers, 500);
            let allocations = run(&mut served, &mut queue, &mut buffers, 2000);
            assert_eq!(allocations, 0, "{len} bytes, digests {digests}");
        }
    }
}

#[test]
fn the_load_generator_allocates_nothing() {
    for (workload, verify) in [
        (Workload::RandRead, false),
        (Workload::RandWrite, false),
        (Workload::RandRw, true),
    ] {
        let mut served = Served::ram();
        let mut options =
            PerfOptions::new(served.address.clone(), subsystem_nqn(), host_options(1));
        options.host.keep_alive = Duration::ZERO;
        options.workload = workload;
        options.verify = verify;
        options.count = Some(20_000);
        options.region_bytes = Some(1 << 20);
        let mut engine = PerfEngine::new(options, Instant::now()).unwrap();
        let (mut allocations, mut polls) = (0, 0);
        while !engine.finished() {
            let is_steady = engine.phase() == PerfPhase::Running && polls > 1000;
            polls += 1;
            let mut one = 0;
            counted(&mut one, || engine.poll(Instant::now()));
            // The poll that ends the run begins to disconnect.
            if is_steady && engine.phase() == PerfPhase::Running {
                allocations += one;
            }
            served.poll();
        }
        assert!(engine.failure().is_none(), "{:?}", engine.failure());
        assert_eq!(allocations, 0, "{workload}");
    }
}
