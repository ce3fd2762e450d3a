//! The central pool: what no channel has cached, and the queue of those who wait.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::buffer::{BufRef, CLASSES, Carved, LARGE, Meta, RESERVE, SMALL};
use crate::channel::{ChannelInner, ChannelOptions, ChannelShared, Delivery, IobufChannel, Waiter};
use crate::error::DmaError;
use crate::planner::{PlanPools, PoolKind, Refusal, Shortage, Term};
use crate::region::{BackingPreference, Region, RegionOptions};
use crate::stats::{ClassStats, ModuleStats, PoolStats};
use crate::sync::{AtomicU32, Mutex, MutexGuard};
use crate::sys::{MIB_2, PAGE};

/// Most channels of one pool.
pub const MAX_CHANNELS: usize = 4096;
/// Most regions of one pool: one, and one for each time that it grew.
pub const MAX_REGIONS: usize = 256;
/// Greatest `large_bufsize`.
const MAX_BUFSIZE: u32 = 1 << 30;

/// How to make an [`IobufPool`]. Names and defaults are those of SPDK's `iobuf_set_options`,
/// where it has them.
#[derive(Debug, Clone)]
pub struct IobufOptions {
    /// Small buffers, the reserve included.
    pub small_pool_count: u32,
    /// Bytes of a small buffer, a multiple of 4096.
    pub small_bufsize: u32,
    /// Large buffers.
    pub large_pool_count: u32,
    /// Bytes of a large buffer, a multiple of 4096.
    pub large_bufsize: u32,
    /// Small buffers kept for CONNECT and admin commands.
    pub reserve_small: u32,
    /// Requests that may wait for buffers of one size, over all channels.
    pub max_waiters: u32,
    /// What the memory is made of.
    pub backing: BackingPreference,
    /// The NUMA node that the memory is taken from.
    pub numa_node: Option<u32>,
}

impl Default for IobufOptions {
    fn default() -> Self {
        Self {
            small_pool_count: 8192,
            small_bufsize: 8192,
            large_pool_count: 1024,
            large_bufsize: 135_168,
            reserve_small: 64,
            max_waiters: 65_536,
            backing: BackingPreference::Auto,
            numa_node: None,
        }
    }
}

/// The buffers of a process, small and large, shared by all its threads.
///
/// Threads work through channels ([`IobufPool::channel`]), which cache buffers; only every so
/// many buffers does a channel come here and take the lock.
///
/// **Waiting.** Requests that find no buffer wait in one queue per size, first come, first
/// served, over all channels. While anyone waits, a buffer that comes back goes to the first
/// waiter before any cache, and channels with cached buffers are woken to give them up.
pub struct IobufPool {
    options: IobufOptions,
    /// Length of each queue of waiters. Written under the lock, read on every put.
    waiting: [AtomicU32; CLASSES],
    central: Mutex<Central>,
}

struct Central {
    classes: [CentralClass; CLASSES],
    /// Records of all buffers carved so far.
    carved: Vec<Carved>,
    regions: Vec<Arc<Region>>,
    /// Open channels; replaced when that changes, so that it can be read without the lock.
    channels: Arc<[Arc<ChannelShared>]>,
    /// Sums of closed channels.
    closed: Vec<ModuleStats>,
    next_channel: u64,
}

#[derive(Default)]
struct CentralClass {
    free: Vec<BufRef>,
    /// Memory not yet carved into buffers: nothing has touched it.
    uncarved: VecDeque<Extent>,
    uncarved_count: usize,
    total: u64,
    /// The fewest that ever were free.
    free_min: u64,
    /// Buffers that the caches of open channels may hold.
    committed: u64,
    waiters: VecDeque<Waiter>,
}

/// A run of buffers that are not carved yet.
struct Extent {
    region_index: u32,
    offset: usize,
    count: usize,
}

impl IobufPool {
    /// Makes the pool. With hugepages all memory is resident on return; with 4 KiB pages it
    /// becomes so page by page, as buffers are first used.
    ///
    /// # Errors
    /// An option out of range, or memory that cannot be had.
    pub fn new(options: IobufOptions) -> Result<Arc<Self>, DmaError> {
        check(&options)?;
        let small = options.small_pool_count - options.reserve_small;
        let central = Central {
            classes: Default::default(),
            carved: Vec::new(),
            regions: Vec::new(),
            channels: Arc::default(),
            closed: Vec::new(),
            next_channel: 0,
        };
        let pool = Self {
            options,
            waiting: Default::default(),
            central: Mutex::new(central),
        };
        pool.add([
            small,
            pool.options.large_pool_count,
            pool.options.reserve_small,
        ])?;
        for class in &mut lock(&pool.central).classes {
            class.free_min = class.free_count();
        }
        Ok(Arc::new(pool))
    }

