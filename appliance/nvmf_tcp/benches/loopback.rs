//! Three measurements over loopback, the first two of each case:
//!
//! - IOPS with one target thread and one client thread, both polling. Two quiet cores are needed
//!   for figures that mean something.
//! - CPU time of the target alone for an I/O, with target and client taking turns on one thread:
//!   also a busy machine gives figures that can be compared.
//! - With `MEASURE=instructions`, under callgrind: what `nvmf_rdma/benches/instructions.sh` runs. A
//!   fixed number of I/Os, of which callgrind counts the target's polls, without the kernel.
//!
//! `cargo bench -p nvmf_tcp [-- FILTER]`; `SECONDS=3` sets the time of each measurement,
//! `MEASURE=cpu` or `MEASURE=iops` takes one of the two only.

#![expect(clippy::unwrap_used, reason = "a failing unwrap ends the measurement")]

#[path = "../tests/client/mod.rs"]
mod client;
#[path = "../tests/served/mod.rs"]
mod served;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use block::BlockDevice;
use client::{Client, Elsewhere, Pump};
use fabric_wire::tcp::Pdu;
use nix::time::{ClockId, clock_gettime};
use nvme_spec::{Cid, Lba, Nsid, SglDescriptor, Sqe};
use nvmf::PollGroup;
use nvmf_tcp::TcpOptions;
use served::{Served, enable, iobuf_options, null_disk, ram_disk};

const BLOCKS: u64 = 1 << 20;
/// Of a disk under callgrind, where everything takes fifty times as long.
const BLOCKS_COUNTED: u64 = 1 << 14;
/// I/Os that callgrind counts, and those before them.
const IOS_COUNTED: u64 = 20_000;
const IOS_BEFORE: u64 = 5_000;
/// What the target's clock goes on by from poll to poll while callgrind counts: the order of what a
/// poll takes without it.
const TURN: Duration = Duration::from_micros(10);

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    is_write: bool,
    len: usize,
    queue_depth: u16,
    has_digests: bool,
    is_null: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, is_write) in [("read", false), ("write", true)] {
        for queue_depth in [1, 32, 128] {
            let base = Case {
                name,
                is_write,
                len: 4096,
                queue_depth,
                has_digests: false,
                is_null: false,
            };
            cases.push(base);
            if queue_depth == 128 {
                cases.push(Case {
                    has_digests: true,
                    ..base
                });
            }
            cases.push(Case {
                is_null: true,
                ..base
            });
        }
        cases.push(Case {
            name,
            is_write,
            len: 131_072,
            queue_depth: 8,
            has_digests: false,
            is_null: false,
        });
    }
    cases
}

fn main() {
    let which = std::env::var("MEASURE").unwrap_or_default();
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let seconds = std::env::var("SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    for case in cases() {
        let device = if case.is_null { "null" } else { "ram" };
        let digests = if case.has_digests { " digests" } else { "" };
        let label = format!(
            "{} {} KiB qd {} {device}{digests}",
            case.name,
            case.len / 1024,
            case.queue_depth
        );
        if filter
            .as_ref()
            .is_some_and(|filter| !label.contains(filter.as_str()))
        {
            continue;
        }
        if which == "instructions" {
            println!("{label}: {} I/Os", counted(case));
            continue;
        }
        let time = Duration::from_secs(seconds);
        if which != "iops" {
            let (ns, ios) = run_in_turns(case, time);
            println!("{label:40} {ns:>8.0} ns CPU, {ios} I/Os in all");
        }
        if which != "cpu" {
            let (iops, latency_us) = run(case, time);
            println!("{label:40} {iops:>10.0} IOPS {latency_us:>8.1} us average");
        }
    }
}

fn serve(case: Case, blocks: u64) -> Served {
    let device: Arc<dyn BlockDevice> = if case.is_null {
        null_disk(blocks)
    } else {
        ram_disk(blocks)
    };
    Served::new(TcpOptions::default(), iobuf_options(), device)
}

