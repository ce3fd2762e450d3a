//! What can go wrong, one variant per failing operation.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

use crate::{CpuMask, Message};

/// An operation on reactors, threads or pollers that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReactorError {
    /// A CPU mask could not be read.
    #[error("CPU mask {text:?} is not valid: {reason}; write 0x3 or [0,2-3]")]
    ParseCpuMask {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel would not tell where the process may run.
    #[error("cannot read the CPU affinity of the process")]
    ReadAffinity {
        /// The kernel's answer.
        source: Errno,
    },
    /// Neither a core nor a count of reactors was left after the options were read.
    #[error("no reactor asked for: the core mask is empty or the count is 0")]
    NoReactors,
    /// More reactors than [`crate::MAX_REACTORS`].
    #[error("{asked} reactors asked for, at most {limit} are possible")]
    TooManyReactors {
        /// How many were asked for.
        asked: usize,
        /// The bound.
        limit: usize,
    },
    /// A reactor's epoll instance or eventfd could not be made.
    #[error("cannot make the wake-up descriptors of {reactor}; is the open file limit too low?")]
    WakeDescriptors {
        /// Name of the reactor.
        reactor: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The OS thread of a reactor could not be started.
    #[error("cannot start the OS thread of {reactor}")]
    StartReactor {
        /// Name of the reactor.
        reactor: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The OS thread of a reactor was started but did not report.
    #[error("{reactor} did not come up within {within:?}")]
    StartTimeout {
        /// Name of the reactor.
        reactor: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// A thread may run only where no reactor is.
    #[error("thread {thread}: no reactor runs on a CPU of mask {mask}; reactors are on {cores}")]
    NoReactorInMask {
        /// Name of the thread.
        thread: String,
        /// Where it may run.
        mask: Box<CpuMask>,
        /// Where reactors are.
        cores: Box<CpuMask>,
    },
    /// A reactor has as many threads as it can hold.
    #[error("thread {thread}: {reactor} already has {limit} threads")]
    TooManyThreads {
        /// Name of the thread.
        thread: String,
        /// Name of the reactor.
        reactor: String,
        /// The bound.
        limit: usize,
    },
    /// A reactor's own mailbox is full: it is stuck, or threads are made faster than it turns.
    #[error("thread {thread}: the mailbox of {reactor} is full; try again")]
    ReactorBusy {
        /// Name of the thread.
        thread: String,
        /// Name of the reactor.
        reactor: String,
    },
    /// The reactor has stopped.
    #[error("{reactor} has stopped")]
    Stopped {
        /// Name of the reactor.
        reactor: String,
    },
    /// A thread has as many pollers as it can hold.
    #[error("poller {poller}: thread {thread} already has {limit} pollers")]
    TooManyPollers {
        /// Name of the poller.
        poller: String,
        /// Name of the thread.
        thread: String,
        /// The bound.
        limit: usize,
    },
    /// A thread has as many wake-up descriptors as it can hold.
    #[error("thread {thread} already has {limit} wake-up descriptors")]
    TooManyWakeFds {
        /// Name of the thread.
        thread: String,
        /// The bound.
        limit: usize,
    },
    /// A descriptor could not be added to the reactor's epoll instance.
    #[error("thread {thread}: cannot wait for descriptor {fd}; it must be one that epoll accepts")]
    RegisterWakeFd {
        /// Name of the thread.
        thread: String,
        /// Number of the descriptor that was given.
        fd: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Reactors were still in a turn when the time to stop had passed.
    #[error("{reactors} did not stop within {within:?}: a poller or message does not return")]
    StopTimeout {
        /// Names of the reactors, separated by commas.
        reactors: String,
        /// How long they were waited for.
        within: Duration,
    },
    /// A reactor ended by a panic of its own (not of a thread on it).
    #[error("{reactor} failed: {message}")]
    ReactorFailed {
        /// Name of the reactor.
        reactor: String,
        /// The panic's message.
        message: String,
    },
    /// The processor time of a reactor could not be read.
    #[error("cannot read the processor time of {reactor} (tid {tid})")]
    ReadCpuTime {
        /// Name of the reactor.
        reactor: String,
        /// Its kernel thread.
        tid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A message that was not queued, with the message.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The mailbox holds as many messages as it can. Nothing was queued; try again later.
    #[error("mailbox of thread {thread} is full ({capacity} messages)")]
    Full {
        /// Name of the thread.
        thread: String,
        /// How many messages its mailbox holds.
        capacity: usize,
        /// What was to be sent.
        message: Message,
    },
    /// The thread has exited or failed, or its reactor has stopped.
    #[error("thread {thread} has exited")]
    Exited {
        /// Name of the thread.
        thread: String,
        /// What was to be sent.
        message: Message,
    },
}

impl SendError {
    /// Whether a later try can succeed.
    pub fn is_full(&self) -> bool {
        matches!(self, SendError::Full { .. })
    }

    /// The message that was not queued.
    pub fn into_message(self) -> Message {
        match self {
            SendError::Full { message, .. } | SendError::Exited { message, .. } => message,
        }
    }
}

impl std::fmt::Debug for SendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendError({self})")
    }
}
