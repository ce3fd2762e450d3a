//! Pollers: what they are made of and what they say.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::PollContext;
use crate::stats::{Counter, PollerState, PollerStats};
use crate::wheel::TimerKey;

/// Whether a poller found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollOutcome {
    /// There was nothing to do.
    Idle,
    /// It did so many things. `Busy(0)` is the same as `Idle`.
    Busy(usize),
}

impl From<usize> for PollOutcome {
    /// A count of things done; 0 is idle.
    fn from(count: usize) -> PollOutcome {
        if count == 0 {
            PollOutcome::Idle
        } else {
            PollOutcome::Busy(count)
        }
    }
}

/// Names a poller of a thread; not used again after it was unregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PollerId(u64);

impl PollerId {
    pub(crate) fn new(slot: usize, serial: u32) -> PollerId {
        PollerId((u64::from(serial) << 32) | slot as u64)
    }

    pub(crate) fn serial(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    /// The number, for people and programs.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The poller of a number that [`PollerId::get`] gave.
    pub fn from_number(number: u64) -> PollerId {
        PollerId(number)
    }
}

impl fmt::Display for PollerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What kind of poller to register.
#[derive(Clone, Debug)]
pub struct PollerSpec {
    pub(crate) name: String,
    pub(crate) period: Option<Duration>,
    pub(crate) paused: bool,
}

impl PollerSpec {
    /// A poller that runs in each turn.
    pub fn active(name: impl Into<String>) -> PollerSpec {
        PollerSpec {
            name: name.into(),
            period: None,
            paused: false,
        }
    }

    /// A poller that runs once per period: never earlier than `period` after its last run began
    /// (or after it was registered), later by as much as the turn takes. A period of zero makes
    /// it an active one, as in SPDK.
    pub fn timed(name: impl Into<String>, period: Duration) -> PollerSpec {
        let period = Some(period).filter(|period| !period.is_zero());
        PollerSpec {
            name: name.into(),
            period,
            paused: false,
        }
    }

    /// The same poller, paused until it is resumed.
    pub fn paused(self) -> PollerSpec {
        PollerSpec {
            paused: true,
            ..self
        }
    }
}

pub(crate) type PollFn = Box<dyn FnMut(&mut PollContext<'_>) -> PollOutcome>;

/// The part of a poller that others may read.
#[derive(Debug)]
pub(crate) struct PollerShared {
    pub(crate) id: PollerId,
    name: String,
    period: Option<Duration>,
    state: AtomicU8,
    run_count: Counter,
    busy_count: Counter,
    work_count: Counter,
}

impl PollerShared {
    pub(crate) fn new(id: PollerId, spec: PollerSpec) -> PollerShared {
        let state = if spec.paused {
            PollerState::Paused
        } else {
            PollerState::Waiting
        };
        PollerShared {
            id,
            name: spec.name,
            period: spec.period,
            state: AtomicU8::new(state.code()),
            run_count: Counter::default(),
            busy_count: Counter::default(),
            work_count: Counter::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_timed(&self) -> bool {
        self.period.is_some()
    }

    pub(crate) fn period_ns(&self) -> Option<u64> {
        self.period
            .map(|period| u64::try_from(period.as_nanos()).unwrap_or(u64::MAX))
    }

    #[inline]
    pub(crate) fn state(&self) -> PollerState {
        PollerState::from_code(self.state.load(Ordering::Relaxed))
    }

    pub(crate) fn set_state(&self, state: PollerState) {
        self.state.store(state.code(), Ordering::Relaxed);
    }

    /// Counts a run; whether it found work.
    #[inline]
    pub(crate) fn count(&self, outcome: PollOutcome) -> bool {
        self.run_count.add(1);
        match outcome {
            PollOutcome::Idle | PollOutcome::Busy(0) => false,
            PollOutcome::Busy(work) => {
                self.busy_count.add(1);
                self.work_count.add(work as u64);
                true
            }
        }
    }

    pub(crate) fn stats(&self) -> PollerStats {
        PollerStats {
            id: self.id,
            name: self.name.clone(),
            state: self.state(),
            period: self.period,
            run_count: self.run_count.get(),
            busy_count: self.busy_count.get(),
            work_count: self.work_count.get(),
        }
    }
}

/// The part of a poller that its thread owns.
pub(crate) struct PollerSlot {
    pub(crate) shared: std::sync::Arc<PollerShared>,
    /// `None` while it runs and after it was unregistered. Never dropped by a panic's unwinding:
    /// see the crate's documentation on panics.
    pub(crate) poll: Option<ManuallyDrop<PollFn>>,
    /// In the thread's list of active pollers.
    pub(crate) listed: bool,
    /// Set while it waits for its time.
    pub(crate) timer: Option<TimerKey>,
    /// When an active poller wants to run although its reactor sleeps; `u64::MAX`: never.
    pub(crate) wake_at_ns: u64,
}
