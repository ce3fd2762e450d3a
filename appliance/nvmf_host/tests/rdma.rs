//! The initiator against the real target over RDMA, both on a double of verbs whose order of events
//! follows from a seed, on one thread and in a time of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::net::IpAddr;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::malloc::{Malloc, MallocOptions};
use block::{Bdev, BdevOptions};
use dma::{IobufOptions, IobufPool};
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::{Lba, Nsid};
use nvmf::transport::Transport;
use nvmf::{
    AnaGroupId, AnaState, NamespaceConfig, PollGroup, Subsystem, SubsystemOptions, Target,
    TargetOptions, Visibility, WriteProtect,
};
use nvmf_host::{
    CommandError, Completion, Controller, Discovery, HostContext, HostError, HostIdentity,
    HostOptions, IoOp, IoQueue, IoRequest, Submit,
};
use nvmf_rdma::{RdmaOptions, RdmaTransport, RequestState};
use verbs::DeviceCaps;
use verbs_emu::{CAPS, EmuProvider, Fabric};

const NSID: Nsid = Nsid(1);
const BLOCK: usize = 512;
const BLOCKS: usize = 4096;
/// What passes between two turns.
const TICK: Duration = Duration::from_micros(200);
/// Turns after which a test has failed.
const PATIENCE: usize = 400_000;

fn nqn() -> Nqn {
    Nqn::new("nqn.2026-01.io.adit:rdma-test").unwrap()
}

/// How many orders of events are tried; ADIT_SEEDS asks for more.
fn seeds(count: usize) -> std::ops::Range<usize> {
    let asked = std::env::var("ADIT_SEEDS").ok();
    0..asked.and_then(|text| text.parse().ok()).unwrap_or(count)
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((self.0 >> 33) % end as u64) as usize
    }
}

struct Rig {
    fabric: Fabric,
    target: Arc<Target>,
    transport: Arc<RdmaTransport>,
    subsystem: Arc<Subsystem>,
    group: Option<PollGroup>,
    iobuf: Arc<IobufPool>,
    host_node: Arc<EmuProvider>,
    address: TransportAddress,
    context: HostContext,
    now: Instant,
}

struct Setup {
    options: RdmaOptions,
    caps: DeviceCaps,
    small_buffers: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            options: RdmaOptions {
                // Small, so that queues are full and things wait.
                max_queue_depth: 16,
                max_srq_depth: 64,
                num_cqe: 128,
                ..RdmaOptions::default()
            },
            caps: CAPS,
            small_buffers: 1024,
        }
    }
}

impl Rig {
    fn new(seed: u64, setup: Setup) -> Self {
        let fabric = Fabric::new(seed);
        Self::on(fabric, setup)
    }

    fn on(fabric: Fabric, setup: Setup) -> Self {
        let (target_node, host_node) = (fabric.node(), fabric.node());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        target_node.add_device_with("target0", ip("10.0.0.1"), setup.caps);
        target_node.add_device_with("target1", ip("10.0.1.1"), setup.caps);
        host_node.add_device_with("host0", ip("10.0.0.2"), setup.caps);
        let now = Instant::now();
        let iobuf = IobufPool::new(IobufOptions {
            small_pool_count: setup.small_buffers,
            large_pool_count: 64,
            ..IobufOptions::default()
        })
        .unwrap();
        let target = Target::new(TargetOptions::default());
        let transport = Arc::new(RdmaTransport::new(setup.options, target_node).unwrap());
        let shared: Arc<dyn Transport> = Arc::clone(&transport) as _;
        target.add_transport(shared).unwrap();
        let group = target
            .poll_group(Waker::noop().clone(), &iobuf, None, now)
            .unwrap();
        let subsystem = target
            .create_subsystem(SubsystemOptions {
                allow_any_host: true,
                ..SubsystemOptions::new(nqn())
            })
            .unwrap();
        let any: TransportAddress = "rdma://0.0.0.0:4420".parse().unwrap();
        target.listen(&any).unwrap();
        drop(
            subsystem
                .add_listener(Arc::new(any), AnaState::Optimized)
                .unwrap(),
        );
        let disk = Malloc::new(MallocOptions::new(BLOCK as u32, BLOCKS as u64)).unwrap();
        let bdev = Bdev::new(BdevOptions::named("disk"), disk, now).unwrap();
        drop(
            subsystem
                .add_namespace(NamespaceConfig {
                    nsid: NSID,
                    uuid: bdev.uuid(),
                    bdev,
                    nguid: [1; 16],
                    eui64: [0; 8],
                    ana_group: AnaGroupId(1),
                    visibility: Visibility::AllHosts,
                    write_protect: WriteProtect::None,
                })
                .unwrap(),
        );
        subsystem.start();
        Self {
            fabric,
            target,
            transport,
            subsystem,
            group: Some(group),
            iobuf,
            host_node,
            address: "rdma://10.0.0.1:4420".parse().unwrap(),
            context: HostContext::new(),
            now,
        }
    }

