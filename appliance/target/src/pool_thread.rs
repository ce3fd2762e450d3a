//! The thread of a pool.
//!
//! The library of pools has no threads: it is stepped. Each pool gets one OS thread, `pool_NAME`, which
//! steps it and sleeps when there is nothing to do until a deadline or a wake-up.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

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

/// Wakes the thread. A wake-up that comes while it does not sleep makes it step once more, and costs no
/// system call.
#[derive(Debug)]
pub struct Bell {
    /// Rung, and the thread has not seen it.
    rung: AtomicBool,
    /// The thread sleeps, or is about to.
    sleeps: AtomicBool,
    /// Rung in the middle of a step, after that may have looked at what there is to do.
    missed: AtomicBool,
    /// Written when the thread sleeps.
    event: EventFd,
}

impl Bell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// When the system gives no descriptor.
    pub fn new() -> io::Result<Arc<Bell>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Arc::new(Bell {
            rung: AtomicBool::new(false),
            sleeps: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            event: EventFd::from_value_and_flags(0, flags)?,
        }))
    }

    /// What rings it.
    #[must_use]
    pub fn waker(self: &Arc<Bell>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// Sleeps in the middle of a step: until the descriptor is readable, somebody rings, or the time is
    /// over. May end early. Who rang is not forgotten: the thread steps once more.
    pub fn wait(&self, fd: Option<BorrowedFd<'_>>, timeout: Option<Duration>) {
        if self.sleep(fd, timeout) {
            self.missed.store(true, Ordering::SeqCst);
        }
    }

    /// Sleeps between steps: until somebody rings, or until the deadline.
    fn listen(&self, deadline: Option<Instant>) {
        if self.missed.swap(false, Ordering::SeqCst) {
            return;
        }
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if self.sleep(None, left) || left.is_some_and(|left| left.is_zero()) {
                return;
            }
        }
    }

    /// True if somebody rang. That ends with this call.
    fn sleep(&self, fd: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> bool {
        // Whoever rings after the look below sees this, and writes the event.
        self.sleeps.store(true, Ordering::SeqCst);
        if !self.rung.load(Ordering::SeqCst) {
            let own = PollFd::new(self.event.as_fd(), PollFlags::POLLIN);
            let other = fd.unwrap_or(self.event.as_fd());
            let mut fds = [own, PollFd::new(other, PollFlags::POLLIN)];
            let count = if fd.is_some() { 2 } else { 1 };
            match ppoll(
                &mut fds[..count],
                timeout.map(TimeSpec::from_duration),
                None,
            ) {
                // Also one that comes late, after the thread has seen that it was rung.
                Ok(_) if fds[0].any() == Some(true) => drop(self.event.read()),
                Ok(_) | Err(Errno::EINTR) => {}
                // No memory in the kernel: to try again soon is all that is left.
                Err(_) => std::thread::yield_now(),
            }
        }
        self.sleeps.store(false, Ordering::SeqCst);
        self.rung.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Bell>) {
        let is_first = !self.rung.swap(true, Ordering::SeqCst);
        if is_first && self.sleeps.load(Ordering::SeqCst) {
            // Cannot fail but by being full, and then the thread wakes as well.
            let _ = self.event.write(1);
        }
    }
}

/// Starts the thread of a pool. `make` runs on it and gives the step, so that what it steps need not be
/// `Send`; it gets the bell that ends the thread's sleep.
///
/// # Errors
/// When the system gives no thread, or no descriptor for its bell.
pub fn start<F, S>(pool: &str, make: F) -> io::Result<JoinHandle<()>>
where
    F: FnOnce(&Arc<Bell>) -> Option<S> + Send + 'static,
    S: FnMut(Instant) -> Next,
{
    let bell = Bell::new()?;
    let run = move || {
        let Some(mut step) = make(&bell) else {
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
        let thread = start("p", move |bell| {
            waker_out.send(bell.waker()).unwrap();
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
        let make = move |_: &Arc<Bell>| {
            let name = std::thread::current().name().map(str::to_owned);
            tell.send(name).unwrap();
            None::<fn(Instant) -> Next>
        };
        start("tank", make).unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap().as_deref(), Some("pool_tank"));
    }

    #[test]
    fn a_wait_in_a_step_forgets_no_wake_up() {
        let (tell, told) = mpsc::channel();
        let thread = start("p", move |bell| {
            let bell = Arc::clone(bell);
            let mut steps = 0;
            Some(move |_: Instant| {
                steps += 1;
                tell.send(steps).unwrap();
                if steps == 1 {
                    bell.waker().wake();
                    bell.wait(None, Some(Duration::from_secs(3600)));
                    Next::Idle
                } else {
                    Next::End
                }
            })
        })
        .unwrap();
        thread.join().unwrap();
        assert_eq!(told.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_wait_ends_with_its_descriptor() {
        let bell = Bell::new().unwrap();
        let other = EventFd::from_value(1).unwrap();
        bell.wait(Some(other.as_fd()), None);
        // Nobody rang.
        assert!(!bell.missed.load(Ordering::SeqCst));
    }

    #[test]
    fn many_wake_ups_reach_a_thread_that_sleeps_in_between() {
        let (waker_out, waker_in) = mpsc::channel();
        let seen = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let asked = Arc::clone(&seen);
        let (tell, told) = mpsc::channel();
        let thread = start("p", move |bell| {
            waker_out.send(bell.waker()).unwrap();
            let mut last = 0;
            Some(move |_: Instant| {
                let now = asked.load(Ordering::SeqCst);
                if now != last {
                    last = now;
                    tell.send(now).unwrap();
                }
                if now == 2000 { Next::End } else { Next::Idle }
            })
        })
        .unwrap();
        let waker = waker_in.recv().unwrap();
        for round in 1..=2000 {
            seen.store(round, Ordering::SeqCst);
            waker.wake_by_ref();
            assert_eq!(told.recv(), Ok(round));
        }
        thread.join().unwrap();
    }
}
