//! [`ErrorLayer`]: a device that fails, or lies, on request.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::Waker;
use std::time::Instant;

use dma::Payload;

use crate::BlockError;
use crate::device::{BlockDevice, Channel, ChannelContext, Geometry};
use crate::io::{Completion, Io, IoError, Op, OpSet, Submit};

/// What happens to an operation that a rule hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// It fails with this status and never reaches the device.
    Fail(IoError),
    /// Its data is damaged: one byte of each block that is read or written is changed. Other
    /// operations are left alone.
    Corrupt {
        /// Which byte of each block.
        offset_in_block: u32,
        /// The bits of it that are inverted; 0 changes nothing.
        mask: u8,
    },
    /// It is held back: it never ends by itself. A change of the rules lets it go on to the device;
    /// an abort or a reset of the device ends it with [`IoError::Aborted`].
    Hold,
}

/// One injection rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Operations it applies to.
    pub ops: OpSet,
    /// How many hits; `None`: no end.
    pub count: Option<u64>,
    /// Chance of a hit, 0 to 1.
    pub probability: f64,
    /// First block it applies to: an operation that touches none of its blocks is not hit.
    pub lba_first: u64,
    /// Last block it applies to.
    pub lba_last: u64,
    /// What a hit does.
    pub effect: Effect,
}

impl Rule {
    /// Every one of `ops` fails with `error`.
    #[must_use]
    pub fn fail(ops: OpSet, error: IoError) -> Self {
        Self {
            ops,
            count: None,
            probability: 1.0,
            lba_first: 0,
            lba_last: u64::MAX,
            effect: Effect::Fail(error),
        }
    }

    /// The same rule for the next `count` operations only.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self {
            count: Some(count),
            ..self
        }
    }

    /// The same rule for operations that touch one of these blocks.
    #[must_use]
    pub fn within(self, lba_first: u64, lba_last: u64) -> Self {
        Self {
            lba_first,
            lba_last,
            ..self
        }
    }

    fn touches(&self, io: &Io) -> bool {
        // What has no range, as a flush, concerns every block.
        if io.blocks == 0 {
            return true;
        }
        let last = io.lba.0.saturating_add(u64::from(io.blocks) - 1);
        io.lba.0 <= self.lba_last && last >= self.lba_first
    }

    /// The same rule with a chance.
    #[must_use]
    pub fn with_probability(self, probability: f64) -> Self {
        Self {
            probability,
            ..self
        }
    }
}

/// Most rules of one layer.
pub const RULES_MAX: usize = 64;

/// A layer that injects errors by [`Rule`]s. The first rule that hits counts.
#[derive(Debug)]
pub struct ErrorLayer {
    inner: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
    channels: AtomicU64,
    seed: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// Changes with the rules, so that channels see it without a lock.
    generation: AtomicU64,
    rules: RwLock<Arc<[ActiveRule]>>,
    injected: AtomicU64,
    /// Of the open channels, by number: a change of the rules lets held I/O go on.
    wakers: Mutex<Vec<(u64, Waker)>>,
}

impl Shared {
    fn wakers(&self) -> MutexGuard<'_, Vec<(u64, Waker)>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct ActiveRule {
    rule: Rule,
    /// The chance, as a share of 2^64.
    threshold: u64,
    /// Hits left, over all channels.
    left: AtomicU64,
}

