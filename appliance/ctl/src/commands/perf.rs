//! `aditctl perf`: a load generator over the initiator library. It talks to the subsystem as a host
//! does; no management API is involved.

use std::time::{Duration, Instant};

use fabric_wire::{TransportAddress, TransportType};
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeValLike as _;
use nvmf_host::perf::{LatencySummary, OpReport, PerfEngine, PerfOptions, PerfPhase, PerfReport};
use nvmf_host::{HostIdentity, HostOptions};
use serde_json::{Value, json};

use crate::failure::{Failure, chain};
use crate::grammar::{Format, Perf};
use crate::output;

/// Runs the workload on this thread, without pause.
pub(crate) fn run(format: Format, arguments: &Perf) -> Result<(), Failure> {
    let options = options(arguments)?;
    let mut engine =
        PerfEngine::new(options, Instant::now()).map_err(|error| Failure::Usage(chain(&error)))?;
    let mut cpu_before = Duration::ZERO;
    let mut is_counting = false;
    let interrupt = Interrupt::catch()?;
    let mut look_at = Instant::now();
    while !engine.finished() {
        let now = Instant::now();
        let worked = engine.poll(now);
        if now >= look_at {
            look_at = now + LOOK_INTERVAL;
            if interrupt.has_come() {
                engine.stop(now);
            }
        }
        if !is_counting && engine.phase() == PerfPhase::Running {
            is_counting = true;
            cpu_before = cpu_time();
        }
        if !worked && !is_counting {
            // Connecting: nothing is measured yet, let others run.
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    let cpu = cpu_time().saturating_sub(cpu_before);
    let report = engine.report(Instant::now());
    let cpu_ns_per_io = u64::try_from(cpu.as_nanos())
        .unwrap_or(u64::MAX)
        .checked_div(report.total.ios);
    let failure = engine.failure().map(|error| Failure::Host {
        what: "the workload",
        reason: chain(error),
    });
    // One that failed before it began has nothing to report.
    if is_counting || failure.is_none() {
        match format {
            Format::Table => output::text(&table(&report, cpu_ns_per_io))?,
            Format::Json => output::json(&to_json(arguments, &report, cpu_ns_per_io))?,
        }
    }
    failure.map_or(Ok(()), Err)
}

/// How often it is looked for Ctrl-C. A look is a system call.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Ctrl-C ends the workload early; what was measured until then is reported.
struct Interrupt(SignalFd);

impl Interrupt {
    fn catch() -> Result<Self, Failure> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        let failed = |error: Errno| Failure::Host {
            what: "the workload",
            reason: format!("cannot listen for Ctrl-C: {error}"),
        };
        signals.thread_block().map_err(failed)?;
        SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map(Self)
            .map_err(failed)
    }

    fn has_come(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}

fn options(arguments: &Perf) -> Result<PerfOptions, Failure> {
    let usage = |problem: String| Failure::Usage(problem);
    let (address, nqn) = TransportAddress::parse_with_nqn(&arguments.subsystem)
        .map_err(|error| usage(error.to_string()))?;
    let nqn = nqn.ok_or_else(|| {
        usage("the NQN must follow the address: tcp://ADDRESS:PORT/NQN".to_owned())
    })?;
    let identity = identity(arguments.host.as_deref())?;
    let mut options = PerfOptions::new(address, nqn, HostOptions::new(identity));
    find_verbs(&mut options.host, options.address.trtype)?;
    options.host.header_digest = arguments.header_digest;
    options.host.data_digest = arguments.data_digest;
    options.nsid = arguments.nsid.map(nvme_spec::Nsid);
    options.workload = arguments.workload;
    options.read_percent = arguments.read_percent;
    options.io_size = arguments.io_size;
    options.queue_depth = arguments.queue_depth;
    options.connections = arguments.connections;
    options.time = arguments.time.map(Duration::from_millis);
    options.count = arguments.count;
    options.warm_up = Duration::from_millis(arguments.warm_up);
    options.verify = arguments.verify;
    options.region_bytes = arguments.region;
    options.seed = arguments.seed;
    Ok(options)
}

/// Who we are: the given name, else a new host each time.
pub(super) fn identity(host: Option<&str>) -> Result<HostIdentity, Failure> {
    let uuid = uuid::Uuid::new_v4();
    let mut identity = HostIdentity::from_uuid_bytes(*uuid.as_bytes());
    if let Some(host) = host {
        identity.hostnqn = fabric_wire::Nqn::new(host)
            .map_err(|error| Failure::Usage(format!("--host: {error}")))?;
    }
    Ok(identity)
}

/// Lets a host connect over RDMA where the address asks for that.
///
/// # Errors
/// What is missing on this system.
#[cfg(feature = "rdma")]
pub(super) fn find_verbs(options: &mut HostOptions, trtype: TransportType) -> Result<(), Failure> {
    if trtype != TransportType::Rdma {
        return Ok(());
    }
    match verbs::RdmaCore::load() {
        Ok(core) => {
            options.verbs = Some(core);
            Ok(())
        }
        Err(error) => Err(Failure::Host {
            what: "rdma",
            reason: error.to_string(),
        }),
    }
}

#[cfg(not(feature = "rdma"))]
pub(super) fn find_verbs(_: &mut HostOptions, trtype: TransportType) -> Result<(), Failure> {
    if trtype != TransportType::Rdma {
        return Ok(());
    }
    Err(Failure::Host {
        what: "rdma",
        reason: "this program was built without the feature rdma".to_owned(),
    })
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let microseconds =
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
}

fn table(report: &PerfReport, cpu_ns_per_io: Option<u64>) -> String {
    let mut text = report.to_string();
    if let Some(ns) = cpu_ns_per_io {
        text.push_str(&format!("{ns} ns of CPU per I/O on this side\n"));
    }
    text
}

fn to_json(arguments: &Perf, report: &PerfReport, cpu_ns_per_io: Option<u64>) -> Value {
    json!({
        "subsystem": arguments.subsystem,
        "workload": arguments.workload.name(),
        "read_percent": arguments.read_percent,
        "io_size_bytes": arguments.io_size,
        "queue_depth": arguments.queue_depth,
        "connections": arguments.connections,
        "elapsed_ns": nanoseconds(report.elapsed),
        "total": op(&report.total),
        "reads": op(&report.reads),
        "writes": op(&report.writes),
        "errors": report.errors,
        "first_error": report.first_error,
        "verified": report.verified,
        "cpu_ns_per_io": cpu_ns_per_io,
        "send_calls": report.send_calls,
        "receive_calls": report.receive_calls,
    })
}

fn op(op: &OpReport) -> Value {
    let LatencySummary {
        min,
        avg,
        p50,
        p90,
        p99,
        p99_9,
        max,
        ..
    } = op.latency;
    json!({
        "ios": op.ios,
        "bytes": op.bytes,
        "iops": op.iops,
        "mib_per_s": op.mib_per_s,
        "latency_ns": {
            "min": nanoseconds(min),
            "avg": nanoseconds(avg),
            "p50": nanoseconds(p50),
            "p90": nanoseconds(p90),
            "p99": nanoseconds(p99),
            "p99_9": nanoseconds(p99_9),
            "max": nanoseconds(max),
        },
    })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
