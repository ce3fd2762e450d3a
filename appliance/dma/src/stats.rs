//! What pools and channels tell of themselves.

/// Everything about a pool, read without stopping anyone. Counts of caches that are in use
/// meanwhile may be a few buffers off against each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Small buffers, without the reserve.
    pub small: ClassStats,
    /// Large buffers.
    pub large: ClassStats,
    /// Small buffers kept for CONNECT and admin commands.
    pub reserve_total: u64,
    /// Those of them that are free.
    pub reserve_free: u64,
    /// Channels that are open, in the order in which they were opened.
    pub channels: Vec<ChannelStats>,
    /// Sums per module, closed channels included.
    pub modules: Vec<ModuleStats>,
}

/// One pool's totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Bytes of a buffer.
    pub bufsize: u32,
    /// All buffers.
    pub total: u64,
    /// Buffers free in the central pool.
    pub free: u64,
    /// The fewest that ever were free in the central pool.
    pub free_min: u64,
    /// Buffers free in channels' caches.
    pub cached: u64,
    /// Buffers that the caches of open channels may hold together.
    pub cache_size: u64,
    /// Requests that wait.
    pub waiting: u64,
}

impl ClassStats {
    /// Buffers in use.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.total.saturating_sub(self.free + self.cached)
    }
}

/// Counters of one channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Number of the channel, never used again in this pool.
    pub id: u64,
    /// Module that opened it.
    pub module: String,
    /// Small buffers.
    pub small: CacheStats,
    /// Large buffers.
    pub large: CacheStats,
}

/// Counters of one cache. The names are those of SPDK's `iobuf_get_stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Requests served from the cache.
    pub cache: u64,
    /// Requests served from the central pool or the reserve.
    pub main: u64,
    /// Requests that found no buffer: they waited or failed. 0 is the sign of health.
    pub retry: u64,
    /// Buffers that the cache may hold.
    pub cache_size: u32,
    /// Buffers that it holds.
    pub cached: u32,
}

impl CacheStats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.cache += other.cache;
        self.main += other.main;
        self.retry += other.retry;
        self.cache_size = self.cache_size.saturating_add(other.cache_size);
        self.cached = self.cached.saturating_add(other.cached);
    }
}

/// Counters of one module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleStats {
    /// Module name.
    pub module: String,
    /// Channels that it has open.
    pub channels: u64,
    /// Small buffers.
    pub small: CacheStats,
    /// Large buffers.
    pub large: CacheStats,
}
