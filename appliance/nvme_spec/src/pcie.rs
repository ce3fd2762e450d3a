//! What only the PCIe transport has, and the admin commands that manage a drive: I/O queues,
//! doorbells, formats, namespaces, firmware, sanitize.

use crate::opcode::{admin, nvm};
use crate::registers::{Cap, DOORBELLS};
use crate::{Cid, Lba, Nsid, Qid, Sqe};

/// Offset in BAR 0 of the tail doorbell of a submission queue (NVMe over PCIe §3.1.2).
pub const fn sq_doorbell(cap: Cap, qid: Qid) -> u32 {
    DOORBELLS + doorbell_index(qid, false) * doorbell_stride(cap)
}

/// Offset in BAR 0 of the head doorbell of a completion queue (NVMe over PCIe §3.1.2).
pub const fn cq_doorbell(cap: Cap, qid: Qid) -> u32 {
    DOORBELLS + doorbell_index(qid, true) * doorbell_stride(cap)
}

/// Bytes from one doorbell to the next, also in the buffers of Doorbell Buffer Config.
pub const fn doorbell_stride(cap: Cap) -> u32 {
    4 << cap.dstrd()
}

/// Place of a doorbell among all: two for each queue identifier.
pub const fn doorbell_index(qid: Qid, is_completion: bool) -> u32 {
    qid.0 as u32 * 2 + is_completion as u32
}

/// SEL of Namespace Management (Base §5.1.21) and Attachment (Base §5.1.20).
pub mod ns_select {
    crate::layout::constants! { u8;
        /// Namespace Management: create.
        CREATE = 0;
        /// Namespace Management: delete.
        DELETE = 1;
        /// Namespace Attachment: attach.
        ATTACH = 0;
        /// Namespace Attachment: detach.
        DETACH = 1;
    }
}

/// SANACT of Sanitize (Base §5.1.22).
pub mod sanitize_action {
    crate::layout::constants! { u8;
        /// Exit failure mode.
        EXIT_FAILURE = 1;
        /// Start a block erase.
        BLOCK_ERASE = 2;
        /// Start an overwrite.
        OVERWRITE = 3;
        /// Start a crypto erase.
        CRYPTO_ERASE = 4;
    }
}

/// SES of Format NVM (Base §5.1.10).
pub mod secure_erase {
    crate::layout::constants! { u8;
        /// Nothing is asked for.
        NONE = 0;
        /// User data is erased.
        USER_DATA = 1;
        /// The key of the user data is deleted.
        CRYPTOGRAPHIC = 2;
    }
}

/// Queue management (Base §5.2).
impl Sqe {
    const PHYSICALLY_CONTIGUOUS: u32 = 1 << 0;
    const INTERRUPTS_ENABLED: u32 = 1 << 1;

    /// Create I/O Completion Queue of `entries` entries at `address`. `vector`: the interrupt, if
    /// any.
    pub const fn create_io_cq(
        cid: Cid,
        qid: Qid,
        entries: u16,
        address: u64,
        vector: Option<u16>,
    ) -> Self {
        let interrupt = match vector {
            Some(vector) => (vector as u32) << 16 | Self::INTERRUPTS_ENABLED,
            None => 0,
        };
        Self::new(admin::CREATE_IO_CQ, cid)
            .with_prp(address, 0)
            .with_queue(qid, entries)
            .with_cdw11(interrupt | Self::PHYSICALLY_CONTIGUOUS)
    }

    /// Create I/O Submission Queue of `entries` entries at `address`, of priority `qprio` (0 is
    /// urgent, 3 low; only weighted round robin looks at it).
    pub const fn create_io_sq(
        cid: Cid,
        qid: Qid,
        entries: u16,
        address: u64,
        cqid: Qid,
        qprio: u8,
    ) -> Self {
        let attributes = Self::PHYSICALLY_CONTIGUOUS | (qprio as u32 & 0b11) << 1;
        Self::new(admin::CREATE_IO_SQ, cid)
            .with_prp(address, 0)
            .with_queue(qid, entries)
            .with_cdw11((cqid.0 as u32) << 16 | attributes)
    }

    /// Delete I/O Submission Queue.
    pub const fn delete_io_sq(cid: Cid, qid: Qid) -> Self {
        Self::new(admin::DELETE_IO_SQ, cid).with_cdw10(qid.0 as u32)
    }

    /// Delete I/O Completion Queue.
    pub const fn delete_io_cq(cid: Cid, qid: Qid) -> Self {
        Self::new(admin::DELETE_IO_CQ, cid).with_cdw10(qid.0 as u32)
    }

    const fn with_queue(self, qid: Qid, entries: u16) -> Self {
        self.with_cdw10(qid.0 as u32 | (entries.wrapping_sub(1) as u32) << 16)
    }

    /// QID of a queue management command.
    pub const fn queue_id(&self) -> Qid {
        Qid(self.cdw10() as u16)
    }

    /// Entries of a queue to be created, 1 to 65536: QSIZE is zero-based.
    pub const fn queue_entries(&self) -> u32 {
        (self.cdw10() >> 16) + 1
    }

    /// PC of a queue to be created.
    pub const fn queue_is_contiguous(&self) -> bool {
        self.cdw11() & Self::PHYSICALLY_CONTIGUOUS != 0
    }

    /// The interrupt vector of a completion queue to be created, if its interrupts are on.
    pub const fn queue_vector(&self) -> Option<u16> {
        if self.cdw11() & Self::INTERRUPTS_ENABLED == 0 {
            return None;
        }
        Some((self.cdw11() >> 16) as u16)
    }

    /// CQID of a submission queue to be created.
    pub const fn queue_cqid(&self) -> Qid {
        Qid((self.cdw11() >> 16) as u16)
    }

