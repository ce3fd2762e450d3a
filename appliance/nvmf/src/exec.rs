//! What commands do: fabrics, admin and NVM I/O.

pub(crate) mod abort;
pub(crate) mod admin;
pub(crate) mod fabrics;
pub(crate) mod io;

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use crate::queue::Queue;
use crate::slot::Slot;

/// How often a command looks whether other threads have done their part.
const LOOK_PERIOD: Duration = Duration::from_millis(1);

/// Waits for other threads, without being aborted: what they do goes on anyway.
async fn wait_for<T>(queue: &Queue, slot: &Slot, result: impl Fn() -> Option<T>) -> T {
    loop {
        if let Some(result) = result() {
            return result;
        }
        let at = queue.group.now.get() + LOOK_PERIOD;
        queue.group.timed.borrow_mut().push((at, queue.id, slot.id));
        poll_fn(|_| {
            if queue.group.now.get() >= at {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}
