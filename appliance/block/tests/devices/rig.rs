//! What the tests of this crate share: buffers, a clock of their own, a device with narrow limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use block::{
    Bdev, BdevChannel, BdevOptions, BlockDevice, BlockError, Channel, ChannelContext, Completion,
    Geometry, Io, IoError, Op, Submit,
};
use dma::{
    BackingPreference, ChannelOptions, IoBuf, IobufChannel, IobufOptions, IobufPool, Payload,
};

/// Buffers for one thread.
pub(crate) struct Buffers {
    pub(crate) pool: Arc<IobufPool>,
    channel: IobufChannel,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let options = IobufOptions {
            small_pool_count: 256,
            large_pool_count: 32,
            reserve_small: 8,
            backing: BackingPreference::Plain4K,
            ..IobufOptions::default()
        };
        let pool = IobufPool::new(options).unwrap();
        let options = ChannelOptions {
            small_cache: 32,
            large_cache: 4,
            ..Default::default()
        };
        let channel = pool.channel("test", options).unwrap();
        Self { pool, channel }
    }

    pub(crate) fn get(&mut self, len: usize) -> IoBuf {
        self.channel
            .get(len)
            .expect("the pool is large enough for the test")
    }

    pub(crate) fn filled(&mut self, bytes: &[u8]) -> Payload {
        let mut buf = self.get(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        buf.into()
    }

    pub(crate) fn empty(&mut self, len: usize) -> Payload {
        let mut buf = self.get(len);
        buf.as_mut_slice().fill(0xee);
        buf.into()
    }
}

/// The bytes of a payload.
pub(crate) fn bytes(payload: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; payload.len()];
    payload.copy_range_to(0, &mut bytes);
    bytes
}

/// A context whose thread is never woken: the tests poll.
pub(crate) fn context() -> ChannelContext {
    ChannelContext::new("test", Waker::noop().clone())
}

pub(crate) fn bdev(device: Arc<dyn BlockDevice>) -> Arc<Bdev> {
    Bdev::new(BdevOptions::named("disk"), device, Instant::now()).unwrap()
}

/// Counts how often it was called.
#[derive(Default)]
pub(crate) struct CountingWaker(pub(crate) AtomicU64);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Submits one I/O and polls until it has ended. The clock moves by 1 us per poll.
pub(crate) fn run(channel: &mut BdevChannel, io: Io) -> Completion {
    let mut now = Instant::now();
    match channel.submit(io, now) {
        Submit::Done(completion) => completion,
        Submit::Pending => {
            let mut done = Vec::new();
            let limit = Instant::now() + Duration::from_secs(20);
            while channel.poll(now, &mut done) == 0 {
                assert!(Instant::now() < limit, "the I/O never ended");
                now += Duration::from_micros(1);
                std::thread::yield_now();
            }
            assert_eq!(done.len(), 1);
            done.remove(0)
        }
    }
}

pub(crate) fn run_ok(channel: &mut BdevChannel, io: Io) -> Completion {
    let completion = run(channel, io);
    assert_eq!(completion.result, Ok(()), "{:?}", completion.io);
    completion
}

pub(crate) fn read(
    channel: &mut BdevChannel,
    buffers: &mut Buffers,
    lba: u64,
    blocks: u32,
) -> Vec<u8> {
    let len = blocks as usize * channel.geometry().block_size as usize;
    let payload = buffers.empty(len);
    let completion = run_ok(channel, Io::with_payload(Op::Read, lba, blocks, payload, 1));
    bytes(&completion.io.payload)
}

pub(crate) fn write(channel: &mut BdevChannel, buffers: &mut Buffers, lba: u64, data: &[u8]) {
    let blocks = data.len() / channel.geometry().block_size as usize;
    let payload = buffers.filled(data);
    let op = Op::Write { fua: false };
    run_ok(
        channel,
        Io::with_payload(op, lba, blocks as u32, payload, 1),
    );
}

/// A layer with limits, that ends I/O late and out of order.
#[derive(Debug)]
pub(crate) struct Narrow {
    pub(crate) inner: Arc<dyn BlockDevice>,
    pub(crate) max_transfer_blocks: u32,
    pub(crate) max_unmap_blocks: u32,
    pub(crate) max_verify_blocks: u32,
    pub(crate) boundary_blocks: u32,
    /// Every n-th I/O is pending until the next poll. 0: none is.
    pub(crate) pending_every: u64,
}

