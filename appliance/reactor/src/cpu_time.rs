//! Processor time of another OS thread of the process.

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

/// Processor time that an OS thread has used, by the kernel's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuTime {
    /// All of it, to the nanosecond.
    pub total: Duration,
    /// In the program, to the kernel's tick (10 ms as a rule).
    pub user: Duration,
    /// In the kernel on behalf of it, to the kernel's tick.
    pub system: Duration,
}

pub(crate) fn of_thread(tid: i32) -> io::Result<CpuTime> {
    // As the kernel numbers the clocks of threads: see clock_getcpuclockid(3).
    const PER_THREAD_SCHED: i32 = 0b110;
    let total = clock_gettime(ClockId::from_raw((!tid << 3) | PER_THREAD_SCHED))?;
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"))?;
    let ticks_per_second =
        sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u32::try_from(ticks).ok());
    let (user, system) = ticks_used(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let time = |ticks: u32| {
        Duration::from_secs(ticks.into()) / ticks_per_second.filter(|t| *t > 0).unwrap_or(100)
    };
    Ok(CpuTime {
        total: total.into(),
        user: time(user),
        system: time(system),
    })
}

/// `utime` and `stime` of proc_pid_stat(5), the 14th and 15th field. The name, which is the second,
/// stands in parentheses and may hold any character.
fn ticks_used(stat: &str) -> Option<(u32, u32)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let rest = "S 1 2 3 4 -1 4194304 10 11 12 13 77 88 0 0 20 0 1 0 5";
        assert_eq!(
            ticks_used(&format!("42 (reactor_0) {rest}")),
            Some((77, 88))
        );
        assert_eq!(ticks_used(&format!("42 (a) b 1 2) {rest}")), Some((77, 88)));
        for bad in ["", "42", "42 (x) S 1", &rest.replace("77", "x")] {
            assert_eq!(ticks_used(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_time_of_this_thread_is_told() {
        let tid = nix::unistd::gettid().as_raw();
        let before = of_thread(tid).unwrap();
        let after = of_thread(tid).unwrap();
        assert!(after.total > before.total);
        assert!(of_thread(i32::MAX).is_err());
    }
}
