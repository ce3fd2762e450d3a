//! A log that a guest writes to a device: one record after the other, a flush after each.
//!
//! Nothing is written twice, so each record is there or is not, whatever comes later. A record whose
//! flush was acknowledged must be there. The one that was being written when the target went may
//! miss blocks that were acknowledged and not flushed: its flush comes after the cut, and the host has
//! no way to know that the target has forgotten them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use program_tests::POLL_INTERVAL;

use crate::{Guest, HarnessError, Job};

const RECORD_BYTES: usize = 32 << 10;

/// The log, and what is known of it.
#[derive(Debug)]
pub struct FlushLog {
    job: Job,
    /// Records that were being written when the target went.
    interrupted: BTreeSet<u32>,
}

impl FlushLog {
    /// The most bytes that so many records take.
    pub const fn bytes(records: u32) -> u64 {
        records as u64 * RECORD_BYTES as u64
    }

    /// Has the guest write records to a block device until [`FlushLog::stop`].
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn start(guest: &mut Guest, device: &str) -> Result<Self, HarnessError> {
        Self::start_with(guest, device, "notrunc,fsync")
    }

    /// As [`FlushLog::start`], but no FLUSH follows a record: it counts when its writes were acknowledged.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn start_unflushed(guest: &mut Guest, device: &str) -> Result<Self, HarnessError> {
        Self::start_with(guest, device, "notrunc")
    }

    fn start_with(guest: &mut Guest, device: &str, conv: &str) -> Result<Self, HarnessError> {
        let blocks = RECORD_BYTES / 4096;
        // A closed connection of the kernel's initiator is SIGPIPE for whoever writes just then.
        let script = format!(
            "record=0\n\
             until [ -e /tmp/log-enough ]; do\n\
             record=$((record + 1))\n\
             seq -f \"record $record line %06.0f\" 3000 | head -c {RECORD_BYTES} |\n\
             (trap '' PIPE; exec dd of={device} oflag=direct iflag=fullblock bs=4096 \
             conv={conv} status=none seek=$(((record - 1) * {blocks})))\n\
             echo $record >/share/log.new; mv /share/log.new /share/log\n\
             done"
        );
        let job = guest.spawn(&script)?;
        let interrupted = BTreeSet::new();
        Ok(Self { job, interrupted })
    }

    /// The last record whose flush was acknowledged; 0 before the first.
    pub fn acknowledged(&self, guest: &Guest) -> u32 {
        // It is replaced by rename: there is always a whole one.
        let text = fs::read_to_string(guest.share().join("log")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Waits until so many more records were acknowledged.
    ///
    /// # Errors
    ///
    /// When they are not in time.
    pub fn progress(
        &self,
        guest: &Guest,
        records: u32,
        deadline: Duration,
    ) -> Result<(), HarnessError> {
        let goal = self.acknowledged(guest) + records;
        let start = Instant::now();
        while self.acknowledged(guest) < goal {
            let waited = start.elapsed();
            if waited > deadline {
                let what = format!("record {goal} of the log");
                return Err(HarnessError::Deadline { what, waited });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Tells that the target has gone and is not back: what was being written then may lack
    /// something. `acknowledged` is what [`FlushLog::acknowledged`] said when it went.
    ///
    /// The guest notes a record before it begins the next, so there would be one such record, were it
    /// not for the kernel: with native multipath it acknowledges a FLUSH that was in flight when its
    /// path went, and never sends it again (Linux 6.12, `nvme_failover_req`: the request that carries
    /// a flush has no bio that could be handed over). So a record may have been noted since.
    pub fn interrupt(&mut self, guest: &Guest, acknowledged: u32) {
        let by_now = self.acknowledged(guest);
        self.interrupted.extend(acknowledged + 1..=by_now + 1);
    }

    /// Ends it, after the record that is being written.
    ///
    /// # Errors
    ///
    /// When the guest failed to write, or does not end in time.
    pub fn stop(&self, guest: &mut Guest, deadline: Duration) -> Result<(), HarnessError> {
        guest.run("touch /tmp/log-enough")?;
        guest.join(self.job, deadline).map(|_| ())
    }

    /// Reads what a device shows of the first records.
    ///
    /// # Errors
    ///
    /// When the guest cannot read it.
    pub fn read(guest: &mut Guest, device: &str, records: u32) -> Result<Vec<u8>, HarnessError> {
        let bytes = Self::bytes(records);
        guest.run(&format!(
            "dd if={device} iflag=direct,count_bytes bs=1M count={bytes} of=/share/log-image \
             status=none"
        ))?;
        let path = guest.share().join("log-image");
        fs::read(&path).map_err(HarnessError::file("read", path))
    }

    /// Checks that the first records are there, but for those that were interrupted.
    ///
    /// # Panics
    ///
    /// When one is not as it was written: it says which blocks.
    #[track_caller]
    pub fn check(&self, image: &[u8], records: u32) {
        let mut wrong = String::new();
        for number in (1..=records).filter(|number| !self.interrupted.contains(number)) {
            let at = (number as usize - 1) * RECORD_BYTES;
            let (found, expected) = (&image[at..at + RECORD_BYTES], record(number));
            let blocks = found.chunks(4096).zip(expected.chunks(4096)).zip(0..);
            let bad = blocks.filter(|((found, expected), _)| found != expected);
            let bad: Vec<u32> = bad.map(|(_, block)| block).collect();
            if let Some(first) = bad.first() {
                let at = *first as usize * 4096;
                let start = String::from_utf8_lossy(&found[at..at + 24]);
                let _ = writeln!(wrong, "record {number}, blocks {bad:?}: {start:?}");
            }
        }
        assert!(
            wrong.is_empty(),
            "of {records} records these were flushed and are lost:\n{wrong}"
        );
    }
}

/// What the guest's script writes as a record.
fn record(number: u32) -> Vec<u8> {
    let mut text = String::with_capacity(RECORD_BYTES + 64);
    let mut line = 1;
    while text.len() < RECORD_BYTES {
        let _ = writeln!(text, "record {number} line {line:06}");
        line += 1;
    }
    text.truncate(RECORD_BYTES);
    text.into_bytes()
}
