//! A pool on a simulated drive, stepped by hand.

use std::cell::{Cell, RefCell};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use block::{
    Bdev, BdevChannel, BdevOptions, BlockDevice, ChannelContext, Claim, ClaimKind, Completion, Io,
    IoError, Op, Registry, Submit,
};
use dma::{BackingPreference, ChannelOptions, IobufChannel, IobufOptions, IobufPool, Payload};
use lvol::{
    CreateOptions, ExternalDevices, Host, LvolError, NewVolume, Pool, PoolOptions, PoolWorker,
    Promise, VolumeInfo,
};
use simulation::{Image, SimDevice, SimOptions};
use uuid::Uuid;

/// Turns after which something that has not ended never will.
const TURNS_MAX: u32 = 200_000;

/// What runs while the worker waits for the drive: what another thread might do just then.
#[derive(Clone, Default)]
pub(crate) struct Hook(Rc<RefCell<Option<Action>>>);

type Action = Box<dyn FnMut()>;

impl Hook {
    pub(crate) fn set(&self, hook: impl FnMut() + 'static) {
        *self.0.borrow_mut() = Some(Box::new(hook));
    }

    pub(crate) fn clear(&self) {
        *self.0.borrow_mut() = None;
    }

    fn run(&self) {
        if let Some(hook) = &mut *self.0.borrow_mut() {
            hook();
        }
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// A clock that goes on with each look.
#[derive(Debug)]
struct TestHost {
    start: Instant,
    looks: Cell<u64>,
    hook: Hook,
}

impl Host for TestHost {
    fn now(&self) -> Instant {
        self.looks.set(self.looks.get() + 1);
        self.start + Duration::from_micros(self.looks.get())
    }

    fn wait(&self, _: Option<BorrowedFd<'_>>, _: Option<Instant>) {
        self.hook.run();
    }
}

/// The clock of the machine; who waits looks again at once.
#[derive(Debug)]
pub(crate) struct Clock;

impl Host for Clock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, _: Option<BorrowedFd<'_>>, _: Option<Instant>) {}
}

/// Small buffers without locked memory.
pub(crate) fn buffers() -> Arc<IobufPool> {
    let options = IobufOptions {
        small_pool_count: 1024,
        large_pool_count: 128,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    };
    IobufPool::new(options).unwrap()
}

/// Block devices outside the pool.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub(crate) registry: Registry,
    /// How often the pool has looked for one.
    pub(crate) looks: AtomicU64,
}

impl Devices {
    /// A device named `name` with this content and UUID.
    pub(crate) fn put(&self, name: &str, uuid: u128, block: u32, bytes: &[u8]) -> Arc<SimDevice> {
        let mut image = Image::new(bytes.len() as u64);
        image.write_at(0, bytes);
        let device = SimDevice::from_image(image, SimOptions::new(block, 1, 5));
        self.put_device(name, uuid, device.clone());
        device
    }

    pub(crate) fn put_device(&self, name: &str, uuid: u128, device: Arc<dyn BlockDevice>) {
        let options = BdevOptions {
            uuid: Some(Uuid::from_u128(uuid)),
            ..BdevOptions::named(name)
        };
        self.registry
            .create(options, device, Instant::now())
            .unwrap();
    }
}

impl ExternalDevices for Devices {
    fn claim(&self, uuid: [u8; 16], _: &str, user: &str) -> Result<Claim, String> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let bdev = self.registry.get_by_uuid(Uuid::from_bytes(uuid));
        let bdev = bdev.map_err(|error| error.to_string())?;
        let claim = bdev.claim(user, ClaimKind::ReadOnly);
        claim.map_err(|error| error.to_string())
    }
}

/// How a pool comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The power goes.
    PowerCut,
    /// The program dies, and the drive keeps its power.
    Kill,
}

/// A drive, its pool, and the clock.
pub(crate) struct Rig {
    pub(crate) devices: Arc<Devices>,
    pub(crate) drive: Arc<SimDevice>,
    pub(crate) base: Arc<Bdev>,
    pub(crate) buffers: Arc<IobufPool>,
    pub(crate) pool: Pool,
    pub(crate) worker: PoolWorker,
    pub(crate) now: Instant,
    payloads: IobufChannel,
    boot: u8,
    pub(crate) hook: Hook,
}

/// A drive of `mib` MiB with blocks of 512 bytes.
pub(crate) fn drive(mib: u64, seed: u64) -> Arc<SimDevice> {
    SimDevice::new(SimOptions::new(512, mib << 11, seed))
}

/// The same without a volatile cache.
pub(crate) fn durable_drive(mib: u64, seed: u64) -> Arc<SimDevice> {
    SimDevice::new(SimOptions {
        volatile_write_cache: false,
        ..SimOptions::new(512, mib << 11, seed)
    })
}

fn base(drive: &Arc<SimDevice>) -> Arc<Bdev> {
    Bdev::new(BdevOptions::named("base"), drive.clone(), Instant::now()).unwrap()
}

