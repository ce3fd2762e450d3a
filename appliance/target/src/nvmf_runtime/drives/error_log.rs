//! The error log of a drive: what is kept of it, and what in it is new.

use api::v1::NvmeErrorEntry;
use nvme_spec::log::ErrorEntry;

/// Entries that are kept.
const KEPT: usize = 16;
/// SQID, CID and the parameter error location of an error that has none.
const NONE: u16 = 0xffff;

/// The newest entries that were read, the newest first. The drive may forget them, with a reset for
/// example; here they stay.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    /// The highest error count that was seen.
    newest: u64,
    entries: Vec<NvmeErrorEntry>,
}

impl ErrorLog {
    pub(super) fn entries(&self) -> &[NvmeErrorEntry] {
        &self.entries
    }

    /// Takes what was read of the log. Gives the entries that were not there before.
    pub(super) fn add(&mut self, read: &[ErrorEntry], read_unix_ms: u64) -> &[NvmeErrorEntry] {
        let count = |entry: &ErrorEntry| entry.error_count.get();
        let Some(newest) = read.iter().map(count).max() else {
            return &[];
        };
        if newest < self.newest {
            // Resets and losses of power leave the count as it is: it has begun anew.
            self.newest = 0;
        }
        let new = read.iter().filter(|entry| count(entry) > self.newest);
        let mut new: Vec<_> = new.map(|entry| message(entry, read_unix_ms)).collect();
        new.sort_by_key(|entry| std::cmp::Reverse(entry.error_count));
        let added = new.len().min(KEPT);
        new.append(&mut self.entries);
        new.truncate(KEPT);
        self.entries = new;
        self.newest = newest;
        &self.entries[..added]
    }
}

fn message(entry: &ErrorEntry, read_unix_ms: u64) -> NvmeErrorEntry {
    let some = |value: u16| (value != NONE).then_some(u32::from(value));
    let status = entry.status();
    let location = some(entry.parameter_error_location.get());
    let has_opcode = entry.log_page_version >= 1;
    NvmeErrorEntry {
        error_count: entry.error_count.get(),
        submission_queue_id: some(entry.sqid.get()),
        command_id: some(entry.cid.get()),
        status: status.to_string(),
        status_code_type: status.sct().into(),
        status_code: status.sc().into(),
        parameter_byte: location.map(|location| location & 0xff),
        parameter_bit: location.map(|location| location >> 8 & 0b111),
        lba: entry.lba.get(),
        nsid: entry.nsid.get(),
        vendor_log_id: entry.vendor_log.into(),
        transport_type: entry.trtype.into(),
        command_specific: entry.command_specific.get(),
        transport_specific: entry.transport_specific.get().into(),
        opcode: has_opcode.then_some(entry.opcode.into()),
        read_unix_ms,
    }
}

#[cfg(test)]
mod tests {
    use nvme_spec::Status;

    use super::*;

    fn entry(error_count: u64) -> ErrorEntry {
        ErrorEntry {
            error_count: error_count.into(),
            ..ErrorEntry::default()
        }
    }

    fn counts(entries: &[NvmeErrorEntry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.error_count).collect()
    }

    #[test]
    fn only_what_was_not_seen_is_new_and_the_newest_are_kept() {
        let mut log = ErrorLog::default();
        assert!(log.add(&[], 1).is_empty());
        assert_eq!(counts(log.add(&[entry(8), entry(7)], 2)), [8, 7]);
        assert!(log.add(&[entry(8), entry(7)], 3).is_empty());
        assert_eq!(counts(log.add(&[entry(9), entry(8)], 4)), [9]);
        // The drive has forgotten them; here they stay, with the time they were read.
        assert!(log.add(&[], 5).is_empty());
        assert_eq!(counts(log.entries()), [9, 8, 7]);
        assert_eq!(log.entries()[1].read_unix_ms, 2);
        let many: Vec<_> = (10..=25).rev().map(entry).collect();
        assert_eq!(log.add(&many, 6).len(), 16);
        assert_eq!(counts(log.entries()), (10..=25).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_count_that_begins_anew_hides_nothing() {
        let mut log = ErrorLog::default();
        log.add(&[entry(u64::MAX)], 1);
        assert_eq!(counts(log.add(&[entry(1)], 2)), [1]);
        assert_eq!(counts(log.add(&[entry(2), entry(1)], 3)), [2]);
        assert_eq!(counts(log.entries()), [2, 1, u64::MAX]);
    }

    #[test]
    fn what_an_entry_does_not_have_is_unset() {
        let with = ErrorEntry {
            sqid: 3.into(),
            cid: 0x1234.into(),
            // Bit 2 of byte 44.
            parameter_error_location: 0x022c.into(),
            lba: 77.into(),
            nsid: 2.into(),
            opcode: 0x02,
            log_page_version: 1,
            ..entry(1)
        };
        let with = message(&with.with_status(Status::UNRECOVERED_READ_ERROR), 5);
        assert_eq!(with.submission_queue_id, Some(3));
        assert_eq!(with.command_id, Some(0x1234));
        assert_eq!(with.status, "unrecovered read error (2h/81h)");
        assert_eq!((with.status_code_type, with.status_code), (2, 0x81));
        assert_eq!(
            (with.parameter_byte, with.parameter_bit),
            (Some(44), Some(2))
        );
        assert_eq!((with.lba, with.nsid, with.opcode), (77, 2, Some(2)));
        let without = ErrorEntry {
            sqid: NONE.into(),
            cid: NONE.into(),
            parameter_error_location: NONE.into(),
            opcode: 0x02,
            ..entry(1)
        };
        let without = message(&without, 5);
        assert_eq!(
            (without.submission_queue_id, without.command_id),
            (None, None)
        );
        assert_eq!(
            (without.parameter_byte, without.parameter_bit),
            (None, None)
        );
        assert_eq!(without.opcode, None);
    }
}