impl ErrorLayer {
    /// A layer without rules over `inner`. The same seed gives each channel the same dice.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            inner,
            shared: Arc::default(),
            channels: AtomicU64::new(0),
            seed,
        })
    }

    /// Replaces all rules, for operations submitted from now on.
    ///
    /// # Errors
    /// [`BlockError::Option`] for too many rules, a probability that is none, or an offset beyond a
    /// block.
    pub fn set_rules(&self, rules: &[Rule]) -> Result<(), BlockError> {
        if rules.len() > RULES_MAX {
            let value = rules.len().to_string();
            return Err(BlockError::Option {
                option: "rules",
                value,
                expected: "at most 64",
            });
        }
        let block_size = self.inner.geometry().block_size;
        for rule in rules {
            if !(0.0..=1.0).contains(&rule.probability) {
                let value = rule.probability.to_string();
                let expected = "between 0 and 1";
                return Err(BlockError::Option {
                    option: "probability",
                    value,
                    expected,
                });
            }
            if let Effect::Corrupt {
                offset_in_block, ..
            } = rule.effect
                && offset_in_block >= block_size
            {
                let value = offset_in_block.to_string();
                let expected = "less than the block size";
                return Err(BlockError::Option {
                    option: "corrupt_offset",
                    value,
                    expected,
                });
            }
        }
        let active = rules.iter().map(|rule| ActiveRule {
            rule: *rule,
            threshold: (rule.probability * u64::MAX as f64) as u64,
            left: AtomicU64::new(rule.count.unwrap_or(u64::MAX)),
        });
        let active: Arc<[ActiveRule]> = active.collect();
        *self
            .shared
            .rules
            .write()
            .unwrap_or_else(PoisonError::into_inner) = active;
        self.shared.generation.fetch_add(1, Ordering::Release);
        for (_, waker) in self.shared.wakers().iter() {
            waker.wake_by_ref();
        }
        Ok(())
    }

    /// The rules, with the hits that are left.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let rules = self
            .shared
            .rules
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let left = |active: &ActiveRule| active.left.load(Ordering::Relaxed);
        let current = |active: &ActiveRule| Rule {
            count: active.rule.count.map(|_| left(active)),
            ..active.rule
        };
        rules.iter().map(current).collect()
    }

    /// How many operations were hit so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.shared.injected.load(Ordering::Relaxed)
    }
}

impl BlockDevice for ErrorLayer {
    fn kind(&self) -> &'static str {
        "error"
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn open_channel(&self, ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        let inner = self.inner.open_channel(ctx)?;
        let number = self.channels.fetch_add(1, Ordering::Relaxed);
        self.shared.wakers().push((number, ctx.waker.clone()));
        Ok(Box::new(ErrorChannel {
            inner,
            shared: Arc::clone(&self.shared),
            number,
            generation: 0,
            rules: Arc::default(),
            random: self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            block_size: self.inner.geometry().block_size as usize,
            corrupted: HashMap::new(),
            held: VecDeque::new(),
            ended: Vec::new(),
        }))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        self.inner.resize(block_count)
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("rules", self.rules().len().to_string()),
            ("injected", self.injected().to_string()),
        ]
    }

    fn inner(&self) -> Option<&Arc<dyn BlockDevice>> {
        Some(&self.inner)
    }
}

struct ErrorChannel {
    inner: Box<dyn Channel>,
    shared: Arc<Shared>,
    number: u64,
    generation: u64,
    rules: Arc<[ActiveRule]>,
    random: u64,
    block_size: usize,
    /// I/Os with the device whose data is or will be damaged: tag, byte of each block, its bits.
    corrupted: HashMap<u64, (u32, u8)>,
    /// Held back, oldest first. The caller's bound of I/Os in flight bounds it.
    held: VecDeque<Io>,
    /// Held I/Os that were ended here.
    ended: Vec<Completion>,
}

impl Drop for ErrorChannel {
    fn drop(&mut self) {
        let number = self.number;
        self.shared.wakers().retain(|(other, _)| *other != number);
    }
}

impl ErrorChannel {
    fn has_new_rules(&self) -> bool {
        self.shared.generation.load(Ordering::Acquire) != self.generation
    }

