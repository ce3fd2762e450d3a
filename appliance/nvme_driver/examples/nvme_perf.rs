//! Random reads of 4 KiB from a drive that is with vfio-pci, one thread, polled.
//!
//! `nvme_perf 0000:01:00.0 [SECONDS] [DEPTH]` prints I/Os per second. Only reads: nothing on the
//! drive changes.

use std::error::Error;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use block::{BlockDevice, ChannelContext, Completion, Io, Op, Submit};
use dma::{ChannelOptions, IobufOptions, IobufPool, Payload};
use nvme_driver::{Controller, ControllerOptions, ControllerState, Event};

// What `aditd` has between the two crates; neither may know the other.
#[path = "../../target/src/nvmf_runtime/drives/function.rs"]
mod function;

const BYTES: u32 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("give the address of a drive")?;
    let number = |text: Option<String>, default| text.map_or(Ok(default), |text| text.parse());
    let seconds = number(arguments.next(), 5)?;
    let depth = number(arguments.next(), 32)?;

    let container = vfio::Container::open()?;
    let function = vfio::Function::open(&container, &address, 2)?;
    let options = ControllerOptions {
        io_queues: 1,
        interrupts: std::env::var_os("NVME_PERF_INTERRUPTS").is_some(),
        ..ControllerOptions::default()
    };
    let device = function::device(function);
    let mut controller = Controller::attach(device, options, Instant::now())?;
    let mut events = Vec::new();
    while controller.state() != ControllerState::Running {
        controller.poll(Instant::now(), &mut events);
        if controller.is_final() {
            return Err(format!("it does not come up: {events:?}").into());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    let namespace = controller.namespaces().next().ok_or("no namespace")?;
    let namespace = Arc::clone(namespace);
    let result = read(&*namespace, &mut controller, seconds, depth);
    controller.shutdown(Instant::now());
    while !controller.is_final() {
        controller.poll(Instant::now(), &mut events);
    }
    let clean = |event: &Event| matches!(event, Event::Shutdown { clean: true });
    let stats = controller.stats();
    println!("clean shutdown: {}, {stats:?}", events.iter().any(clean));
    result
}

fn read(
    namespace: &dyn BlockDevice,
    controller: &mut Controller,
    seconds: u64,
    depth: u64,
) -> Result<(), Box<dyn Error>> {
    let pool = IobufPool::new(IobufOptions {
        small_pool_count: 1024,
        large_pool_count: 32,
        ..IobufOptions::default()
    })?;
    let buffers = pool.channel("perf", ChannelOptions::default())?;
    let context = ChannelContext::new("perf", Waker::noop().clone()).with_pool(pool);
    let mut channel = namespace.open_channel(&context)?;
    let geometry = namespace.geometry();
    let blocks = BYTES / geometry.block_size;
    let places = geometry.block_count / u64::from(blocks);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |payload, tag| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        Io::with_payload(
            Op::Read,
            random % places * u64::from(blocks),
            blocks,
            payload,
            tag,
        )
    };
    let start = Instant::now();
    let mut now = start;
    let mut done: Vec<Completion> = Vec::with_capacity(256);
    let mut events = Vec::new();
    let mut ended = 0_u64;
    for tag in 0..depth {
        let payload = buffers.get(BYTES as usize).ok_or("no buffer")?;
        if let Submit::Done(completion) = channel.submit(next(Payload::Buf(payload), tag), now) {
            return Err(format!("refused: {:?}", completion.result).into());
        }
    }
    let end = Duration::from_secs(seconds);
    while now - start < end {
        channel.poll(now, &mut done);
        ended += done.len() as u64;
        for completion in done.drain(..) {
            completion.result?;
            let tag = completion.io.tag;
            let io = next(completion.io.payload, tag);
            if let Submit::Done(completion) = channel.submit(io, now) {
                return Err(format!("refused: {:?}", completion.result).into());
            }
        }
        now = Instant::now();
        controller.poll(now, &mut events);
    }
    let iops = ended as f64 / (now - start).as_secs_f64();
    println!("{iops:.0} reads of 4 KiB per second at depth {depth}");
    while channel.in_flight() > 0 {
        channel.poll(Instant::now(), &mut done);
    }
    Ok(())
}
