//! How the control side learns that every poll group has done its part of a change.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug, Default)]
struct Shared {
    is_done: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// A change on its way through the poll groups. A future for those who have an executor,
/// [`Ticket::is_done`] for those who have a loop. Dropping it does not undo the change.
#[derive(Debug)]
#[must_use = "the change has been sent, but is not yet in force everywhere"]
pub struct Ticket(Arc<Shared>);

impl Ticket {
    /// A ticket, and the part that keeps it open. It is done when the last clone of the part is
    /// dropped.
    pub(crate) fn new() -> (Self, Arc<Part>) {
        let shared = Arc::<Shared>::default();
        (Self(Arc::clone(&shared)), Arc::new(Part(shared)))
    }

    /// Whether the change is in force in every poll group and what it took away is idle.
    pub fn is_done(&self) -> bool {
        self.0.is_done.load(Ordering::Acquire)
    }
}

impl Future for Ticket {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        *self.0.waker.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(context.waker().clone());
        if self.is_done() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Held by whoever has not done its part yet.
#[derive(Debug)]
pub(crate) struct Part(Arc<Shared>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.is_done.store(true, Ordering::Release);
        let waker = self
            .0
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
