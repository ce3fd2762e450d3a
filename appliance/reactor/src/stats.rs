//! Counters with one writer each, and what they look like from outside.
//!
//! A reactor writes its counters with plain relaxed stores; anybody reads them at any time and
//! stops nobody. Numbers of one snapshot may lie a turn apart.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::{CpuMask, PollerId, ThreadId};

/// A counter that only the reactor's OS thread writes: adding needs no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a reactor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReactorState {
    /// It turns: polls its threads.
    Polling,
    /// It waits in the kernel for a message, a descriptor or a deadline.
    Sleeping,
    /// It was stopped.
    Stopped,
    /// It ended by a panic of its own.
    Failed,
}

impl ReactorState {
    const fn from_code(code: u8) -> ReactorState {
        match code {
            0 => ReactorState::Polling,
            1 => ReactorState::Sleeping,
            2 => ReactorState::Stopped,
            _ => ReactorState::Failed,
        }
    }

    const fn code(self) -> u8 {
        match self {
            ReactorState::Polling => 0,
            ReactorState::Sleeping => 1,
            ReactorState::Stopped => 2,
            ReactorState::Failed => 3,
        }
    }
}

/// A reactor as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReactorStats {
    /// Position in the set.
    pub index: usize,
    /// Name, which is also its OS thread's: `reactor_0`.
    pub name: String,
    /// CPU that it is pinned to; `None` when pinning was refused.
    pub core: Option<usize>,
    /// Kernel thread ID.
    pub tid: i32,
    /// What it is doing.
    pub state: ReactorState,
    /// Time in turns that found work.
    pub busy: Duration,
    /// Time in turns that found none, and asleep.
    pub idle: Duration,
    /// The part of `idle` that was spent asleep.
    pub asleep: Duration,
    /// Time since the current turn (or the sleep) began. Seconds of it while polling mean that a
    /// poller or message does not return.
    pub since_turn: Duration,
    /// Turns of the loop.
    pub turns: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Sleeps that a message or a [`std::task::Waker`] ended.
    pub woken_by_message: u64,
    /// Sleeps that a registered descriptor ended.
    pub woken_by_fd: u64,
    /// Sleeps that ran to a deadline.
    pub woken_by_deadline: u64,
    /// Threads on it.
    pub threads: usize,
    /// Sentences about what was asked for and could not be had, such as pinning.
    pub notices: Vec<String>,
}

/// Counters of a reactor. All written by its OS thread.
#[derive(Debug, Default)]
pub(crate) struct ReactorCounters {
    state: AtomicU8,
    pub(crate) busy_ns: Counter,
    idle_ns: Counter,
    asleep_ns: Counter,
    pub(crate) turns: Counter,
    /// Start of the current turn, in nanoseconds since the set's epoch.
    pub(crate) turn_began_ns: Counter,
    sleeps: Counter,
    pub(crate) woken_by_message: Counter,
    pub(crate) woken_by_fd: Counter,
    pub(crate) woken_by_deadline: Counter,
    /// Odd while entering or leaving sleep: a reader then tries again, so that a sleep in progress
    /// is counted once, neither twice nor not at all.
    sleep_version: Counter,
}

impl ReactorCounters {
    pub(crate) fn state(&self) -> ReactorState {
        ReactorState::from_code(self.state.load(Ordering::Relaxed))
    }