/// An admin and an I/O connection to a disk of so many blocks.
fn connect(case: Case, blocks: u64, address: &str, pump: &mut dyn Pump) -> (Client, Load) {
    let digests = (case.has_digests, case.has_digests);
    let mut admin = Client::connect(address);
    admin.initialize(pump, 0, digests);
    let cntlid = enable(&mut admin, pump);
    let mut io = Client::connect(address);
    io.initialize(pump, 0, digests);
    io.connect_queue(pump, 1, 127, cntlid);
    let mut load = Load::new(case, blocks, io);
    load.write_all(pump);
    (admin, load)
}

/// IOPS and average latency in microseconds.
fn run(case: Case, time: Duration) -> (f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let target = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut served = serve(case, BLOCKS);
            tell.send(served.address.clone()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                served.poll();
            }
        }
    });
    let address = told.recv().unwrap();
    let (_admin, mut load) = connect(case, BLOCKS, &address, &mut Elsewhere);
    load.run(&mut Elsewhere, Duration::from_millis(300));
    let (done, took) = load.run(&mut Elsewhere, time);
    stop.store(true, Ordering::Relaxed);
    target.join().unwrap();
    let iops = done as f64 / took.as_secs_f64();
    (iops, f64::from(load.depth) / iops * 1e6)
}

/// The target, with its CPU time.
struct Timed {
    served: Served,
    cpu: Duration,
}

impl Pump for Timed {
    fn pump(&mut self) {
        let now = || {
            let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
            Duration::from(time)
        };
        let start = now();
        self.served.poll();
        self.cpu += now() - start;
    }
}

/// Nanoseconds of the target's CPU time for an I/O.
fn run_in_turns(case: Case, time: Duration) -> (f64, u64) {
    let mut timed = Timed {
        served: serve(case, BLOCKS),
        cpu: Duration::ZERO,
    };
    let address = timed.served.address.clone();
    let (_admin, mut load) = connect(case, BLOCKS, &address, &mut timed);
    let (before, _) = load.run(&mut timed, Duration::from_millis(300));
    timed.cpu = Duration::ZERO;
    let (done, _) = load.run(&mut timed, time);
    (timed.cpu.as_nanos() as f64 / done as f64, before + done)
}

/// The target with a clock of its own, and whether callgrind counts its polls.
struct Counted {
    served: Served,
    now: Instant,
    is_counted: bool,
}

impl Pump for Counted {
    fn pump(&mut self) {
        self.now += TURN;
        if self.is_counted {
            counted_poll(&mut self.served.group, self.now);
        } else {
            self.served.group.poll(self.now);
        }
    }
}

/// The target's turn, for callgrind, which begins to count where this begins and ends where it ends.
#[inline(never)]
fn counted_poll(group: &mut PollGroup, now: Instant) {
    std::hint::black_box(group.poll(now));
}

/// Runs as many I/Os as callgrind is to count, after others; how many they were.
fn counted(case: Case) -> u64 {
    let mut counted = Counted {
        served: serve(case, BLOCKS_COUNTED),
        now: Instant::now(),
        is_counted: false,
    };
    let address = counted.served.address.clone();
    let (_admin, mut load) = connect(case, BLOCKS_COUNTED, &address, &mut counted);
    load.run_ios(&mut counted, IOS_BEFORE);
    counted.is_counted = true;
    load.run_ios(&mut counted, IOS_COUNTED)
}

/// Keeps `depth` commands under way.
struct Load {
    case: Case,
    blocks: u64,
    io: Client,
    depth: u16,
    free: Vec<u16>,
    random: u64,
    data: Vec<u8>,
    bytes: Vec<u8>,
}

impl Load {
    fn new(case: Case, blocks: u64, io: Client) -> Self {
        // A queue of 128 entries holds 127 commands.
        let depth = case.queue_depth.min(127);
        Self {
            case,
            blocks,
            io,
            depth,
            free: (0..depth).collect(),
            random: 88_172_645_463_325_252,
            data: vec![0x5a; case.len],
            bytes: Vec::new(),
        }
    }

    fn lba(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let blocks = (self.case.len / 512) as u64;
        self.random % (self.blocks / blocks) * blocks
    }

