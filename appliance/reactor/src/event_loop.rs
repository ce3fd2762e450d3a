//! The loop of a reactor: what runs on its OS thread.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent};

use crate::epoll_wait::epoll_wait;
use crate::local_thread::LocalThread;
use crate::reactor::{Reactor, Spawn};
use crate::set::{Failure, SleepPolicy};
use crate::stats::ThreadState;
use crate::thread::ThreadShared;
use crate::wheel::TimerWheel;
use crate::{PollerId, ThreadId};

/// What the threads of a reactor share while they run.
pub(crate) struct Core {
    pub(crate) epoll: Epoll,
    pub(crate) wheel: TimerWheel<TimerToken>,
    epoch: Instant,
    /// Time of the current turn.
    pub(crate) now: Instant,
    /// The same, since the epoch.
    pub(crate) now_ns: u64,
    /// Somebody must be polled once more before the reactor may sleep.
    pub(crate) keep_awake: bool,
    /// For the report if it panics.
    running_thread: Option<usize>,
    pub(crate) running_poller: Option<usize>,
    ending_thread: Option<Arc<ThreadShared>>,
}

/// What a timer of the wheel stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimerToken {
    pub(crate) thread: usize,
    pub(crate) id: ThreadId,
    pub(crate) poller: PollerId,
}

impl Core {
    pub(crate) const MAILBOX_TAG: u64 = 0;
    pub(crate) const FD_TAG: u64 = 1;

    #[inline]
    pub(crate) fn to_ns(&self, at: Instant) -> u64 {
        duration_ns(at.saturating_duration_since(self.epoch))
    }

    pub(crate) fn forget_fd(&self, fd: &OwnedFd) {
        if let Err(error) = self.epoll.delete(fd.as_fd()) {
            tracing::warn!(fd = fd.as_raw_fd(), %error, "cannot stop waiting for a descriptor");
        }
    }
}

pub(crate) fn duration_ns(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(duration.subsec_nanos().into())
}

/// What a turn found.
#[derive(Default)]
struct Turn {
    /// Anything that counts as busy.
    busy: bool,
    /// Work of a message or an active poller: more may follow soon, so polling goes on for a
    /// while. A timed poller's work says nothing about what follows.
    restarts_polling: bool,
}

pub(crate) struct EventLoop {
    reactor: Reactor,
    core: Core,
    threads: Vec<Option<Box<LocalThread>>>,
    /// Timers that have expired and wait for their poller to run. Kept across a panic of one of
    /// them: those behind it still run.
    due: VecDeque<TimerToken>,
    sleep_policy: SleepPolicy,
    idle_turns_before_sleep: u32,
    idle_ns_before_sleep: RangeInclusive<u64>,
    idle_turns: u32,
    last_work_ns: u64,
    /// What holds now of that range.
    idle_ns_now: u64,
    last_turn_was_busy: bool,
    /// The thread whose time since `billed_until_ns` is its busy time.
    billed_thread: Option<Arc<ThreadShared>>,
    billed_until_ns: u64,
}

impl EventLoop {
    pub(crate) fn new(reactor: Reactor, epoll: Epoll) -> EventLoop {
        let options = &reactor.shared.set.options;
        let epoch = reactor.shared.set.epoch;
        let now = Instant::now();
        let now_ns = duration_ns(now.saturating_duration_since(epoch));
        reactor.shared.counters.turn_began_ns.set(now_ns);
        EventLoop {
            core: Core {
                epoll,
                wheel: TimerWheel::new(),
                epoch,
                now,
                now_ns,
                keep_awake: false,
                running_thread: None,
                running_poller: None,
                ending_thread: None,
            },
            threads: Vec::new(),
            due: VecDeque::new(),
            sleep_policy: options.sleep_policy,
            idle_turns_before_sleep: options.idle_turns_before_sleep,
            idle_ns_before_sleep: duration_ns(*options.idle_time_before_sleep.start())
                ..=duration_ns(*options.idle_time_before_sleep.end()),
            idle_turns: 0,
            last_work_ns: now_ns,
            idle_ns_now: duration_ns(*options.idle_time_before_sleep.start()),
            last_turn_was_busy: false,
            billed_thread: None,
            billed_until_ns: now_ns,
            reactor,
        }
    }

