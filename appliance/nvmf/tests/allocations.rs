//! In steady state a command allocates nothing, from its arrival to its response.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
#![expect(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Instant;

use block::delay::{DelayLayer, Delays};
use block::malloc::{Malloc, MallocOptions};
use block::{Bdev, BdevOptions, BlockDevice};
use dma::{BackingPreference, IobufOptions, IobufPool};
use fabric_wire::TransportAddress;
use fabric_wire::fabrics::{ConnectCommand, ConnectData, PropertySet, PropertySize};
use nvme_spec::registers::{self, Cc};
use nvme_spec::{Cid, Cntlid, Lba, Nsid, Qid, SglDescriptor, Sqe};
use nvmf::transport::Digests;
use nvmf::transport::{
    Acceptor, CloseReason, ConnectionId, GroupContext, NewConnection, Peer, QpairId, SlotId, Step,
    Transport, TransportGroup, TransportId, TransportLimits,
};
use nvmf::{
    AnaGroupId, AnaState, Core, NamespaceConfig, OpenQpair, SubsystemOptions, Target,
    TargetOptions, Visibility, WriteProtect,
};
use zerocopy::IntoBytes;

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

const NQN: &str = "nqn.2026-11.io.adit:test";
const HOST: &str = "nqn.2026-11.io.adit:host";
const DEPTH: usize = 32;

/// What the test tells its transport, and what came of it.
#[derive(Debug, Default)]
struct Load {
    /// Commands that each poll puts into the I/O queue.
    per_poll: AtomicUsize,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

/// A transport that is also the host: it makes its commands itself and keeps nothing of the answers.
#[derive(Debug)]
struct Treadmill {
    limits: TransportLimits,
    load: Arc<Load>,
    copies: bool,
}

impl Transport for Treadmill {
    fn name(&self) -> &'static str {
        "TCP"
    }

    fn limits(&self) -> &TransportLimits {
        &self.limits
    }

    fn listen(
        &self,
        id: TransportId,
        address: &Arc<TransportAddress>,
    ) -> std::io::Result<Box<dyn Acceptor>> {
        Ok(Box::new(Dial {
            id,
            address: Arc::clone(address),
            left: 2,
        }))
    }

