//! Runs a workload against a subsystem, from a plain loop.
//!
//! `perf tcp://127.0.0.1:4420/NQN [workload=randread] [size=4096] [depth=32] [time=10] ...`

use std::error::Error;
use std::time::{Duration, Instant};

use fabric_wire::TransportAddress;
use nvmf_host::perf::{PerfEngine, PerfOptions, PerfPhase};
use nvmf_host::{HostIdentity, HostOptions};

const USAGE: &str = "usage: perf tcp://ADDRESS:PORT/NQN [workload=randread] [read=50] [size=4096] \
    [depth=32] [connections=1] [time=10] [warm=0] [count=N] [region=BYTES] [nsid=N] [seed=1] \
    [verify] [keep] [hdgst] [ddgst]";

fn options() -> Result<PerfOptions, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let uri = arguments.next().ok_or(USAGE)?;
    let (address, nqn) = TransportAddress::parse_with_nqn(&uri)?;
    let nqn = nqn.ok_or("the subsystem's name must follow the address: tcp://ADDRESS:PORT/NQN")?;
    let host = HostOptions::new(HostIdentity::from_uuid_bytes(*b"adit-perf-sample"));
    let mut options = PerfOptions::new(address, nqn, host);
    for argument in arguments {
        let (key, value) = argument.split_once('=').unwrap_or((&argument, ""));
        match key {
            "workload" => options.workload = value.parse()?,
            "read" => options.read_percent = value.parse()?,
            "size" => options.io_size = value.parse()?,
            "depth" => options.queue_depth = value.parse()?,
            "connections" => options.connections = value.parse()?,
            "time" => options.time = Some(Duration::from_secs_f64(value.parse()?)),
            "warm" => options.warm_up = Duration::from_secs_f64(value.parse()?),
            "count" => options.count = Some(value.parse()?),
            "region" => options.region_bytes = Some(value.parse()?),
            "nsid" => options.nsid = Some(nvme_spec::Nsid(value.parse()?)),
            "seed" => options.seed = value.parse()?,
            "verify" => options.verify = true,
            "keep" => options.keep_data = true,
            "hdgst" => options.host.header_digest = true,
            "ddgst" => options.host.data_digest = true,
            _ => return Err(format!("{argument} is unknown; {USAGE}").into()),
        }
    }
    Ok(options)
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    println!(
        "{} of {} bytes, depth {}, {} connection(s)",
        options.workload, options.io_size, options.queue_depth, options.connections
    );
    let mut engine = PerfEngine::new(options, Instant::now())?;
    let mut phase = PerfPhase::Connecting;
    while !engine.finished() {
        let now = Instant::now();
        let worked = engine.poll(now);
        if engine.phase() != phase {
            phase = engine.phase();
            eprintln!("{phase:?}");
        }
        let is_running = matches!(phase, PerfPhase::Running | PerfPhase::WarmingUp);
        if !worked && !is_running {
            std::thread::yield_now();
        }
    }
    let report = engine.report(Instant::now());
    print!("{report}");
    let ios = report.total.ios.max(1) as f64;
    println!(
        "{:.2} sendmsg and {:.2} recvmsg calls per I/O",
        report.send_calls as f64 / ios,
        report.receive_calls as f64 / ios
    );
    match engine.failure() {
        None => Ok(()),
        Some(error) => Err(error.describe().into()),
    }
}
