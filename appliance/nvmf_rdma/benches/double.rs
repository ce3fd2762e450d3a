//! Three measurements on the double of verbs:
//!
//! - CPU time of the target alone for an I/O, without what the double and its clock take. Target
//!   and host take turns on one thread: also a busy machine gives figures that can be compared. The bench of
//!   `nvmf_tcp` has the same figure, the kernel's part in it, with `MEASURE=cpu`.
//! - Memory of a connection, with and without a shared receive queue, at 1,000 connections.
//! - With `MEASURE=instructions`, under callgrind: what `instructions.sh` beside this file runs. A fixed
//!   number of I/Os, of which callgrind counts the target's polls without the double's calls.
//!
//! `cargo bench -p nvmf_rdma [-- FILTER]`; `SECONDS=3` sets the time of each case.

#![expect(clippy::unwrap_used, reason = "a failing unwrap ends the measurement")]
#![expect(unsafe_code, reason = "a counting allocator")]

#[path = "../tests/host/raw.rs"]
#[expect(dead_code, reason = "the tests take more of it")]
mod raw;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::BlockDevice;
use block::malloc::{Malloc, MallocOptions};
use block::null::{Null, NullOptions};
use dma::IobufOptions;
use nix::time::{ClockId, clock_gettime};
use nvme_spec::{Cid, Lba, Nsid, SglDescriptor, Sqe};
use nvmf::PollGroup;
use nvmf_rdma::RdmaOptions;
use raw::{Host, Polled, Served, host_region};
use verbs_emu::{Fabric, is_inside};

const BLOCKS: u64 = 1 << 20;
/// Of a disk under callgrind, where everything takes fifty times as long.
const BLOCKS_COUNTED: u64 = 1 << 14;
/// I/Os that callgrind counts, and those before them.
const IOS_COUNTED: u64 = 20_000;
const IOS_BEFORE: u64 = 5_000;
/// What the target's clock goes on by from poll to poll: the order of what a poll takes.
const TURN: Duration = Duration::from_micros(10);
const CONNECTIONS: u16 = 1000;
/// A turn that takes so much longer than it has the core was interrupted.
const INTERRUPTED: Duration = Duration::from_micros(5);
/// I/O queues of a controller; the default allows a few more.
const QUEUES_MAX: u16 = 125;

struct Counting;