    fn group(&self, context: &GroupContext<'_>) -> std::io::Result<Box<dyn TransportGroup>> {
        Ok(Box::new(TreadmillGroup {
            transport: context.transport,
            load: Arc::clone(&self.load),
            copies: self.copies,
            peer: None,
            admin: None,
            io: None,
            cntlid: 0xffff,
            next: 0,
            answers: Vec::with_capacity(64),
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Dial {
    id: TransportId,
    address: Arc<TransportAddress>,
    left: usize,
}

impl Acceptor for Dial {
    fn poll(&mut self, _: Instant, accepted: &mut dyn FnMut(NewConnection)) -> usize {
        if self.left == 0 {
            return 0;
        }
        self.left -= 1;
        accepted(NewConnection {
            transport: self.id,
            peer: Peer {
                listener: Arc::clone(&self.address),
                local: self.address.to_string(),
                remote: "tcp://127.0.0.1:50000".into(),
            },
            numa_node: None,
            io: Box::new(()),
        });
        1
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn local_address(&self) -> String {
        self.address.to_string()
    }
}

struct TreadmillGroup {
    transport: TransportId,
    load: Arc<Load>,
    copies: bool,
    peer: Option<Peer>,
    admin: Option<QpairId>,
    io: Option<QpairId>,
    cntlid: u16,
    next: u64,
    answers: Vec<(QpairId, SlotId)>,
}

impl TreadmillGroup {
    fn open(&mut self, core: &mut Core, connection: u32) -> QpairId {
        core.open(OpenQpair {
            transport: self.transport,
            connection: ConnectionId(connection),
            peer: self.peer.clone().unwrap(),
            depth: DEPTH as u16,
            may_borrow_data: !self.copies,
            digests: Digests::default(),
        })
        .unwrap()
    }

    fn run(&mut self, core: &mut Core, qpair: QpairId, sqe: Sqe, data: &[u8]) {
        let (slot, step) = core.command(qpair, sqe, data.len() as u32).unwrap();
        self.go_on(core, qpair, slot, step, data);
    }

    fn go_on(&mut self, core: &mut Core, qpair: QpairId, slot: SlotId, step: Step, data: &[u8]) {
        let mut step = step;
        if step == Step::Receive {
            let (mut payload, len) = core.take_receive(qpair, slot);
            if !data.is_empty() {
                let buffer = payload.as_buf_mut().unwrap();
                buffer.as_mut_slice()[..len as usize].copy_from_slice(data);
            }
            step = core.data_received(qpair, slot, payload);
        }
        if step == Step::Respond {
            let response = core.take_response(qpair, slot).unwrap();
            let counter = match response.cqe.status().is_success() {
                true => &self.load.succeeded,
                false => &self.load.failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            if self.cntlid == 0xffff {
                self.cntlid = response.cqe.dw0() as u16;
            }
            self.answers.push((qpair, slot));
        }
    }

    fn connect(&mut self, core: &mut Core, qpair: QpairId, qid: u16) {
        let command = ConnectCommand {
            recfmt: 0,
            qid: Qid(qid),
            sqsize: 31,
            cattr: 0,
            kato_ms: 0,
        };
        let names = (NQN.parse().unwrap(), HOST.parse().unwrap());
        let data = ConnectData::new([1; 16], Cntlid(self.cntlid), &names.0, &names.1);
        let sqe = command
            .to_sqe(Cid(0))
            .with_sgl(SglDescriptor::in_capsule(0, 1024));
        self.run(core, qpair, sqe, data.as_bytes());
    }

    fn command(&mut self) -> Sqe {
        let count = self.next;
        self.next += 1;
        let (cid, lba) = (Cid((count % 1024) as u16), Lba(count * 8 % 4096));
        let sqe = match count % 5 {
            0 | 1 => Sqe::read(cid, Nsid(1), lba, 8),
            2 => Sqe::write(cid, Nsid(1), lba, 8),
            3 => Sqe::write(cid, Nsid(1), lba, 64).with_fua(true),
            _ => return Sqe::flush(cid, Nsid(1)),
        };
        sqe.with_sgl(SglDescriptor::transport_data(sqe.block_count() * 512))
    }
}

impl TransportGroup for TreadmillGroup {
    fn adopt(&mut self, core: &mut Core, connection: NewConnection, _: Instant) {
        self.peer = Some(connection.peer);
        match self.admin {
            None => {
                let admin = self.open(core, 0);
                self.admin = Some(admin);
                self.connect(core, admin, 0);
                let cc = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
                let value = u64::from(u32::from(cc));
                let size = PropertySize::Four;
                let enable = PropertySet {
                    size,
                    offset: registers::CC,
                    value,
                };
                self.run(core, admin, enable.to_sqe(Cid(1)), &[]);
            }
            Some(_) => {
                let io = self.open(core, 1);
                self.connect(core, io, 1);
                self.io = Some(io);
            }
        }
    }

    fn poll(&mut self, core: &mut Core, _: Instant) -> usize {
        let Some(io) = self.io else { return 0 };
        let count = self.load.per_poll.load(Ordering::Relaxed);
        for _ in 0..count {
            let sqe = self.command();
            self.run(core, io, sqe, &[]);
        }
        count
    }

    fn step(&mut self, core: &mut Core, _: ConnectionId, slot: SlotId, step: Step) {
        let io = self.io.unwrap();
        self.go_on(core, io, slot, step, &[]);
    }

    fn flush(&mut self, core: &mut Core, _: Instant) -> usize {
        let count = self.answers.len();
        for (qpair, slot) in self.answers.drain(..) {
            core.response_sent(qpair, slot);
        }
        count
    }

    fn close(&mut self, _: &mut Core, _: ConnectionId, reason: CloseReason) {
        panic!("nothing is closed here: {reason:?}");
    }

    fn close_all(&mut self, _: &mut Core, reason: CloseReason) {
        panic!("nothing is closed here: {reason:?}");
    }

    fn close_after_flush(&mut self, _: ConnectionId, reason: CloseReason) {
        panic!("nothing is closed here: {reason:?}");
    }

    fn connection_count(&self) -> usize {
        2
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Allocations of `polls` polls with `per_poll` commands each, once the tables have grown.
fn allocations_of(device: Arc<dyn BlockDevice>, copies: bool, per_poll: usize) -> u64 {
    let mut now = Instant::now();
    let iobuf = IobufOptions {
        small_pool_count: 512,
        large_pool_count: 64,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    };
    let pool = IobufPool::new(iobuf).unwrap();
    let target = Target::new(TargetOptions::default());
    let load = Arc::<Load>::default();
    let limits = TransportLimits {
        max_queue_depth: 128,
        max_aq_depth: 32,
        max_io_qpairs_per_ctrlr: 4,
        max_io_size: 131_072,
        in_capsule_data_size: 8192,
        keyed_sgl: false,
        kas_100ms: 100,
        min_kato_ms: 10_000,
        iobuf_small_cache_size: None,
        iobuf_large_cache_size: None,
    };
    let transport = Treadmill {
        limits,
        load: Arc::clone(&load),
        copies,
    };
    target.add_transport(Arc::new(transport)).unwrap();
    let mut group = target
        .poll_group(Waker::noop().clone(), &pool, None, now)
        .unwrap();
    let bdev = Bdev::new(BdevOptions::named("test"), device, now).unwrap();
    let subsystem = target
        .create_subsystem(SubsystemOptions {
            allow_any_host: true,
            ..SubsystemOptions::new(NQN.parse().unwrap())
        })
        .unwrap();
    let address: TransportAddress = "tcp://127.0.0.1:4420".parse().unwrap();
    drop(
        subsystem
            .add_listener(Arc::new(address.clone()), AnaState::Optimized)
            .unwrap(),
    );
    drop(subsystem.add_namespace(NamespaceConfig {
        nsid: Nsid(1),
        uuid: bdev.uuid(),
        bdev,
        nguid: [0; 16],
        eui64: [0; 8],
        ana_group: AnaGroupId(1),
        visibility: Visibility::AllHosts,
        write_protect: WriteProtect::None,
    }));
    subsystem.start();
    target.listen(&address).unwrap();
    let step = std::time::Duration::from_micros(50);
    let mut poll = |times: usize| {
        for _ in 0..times {
            now += step;
            group.poll(now);
        }
    };
    poll(10);
    assert_eq!(
        load.succeeded.load(Ordering::Relaxed),
        3,
        "connect, enable, connect"
    );
    load.per_poll.store(per_poll, Ordering::Relaxed);
    poll(3000);
    let (allocations, answered) = (
        ALLOCATIONS.with(Cell::get),
        load.succeeded.load(Ordering::Relaxed),
    );
    poll(2000);
    let allocated = ALLOCATIONS.with(Cell::get) - allocations;
    let answered = load.succeeded.load(Ordering::Relaxed) - answered;
    assert!(
        answered >= 2000 * per_poll as u64 - DEPTH as u64,
        "{answered}"
    );
    assert_eq!(load.failed.load(Ordering::Relaxed), 0);
    load.per_poll.store(0, Ordering::Relaxed);
    poll(100);
    allocated
}

fn ram() -> Arc<dyn BlockDevice> {
    Malloc::new(MallocOptions::new(512, 8192)).unwrap()
}

#[test]
fn io_on_a_ram_disk_allocates_nothing() {
    assert_eq!(allocations_of(ram(), false, 16), 0);
}

#[test]
fn io_on_a_ram_disk_by_copies_allocates_nothing() {
    assert_eq!(allocations_of(ram(), true, 16), 0);
}

#[test]
fn io_that_stays_pending_allocates_nothing() {
    let delay = std::time::Duration::from_micros(200);
    let delays = Delays {
        avg_read: delay,
        p99_read: delay,
        avg_write: delay,
        p99_write: delay,
    };
    let device = DelayLayer::new(ram(), delays);
    assert_eq!(allocations_of(device, true, 2), 0);
}
