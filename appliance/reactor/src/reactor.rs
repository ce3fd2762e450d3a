//! A reactor as seen from outside, and what it shares with its event loop.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::cpu_time::{self, CpuTime};
use crate::set::SetShared;
use crate::sleep::{Notify, SleepGate};
use crate::stats::{ReactorCounters, ReactorState, ThreadState};
use crate::thread::{Message, Thread, ThreadContext, ThreadShared};
use crate::{CpuMask, ReactorError, ReactorStats};

/// Threads that one reactor can have.
pub const MAX_THREADS_PER_REACTOR: usize = 1024;

/// Threads that can wait to be made.
const SPAWN_CAPACITY: usize = 64;

/// A handle on a reactor: one OS thread that polls its threads in turn.
#[derive(Clone)]
pub struct Reactor {
    pub(crate) shared: Arc<ReactorShared>,
}

pub(crate) struct ReactorShared {
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) set: Arc<SetShared>,
    gate: Arc<Gate>,
    waker: Waker,
    pub(crate) mailbox: ArrayQueue<Spawn>,
    pub(crate) stop_requested: AtomicBool,
    closed: AtomicBool,
    pub(crate) counters: ReactorCounters,
    pub(crate) started: OnceLock<Started>,
    pub(crate) threads: Mutex<Vec<Arc<ThreadShared>>>,
}

/// What a reactor knows once it runs.
pub(crate) struct Started {
    pub(crate) core: Option<usize>,
    pub(crate) tid: i32,
    pub(crate) notices: Vec<String>,
}

/// A thread to be made.
pub(crate) struct Spawn {
    pub(crate) shared: Arc<ThreadShared>,
    pub(crate) message: Message,
}

/// The sleep gate over an eventfd, as a target of [`Waker`].
pub(crate) struct Gate(SleepGate<EventFdNotify>);

pub(crate) struct EventFdNotify(EventFd);

