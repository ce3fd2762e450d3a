//! Starting and stopping a set of reactors.

use std::fmt;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::event_loop::{Core, EventLoop, duration_ns, ignoring_panics, panic_message};
use crate::reactor::{Reactor, Started, lock};
use crate::stats::ReactorState;
use crate::{CpuMask, ReactorError, Thread, ThreadContext, ThreadId};

/// Reactors that one set can have.
pub const MAX_REACTORS: usize = 256;

const START_WITHIN: Duration = Duration::from_secs(10);
const DROP_WITHIN: Duration = Duration::from_secs(5);

/// When a reactor sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SleepPolicy {
    /// When it has found nothing to do for a while.
    #[default]
    Adaptive,
    /// It polls without pause: least latency, a whole core.
    Never,
}

/// A panic that ended a thread, or a reactor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// Name of the reactor.
    pub reactor: String,
    /// The thread that has ended; `None` when the reactor itself has.
    pub thread: Option<(ThreadId, String)>,
    /// Name of the poller that panicked; `None` when it was a message or a drop.
    pub poller: Option<String>,
    /// The panic's message.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.thread {
            Some((id, name)) => write!(f, "thread {name} (id {id}) on {}", self.reactor)?,
            None => f.write_str(&self.reactor)?,
        }
        if let Some(poller) = &self.poller {
            write!(f, ", poller {poller}")?;
        }
        write!(f, ": {}", self.message)
    }
}

type OnFailure = Box<dyn Fn(&Failure) + Send + Sync>;

pub(crate) struct Options {
    pub(crate) sleep_policy: SleepPolicy,
    pub(crate) idle_turns_before_sleep: u32,
    pub(crate) idle_time_before_sleep: RangeInclusive<Duration>,
    pub(crate) mailbox_capacity: usize,
    on_failure: Option<OnFailure>,
}

/// What all reactors of a set share.
pub(crate) struct SetShared {
    pub(crate) epoch: Instant,
    pub(crate) options: Options,
    last_thread_id: AtomicU64,
    ended: Mutex<Ended>,
    one_ended: Condvar,
}

#[derive(Default)]
struct Ended {
    /// By position in the set; the message of those that failed.
    reactors: Vec<(usize, Option<String>)>,
}

impl SetShared {
    pub(crate) fn now_ns(&self) -> u64 {
        duration_ns(self.epoch.elapsed())
    }

