//! The namespace of a drive as a block device that outlives the drive.
//!
//! A drive can be pulled out, fail or be bound anew. Hosts keep their namespaces meanwhile: I/O is
//! answered `Removed`, and goes on once the same namespace is there again.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use block::{
    BlockDevice, BlockError, Channel, ChannelContext, Completion, Geometry, Io, IoError, Submit,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nvme_driver::NvmeNamespace;

/// A namespace under a name, with the drive or without.
#[derive(Debug)]
pub(super) struct DriveDevice {
    name: String,
    /// As it was when it was there first. A resize changes `block_count` only.
    geometry: Geometry,
    block_count: AtomicU64,
    nguid: [u8; 16],
    eui64: [u8; 8],
    shared: Arc<Shared>,
}

/// What channels look at.
#[derive(Debug, Default)]
struct Shared {
    /// Grows when the namespace comes or goes.
    version: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    namespace: Option<Arc<NvmeNamespace>>,
    wakers: BTreeMap<u64, Waker>,
    next_waker: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held left plain data behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DriveDevice {
    pub(super) fn new(name: &str, namespace: &Arc<NvmeNamespace>) -> Arc<Self> {
        let geometry = namespace.geometry();
        let device = Self {
            name: name.to_owned(),
            geometry,
            block_count: AtomicU64::new(geometry.block_count),
            nguid: namespace.nguid(),
            eui64: namespace.eui64(),
            shared: Arc::default(),
        };
        device.shared.lock().namespace = Some(Arc::clone(namespace));
        Arc::new(device)
    }

    /// Why the namespace cannot take the place of the one that was there first.
    pub(super) fn differs(&self, namespace: &NvmeNamespace) -> Option<&'static str> {
        let (old, new) = (&self.geometry, namespace.geometry());
        if self.nguid != namespace.nguid() || self.eui64 != namespace.eui64() {
            return Some("another namespace is in its place");
        }
        if old.block_size != new.block_size {
            return Some("it was formatted with another block size");
        }
        let like_old = Geometry {
            block_count: old.block_count,
            read_only: old.read_only,
            ..new
        };
        (*old != like_old).then_some("it has other limits than before")
    }

    /// The namespace comes, or goes. True when that changed something.
    pub(super) fn set(&self, namespace: Option<&Arc<NvmeNamespace>>) -> bool {
        let mut state = self.shared.lock();
        let is_same = match (&state.namespace, namespace) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return false;
        }
        let old = std::mem::replace(&mut state.namespace, namespace.cloned());
        self.shared.version.fetch_add(1, Ordering::Release);
        for waker in state.wakers.values() {
            waker.wake_by_ref();
        }
        drop(state);
        drop(old);
        true
    }

    pub(super) fn set_block_count(&self, block_count: u64) {
        self.block_count.store(block_count, Ordering::Relaxed);
    }

    pub(super) fn is_there(&self) -> bool {
        self.shared.lock().namespace.is_some()
    }
}

impl BlockDevice for DriveDevice {
    fn kind(&self) -> &'static str {
        "nvme"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_count: self.block_count.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    fn open_channel(&self, context: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|error| BlockError::Channel {
                device: self.name.clone(),
                reason: format!("no descriptor to sleep on: {error}"),
            })?;
        let waker = {
            let mut state = self.shared.lock();
            let waker = state.next_waker;
            state.next_waker += 1;
            state.wakers.insert(waker, context.waker.clone());
            waker
        };
        let mut channel = DriveChannel {
            name: self.name.clone(),
            shared: Arc::clone(&self.shared),
            context: context.clone(),
            waker,
            // Of no version: it looks at once.
            version: u64::MAX,
            inner: None,
            epoll,
            sleeps: false,
            polled: None,
        };
        channel.renew()?;
        Ok(Box::new(channel))
    }

    /// The size is the drive's: only what it says itself is taken.
    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        if block_count == self.block_count.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(BlockError::ResizeUnsupported { kind: self.kind() })
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let namespace = self.shared.lock().namespace.clone();
        namespace.map_or_else(Vec::new, |namespace| namespace.details())
    }
}

struct DriveChannel {
    name: String,
    shared: Arc<Shared>,
    context: ChannelContext,
    waker: u64,
    version: u64,
    inner: Option<Box<dyn Channel>>,
    /// Holds the descriptor of `inner`, and stays the same when that changes.
    epoll: Epoll,
    /// `inner` has a descriptor.
    sleeps: bool,
    polled: Option<Instant>,
}

impl DriveChannel {
    #[inline]
    fn is_current(&self) -> bool {
        self.version == self.shared.version.load(Ordering::Acquire)
    }

    /// Goes on with the namespace that is there now, or without. What is in flight ends first.
    #[cold]
    fn renew(&mut self) -> Result<(), BlockError> {
        if self
            .inner
            .as_ref()
            .is_some_and(|inner| inner.in_flight() > 0)
        {
            return Ok(());
        }
        if let Some(old) = self.inner.take()
            && let Some(fd) = old.wake_fd()
        {
            // Fails only if it is not in there.
            let _ = self.epoll.delete(fd);
        }
        self.sleeps = false;
        let (version, namespace) = {
            let state = self.shared.lock();
            let version = self.shared.version.load(Ordering::Acquire);
            (version, state.namespace.clone())
        };
        self.version = version;
        let Some(namespace) = namespace else {
            return Ok(());
        };
        let inner = namespace.open_channel(&self.context)?;
        if let Some(fd) = inner.wake_fd() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
            self.sleeps = self.epoll.add(fd, event).is_ok();
        }
        self.inner = Some(inner);
        Ok(())
    }

    #[cold]
    fn catch_up(&mut self) {
        if let Err(error) = self.renew() {
            // Without a channel its I/O ends as on a drive that is gone, until the next change.
            let bdev = &self.name;
            tracing::error!(bdev, %error, "no channel to the drive that has come back");
        }
    }
}

impl Channel for DriveChannel {
    #[inline]
    fn submit(&mut self, io: Io, now: Instant) -> Submit {
        if !self.is_current() {
            self.catch_up();
        }
        match &mut self.inner {
            // The old one, while its last I/O ends, takes no more.
            Some(inner) if self.version == self.shared.version.load(Ordering::Acquire) => {
                inner.submit(io, now)
            }
            _ => Submit::Done(io.complete(Err(IoError::Removed))),
        }
    }

    #[inline]
    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        self.polled = Some(now);
        if let Some(inner) = &mut self.inner {
            inner.poll(now, done);
        }
        if !self.is_current() {
            for completion in &mut done[before..] {
                // Shut down so that it can be taken away.
                if completion.result == Err(IoError::Aborted) {
                    completion.result = Err(IoError::Removed);
                }
            }
            self.catch_up();
        }
        done.len() - before
    }

    fn next_deadline(&self) -> Option<Instant> {
        let inner = self.inner.as_ref()?;
        if !self.sleeps && inner.in_flight() > 0 {
            // Nothing tells when it has ended: no sleep.
            return self.polled;
        }
        inner.next_deadline()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }

    fn is_quiet(&self) -> bool {
        self.is_current() && self.inner.as_ref().is_none_or(|inner| inner.is_quiet())
    }

    fn abort(&mut self, tag: u64) -> bool {
        let inner = self.inner.as_mut();
        inner.is_some_and(|inner| inner.abort(tag))
    }

    fn in_flight(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.in_flight())
    }
}

impl Drop for DriveChannel {
    fn drop(&mut self) {
        self.shared.lock().wakers.remove(&self.waker);
    }
}