    fn host_options(&self, number: u8) -> HostOptions {
        let mut uuid = *b"adit-rdma-tests-";
        uuid[15] = number;
        let mut options = HostOptions::new(HostIdentity::from_uuid_bytes(uuid));
        options.verbs = Some(Arc::clone(&self.host_node) as _);
        options.io_queue_depth = 15;
        options
    }

    fn turn(&mut self) {
        self.now += TICK;
        if let Some(group) = &mut self.group {
            group.poll(self.now);
        }
    }

    fn connect(&mut self, options: HostOptions) -> Result<Controller, HostError> {
        let address = self.address.clone();
        let mut controller =
            Controller::connect(&address, &nqn(), options, &self.context, self.now).unwrap();
        for _ in 0..PATIENCE {
            self.turn();
            controller.poll(self.now);
            if controller.is_ready() {
                return Ok(controller);
            }
            if let Some(error) = controller.failure() {
                return Err(error.clone());
            }
        }
        panic!("stuck at {}", controller.step());
    }

    fn connected(&mut self, options: HostOptions) -> (Controller, IoQueue) {
        let mut controller = self.connect(options).unwrap();
        let queue = controller.take_io_queues().pop().unwrap();
        (controller, queue)
    }

    /// Polls until `count` requests have ended.
    fn completions(&mut self, queue: &mut IoQueue, count: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        for _ in 0..PATIENCE {
            if done.len() >= count {
                return done;
            }
            self.turn();
            queue.poll(self.now, &mut done);
        }
        panic!("{} of {count} completions", done.len());
    }

    fn io(&mut self, queue: &mut IoQueue, request: IoRequest) -> Completion {
        assert!(queue.submit(request, self.now).is_accepted());
        self.completions(queue, 1).pop().unwrap()
    }

    fn copied_bytes(&self) -> u64 {
        let groups = self.transport.stats().groups();
        groups.iter().map(|group| group.copied_bytes()).sum()
    }

    /// Turns until the target has no connection any more.
    fn drain(&mut self) {
        for _ in 0..PATIENCE {
            self.turn();
            if self.transport.stats().snapshot().connections == 0 {
                return;
            }
        }
        panic!("{:?}", self.transport.stats().snapshot());
    }

    /// Ends the target, and looks for what is left.
    fn end(mut self) {
        self.group = None;
        drop(self.subsystem);
        drop(self.target);
        drop(self.transport);
        let stats = self.iobuf.stats();
        assert_eq!(stats.small.in_use(), 0, "small buffers are missing");
        assert_eq!(stats.large.in_use(), 0, "large buffers are missing");
        assert_eq!(stats.reserve_free, stats.reserve_total);
        assert_eq!(self.fabric.object_count(), 0, "objects are left");
        assert_eq!(self.fabric.stats().overruns, 0);
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed as u8)
        .collect()
}

fn write(lba: usize, data: Vec<u8>, tag: u64) -> IoRequest {
    let op = IoOp::Write {
        lba: Lba(lba as u64),
        blocks: (data.len() / BLOCK) as u32,
        fua: false,
    };
    IoRequest::new(NSID, op, tag).with_buffer(data)
}

fn read(lba: usize, blocks: usize, tag: u64) -> IoRequest {
    let op = IoOp::Read {
        lba: Lba(lba as u64),
        blocks: blocks as u32,
    };
    IoRequest::new(NSID, op, tag).with_buffer(vec![0; blocks * BLOCK])
}