    pub(crate) fn next_thread_id(&self) -> ThreadId {
        ThreadId(self.last_thread_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn report(&self, failure: &Failure) {
        tracing::error!("{failure}");
        if let Some(on_failure) = &self.options.on_failure {
            on_failure(failure);
        }
    }
}

/// Options of a [`ReactorSet`].
pub struct ReactorSetBuilder {
    placement: Placement,
    options: Options,
}

#[derive(Clone, Copy)]
enum Placement {
    Cores(CpuMask),
    Count(usize),
    Default,
}

impl Default for ReactorSetBuilder {
    fn default() -> ReactorSetBuilder {
        ReactorSetBuilder {
            placement: Placement::Default,
            options: Options {
                sleep_policy: SleepPolicy::Adaptive,
                idle_turns_before_sleep: 16,
                idle_time_before_sleep: Duration::from_micros(50)..=Duration::from_millis(1),
                mailbox_capacity: 1024,
                on_failure: None,
            },
        }
    }
}

impl ReactorSetBuilder {
    /// One reactor on each core of the mask. A core that the kernel refuses leaves its reactor
    /// unpinned, with a notice in [`crate::ReactorStats::notices`].
    pub fn cores(self, mask: CpuMask) -> ReactorSetBuilder {
        ReactorSetBuilder {
            placement: Placement::Cores(mask),
            ..self
        }
    }

    /// So many reactors, on the highest cores that the process may use: the lowest is left to the
    /// control plane as long as there is another. More reactors than cores share them, with a
    /// notice. Without a placement it is one less than there are cores, at least one.
    pub fn count(self, count: usize) -> ReactorSetBuilder {
        ReactorSetBuilder {
            placement: Placement::Count(count),
            ..self
        }
    }

    /// When reactors sleep. Default: [`SleepPolicy::Adaptive`].
    pub fn sleep_policy(mut self, policy: SleepPolicy) -> ReactorSetBuilder {
        self.options.sleep_policy = policy;
        self
    }

    /// Turns without work before a reactor sleeps, and at least
    /// [`ReactorSetBuilder::idle_time_before_sleep`]. Default: 16.
    pub fn idle_turns_before_sleep(mut self, turns: u32) -> ReactorSetBuilder {
        self.options.idle_turns_before_sleep = turns;
        self
    }

    /// Time without work before a reactor sleeps, least and most. It starts at the least, doubles
    /// with each sleep that work ended sooner than the most, and falls back to the least after a
    /// longer one: under load a reactor polls through the pauses between bursts, and one that is
    /// woken now and then soon sleeps again. Default: 50 us, about what a sleep and a wake-up
    /// cost, to 1 ms.
    pub fn idle_time_before_sleep(mut self, time: RangeInclusive<Duration>) -> ReactorSetBuilder {
        self.options.idle_time_before_sleep = time;
        self
    }

    /// Messages that can wait for a thread, at least 1. Default: 1024.
    pub fn mailbox_capacity(mut self, messages: usize) -> ReactorSetBuilder {
        self.options.mailbox_capacity = messages.max(1);
        self
    }

    /// Called when a panic has ended a thread or a reactor, on the reactor's OS thread. The others
    /// go on; a program that cannot live without the one that ended should exit here.
    pub fn on_failure(
        mut self,
        on_failure: impl Fn(&Failure) + Send + Sync + 'static,
    ) -> ReactorSetBuilder {
        self.options.on_failure = Some(Box::new(on_failure));
        self
    }

    /// Starts the reactors and returns when all of them turn.
    pub fn start(self) -> Result<ReactorSet, ReactorError> {
        let cores = self.placement.cores()?;
        let shared = Arc::new(SetShared {
            epoch: Instant::now(),
            options: self.options,
            last_thread_id: AtomicU64::new(0),
            ended: Mutex::default(),
            one_ended: Condvar::new(),
        });
        // Dropped on failure, it stops those that already run.
        let mut set = ReactorSet {
            shared,
            reactors: Vec::new(),
            joins: Mutex::default(),
        };
        let mut starts = Vec::new();
        for (index, (core, notice)) in cores.into_iter().enumerate() {
            let reactor = Reactor::new(index, Arc::clone(&set.shared))?;
            let (join, started) = start_reactor(&reactor, core, notice)?;
            set.reactors.push(reactor);
            lock(&set.joins).push(Some(join));
            starts.push(started);
        }
        for (reactor, started) in set.reactors.iter().zip(starts) {
            started
                .recv_timeout(START_WITHIN)
                .map_err(|_| ReactorError::StartTimeout {
                    reactor: reactor.name().to_owned(),
                    within: START_WITHIN,
                })?;
        }
        Ok(set)
    }
}

impl Placement {
    /// A core for each reactor, with a sentence where it is not a core of its own.
    fn cores(self) -> Result<Vec<(usize, Option<String>)>, ReactorError> {
        let cores: Vec<_> = match self {
            Placement::Cores(mask) => mask.iter().map(|core| (core, None)).collect(),
            Placement::Count(count) => spread(count, CpuMask::allowed()?),
            Placement::Default => {
                let allowed = CpuMask::allowed()?;
                spread(allowed.len().saturating_sub(1).max(1), allowed)
            }
        };
        match cores.len() {
            0 => Err(ReactorError::NoReactors),
            asked if asked > MAX_REACTORS => Err(ReactorError::TooManyReactors {
                asked,
                limit: MAX_REACTORS,
            }),
            _ => Ok(cores),
        }
    }
}

fn spread(count: usize, allowed: CpuMask) -> Vec<(usize, Option<String>)> {
    let allowed: Vec<_> = allowed.iter().collect();
    let own = count.min(allowed.len());
    let first = allowed.len() - own;
    let cores = allowed[first..]
        .iter()
        .copied()
        .cycle()
        .take(count.min(MAX_REACTORS + 1));
    let place = |(index, core)| {
        let notice = || format!("reactor_{index} shares core {core}: only {own} cores are allowed");
        (core, (index >= own).then(notice))
    };
    cores.enumerate().map(place).collect()
}

fn start_reactor(
    reactor: &Reactor,
    core: usize,
    notice: Option<String>,
) -> Result<(JoinHandle<()>, Receiver<()>), ReactorError> {
    let name = || reactor.name().to_owned();
    let descriptors = |source| ReactorError::WakeDescriptors {
        reactor: name(),
        source,
    };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(descriptors)?;
    // Edge-triggered: each write wakes once and the counter need not be read back.
    let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    let interest = EpollEvent::new(interest, Core::MAILBOX_TAG);
    epoll
        .add(reactor.eventfd(), interest)
        .map_err(descriptors)?;
    let (report, started) = sync_channel(1);
    let join = std::thread::Builder::new()
        .name(name())
        .spawn({
            let reactor = reactor.clone();
            move || run_reactor(reactor, epoll, core, notice, &report)
        })
        .map_err(|source| ReactorError::StartReactor {
            reactor: name(),
            source,
        })?;
    Ok((join, started))
}

/// The OS thread of a reactor.
fn run_reactor(
    reactor: Reactor,
    epoll: Epoll,
    core: usize,
    notice: Option<String>,
    report: &SyncSender<()>,
) {
    // Says that the reactor has ended, also when a panic gets this far.
    let mut end = EndOfReactor {
        reactor: reactor.clone(),
        failure: Some("panicked".to_owned()),
    };
    let mut notices = Vec::from_iter(notice);
    let pinned = CpuMask::of(core).bind_current_thread();
    if let Err(errno) = pinned {
        notices.push(format!(
            "{} cannot be pinned to core {core} ({errno}): it runs unpinned",
            reactor.name()
        ));
    }
    // The kernel may delay a wake-up by 50 us otherwise. Refused, deadlines are that much late.
    let _ = nix::sys::prctl::set_timerslack(1);
    let tid = nix::unistd::gettid().as_raw();
    for notice in &notices {
        tracing::warn!("{notice}");
    }
    let core = pinned.is_ok().then_some(core);
    let _ = reactor.shared.started.set(Started { core, tid, notices });
    // The starter may have given up waiting.
    let _ = report.send(());
    let mut event_loop = EventLoop::new(reactor, epoll);
    let result = catch_unwind(AssertUnwindSafe(|| event_loop.run()));
    end.failure = result
        .unwrap_or_else(|panic| Err(panic_message(&*panic)))
        .err();
    if end.failure.is_some() {
        // As for a thread that panicked: what is left of the threads is leaked, not dropped.
        std::mem::forget(event_loop);
    }
}

struct EndOfReactor {
    reactor: Reactor,
    failure: Option<String>,
}

impl Drop for EndOfReactor {
    fn drop(&mut self) {
        let state = match self.failure {
            Some(_) => ReactorState::Failed,
            None => ReactorState::Stopped,
        };
        // Whatever there is to drop, the end must be told.
        ignoring_panics(|| self.reactor.close(state));
        let set = Arc::clone(&self.reactor.shared.set);
        if let Some(message) = &self.failure {
            let reactor = self.reactor.name().to_owned();
            let message = message.clone();
            // A panic of the callback must not keep the end from being told.
            let failure = Failure {
                reactor,
                thread: None,
                poller: None,
                message,
            };
            let report = AssertUnwindSafe(|| set.report(&failure));
            catch_unwind(report).unwrap_or_else(std::mem::forget);
        }
        lock(&set.ended)
            .reactors
            .push((self.reactor.index(), self.failure.take()));
        set.one_ended.notify_all();
    }
}

/// A set of reactors, made by [`ReactorSet::builder`].
///
/// Dropping it stops the reactors and waits for them for five seconds.
pub struct ReactorSet {
    shared: Arc<SetShared>,
    reactors: Vec<Reactor>,
    joins: Mutex<Vec<Option<JoinHandle<()>>>>,
}

impl ReactorSet {
    /// Options for a new set.
    pub fn builder() -> ReactorSetBuilder {
        ReactorSetBuilder::default()
    }

    /// The reactors, by position.
    pub fn reactors(&self) -> &[Reactor] {
        &self.reactors
    }

    /// The cores that reactors are pinned to.
    pub fn cores(&self) -> CpuMask {
        self.reactors.iter().filter_map(Reactor::core).collect()
    }

    /// Makes a thread on the reactor with the fewest threads among those whose core is in the mask
    /// (a reactor that is not pinned is in [`CpuMask::all`] only).
    ///
    /// `init` runs on the reactor's OS thread and registers the thread's pollers; what it makes
    /// there may be `!Send`. The call returns before `init` has run. Messages may be sent at once:
    /// they run after it.
    pub fn spawn_thread(
        &self,
        name: impl Into<String>,
        cpu_mask: CpuMask,
        init: impl FnOnce(&mut ThreadContext<'_>) + Send + 'static,
    ) -> Result<Thread, ReactorError> {
        let fits = |reactor: &&Reactor| match reactor.core() {
            Some(core) => cpu_mask.contains(core),
            None => cpu_mask == CpuMask::all(),
        };
        let candidates = self.reactors.iter().filter(fits);
        match candidates.min_by_key(|reactor| reactor.thread_count()) {
            Some(reactor) => reactor.spawn_thread(name, cpu_mask, init),
            None => Err(ReactorError::NoReactorInMask {
                thread: name.into(),
                mask: Box::new(cpu_mask),
                cores: Box::new(self.cores()),
            }),
        }
    }

    /// All threads, by reactor and in order of making.
    pub fn threads(&self) -> Vec<Thread> {
        self.reactors.iter().flat_map(Reactor::threads).collect()
    }

    /// Has all reactors end their threads and stop, and waits for them. Threads get no chance to
    /// finish what is in flight: whoever wants that asks them by message before.
    ///
    /// A reactor that does not stop in time goes on stopping; another call waits for it again.
    pub fn stop(&self, within: Duration) -> Result<(), ReactorError> {
        for reactor in &self.reactors {
            reactor.shared.stop_requested.store(true, Ordering::Relaxed);
            reactor.wake();
        }
        self.wait(Some(within))
    }

    /// Waits until all reactors have ended.
    pub fn join(&self) -> Result<(), ReactorError> {
        self.wait(None)
    }

    fn wait(&self, within: Option<Duration>) -> Result<(), ReactorError> {
        let deadline = within.and_then(|within| Instant::now().checked_add(within));
        let mut ended = lock(&self.shared.ended);
        while ended.reactors.len() < self.reactors.len() {
            let waited = match deadline {
                None => self.shared.one_ended.wait(ended),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(self.stop_timeout(&ended, within.unwrap_or_default()));
                    }
                    let waited = self.shared.one_ended.wait_timeout(ended, left);
                    waited
                        .map(|(ended, _)| ended)
                        .map_err(|e| PoisonError::new(e.into_inner().0))
                }
            };
            ended = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let failed = ended.reactors.iter().find(|(_, failure)| failure.is_some());
        let failed = failed.map(|(index, message)| ReactorError::ReactorFailed {
            reactor: self.reactors[*index].name().to_owned(),
            message: message.clone().unwrap_or_default(),
        });
        drop(ended);
        for join in lock(&self.joins).iter_mut().filter_map(Option::take) {
            // It has told its end; a panic was reported as a failure.
            let _ = join.join();
        }
        failed.map_or(Ok(()), Err)
    }

    fn stop_timeout(&self, ended: &Ended, within: Duration) -> ReactorError {
        let has_ended = |reactor: &&Reactor| {
            !ended
                .reactors
                .iter()
                .any(|(index, _)| *index == reactor.index())
        };
        let names: Vec<_> = self
            .reactors
            .iter()
            .filter(has_ended)
            .map(Reactor::name)
            .collect();
        ReactorError::StopTimeout {
            reactors: names.join(", "),
            within,
        }
    }
}

impl Drop for ReactorSet {
    fn drop(&mut self) {
        if let Err(error) = self.stop(DROP_WITHIN) {
            tracing::error!("{error}");
        }
    }
}

impl fmt::Debug for ReactorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReactorSet")
            .field("reactors", &self.reactors)
            .finish_non_exhaustive()
    }
}
