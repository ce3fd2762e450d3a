//! The clock, and whether it is to be believed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the time is from. Tests have their own.
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// The time.
    fn now(&self) -> SystemTime;

    /// Whether somebody who knows has set it since the start.
    fn is_trusted(&self) -> bool;

    /// It was set by somebody who knows.
    fn trust(&self);
}

/// The system's clock.
#[derive(Debug, Default)]
pub struct SystemClock {
    is_trusted: AtomicBool,
}

impl SystemClock {
    /// A clock that is believed from the start: where no appliance is, others care for the clock.
    #[must_use]
    pub fn trusted() -> SystemClock {
        SystemClock {
            is_trusted: AtomicBool::new(true),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::Relaxed)
    }

    fn trust(&self) {
        self.is_trusted.store(true, Ordering::Relaxed);
    }
}

/// A clock that a test sets.
#[derive(Debug)]
pub struct ManualClock {
    unix_s: AtomicU64,
    is_trusted: AtomicBool,
}

impl ManualClock {
    /// A clock that stands at so many seconds since 1970.
    #[must_use]
    pub fn new(unix_s: u64, is_trusted: bool) -> ManualClock {
        ManualClock {
            unix_s: AtomicU64::new(unix_s),
            is_trusted: AtomicBool::new(is_trusted),
        }
    }

    /// Sets it.
    pub fn set(&self, unix_s: u64) {
        self.unix_s.store(unix_s, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.unix_s.load(Ordering::Relaxed))
    }

    fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::Relaxed)
    }

    fn trust(&self) {
        self.is_trusted.store(true, Ordering::Relaxed);
    }
}

/// Milliseconds since 1970; 0 before.
#[must_use]
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
