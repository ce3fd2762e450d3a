//! IOPS over loopback: one target thread that polls, the load generator on this one.
//!
//! `cargo bench -p nvmf_host [-- FILTER]`; `SECONDS=3` sets the time of each measurement. A quiet
//! machine with two cores is needed for figures that mean something.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

#[path = "../tests/served/mod.rs"]
mod served;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fabric_wire::TransportAddress;
use nvmf_host::perf::{PerfEngine, PerfOptions, PerfReport, Workload};
use nvmf_tcp::TcpOptions;
use served::{Served, host_options, null_disk, ram_disk, subsystem_nqn};

const BLOCKS: u64 = 1 << 20;

struct Case {
    name: &'static str,
    workload: Workload,
    io_size: u32,
    depth: u16,
    connections: u16,
    digests: bool,
    verify: bool,
    null: bool,
}

fn cases() -> Vec<Case> {
    let base = |name, workload, io_size, depth| Case {
        name,
        workload,
        io_size,
        depth,
        connections: 1,
        digests: false,
        verify: false,
        null: false,
    };
    use Workload::{RandRead, RandWrite};
    let mut cases = Vec::new();
    for depth in [1, 32, 128] {
        cases.push(base("randread-4k", RandRead, 4096, depth));
        cases.push(base("randwrite-4k", RandWrite, 4096, depth));
    }
    cases.push(base("randread-128k", RandRead, 131_072, 8));
    cases.push(base("randwrite-128k", RandWrite, 131_072, 8));
    cases.push(Case { null: true, ..base("null-randread-4k", RandRead, 4096, 128) });
    cases.push(Case { digests: true, ..base("digest-randread-4k", RandRead, 4096, 128) });
    cases.push(Case { digests: true, ..base("digest-randwrite-4k", RandWrite, 4096, 128) });
    cases.push(Case { verify: true, ..base("verify-randwrite-4k", RandWrite, 4096, 32) });
    cases.push(Case { connections: 8, ..base("8x-randread-4k", RandRead, 4096, 32) });
    cases
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let seconds = std::env::var("SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    println!("{:<22}{:>6}{:>12}{:>11}{:>10}{:>10}", "case", "depth", "IOPS", "MiB/s", "avg us", "p99 us");
    for case in cases() {
        if filter.as_ref().is_some_and(|filter| !case.name.contains(filter.as_str())) {
            continue;
        }
        let report = run(&case, Duration::from_secs_f64(seconds));
        let total = &report.total;
        println!(
            "{:<22}{:>6}{:>12.0}{:>11.1}{:>10.1}{:>10.1}   {:.3} sends {:.3} receives per I/O",
            case.name,
            case.depth,
            total.iops,
            total.mib_per_s,
            total.latency.avg.as_secs_f64() * 1e6,
            total.latency.p99.as_secs_f64() * 1e6,
            report.send_calls as f64 / total.ios as f64,
            report.receive_calls as f64 / total.ios as f64,
        );
    }
}

/// Serves a device on another thread while `client` runs.
fn serve<R>(null: bool, client: impl FnOnce(TransportAddress) -> R) -> R {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let (told, address) = mpsc::channel();
    let server = std::thread::spawn(move || {
        let device = if null { null_disk(BLOCKS) } else { ram_disk(BLOCKS) };
        let mut served = Served::new(TcpOptions::default(), device);
        told.send(served.address.clone()).unwrap();
        while !over.load(Ordering::Relaxed) {
            served.poll();
        }
    });
    let result = client(address.recv().unwrap());
    is_over.store(true, Ordering::Relaxed);
    server.join().unwrap();
    result
}

fn run(case: &Case, time: Duration) -> PerfReport {
    serve(case.null, |address| {
        let mut host = host_options(1);
        host.header_digest = case.digests;
        host.data_digest = case.digests;
        let mut options = PerfOptions::new(address, subsystem_nqn(), host);
        options.workload = case.workload;
        options.io_size = case.io_size;
        options.queue_depth = case.depth;
        options.connections = case.connections;
        options.verify = case.verify;
        options.time = Some(time);
        options.warm_up = Duration::from_millis(200);
        let mut engine = PerfEngine::new(options, Instant::now()).unwrap();
        while !engine.finished() {
            engine.poll(Instant::now());
        }
        assert!(engine.failure().is_none(), "{:?}", engine.failure());
        engine.report(Instant::now())
    })
}
