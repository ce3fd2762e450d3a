//! A target over RDMA on a double of verbs, and a host made by hand.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::malloc::{Malloc, MallocOptions};
use block::{Bdev, BdevOptions, BlockDevice};
use dma::{BackingPreference, IobufOptions, IobufPool, Region, RegionOptions};
use fabric_wire::fabrics::{ConnectCommand, ConnectData, ConnectResult, PropertySet, PropertySize};
use fabric_wire::rdma::{ConnectRequest, RESPONSE_LEN};
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::{Cid, Cntlid, Cqe, Nsid, Qid, SglDescriptor, Sqe, registers};
use nvmf::transport::Transport;
use nvmf::{
    AnaGroupId, AnaState, NamespaceConfig, PollGroup, SubsystemOptions, Target, TargetOptions,
    Visibility, WriteProtect,
};
use nvmf_rdma::{RdmaOptions, RdmaTransport};
use verbs::{
    Access, CmChannel, CmEvent, CmEventKind, CmId, ConnParam, Cq, Mr, Provider, Qp, QpOptions,
    RecvWr, SendOp, SendWr, Sge, SgeList, WcOpcode, WcStatus, WorkCompletion,
};
use verbs_emu::{EmuProvider, Fabric};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const BLOCK: usize = 512;
pub(crate) const TICK: Duration = Duration::from_millis(1);
pub(crate) const PATIENCE: usize = 100_000;
pub(crate) const PARAM: ConnParam = ConnParam {
    responder_resources: 4,
    initiator_depth: 0,
    retry_count: 7,
    rnr_retry_count: 7,
};

pub(crate) fn subnqn() -> Nqn {
    Nqn::new("nqn.2026-01.io.adit:capsules").unwrap()
}

pub(crate) struct Served {
    pub(crate) fabric: Fabric,
    pub(crate) transport: Arc<RdmaTransport>,
    pub(crate) target: Arc<Target>,
    pub(crate) group: PollGroup,
    pub(crate) iobuf: Arc<IobufPool>,
    pub(crate) host_node: Arc<EmuProvider>,
    /// What the hosts have for data, capsules and responses; none: each its own.
    pub(crate) shared_region: Option<Arc<Region>>,
    /// Called with true before each poll of the target, and with false after.
    pub(crate) around_poll: fn(bool),
    pub(crate) now: Instant,
}

/// Memory of a host.
pub(crate) fn host_region() -> Arc<Region> {
    Region::allocate(&RegionOptions {
        len: 2 << 20,
        backing: BackingPreference::Plain4K,
        ..RegionOptions::default()
    })
    .unwrap()
}

impl Served {
    pub(crate) fn new(seed: u64, no_srq: bool) -> Self {
        let options = RdmaOptions {
            no_srq,
            max_srq_depth: 64,
            half_open_timeout_ms: 3000,
            ..RdmaOptions::default()
        };
        let iobuf = IobufOptions {
            small_pool_count: 1024,
            large_pool_count: 64,
            ..IobufOptions::default()
        };
        let disk = Malloc::new(MallocOptions::new(BLOCK as u32, 1024)).unwrap();
        Self::on(Fabric::new(seed), options, iobuf, disk)
    }

