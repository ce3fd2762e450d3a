//! Pinned reactors that poll when busy and sleep when idle.
//!
//! A [`Reactor`] is an OS thread, pinned to a core, that polls the [`Thread`]s on it in turn. A
//! thread (in SPDK's sense: light, named) has a bounded mailbox for [`Message`]s and owns pollers:
//! closures that run in each turn (active), once per period (timed), or not at all (paused). A
//! thread's state never leaves its OS thread, so it may be `!Send` and needs no lock.
//!
//! It is not an executor of futures and knows nothing of I/O: what a poller polls is its own
//! business. Libraries that are polled so need not know this crate. They take the time from
//! [`ThreadContext::now`], a [`std::task::Waker`] from [`ThreadContext::waker`], and give a
//! deadline ([`PollContext::wake_at`]) and a descriptor ([`ThreadContext::register_wake_fd`]) back.
//!
//! ```
//! use std::time::Duration;
//! use reactor::{CpuMask, PollOutcome, PollerSpec, ReactorSet};
//!
//! let set = ReactorSet::builder().count(1).start()?;
//! let (told, ticks) = std::sync::mpsc::channel();
//! let thread = set.spawn_thread("clock", CpuMask::all(), move |context| {
//!     let mut count = 0;
//!     let spec = PollerSpec::timed("tick", Duration::from_millis(1));
//!     let registered = context.register_poller(spec, move |_| {
//!         count += 1;
//!         told.send(count).ok();
//!         PollOutcome::Busy(1)
//!     });
//!     registered.expect("a new thread has room for a poller");
//! })?;
//! assert_eq!(ticks.iter().take(3).collect::<Vec<_>>(), [1, 2, 3]);
//! // A run is counted when it ends: the third may not have.
//! assert!(thread.pollers()[0].run_count >= 2);
//! set.stop(Duration::from_secs(5))?;
//! # Ok::<(), reactor::ReactorError>(())
//! ```
//!
//! # A turn
//!
//! 1. The clock is read, once: all pollers of the turn see the same time.
//! 2. For each thread: up to 64 messages, then its active pollers.
//! 3. Timed pollers whose time has come.
//!
//! # Sleep
//!
//! A reactor that has found no work for [`ReactorSetBuilder::idle_time_before_sleep`], a time that
//! adapts to how long its sleeps last, announces that it will sleep, polls everything once more, and
//! waits in `epoll_wait` until the first of: a message, a [`std::task::Waker`] of it, a registered descriptor that is readable, the next timed
//! poller, the earliest [`PollContext::wake_at`]. An active poller that waits for something that is
//! none of these calls [`ThreadContext::keep_awake`] in each run. The work of timed pollers does
//! not restart the idle time: after it the reactor sleeps at once. [`sleep`] tells why no wake-up
//! is lost.
//!
//! # Panics
//!
//! A panic in a message or poller ends its *thread*: nothing of it runs again, its mailbox refuses,
//! its state is [`ThreadState::Failed`], and [`ReactorSetBuilder::on_failure`] is called. Other
//! threads of the reactor go on. The state of its pollers is **leaked**: it was left half-changed,
//! and may hold memory that a device still writes to. So a failed thread still holds its
//! descriptors and memory, and a program that cannot go on without it should exit in the callback.
//! A panic of the reactor itself is reported likewise (`thread: None`), and by [`ReactorSet::stop`]
//! and [`ReactorSet::join`].
//!
//! # Bounds
//!
//! [`MAX_REACTORS`], [`MAX_THREADS_PER_REACTOR`], [`MAX_POLLERS_PER_THREAD`] and
//! [`MAX_WAKE_FDS_PER_THREAD`] are refused with an error that names them; a full mailbox refuses
//! with [`SendError::Full`] and hands the message back.
//!
//! # Reading
//!
//! [`Reactor::stats`], [`Thread::stats`] and [`Thread::pollers`] are for any OS thread and stop
//! nobody. The lists of threads and pollers are under locks that reactors take only when one is
//! added or removed.

#![expect(
    unsafe_code,
    reason = "epoll_pwait2 has no safe wrapper; see epoll_wait.rs"
)]

mod cpu_mask;
mod cpu_time;
mod epoll_wait;
mod error;
mod event_loop;
mod local_thread;
mod poller;
mod reactor;
mod set;
pub mod sleep;
mod stats;
mod thread;
pub mod wheel;

pub use cpu_mask::CpuMask;
pub use cpu_time::CpuTime;
pub use error::{ReactorError, SendError};
pub use local_thread::MAX_POLLERS_PER_THREAD;
pub use poller::{PollOutcome, PollerId, PollerSpec};
pub use reactor::{MAX_THREADS_PER_REACTOR, Reactor};
pub use set::{Failure, MAX_REACTORS, ReactorSet, ReactorSetBuilder, SleepPolicy};
pub use stats::{PollerState, PollerStats, ReactorState, ReactorStats, ThreadState, ThreadStats};
pub use thread::{
    MAX_WAKE_FDS_PER_THREAD, Message, PollContext, Thread, ThreadContext, ThreadId, WakeFd,
};