/// Every combination of what changes the path of data.
fn setups() -> Vec<(Setup, bool, String)> {
    let mut all = Vec::new();
    for bits in 0..32u32 {
        let is = |bit: u32| bits & 1 << bit != 0;
        let mut setup = Setup::default();
        setup.options.no_srq = is(0);
        setup.options.inline_responses = is(1);
        if is(2) {
            // Reads wait for one another, and commands for a queue that is hardly long enough.
            setup.caps.max_qp_init_rd_atom = 1;
            setup.caps.max_qp_wr = 64;
        }
        if is(4) {
            setup.options.in_capsule_data_size = 0;
        }
        let name = format!("setup {bits:05b}");
        all.push((setup, is(3), name));
    }
    all
}

#[test]
fn every_size_is_written_and_read_back_on_every_path() {
    for (seed, (setup, has_windows, name)) in setups().into_iter().enumerate() {
        let mut rig = Rig::new(seed as u64, setup);
        let mut options = rig.host_options(1);
        options.memory_windows = has_windows;
        let (controller, mut queue) = rig.connected(options);
        for (index, len) in [512, 4096, 4608, 8192, 8704, 65_536, 131_072]
            .into_iter()
            .enumerate()
        {
            let data = pattern(len, index);
            let done = rig.io(&mut queue, write(index * 256, data.clone(), 1));
            assert_eq!(done.result, Ok(0), "{name}: {len} bytes");
            let done = rig.io(&mut queue, read(index * 256, len / BLOCK, 2));
            assert_eq!(done.result, Ok(0), "{name}: {len} bytes");
            assert!(done.buffer.into_vec() == data, "{name}: {len} bytes");
        }
        assert_eq!(rig.copied_bytes(), 0, "{name}: the cpu copied data");
        let invalidated = rig.fabric.stats().remote_invalidations;
        assert_eq!(invalidated > 0, has_windows, "{name}");
        drop(queue);
        drop(controller);
        rig.drain();
        rig.end();
    }
}

/// An outstanding request: its blocks, and what is to be read.
type Busy = (usize, usize, Option<Vec<u8>>);

/// Random reads and writes, many at a time, against what the disk must hold.
fn churn(rig: &mut Rig, queue: &mut IoQueue, random: &mut Random, count: usize) {
    let mut disk = vec![0u8; BLOCKS * BLOCK];
    // What is outstanding, by tag: where, how long, and what is to be read.
    let mut busy: Vec<Option<Busy>> = vec![None; 15];
    let (mut begun, mut ended) = (0, 0);
    let mut done = Vec::new();
    for _ in 0..PATIENCE {
        if ended == count {
            return;
        }
        while begun < count && queue.has_room() {
            let Some(tag) = busy.iter().position(Option::is_none) else {
                break;
            };
            let blocks = [1, 3, 8, 16, 17, 64, 256][random.below(7)];
            let lba = random.below(BLOCKS - blocks);
            let overlaps = busy
                .iter()
                .flatten()
                .any(|(at, len, _)| lba < at + len && *at < lba + blocks);
            if overlaps {
                break;
            }
            let range = lba * BLOCK..(lba + blocks) * BLOCK;
            let request = if random.below(2) == 0 {
                let data = pattern(blocks * BLOCK, begun);
                disk[range].copy_from_slice(&data);
                busy[tag] = Some((lba, blocks, None));
                write(lba, data, tag as u64)
            } else {
                busy[tag] = Some((lba, blocks, Some(disk[range].to_vec())));
                read(lba, blocks, tag as u64)
            };
            assert!(queue.submit(request, rig.now).is_accepted());
            begun += 1;
        }
        rig.turn();
        queue.poll(rig.now, &mut done);
        for completion in done.drain(..) {
            assert_eq!(completion.result, Ok(0));
            let was = busy[completion.tag as usize].take();
            let (.., expected) = was.expect("each request ends once");
            if let Some(expected) = expected {
                assert!(completion.buffer.into_vec() == expected, "wrong data");
            }
            ended += 1;
        }
    }
    panic!("{ended} of {count} requests have ended");
}

#[test]
fn many_requests_at_a_time_end_once_with_the_right_data_in_every_order() {
    for seed in seeds(32) {
        let mut setups = setups();
        let (setup, has_windows, name) = setups.swap_remove(seed % setups.len());
        let mut rig = Rig::new(1000 + seed as u64, setup);
        let mut options = rig.host_options(1);
        options.memory_windows = has_windows;
        let (controller, mut queue) = rig.connected(options);
        churn(&mut rig, &mut queue, &mut Random(seed as u64), 300);
        let snapshot = rig.transport.stats().groups()[0].snapshot();
        for state in RequestState::ALL {
            let times = snapshot.states[state as usize];
            assert!(times > 0, "{name}: no request was ever {}", state.name());
        }
        drop((controller, queue));
        rig.drain();
        rig.end();
    }
}