    pub(crate) fn on(
        fabric: Fabric,
        options: RdmaOptions,
        iobuf: IobufOptions,
        disk: Arc<dyn BlockDevice>,
    ) -> Self {
        let (target_node, host_node) = (fabric.node(), fabric.node());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        target_node.add_device("target0", ip("10.0.0.1"));
        host_node.add_device("host0", ip("10.0.0.2"));
        let now = Instant::now();
        let iobuf = IobufPool::new(iobuf).unwrap();
        let target = Target::new(TargetOptions::default());
        let transport = Arc::new(RdmaTransport::new(options, target_node).unwrap());
        let shared: Arc<dyn Transport> = Arc::clone(&transport) as _;
        target.add_transport(shared).unwrap();
        let group = target
            .poll_group(Waker::noop().clone(), &iobuf, None, now)
            .unwrap();
        let subsystem = target
            .create_subsystem(SubsystemOptions {
                allow_any_host: true,
                ..SubsystemOptions::new(subnqn())
            })
            .unwrap();
        let address: TransportAddress = "rdma://10.0.0.1:4420".parse().unwrap();
        target.listen(&address).unwrap();
        drop(
            subsystem
                .add_listener(Arc::new(address), AnaState::Optimized)
                .unwrap(),
        );
        let bdev = Bdev::new(BdevOptions::named("disk"), disk, now).unwrap();
        drop(
            subsystem
                .add_namespace(NamespaceConfig {
                    nsid: Nsid(1),
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
            transport,
            target,
            group,
            iobuf,
            host_node,
            shared_region: None,
            around_poll: |_| (),
            now,
        }
    }

    pub(crate) fn turn(&mut self) {
        self.now += TICK;
        (self.around_poll)(true);
        self.group.poll(self.now);
        (self.around_poll)(false);
    }

    pub(crate) fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..PATIENCE {
            if is_so(self) {
                return;
            }
            self.turn();
        }
        panic!("{:?}", self.transport.stats().snapshot());
    }

    pub(crate) fn drain(&mut self) {
        for _ in 0..PATIENCE {
            self.turn();
            if self.transport.stats().snapshot().connections == 0 {
                return;
            }
        }
        panic!("{:?}", self.transport.stats().snapshot());
    }

    /// Begins to connect: the answer of the connection manager.
    pub(crate) fn ask(&mut self, private_data: &[u8], param: &ConnParam) -> (Host, CmEvent) {
        let mut channel = self.host_node.cm_channel().unwrap();
        let peer: SocketAddr = "10.0.0.1:4420".parse().unwrap();
        let id = channel.resolve(0, None, peer, 1000).unwrap();
        let region = self.shared_region.clone().unwrap_or_else(host_region);
        let mut host = Host::new(channel, id, region);
        host.id.resolve_route(1000).unwrap();
        host.id.connect(param, private_data).unwrap();
        for _ in 0..PATIENCE {
            self.turn();
            if let Some(event) = host.channel.poll().unwrap()
                && !matches!(
                    event.kind,
                    CmEventKind::AddrResolved | CmEventKind::RouteResolved
                )
            {
                return (host, event);
            }
        }
        panic!("no answer came");
    }

    pub(crate) fn connect(&mut self, qid: u16, entries: u16) -> Host {
        let request = ConnectRequest {
            qid: Qid(qid),
            hrqsize: entries,
            hsqsize: entries - 1,
            cntlid: Cntlid(0xffff),
        };
        let (host, event) = self.ask(&request.to_bytes(), &PARAM);
        assert!(
            matches!(event.kind, CmEventKind::Established { .. }),
            "{event:?}"
        );
        host
    }

    pub(crate) fn finish(&mut self, host: &mut Host) -> Cqe {
        // What came before the end of the connection is there also after it.
        let mut patience = PATIENCE;
        while patience > 0 {
            self.turn();
            if let Some(cqe) = host.poll() {
                return cqe;
            }
            patience = if host.is_broken {
                patience.min(100) - 1
            } else {
                patience - 1
            };
        }
        panic!("no response came");
    }

    /// A whole association: its admin queue and one I/O queue.
    pub(crate) fn associate(&mut self) -> (Host, Host) {
        let (admin, cntlid) = self.admin();
        (admin, self.io_queue(1, 16, cntlid))
    }

    /// An admin queue of an enabled controller.
    pub(crate) fn admin(&mut self) -> (Host, Cntlid) {
        let mut admin = self.connect(0, 32);
        let cntlid = self.fabrics_connect(&mut admin, 0, 31, Cntlid::DYNAMIC);
        self.configure(&mut admin, true);
        (admin, cntlid)
    }

    /// Enables the controller, or resets it.
    pub(crate) fn configure(&mut self, admin: &mut Host, is_enabled: bool) {
        let configure = PropertySet {
            size: PropertySize::Four,
            offset: registers::CC,
            value: 0x0046_0000 | u64::from(is_enabled),
        };
        admin.send(&configure.to_sqe(Cid(2)), &[]);
        let cqe = self.finish(admin);
        assert!(cqe.cid() == Cid(2) && cqe.status().is_success());
    }

    /// An I/O queue of a controller.
    pub(crate) fn io_queue(&mut self, qid: u16, entries: u16, cntlid: Cntlid) -> Host {
        let mut io = self.connect(qid, entries);
        self.fabrics_connect(&mut io, qid, entries - 1, cntlid);
        io
    }

    pub(crate) fn fabrics_connect(
        &mut self,
        host: &mut Host,
        qid: u16,
        sqsize: u16,
        cntlid: Cntlid,
    ) -> Cntlid {
        let hostnqn = Nqn::from_uuid_bytes([7; 16]);
        let data = ConnectData::new([7; 16], cntlid, &subnqn(), &hostnqn);
        host.region.write_at(0, data.as_bytes());
        let connect = ConnectCommand {
            recfmt: 0,
            qid: Qid(qid),
            sqsize,
            cattr: 0,
            kato_ms: 0,
        };
        let sqe = connect.to_sqe(Cid(1)).with_sgl(host.keyed(0, 1024));
        host.send(&sqe, &[]);
        let cqe = self.finish(host);
        assert!(cqe.status().is_success(), "{:?}", cqe.status());
        ConnectResult::from_dword(cqe.dw0()).cntlid
    }
}

/// What a host has found in its completion queue.
pub(crate) enum Polled {
    Nothing,
    /// A send has ended, or the queue pair.
    Other,
    Response(Cqe),
}

/// A host's connection.
pub(crate) struct Host {
    pub(crate) qp: Box<dyn Qp>,
    pub(crate) id: Box<dyn CmId>,
    pub(crate) cq: Arc<dyn Cq>,
    pub(crate) mr: Box<dyn Mr>,
    pub(crate) region: Arc<Region>,
    pub(crate) channel: Box<dyn CmChannel>,
    pub(crate) is_broken: bool,
    pub(crate) sent: u64,
}

/// Where in the region responses and capsules lie; data lies before them.
pub(crate) const RESPONSES: usize = 1 << 20;
pub(crate) const CAPSULES: usize = RESPONSES + 4096;
pub(crate) const RECEIVES: u64 = 64;

impl Host {
    pub(crate) fn new(
        channel: Box<dyn CmChannel>,
        mut id: Box<dyn CmId>,
        region: Arc<Region>,
    ) -> Self {
        let device = id.device().unwrap();
        let pd = device.alloc_pd().unwrap();
        let cq = device.create_cq(1024, None, 0).unwrap();
        let mr = pd.reg_mr(&region, Access::REMOTE).unwrap();
        let qp = id
            .create_qp(&QpOptions {
                pd: &pd,
                send_cq: &cq,
                recv_cq: &cq,
                srq: None,
                max_send_wr: 256,
                max_recv_wr: RECEIVES as u32,
                max_inline_data: 0,
            })
            .unwrap();
        let mut host = Self {
            qp,
            id,
            cq,
            mr,
            region,
            channel,
            is_broken: false,
            sent: 0,
        };
        for index in 0..RECEIVES {
            host.receive(index);
        }
        host
    }

