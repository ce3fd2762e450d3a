//! Events of devices, for every poll group that has connections there.
//!
//! A device gives each of its events once. Whoever fetches one hands it to all the others.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use verbs::{AsyncEventKind, Device};

/// Events that a poll group has not looked at; more drop the oldest.
const PENDING_MAX: usize = 1024;

/// Where events of one device are shared.
#[derive(Debug)]
pub(crate) struct DeviceEvents {
    device: Arc<dyn Device>,
    /// Counts the events, so that who has seen them all need not take the lock.
    version: AtomicU64,
    subscribers: Mutex<Vec<Arc<Subscriber>>>,
}

#[derive(Debug)]
struct Subscriber {
    pending: Mutex<VecDeque<AsyncEventKind>>,
    wake: EventFd,
}

/// One poll group's share.
#[derive(Debug)]
pub(crate) struct Subscription {
    events: Arc<DeviceEvents>,
    subscriber: Arc<Subscriber>,
    seen: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceEvents {
    pub(crate) fn new(device: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self {
            device,
            version: AtomicU64::new(0),
            subscribers: Mutex::default(),
        })
    }

    pub(crate) fn subscribe(self: &Arc<Self>) -> std::io::Result<Subscription> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let subscriber = Arc::new(Subscriber {
            pending: Mutex::default(),
            wake: EventFd::from_value_and_flags(0, flags)?,
        });
        lock(&self.subscribers).push(Arc::clone(&subscriber));
        Ok(Subscription {
            events: Arc::clone(self),
            subscriber,
            seen: 0,
        })
    }

    /// Fetches what the device has to tell, for everyone.
    fn fetch(&self) {
        while let Some(event) = self.device.poll_async_event() {
            self.tell(event.kind);
        }
    }

    /// Has every group see an event.
    pub(crate) fn tell(&self, kind: AsyncEventKind) {
        for subscriber in lock(&self.subscribers).iter() {
            let mut pending = lock(&subscriber.pending);
            if pending.len() == PENDING_MAX {
                pending.pop_front();
            }
            pending.push_back(kind);
            // It is full only after 2^64 notes.
            let _ = subscriber.wake.write(1);
        }
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl Subscription {
    /// Looks for events of the device; appends those that this group has not seen.
    pub(crate) fn poll(&mut self, events: &mut Vec<AsyncEventKind>) {
        self.events.fetch();
        let version = self.events.version.load(Ordering::Acquire);
        if version == self.seen {
            return;
        }
        self.seen = version;
        let _ = self.subscriber.wake.read();
        events.extend(lock(&self.subscriber.pending).drain(..));
    }

    /// Readable when another group has fetched an event.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.subscriber.wake.as_fd()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.events.subscribers).retain(|other| !Arc::ptr_eq(other, &self.subscriber));
    }
}
