//! The seam between a device and those who use it: [`BlockDevice`], [`Channel`], [`Geometry`].

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use dma::IobufPool;

use crate::BlockError;
use crate::file::ring::SharedRing;
use crate::io::{Completion, Io, IoError, OpKind, OpSet, Submit};

/// Which memory a device can read and write by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DmaReach {
    /// Any memory of this process: the CPU or the kernel moves the data.
    #[default]
    Process,
    /// Only registered regions below `1 << address_bits`.
    Regions {
        /// Width of a device address.
        address_bits: u8,
    },
}

/// What a device says of itself. A resize changes `block_count` and nothing else.
///
/// A limit of 0 means "no limit"; a granularity or an optimum of 0 or 1 means "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per logical block: 512 or 4096.
    pub block_size: u32,
    /// Number of logical blocks.
    pub block_count: u64,
    /// Preferred I/O size, blocks (NVMe NOWS, NOIOB are derived from it).
    pub optimal_io_blocks: u32,
    /// Preferred granularity of writes, blocks (NVMe NPWG).
    pub write_granularity_blocks: u32,
    /// Preferred granularity of unmap, blocks (NVMe NPDG).
    pub unmap_granularity_blocks: u32,
    /// Blocks that a write changes wholly or not at all, also over a power loss (NVMe AWUPF).
    pub atomic_write_blocks: u32,
    /// Most blocks of one read, write or compare. [`crate::BdevChannel`] splits what is longer.
    pub max_transfer_blocks: u32,
    /// Most blocks of one unmap or write zeroes. Split likewise.
    pub max_unmap_blocks: u32,
    /// Most blocks of one verify, which moves no data. Split likewise. 0: as `max_transfer_blocks`.
    pub max_verify_blocks: u32,
    /// An I/O that crosses a multiple of this many blocks is split there. 0: nowhere.
    pub boundary_blocks: u32,
    /// Alignment of payload memory that avoids a copy, bytes. Other memory works, through a bounce
    /// buffer.
    pub alignment_bytes: u32,
    /// Completed writes can be lost with power until a flush completes (NVMe VWC).
    pub volatile_write_cache: bool,
    /// Operations that the device does.
    pub supports: OpSet,
    /// Writes are refused.
    pub read_only: bool,
    /// Memory that the device reaches.
    pub dma_reach: DmaReach,
}

impl Geometry {
    /// The geometry of a device without limits or preferences.
    #[must_use]
    pub fn new(block_size: u32, block_count: u64) -> Self {
        Self {
            block_size,
            block_count,
            optimal_io_blocks: 0,
            write_granularity_blocks: 1,
            unmap_granularity_blocks: 1,
            atomic_write_blocks: 1,
            max_transfer_blocks: 0,
            max_unmap_blocks: 0,
            max_verify_blocks: 0,
            boundary_blocks: 0,
            alignment_bytes: 1,
            volatile_write_cache: false,
            supports: OpSet::ALL.without(OpKind::CompareAndWrite),
            read_only: false,
            dma_reach: DmaReach::Process,
        }
    }

    /// Bytes of the whole device.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.block_count.saturating_mul(u64::from(self.block_size))
    }

    /// Checks that a device can have this block size and count.
    ///
    /// # Errors
    /// [`BlockError::BlockSize`] or [`BlockError::BlockCount`].
    pub fn check_size(block_size: u32, block_count: u64) -> Result<(), BlockError> {
        if block_size != 512 && block_size != 4096 {
            return Err(BlockError::BlockSize { block_size });
        }
        let bytes = block_count.checked_mul(u64::from(block_size));
        match bytes {
            Some(1..=0x7fff_ffff_ffff_ffff) => Ok(()),
            _ => Err(BlockError::BlockCount {
                block_count,
                block_size,
            }),
        }
    }
}

/// What a thread brings along to open channels: make one per thread and keep it.
///
/// It carries what all channels of a thread share, such as the io_uring of the file devices. That
/// is why it stays on its thread.
#[derive(Clone)]
pub struct ChannelContext {
    /// Name of the thread, shown in statistics.
    pub thread: Arc<str>,
    /// Wakes the thread when one of its channels has work that no descriptor tells of.
    pub waker: Waker,
    /// I/Os that a channel accepts at a time; more are answered [`IoError::Busy`].
    pub queue_depth: u32,
    /// Pool of the payloads, for registration with the kernel.
    pub pool: Option<Arc<IobufPool>>,
    pub(crate) ring: Rc<RefCell<Weak<SharedRing>>>,
}