    /// The options that it was made with. Counts grow with [`IobufPool::grow`].
    #[must_use]
    pub fn options(&self) -> &IobufOptions {
        &self.options
    }

    /// Opens a channel for a module on the calling thread, and fills its caches.
    ///
    /// # Errors
    /// [`DmaError::DoesNotFit`] if the caches of all open channels and this one are together more
    /// than the pool has; it names the sum. What is in use at the moment does not matter.
    pub fn channel(
        self: &Arc<Self>,
        module: &str,
        options: ChannelOptions,
    ) -> Result<IobufChannel, DmaError> {
        let shared = {
            let mut central = lock(&self.central);
            central.admit(module, &options).map_err(|refusal| {
                let module = module.to_owned();
                DmaError::DoesNotFit { module, refusal }
            })?;
            let id = central.next_channel;
            central.next_channel += 1;
            central.classes[SMALL].committed += u64::from(options.small_cache);
            central.classes[LARGE].committed += u64::from(options.large_cache);
            let shared = Arc::new(ChannelShared::new(id, module, options));
            let more = central
                .channels
                .iter()
                .cloned()
                .chain([Arc::clone(&shared)]);
            central.channels = more.collect();
            shared
        };
        let inner = ChannelInner::new(Arc::clone(self), shared);
        inner.populate();
        Ok(IobufChannel::new(inner))
    }

    /// Adds buffers while the pool is in use; who waits is served at once.
    ///
    /// # Errors
    /// Memory that cannot be had, or [`MAX_REGIONS`]. The pool is unchanged then.
    pub fn grow(&self, small: u32, large: u32) -> Result<(), DmaError> {
        if small == 0 && large == 0 {
            return Ok(());
        }
        self.add([small, large, 0])
    }

    /// The pool's regions, for registration with devices and rings; a pool that grew has more.
    /// [`crate::IoBuf::region_index`] is an index into this.
    #[must_use]
    pub fn regions(&self) -> Vec<Arc<Region>> {
        lock(&self.central).regions.clone()
    }

    /// How many regions it has: whether it grew. Takes the pool's short lock, allocates nothing.
    #[must_use]
    pub fn region_count(&self) -> usize {
        lock(&self.central).regions.len()
    }

