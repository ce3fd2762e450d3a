//! What a controller's parts share: its admin queue, and how operations use it.
//!
//! An operation is a future that is polled by hand: it submits a command to the admin queue, and
//! finds the completion here once a poll of the controller has received it. There are no wakers: an
//! operation is polled again after the controller was.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nvme_spec::{Cid, Qid};

use crate::buffer::Buffer;
use crate::command::{Command, Completion, Refusal, Submit};
use crate::error::{CommandError, HostError};
use crate::host_queue::HostQueue;
use crate::io::MAX_TAG;

/// Abort requests of I/O queues that wait at a time. Those beyond run into their grace time.
const MAX_ABORT_REQUESTS: usize = 128;

/// Tag of Asynchronous Event Requests.
pub(crate) const TAG_EVENT: u64 = MAX_TAG;
/// Tag of Keep Alive.
pub(crate) const TAG_KEEP_ALIVE: u64 = MAX_TAG + 1;
/// Tag of Abort.
pub(crate) const TAG_ABORT: u64 = MAX_TAG + 2;

/// A controller's admin queue.
pub(crate) struct Association {
    pub(crate) queue: RefCell<HostQueue>,
    pub(crate) now: Cell<Instant>,
    /// What bringing it up is at.
    pub(crate) step: Cell<&'static str>,
    /// Connect has succeeded: keep-alive is due.
    pub(crate) is_connected: Cell<bool>,
    /// No queue of it can be used any more.
    pub(crate) is_ended: Cell<bool>,
    pub(crate) abort_requests: RefCell<Vec<(Qid, Cid)>>,
    finished: RefCell<Vec<Completion>>,
    abandoned: RefCell<Vec<u64>>,
    next_tag: Cell<u64>,
}

impl Association {
    pub(crate) fn new(queue: HostQueue, now: Instant) -> Rc<Self> {
        Rc::new(Self {
            queue: RefCell::new(queue),
            now: Cell::new(now),
            step: Cell::new("connecting"),
            is_connected: Cell::new(false),
            is_ended: Cell::new(false),
            abort_requests: RefCell::default(),
            finished: RefCell::default(),
            abandoned: RefCell::default(),
            next_tag: Cell::new(0),
        })
    }

    /// Asks for a command of an I/O queue to be aborted.
    pub(crate) fn request_abort(&self, qid: Qid, cid: Cid) {
        let mut requests = self.abort_requests.borrow_mut();
        if requests.len() < MAX_ABORT_REQUESTS {
            requests.push((qid, cid));
        }
    }

    /// Keeps a completion for the operation that waits for it.
    pub(crate) fn finish(&self, completion: Completion) {
        let mut abandoned = self.abandoned.borrow_mut();
        match abandoned.iter().position(|&tag| tag == completion.tag) {
            Some(index) => {
                abandoned.swap_remove(index);
            }
            None => self.finished.borrow_mut().push(completion),
        }
    }

    /// Why nothing can be sent.
    pub(crate) fn failure(&self) -> HostError {
        let queue = self.queue.borrow();
        let state = "connecting";
        let not_ready = HostError::NotReady {
            what: "an admin command",
            state,
        };
        queue.failure().cloned().unwrap_or(not_ready)
    }

    /// Runs a command; gives its completion whatever its status.
    pub(crate) async fn run(self: &Rc<Self>, command: Command) -> Result<Completion, HostError> {
        Issued {
            association: Rc::clone(self),
            command: Some(command),
            tag: None,
        }
        .wait()
        .await
    }

    /// Runs a command that must succeed. Gives its result and its buffer.
    pub(crate) async fn execute(
        self: &Rc<Self>,
        what: &'static str,
        command: Command,
    ) -> Result<(u64, Buffer), HostError> {
        let completion = self.run(command).await?;
        match completion.result {
            Ok(result) => Ok((result, completion.buffer)),
            Err(error) => Err(self.command_error(what, error)),
        }
    }

    pub(crate) fn command_error(&self, what: &'static str, error: CommandError) -> HostError {
        let queue = self.queue.borrow();
        error.of(what, queue.failure(), queue.config().qid)
    }

    /// Waits, by the caller's clock.
    pub(crate) async fn sleep(&self, duration: Duration) {
        let until = self.now.get() + duration;
        poll_fn(|_| {
            if self.now.get() >= until {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Waits until the connection is up.
    pub(crate) async fn wait_link(&self) -> Result<(), HostError> {
        poll_fn(|_| {
            let queue = self.queue.borrow();
            match queue.failure() {
                Some(error) => Poll::Ready(Err(error.clone())),
                None if queue.is_ready() => Poll::Ready(Ok(())),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// A command on its way.
struct Issued {
    association: Rc<Association>,
    command: Option<Command>,
    tag: Option<u64>,
}

impl Issued {
    async fn wait(mut self) -> Result<Completion, HostError> {
        poll_fn(move |_| self.advance()).await
    }

    fn advance(&mut self) -> Poll<Result<Completion, HostError>> {
        let association = &self.association;
        if let Some(mut command) = self.command.take() {
            let tag = association.next_tag.get();
            command.tag = tag;
            let submit = association
                .queue
                .borrow_mut()
                .submit(command, association.now.get());
            match submit {
                Submit::Accepted(_) => {
                    association.next_tag.set(tag + 1);
                    self.tag = Some(tag);
                }
                Submit::Refused(refused) if refused.reason == Refusal::Full => {
                    self.command = Some(refused.command);
                    return Poll::Pending;
                }
                Submit::Refused(refused) if refused.reason == Refusal::NotReady => {
                    return Poll::Ready(Err(association.failure()));
                }
                Submit::Refused(_) => {
                    let reason = "the buffer cannot be used this way";
                    let option = "buffer";
                    return Poll::Ready(Err(HostError::Option {
                        option,
                        value: 0,
                        reason,
                    }));
                }
            }
        }
        let mut finished = association.finished.borrow_mut();
        let found = finished
            .iter()
            .position(|completion| Some(completion.tag) == self.tag);
        match found {
            Some(index) => {
                self.tag = None;
                Poll::Ready(Ok(finished.swap_remove(index)))
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        let Some(tag) = self.tag else { return };
        let mut finished = self.association.finished.borrow_mut();
        match finished.iter().position(|completion| completion.tag == tag) {
            Some(index) => {
                finished.swap_remove(index);
            }
            None => self.association.abandoned.borrow_mut().push(tag),
        }
    }
}

/// Something that takes several polls. Dropping it gives it up; a command of it that is outstanding
/// runs to its end unnoticed.
pub struct Operation<T> {
    future: Option<Running<T>>,
}

type Running<T> = Pin<Box<dyn Future<Output = Result<T, HostError>>>>;

impl<T> Operation<T> {
    pub(crate) fn new(future: impl Future<Output = Result<T, HostError>> + 'static) -> Self {
        Self {
            future: Some(Box::pin(future)),
        }
    }

    /// Its result, once. Poll the controller before each call: that is what moves it on.
    pub fn poll(&mut self) -> Option<Result<T, HostError>> {
        let mut context = Context::from_waker(Waker::noop());
        match self.future.as_mut()?.as_mut().poll(&mut context) {
            Poll::Ready(result) => {
                self.future = None;
                Some(result)
            }
            Poll::Pending => None,
        }
    }

    /// Whether its result has been given.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.future.is_none()
    }
}

impl<T> fmt::Debug for Operation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Operation({})",
            if self.is_over() { "over" } else { "running" }
        )
    }
}
