//! A block device as the thread of copies uses it: bytes in and out, awaited.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use block::{
    Bdev, BdevChannel, ChannelContext, Completion, Geometry, Io, IoError, Op, OpKind, Submit,
};
use dma::{ChannelOptions, IoBuf, IobufChannel, IobufPool, Payload};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use super::worker::Stop;
use crate::error::chain;

/// I/Os in flight for one device.
const BUFFERS: usize = 8;
/// Longest I/O, bytes.
const TRANSFER_BYTES_MAX: usize = 128 << 10;
/// How often a device is asked that has no descriptor to tell of its completions.
const ASK_INTERVAL: Duration = Duration::from_millis(1);
/// The same of one that has: only should it ever miss to tell.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Time between two tries to get buffers while hosts have them all.
const BUFFER_RETRY: Duration = Duration::from_millis(5);

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.0.notify_one();
    }
}

/// A channel to a device. Its I/O moves only while [`Device::drive`] is polled.
pub(super) struct Device {
    channel: RefCell<BdevChannel>,
    geometry: Geometry,
    bell: Arc<Bell>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Completion>>>,
    next_tag: Cell<u64>,
    buffers: RefCell<Vec<IoBuf>>,
    transfer_bytes: usize,
    bdev: Arc<Bdev>,
    /// After the buffers, which came from it.
    _pool: IobufChannel,
}

/// What a range was read as, in order.
pub(super) type Parts = Vec<(u64, usize, Result<(), IoError>)>;

impl Device {
    /// Opens the device for this thread. Waits while there are no buffers.
    pub(super) async fn open(bdev: &Arc<Bdev>, pool: &Arc<IobufPool>) -> Result<Device, Stop> {
        let bell = Arc::new(Bell(Notify::new()));
        let waker = Waker::from(Arc::clone(&bell));
        let options = ChannelOptions {
            small_cache: 0,
            large_cache: 0,
            waker: waker.clone(),
        };
        let source = pool.channel("copy", options);
        let source = source.map_err(|error| Stop::Failed(format!("no data buffers: {error}")))?;
        let largest = pool.options().large_bufsize as usize & !4095;
        let transfer_bytes = largest.clamp(4096, TRANSFER_BYTES_MAX);
        let mut buffers = Vec::with_capacity(BUFFERS);
        while buffers.len() < BUFFERS {
            match source.get(transfer_bytes) {
                Some(buffer) => buffers.push(buffer),
                None => tokio::time::sleep(BUFFER_RETRY).await,
            }
        }
        let context = ChannelContext::new("copy", waker)
            .with_queue_depth(2 * BUFFERS as u32)
            .with_pool(Arc::clone(pool));
        let channel = bdev.open(&context).map_err(|error| {
            if bdev.is_removed() {
                return Stop::Closed;
            }
            let name = bdev.name();
            Stop::Failed(format!(
                "cannot open block device {name}: {}",
                chain(&error)
            ))
        })?;
        Ok(Device {
            geometry: channel.geometry(),
            channel: RefCell::new(channel),
            bell,
            waiting: RefCell::default(),
            next_tag: Cell::new(0),
            buffers: RefCell::new(buffers),
            transfer_bytes,
            bdev: Arc::clone(bdev),
            _pool: source,
        })
    }

    pub(super) fn block_size(&self) -> u64 {
        u64::from(self.geometry.block_size)
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.geometry.len_bytes()
    }

    /// Its device is on its way out: what fails now says nothing about it.
    pub(super) fn is_going(&self) -> bool {
        self.bdev.is_removed()
    }

    /// Moves I/O. Never ends.
    pub(super) async fn drive(&self) {
        let fd: Option<OwnedFd> = {
            let channel = self.channel.borrow();
            channel
                .wake_fd()
                .and_then(|fd| fd.try_clone_to_owned().ok())
        };
        let fd = fd.and_then(watched);
        let mut done = Vec::new();
        loop {
            let deadline = {
                let mut channel = self.channel.borrow_mut();
                channel.poll(Instant::now(), &mut done);
                channel.next_deadline()
            };
            for completion in done.drain(..) {
                self.give(completion);
            }
            if self.waiting.borrow().is_empty() {
                self.bell.0.notified().await;
                continue;
            }
            let most = if fd.is_some() {
                ASK_AGAIN
            } else {
                ASK_INTERVAL
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.bell.0.notified() => {}
                () = readable(fd.as_ref()) => {}
                () = tokio::time::sleep(left.unwrap_or(most).min(most)) => {}
            }
        }
    }

    /// Ends when no I/O is in flight.
    pub(super) async fn settle(&self) {
        let idle = async {
            while !self.waiting.borrow().is_empty() {
                tokio::time::sleep(ASK_INTERVAL).await;
            }
        };
        tokio::select! {
            () = self.drive() => {}
            () = idle => {}
        }
    }

    fn give(&self, completion: Completion) {
        if let Some(waiter) = self.waiting.borrow_mut().remove(&completion.io.tag) {
            // Who waited may be gone: a buffer goes back to its pool.
            drop(waiter.send(completion));
        }
    }

