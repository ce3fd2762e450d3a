//! [`DelayLayer`]: a device that answers late, by an average and a 99th percentile, to test patience.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::BlockError;
use crate::device::{BlockDevice, Channel, ChannelContext, Geometry};
use crate::io::{Completion, Io, IoError, OpKind, Submit};

/// Delays of a [`DelayLayer`], added to what the device takes. Zero is none.
///
/// 99 of 100 operations are delayed by the average, one by the 99th percentile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// Reads, compares and verifies.
    pub avg_read: Duration,
    /// The slowest in a hundred of these.
    pub p99_read: Duration,
    /// Everything else but reset.
    pub avg_write: Duration,
    /// The slowest in a hundred of these.
    pub p99_write: Duration,
}

/// A layer that holds completions back.
#[derive(Debug)]
pub struct DelayLayer {
    inner: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// In the order of [`Delays`], ns.
    delays_ns: [AtomicU64; 4],
    /// Operations seen by all channels: each hundredth is the slow one.
    operations: [AtomicU64; 2],
}

impl DelayLayer {
    /// A layer over `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, delays: Delays) -> Arc<Self> {
        let layer = Self {
            inner,
            shared: Arc::default(),
        };
        layer.set_delays(&delays);
        Arc::new(layer)
    }

    /// Changes the delays, for operations that end from now on.
    pub fn set_delays(&self, delays: &Delays) {
        let values = [
            delays.avg_read,
            delays.p99_read,
            delays.avg_write,
            delays.p99_write,
        ];
        for (delay_ns, value) in self.shared.delays_ns.iter().zip(values) {
            let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
            delay_ns.store(ns, Ordering::Relaxed);
        }
    }

    /// The delays.
    #[must_use]
    pub fn delays(&self) -> Delays {
        let read = |index: usize| {
            Duration::from_nanos(self.shared.delays_ns[index].load(Ordering::Relaxed))
        };
        Delays {
            avg_read: read(0),
            p99_read: read(1),
            avg_write: read(2),
            p99_write: read(3),
        }
    }
}

impl Shared {
    fn next_delay(&self, kind: OpKind) -> Duration {
        let class = match kind {
            OpKind::Read | OpKind::Compare | OpKind::Verify => 0,
            OpKind::Reset => return Duration::ZERO,
            _ => 1,
        };
        let number = self.operations[class].fetch_add(1, Ordering::Relaxed);
        let index = class * 2 + usize::from(number % 100 == 99);
        Duration::from_nanos(self.delays_ns[index].load(Ordering::Relaxed))
    }
}

impl BlockDevice for DelayLayer {
    fn kind(&self) -> &'static str {
        "delay"
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn open_channel(&self, ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        Ok(Box::new(DelayChannel {
            inner: self.inner.open_channel(ctx)?,
            shared: Arc::clone(&self.shared),
            held: BinaryHeap::new(),
            aborted: Vec::new(),
            sequence: 0,
            scratch: Vec::new(),
        }))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        self.inner.resize(block_count)
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let delays = self.delays();
        vec![
            (
                "avg_read_latency_us",
                delays.avg_read.as_micros().to_string(),
            ),
            (
                "p99_read_latency_us",
                delays.p99_read.as_micros().to_string(),
            ),
            (
                "avg_write_latency_us",
                delays.avg_write.as_micros().to_string(),
            ),
            (
                "p99_write_latency_us",
                delays.p99_write.as_micros().to_string(),
            ),
        ]
    }

    fn inner(&self) -> Option<&Arc<dyn BlockDevice>> {
        Some(&self.inner)
    }
}

struct DelayChannel {
    inner: Box<dyn Channel>,
    shared: Arc<Shared>,
    held: BinaryHeap<Held>,
    aborted: Vec<Completion>,
    sequence: u64,
    scratch: Vec<Completion>,
}

/// A completion that waits; the heap's greatest is the one due first.
struct Held {
    due: Instant,
    sequence: u64,
    completion: Completion,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Order {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl DelayChannel {
    fn hold(&mut self, completion: Completion, delay: Duration, now: Instant) {
        let due = now.checked_add(delay).unwrap_or(now);
        self.sequence += 1;
        self.held.push(Held {
            due,
            sequence: self.sequence,
            completion,
        });
    }
}

impl Channel for DelayChannel {
    fn submit(&mut self, io: Io, now: Instant) -> Submit {
        match self.inner.submit(io, now) {
            Submit::Pending => Submit::Pending,
            Submit::Done(completion) => {
                let delay = self.shared.next_delay(completion.io.op.kind());
                if delay.is_zero() {
                    return Submit::Done(completion);
                }
                self.hold(completion, delay, now);
                Submit::Pending
            }
        }
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        done.append(&mut self.aborted);
        let mut scratch = std::mem::take(&mut self.scratch);
        self.inner.poll(now, &mut scratch);
        for completion in scratch.drain(..) {
            let delay = self.shared.next_delay(completion.io.op.kind());
            self.hold(completion, delay, now);
        }
        self.scratch = scratch;
        while self.held.peek().is_some_and(|held| held.due <= now)
            && let Some(held) = self.held.pop()
        {
            done.push(held.completion);
        }
        done.len() - before
    }

    fn next_deadline(&self) -> Option<Instant> {
        let held = self.held.peek().map(|held| held.due);
        [held, self.inner.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wake_fd()
    }

    fn is_quiet(&self) -> bool {
        self.inner.is_quiet()
    }

    fn lends(&self) -> bool {
        self.inner.lends()
    }

    /// A completion that is held back has happened on the device: a write cannot be undone, so the
    /// abort only ends the waiting, and the I/O counts as aborted.
    fn abort(&mut self, tag: u64) -> bool {
        if self.inner.abort(tag) {
            return true;
        }
        let mut held = std::mem::take(&mut self.held).into_vec();
        let index = held.iter().position(|held| held.completion.io.tag == tag);
        if let Some(index) = index {
            let aborted = held.swap_remove(index).completion;
            self.aborted
                .push(aborted.io.complete(Err(IoError::Aborted)));
        }
        self.held = held.into();
        index.is_some()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len() + self.aborted.len()
    }
}
