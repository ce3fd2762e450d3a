//! A module's share of the pool on one thread: its caches, its counters, its waiting requests.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64, Ordering};
use std::task::Waker;

use crate::buffer::{BufRef, CLASSES, LARGE, RESERVE, SMALL};
use crate::error::DmaError;
use crate::iobuf::IoBuf;
use crate::pool::{IobufPool, lock};
use crate::stats::{CacheStats, ChannelStats};
use crate::sync::{AtomicU32, Mutex};

/// Buffers that a cache takes from the central pool at once while it is first filled.
pub const POPULATE_BATCH: usize = 64;
/// Buffers that a cache takes from or gives back to the central pool at once later.
pub const REFILL_BATCH: usize = 32;

/// Something was put into the inbox.
const SIGNAL_SERVED: u32 = 1;
/// Someone waits: cached buffers are to be given up.
const SIGNAL_WANTED: u32 = 2;

/// How to open a channel.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// Small buffers cached. 0: each one comes from and goes to the central pool.
    pub small_cache: u32,
    /// Large buffers cached.
    pub large_cache: u32,
    /// Called, from any thread, when [`IobufChannel::poll`] has something to do.
    pub waker: Waker,
}

impl Default for ChannelOptions {
    /// The caches of a block-device module; nobody is woken.
    fn default() -> Self {
        Self {
            small_cache: 128,
            large_cache: 16,
            waker: Waker::noop().clone(),
        }
    }
}

/// One module's channel to the pool, on one thread.
///
/// Call [`IobufChannel::poll`] in every turn and whenever the waker was called, **also if this
/// channel never waits**: buffers that lie idle in its caches are given up there when others
/// wait for them. A turn with nothing to do costs one load.
pub struct IobufChannel {
    inner: Rc<ChannelInner>,
}

impl IobufChannel {
    pub(crate) fn new(inner: ChannelInner) -> Self {
        Self {
            inner: Rc::new(inner),
        }
    }

    /// A buffer of at least `len` bytes, with `len` of them in use. `None` if there is none now
    /// (or none is ever that large). Buffers come from the cache, else from the central pool.
    #[inline]
    #[must_use]
    pub fn get(&self, len: usize) -> Option<IoBuf> {
        let class = self.inner.class_of(len)?;
        let buffer = self.inner.take(class)?;
        Some(IoBuf::from_pool(buffer, Rc::clone(&self.inner), len as u32))
    }

    /// Bytes of the longest buffer.
    #[must_use]
    pub fn len_max(&self) -> usize {
        self.inner.capacity(LARGE as u8) as usize
    }

    /// A buffer as from [`IobufChannel::get`]; or `Ok(None)`, and the request waits in the pool's
    /// queue. It is served by [`IobufChannel::poll`], with `token`. A request that waits for a
    /// small buffer never takes a large one.
    ///
    /// Tokens are the caller's own; of the requests that wait, no two should have the same.
    ///
    /// # Errors
    /// [`DmaError::TooLong`] if no buffer is ever that large, [`DmaError::WaitersFull`] at the
    /// bound of the queue. Nothing is queued then.
    #[inline]
    pub fn get_or_wait(&self, len: usize, token: u64) -> Result<Option<IoBuf>, DmaError> {
        let Some(class) = self.inner.class_of(len) else {
            let large_bufsize = self.inner.capacity(LARGE as u8) as usize;
            return Err(DmaError::TooLong { len, large_bufsize });
        };
        let buffer = match self.inner.take_cached(class) {
            Some(buffer) => Some(buffer),
            None => self.inner.refill_or_wait(class, len as u32, token)?,
        };
        Ok(buffer.map(|buffer| IoBuf::from_pool(buffer, Rc::clone(&self.inner), len as u32)))
    }

    /// A buffer for CONNECT or an admin command: if there is none, one of the reserve (of small
    /// size). `None` only if that is empty too, or `len` needs a large buffer and none is free.
    #[must_use]
    pub fn get_reserved(&self, len: usize) -> Option<IoBuf> {
        let inner = &self.inner;
        let class = inner.class_of(len)?;
        let taken = inner.take_cached(class).or_else(|| inner.refill(class));
        let buffer = taken.or_else(|| {
            let reserved = (class == SMALL)
                .then(|| inner.pool.take_reserved())
                .flatten();
            let counters = &inner.shared.counters[class];
            bump(
                if reserved.is_some() {
                    &counters.main
                } else {
                    &counters.retry
                },
                1,
            );
            reserved
        })?;
        Some(IoBuf::from_pool(buffer, Rc::clone(inner), len as u32))
    }