    /// Sentences about what could not be had as asked, one per region concerned.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let central = lock(&self.central);
        central
            .regions
            .iter()
            .filter_map(|region| region.notice().map(str::to_owned))
            .collect()
    }

    /// Counts as the planner wants them, growth included.
    #[must_use]
    pub fn plan_pools(&self) -> PlanPools {
        let central = lock(&self.central);
        let count = |class: usize| u32::try_from(central.classes[class].total).unwrap_or(u32::MAX);
        PlanPools {
            small_pool_count: count(SMALL).saturating_add(count(RESERVE)),
            large_pool_count: count(LARGE),
            reserve_small: count(RESERVE),
        }
    }

    /// Totals and counters.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let central = lock(&self.central);
        let channels: Vec<_> = central
            .channels
            .iter()
            .map(|channel| channel.stats())
            .collect();
        let mut modules = central.closed.clone();
        for channel in &channels {
            let sum = module_entry(&mut modules, &channel.module);
            sum.channels += 1;
            sum.small.add(&channel.small);
            sum.large.add(&channel.large);
        }
        let class = |index: usize, cached: u64| {
            let class = &central.classes[index];
            ClassStats {
                bufsize: self.bufsizes()[index],
                total: class.total,
                free: class.free_count(),
                free_min: class.free_min,
                cached,
                cache_size: class.committed,
                waiting: class.waiters.len() as u64,
            }
        };
        PoolStats {
            small: class(
                SMALL,
                channels.iter().map(|c| u64::from(c.small.cached)).sum(),
            ),
            large: class(
                LARGE,
                channels.iter().map(|c| u64::from(c.large.cached)).sum(),
            ),
            reserve_total: central.classes[RESERVE].total,
            reserve_free: central.classes[RESERVE].free_count(),
            channels,
            modules,
        }
    }

    pub(crate) fn bufsizes(&self) -> [u32; CLASSES] {
        let IobufOptions {
            small_bufsize,
            large_bufsize,
            ..
        } = self.options;
        [small_bufsize, large_bufsize, small_bufsize]
    }

    /// Requests that wait for a class. May be stale on other threads than those it tells about.
    #[inline]
    pub(crate) fn waiting(&self, class: usize) -> u32 {
        self.waiting[class].load(Ordering::Relaxed)
    }

    /// One buffer, and up to `extra` more for the cache.
    pub(crate) fn take(
        &self,
        class: usize,
        extra: usize,
        cache: impl FnMut(BufRef),
    ) -> Option<BufRef> {
        lock(&self.central).take_some(self, class, extra, cache)
    }

    /// As `take`; if there is none, `waiter` joins the queue.
    pub(crate) fn take_or_wait(
        &self,
        class: usize,
        extra: usize,
        waiter: Waiter,
        cache: impl FnMut(BufRef),
    ) -> Result<Option<BufRef>, DmaError> {
        let (others, own) = {
            let mut central = lock(&self.central);
            if let Some(buffer) = central.take_some(self, class, extra, cache) {
                return Ok(Some(buffer));
            }
            let waiters = &mut central.classes[class].waiters;
            let bound = self.options.max_waiters as usize;
            if waiters.len() >= bound {
                let pool = if class == LARGE {
                    PoolKind::Large
                } else {
                    PoolKind::Small
                };
                return Err(DmaError::WaitersFull {
                    pool: pool.name(),
                    bound,
                });
            }
            let own = waiter.channel.id;
            waiters.push_back(waiter);
            let is_first = waiters.len() == 1;
            self.note_waiting(class, &central);
            if !is_first {
                return Ok(None);
            }
            (Arc::clone(&central.channels), own)
        };
        // The first to wait asks all others for what lies in their caches. Later ones need not:
        // whoever polls after this sees the queue, and gives to it what comes back.
        for other in others.iter().filter(|other| other.id != own) {
            if other.want(class) {
                other.wake();
            }
        }
        Ok(None)
    }

    /// Up to `count` buffers for a cache; returns how many there were.
    pub(crate) fn take_batch(
        &self,
        class: usize,
        count: usize,
        mut cache: impl FnMut(BufRef),
    ) -> usize {
        let mut central = lock(&self.central);
        for taken in 0..count {
            let Some(buffer) = central.take_one(self, class) else {
                return taken;
            };
            cache(buffer);
        }
        count
    }

    pub(crate) fn take_reserved(&self) -> Option<BufRef> {
        lock(&self.central).take_one(self, RESERVE)
    }

    /// Takes buffers of one class back: each to the first waiter, if there is one.
    pub(crate) fn give(&self, class: usize, buffers: impl Iterator<Item = BufRef>) {
        let mut wakes = Vec::new();
        let mut central = lock(&self.central);
        for buffer in buffers {
            debug_assert_eq!(buffer.meta().class as usize, class);
            central.give_one(class, buffer, &mut wakes);
        }
        self.note_waiting(class, &central);
        drop(central);
        wakes.iter().for_each(|channel| channel.wake());
    }

    /// Takes a waiter out of whichever queue it is in.
    pub(crate) fn remove_waiter(&self, channel: u64, token: u64) -> bool {
        let mut central = lock(&self.central);
        for class in [SMALL, LARGE] {
            let waiters = &mut central.classes[class].waiters;
            let found = waiters
                .iter()
                .position(|w| w.channel.id == channel && w.token == token);
            if let Some(index) = found {
                waiters.remove(index);
                self.note_waiting(class, &central);
                return true;
            }
        }
        false
    }

    /// Forgets a channel: it waits for nothing and is delivered nothing any more.
    pub(crate) fn close_channel(&self, shared: &Arc<ChannelShared>) {
        let mut central = lock(&self.central);
        for class in [SMALL, LARGE] {
            let cache_size = u64::from(shared.cache_sizes[class]);
            let of_class = &mut central.classes[class];
            of_class.committed -= cache_size;
            of_class
                .waiters
                .retain(|waiter| waiter.channel.id != shared.id);
            self.note_waiting(class, &central);
        }
        let rest = central
            .channels
            .iter()
            .filter(|channel| channel.id != shared.id);
        central.channels = rest.cloned().collect();
        let mut last = shared.stats();
        for cache in [&mut last.small, &mut last.large] {
            (cache.cache_size, cache.cached) = (0, 0);
        }
        let sum = module_entry(&mut central.closed, &last.module);
        sum.small.add(&last.small);
        sum.large.add(&last.large);
    }

    /// Maps a region for more buffers of each class, and serves who waits.
    fn add(&self, counts: [u32; CLASSES]) -> Result<(), DmaError> {
        let too_long = DmaError::RegionLength {
            len: usize::MAX,
            why: "counts times sizes of iobufs are beyond the address space",
        };
        let mut len = 0usize;
        let mut offsets = [0; CLASSES];
        for class in 0..CLASSES {
            offsets[class] = len;
            let bytes = (counts[class] as usize).checked_mul(self.bufsizes()[class] as usize);
            let Some(end) = bytes.and_then(|bytes| bytes.checked_add(len)) else {
                return Err(too_long);
            };
            len = end;
        }
        // Checked again below; here it saves mapping memory for nothing.
        if lock(&self.central).regions.len() >= MAX_REGIONS {
            return Err(DmaError::TooManyRegions { bound: MAX_REGIONS });
        }
        let region = Region::allocate_sliced(&RegionOptions {
            len,
            backing: self.options.backing,
            address: None,
            numa_node: self.options.numa_node,
            prefault: false,
            // Where memory is 4 KiB pages it grows by what is used, not by 2 MiB.
            transparent_huge: Some(false),
        })?;
        let mut wakes = Vec::new();
        let mut central = lock(&self.central);
        if central.regions.len() >= MAX_REGIONS {
            return Err(DmaError::TooManyRegions { bound: MAX_REGIONS });
        }
        let region_index = central.regions.len() as u32;
        central.regions.push(region);
        for class in 0..CLASSES {
            let count = counts[class] as usize;
            if count > 0 {
                let extent = Extent {
                    region_index,
                    offset: offsets[class],
                    count,
                };
                central.classes[class].add(extent);
            }
        }
        for class in [SMALL, LARGE] {
            while !central.classes[class].waiters.is_empty() {
                let Some(buffer) = central.take_one(self, class) else {
                    break;
                };
                central.give_one(class, buffer, &mut wakes);
            }
            self.note_waiting(class, &central);
        }
        drop(central);
        wakes.iter().for_each(|channel| channel.wake());
        Ok(())
    }

    fn note_waiting(&self, class: usize, central: &Central) {
        // `max_waiters` is a u32.
        let waiting = central.classes[class].waiters.len() as u32;
        self.waiting[class].store(waiting, Ordering::Relaxed);
    }
}