    /// Writes every block: a RAM disk takes its memory when it is written first.
    fn write_all(&mut self, pump: &mut dyn Pump) {
        if self.case.is_null {
            return;
        }
        let data = vec![0xa5; 131_072];
        for lba in (0..self.blocks).step_by(256) {
            let sqe = Sqe::write(Cid(500), Nsid(1), Lba(lba), 256);
            let done = self.io.run_with_r2t(pump, sqe, &data);
            assert!(done.status.is_success(), "{}", done.status);
        }
    }

    fn submit(&mut self, pump: &mut dyn Pump) {
        self.bytes.clear();
        while let Some(cid) = self.free.pop() {
            let (len, lba) = (self.case.len as u32, Lba(self.lba()));
            if !self.case.is_write {
                let sqe = Sqe::read(Cid(cid), Nsid(1), lba, len / 512)
                    .with_sgl(SglDescriptor::transport_data(len));
                self.io.append_capsule(&mut self.bytes, &sqe, &[]);
            } else if len <= 8192 {
                let sqe = Sqe::write(Cid(cid), Nsid(1), lba, len / 512)
                    .with_sgl(SglDescriptor::in_capsule(0, len));
                self.io.append_capsule(&mut self.bytes, &sqe, &self.data);
            } else {
                let sqe = Sqe::write(Cid(cid), Nsid(1), lba, len / 512)
                    .with_sgl(SglDescriptor::transport_data(len));
                self.io.append_capsule(&mut self.bytes, &sqe, &[]);
            }
        }
        if !self.bytes.is_empty() {
            let bytes = std::mem::take(&mut self.bytes);
            self.io.write(pump, &bytes);
            self.bytes = bytes;
        }
    }

    fn run(&mut self, pump: &mut dyn Pump, time: Duration) -> (u64, Duration) {
        let start = Instant::now();
        let mut done = 0;
        loop {
            done += self.turn(pump);
            if start.elapsed() >= time {
                // What is under way ends, so that the next run begins anew.
                while self.free.len() < usize::from(self.depth) {
                    pump.pump();
                    self.drain(pump);
                }
                return (done, start.elapsed());
            }
        }
    }

    /// Takes turns until so many I/Os have ended; how many did.
    fn run_ios(&mut self, pump: &mut dyn Pump, ios: u64) -> u64 {
        let mut done = 0;
        while done < ios {
            done += self.turn(pump);
        }
        done
    }

    /// The host's turn, and in it one of the target's; how many I/Os ended.
    fn turn(&mut self, pump: &mut dyn Pump) -> u64 {
        let mut done = 0;
        self.submit(pump);
        pump.pump();
        self.io.fill();
        let mut asked = Vec::new();
        while let Some((_, pdu, _)) = self.io.buffered_pdu() {
            match pdu {
                Pdu::C2HData {
                    cccid,
                    success: true,
                    ..
                } => self.free.push(cccid.0),
                Pdu::CapsuleResp { cqe } => {
                    assert!(cqe.status().is_success(), "{}", cqe.status());
                    self.free.push(cqe.cid().0);
                }
                Pdu::R2T { cccid, ttag, .. } => {
                    asked.push((cccid, ttag));
                    continue;
                }
                other => panic!("{other:?}"),
            }
            done += 1;
        }
        for (cid, ttag) in asked {
            let pdu = self.io.h2c(cid, ttag, 0, &self.data, true);
            self.io.write(pump, &pdu);
        }
        done
    }

    fn drain(&mut self, pump: &mut dyn Pump) {
        self.io.fill();
        while let Some((_, pdu, _)) = self.io.buffered_pdu() {
            match pdu {
                Pdu::C2HData { cccid, .. } => self.free.push(cccid.0),
                Pdu::CapsuleResp { cqe } => self.free.push(cqe.cid().0),
                Pdu::R2T { cccid, ttag, .. } => {
                    let pdu = self.io.h2c(cccid, ttag, 0, &self.data, true);
                    self.io.write(pump, &pdu);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