    /// Appends the requests served since the last call, in the order in which they waited, and
    /// gives up cached buffers that others wait for. Returns the number appended.
    #[inline]
    pub fn poll(&mut self, served: &mut Vec<(u64, IoBuf)>) -> usize {
        if self.inner.shared.signal.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.poll_slow(served)
    }

    #[cold]
    fn poll_slow(&mut self, served: &mut Vec<(u64, IoBuf)>) -> usize {
        let inner = &self.inner;
        // Pairs with the release in `notify`: what was done before it is seen after this.
        let signal = inner.shared.signal.swap(0, Ordering::AcqRel);
        let before = served.len();
        if signal & SIGNAL_SERVED != 0 {
            served.extend(lock(&inner.shared.inbox).drain(..).map(|delivery| {
                let buf = IoBuf::from_pool(delivery.buffer, Rc::clone(inner), delivery.len);
                (delivery.token, buf)
            }));
        }
        if signal & SIGNAL_WANTED != 0 {
            for class in [SMALL, LARGE] {
                inner.give_up(class);
            }
        }
        served.len() - before
    }

    /// Takes a waiting request back; a buffer that was on its way to it goes to the next one.
    /// `false` if no request with this token waits.
    pub fn cancel_wait(&mut self, token: u64) -> bool {
        let inner = &self.inner;
        if inner.pool.remove_waiter(inner.shared.id, token) {
            return true;
        }
        let delivery = {
            let mut inbox = lock(&inner.shared.inbox);
            let found = inbox.iter().position(|delivery| delivery.token == token);
            found.map(|index| inbox.remove(index))
        };
        match delivery {
            Some(delivery) => {
                inner.put_slow(delivery.buffer);
                true
            }
            None => false,
        }
    }

    /// The module's name.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.inner.shared.module
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &Arc<IobufPool> {
        &self.inner.pool
    }

    /// This channel's counters.
    #[must_use]
    pub fn stats(&self) -> ChannelStats {
        self.inner.shared.stats()
    }
}

impl Drop for IobufChannel {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl fmt::Debug for IobufChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IobufChannel")
            .field("stats", &self.stats())
            .finish()
    }
}

/// What a channel and its buffers share on their thread.
pub(crate) struct ChannelInner {
    pub(crate) pool: Arc<IobufPool>,
    pub(crate) shared: Arc<ChannelShared>,
    caches: [Cache; CLASSES],
    bufsizes: [u32; CLASSES],
}

impl ChannelInner {
    pub(crate) fn new(pool: Arc<IobufPool>, shared: Arc<ChannelShared>) -> Self {
        // The reserve has no cache: what belongs to it goes straight back.
        let [small, large] = shared.cache_sizes.map(Cache::new);
        let bufsizes = pool.bufsizes();
        Self {
            pool,
            shared,
            caches: [small, large, Cache::new(0)],
            bufsizes,
        }
    }

    /// Bytes of a buffer of a class.
    #[inline]
    pub(crate) fn capacity(&self, class: u8) -> u32 {
        self.bufsizes[class as usize]
    }

    #[inline]
    fn class_of(&self, len: usize) -> Option<usize> {
        if len <= self.bufsizes[SMALL] as usize {
            Some(SMALL)
        } else if len <= self.bufsizes[LARGE] as usize {
            Some(LARGE)
        } else {
            None
        }
    }

    #[inline]
    fn take(&self, class: usize) -> Option<BufRef> {
        if let Some(buffer) = self.take_cached(class) {
            return Some(buffer);
        }
        let buffer = self.refill(class);
        if buffer.is_none() {
            bump(&self.shared.counters[class].retry, 1);
        }
        buffer
    }

    #[inline]
    fn take_cached(&self, class: usize) -> Option<BufRef> {
        let cache = &self.caches[class];
        let buffer = cache.pop()?;
        let counters = &self.shared.counters[class];
        bump(&counters.cache, 1);
        counters.cached.store(cache.len.get(), Ordering::Relaxed);
        Some(buffer)
    }

