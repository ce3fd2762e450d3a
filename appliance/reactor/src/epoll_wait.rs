//! `epoll_wait` to the nanosecond.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

/// The kernel has no `epoll_pwait2` (Linux before 5.11, some sandboxes).
static COARSE: AtomicBool = AtomicBool::new(false);

/// Waits for events, at most for `timeout`; `None` waits for ever. Where the kernel counts in
/// milliseconds only, the timeout is rounded up.
pub(crate) fn epoll_wait(
    epoll: &Epoll,
    events: &mut [EpollEvent],
    timeout: Option<Duration>,
) -> Result<usize, Errno> {
    let Some(timeout) = timeout else {
        return epoll.wait(events, EpollTimeout::NONE);
    };
    if !COARSE.load(Ordering::Relaxed) {
        match epoll_pwait2(epoll, events, timeout) {
            Err(Errno::ENOSYS | Errno::EPERM) => COARSE.store(true, Ordering::Relaxed),
            result => return result,
        }
    }
    epoll.wait(events, coarse_timeout(timeout))
}

fn coarse_timeout(timeout: Duration) -> EpollTimeout {
    let timeout_ms = timeout.as_nanos().div_ceil(1_000_000);
    i32::try_from(timeout_ms)
        .ok()
        .and_then(|ms| EpollTimeout::try_from(ms).ok())
        .unwrap_or(
            // 24 days: the caller looks at its deadline again after each wait.
            EpollTimeout::MAX,
        )
}

fn epoll_pwait2(
    epoll: &Epoll,
    events: &mut [EpollEvent],
    timeout: Duration,
) -> Result<usize, Errno> {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let capacity = i32::try_from(events.len()).unwrap_or(i32::MAX);
    // SAFETY: `EpollEvent` is a transparent wrapper of the kernel's structure, the pointer and
    // `capacity` name writable memory that outlives the call, `timeout` is a valid timespec, and
    // a null signal mask means none.
    let count = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.0.as_raw_fd(),
            events.as_mut_ptr().cast::<libc::epoll_event>(),
            capacity,
            &raw const timeout,
            std::ptr::null::<libc::sigset_t>(),
            0usize,
        )
    };
    Errno::result(count).map(|count| count as usize)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::sys::epoll::EpollCreateFlags;

    use super::*;

    #[test]
    fn a_wait_without_events_lasts_at_least_its_timeout() {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut events = [EpollEvent::empty(); 4];
        for timeout_us in [1, 50, 1500] {
            let timeout = Duration::from_micros(timeout_us);
            let began = Instant::now();
            assert_eq!(epoll_wait(&epoll, &mut events, Some(timeout)), Ok(0));
            assert!(began.elapsed() >= timeout);
        }
    }

    #[test]
    fn coarse_timeouts_are_rounded_up_and_bounded() {
        let timeout = |duration| i32::from(coarse_timeout(duration));
        assert_eq!(timeout(Duration::ZERO), 0);
        assert_eq!(timeout(Duration::from_nanos(1)), 1);
        assert_eq!(timeout(Duration::from_micros(1001)), 2);
        assert_eq!(timeout(Duration::MAX), i32::MAX);
    }
}
