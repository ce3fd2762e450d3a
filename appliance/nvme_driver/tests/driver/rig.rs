//! The emulated controller as a PCI function, and a host around the driver.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use block::{BlockDevice, Channel, ChannelContext, Completion, Io, IoError, Op, Submit};
use dma::{BusView, ChannelOptions, IobufChannel, IobufOptions, IobufPool, Payload, Region};
use nvme_driver::{
    AdminReply, AdminRequest, Controller, ControllerOptions, ControllerState, Device, DeviceError,
    DmaMapper, Event, Interrupts, NvmeError, NvmeNamespace, PciFunction, Registers,
};
use nvme_emu::{Emu, EmuOptions};

/// Polls after which something that should happen has not.
const TURNS_MAX: usize = 200_000;

/// The emulated function.
pub(crate) struct Function {
    pub(crate) emu: Mutex<Emu>,
    bus: Arc<BusView>,
    pub(crate) reset_fails: AtomicBool,
    pub(crate) clears: Mutex<Vec<u16>>,
    /// Regions that are mapped, in the order they were mapped: the queues' first.
    pub(crate) regions: Mutex<Vec<Arc<Region>>>,
}

impl Function {
    pub(crate) fn emu(&self) -> MutexGuard<'_, Emu> {
        self.emu.lock().unwrap()
    }
}

impl Registers for Function {
    fn len(&self) -> u64 {
        0x4000
    }
    fn read32(&self, offset: u32) -> u32 {
        self.emu().read32(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        self.emu().write32(offset, value);
    }
}

impl DmaMapper for Function {
    fn map(&self, region: &Arc<Region>) -> Result<(), DeviceError> {
        self.bus.map(region);
        let mut regions = self.regions.lock().unwrap();
        if !regions.iter().any(|mapped| mapped.addr() == region.addr()) {
            regions.push(Arc::clone(region));
        }
        Ok(())
    }
    fn unmap(&self, region: &Arc<Region>) {
        self.bus.unmap(region);
        let mut regions = self.regions.lock().unwrap();
        regions.retain(|mapped| mapped.addr() != region.addr());
    }
    fn address_bits(&self) -> u8 {
        48
    }
}

impl Interrupts for Function {
    fn count(&self) -> u16 {
        9
    }
    fn fd(&self, _vector: u16) -> Option<BorrowedFd<'_>> {
        None
    }
    fn clear(&self, vector: u16) {
        self.clears.lock().unwrap().push(vector);
    }
}

impl PciFunction for Function {
    fn address(&self) -> &'static str {
        "0000:01:00.0"
    }
    fn reset(&self) -> Result<(), DeviceError> {
        if self.reset_fails.load(SeqCst) {
            return Err(DeviceError {
                action: "reset",
                address: self.address().into(),
                source: io::Error::other("no reset"),
            });
        }
        self.emu().function_reset();
        Ok(())
    }
    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        self.emu().set_bus_master(on);
        Ok(())
    }
}

/// A host: one thread that owns the controller and has channels.
pub(crate) struct Host {
    pub(crate) function: Arc<Function>,
    pub(crate) controller: Controller,
    pub(crate) now: Instant,
    /// Time that passes per turn.
    pub(crate) tick: Duration,
    pub(crate) events: Vec<Event>,
    pub(crate) pool: Arc<IobufPool>,
    pub(crate) bufs: IobufChannel,
}

pub(crate) fn driver_options() -> ControllerOptions {
    ControllerOptions {
        io_queues: 2,
        queue_entries: 32,
        ..ControllerOptions::default()
    }
}

impl Host {
    /// A controller that is being attached.
    pub(crate) fn attach(emu: EmuOptions, options: ControllerOptions) -> Self {
        Self::try_attach(emu, options, |_| {}).unwrap()
    }

    /// A controller that is being attached, `prepare`d before the driver sees it.
    pub(crate) fn try_attach(
        emu: EmuOptions,
        options: ControllerOptions,
        prepare: impl FnOnce(&mut Emu),
    ) -> Result<Self, NvmeError> {
        let bus = BusView::new();
        let mut emu = Emu::new(emu, Arc::clone(&bus));
        prepare(&mut emu);
        let function = Arc::new(Function {
            emu: Mutex::new(emu),
            bus,
            reset_fails: AtomicBool::new(false),
            clears: Mutex::default(),
            regions: Mutex::default(),
        });
        let device = device(&function);
        let now = Instant::now();
        let controller = Controller::attach(device, options, now)?;
        let pool = IobufPool::new(IobufOptions {
            small_pool_count: 1024,
            reserve_small: 64,
            large_pool_count: 32,
            ..IobufOptions::default()
        })
        .unwrap();
        let caches = ChannelOptions {
            small_cache: 0,
            large_cache: 0,
            ..ChannelOptions::default()
        };
        let bufs = pool.channel("test", caches).unwrap();
        Ok(Self {
            function,
            controller,
            now,
            tick: Duration::from_micros(10),
            events: Vec::new(),
            pool,
            bufs,
        })
    }