impl ChannelContext {
    /// I/Os per channel when nothing else is said.
    pub const QUEUE_DEPTH_DEFAULT: u32 = 4096;

    /// A context for the calling thread, with the default depth and without a pool.
    #[must_use]
    pub fn new(thread: &str, waker: Waker) -> Self {
        Self {
            thread: thread.into(),
            waker,
            queue_depth: Self::QUEUE_DEPTH_DEFAULT,
            pool: None,
            ring: Rc::default(),
        }
    }

    /// The same context with another bound of I/Os per channel. At least 1.
    #[must_use]
    pub fn with_queue_depth(mut self, queue_depth: u32) -> Self {
        self.queue_depth = queue_depth.max(1);
        self
    }

    /// The same context with the pool that payloads come from.
    #[must_use]
    pub fn with_pool(mut self, pool: Arc<IobufPool>) -> Self {
        self.pool = Some(pool);
        self
    }
}

impl fmt::Debug for ChannelContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelContext")
            .field("thread", &self.thread)
            .field("queue_depth", &self.queue_depth)
            .finish_non_exhaustive()
    }
}

/// A device, or a layer over one. Shared by all threads; does no I/O itself.
///
/// Implementations may assume that [`crate::BdevChannel`] has checked every I/O: the operation is in
/// `supports`, the range lies within `block_count`, sizes are within the limits, the payload has
/// the right length.
pub trait BlockDevice: Send + Sync + fmt::Debug + Any {
    /// The kind, as in `bdev create KIND`: `malloc`, `null`, `file`, `error`, `delay`.
    fn kind(&self) -> &'static str;

    /// What the device says of itself now.
    fn geometry(&self) -> Geometry;

    /// Opens a channel for the calling thread.
    ///
    /// The channel accepts at least `ctx.queue_depth` I/Os at a time.
    ///
    /// # Errors
    /// When the device's own resources cannot be had.
    fn open_channel(&self, ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError>;

    /// Changes the number of blocks. I/O goes on. New blocks read as zeroes.
    ///
    /// # Errors
    /// When the device cannot, or not to this size.
    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        let _ = block_count;
        Err(BlockError::ResizeUnsupported { kind: self.kind() })
    }

    /// Blocks that hold something, for a device that takes room only for what was written. `None`: all do.
    fn allocated_blocks(&self) -> Option<u64> {
        None
    }

    /// May its room run out before all of its blocks were written?
    fn is_thin(&self) -> bool {
        false
    }

    /// What else a person may want to know: names and values, such as the path of a file.
    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The device under a layer.
    fn inner(&self) -> Option<&Arc<dyn BlockDevice>> {
        None
    }
}

impl dyn BlockDevice {
    /// This device as its concrete type, for settings that only that type has.
    #[must_use]
    pub fn downcast_ref<T: BlockDevice>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// One thread's way to a device. Not `Send`: it lives and dies on the thread that opened it.
///
/// Dropping a channel with I/O in flight is sound: payloads stay alive until the device lets go of
/// them. Their completions are lost.
pub trait Channel {
    /// Starts an I/O. `now` is the caller's clock.
    ///
    /// A device may gather I/Os and start them together at the next [`Channel::poll`]: poll once
    /// more after the last submit, before sleeping.
    fn submit(&mut self, io: Io, now: Instant) -> Submit;

    /// Starts what was gathered and appends what has ended to `done`. Returns how many were appended.
    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize;

    /// When to poll next at the latest, if time alone makes something happen.
    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// Readable when `poll` would find a completion. Stays the same for the life of the channel.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether `poll` has nothing to do while no I/O is in flight. A channel whose descriptor may still
    /// become readable by itself, or whose device has come or gone, says no: poll it all the same.
    fn is_quiet(&self) -> bool {
        true
    }

    /// Whether a read with `Payload::None` is answered with the device's own memory.
    fn lends(&self) -> bool {
        false
    }

    /// Takes back an I/O that still waits in software. True if it did: its completion, with
    /// [`IoError::Aborted`], then arrives by `poll`.
    fn abort(&mut self, tag: u64) -> bool {
        let _ = tag;
        false
    }

    /// I/Os submitted and not yet returned by `poll`.
    fn in_flight(&self) -> usize;
}

/// A device answer for an operation that is not in `supports`.
pub(crate) fn unsupported(io: Io) -> Submit {
    Submit::Done(io.complete(Err(IoError::Unsupported)))
}