impl BlockDevice for Narrow {
    fn kind(&self) -> &'static str {
        "narrow"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            max_transfer_blocks: self.max_transfer_blocks,
            max_unmap_blocks: self.max_unmap_blocks,
            max_verify_blocks: self.max_verify_blocks,
            boundary_blocks: self.boundary_blocks,
            ..self.inner.geometry()
        }
    }

    fn open_channel(&self, ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        Ok(Box::new(NarrowChannel {
            inner: self.inner.open_channel(ctx)?,
            geometry: self.geometry(),
            pending_every: self.pending_every,
            count: 0,
            held: Vec::new(),
        }))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        self.inner.resize(block_count)
    }

    fn inner(&self) -> Option<&Arc<dyn BlockDevice>> {
        Some(&self.inner)
    }
}

struct NarrowChannel {
    inner: Box<dyn Channel>,
    geometry: Geometry,
    pending_every: u64,
    count: u64,
    held: Vec<Completion>,
}

impl Channel for NarrowChannel {
    fn submit(&mut self, io: Io, now: Instant) -> Submit {
        let limit = match io.op {
            Op::Unmap | Op::WriteZeroes { .. } => self.geometry.max_unmap_blocks,
            Op::Verify if self.geometry.max_verify_blocks != 0 => self.geometry.max_verify_blocks,
            _ => self.geometry.max_transfer_blocks,
        };
        if io.op.has_range() {
            assert!(limit == 0 || io.blocks <= limit, "not split: {io:?}");
            let boundary = u64::from(self.geometry.boundary_blocks);
            let last = io.lba.0 + u64::from(io.blocks) - 1;
            let (first, last) = (io.lba.0.checked_div(boundary), last.checked_div(boundary));
            assert_eq!(first, last, "crosses a boundary: {io:?}");
        }
        self.count += 1;
        match self.inner.submit(io, now) {
            Submit::Done(completion)
                if self.pending_every != 0 && self.count.is_multiple_of(self.pending_every) =>
            {
                self.held.push(completion);
                Submit::Pending
            }
            other => other,
        }
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        self.inner.poll(now, done);
        // Last in, first out: nobody may rely on an order.
        while let Some(held) = self.held.pop() {
            done.push(held);
        }
        done.len() - before
    }

    fn abort(&mut self, tag: u64) -> bool {
        let held = self.held.iter_mut().find(|held| held.io.tag == tag);
        held.map(|held| held.result = Err(IoError::Aborted))
            .is_some()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len()
    }
}

/// The plainest device there can be, to compare with.
pub(crate) struct Model {
    pub(crate) bytes: Vec<u8>,
    pub(crate) block_size: usize,
}

impl Model {
    pub(crate) fn new(block_size: usize, blocks: usize) -> Self {
        Self {
            bytes: vec![0; block_size * blocks],
            block_size,
        }
    }

    /// What the operation should do. Returns the result, and the data read.
    pub(crate) fn apply(
        &mut self,
        op: Op,
        lba: u64,
        blocks: u32,
        data: &[u8],
    ) -> (Result<(), IoError>, Vec<u8>) {
        if !op.has_range() {
            return (Ok(()), Vec::new());
        }
        if blocks == 0 {
            return (Err(IoError::InvalidField), Vec::new());
        }
        let size = self.block_size as u128;
        let start = u128::from(lba) * size;
        let end = start + u128::from(blocks) * size;
        if end > self.bytes.len() as u128 {
            return (Err(IoError::OutOfRange), Vec::new());
        }
        let range = &mut self.bytes[start as usize..end as usize];
        let compare =
            |range: &[u8], data: &[u8]| match range.iter().zip(data).position(|(a, b)| a != b) {
                None => Ok(()),
                Some(at) => Err(IoError::CompareMismatch {
                    offset_bytes: at as u32,
                }),
            };
        match op {
            Op::Read => return (Ok(()), range.to_vec()),
            Op::Write { .. } => range.copy_from_slice(data),
            Op::Unmap | Op::WriteZeroes { .. } => range.fill(0),
            Op::Compare => return (compare(range, data), Vec::new()),
            Op::CompareAndWrite { .. } => {
                let (expected, new) = data.split_at(range.len());
                let result = compare(range, expected);
                if result.is_ok() {
                    range.copy_from_slice(new);
                }
                return (result, Vec::new());
            }
            Op::Flush | Op::Verify | Op::Reset => {}
        }
        (Ok(()), Vec::new())
    }
}