#[test]
fn a_pool_with_few_buffers_copies_and_loses_nothing() {
    let mut setup = Setup {
        small_buffers: 128,
        ..Setup::default()
    };
    setup.options.iobuf_small_cache_size = Some(16);
    setup.options.iobuf_large_cache_size = Some(4);
    let mut rig = Rig::new(7, setup);
    let (controller, mut queue) = rig.connected(rig.host_options(1));
    churn(&mut rig, &mut queue, &mut Random(7), 300);
    drop((controller, queue));
    rig.drain();
    rig.end();
}

#[test]
fn errors_of_commands_are_told_and_the_connection_goes_on() {
    let mut rig = Rig::new(5, Setup::default());
    let (controller, mut queue) = rig.connected(rig.host_options(1));
    let beyond = rig.io(&mut queue, write(BLOCKS, vec![0; 4096], 1));
    let Err(CommandError::Status(status)) = beyond.result else {
        panic!("{beyond:?}");
    };
    assert!(status.is(nvme_spec::Status::LBA_OUT_OF_RANGE));
    let beyond = rig.io(&mut queue, read(BLOCKS, 8, 1));
    assert!(matches!(beyond.result, Err(CommandError::Status(_))));
    let done = rig.io(&mut queue, write(0, pattern(4096, 1), 1));
    assert_eq!(done.result, Ok(0));
    drop((controller, queue));
    rig.drain();
    rig.end();
}

#[test]
fn discovery_tells_of_the_listener() {
    let mut rig = Rig::new(5, Setup::default());
    let options = rig.host_options(1);
    let mut discovery =
        Discovery::connect(&rig.address.clone(), options, &rig.context, rig.now).unwrap();
    for _ in 0..PATIENCE {
        rig.turn();
        discovery.poll(rig.now);
        if let Some(log) = discovery.take_log() {
            let found = log.records.iter().any(|entry| {
                entry.subnqn == nqn() && entry.address.to_string() == "rdma://10.0.0.1:4420"
            });
            assert!(found, "{log:?}");
            return;
        }
        assert!(discovery.failure().is_none(), "{:?}", discovery.failure());
    }
    panic!("no log came");
}

#[test]
fn a_refused_connection_says_why() {
    let setup = Setup {
        options: RdmaOptions {
            max_connections: 1,
            ..Setup::default().options
        },
        ..Setup::default()
    };
    let mut rig = Rig::new(5, setup);
    let error = rig.connect(rig.host_options(1)).unwrap_err();
    assert!(error.to_string().contains("no resources"), "{error}");
    rig.address = "rdma://10.0.0.1:9".parse().unwrap();
    let error = rig.connect(rig.host_options(1)).unwrap_err();
    assert!(error.to_string().contains("nobody listens"), "{error}");
    let mut without = rig.host_options(1);
    without.verbs = None;
    let address = rig.address.clone();
    let refused = Controller::connect(&address, &nqn(), without, &rig.context, rig.now);
    assert!(refused.is_err());
}

/// What goes wrong in the middle of I/O.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Queue,
    PortDown,
    RemoveTarget,
    RemoveHost,
    DropHost,
    Block,
}