/// With an odd seed each piece is committed in a transaction of its own, but for those that belong together.
fn options(
    buffers: &Arc<IobufPool>,
    drive: &SimDevice,
    devices: &Arc<Devices>,
    boot: u8,
) -> PoolOptions {
    let mut options = PoolOptions::new(Arc::clone(buffers));
    options.boot_id = [boot; 16];
    options.externals = devices.clone();
    if drive.seed() % 2 == 1 {
        options.transaction_bytes = 0;
    }
    options
}

impl Rig {
    /// A new pool with clusters of 64 KiB on a drive of `mib` MiB.
    pub(crate) fn create(mib: u64, seed: u64) -> Self {
        Self::create_on(drive(mib, seed), 64 << 10).unwrap()
    }

    pub(crate) fn create_on(drive: Arc<SimDevice>, cluster_size: u64) -> Result<Self, LvolError> {
        let buffers = buffers();
        let devices = Arc::<Devices>::default();
        let options = options(&buffers, &drive, &devices, 1);
        let create = CreateOptions {
            cluster_size,
            // Some go round and round in it.
            log_bytes: if drive.seed().is_multiple_of(3) {
                64 << 10
            } else {
                4 << 20
            },
            ..CreateOptions::named("tank")
        };
        let base = base(&drive);
        let hook = Hook::default();
        let (pool, worker) =
            PoolWorker::create(&base, &create, options, host(&hook), Waker::noop().clone())?;
        let opened = (pool, worker, 1, hook);
        Ok(Self::new(devices, drive, base, buffers, opened))
    }

    /// After another boot.
    pub(crate) fn open(drive: Arc<SimDevice>) -> Result<Self, LvolError> {
        Self::open_with(drive, Arc::default(), 200)
    }

    pub(crate) fn open_with(
        drive: Arc<SimDevice>,
        devices: Arc<Devices>,
        boot: u8,
    ) -> Result<Self, LvolError> {
        let buffers = buffers();
        let options = options(&buffers, &drive, &devices, boot);
        let base = base(&drive);
        let hook = Hook::default();
        let (pool, worker) = PoolWorker::open(&base, options, host(&hook), Waker::noop().clone())?;
        let opened = (pool, worker, boot, hook);
        Ok(Self::new(devices, drive, base, buffers, opened))
    }

    /// What an end left, with the devices that this one has and a drive of the same kind.
    pub(crate) fn reopen(&self, image: Image, end: End, seed: u64) -> Result<Self, LvolError> {
        let options = SimOptions {
            volatile_write_cache: self.drive.has_volatile_cache(),
            ..SimOptions::new(512, 1, seed)
        };
        let drive = SimDevice::from_image(image, options);
        let boot = match end {
            End::PowerCut => self.boot % 100 + 1,
            End::Kill => self.boot,
        };
        Self::open_with(drive, Arc::clone(&self.devices), boot)
    }

    /// What an end now would leave, opened.
    pub(crate) fn end(&self, end: End, seed: u64) -> Result<Self, LvolError> {
        let image = match end {
            End::PowerCut => self.drive.cut(seed),
            End::Kill => self.drive.killed(seed),
        };
        self.reopen(image, end, seed)
    }

    pub(crate) fn open_image(image: Image, seed: u64) -> Result<Self, LvolError> {
        Self::open(SimDevice::from_image(image, SimOptions::new(512, 1, seed)))
    }

    fn new(
        devices: Arc<Devices>,
        drive: Arc<SimDevice>,
        base: Arc<Bdev>,
        buffers: Arc<IobufPool>,
        (pool, worker, boot, hook): (Pool, PoolWorker, u8, Hook),
    ) -> Self {
        let payloads = buffers.channel("test", ChannelOptions::default()).unwrap();
        Self {
            devices,
            drive,
            base,
            buffers,
            pool,
            worker,
            now: Instant::now(),
            payloads,
            boot,
            hook,
        }
    }

    /// One step of the worker.
    pub(crate) fn step(&mut self) {
        self.now += Duration::from_micros(10);
        self.worker.step(self.now);
        self.hook.run();
    }

    /// Steps until the promise is kept.
    pub(crate) fn wait<T>(&mut self, promise: Promise<T>) -> Result<T, LvolError> {
        for _ in 0..TURNS_MAX {
            if let Some(answer) = promise.try_take() {
                return answer;
            }
            self.step();
        }
        panic!("the promise is not kept");
    }

    pub(crate) fn create_volume(&mut self, name: &str, size_bytes: u64) {
        let new = NewVolume {
            name: name.to_owned(),
            size_bytes,
            ..NewVolume::default()
        };
        let promise = self.pool.create_volume(new);
        self.wait(promise).unwrap();
    }

    pub(crate) fn snapshot(&mut self, names: &[(&str, &str)]) -> Result<(), LvolError> {
        let names: Vec<(String, String)> = names
            .iter()
            .map(|(volume, snapshot)| ((*volume).to_owned(), (*snapshot).to_owned()))
            .collect();
        let promise = self.pool.create_snapshots(&names, 0);
        self.wait(promise)
    }