impl fmt::Debug for IobufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IobufPool")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Central {
    /// Whether the caches of a new channel fit beside those of the open ones.
    fn admit(&self, module: &str, options: &ChannelOptions) -> Result<(), Refusal> {
        if self.channels.len() >= MAX_CHANNELS {
            let needed = self.channels.len() as u64 + 1;
            return Err(Refusal::Channels {
                needed,
                bound: MAX_CHANNELS as u64,
            });
        }
        let asked = [options.small_cache, options.large_cache];
        for (class, pool) in [(SMALL, PoolKind::Small), (LARGE, PoolKind::Large)] {
            let CentralClass {
                total, committed, ..
            } = self.classes[class];
            if committed + u64::from(asked[class]) <= total {
                continue;
            }
            let reserve = if class == SMALL {
                self.classes[RESERVE].total
            } else {
                0
            };
            let mut terms: Vec<Term> = Vec::new();
            let open = self
                .channels
                .iter()
                .map(|c| (&*c.module, c.cache_sizes[class]));
            for (name, each) in open.chain([(module, asked[class])]) {
                let each = u64::from(each);
                match terms
                    .iter_mut()
                    .find(|term| term.name == name && term.each == each)
                {
                    Some(term) => term.channels += 1,
                    None if each > 0 => {
                        terms.push(Term {
                            name: name.to_owned(),
                            channels: 1,
                            each,
                        });
                    }
                    None => {}
                }
            }
            let needed = committed + u64::from(asked[class]) + reserve;
            let have = total + reserve;
            return Err(Shortage {
                pool,
                terms,
                reserve,
                needed,
                have,
            }
            .into());
        }
        Ok(())
    }

    fn take_some(
        &mut self,
        pool: &IobufPool,
        class: usize,
        extra: usize,
        mut cache: impl FnMut(BufRef),
    ) -> Option<BufRef> {
        let first = self.take_one(pool, class)?;
        // What is scarce is not hoarded: a cache takes at most half of what is left.
        let left = self.classes[class].free_count() / 2;
        for _ in 0..extra.min(usize::try_from(left).unwrap_or(usize::MAX)) {
            cache(self.take_one(pool, class)?);
        }
        Some(first)
    }

    fn take_one(&mut self, pool: &IobufPool, class: usize) -> Option<BufRef> {
        if self.classes[class].free.is_empty() {
            self.carve(class, pool.bufsizes()[class] as usize);
        }
        let of_class = &mut self.classes[class];
        let buffer = of_class.free.pop()?;
        of_class.free_min = of_class.free_min.min(of_class.free_count());
        Some(buffer)
    }

    fn give_one(&mut self, class: usize, buffer: BufRef, wakes: &mut Vec<Arc<ChannelShared>>) {
        let of_class = &mut self.classes[class];
        let Some(Waiter {
            channel,
            token,
            len,
        }) = of_class.waiters.pop_front()
        else {
            return of_class.free.push(buffer);
        };
        if channel.deliver(Delivery { token, buffer, len }) {
            wakes.push(channel);
        }
    }

    /// Makes buffers of the next 2 MiB of memory, if there is any that is not carved.
    fn carve(&mut self, class: usize, bufsize: usize) {
        let of_class = &mut self.classes[class];
        let Some(extent) = of_class.uncarved.front_mut() else {
            return;
        };
        let count = extent.count.min((MIB_2 / bufsize).max(1));
        let region = &self.regions[extent.region_index as usize];
        let metas = (0..count).map(|index| {
            let region_offset = extent.offset + index * bufsize;
            // SAFETY: `add` laid the extent out inside the region.
            let address = unsafe { region.base().add(region_offset) };
            let refs = std::cell::Cell::new(0);
            let region_index = extent.region_index;
            Meta {
                address,
                region_offset,
                region_index,
                class: class as u8,
                refs,
            }
        });
        let carved = Carved::new(metas.collect());
        extent.offset += count * bufsize;
        extent.count -= count;
        if extent.count == 0 {
            of_class.uncarved.pop_front();
        }
        of_class.uncarved_count -= count;
        // The lowest address is used first, and what was used last is used again first.
        of_class.free.extend(carved.handles().rev());
        self.carved.push(carved);
    }
}