    /// Takes back a buffer that nobody uses any more.
    #[inline]
    pub(crate) fn put(&self, buffer: BufRef) {
        let class = buffer.meta().class as usize;
        // A stale zero is harmless: whoever began to wait has signalled this channel, and its
        // next poll gives the buffer up.
        if self.pool.waiting(class) == 0 && self.caches[class].push(buffer) {
            let cached = self.caches[class].len.get();
            self.shared.counters[class]
                .cached
                .store(cached, Ordering::Relaxed);
        } else {
            self.put_slow(buffer);
        }
    }

    /// To the first waiter; else to the central pool, with a batch from the cache if it is full.
    #[cold]
    fn put_slow(&self, buffer: BufRef) {
        let class = buffer.meta().class as usize;
        let cache = &self.caches[class];
        let surplus = if cache.is_full() {
            REFILL_BATCH.min(cache.limit.get() as usize)
        } else {
            0
        };
        let batch = std::iter::once(buffer).chain(std::iter::from_fn(|| cache.pop()).take(surplus));
        self.pool.give(class, batch);
        self.shared.counters[class]
            .cached
            .store(cache.len.get(), Ordering::Relaxed);
    }

    #[cold]
    fn refill(&self, class: usize) -> Option<BufRef> {
        let cache = &self.caches[class];
        let buffer = self
            .pool
            .take(class, cache.refill_size(), |buffer| cache.must_push(buffer));
        self.count_refill(class, buffer.is_some());
        buffer
    }

    #[cold]
    fn refill_or_wait(
        &self,
        class: usize,
        len: u32,
        token: u64,
    ) -> Result<Option<BufRef>, DmaError> {
        let cache = &self.caches[class];
        let waiter = Waiter {
            channel: Arc::clone(&self.shared),
            token,
            len,
        };
        let extra = cache.refill_size();
        let buffer = self
            .pool
            .take_or_wait(class, extra, waiter, |buffer| cache.must_push(buffer));
        self.count_refill(class, matches!(buffer, Ok(Some(_))));
        if !matches!(buffer, Ok(Some(_))) {
            bump(&self.shared.counters[class].retry, 1);
        }
        buffer
    }

    fn count_refill(&self, class: usize, got: bool) {
        if got {
            let counters = &self.shared.counters[class];
            bump(&counters.main, 1);
            counters
                .cached
                .store(self.caches[class].len.get(), Ordering::Relaxed);
        }
    }

    /// Fills the caches as far as the central pool can now. The rest comes as buffers return.
    pub(crate) fn populate(&self) {
        for class in [SMALL, LARGE] {
            let cache = &self.caches[class];
            while !cache.is_full() {
                let room = (cache.limit.get() - cache.len.get()) as usize;
                let batch = room.min(POPULATE_BATCH);
                if self
                    .pool
                    .take_batch(class, batch, |buffer| cache.must_push(buffer))
                    < batch
                {
                    break;
                }
            }
            self.shared.counters[class]
                .cached
                .store(cache.len.get(), Ordering::Relaxed);
        }
    }

    /// Gives cached buffers to those who wait, until nobody waits or nothing is cached.
    ///
    /// Who joins a queue that is not empty signals nobody. So this must not stop before it has
    /// seen the queue empty after its last visit to the pool: the next to join then signals.
    fn give_up(&self, class: usize) {
        let cache = &self.caches[class];
        loop {
            let wanted = self.pool.waiting(class) as usize;
            if wanted == 0 || cache.len.get() == 0 {
                break;
            }
            self.pool
                .give(class, std::iter::from_fn(|| cache.pop()).take(wanted));
        }
        self.shared.counters[class]
            .cached
            .store(cache.len.get(), Ordering::Relaxed);
    }

    /// The channel goes; its buffers in use come back to the central pool from now on.
    fn close(&self) {
        self.pool.close_channel(&self.shared);
        // Nothing is delivered any more: the pool has forgotten this channel.
        let deliveries = std::mem::take(&mut *lock(&self.shared.inbox));
        for class in [SMALL, LARGE] {
            let cache = &self.caches[class];
            cache.limit.set(0);
            self.pool.give(class, std::iter::from_fn(|| cache.pop()));
        }
        for delivery in deliveries {
            self.put_slow(delivery.buffer);
        }
    }
}

/// A stack of buffers, of a fixed capacity. It belongs to one thread.
struct Cache {
    slots: Box<[Cell<Option<BufRef>>]>,
    len: Cell<u32>,
    /// Number of slots; 0 once the channel is closed.
    limit: Cell<u32>,
}

