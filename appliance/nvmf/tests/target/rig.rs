//! A target with poll groups and a clock that stands still, and hosts that talk to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use block::{Bdev, BdevOptions, BlockDevice};
use dma::{BackingPreference, IobufOptions, IobufPool};
use fabric_wire::fabrics::{
    CATTR_DISABLE_SQ_FLOW_CONTROL, ConnectCommand, ConnectData, Disconnect, PropertyGet,
    PropertySet, PropertySize,
};
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::registers::{self, Cc, Csts};
use nvme_spec::{Cid, Cntlid, Lba, Nsid, Qid, SglDescriptor, Sqe, Status};
use nvmf::transport::{CloseReason, TransportLimits};
use nvmf::{
    AnaGroupId, AnaState, NamespaceConfig, PollGroup, Subsystem, SubsystemOptions, Target,
    TargetOptions, Ticket, Visibility, WriteProtect,
};

use crate::device::TestDevice;
use crate::loopback::{End, Loopback, Reply};

pub(crate) const NQN: &str = "nqn.2026-11.io.adit:test";
pub(crate) const HOST: &str = "nqn.2026-11.io.adit:host";
pub(crate) const HOST_ID: [u8; 16] = [7; 16];
pub(crate) const DYNAMIC: Cntlid = Cntlid(0xffff);

pub(crate) fn nqn(name: &str) -> Nqn {
    name.parse().unwrap()
}

pub(crate) fn address(port: u16) -> TransportAddress {
    format!("tcp://127.0.0.1:{port}").parse().unwrap()
}

pub(crate) fn limits() -> TransportLimits {
    TransportLimits {
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
    }
}

pub(crate) struct RigOptions {
    pub(crate) groups: usize,
    pub(crate) limits: TransportLimits,
    pub(crate) target: TargetOptions,
    pub(crate) iobuf: IobufOptions,
}

impl Default for RigOptions {
    fn default() -> Self {
        Self {
            groups: 1,
            limits: limits(),
            target: TargetOptions {
                iobuf_small_cache_size: 0,
                iobuf_large_cache_size: 0,
                ..TargetOptions::default()
            },
            iobuf: IobufOptions {
                small_pool_count: 192,
                large_pool_count: 32,
                backing: BackingPreference::Plain4K,
                ..IobufOptions::default()
            },
        }
    }
}