impl CentralClass {
    fn add(&mut self, extent: Extent) {
        self.total += extent.count as u64;
        self.uncarved_count += extent.count;
        self.uncarved.push_back(extent);
    }

    fn free_count(&self) -> u64 {
        (self.free.len() + self.uncarved_count) as u64
    }
}

fn check(options: &IobufOptions) -> Result<(), DmaError> {
    let IobufOptions {
        small_bufsize,
        large_bufsize,
        ..
    } = *options;
    let page = PAGE as u32;
    let wrong = |option, value: u32, must| {
        Err(DmaError::IobufOption {
            option,
            value: u64::from(value),
            must,
        })
    };
    if small_bufsize == 0 || !small_bufsize.is_multiple_of(page) || small_bufsize > MAX_BUFSIZE {
        return wrong(
            "small_bufsize",
            small_bufsize,
            "a multiple of 4096, at most 1 GiB",
        );
    }
    if !large_bufsize.is_multiple_of(page) || large_bufsize > MAX_BUFSIZE {
        return wrong(
            "large_bufsize",
            large_bufsize,
            "a multiple of 4096, at most 1 GiB",
        );
    }
    if large_bufsize < small_bufsize {
        return wrong("large_bufsize", large_bufsize, "at least small_bufsize");
    }
    if options.small_pool_count <= options.reserve_small {
        let count = options.small_pool_count;
        return wrong("small_pool_count", count, "greater than reserve_small");
    }
    if options.large_pool_count == 0 {
        return wrong("large_pool_count", 0, "at least 1");
    }
    if options.max_waiters == 0 {
        return wrong("max_waiters", 0, "at least 1");
    }
    Ok(())
}

/// The sum of a module, made if there is none yet.
fn module_entry<'a>(modules: &'a mut Vec<ModuleStats>, name: &str) -> &'a mut ModuleStats {
    let index = modules
        .iter()
        .position(|sum| sum.module == name)
        .unwrap_or_else(|| {
            modules.push(ModuleStats {
                module: name.to_owned(),
                ..ModuleStats::default()
            });
            modules.len() - 1
        });
    &mut modules[index]
}

/// Locks. A thread that panicked inside left consistent data: nothing in here panics halfway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