impl Notify for EventFdNotify {
    fn notify(&self) {
        // It is watched edge-triggered and never read, so only its 2^64 - 2nd write would block.
        // No other error is possible on a descriptor that is open.
        let _ = self.0.write(1);
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Gate>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Gate>) {
        self.0.wake();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The lists that are guarded so are valid after each single change to them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reactor {
    pub(crate) fn new(index: usize, set: Arc<SetShared>) -> Result<Reactor, ReactorError> {
        let name = format!("reactor_{index}");
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let eventfd =
            EventFd::from_flags(flags).map_err(|source| ReactorError::WakeDescriptors {
                reactor: name.clone(),
                source,
            })?;
        let gate = Arc::new(Gate(SleepGate::new(EventFdNotify(eventfd))));
        let shared = ReactorShared {
            index,
            name,
            set,
            waker: Waker::from(Arc::clone(&gate)),
            gate,
            mailbox: ArrayQueue::new(SPAWN_CAPACITY),
            stop_requested: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            counters: ReactorCounters::default(),
            started: OnceLock::new(),
            threads: Mutex::default(),
        };
        Ok(Reactor {
            shared: Arc::new(shared),
        })
    }

    /// Position in the set.
    pub fn index(&self) -> usize {
        self.shared.index
    }

    /// Name, which is also its OS thread's: `reactor_0`.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// CPU that it is pinned to; `None` when pinning was refused.
    pub fn core(&self) -> Option<usize> {
        self.shared.started.get().and_then(|started| started.core)
    }

    /// Wakes the reactor from any OS thread: each of its active pollers runs at least once after
    /// the call. Cheap: a fence and a load while the reactor is awake, a write to its eventfd only
    /// if it sleeps. All wakers of a reactor are clones of one, so `will_wake` holds among them.
    pub fn waker(&self) -> &Waker {
        &self.shared.waker
    }

    #[inline]
    pub(crate) fn wake(&self) {
        self.shared.gate.0.wake();
    }

    pub(crate) fn gate(&self) -> &SleepGate<EventFdNotify> {
        &self.shared.gate.0
    }

    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.gate().notifier().0
    }

    /// Makes a thread on this reactor. See [`crate::ReactorSet::spawn_thread`].
    pub fn spawn_thread(
        &self,
        name: impl Into<String>,
        cpu_mask: CpuMask,
        init: impl FnOnce(&mut ThreadContext<'_>) + Send + 'static,
    ) -> Result<Thread, ReactorError> {
        let name = name.into();
        let capacity = self.shared.set.options.mailbox_capacity;
        let shared = Arc::new(ThreadShared::new(name, cpu_mask, self.clone(), capacity));
        let thread = Thread {
            shared: Arc::clone(&shared),
        };
        let spawn = Spawn {
            shared: Arc::clone(&shared),
            message: Box::new(init),
        };
        self.queue_spawn(spawn)
            .map_err(|(error, _not_under_the_lock)| error)?;
        self.wake();
        Ok(thread)
    }

    /// Lists the thread and has the reactor make it; a refusal hands it back.
    fn queue_spawn(&self, spawn: Spawn) -> Result<(), (ReactorError, Spawn)> {
        let reactor = || self.name().to_owned();
        let thread = spawn.shared.name.clone();
        // Held across the push, so that a thread that exits at once finds itself in the list.
        let mut threads = lock(&self.shared.threads);
        if self.shared.closed.load(Ordering::SeqCst) {
            return Err((ReactorError::Stopped { reactor: reactor() }, spawn));
        }
        if threads.len() >= MAX_THREADS_PER_REACTOR {
            let limit = MAX_THREADS_PER_REACTOR;
            return Err((
                ReactorError::TooManyThreads {
                    thread,
                    reactor: reactor(),
                    limit,
                },
                spawn,
            ));
        }
        let shared = Arc::clone(&spawn.shared);
        if let Err(spawn) = self.shared.mailbox.push(spawn) {
            return Err((
                ReactorError::ReactorBusy {
                    thread,
                    reactor: reactor(),
                },
                spawn,
            ));
        }
        threads.push(shared);
        Ok(())
    }

    /// The threads on this reactor, in order of making.
    pub fn threads(&self) -> Vec<Thread> {
        let threads = lock(&self.shared.threads);
        threads
            .iter()
            .map(|shared| Thread {
                shared: Arc::clone(shared),
            })
            .collect()
    }

    pub(crate) fn thread_count(&self) -> usize {
        lock(&self.shared.threads).len()
    }

    /// What the reactor is and has done.
    pub fn stats(&self) -> ReactorStats {
        let shared = &*self.shared;
        let counters = shared.counters.snapshot(|| shared.set.now_ns());
        let started = shared.started.get();
        ReactorStats {
            index: shared.index,
            name: shared.name.clone(),
            core: self.core(),
            tid: self.tid(),
            state: counters.state,
            busy: Duration::from_nanos(counters.busy_ns),
            idle: Duration::from_nanos(counters.idle_ns),
            asleep: Duration::from_nanos(counters.asleep_ns),
            since_turn: Duration::from_nanos(counters.since_turn_ns),
            turns: shared.counters.turns.get(),
            sleeps: counters.sleeps,
            woken_by_message: shared.counters.woken_by_message.get(),
            woken_by_fd: shared.counters.woken_by_fd.get(),
            woken_by_deadline: shared.counters.woken_by_deadline.get(),
            threads: self.thread_count(),
            notices: started
                .map(|started| started.notices.clone())
                .unwrap_or_default(),
        }
    }

    fn tid(&self) -> i32 {
        self.shared.started.get().map_or(0, |started| started.tid)
    }

    /// Processor time that the reactor's OS thread has used, by the kernel's account. Unlike busy
    /// and idle it leaves out what others took of the core.
    pub fn cpu_time(&self) -> Result<CpuTime, ReactorError> {
        let tid = self.tid();
        cpu_time::of_thread(tid).map_err(|source| ReactorError::ReadCpuTime {
            reactor: self.name().to_owned(),
            tid,
            source,
        })
    }

    /// No thread is made from here on; those that were to be made are dropped. A drop may panic: a
    /// second call goes on where the first ended.
    pub(crate) fn close(&self, state: ReactorState) {
        self.shared.counters.set_state(state);
        let last = {
            let threads = lock(&self.shared.threads);
            self.shared.closed.store(true, Ordering::SeqCst);
            threads.last().cloned()
        };
        while self.shared.mailbox.pop().is_some() {}
        let ended = match state {
            ReactorState::Failed => ThreadState::Failed,
            _ => ThreadState::Exited,
        };
        let mut next = last;
        while let Some(thread) = next {
            thread.close(ended);
            let mut threads = lock(&self.shared.threads);
            threads.pop();
            next = threads.last().cloned();
        }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reactor({})", self.name())
    }
}