    pub(crate) fn set_state(&self, state: ReactorState) {
        self.state.store(state.code(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn add_idle_ns(&self, amount: u64) {
        self.idle_ns.add(amount);
    }

    pub(crate) fn enter_sleep(&self, now_ns: u64) {
        self.versioned(|| {
            self.set_state(ReactorState::Sleeping);
            self.turn_began_ns.set(now_ns);
            self.sleeps.add(1);
        });
    }

    /// Reads the clock when no reader can take the sleep for one in progress any more: otherwise a
    /// reader could count more of it than is booked here.
    pub(crate) fn leave_sleep(&self, began_ns: u64, clock_ns: impl Fn() -> u64) -> u64 {
        let mut now_ns = 0;
        self.versioned(|| {
            now_ns = clock_ns();
            let asleep_ns = now_ns.saturating_sub(began_ns);
            self.idle_ns.add(asleep_ns);
            self.asleep_ns.add(asleep_ns);
            self.turn_began_ns.set(now_ns);
            self.set_state(ReactorState::Polling);
        });
        now_ns
    }

    fn versioned(&self, change: impl FnOnce()) {
        self.sleep_version.add(1);
        // Orders the clock as well: a reader that read it later sees the odd version.
        fence(Ordering::SeqCst);
        change();
        let version = self.sleep_version.get().wrapping_add(1);
        self.sleep_version.0.store(version, Ordering::Release);
    }

    /// All that the counters tell, with the sleep in progress.
    pub(crate) fn snapshot(&self, clock_ns: impl Fn() -> u64) -> CounterSnapshot {
        loop {
            let version = self.sleep_version.0.load(Ordering::Acquire);
            let mut snapshot = CounterSnapshot {
                state: self.state(),
                busy_ns: self.busy_ns.get(),
                idle_ns: self.idle_ns.get(),
                asleep_ns: self.asleep_ns.get(),
                since_turn_ns: self.turn_began_ns.get(),
                sleeps: self.sleeps.get(),
            };
            let now_ns = clock_ns();
            fence(Ordering::SeqCst);
            // The change takes nanoseconds, and at most one happens per sleep.
            if version % 2 == 1 || version != self.sleep_version.get() {
                std::thread::yield_now();
                continue;
            }
            snapshot.since_turn_ns = now_ns.saturating_sub(snapshot.since_turn_ns);
            if snapshot.state == ReactorState::Sleeping {
                snapshot.idle_ns += snapshot.since_turn_ns;
                snapshot.asleep_ns += snapshot.since_turn_ns;
            }
            return snapshot;
        }
    }
}

pub(crate) struct CounterSnapshot {
    pub(crate) state: ReactorState,
    pub(crate) busy_ns: u64,
    pub(crate) idle_ns: u64,
    pub(crate) asleep_ns: u64,
    pub(crate) since_turn_ns: u64,
    pub(crate) sleeps: u64,
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThreadState {
    /// Its reactor has not run its first closure yet.
    Starting,
    /// It is polled.
    Running,
    /// It has exited.
    Exited,
    /// A panic ended it.
    Failed,
}

impl ThreadState {
    pub(crate) const fn from_code(code: u8) -> ThreadState {
        match code {
            0 => ThreadState::Starting,
            1 => ThreadState::Running,
            2 => ThreadState::Exited,
            _ => ThreadState::Failed,
        }
    }

    pub(crate) const fn code(self) -> u8 {
        match self {
            ThreadState::Starting => 0,
            ThreadState::Running => 1,
            ThreadState::Exited => 2,
            ThreadState::Failed => 3,
        }
    }
}

/// A thread as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadStats {
    /// Number of the thread, never used twice by a set.
    pub id: ThreadId,
    /// Name.
    pub name: String,
    /// CPUs that it may run on.
    pub cpu_mask: CpuMask,
    /// Position of its reactor in the set.
    pub reactor: usize,
    /// What it is doing.
    pub state: ThreadState,
    /// Time in which its messages and pollers did work.
    pub busy: Duration,
    /// The rest of `elapsed`.
    pub idle: Duration,
    /// Time since it was made, up to its end.
    pub elapsed: Duration,
    /// Pollers that run in each turn.
    pub active_pollers: usize,
    /// Pollers that run by a timer.
    pub timed_pollers: usize,
    /// Pollers that do not run.
    pub paused_pollers: usize,
    /// Messages that were run.
    pub messages: u64,
    /// Messages that wait.
    pub mailbox_len: usize,
    /// Messages that can wait.
    pub mailbox_capacity: usize,
    /// Messages that were refused because the mailbox was full.
    pub mailbox_full: u64,
}

/// What a poller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PollerState {
    /// It will run: in the next turn, or at its time.
    Waiting,
    /// It does not run until it is resumed.
    Paused,
    /// It is gone.
    Unregistered,
}

impl PollerState {
    pub(crate) const fn from_code(code: u8) -> PollerState {
        match code {
            0 => PollerState::Waiting,
            1 => PollerState::Paused,
            _ => PollerState::Unregistered,
        }
    }

    pub(crate) const fn code(self) -> u8 {
        match self {
            PollerState::Waiting => 0,
            PollerState::Paused => 1,
            PollerState::Unregistered => 2,
        }
    }
}

/// A poller as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollerStats {
    /// Number of the poller within its thread.
    pub id: PollerId,
    /// Name.
    pub name: String,
    /// What it is doing.
    pub state: PollerState,
    /// Period of a timed poller; `None` for an active one.
    pub period: Option<Duration>,
    /// Times that it ran.
    pub run_count: u64,
    /// Times that it found work.
    pub busy_count: u64,
    /// Sum of what it said it found: the `n` of [`crate::PollOutcome::Busy`].
    pub work_count: u64,
}