    /// Doorbell Buffer Config: the page of shadow doorbells, and that of event indexes.
    pub const fn doorbell_buffer_config(cid: Cid, shadow: u64, event_index: u64) -> Self {
        Self::new(admin::DOORBELL_BUFFER_CONFIG, cid).with_prp(shadow, event_index)
    }
}

/// Managing a drive.
impl Sqe {
    /// Format NVM: LBA format `lbaf` (0 to 63), secure erase `ses`.
    pub const fn format_nvm(cid: Cid, nsid: Nsid, lbaf: u8, ses: u8) -> Self {
        let (low, high) = (lbaf as u32 & 0xf, lbaf as u32 >> 4 & 0b11);
        Self::new(admin::FORMAT_NVM, cid)
            .with_nsid(nsid)
            .with_cdw10(low | (ses as u32 & 0b111) << 9 | high << 12)
    }

    /// LBA format that Format NVM asks for.
    pub const fn format_lbaf(&self) -> u8 {
        (self.cdw10() & 0xf | (self.cdw10() >> 12 & 0b11) << 4) as u8
    }

    /// Namespace Management; [`ns_select`]. Create takes an Identify Namespace as data.
    pub const fn namespace_management(cid: Cid, nsid: Nsid, sel: u8) -> Self {
        Self::new(admin::NAMESPACE_MANAGEMENT, cid)
            .with_nsid(nsid)
            .with_cdw10(sel as u32 & 0xf)
    }

    /// Namespace Attachment; [`ns_select`]. Takes a Controller List as data.
    pub const fn namespace_attachment(cid: Cid, nsid: Nsid, sel: u8) -> Self {
        Self::new(admin::NAMESPACE_ATTACHMENT, cid)
            .with_nsid(nsid)
            .with_cdw10(sel as u32 & 0xf)
    }

    /// SEL of Namespace Management and Attachment.
    pub const fn namespace_select(&self) -> u8 {
        self.cdw10() as u8 & 0xf
    }

    /// Firmware Image Download of `len` bytes to byte `offset` of the image, both multiples of 4.
    pub const fn firmware_download(cid: Cid, offset: u32, len: u32) -> Self {
        Self::new(admin::FIRMWARE_IMAGE_DOWNLOAD, cid)
            .with_cdw10((len / 4).wrapping_sub(1))
            .with_cdw11(offset / 4)
    }

    /// Bytes and offset of Firmware Image Download.
    pub const fn firmware_range(&self) -> (u64, u64) {
        ((self.cdw10() as u64 + 1) * 4, self.cdw11() as u64 * 4)
    }

    /// Firmware Commit: slot (0: the controller chooses) and action (Base §5.1.8).
    pub const fn firmware_commit(cid: Cid, slot: u8, action: u8) -> Self {
        Self::new(admin::FIRMWARE_COMMIT, cid)
            .with_cdw10(slot as u32 & 0b111 | (action as u32 & 0b111) << 3)
    }

    /// Sanitize; [`sanitize_action`].
    pub const fn sanitize(cid: Cid, action: u8) -> Self {
        Self::new(admin::SANITIZE, cid).with_cdw10(action as u32 & 0b111)
    }

    /// Compare of `blocks` logical blocks at `lba`.
    pub const fn compare(cid: Cid, nsid: Nsid, lba: Lba, blocks: u32) -> Self {
        Self::new(nvm::COMPARE, cid)
            .with_nsid(nsid)
            .with_slba(lba)
            .with_block_count(blocks)
    }

    /// Verify of `blocks` logical blocks at `lba`.
    pub const fn verify(cid: Cid, nsid: Nsid, lba: Lba, blocks: u32) -> Self {
        Self::new(nvm::VERIFY, cid)
            .with_nsid(nsid)
            .with_slba(lba)
            .with_block_count(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_lie_where_the_stride_says() {
        let cap = Cap(0);
        assert_eq!(sq_doorbell(cap, Qid(0)), 0x1000);
        assert_eq!(cq_doorbell(cap, Qid(0)), 0x1004);
        assert_eq!(sq_doorbell(cap, Qid(3)), 0x1018);
        let wide = cap.with_dstrd(2);
        assert_eq!(cq_doorbell(wide, Qid(1)), 0x1030);
    }

    #[test]
    fn queue_commands_carry_their_fields() {
        let cq = Sqe::create_io_cq(Cid(9), Qid(4), 256, 0x1000, Some(7));
        assert_eq!(cq.queue_id(), Qid(4));
        assert_eq!(cq.queue_entries(), 256);
        assert_eq!(cq.queue_vector(), Some(7));
        assert_eq!(cq.cdw11(), 7 << 16 | 0b11);
        let sq = Sqe::create_io_sq(Cid(9), Qid(4), 64, 0x2000, Qid(5), 3);
        assert_eq!(sq.queue_cqid(), Qid(5));
        assert_eq!(sq.cdw11(), 5 << 16 | 0b111);
        assert!(sq.queue_is_contiguous());
        assert_eq!(sq.prp(), (0x2000, 0));
    }

    #[test]
    fn a_format_index_is_split_over_two_fields() {
        let sqe = Sqe::format_nvm(Cid(1), Nsid(1), 0x25, secure_erase::USER_DATA);
        assert_eq!(sqe.cdw10(), 0x5 | 1 << 9 | 2 << 12);
        assert_eq!(sqe.format_lbaf(), 0x25);
    }

    #[test]
    fn firmware_is_counted_in_dwords() {
        let sqe = Sqe::firmware_download(Cid(1), 4096, 8192);
        assert_eq!((sqe.cdw10(), sqe.cdw11()), (2047, 1024));
        assert_eq!(sqe.firmware_range(), (8192, 4096));
    }
}
