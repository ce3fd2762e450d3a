//! What the kernel tells of a process.

use std::fs;
use std::time::Duration;

/// Clock ticks per second of `/proc/PID/stat`; Linux gives 100 to programs on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// CPU time that a process has used; None when there is no such process.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything; utime and stime are the
    // 14th and 15th.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let utime: u32 = fields.next()?.parse().ok()?;
    let stime: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (utime + stime))
}

/// CPU time that one thread of a process has used, to the nanosecond; None when there is no such
/// thread.
pub fn thread_cpu_time(pid: u32, tid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    let ns = stat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(ns))
}

/// Memory that a process holds in RAM. None when there is no such process.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_understood() {
        let pid = std::process::id();
        assert!(cpu_time(pid).is_some());
        assert!(thread_cpu_time(pid, pid).is_some());
        assert!(resident_bytes(pid).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(cpu_time(u32::MAX), None);
    }
}