    /// Reads whole blocks, at most as many bytes as [`Device::burst_bytes`].
    pub(super) async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), IoError> {
        let (first, len) = (offset, buffer.len());
        let take = |at: u64, payload: &Payload, len: usize| {
            let from = (at - first) as usize;
            payload.copy_range_to(0, &mut buffer[from..from + len]);
        };
        let parts = self.read_parts(offset, len, take).await;
        parts.into_iter().try_for_each(|(_, _, result)| result)
    }

    /// Reads and throws away: which parts could be read.
    pub(super) async fn probe(&self, offset: u64, len: usize) -> Parts {
        self.read_parts(offset, len, |_, _, _| {}).await
    }

    /// Reads; `take` gets what could be read, in order, with where it lies and how long it is.
    pub(super) async fn read_parts(
        &self,
        offset: u64,
        len: usize,
        mut take: impl FnMut(u64, &Payload, usize),
    ) -> Parts {
        let mut begun = Vec::new();
        let mut at = 0;
        while at < len {
            let part = self.transfer_bytes.min(len - at);
            let buffer = self.buffer(part);
            let io = self.io(Op::Read, offset + at as u64, part, buffer.into());
            begun.push((offset + at as u64, part, self.submit(io)));
            at += part;
        }
        let mut parts = Vec::with_capacity(begun.len());
        for (at, len, begun) in begun {
            let result = match begun.await {
                Ok(Completion { io, result }) => {
                    if result.is_ok() {
                        take(at, &io.payload, len);
                    }
                    self.keep(io.payload);
                    result
                }
                Err(_) => Err(IoError::Aborted),
            };
            parts.push((at, len, result));
        }
        parts
    }

    /// Writes whole blocks, at most as many bytes as [`Device::burst_bytes`].
    pub(super) async fn write(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let mut begun = Vec::new();
        let mut at = offset;
        for part in data.chunks(self.transfer_bytes) {
            let mut buffer = self.buffer(part.len());
            buffer.as_mut_slice().copy_from_slice(part);
            let io = self.io(Op::Write { fua: false }, at, part.len(), buffer.into());
            begun.push(self.submit(io));
            at += part.len() as u64;
        }
        let mut all = Ok(());
        for begun in begun {
            all = all.and(self.ended(begun).await);
        }
        all
    }

    /// Makes whole blocks read as zeroes.
    pub(super) async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if !self.geometry.supports.contains(OpKind::WriteZeroes) {
            let burst = self.burst_bytes().min(len);
            let zeroes = vec![0; burst as usize];
            let mut at = offset;
            while at < offset + len {
                let part = burst.min(offset + len - at);
                self.write(at, &zeroes[..part as usize]).await?;
                at += part;
            }
            return Ok(());
        }
        let op = Op::WriteZeroes {
            unmap: true,
            fua: false,
        };
        let mut at = offset;
        while at < offset + len {
            let part = (1 << 30).min(offset + len - at) as usize;
            let io = self.io(op, at, part, Payload::None);
            self.ended(self.submit(io)).await?;
            at += part as u64;
        }
        Ok(())
    }

    /// Makes durable what has been written.
    pub(super) async fn flush(&self) -> Result<(), IoError> {
        let io = Io::new(Op::Flush, 0, 0, self.tag());
        self.ended(self.submit(io)).await
    }

    /// Bytes that one read or write may have.
    pub(super) fn burst_bytes(&self) -> u64 {
        (BUFFERS * self.transfer_bytes) as u64
    }

    async fn ended(&self, begun: oneshot::Receiver<Completion>) -> Result<(), IoError> {
        let Ok(Completion { io, result }) = begun.await else {
            return Err(IoError::Aborted);
        };
        self.keep(io.payload);
        result
    }

    fn buffer(&self, len: usize) -> IoBuf {
        let buffer = self.buffers.borrow_mut().pop();
        let mut buffer =
            buffer.expect("no call takes more than there are, and one goes on at a time");
        buffer.set_len(len);
        buffer
    }

    fn keep(&self, payload: Payload) {
        if let Payload::Buf(buffer) = payload {
            self.buffers.borrow_mut().push(buffer);
        }
    }

    fn tag(&self) -> u64 {
        self.next_tag.set(self.next_tag.get() + 1);
        self.next_tag.get()
    }

    fn io(&self, op: Op, offset: u64, len: usize, payload: Payload) -> Io {
        let block = self.block_size();
        let blocks = (len as u64 / block) as u32;
        Io::with_payload(op, offset / block, blocks, payload, self.tag())
    }

    fn submit(&self, io: Io) -> oneshot::Receiver<Completion> {
        let (waiter, begun) = oneshot::channel();
        let tag = io.tag;
        match self.channel.borrow_mut().submit(io, Instant::now()) {
            Submit::Done(completion) => drop(waiter.send(completion)),
            Submit::Pending => drop(self.waiting.borrow_mut().insert(tag, waiter)),
        }
        // It starts at the next poll.
        self.bell.0.notify_one();
        begun
    }
}

/// The descriptor, watched by the runtime; without, the device is asked again and again.
#[expect(
    deprecated,
    reason = "its successor is unsafe for descriptors that may be closed; this one is owned"
)]
fn watched(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE).ok()
}

async fn readable(fd: Option<&AsyncFd<OwnedFd>>) {
    let Some(fd) = fd else {
        return pending().await;
    };
    if let Ok(mut ready) = fd.readable().await {
        // Cleared before the channel is polled: what comes after that tells again.
        ready.clear_ready();
    }
}
