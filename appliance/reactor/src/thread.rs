//! Threads in SPDK's sense: light, named, with a mailbox, owners of pollers.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::event_loop::Core;
use crate::local_thread::LocalThread;
use crate::poller::PollerShared;
use crate::reactor::{Reactor, lock};
use crate::stats::{Counter, PollerState, ThreadState, ThreadStats};
use crate::{CpuMask, PollOutcome, PollerId, PollerSpec, PollerStats, ReactorError, SendError};

/// Descriptors that one thread can have its reactor wait for.
pub const MAX_WAKE_FDS_PER_THREAD: usize = 1024;

/// What is sent to a thread: run once, on its reactor, between two turns of its pollers.
pub type Message = Box<dyn FnOnce(&mut ThreadContext<'_>) + Send>;

/// Number of a thread, from 1, never used twice by a set of reactors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(pub(crate) u64);

impl ThreadId {
    /// The number, for people and programs.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The thread of a number that [`ThreadId::get`] gave.
    pub fn from_number(number: u64) -> ThreadId {
        ThreadId(number)
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A handle on a thread. Dropping it does not end the thread; [`Thread::exit`] does.
#[derive(Clone)]
pub struct Thread {
    pub(crate) shared: Arc<ThreadShared>,
}

pub(crate) struct ThreadShared {
    pub(crate) id: ThreadId,
    pub(crate) name: String,
    pub(crate) cpu_mask: CpuMask,
    pub(crate) reactor: Reactor,
    pub(crate) mailbox: ArrayQueue<Message>,
    closed: AtomicBool,
    state: AtomicU8,
    pub(crate) pollers: Mutex<Vec<Arc<PollerShared>>>,
    pub(crate) busy_ns: Counter,
    pub(crate) messages: Counter,
    mailbox_full: AtomicU64,
    began_ns: u64,
    /// 0 while it lives.
    ended_ns: Counter,
}

impl ThreadShared {
    pub(crate) fn new(
        name: String,
        cpu_mask: CpuMask,
        reactor: Reactor,
        mailbox_capacity: usize,
    ) -> ThreadShared {
        ThreadShared {
            id: reactor.shared.set.next_thread_id(),
            name,
            cpu_mask,
            mailbox: ArrayQueue::new(mailbox_capacity),
            closed: AtomicBool::new(false),
            state: AtomicU8::new(ThreadState::Starting.code()),
            pollers: Mutex::default(),
            busy_ns: Counter::default(),
            messages: Counter::default(),
            mailbox_full: AtomicU64::new(0),
            began_ns: reactor.shared.set.now_ns(),
            ended_ns: Counter::default(),
            reactor,
        }
    }

    pub(crate) fn set_running(&self) {
        self.state
            .store(ThreadState::Running.code(), Ordering::Relaxed);
    }

    fn state(&self) -> ThreadState {
        ThreadState::from_code(self.state.load(Ordering::Relaxed))
    }

    /// No message is taken from here on; those that wait are dropped.
    pub(crate) fn close(&self, state: ThreadState) {
        self.ended_ns.set(self.reactor.shared.set.now_ns().max(1));
        self.state.store(state.code(), Ordering::Relaxed);
        self.closed.store(true, Ordering::SeqCst);
        while self.mailbox.pop().is_some() {}
    }
}

impl Thread {
    /// Number of the thread.
    pub fn id(&self) -> ThreadId {
        self.shared.id
    }

    /// Name of the thread.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The reactor that it lives on.
    pub fn reactor(&self) -> &Reactor {
        &self.shared.reactor
    }

    /// Wakes the thread's reactor; see [`Reactor::waker`].
    pub fn waker(&self) -> &Waker {
        self.shared.reactor.waker()
    }

    /// What it is doing.
    pub fn state(&self) -> ThreadState {
        self.shared.state()
    }

    /// Queues a message and wakes the reactor if it sleeps. Messages of one sender run in the order
    /// in which they were sent. One that waits when the thread exits is dropped without running.
    pub fn send(
        &self,
        message: impl FnOnce(&mut ThreadContext<'_>) + Send + 'static,
    ) -> Result<(), SendError> {
        self.send_boxed(Box::new(message))
    }

    /// As [`Thread::send`], for a message that is boxed already.
    pub fn send_boxed(&self, message: Message) -> Result<(), SendError> {
        let shared = &*self.shared;
        if shared.closed.load(Ordering::SeqCst) {
            return Err(SendError::Exited {
                thread: shared.name.clone(),
                message,
            });
        }
        if let Err(message) = shared.mailbox.push(message) {
            shared.mailbox_full.fetch_add(1, Ordering::Relaxed);
            let capacity = shared.mailbox.capacity();
            return Err(SendError::Full {
                thread: shared.name.clone(),
                capacity,
                message,
            });
        }
        if shared.closed.load(Ordering::SeqCst) {
            // It closed in between and may not have seen this message: nobody will run it.
            while shared.mailbox.pop().is_some() {}
        }
        shared.reactor.wake();
        Ok(())
    }

    /// Has the poller paused by message.
    pub fn pause_poller(&self, poller: PollerId) -> Result<(), SendError> {
        self.send(move |context| {
            context.pause_poller(poller);
        })
    }

    /// Has the poller resumed by message.
    pub fn resume_poller(&self, poller: PollerId) -> Result<(), SendError> {
        self.send(move |context| {
            context.resume_poller(poller);
        })
    }

    /// Has the poller unregistered by message.
    pub fn unregister_poller(&self, poller: PollerId) -> Result<(), SendError> {
        self.send(move |context| {
            context.unregister_poller(poller);
        })
    }

    /// Has the thread ended by message; see [`ThreadContext::exit`].
    pub fn exit(&self) -> Result<(), SendError> {
        self.send(|context| context.exit())
    }

    /// What the thread is and has done.
    pub fn stats(&self) -> ThreadStats {
        let shared = &*self.shared;
        let busy_ns = shared.busy_ns.get();
        let until_ns = match shared.ended_ns.get() {
            0 => shared.reactor.shared.set.now_ns(),
            ended_ns => ended_ns,
        };
        let elapsed_ns = until_ns.saturating_sub(shared.began_ns);
        let mut stats = ThreadStats {
            id: shared.id,
            name: shared.name.clone(),
            cpu_mask: shared.cpu_mask,
            reactor: shared.reactor.index(),
            state: shared.state(),
            busy: Duration::from_nanos(busy_ns),
            idle: Duration::from_nanos(elapsed_ns.saturating_sub(busy_ns)),
            elapsed: Duration::from_nanos(elapsed_ns),
            active_pollers: 0,
            timed_pollers: 0,
            paused_pollers: 0,
            messages: shared.messages.get(),
            mailbox_len: shared.mailbox.len(),
            mailbox_capacity: shared.mailbox.capacity(),
            mailbox_full: shared.mailbox_full.load(Ordering::Relaxed),
        };
        for poller in lock(&shared.pollers).iter() {
            match poller.state() {
                PollerState::Waiting if poller.is_timed() => stats.timed_pollers += 1,
                PollerState::Waiting => stats.active_pollers += 1,
                PollerState::Paused => stats.paused_pollers += 1,
                PollerState::Unregistered => {}
            }
        }
        stats
    }

    /// What its pollers are and have done, in order of registration.
    pub fn pollers(&self) -> Vec<PollerStats> {
        lock(&self.shared.pollers)
            .iter()
            .map(|poller| poller.stats())
            .collect()
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Thread({} {:?} on {})",
            self.id(),
            self.name(),
            self.reactor().name()
        )
    }
}

/// A descriptor that a thread's reactor waits for while it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeFd {
    pub(crate) slot: usize,
    pub(crate) serial: u32,
}

/// What code that runs on a thread can do to it.
pub struct ThreadContext<'a> {
    pub(crate) core: &'a mut Core,
    pub(crate) thread: &'a mut LocalThread,
}

impl ThreadContext<'_> {
    /// The time, read once per turn of the reactor.
    #[inline]
    pub fn now(&self) -> Instant {
        self.core.now
    }

    /// A handle on the thread.
    pub fn thread(&self) -> &Thread {
        &self.thread.handle
    }

    /// The reactor that it lives on.
    pub fn reactor(&self) -> &Reactor {
        self.thread.handle.reactor()
    }

    /// Wakes this reactor, from anywhere; for libraries. See [`Reactor::waker`].
    pub fn waker(&self) -> &Waker {
        self.reactor().waker()
    }

    /// Adds a poller. Its state may be `!Send`: it never leaves the reactor's OS thread, and is
    /// dropped there.
    pub fn register_poller(
        &mut self,
        spec: PollerSpec,
        poll: impl FnMut(&mut PollContext<'_>) -> PollOutcome + 'static,
    ) -> Result<PollerId, ReactorError> {
        self.thread.register(self.core, spec, Box::new(poll))
    }

    /// Keeps a poller from running until it is resumed; `false` when there is no such poller.
    pub fn pause_poller(&mut self, poller: PollerId) -> bool {
        self.thread.pause(self.core, poller)
    }

    /// Lets a paused poller run: an active one in this or the next turn, a timed one after its
    /// period. `false` when there is no such poller.
    pub fn resume_poller(&mut self, poller: PollerId) -> bool {
        self.thread.resume(self.core, poller)
    }

    /// Removes a poller and drops its state, at once or, for the one that is running, when it
    /// returns. `false` when there is no such poller.
    pub fn unregister_poller(&mut self, poller: PollerId) -> bool {
        self.thread.unregister(self.core, poller)
    }

    /// Has the reactor wake up when `fd` is readable. While it stays readable the reactor does not
    /// sleep, so a poller must consume what is there.
    ///
    /// The reactor keeps a duplicate of the descriptor until it is unregistered or the thread
    /// exits: closing the original before that does not close what it stands for.
    pub fn register_wake_fd(&mut self, fd: BorrowedFd<'_>) -> Result<WakeFd, ReactorError> {
        let thread = || self.thread.shared.name.clone();
        let failed = |source| ReactorError::RegisterWakeFd {
            thread: thread(),
            fd: fd.as_raw_fd(),
            source,
        };
        let Some(slot) = self.thread.free_wake_fd_slot(MAX_WAKE_FDS_PER_THREAD) else {
            let limit = MAX_WAKE_FDS_PER_THREAD;
            return Err(ReactorError::TooManyWakeFds {
                thread: thread(),
                limit,
            });
        };
        let duplicate: OwnedFd = fd.try_clone_to_owned().map_err(failed)?;
        let interest = EpollEvent::new(EpollFlags::EPOLLIN, Core::FD_TAG);
        self.core
            .epoll
            .add(&duplicate, interest)
            .map_err(|errno| failed(errno.into()))?;
        // It may have become readable after its poller last looked.
        self.core.keep_awake = true;
        Ok(self.thread.set_wake_fd(slot, duplicate))
    }

    /// Stops waiting for a descriptor; `false` when it was not registered.
    pub fn unregister_wake_fd(&mut self, wake_fd: WakeFd) -> bool {
        self.thread.unregister_wake_fd(self.core, wake_fd)
    }

    /// The reactor does not sleep after this turn. For work in flight that nothing announces.
    pub fn keep_awake(&mut self) {
        self.core.keep_awake = true;
    }

    /// Ends the thread once the running message or poller has returned: nothing of it runs again,
    /// its pollers are dropped in order of registration, and messages that wait are dropped.
    pub fn exit(&mut self) {
        self.thread.exiting = true;
    }
}

/// What a poller can do while it runs: all that a [`ThreadContext`] can, and say when it wants to
/// run again.
pub struct PollContext<'a> {
    pub(crate) context: ThreadContext<'a>,
    pub(crate) poller: PollerId,
    pub(crate) wake_at_ns: u64,
}

impl PollContext<'_> {
    /// The poller that runs.
    pub fn poller(&self) -> PollerId {
        self.poller
    }

    /// The poller wants to run at `at`, even if nothing wakes the reactor until then. Holds until
    /// its next run, so it is said in each run; the earliest of several times counts.
    ///
    /// An active poller runs in each turn anyway: this bounds the reactor's sleep. A timed poller
    /// runs next at `at` instead of after its period, if that is earlier.
    pub fn wake_at(&mut self, at: Instant) {
        self.wake_at_ns = self.wake_at_ns.min(self.context.core.to_ns(at));
    }
}

impl<'a> std::ops::Deref for PollContext<'a> {
    type Target = ThreadContext<'a>;

    fn deref(&self) -> &ThreadContext<'a> {
        &self.context
    }
}

impl<'a> std::ops::DerefMut for PollContext<'a> {
    fn deref_mut(&mut self) -> &mut ThreadContext<'a> {
        &mut self.context
    }
}
