//! The thread of a pool.
//!
//! The library of pools has no threads: it is stepped. Each pool gets one OS thread, `pool_NAME`, which
//! steps it and sleeps when there is nothing to do until a deadline or a wake-up.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::Instant;

/// What to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Step again at once.
    Now,
    /// Sleep until then, or until woken.
    At(Instant),
    /// Sleep until woken.
    Idle,
    /// Nothing is left to do: the thread ends.
    End,
}

/// Wakes the thread. A wake-up that comes while it does not sleep makes it step once more.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    sound: Condvar,
}

impl Bell {
    /// Sleeps until somebody rings, or until the deadline.
    fn listen(&self, deadline: Option<Instant>) {
        // A panic while the lock was held left a plain flag behind.
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !*rung {
            let Some(deadline) = deadline else {
                rung = self
                    .sound
                    .wait(rung)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return;
            };
            if left.is_zero() {
                return;
            }
            let (guard, _) = self
                .sound
                .wait_timeout(rung, left)
                .unwrap_or_else(PoisonError::into_inner);
            rung = guard;
        }
        *rung = false;
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Bell>) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.sound.notify_one();
    }
}

/// Starts the thread of a pool. `make` runs on it and gives the step, so that what it steps need not be
/// `Send`; it gets the waker that ends the thread's sleep.
///
/// # Errors
/// When the system gives no thread.
pub fn start<F, S>(pool: &str, make: F) -> io::Result<JoinHandle<()>>
where
    F: FnOnce(Waker) -> Option<S> + Send + 'static,
    S: FnMut(Instant) -> Next,
{
    let bell = Arc::new(Bell::default());
    let run = move || {
        let Some(mut step) = make(Waker::from(Arc::clone(&bell))) else {
            return;
        };
        loop {
            match step(Instant::now()) {
                Next::Now => {}
                Next::At(deadline) => bell.listen(Some(deadline)),
                Next::Idle => bell.listen(None),
                Next::End => return,
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("pool_{pool}"))
        .spawn(run)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_steps_until_the_end_and_sleeps_in_between() {
        let (tell, told) = mpsc::channel();
        let (waker_out, waker_in) = mpsc::channel();
        let thread = start("p", move |waker| {
            waker_out.send(waker).unwrap();
            let mut steps = 0;
            Some(move |_: Instant| {
                steps += 1;
                tell.send(steps).unwrap();
                match steps {
                    1 => Next::Now,
                    // In the past: no sleep.
                    2 => Next::At(Instant::now()),
                    3 => Next::Idle,
                    4 => Next::At(Instant::now() + Duration::from_secs(3600)),
                    _ => Next::End,
                }
            })
        })
        .unwrap();
        let waker = waker_in.recv().unwrap();
        for step in 1..=3 {
            assert_eq!(told.recv(), Ok(step));
        }
        // Whether it sleeps already or not yet, a wake-up is never lost.
        waker.wake_by_ref();
        assert_eq!(told.recv(), Ok(4));
        waker.wake_by_ref();
        assert_eq!(told.recv(), Ok(5));
        thread.join().unwrap();
        assert!(told.recv().is_err());
    }

    #[test]
    fn it_carries_the_name_of_its_pool() {
        let (tell, told) = mpsc::channel();
        let make = move |_| {
            let name = std::thread::current().name().map(str::to_owned);
            tell.send(name).unwrap();
            None::<fn(Instant) -> Next>
        };
        start("tank", make).unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap().as_deref(), Some("pool_tank"));
    }
}