    /// Runs until it is told to stop. A panic of a thread ends that thread and the loop goes on;
    /// `Err` carries the message of a panic of the loop itself.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        loop {
            // Whatever a thread has left half-done is never looked at again: see `fail_running`.
            match catch_unwind(AssertUnwindSafe(|| self.run_turns())) {
                Ok(()) => return Ok(()),
                Err(panic) => self.fail_running(panic)?,
            }
        }
    }

    fn run_turns(&mut self) {
        loop {
            if self.reactor.shared.stop_requested.load(Ordering::Relaxed) {
                break;
            }
            let turn = self.turn();
            if turn.restarts_polling {
                self.idle_turns = 0;
                self.last_work_ns = self.core.now_ns;
            } else {
                self.idle_turns = self.idle_turns.saturating_add(1);
                if !turn.busy && !self.core.keep_awake && self.has_idled_long_enough() {
                    self.sleep();
                }
            }
        }
        // Last made, first ended.
        while let Some(thread) = self.threads.pop() {
            if let Some(thread) = thread {
                self.end_thread(*thread);
            }
        }
    }

    #[inline]
    fn has_idled_long_enough(&self) -> bool {
        self.idle_turns >= self.idle_turns_before_sleep
            && self.core.now_ns.saturating_sub(self.last_work_ns) >= self.idle_ns_now
            && self.sleep_policy == SleepPolicy::Adaptive
    }

    /// After a sleep: polling on would have been better if it was short.
    fn adapted(&self, slept_ns: u64) -> u64 {
        let (least, most) = (
            *self.idle_ns_before_sleep.start(),
            *self.idle_ns_before_sleep.end(),
        );
        if slept_ns < most {
            self.idle_ns_now.saturating_mul(2).clamp(least, most)
        } else {
            least
        }
    }

    fn turn(&mut self) -> Turn {
        self.begin_turn();
        let mut turn = Turn::default();
        if !self.reactor.shared.mailbox.is_empty() {
            self.spawn_threads();
            turn.busy = true;
            turn.restarts_polling = true;
        }
        for index in 0..self.threads.len() {
            self.settle_bill(index);
            let Some(thread) = &mut self.threads[index] else {
                continue;
            };
            self.core.running_thread = Some(index);
            if thread.turn(&mut self.core) {
                self.bill(index);
                turn.busy = true;
                turn.restarts_polling = true;
            }
            self.end_if_exiting(index);
        }
        if self.core.wheel.may_be_due(self.core.now_ns) || !self.due.is_empty() {
            turn.busy |= self.run_timers();
        }
        self.core.running_thread = None;
        self.last_turn_was_busy = turn.busy;
        turn
    }

    /// Reads the clock, the only time in an idle turn, and books the turn before.
    #[inline]
    fn begin_turn(&mut self) {
        let counters = &self.reactor.shared.counters;
        let now = Instant::now();
        let now_ns = duration_ns(now.saturating_duration_since(self.core.epoch));
        let spent_ns = now_ns.saturating_sub(self.core.now_ns);
        if self.last_turn_was_busy {
            counters.busy_ns.add(spent_ns);
        } else {
            counters.add_idle_ns(spent_ns);
        }
        if let Some(thread) = self.billed_thread.take() {
            thread
                .busy_ns
                .add(now_ns.saturating_sub(self.billed_until_ns));
        }
        counters.turns.add(1);
        counters.turn_began_ns.set(now_ns);
        self.billed_until_ns = now_ns;
        self.core.now = now;
        self.core.now_ns = now_ns;
        self.core.keep_awake = false;
    }

    /// The thread did work: what passed since the last reading of the clock is its busy time, and
    /// is booked when the clock is read next.
    fn bill(&mut self, index: usize) {
        if self.billed_thread.is_none()
            && let Some(thread) = &self.threads[index]
        {
            self.billed_thread = Some(Arc::clone(&thread.shared));
        }
    }

    /// Before another thread runs: books the busy time of the one before.
    #[inline]
    fn settle_bill(&mut self, next: usize) {
        if self.billed_thread.is_some() {
            self.settle_bill_of_other(next);
        }
    }

    fn settle_bill_of_other(&mut self, next: usize) {
        let next_id = self.threads[next].as_ref().map(|thread| thread.shared.id);
        if let Some(thread) = self
            .billed_thread
            .take_if(|thread| Some(thread.id) != next_id)
        {
            let now_ns = self.core.to_ns(Instant::now());
            thread
                .busy_ns
                .add(now_ns.saturating_sub(self.billed_until_ns));
            self.billed_until_ns = now_ns;
        }
    }

    #[cold]
    fn spawn_threads(&mut self) {
        while let Some(Spawn { shared, message }) = self.reactor.shared.mailbox.pop() {
            let free = self.threads.iter().position(Option::is_none);
            let index = free.unwrap_or_else(|| {
                self.threads.push(None);
                self.threads.len() - 1
            });
            shared.set_running();
            let thread = self.threads[index].insert(Box::new(LocalThread::new(index, shared)));
            self.core.running_thread = Some(index);
            thread.run_message(&mut self.core, message);
            self.end_if_exiting(index);
        }
    }

    #[cold]
    fn run_timers(&mut self) -> bool {
        let due = &mut self.due;
        let now_ns = self.core.now_ns;
        self.core
            .wheel
            .advance(now_ns, |_, token| due.push_back(token));
        let mut busy = false;
        while let Some(token) = self.due.pop_front() {
            self.settle_bill(token.thread);
            let thread = self.threads.get_mut(token.thread).and_then(Option::as_mut);
            // One that ran before it may have ended its thread.
            let Some(thread) = thread.filter(|thread| thread.shared.id == token.id) else {
                continue;
            };
            self.core.running_thread = Some(token.thread);
            if thread.run_timed(&mut self.core, token.poller) {
                self.bill(token.thread);
                busy = true;
            }
            self.end_if_exiting(token.thread);
        }
        busy
    }

    #[inline]
    fn end_if_exiting(&mut self, index: usize) {
        let exiting = self.threads[index].take_if(|thread| thread.exiting);
        if let Some(thread) = exiting {
            self.end_thread(*thread);
        }
    }

    #[cold]
    fn end_thread(&mut self, thread: LocalThread) {
        // Dropping its state can panic: the report then needs its name.
        self.core.ending_thread = Some(Arc::clone(&thread.shared));
        self.core.running_poller = None;
        let shared = Arc::clone(&thread.shared);
        thread.end(&mut self.core, ThreadState::Exited);
        // Last, so that whoever sees it gone can rely on its state being gone.
        shared.close(ThreadState::Exited);
        self.core.ending_thread = None;
    }

    /// Announces the sleep, looks at everything once more, sleeps.
    fn sleep(&mut self) {
        let reactor = self.reactor.clone();
        let gate = reactor.gate();
        gate.announce();
        let stop = reactor.shared.stop_requested.load(Ordering::Relaxed);
        let turn = if stop { Turn::default() } else { self.turn() };
        if turn.restarts_polling {
            self.idle_turns = 0;
            self.last_work_ns = self.core.now_ns;
        }
        if !stop && !turn.busy && !self.core.keep_awake && !gate.is_notified() {
            self.wait();
        }
        gate.retract();
    }

    fn wait(&mut self) {
        let pollers = self
            .threads
            .iter()
            .flatten()
            .map(|thread| thread.earliest_wake_ns())
            .min();
        let timers = self.core.wheel.next_deadline();
        let deadline_ns = timers.into_iter().chain(pollers).min().unwrap_or(u64::MAX);
        let began_ns = self.core.to_ns(Instant::now());
        let timeout = match deadline_ns {
            u64::MAX => None,
            _ if deadline_ns <= began_ns => return,
            _ => Some(Duration::from_nanos(deadline_ns - began_ns)),
        };
        let counters = &self.reactor.shared.counters;
        counters.add_idle_ns(began_ns.saturating_sub(self.core.now_ns));
        counters.enter_sleep(began_ns);
        let mut events = [EpollEvent::empty(); 16];
        let woken = epoll_wait(&self.core.epoll, &mut events, timeout);
        let ended_ns = counters.leave_sleep(began_ns, || self.core.to_ns(Instant::now()));
        self.core.now_ns = ended_ns;
        self.idle_ns_now = self.adapted(ended_ns.saturating_sub(began_ns));
        self.billed_until_ns = ended_ns;
        match woken {
            Ok(0) => counters.woken_by_deadline.add(1),
            Ok(count)
                if events[..count]
                    .iter()
                    .any(|e| e.data() == Core::MAILBOX_TAG) =>
            {
                counters.woken_by_message.add(1);
            }
            Ok(_) => counters.woken_by_fd.add(1),
            Err(Errno::EINTR) => {}
            Err(error) => {
                let reactor = self.reactor.name();
                tracing::error!(reactor, %error, "cannot sleep; it polls without pause from now");
                self.sleep_policy = SleepPolicy::Never;
            }
        }
    }

    /// Ends the thread whose message, poller or drop has panicked. `Err` when none was running.
    #[cold]
    fn fail_running(&mut self, panic: Box<dyn Any + Send>) -> Result<(), String> {
        let message = panic_message(&*panic);
        // Its drop is code of the one that panicked.
        std::mem::forget(panic);
        // A panic between announcing a sleep and retracting it.
        self.reactor.gate().retract();
        self.billed_thread = None;
        let mut poller = None;
        let shared = match (
            self.core.ending_thread.take(),
            self.core.running_thread.take(),
        ) {
            (Some(shared), _) => {
                ignoring_panics(|| shared.close(ThreadState::Failed));
                shared
            }
            (None, Some(index)) => {
                let Some(thread) = self.threads[index].take() else {
                    return Err(message);
                };
                let running = self.core.running_poller.take();
                poller = running.and_then(|slot| thread.poller_name(slot));
                let shared = Arc::clone(&thread.shared);
                thread.end(&mut self.core, ThreadState::Failed);
                ignoring_panics(|| shared.close(ThreadState::Failed));
                shared
            }
            (None, None) => return Err(message),
        };
        let thread = Some((shared.id, shared.name.clone()));
        let reactor = self.reactor.name().to_owned();
        self.reactor.shared.set.report(&Failure {
            reactor,
            thread,
            poller,
            message,
        });
        Ok(())
    }
}

/// Drops what is left, where each item may panic once more: calls `drain` until it returns.
pub(crate) fn ignoring_panics(mut drain: impl FnMut()) {
    while let Err(panic) = catch_unwind(AssertUnwindSafe(&mut drain)) {
        // Its drop could panic too.
        std::mem::forget(panic);
    }
}

pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
