//! A target with RAM disks, on the thread that polls it.

#![expect(dead_code, reason = "each user of this file takes what it needs")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::malloc::{Malloc, MallocOptions};
use block::null::{Null, NullOptions};
use block::{Bdev, BdevOptions, BlockDevice};
use dma::{IobufOptions, IobufPool};
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::Nsid;
use nvmf::{
    AnaGroupId, AnaState, NamespaceConfig, PollGroup, Subsystem, SubsystemOptions, Target,
    TargetOptions, Visibility, WriteProtect,
};
use nvmf_host::{
    Completion, Controller, HostContext, HostError, HostIdentity, HostOptions, IoQueue, IoRequest,
    Operation, Submit,
};
use nvmf_tcp::{TcpOptions, TcpTransport};

/// How long anything may take in a test before it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The subsystem that every test's target has.
pub(crate) fn subsystem_nqn() -> Nqn {
    Nqn::new("nqn.2026-01.io.adit:host-test").unwrap()
}

/// Options of a host that differs from those of other numbers.
pub(crate) fn host_options(number: u8) -> HostOptions {
    let mut uuid = *b"adit-host-tests-";
    uuid[15] = number;
    HostOptions::new(HostIdentity::from_uuid_bytes(uuid))
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

/// The target and its poll group.
pub(crate) struct Served {
    pub(crate) target: Arc<Target>,
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) group: PollGroup,
    pub(crate) iobuf: Arc<IobufPool>,
    pub(crate) address: TransportAddress,
    pub(crate) context: HostContext,
}

impl Served {
    /// Serves `device` as namespace 1.
    pub(crate) fn new(options: TcpOptions, device: Arc<dyn BlockDevice>) -> Self {
        Self::with(TargetOptions::default(), options, device)
    }

    pub(crate) fn with(
        target: TargetOptions,
        options: TcpOptions,
        device: Arc<dyn BlockDevice>,
    ) -> Self {
        let now = Instant::now();
        let iobuf = IobufPool::new(IobufOptions {
            small_pool_count: 4096,
            large_pool_count: 512,
            ..IobufOptions::default()
        })
        .unwrap();
        let target = Target::new(target);
        target
            .add_transport(Arc::new(TcpTransport::new(options).unwrap()))
            .unwrap();
        let group = target
            .poll_group(Waker::noop().clone(), &iobuf, None, now)
            .unwrap();
        let options = SubsystemOptions {
            allow_any_host: true,
            ana_reporting: true,
            ..SubsystemOptions::new(subsystem_nqn())
        };
        let subsystem = target.create_subsystem(options).unwrap();
        let any: TransportAddress = "tcp://127.0.0.1:0".parse().unwrap();
        let local = target.listen(&any).unwrap();
        drop(
            subsystem
                .add_listener(Arc::new(any), AnaState::Optimized)
                .unwrap(),
        );
        let address = format!("tcp://{local}").parse().unwrap();
        let context = HostContext::new();
        let mut served = Self {
            target,
            subsystem,
            group,
            iobuf,
            address,
            context,
        };
        served.add_namespace(1, device);
        served.subsystem.start();
        served
    }

    /// With the defaults and a RAM disk of 16 MiB.
    pub(crate) fn ram() -> Self {
        Self::new(TcpOptions::default(), ram_disk(32_768))
    }

    pub(crate) fn add_namespace(&mut self, nsid: u32, device: Arc<dyn BlockDevice>) {
        let name = format!("disk{nsid}");
        let bdev = Bdev::new(BdevOptions::named(&name), device, Instant::now()).unwrap();
        let namespace = NamespaceConfig {
            nsid: Nsid(nsid),
            uuid: bdev.uuid(),
            bdev,
            nguid: [nsid as u8; 16],
            eui64: [0; 8],
            ana_group: AnaGroupId(1),
            visibility: Visibility::AllHosts,
            write_protect: WriteProtect::None,
        };
        drop(self.subsystem.add_namespace(namespace).unwrap());
    }

    /// One turn of the target.
    pub(crate) fn poll(&mut self) {
        self.group.poll(Instant::now());
    }

    /// Begins to connect to the subsystem.
    pub(crate) fn begin(&self, options: HostOptions) -> Controller {
        let now = Instant::now();
        Controller::connect(&self.address, &subsystem_nqn(), options, &self.context, now).unwrap()
    }

    /// Connects to the subsystem.
    pub(crate) fn connect(&mut self, options: HostOptions) -> Controller {
        let mut controller = self.begin(options);
        self.until_ready(&mut controller);
        controller
    }

    /// Polls until the controller is ready.
    pub(crate) fn until_ready(&mut self, controller: &mut Controller) {
        let until = Instant::now() + PATIENCE;
        while !controller.is_ready() {
            self.poll();
            controller.poll(Instant::now());
            if let Some(error) = controller.failure() {
                panic!("{} failed: {error:?}", controller.step());
            }
            assert!(Instant::now() < until, "stuck at {}", controller.step());
        }
    }

    /// Polls until the controller has failed.
    pub(crate) fn until_failed(&mut self, controller: &mut Controller) -> HostError {
        let until = Instant::now() + PATIENCE;
        loop {
            self.poll();
            controller.poll(Instant::now());
            if let Some(error) = controller.failure() {
                return error.clone();
            }
            assert!(Instant::now() < until, "it does not fail");
        }
    }

    /// Runs an operation to its end.
    pub(crate) fn finish<T>(
        &mut self,
        controller: &mut Controller,
        mut operation: Operation<T>,
    ) -> Result<T, HostError> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.poll();
            controller.poll(Instant::now());
            if let Some(result) = operation.poll() {
                return result;
            }
            assert!(Instant::now() < until, "the operation does not end");
        }
    }

    /// Polls the target and an I/O queue until `count` completions are there.
    pub(crate) fn completions(&mut self, queue: &mut IoQueue, count: usize) -> Vec<Completion> {
        let until = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        while completions.len() < count {
            self.poll();
            queue.poll(Instant::now(), &mut completions);
            assert!(
                Instant::now() < until,
                "{} of {count} completions",
                completions.len()
            );
        }
        completions
    }

    /// Runs one request to its end.
    pub(crate) fn io(&mut self, queue: &mut IoQueue, request: IoRequest) -> Completion {
        match queue.submit(request, Instant::now()) {
            Submit::Accepted(_) => {}
            Submit::Refused(refused) => panic!("refused: {:?}", refused.reason),
        }
        self.completions(queue, 1).pop().unwrap()
    }
}
