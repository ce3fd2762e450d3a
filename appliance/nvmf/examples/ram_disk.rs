//! Serves a RAM disk over NVMe/TCP from a plain loop on one thread.
//!
//! ```text
//! cargo run --release -p nvmf --example ram_disk -- tcp://127.0.0.1:4420 64
//! nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.io.adit:ram-disk
//! ```
//!
//! The library has no threads and no clock: this program passes the time in, calls `poll`, and
//! sleeps in `poll(2)` when there was nothing to do.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use block::malloc::{Malloc, MallocOptions};
use block::{Bdev, BdevOptions};
use dma::{IobufOptions, IobufPool};
use fabric_wire::TransportAddress;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nvme_spec::Nsid;
use nvmf::{
    AnaGroupId, AnaState, NamespaceConfig, PollGroup, SubsystemOptions, Target, TargetOptions,
    Visibility, WriteProtect,
};
use nvmf_tcp::{TcpOptions, TcpTransport};

const NQN: &str = "nqn.2026-11.io.adit:ram-disk";
/// Turns without work after which the loop sleeps.
const IDLE_TURNS: u32 = 64;

/// One thread: whoever wakes the group is the group itself, so a flag is enough.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: TransportAddress = arguments
        .next()
        .as_deref()
        .unwrap_or("tcp://127.0.0.1:4420")
        .parse()?;
    let size_mib: u64 = arguments.next().as_deref().unwrap_or("64").parse()?;

    let iobuf = IobufPool::new(IobufOptions::default())?;
    let woken = Arc::new(Woken::default());
    let target = Target::new(TargetOptions::default());
    target.add_transport(Arc::new(TcpTransport::new(TcpOptions::default())?))?;
    let waker = Waker::from(Arc::clone(&woken));
    let mut group = target.poll_group(waker, &iobuf, None, Instant::now())?;

    let disk = Malloc::new(MallocOptions::new(512, size_mib << 11))?;
    let bdev = Bdev::new(BdevOptions::named("ram"), disk, Instant::now())?;
    let subsystem = target.create_subsystem(SubsystemOptions {
        allow_any_host: true,
        ..SubsystemOptions::new(NQN.parse()?)
    })?;
    let (nsid, _in_force) = subsystem.add_namespace(NamespaceConfig {
        nsid: Nsid(0),
        uuid: bdev.uuid(),
        bdev,
        nguid: [0; 16],
        eui64: [0; 8],
        ana_group: AnaGroupId(1),
        visibility: Visibility::AllHosts,
        write_protect: WriteProtect::None,
    })?;
    let local = target.listen(&address)?;
    drop(subsystem.add_listener(Arc::new(address), AnaState::Optimized)?);
    subsystem.start();
    println!("{NQN} namespace {} at {local}", nsid.0);
    serve(&mut group, &woken)
}

/// The whole event loop.
fn serve(group: &mut PollGroup, woken: &Woken) -> Result<(), Box<dyn Error>> {
    let mut idle_turns = 0;
    loop {
        let now = Instant::now();
        idle_turns = if group.poll(now).work > 0 {
            0
        } else {
            idle_turns + 1
        };
        let is_woken = woken.0.swap(false, Ordering::Relaxed);
        if idle_turns < IDLE_TURNS || is_woken || !group.may_sleep() {
            continue;
        }
        let until = group
            .next_deadline()
            .map_or(Duration::from_secs(1), |at| at - now);
        let timeout = PollTimeout::try_from(until.min(Duration::from_secs(1)))?;
        let mut fds = [PollFd::new(group.wake_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, timeout)?;
    }
}