    pub(crate) fn sge(&self, offset: usize, len: usize) -> Sge {
        Sge {
            addr: (self.region.addr() + offset) as u64,
            len: len as u32,
            lkey: self.mr.lkey(),
        }
    }

    /// A block of the region, for the target to reach.
    pub(crate) fn keyed(&self, offset: usize, len: u32) -> SglDescriptor {
        let address = (self.region.addr() + offset) as u64;
        SglDescriptor::keyed(address, len, self.mr.rkey(), false)
    }

    pub(crate) fn receive(&mut self, index: u64) {
        let offset = RESPONSES + index as usize * RESPONSE_LEN;
        let request = RecvWr {
            wr_id: index,
            sges: SgeList::one(self.sge(offset, RESPONSE_LEN)),
        };
        self.qp.post_recv(&[request]).unwrap();
    }

    pub(crate) fn send(&mut self, sqe: &Sqe, behind: &[u8]) {
        let mut capsule = sqe.as_bytes().to_vec();
        capsule.extend_from_slice(behind);
        self.send_bytes(&capsule);
    }

    pub(crate) fn send_bytes(&mut self, capsule: &[u8]) {
        let offset = CAPSULES + (self.sent as usize % 64) * 8192;
        self.sent += 1;
        self.region.write_at(offset, capsule);
        let sges = SgeList::one(self.sge(offset, capsule.len()));
        let wr = SendWr::new(1000, SendOp::Send, sges);
        // A queue pair that has failed takes it, and flushes it.
        self.qp.post_send(&[wr]).unwrap();
    }

    /// The next response, if it is what completes next.
    pub(crate) fn poll(&mut self) -> Option<Cqe> {
        match self.poll_one() {
            Polled::Response(cqe) => Some(cqe),
            Polled::Nothing | Polled::Other => None,
        }
    }

    /// The next completion.
    pub(crate) fn poll_one(&mut self) -> Polled {
        while let Some(event) = self.channel.poll().unwrap() {
            self.is_broken |= matches!(event.kind, CmEventKind::Disconnected);
        }
        let mut one = [WorkCompletion::default()];
        if self.cq.poll(&mut one).unwrap() == 0 {
            return Polled::Nothing;
        }
        let wc = one[0];
        if wc.status != WcStatus::Success {
            self.is_broken = true;
            return Polled::Other;
        }
        if wc.opcode != WcOpcode::Recv {
            return Polled::Other;
        }
        let mut bytes = [0; RESPONSE_LEN];
        let offset = RESPONSES + wc.wr_id as usize * RESPONSE_LEN;
        self.region.read_at(offset, &mut bytes);
        self.receive(wc.wr_id);
        Polled::Response(Cqe::read_from_bytes(&bytes).unwrap())
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.region.read_at(offset, &mut bytes);
        bytes
    }
}
