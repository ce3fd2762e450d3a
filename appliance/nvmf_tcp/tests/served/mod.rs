//! A target with a RAM disk, on the thread that polls it.

#![expect(dead_code, reason = "each user of this file takes what it needs")]

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use block::malloc::{Malloc, MallocOptions};
use block::null::{Null, NullOptions};
use block::{Bdev, BdevOptions, BlockDevice};
use dma::{IobufOptions, IobufPool};
use fabric_wire::TransportAddress;
use fabric_wire::fabrics::{PropertySet, PropertySize};
use nvme_spec::{Cid, Nsid, registers};
use nvmf::{
    AnaGroupId, AnaState, NamespaceConfig, PollGroup, SubsystemOptions, Target, TargetOptions,
    Visibility, WriteProtect,
};
use nvmf_tcp::{TcpOptions, TcpTransport};

use crate::client::{Client, Pump, subsystem_nqn};

/// The target and its poll group.
pub(crate) struct Served {
    pub(crate) target: Arc<Target>,
    pub(crate) transport: Arc<TcpTransport>,
    pub(crate) group: PollGroup,
    pub(crate) iobuf: Arc<IobufPool>,
    /// As `127.0.0.1:4420`.
    pub(crate) address: String,
}

/// A RAM disk of 512-byte blocks.
pub(crate) fn ram_disk(blocks: u64) -> Arc<dyn BlockDevice> {
    Malloc::new(MallocOptions::new(512, blocks)).unwrap()
}

/// A device without data.
pub(crate) fn null_disk(blocks: u64) -> Arc<dyn BlockDevice> {
    Null::new(NullOptions {
        block_size: 512,
        block_count: blocks,
    })
    .unwrap()
}

/// A pool that is enough for the tests.
pub(crate) fn iobuf_options() -> IobufOptions {
    IobufOptions {
        small_pool_count: 1024,
        large_pool_count: 256,
        ..IobufOptions::default()
    }
}

impl Served {
    /// Serves `device` as namespace 1.
    pub(crate) fn new(
        options: TcpOptions,
        iobuf: IobufOptions,
        device: Arc<dyn BlockDevice>,
    ) -> Self {
        let now = Instant::now();
        let iobuf = IobufPool::new(iobuf).unwrap();
        let target = Target::new(TargetOptions::default());
        let transport = Arc::new(TcpTransport::new(options).unwrap());
        target.add_transport(Arc::clone(&transport) as _).unwrap();
        let group = target
            .poll_group(Waker::noop().clone(), &iobuf, None, now)
            .unwrap();
        let subsystem = target
            .create_subsystem(SubsystemOptions {
                allow_any_host: true,
                ..SubsystemOptions::new(subsystem_nqn())
            })
            .unwrap();
        let bdev = Bdev::new(BdevOptions::named("disk"), device, now).unwrap();
        let namespace = NamespaceConfig {
            nsid: Nsid(1),
            uuid: bdev.uuid(),
            bdev,
            nguid: [0; 16],
            eui64: [0; 8],
            ana_group: AnaGroupId(1),
            visibility: Visibility::AllHosts,
            write_protect: WriteProtect::None,
        };
        // The poll group reads the tickets' changes in its first poll.
        drop(subsystem.add_namespace(namespace).unwrap());
        let address: TransportAddress = "tcp://127.0.0.1:0".parse().unwrap();
        let local = target.listen(&address).unwrap();
        drop(
            subsystem
                .add_listener(Arc::new(address), AnaState::Optimized)
                .unwrap(),
        );
        subsystem.start();
        Self {
            target,
            transport,
            group,
            iobuf,
            address: local,
        }
    }

    /// With the defaults and a RAM disk of 16 MiB.
    pub(crate) fn ram() -> Self {
        Self::new(TcpOptions::default(), iobuf_options(), ram_disk(32_768))
    }

    /// One turn.
    pub(crate) fn poll(&mut self) -> usize {
        self.group.poll(Instant::now()).work
    }

    /// Polls until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 200 {
            quiet = if self.poll() == 0 { quiet + 1 } else { 0 };
        }
    }

    /// A connection that has exchanged ICReq and ICResp.
    pub(crate) fn client(&mut self, digests: (bool, bool)) -> Client {
        let mut client = Client::connect(&self.address);
        client.initialize(self, 0, digests);
        client
    }

    /// An admin queue of an enabled controller, and the controller's identifier.
    pub(crate) fn admin(&mut self, digests: (bool, bool)) -> (Client, u16) {
        let mut admin = self.client(digests);
        let cntlid = enable(&mut admin, self);
        (admin, cntlid)
    }

    /// An admin queue and an I/O queue of `sqsize` + 1 entries.
    pub(crate) fn connected(&mut self, digests: (bool, bool), sqsize: u16) -> (Client, Client) {
        let (admin, cntlid) = self.admin(digests);
        let mut io = self.client(digests);
        let done = io.connect_queue(self, 1, sqsize, cntlid);
        assert!(done.status.is_success(), "connect: {}", done.status);
        (admin, io)
    }
}

/// Connects an admin queue and enables its controller.
pub(crate) fn enable(admin: &mut Client, pump: &mut dyn Pump) -> u16 {
    let done = admin.connect_queue(pump, 0, 31, 0xffff);
    assert!(done.status.is_success(), "connect: {}", done.status);
    let cntlid = done.result as u16;
    // IOSQES 6, IOCQES 4, EN.
    let set = PropertySet {
        size: PropertySize::Four,
        offset: registers::CC,
        value: 4 << 20 | 6 << 16 | 1,
    };
    let done = admin.run(pump, set.to_sqe(Cid(1)), &[]);
    assert!(done.status.is_success(), "enable: {}", done.status);
    cntlid
}

impl Pump for Served {
    fn pump(&mut self) {
        self.poll();
    }
}
