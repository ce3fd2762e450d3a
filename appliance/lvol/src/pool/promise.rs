//! [`Promise`]: the answer of a call that the pool's worker will give.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::LvolError;

/// An answer on its way. Await it, or ask [`Promise::try_take`] after steps of the worker.
///
/// Dropping it does not take the call back.
#[derive(Debug)]
pub struct Promise<T>(Arc<Mutex<State<T>>>);

/// The worker's end. Dropped without an answer it says that the pool was closed.
#[derive(Debug)]
pub(crate) struct Resolver<T>(Option<Arc<Mutex<State<T>>>>);

#[derive(Debug)]
struct State<T> {
    answer: Option<Result<T, LvolError>>,
    waker: Option<Waker>,
}

pub(crate) fn promise<T>() -> (Promise<T>, Resolver<T>) {
    let state = Arc::new(Mutex::new(State {
        answer: None,
        waker: None,
    }));
    (Promise(Arc::clone(&state)), Resolver(Some(state)))
}

impl<T> Promise<T> {
    /// The answer, once, if it is there.
    ///
    /// # Errors
    /// What the call failed with.
    #[must_use]
    pub fn try_take(&self) -> Option<Result<T, LvolError>> {
        lock(&self.0).answer.take()
    }
}

impl<T> Future for Promise<T> {
    type Output = Result<T, LvolError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.0);
        match state.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Resolver<T> {
    pub(crate) fn resolve(mut self, answer: Result<T, LvolError>) {
        self.give(answer);
    }

    fn give(&mut self, answer: Result<T, LvolError>) {
        let Some(state) = self.0.take() else { return };
        let waker = {
            let mut state = lock(&state);
            state.answer = Some(answer);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Resolver<T> {
    fn drop(&mut self) {
        self.give(Err(LvolError::Closed));
    }
}

/// A panic while it was held left a plain value behind.
fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
