//! The device below, as the worker uses it: one call after another, each waited for.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use block::{Bdev, BdevChannel, ChannelContext, Completion, Io, IoError, Op, Submit};
use dma::{ChannelOptions, IoBuf, IobufChannel, IobufPool, Payload};

use crate::LvolError;

/// Longest I/O of the worker, bytes.
const TRANSFER_BYTES: usize = 128 << 10;

/// What the worker's thread lends the library, which has no clock and does not sleep.
pub trait Host: fmt::Debug {
    /// The time.
    fn now(&self) -> Instant;

    /// Waits until the descriptor is readable, the waker of the worker is called, or the deadline has
    /// come. May return early; must not return late. With neither descriptor nor deadline the device
    /// has to be asked again soon.
    fn wait(&self, fd: Option<BorrowedFd<'_>>, deadline: Option<Instant>);
}

/// A channel whose calls end before they return.
pub(crate) struct Disk {
    channel: RefCell<BdevChannel>,
    buffers: IobufChannel,
    host: Rc<dyn Host>,
    waker: Waker,
    block_size: u32,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl Disk {
    pub(crate) fn open(
        base: &Arc<Bdev>,
        pool: &Arc<IobufPool>,
        host: Box<dyn Host>,
        waker: Waker,
    ) -> Result<Self, LvolError> {
        Self::open_with(base, pool, Rc::from(host), waker)
    }

    /// Another device, used by the same thread.
    pub(crate) fn open_other(
        &self,
        device: &Arc<Bdev>,
        pool: &Arc<IobufPool>,
    ) -> Result<Self, LvolError> {
        Self::open_with(device, pool, Rc::clone(&self.host), self.waker.clone())
    }

    fn open_with(
        base: &Arc<Bdev>,
        pool: &Arc<IobufPool>,
        host: Rc<dyn Host>,
        waker: Waker,
    ) -> Result<Self, LvolError> {
        let context = ChannelContext::new("lvol", waker.clone()).with_pool(Arc::clone(pool));
        let channel = base
            .open(&context)
            .map_err(|source| LvolError::Open { source })?;
        let options = ChannelOptions {
            small_cache: 0,
            large_cache: 0,
            waker: waker.clone(),
        };
        let buffers = pool
            .channel("lvol_worker", options)
            .map_err(|source| LvolError::Buffers { source })?;
        Ok(Self {
            channel: RefCell::new(channel),
            buffers,
            host,
            waker,
            block_size: base.geometry().block_size,
        })
    }

    pub(crate) fn now(&self) -> Instant {
        self.host.now()
    }

    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), LvolError> {
        let mut at = offset;
        for part in out.chunks_mut(TRANSFER_BYTES) {
            let buffer = self.buffer(part.len());
            let io = self.io(Op::Read, at, part.len(), buffer.into());
            let ended = self.run(io).map_err(|source| LvolError::Device {
                operation: "read",
                offset: at,
                source,
            })?;
            ended.copy_range_to(0, part);
            at += part.len() as u64;
        }
        Ok(())
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), LvolError> {
        let mut at = offset;
        for part in data.chunks(TRANSFER_BYTES) {
            let mut buffer = self.buffer(part.len());
            buffer.as_mut_slice().copy_from_slice(part);
            let io = self.io(Op::Write { fua: false }, at, part.len(), buffer.into());
            self.run(io).map_err(|source| LvolError::Device {
                operation: "write",
                offset: at,
                source,
            })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    pub(crate) fn flush(&self) -> Result<(), LvolError> {
        self.run(Io::new(Op::Flush, 0, 0, 0))
            .map(|_| ())
            .map_err(|source| LvolError::Device {
                operation: "flush",
                offset: 0,
                source,
            })
    }

    fn io(&self, op: Op, offset: u64, len: usize, payload: Payload) -> Io {
        let block = u64::from(self.block_size);
        debug_assert!(
            offset.is_multiple_of(block) && (len as u64).is_multiple_of(block),
            "the worker's i/o is of whole blocks: {len} at {offset}"
        );
        let blocks = (len as u64 / block) as u32;
        Io::with_payload(op, offset / block, blocks, payload, 0)
    }

    /// A buffer; waits while others have them all.
    fn buffer(&self, len: usize) -> IoBuf {
        loop {
            let buffer = self.buffers.get(len);
            if let Some(buffer) = buffer.or_else(|| self.buffers.get_reserved(len)) {
                return buffer;
            }
            self.host.wait(None, None);
        }
    }

    fn run(&self, io: Io) -> Result<Payload, IoError> {
        let mut channel = self.channel.borrow_mut();
        let mut done = Vec::new();
        let ended = |completion: Completion| completion.result.map(|()| completion.io.payload);
        match channel.submit(io, self.host.now()) {
            Submit::Done(completion) => return ended(completion),
            Submit::Pending => {}
        }
        loop {
            channel.poll(self.host.now(), &mut done);
            if let Some(completion) = done.pop() {
                return ended(completion);
            }
            self.host.wait(channel.wake_fd(), channel.next_deadline());
        }
    }
}