    fn refresh(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            let rules = self
                .shared
                .rules
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            self.rules = Arc::clone(&rules);
        }
    }

    /// New rules: what the old ones held goes on to the device.
    fn let_go(&mut self, now: Instant) {
        self.refresh();
        while let Some(io) = self.held.pop_front() {
            if let Submit::Done(completion) = self.inner.submit(io, now) {
                self.ended.push(completion);
            }
        }
    }

    fn end_held(&mut self) {
        let aborted = |io: Io| io.complete(Err(IoError::Aborted));
        self.ended.extend(self.held.drain(..).map(aborted));
    }

    /// The next number of a splitmix64 sequence.
    fn roll(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn hit(&mut self, io: &Io) -> Option<Effect> {
        self.refresh();
        for index in 0..self.rules.len() {
            let active = &self.rules[index];
            if !active.rule.ops.contains(io.op.kind()) || !active.rule.touches(io) {
                continue;
            }
            if active.rule.probability < 1.0 && self.roll() >= self.rules[index].threshold {
                continue;
            }
            let active = &self.rules[index];
            let endless = active.rule.count.is_none();
            let take = |left: u64| left.checked_sub(1);
            let taken = endless
                || active
                    .left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok();
            if taken {
                self.shared.injected.fetch_add(1, Ordering::Relaxed);
                return Some(active.rule.effect);
            }
        }
        None
    }

    /// Inverts bits of one byte of each block. Twice is as before.
    fn invert(&self, payload: &mut Payload, (offset_in_block, mask): (u32, u8)) {
        let bytes = payload.as_buf_mut().and_then(|buf| buf.try_as_mut_slice());
        for block in bytes
            .into_iter()
            .flat_map(|bytes| bytes.chunks_mut(self.block_size))
        {
            if let Some(byte) = block.get_mut(offset_in_block as usize) {
                *byte ^= mask;
            }
        }
    }

    /// On the way back: damages what was read, and undoes the damage to the writer's own buffer.
    fn returned(&mut self, mut completion: Completion) -> Completion {
        if self.corrupted.is_empty() {
            return completion;
        }
        let Some(damage) = self.corrupted.remove(&completion.io.tag) else {
            return completion;
        };
        if completion.io.op != Op::Read || completion.result.is_ok() {
            self.invert(&mut completion.io.payload, damage);
        }
        completion
    }
}

impl Channel for ErrorChannel {
    fn submit(&mut self, mut io: Io, now: Instant) -> Submit {
        if io.op == Op::Reset {
            self.end_held();
        }
        if !self.held.is_empty() && self.has_new_rules() {
            self.let_go(now);
        }
        match self.hit(&io) {
            None => {}
            Some(Effect::Hold) => {
                self.held.push_back(io);
                return Submit::Pending;
            }
            Some(Effect::Fail(error)) => return Submit::Done(io.complete(Err(error))),
            Some(Effect::Corrupt {
                offset_in_block,
                mask,
            }) => match io.op {
                Op::Read => {
                    self.corrupted.insert(io.tag, (offset_in_block, mask));
                }
                Op::Write { .. } => {
                    self.invert(&mut io.payload, (offset_in_block, mask));
                    self.corrupted.insert(io.tag, (offset_in_block, mask));
                }
                _ => {}
            },
        }
        match self.inner.submit(io, now) {
            Submit::Done(completion) => Submit::Done(self.returned(completion)),
            Submit::Pending => Submit::Pending,
        }
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        if !self.held.is_empty() && self.has_new_rules() {
            self.let_go(now);
        }
        self.inner.poll(now, done);
        if !self.corrupted.is_empty() {
            for slot in done.iter_mut().skip(before) {
                let ended = std::mem::replace(slot, EMPTY);
                *slot = self.returned(ended);
            }
        }
        done.append(&mut self.ended);
        done.len() - before
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.inner.next_deadline()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wake_fd()
    }

    fn is_quiet(&self) -> bool {
        self.inner.is_quiet()
    }

    /// Never: lent memory is the device's own and cannot be damaged for one reader.
    fn lends(&self) -> bool {
        false
    }

    fn abort(&mut self, tag: u64) -> bool {
        let Some(index) = self.held.iter().position(|io| io.tag == tag) else {
            return self.inner.abort(tag);
        };
        let io = self.held.remove(index).expect("its index was just found");
        self.ended.push(io.complete(Err(IoError::Aborted)));
        true
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len() + self.ended.len()
    }
}

/// Holds a place in the list while its completion is looked at.
const EMPTY: Completion = Completion {
    io: Io {
        op: Op::Reset,
        lba: crate::io::Lba(0),
        blocks: 0,
        payload: Payload::None,
        tag: 0,
    },
    result: Ok(()),
};