impl Cache {
    fn new(size: u32) -> Self {
        let slots = (0..size).map(|_| Cell::new(None)).collect();
        Self {
            slots,
            len: Cell::new(0),
            limit: Cell::new(size),
        }
    }

    #[inline]
    fn pop(&self) -> Option<BufRef> {
        let len = self.len.get().checked_sub(1)?;
        self.len.set(len);
        self.slots.get(len as usize)?.get()
    }

    #[inline]
    fn push(&self, buffer: BufRef) -> bool {
        let len = self.len.get();
        if len >= self.limit.get() {
            return false;
        }
        let Some(slot) = self.slots.get(len as usize) else {
            return false;
        };
        slot.set(Some(buffer));
        self.len.set(len + 1);
        true
    }

    fn must_push(&self, buffer: BufRef) {
        let pushed = self.push(buffer);
        assert!(
            pushed,
            "no more buffers are taken than the cache has room for"
        );
    }

    fn is_full(&self) -> bool {
        self.len.get() >= self.limit.get()
    }

    /// Buffers to take along when one is needed and the cache is empty.
    fn refill_size(&self) -> usize {
        ((self.limit.get() - self.len.get()) as usize).min(REFILL_BATCH - 1)
    }
}

/// What other threads see of a channel.
pub(crate) struct ChannelShared {
    pub(crate) id: u64,
    pub(crate) module: Arc<str>,
    /// Sizes of the small and the large cache.
    pub(crate) cache_sizes: [u32; 2],
    counters: [Counters; CLASSES],
    /// Served requests, until the channel polls.
    inbox: Mutex<Vec<Delivery>>,
    /// `SIGNAL_` bits: why the channel should poll.
    signal: AtomicU32,
    waker: Waker,
}

impl ChannelShared {
    pub(crate) fn new(id: u64, module: &str, options: ChannelOptions) -> Self {
        Self {
            id,
            module: Arc::from(module),
            cache_sizes: [options.small_cache, options.large_cache],
            counters: Default::default(),
            inbox: Mutex::new(Vec::new()),
            signal: AtomicU32::new(0),
            waker: options.waker,
        }
    }

    /// Puts a served request into the inbox. `true` if the channel is to be woken.
    pub(crate) fn deliver(&self, delivery: Delivery) -> bool {
        lock(&self.inbox).push(delivery);
        self.notify(SIGNAL_SERVED)
    }

    /// Asks for cached buffers of a class. `true` if the channel is to be woken.
    pub(crate) fn want(&self, class: usize) -> bool {
        self.cache_sizes.get(class).is_some_and(|size| *size > 0) && self.notify(SIGNAL_WANTED)
    }

    /// A channel that was signalled and has not polled since needs no second wake.
    fn notify(&self, signal: u32) -> bool {
        self.signal.fetch_or(signal, Ordering::AcqRel) & signal == 0
    }

    pub(crate) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    pub(crate) fn stats(&self) -> ChannelStats {
        let of = |class: usize| {
            let counters = &self.counters[class];
            CacheStats {
                cache: counters.cache.load(Ordering::Relaxed),
                main: counters.main.load(Ordering::Relaxed),
                retry: counters.retry.load(Ordering::Relaxed),
                cache_size: self.cache_sizes[class],
                cached: counters.cached.load(Ordering::Relaxed),
            }
        };
        ChannelStats {
            id: self.id,
            module: self.module.to_string(),
            small: of(SMALL),
            large: of(LARGE),
        }
    }
}

/// Written by the channel's thread only, read by anyone.
#[derive(Default)]
struct Counters {
    cache: AtomicU64,
    main: AtomicU64,
    retry: AtomicU64,
    cached: atomic::AtomicU32,
}

/// Adds to a counter that only this thread writes: no locked instruction is needed.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// A request that waits.
pub(crate) struct Waiter {
    pub(crate) channel: Arc<ChannelShared>,
    pub(crate) token: u64,
    pub(crate) len: u32,
}

/// A request that was served.
pub(crate) struct Delivery {
    pub(crate) token: u64,
    pub(crate) buffer: BufRef,
    pub(crate) len: u32,
}

const _: () = assert!(RESERVE == CLASSES - 1, "the classes with caches come first");