pub(crate) struct Rig {
    // Before what they use.
    pub(crate) groups: Vec<PollGroup>,
    pub(crate) target: Arc<Target>,
    pub(crate) transport: Arc<Loopback>,
    pub(crate) pool: Arc<IobufPool>,
    pub(crate) now: Instant,
    /// The poll group of the next connection.
    pub(crate) next_group: Arc<AtomicUsize>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(RigOptions::default())
    }

    pub(crate) fn with(options: RigOptions) -> Self {
        let now = Instant::now();
        let pool = IobufPool::new(options.iobuf).unwrap();
        let target = Target::new(options.target);
        let transport = Loopback::new(options.limits);
        target.add_transport(Arc::clone(&transport) as _).unwrap();
        let groups = (0..options.groups)
            .map(|_| {
                target
                    .poll_group(Waker::noop().clone(), &pool, None, now)
                    .unwrap()
            })
            .collect();
        let next_group = Arc::<AtomicUsize>::default();
        let picked = Arc::clone(&next_group);
        target.set_group_picker(Some(Box::new(move |_, _| picked.load(Ordering::Relaxed))));
        target.listen(&address(4420)).unwrap();
        Self {
            groups,
            target,
            transport,
            pool,
            now,
            next_group,
        }
    }

    /// A started subsystem that every host may use, at port 4420.
    pub(crate) fn subsystem(&self, name: &str) -> Arc<Subsystem> {
        self.subsystem_with(SubsystemOptions {
            allow_any_host: true,
            ..SubsystemOptions::new(nqn(name))
        })
    }

    pub(crate) fn subsystem_with(&self, options: SubsystemOptions) -> Arc<Subsystem> {
        let subsystem = self.target.create_subsystem(options).unwrap();
        drop(
            subsystem
                .add_listener(Arc::new(address(4420)), AnaState::Optimized)
                .unwrap(),
        );
        subsystem.start();
        subsystem
    }

    /// Runs the poll groups until they have nothing to do.
    pub(crate) fn poll(&mut self) {
        for _ in 0..1000 {
            let work: usize = self
                .groups
                .iter_mut()
                .map(|group| group.poll(self.now).work)
                .sum();
            if work == 0 && self.groups.iter().all(PollGroup::may_sleep) {
                return;
            }
        }
        panic!("the poll groups never become idle");
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
        self.poll();
    }

    /// Waits for a change while time goes on.
    pub(crate) fn finish(&mut self, ticket: Ticket) {
        for _ in 0..20 {
            if ticket.is_done() {
                return;
            }
            self.advance(Duration::from_millis(1));
        }
        panic!("the change never takes effect");
    }

    /// A connection in the group `group`, on which nothing has been sent.
    pub(crate) fn dial_in(&mut self, group: usize) -> End {
        self.next_group.store(group, Ordering::Relaxed);
        let end = self.transport.dial(&address(4420));
        self.poll();
        end
    }

    pub(crate) fn dial(&mut self) -> End {
        self.dial_in(0)
    }

    /// Sends a command and lets the target work.
    pub(crate) fn send(&mut self, end: &End, sqe: Sqe, data: &[u8]) {
        end.wire().capsules.push_back((sqe, data.to_vec()));
        self.poll();
    }

    /// Sends a command and takes its answer, which must come at once.
    pub(crate) fn run(&mut self, end: &End, sqe: Sqe, data: &[u8]) -> Reply {
        self.send(end, sqe, data);
        take(end, sqe.cid()).unwrap_or_else(|| panic!("no answer to {sqe:?}"))
    }

    /// Sends a command and gives the status of its answer.
    pub(crate) fn status(&mut self, end: &End, sqe: Sqe, data: &[u8]) -> Status {
        self.run(end, sqe, data).cqe.status()
    }

    /// Connects and enables a controller.
    pub(crate) fn host(&mut self, subsystem: &str) -> Host {
        self.host_in(0, subsystem, HOST)
    }

    pub(crate) fn host_in(&mut self, group: usize, subsystem: &str, host: &str) -> Host {
        let admin = self.dial_in(group);
        let mut connect = Connect::admin(subsystem);
        connect.hostnqn = host.into();
        let reply = self.connect(&admin, &connect);
        assert!(reply.cqe.status().is_success(), "{}", reply.cqe.status());
        let host = Host {
            admin,
            cntlid: Cntlid(reply.cqe.dw0() as u16),
            subsystem: subsystem.into(),
            name: host.into(),
        };
        self.set_cc(&host.admin, enabled());
        host
    }

    pub(crate) fn connect(&mut self, end: &End, connect: &Connect) -> Reply {
        let (sqe, data) = connect.capsule(Cid(0));
        self.run(end, sqe, &data)
    }

    pub(crate) fn io(&mut self, host: &Host, qid: u16) -> End {
        self.io_in(0, host, qid)
    }

    pub(crate) fn io_in(&mut self, group: usize, host: &Host, qid: u16) -> End {
        let end = self.dial_in(group);
        let reply = self.connect(&end, &host.io(qid));
        assert!(reply.cqe.status().is_success(), "{}", reply.cqe.status());
        end
    }

    pub(crate) fn set_cc(&mut self, admin: &End, cc: Cc) -> Status {
        self.status(admin, property_set(Cid(900), cc), &[])
    }

    pub(crate) fn csts(&mut self, admin: &End) -> Csts {
        let get = PropertyGet {
            size: PropertySize::Four,
            offset: registers::CSTS,
        };
        Csts::from(self.run(admin, get.to_sqe(Cid(901)), &[]).cqe.result() as u32)
    }

    /// A subsystem with one namespace on a test device, a host and an I/O queue.
    pub(crate) fn with_device(&mut self, block_size: u32, blocks: u64) -> Served {
        let subsystem = self.subsystem(NQN);
        let device = TestDevice::new(block_size, blocks);
        let bdev = bdev(Arc::clone(&device) as _, self.now);
        let (_, ticket) = subsystem.add_namespace(namespace(1, &bdev)).unwrap();
        self.finish(ticket);
        let host = self.host(NQN);
        let io = self.io(&host, 1);
        Served {
            subsystem,
            device,
            bdev,
            host,
            io,
        }
    }

    /// No buffer is in use.
    pub(crate) fn assert_all_buffers_back(&self) {
        let stats = self.pool.stats();
        let out = stats.small.total - stats.small.free + stats.large.total - stats.large.free;
        assert_eq!(out, 0, "{stats:?}");
    }
}

pub(crate) struct Served {
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) device: Arc<TestDevice>,
    pub(crate) bdev: Arc<Bdev>,
    pub(crate) host: Host,
    pub(crate) io: End,
}

pub(crate) struct Host {
    pub(crate) admin: End,
    pub(crate) cntlid: Cntlid,
    pub(crate) subsystem: String,
    pub(crate) name: String,
}

