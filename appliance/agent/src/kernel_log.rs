//! The kernel's log, read from `/dev/kmsg`. The kernel keeps the ring and says when a reader was too
//! slow.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use api::v1::LogEntry;

use crate::clock::unix_ms;

/// Longest record of the kernel, in bytes (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES_MAX: usize = 8192;

/// How often the end of the log is looked at by one that follows.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// A record of `/dev/kmsg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number; each is one more than the one before.
    pub sequence: u64,
    /// Since the kernel started.
    pub since_start: Duration,
    /// 0 to 7.
    pub priority: u32,
    /// The text, without what the kernel escapes.
    pub text: String,
}

/// Reads a record: `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT` and lines of a dictionary.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Record> {
    let text = String::from_utf8_lossy(bytes);
    let (head, rest) = text.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.trim().parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let microseconds = fields.next()?.parse().ok()?;
    let line = rest.lines().next().unwrap_or_default();
    let printable = line
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '?' } else { c });
    Some(Record {
        sequence,
        since_start: Duration::from_micros(microseconds),
        priority: priority & 7,
        text: printable.collect(),
    })
}

/// A reader of the kernel's log, from the oldest record on.
#[derive(Debug)]
pub struct KernelLog {
    file: std::fs::File,
    next_sequence: Option<u64>,
    started: SystemTime,
}

impl KernelLog {
    /// Opens `dev/kmsg` below `root`. `now` and the uptime tell when a record was written.
    ///
    /// # Errors
    /// As the system says.
    pub fn open(root: &Path, now: SystemTime) -> std::io::Result<KernelLog> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(root.join("dev/kmsg"))?;
        let uptime = uptime(root).unwrap_or_default();
        Ok(KernelLog {
            file,
            next_sequence: None,
            started: now.checked_sub(uptime).unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// The next record; `None` when there is none and `follow` is false.
    ///
    /// # Errors
    /// As the system says.
    pub async fn next(&mut self, follow: bool) -> std::io::Result<Option<LogEntry>> {
        let mut bytes = [0; RECORD_BYTES_MAX];
        loop {
            let read = self.file.read(&mut bytes);
            match read {
                Ok(count) => {
                    if let Some(record) = parse(&bytes[..count]) {
                        return Ok(Some(self.entry(record)));
                    }
                }
                // Records were overwritten before they were read: the next read goes on after them.
                Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if !follow {
                        return Ok(None);
                    }
                    tokio::time::sleep(FOLLOW_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn entry(&mut self, record: Record) -> LogEntry {
        let expected = self.next_sequence.replace(record.sequence.wrapping_add(1));
        let lost = expected.map_or(0, |expected| record.sequence.saturating_sub(expected));
        LogEntry {
            time_unix_ms: unix_ms(self.started + record.since_start),
            source: "kernel".to_owned(),
            line: record.text,
            priority: record.priority,
            lost,
        }
    }
}

/// How long the kernel has run.
#[must_use]
pub fn uptime(root: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(root.join("proc/uptime")).ok()?;
    let seconds: f64 = text.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: &[u8] = b"6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n";

    #[test]
    fn a_record_is_read() {
        let record = parse(GOLDEN).unwrap();
        assert_eq!((record.priority, record.sequence), (6, 339));
        assert_eq!(record.since_start, Duration::from_micros(5_140_900));
        assert_eq!(record.text, "NET: Registered protocol family 10");
        let with_facility = parse(b"30,1,2,-,caller=T1;a\x1bb").unwrap();
        assert_eq!(
            (with_facility.priority, with_facility.text.as_str()),
            (6, "a?b")
        );
    }

    #[test]
    fn what_the_kernel_overwrote_before_it_was_read_is_counted() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/kmsg"), "").unwrap();
        let mut log = KernelLog::open(root.path(), SystemTime::UNIX_EPOCH).unwrap();
        let mut lost = |line: &[u8]| log.entry(parse(line).unwrap()).lost;
        assert_eq!(lost(b"6,10,1,-;the first that is read"), 0);
        assert_eq!(lost(b"6,11,2,-;the next"), 0);
        assert_eq!(lost(b"6,15,3,-;after three"), 3);
    }

    #[test]
    fn a_record_cut_anywhere_is_no_panic() {
        for end in 0..GOLDEN.len() {
            let _ = parse(&GOLDEN[..end]);
        }
        assert_eq!(parse(b"x,1,2,-;t"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