    pub(crate) fn clone_snapshot(&mut self, snapshot: &str, name: &str) -> Result<(), LvolError> {
        let new = NewVolume {
            name: name.to_owned(),
            ..NewVolume::default()
        };
        let promise = self.pool.clone_snapshot(snapshot, new);
        self.wait(promise).map(|_| ())
    }

    /// A clone of the device `name`; `size_bytes` 0: as large.
    pub(crate) fn clone_external(
        &mut self,
        device: &str,
        name: &str,
        size_bytes: u64,
    ) -> Result<VolumeInfo, LvolError> {
        let new = NewVolume {
            name: name.to_owned(),
            size_bytes,
            ..NewVolume::default()
        };
        let device = self.devices.registry.get(device).unwrap();
        let promise = self.pool.clone_external(&device, new);
        self.wait(promise)
    }

    pub(crate) fn delete(&mut self, name: &str) -> Result<(), LvolError> {
        self.delete_shown(name).map(drop)
    }

    /// The number of the operation that shows the deletion.
    pub(crate) fn delete_shown(&mut self, name: &str) -> Result<Option<u64>, LvolError> {
        let promise = self.pool.delete(name);
        self.wait(promise)
    }

    pub(crate) fn commit(&mut self) {
        let promise = self.pool.commit();
        self.wait(promise).unwrap();
    }

    /// Steps until the collector has nothing left, and everything is committed.
    pub(crate) fn settle(&mut self) {
        let mut before = None;
        for _ in 0..1000 {
            for _ in 0..50 {
                self.now += Duration::from_millis(20);
                self.step();
            }
            self.commit();
            let promise = self.pool.info();
            let info = self.wait(promise).unwrap();
            if before.as_ref() == Some(&info) {
                return;
            }
            before = Some(info);
        }
        panic!("the pool does not come to rest");
    }

    pub(crate) fn free_clusters(&mut self) -> u64 {
        let promise = self.pool.info();
        self.wait(promise).unwrap().free_clusters
    }

    /// A channel to a volume.
    pub(crate) fn channel(&mut self, name: &str) -> BdevChannel {
        let promise = self.pool.device(name);
        let device = self.wait(promise).unwrap();
        let bdev = Bdev::new(BdevOptions::named("volume"), device, self.now).unwrap();
        let context = ChannelContext::new("test", Waker::noop().clone())
            .with_pool(Arc::clone(&self.buffers))
            .with_queue_depth(256);
        bdev.open(&context).unwrap()
    }

    pub(crate) fn payload(&self, bytes: &[u8]) -> Payload {
        let mut buffer = self.payloads.get(bytes.len()).expect("enough buffers");
        buffer.as_mut_slice().copy_from_slice(bytes);
        buffer.into()
    }

    /// Runs one I/O to its end.
    pub(crate) fn run(
        &mut self,
        channel: &mut BdevChannel,
        io: Io,
    ) -> (Result<(), IoError>, Payload) {
        let mut done = Vec::new();
        match channel.submit(io, self.now) {
            Submit::Done(completion) => done.push(completion),
            Submit::Pending => {}
        }
        for _ in 0..TURNS_MAX {
            if let Some(Completion { io, result }) = done.pop() {
                return (result, io.payload);
            }
            self.step();
            channel.poll(self.now, &mut done);
        }
        panic!("the i/o does not end");
    }

    pub(crate) fn read(&mut self, channel: &mut BdevChannel, offset: u64, len: usize) -> Vec<u8> {
        let payload = self.payload(&vec![0xee; len]);
        let io = Io::with_payload(Op::Read, offset / 512, (len / 512) as u32, payload, 1);
        let (result, payload) = self.run(channel, io);
        result.unwrap();
        let mut bytes = vec![0; len];
        payload.copy_range_to(0, &mut bytes);
        bytes
    }

    pub(crate) fn write(&mut self, channel: &mut BdevChannel, offset: u64, data: &[u8]) {
        self.try_write(channel, offset, data, false).unwrap();
    }

    pub(crate) fn try_write(
        &mut self,
        channel: &mut BdevChannel,
        offset: u64,
        data: &[u8],
        fua: bool,
    ) -> Result<(), IoError> {
        let payload = self.payload(data);
        let blocks = (data.len() / 512) as u32;
        let io = Io::with_payload(Op::Write { fua }, offset / 512, blocks, payload, 1);
        self.run(channel, io).0
    }

    pub(crate) fn op(&mut self, channel: &mut BdevChannel, op: Op, offset: u64, len: u64) {
        let io = Io::new(op, offset / 512, (len / 512) as u32, 1);
        self.run(channel, io).0.unwrap();
    }

    pub(crate) fn flush(&mut self, channel: &mut BdevChannel) {
        let (result, _) = self.run(channel, Io::new(Op::Flush, 0, 0, 1));
        result.unwrap();
    }
}

fn host(hook: &Hook) -> Box<dyn Host> {
    Box::new(TestHost {
        start: Instant::now(),
        looks: Cell::new(0),
        hook: hook.clone(),
    })
}