impl Host {
    pub(crate) fn io(&self, qid: u16) -> Connect {
        let mut connect = Connect::admin(&self.subsystem);
        connect.cntlid = self.cntlid;
        connect.hostnqn = self.name.clone();
        connect.command.qid = Qid(qid);
        connect
    }
}

/// The fields of a Connect, to be spoilt one by one.
#[derive(Clone)]
pub(crate) struct Connect {
    pub(crate) command: ConnectCommand,
    pub(crate) hostid: [u8; 16],
    pub(crate) cntlid: Cntlid,
    pub(crate) subnqn: String,
    pub(crate) hostnqn: String,
}

impl Connect {
    pub(crate) fn admin(subsystem: &str) -> Self {
        Self {
            command: ConnectCommand {
                recfmt: 0,
                qid: Qid(0),
                sqsize: 31,
                cattr: 0,
                kato_ms: 0,
            },
            hostid: HOST_ID,
            cntlid: DYNAMIC,
            subnqn: subsystem.into(),
            hostnqn: HOST.into(),
        }
    }

    pub(crate) fn without_flow_control(mut self) -> Self {
        self.command.cattr = CATTR_DISABLE_SQ_FLOW_CONTROL;
        self
    }

    pub(crate) fn capsule(&self, cid: Cid) -> (Sqe, Vec<u8>) {
        let data = ConnectData::new(
            self.hostid,
            self.cntlid,
            &nqn(&self.subnqn),
            &nqn(&self.hostnqn),
        );
        let data = zerocopy::IntoBytes::as_bytes(&data).to_vec();
        let sgl = SglDescriptor::in_capsule(0, data.len() as u32);
        (self.command.to_sqe(cid).with_sgl(sgl), data)
    }
}

/// Takes the answer to a command.
pub(crate) fn take(end: &End, cid: Cid) -> Option<Reply> {
    let mut wire = end.wire();
    let index = wire
        .replies
        .iter()
        .position(|reply| reply.cqe.cid() == cid)?;
    wire.replies.remove(index)
}

/// The status of an answer that is there.
pub(crate) fn taken(end: &End, cid: u16) -> Option<Status> {
    take(end, Cid(cid)).map(|reply| reply.cqe.status())
}

pub(crate) fn closed(end: &End) -> Option<CloseReason> {
    end.wire().closed
}

pub(crate) fn enabled() -> Cc {
    Cc::default().with_en(true).with_iosqes(6).with_iocqes(4)
}

pub(crate) fn property_set(cid: Cid, cc: Cc) -> Sqe {
    let value = u64::from(u32::from(cc));
    PropertySet {
        size: PropertySize::Four,
        offset: registers::CC,
        value,
    }
    .to_sqe(cid)
}

pub(crate) fn disconnect(cid: u16) -> Sqe {
    Disconnect.to_sqe(Cid(cid))
}

pub(crate) fn bdev(device: Arc<dyn BlockDevice>, now: Instant) -> Arc<Bdev> {
    Bdev::new(BdevOptions::named("test"), device, now).unwrap()
}

pub(crate) fn namespace(nsid: u32, bdev: &Arc<Bdev>) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Nsid(nsid),
        bdev: Arc::clone(bdev),
        uuid: bdev.uuid(),
        nguid: [0; 16],
        eui64: [0; 8],
        ana_group: AnaGroupId(1),
        visibility: Visibility::AllHosts,
        write_protect: WriteProtect::None,
    }
}

/// With an SGL of data that the transport moves.
pub(crate) fn transport(sqe: Sqe, len: usize) -> Sqe {
    sqe.with_sgl(SglDescriptor::transport_data(len as u32))
}

/// With an SGL of data in the capsule.
pub(crate) fn capsule(sqe: Sqe, len: usize) -> Sqe {
    sqe.with_sgl(SglDescriptor::in_capsule(0, len as u32))
}

pub(crate) fn read(cid: u16, lba: u64, blocks: u32) -> Sqe {
    transport(
        Sqe::read(Cid(cid), Nsid(1), Lba(lba), blocks),
        blocks as usize * 512,
    )
}

pub(crate) fn write(cid: u16, lba: u64, blocks: u32) -> Sqe {
    transport(
        Sqe::write(Cid(cid), Nsid(1), Lba(lba), blocks),
        blocks as usize * 512,
    )
}

pub(crate) fn flush(cid: u16) -> Sqe {
    Sqe::flush(Cid(cid), Nsid(1))
}

pub(crate) fn dnr(status: Status) -> Status {
    status.with_dnr(true)
}