    /// A controller that runs.
    pub(crate) fn running(emu: EmuOptions, options: ControllerOptions) -> Self {
        let mut host = Self::attach(emu, options);
        host.until_state(ControllerState::Running);
        host
    }

    pub(crate) fn default() -> Self {
        Self::running(EmuOptions::default(), driver_options())
    }

    pub(crate) fn emu(&self) -> MutexGuard<'_, Emu> {
        self.function.emu()
    }

    /// A little time passes for owner and device.
    pub(crate) fn turn(&mut self) {
        self.now += self.tick;
        self.controller.poll(self.now, &mut self.events);
        self.function.emu().step();
    }

    pub(crate) fn until(&mut self, what: &str, mut reached: impl FnMut(&mut Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if reached(self) {
                return;
            }
            self.turn();
        }
        panic!("never: {what}; events: {:?}", self.events);
    }

    pub(crate) fn until_state(&mut self, state: ControllerState) {
        self.until(state.name(), |host| host.controller.state() == state);
    }

    pub(crate) fn namespace(&self) -> Arc<NvmeNamespace> {
        Arc::clone(self.controller.namespaces().next().unwrap())
    }

    pub(crate) fn context(&self) -> ChannelContext {
        ChannelContext::new("test", Waker::noop().clone())
            .with_queue_depth(256)
            .with_pool(Arc::clone(&self.pool))
    }

    pub(crate) fn open(&self) -> Box<dyn Channel> {
        self.namespace().open_channel(&self.context()).unwrap()
    }

    pub(crate) fn buffer(&self, len: usize, fill: u8) -> Payload {
        let mut buf = self.bufs.get(len).expect("the pool is large enough");
        buf.as_mut_slice().fill(fill);
        Payload::Buf(buf)
    }

    /// Polls the channel until `count` I/Os have ended.
    pub(crate) fn finish(&mut self, channel: &mut dyn Channel, count: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        self.until("i/o ends", |host| {
            channel.poll(host.now, &mut done);
            done.len() >= count
        });
        assert_eq!(done.len(), count);
        done
    }

    pub(crate) fn submit(&mut self, channel: &mut dyn Channel, io: Io) {
        match channel.submit(io, self.now) {
            Submit::Pending => {}
            Submit::Done(completion) => panic!("refused: {completion:?}"),
        }
    }

    pub(crate) fn run(
        &mut self,
        channel: &mut dyn Channel,
        io: Io,
    ) -> (Result<(), IoError>, Payload) {
        let completion = match channel.submit(io, self.now) {
            Submit::Done(completion) => completion,
            Submit::Pending => self.finish(channel, 1).remove(0),
        };
        (completion.result, completion.io.payload)
    }

    pub(crate) fn write(&mut self, channel: &mut dyn Channel, lba: u64, blocks: u32, fill: u8) {
        let payload = self.buffer(blocks as usize * 512, fill);
        let op = Op::Write { fua: false };
        let io = Io::with_payload(op, lba, blocks, payload, 1);
        self.run(channel, io).0.unwrap();
    }

    pub(crate) fn read(&mut self, channel: &mut dyn Channel, lba: u64, blocks: u32) -> Vec<u8> {
        let payload = self.buffer(blocks as usize * 512, 0xee);
        let io = Io::with_payload(Op::Read, lba, blocks, payload, 2);
        let (result, payload) = self.run(channel, io);
        result.unwrap();
        bytes(&payload)
    }

    pub(crate) fn command(&mut self, channel: &mut dyn Channel, op: Op) -> Result<(), IoError> {
        self.run(channel, Io::new(op, 0, 8, 3)).0
    }

    pub(crate) fn admin(&mut self, request: &AdminRequest) -> Result<AdminReply, NvmeError> {
        let wanted = self.controller.admin(request, self.now)?;
        let mut answer = None;
        self.until("the admin command ends", |host| {
            let at = host
                .events
                .iter()
                .position(|event| matches!(event, Event::AdminDone { id, .. } if *id == wanted));
            if let Some(Event::AdminDone { result, .. }) = at.map(|at| host.events.remove(at)) {
                answer = Some(result);
            }
            answer.is_some()
        });
        answer.unwrap()
    }

    pub(crate) fn has_event(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }
}

pub(crate) fn device(function: &Arc<Function>) -> Device {
    Device {
        function: function.clone(),
        registers: function.clone(),
        mapper: function.clone(),
        interrupts: Some(function.clone()),
    }
}

pub(crate) fn bytes(payload: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; payload.len()];
    payload.copy_range_to(0, &mut bytes);
    bytes
}