#[test]
fn whatever_fails_at_whichever_moment_each_request_ends_once_and_nothing_is_lost() {
    let faults = [
        Fault::Queue,
        Fault::PortDown,
        Fault::RemoveTarget,
        Fault::RemoveHost,
        Fault::DropHost,
        Fault::Block,
    ];
    for seed in seeds(120) {
        let fault = faults[seed % faults.len()];
        let mut setups = setups();
        let (setup, has_windows, name) = setups.swap_remove(seed * 7 % setups.len());
        let mut rig = Rig::new(5000 + seed as u64, setup);
        let mut options = rig.host_options(1);
        options.memory_windows = has_windows;
        // So that a target which cannot be reached is noticed within the test.
        options.io_timeout = Duration::from_secs(2);
        options.abort_grace = Duration::from_secs(1);
        options.admin_timeout = Duration::from_secs(2);
        let (mut controller, mut queue) = rig.connected(options);
        let mut random = Random(seed as u64);
        let mut submitted = 0;
        for tag in 0..12 {
            let blocks = [1, 8, 16, 64, 256][random.below(5)];
            let lba = random.below(BLOCKS - blocks);
            let request = if random.below(2) == 0 {
                write(lba, pattern(blocks * BLOCK, tag), tag as u64)
            } else {
                read(lba, blocks, tag as u64)
            };
            if let Submit::Accepted(_) = queue.submit(request, rig.now) {
                submitted += 1;
            }
        }
        let mut done = Vec::new();
        queue.flush(&mut done);
        for _ in 0..random.below(60) {
            match random.below(3) {
                0 => rig.turn(),
                1 => {
                    queue.poll(rig.now, &mut done);
                }
                _ => {
                    rig.fabric.step();
                }
            }
        }
        let context = format!("{name}, seed {seed}, {fault:?}");
        let qps = rig.fabric.qp_nums();
        match fault {
            Fault::Queue => rig.fabric.fail_qp(qps[random.below(qps.len())]),
            Fault::PortDown => rig.fabric.set_port("target0", false),
            Fault::RemoveTarget => rig.fabric.remove_device("target0"),
            Fault::RemoveHost => rig.fabric.remove_device("host0"),
            Fault::DropHost => {
                let mut lost = Vec::new();
                queue.close(&mut lost);
                done.append(&mut lost);
            }
            Fault::Block => rig.fabric.block("target0", true),
        }
        for _ in 0..PATIENCE {
            if done.len() == submitted {
                break;
            }
            rig.turn();
            controller.poll(rig.now);
            queue.poll(rig.now, &mut done);
        }
        assert_eq!(done.len(), submitted, "{context}");
        let mut tags: Vec<u64> = done.iter().map(|completion| completion.tag).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), submitted, "{context}: a request ended twice");
        drop((controller, queue));
        rig.fabric.block("target0", false);
        rig.fabric.set_port("target0", true);
        rig.drain();
        rig.end();
    }
}

#[test]
fn the_other_port_goes_on_when_one_is_down_or_gone() {
    for seed in 0..12 {
        let mut rig = Rig::new(seed, Setup::default());
        let (controller, mut queue) = rig.connected(rig.host_options(1));
        rig.address = "rdma://10.0.1.1:4420".parse().unwrap();
        let (other_controller, mut other) = rig.connected(rig.host_options(2));
        rig.io(&mut queue, read(0, 8, 1));
        if seed % 2 == 0 {
            rig.fabric.set_port("target0", false);
        } else {
            rig.fabric.remove_device("target0");
        }
        for tag in 0..8 {
            let lost = queue.submit(read(64 * tag, 16, tag as u64), rig.now);
            drop(lost);
        }
        churn(&mut rig, &mut other, &mut Random(seed), 100);
        drop((controller, queue, other_controller, other));
        rig.drain();
        rig.end();
    }
}

#[test]
fn hosts_come_and_go_and_leave_nothing() {
    let mut rig = Rig::new(77, Setup::default());
    let mut objects = None;
    for round in 0..20 {
        let (controller, mut queue) = rig.connected(rig.host_options(round));
        rig.io(&mut queue, write(0, pattern(512, 1), 1));
        drop((controller, queue));
        rig.drain();
        // The group keeps its device and the memory that it grew.
        let count = rig.fabric.object_count();
        let before = *objects.get_or_insert(count);
        assert_eq!(count, before, "round {round}");
    }
    rig.end();
}

#[test]
fn an_idle_target_sleeps_until_a_completion_comes() {
    let mut rig = Rig::new(3, Setup::default());
    let (_controller, mut queue) = rig.connected(rig.host_options(1));
    rig.fabric.settle();
    let mut is_idle = false;
    for _ in 0..100_000 {
        rig.now += TICK;
        let now = rig.now;
        let group = rig.group.as_mut().unwrap();
        if group.poll(now).work == 0 {
            is_idle = true;
            break;
        }
    }
    assert!(is_idle, "an idle target never rests");
    assert!(
        queue
            .submit(write(0, pattern(512, 1), 1), rig.now)
            .is_accepted()
    );
    queue.flush(&mut Vec::new());
    rig.fabric.settle();
    let group = rig.group.as_ref().unwrap();
    let fd = group.wake_fd();
    let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    let ready = nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap();
    assert_eq!(ready, 1, "a capsule came and nobody is woken");
    assert_eq!(rig.completions(&mut queue, 1)[0].result, Ok(0));
}