thread_local! {
    /// Whether the target runs.
    static IS_TARGET: Cell<bool> = const { Cell::new(false) };
    /// Bytes that the target has.
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

fn count(len: i64) {
    // Fails only while the thread ends; nobody counts then.
    if IS_TARGET.try_with(Cell::get).unwrap_or(false) && !is_inside() {
        BYTES.set(BYTES.get() + len);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count(len as i64 - layout.size() as i64);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Read,
    WriteInCapsule,
    WriteKeyed,
}

#[derive(Clone, Copy)]
struct Case {
    way: Way,
    len: usize,
    queue_depth: u16,
    is_null: bool,
}

impl Case {
    fn label(&self) -> String {
        let way = match self.way {
            Way::Read => "read",
            Way::WriteInCapsule => "write in capsule",
            Way::WriteKeyed => "write by key",
        };
        let device = if self.is_null { "null" } else { "ram" };
        let kib = self.len / 1024;
        format!("{way} {kib} KiB qd {} {device}", self.queue_depth)
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for way in [Way::Read, Way::WriteInCapsule, Way::WriteKeyed] {
        for (len, queue_depth) in [(4096, 1), (4096, 32), (131_072, 8)] {
            for is_null in [false, true] {
                cases.push(Case {
                    way,
                    len,
                    queue_depth,
                    is_null,
                });
            }
        }
    }
    cases.retain(|case| case.way != Way::WriteInCapsule || case.len == 4096);
    cases
}

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let wanted = |label: &str| filter.as_ref().is_none_or(|filter| label.contains(filter));
    let seconds = std::env::var("SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(2);
    let is_counted = std::env::var("MEASURE").is_ok_and(|which| which == "instructions");
    for case in cases() {
        let label = case.label();
        if wanted(&label) && is_counted {
            println!("{label}: {} I/Os", counted(case));
        } else if wanted(&label) {
            let (ns, ios) = cpu_ns(case, Duration::from_secs(seconds));
            println!("{label:40} {ns:>8.0} ns CPU, {ios} I/Os in all");
        }
    }
    if is_counted {
        return;
    }
    for no_srq in [false, true] {
        let label = format!("memory of a connection, no_srq {no_srq}");
        if wanted(&label) {
            memory(&label, no_srq);
        }
    }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

/// A target that serves a disk of so many blocks, its admin connection, and the load on an I/O queue.
fn start(case: Case, fabric: Fabric, blocks: u64) -> (Served, Host, Load) {
    let disk: Arc<dyn BlockDevice> = if case.is_null {
        Null::new(NullOptions {
            block_size: 512,
            block_count: blocks,
        })
        .unwrap()
    } else {
        Malloc::new(MallocOptions::new(512, blocks)).unwrap()
    };
    let iobuf = IobufOptions {
        small_pool_count: 16_384,
        large_pool_count: 256,
        ..IobufOptions::default()
    };
    let mut served = Served::on(fabric, RdmaOptions::default(), iobuf, disk);
    let (admin, cntlid) = served.admin();
    let io = served.io_queue(1, case.queue_depth + 1, cntlid);
    let mut load = Load {
        case,
        io,
        blocks,
        free: (0..case.queue_depth).collect(),
        random: 88_172_645_463_325_252,
        data: vec![0x5a; case.len],
    };
    if !case.is_null {
        load.write_all(&mut served);
    }
    (served, admin, load)
}

/// The target's turn, for callgrind, which begins to count where this begins and ends where it ends.
#[inline(never)]
fn counted_poll(group: &mut PollGroup, now: Instant) {
    std::hint::black_box(group.poll(now));
}

/// Runs as many I/Os as callgrind is to count, after others; how many they were.
fn counted(case: Case) -> u64 {
    let (mut served, _admin, mut load) = start(case, Fabric::eager(), BLOCKS_COUNTED);
    load.run_ios(&mut served, IOS_BEFORE, |group, now| {
        group.poll(now);
    });
    load.run_ios(&mut served, IOS_COUNTED, counted_poll)
}

/// Nanoseconds of the target's CPU time for an I/O, and how many I/Os ended with those before it
/// was measured.
fn cpu_ns(case: Case, time: Duration) -> (f64, u64) {
    let fabric = Fabric::eager();
    let (mut served, _admin, mut load) = start(case, fabric.clone(), BLOCKS);
    fabric.time();
    let call = cost_of_a_call(&fabric);
    let before = load.run(&mut served, Duration::from_millis(300));
    let run = load.run(&mut served, time);
    let calls = run.calls as f64 * call;
    let ns = (run.cpu.as_nanos() as f64 - calls) / run.measured as f64;
    (ns, before.done + run.done)
}

#[derive(Default)]
struct Measured {
    done: u64,
    measured: u64,
    cpu: Duration,
    /// Calls of the double in that time.
    calls: u64,
}

/// Nanoseconds of a call of the double that are not in the time it counts: its lock and its clock.
fn cost_of_a_call(fabric: &Fabric) -> f64 {
    const CALLS: u32 = 200_000;
    let least = (0..5).map(|_| {
        let inside = fabric.time_inside();
        let start = cpu_time();
        for _ in 0..CALLS {
            std::hint::black_box(fabric.calls());
        }
        let took = cpu_time() - start;
        took.saturating_sub(fabric.time_inside() - inside)
    });
    least.min().unwrap().as_nanos() as f64 / f64::from(CALLS)
}

/// Keeps commands under way.
struct Load {
    case: Case,
    io: Host,
    blocks: u64,
    free: Vec<u16>,
    random: u64,
    data: Vec<u8>,
}

impl Load {
    /// A RAM disk takes its memory when it is written first.
    fn write_all(&mut self, served: &mut Served) {
        for lba in (0..self.blocks).step_by(256) {
            let keyed = self.io.keyed(0, 131_072);
            let sqe = Sqe::write(Cid(500), Nsid(1), Lba(lba), 256).with_sgl(keyed);
            self.io.send(&sqe, &[]);
            assert!(served.finish(&mut self.io).status().is_success());
        }
    }

    fn submit(&mut self) {
        while let Some(cid) = self.free.pop() {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let blocks = (self.case.len / 512) as u64;
            let lba = Lba(self.random % (self.blocks / blocks) * blocks);
            let len = self.case.len as u32;
            let keyed = self.io.keyed(usize::from(cid) * self.case.len, len);
            let write = Sqe::write(Cid(cid), Nsid(1), lba, blocks as u32);
            match self.case.way {
                Way::Read => {
                    let read = Sqe::read(Cid(cid), Nsid(1), lba, blocks as u32);
                    self.io.send(&read.with_sgl(keyed), &[]);
                }
                Way::WriteInCapsule => {
                    let sgl = SglDescriptor::in_capsule(0, len);
                    self.io.send(&write.with_sgl(sgl), &self.data);
                }
                Way::WriteKeyed => self.io.send(&write.with_sgl(keyed), &[]),
            }
        }
    }

    /// How many I/Os have ended.
    fn take_responses(&mut self) -> u64 {
        let mut done = 0;
        loop {
            match self.io.poll_one() {
                Polled::Nothing => return done,
                Polled::Other => {}
                Polled::Response(cqe) => {
                    assert!(cqe.status().is_success(), "{}", cqe.status());
                    self.free.push(cqe.cid().0);
                    done += 1;
                }
            }
        }
    }

    /// Takes turns until so many I/Os have ended; how many did.
    fn run_ios(
        &mut self,
        served: &mut Served,
        ios: u64,
        poll: impl Fn(&mut PollGroup, Instant),
    ) -> u64 {
        let mut done = 0;
        while done < ios {
            self.submit();
            served.now += TURN;
            poll(&mut served.group, served.now);
            done += self.take_responses();
        }
        done
    }

    /// How many I/Os ended, how many of them are measured, and the target's CPU time for those, less
    /// what the double took of it. The double's clock runs on while another program has the core:
    /// turns in which that happened are not measured.
    fn run(&mut self, served: &mut Served, time: Duration) -> Measured {
        let end = Instant::now() + time;
        let mut sum = Measured::default();
        while Instant::now() < end {
            self.submit();
            let (inside, calls) = (served.fabric.time_inside(), served.fabric.calls());
            served.now += TURN;
            let (begun, start) = (Instant::now(), cpu_time());
            served.group.poll(served.now);
            let (took, elapsed) = (cpu_time() - start, begun.elapsed());
            // Not the two that ask.
            let calls = served.fabric.calls() - calls - 1;
            let inside = served.fabric.time_inside() - inside;
            let done = self.take_responses();
            sum.done += done;
            if elapsed < took + INTERRUPTED {
                sum.measured += done;
                sum.cpu += took.saturating_sub(inside);
                sum.calls += calls;
            }
        }
        sum
    }
}

/// What 1,000 I/O queues of 128 entries take: of the heap, without what the double has for them, and
/// of the pool of buffers.
fn memory(label: &str, no_srq: bool) {
    let disk = Null::new(NullOptions {
        block_size: 512,
        block_count: BLOCKS,
    });
    let options = RdmaOptions {
        no_srq,
        accept_rate_per_s: 1_000_000,
        ..RdmaOptions::default()
    };
    let iobuf = IobufOptions {
        small_pool_count: 280_000,
        large_pool_count: 256,
        ..IobufOptions::default()
    };
    let mut served = Served::on(Fabric::eager(), options, iobuf, disk.unwrap());
    served.shared_region = Some(host_region());
    let before = BYTES.get();
    let mut hosts = Vec::new();
    let (mut connections, mut buffers) = (0, 0);
    while connections < CONNECTIONS {
        let (admin, cntlid) = served.admin();
        hosts.push(admin);
        let small = served.iobuf.stats().small.in_use();
        served.around_poll = |is_target| IS_TARGET.set(is_target);
        for qid in 1..=QUEUES_MAX {
            hosts.push(served.io_queue(qid, 128, cntlid));
            connections += 1;
        }
        served.around_poll = |_| ();
        buffers += served.iobuf.stats().small.in_use() - small;
    }
    let per_connection = |bytes: i64| bytes as f64 / 1024.0 / f64::from(connections);
    println!(
        "{label:40} {:>8.1} KiB heap {:>8.1} KiB of the pool",
        per_connection(BYTES.get() - before),
        per_connection(buffers as i64 * 8192),
    );
}
