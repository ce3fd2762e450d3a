//! The planner: adds up who will take which iobufs before anything takes them.
//!
//! The verdict is what really happens: a pool of these counts grants exactly those channels that
//! the planner says fit, in any order. (A property test holds the two together.)

use std::fmt;

use crate::pool::MAX_CHANNELS;

/// One of the two pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// Small buffers.
    Small,
    /// Large buffers.
    Large,
}

impl PoolKind {
    /// `small` or `large`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    /// The option that sets its number of buffers.
    #[must_use]
    pub fn count_option(self) -> &'static str {
        match self {
            Self::Small => "small_pool_count",
            Self::Large => "large_pool_count",
        }
    }

    /// The option that sets a module's cache of it.
    #[must_use]
    pub fn cache_option(self) -> &'static str {
        match self {
            Self::Small => "iobuf_small_cache_size",
            Self::Large => "iobuf_large_cache_size",
        }
    }
}

/// The pools to plan for. The counts are those of the options, or of a pool that has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanPools {
    /// All small buffers, the reserve included.
    pub small_pool_count: u32,
    /// All large buffers.
    pub large_pool_count: u32,
    /// Small buffers kept for CONNECT and admin commands.
    pub reserve_small: u32,
}

/// Something that opens channels: a transport (one per poll group) or a module of block devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taker {
    /// Its module name, as given to `IobufPool::channel`.
    pub name: String,
    /// Small buffers that each of its channels caches.
    pub small_cache: u32,
    /// Large buffers that each of its channels caches.
    pub large_cache: u32,
    /// How many channels it opens. `None`: one on each thread.
    pub channels: Option<u32>,
}

/// What to plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInput {
    /// Threads that do I/O.
    pub threads: u32,
    /// Transports: each opens a channel per poll group.
    pub transports: Vec<Taker>,
    /// Block-device modules: each opens a channel per thread.
    pub devices: Vec<Taker>,
    /// The pools.
    pub pools: PlanPools,
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Module name.
    pub name: String,
    /// Channels that it opens.
    pub channels: u32,
    /// Small buffers that all its channels cache together.
    pub small: u64,
    /// Large buffers that all its channels cache together.
    pub large: u64,
}

/// Who takes what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// A line per transport and device module, in the order given.
    pub shares: Vec<Share>,
    /// Small buffers in caches.
    pub small_taken: u64,
    /// Small buffers kept for CONNECT and admin commands.
    pub small_reserve: u64,
    /// Small buffers left in the central pool.
    pub small_left: u64,
    /// Large buffers in caches.
    pub large_taken: u64,
    /// Large buffers left in the central pool.
    pub large_left: u64,
}

/// Why a plan does not fit, or a channel was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Caches take more buffers than there are.
    #[error(transparent)]
    Buffers(#[from] Shortage),
    /// More channels than one pool can have.
    #[error(
        "{needed} iobuf channels are needed, the bound is {bound}; use fewer threads or modules"
    )]
    Channels {
        /// Channels needed.
        needed: u64,
        /// The bound, [`crate::MAX_CHANNELS`].
        bound: u64,
    },
}

/// Caches that do not fit: the sum, and the option to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Shortage {
    /// The pool that is too small.
    pub pool: PoolKind,
    /// The terms of the sum: who, how many channels, how many buffers each.
    pub terms: Vec<Term>,
    /// Buffers kept as reserve.
    pub reserve: u64,
    /// The sum.
    pub needed: u64,
    /// What the pool has.
    pub have: u64,
}

/// One term of a shortage's sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Module name.
    pub name: String,
    /// Its channels.
    pub channels: u64,
    /// Buffers that each caches.
    pub each: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, option) = (self.pool.name(), self.pool.count_option());
        write!(f, "{kind} iobufs do not suffice: ")?;
        for (
            index,
            Term {
                name,
                channels,
                each,
            },
        ) in self.terms.iter().enumerate()
        {
            let plus = if index == 0 { "" } else { " + " };
            write!(f, "{plus}{name} {channels} x {each}")?;
        }
        if self.reserve > 0 {
            let plus = if self.terms.is_empty() { "" } else { " + " };
            write!(f, "{plus}reserve {}", self.reserve)?;
        }
        write!(
            f,
            " = {} are needed, {option} is {}; ",
            self.needed, self.have
        )?;
        write!(f, "raise {option} to at least {}", self.needed)?;
        let largest = self
            .terms
            .iter()
            .max_by_key(|term| term.channels.saturating_mul(term.each));
        if let Some(Term { name, .. }) = largest {
            write!(f, " or lower {} of {name}", self.pool.cache_option())?;
        }
        Ok(())
    }
}

/// Says who takes what, or what does not fit.
///
/// # Errors
/// More channels than a pool can have; or the pool that is too small (small before large), with
/// the sum and the option to change.
pub fn plan(input: &PlanInput) -> Result<Plan, Refusal> {
    let shares: Vec<Share> = takers(input)
        .map(|taker| {
            let channels = taker.channels.unwrap_or(input.threads);
            Share {
                name: taker.name.clone(),
                channels,
                small: u64::from(channels) * u64::from(taker.small_cache),
                large: u64::from(channels) * u64::from(taker.large_cache),
            }
        })
        .collect();
    let needed = shares.iter().map(|share| u64::from(share.channels)).sum();
    if needed > MAX_CHANNELS as u64 {
        return Err(Refusal::Channels {
            needed,
            bound: MAX_CHANNELS as u64,
        });
    }
    // Each term is below 2^64 - 2^33; a sum that saturates does not fit anyway.
    let sum = |of: fn(&Share) -> u64| shares.iter().map(of).fold(0, u64::saturating_add);
    let (small_taken, large_taken) = (sum(|share| share.small), sum(|share| share.large));
    let pools = &input.pools;
    let small_reserve = u64::from(pools.reserve_small);
    let left = |kind, taken, reserve, have| {
        u64::checked_sub(have, u64::saturating_add(taken, reserve))
            .ok_or_else(|| shortage(input, kind, taken, reserve, have))
    };
    Ok(Plan {
        small_taken,
        small_reserve,
        small_left: left(
            PoolKind::Small,
            small_taken,
            small_reserve,
            u64::from(pools.small_pool_count),
        )?,
        large_taken,
        large_left: left(
            PoolKind::Large,
            large_taken,
            0,
            u64::from(pools.large_pool_count),
        )?,
        shares,
    })
}

fn takers(input: &PlanInput) -> impl Iterator<Item = &Taker> {
    input.transports.iter().chain(&input.devices)
}

fn shortage(input: &PlanInput, pool: PoolKind, taken: u64, reserve: u64, have: u64) -> Shortage {
    let each = |taker: &Taker| match pool {
        PoolKind::Small => u64::from(taker.small_cache),
        PoolKind::Large => u64::from(taker.large_cache),
    };
    let terms = takers(input)
        .map(|taker| Term {
            name: taker.name.clone(),
            channels: u64::from(taker.channels.unwrap_or(input.threads)),
            each: each(taker),
        })
        .filter(|term| term.channels * term.each > 0)
        .collect();
    Shortage {
        pool,
        terms,
        reserve,
        needed: taken.saturating_add(reserve),
        have,
    }
}
