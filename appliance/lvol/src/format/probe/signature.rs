//! Signatures of partition tables, file systems, volume managers and images.

/// Bytes of both ends of a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) head: &'a [u8],
    pub(super) tail: &'a [u8],
    pub(super) block_size: usize,
}

/// A magic at a fixed place from the beginning that is long enough to count by itself.
struct Magic {
    at: usize,
    bytes: &'static [u8],
    what: &'static str,
}

const fn magic(at: usize, bytes: &'static [u8], what: &'static str) -> Magic {
    Magic { at, bytes, what }
}

/// Some pages that a kernel may have: swap's magic is at the end of the first.
const PAGES: [usize; 5] = [4096, 8192, 16384, 32768, 65536];

const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
const BCACHEFS: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";

const LUKS: &str = "a LUKS encrypted device";
const LUKS2_COPY: &[u8] = b"SKUL\xba\xbe";

const MAGICS: &[Magic] = &[
    magic(0, b"LUKS\xba\xbe", LUKS),
    // LUKS2 has a second header behind the first, whose length may be any of these and larger.
    magic(0x4000, LUKS2_COPY, LUKS),
    magic(0x8000, LUKS2_COPY, LUKS),
    magic(0x1_0000, LUKS2_COPY, LUKS),
    magic(0x2_0000, LUKS2_COPY, LUKS),
    magic(3, b"NTFS    ", "an NTFS file system"),
    magic(3, b"EXFAT   ", "an exFAT file system"),
    magic(3, b"-FVE-FS-", "a BitLocker encrypted volume"),
    magic(65600, b"_BHRfS_M", "a btrfs file system"),
    magic(4096 + 24, BCACHE, "a bcache device"),
    magic(4096 + 24, BCACHEFS, "a bcachefs file system"),
    magic(32769, b"CD001\x01", "an ISO 9660 file system"),
    magic(32769, b"BEA01\x01", "a UDF file system"),
    magic(0, b"SPDKBLOB", "an SPDK blobstore"),
    magic(0, b"bluestore block device", "a Ceph BlueStore device"),
    magic(0, b"redb\x1a\x0a\xa9\x0d\x0a", "a redb database"),
    magic(0, b"dmvdo001", "a VDO volume"),
    magic(0, b"integrt\0", "a dm-integrity device"),
    magic(0, b"SQLite format 3\0", "an SQLite database"),
    magic(0, b"vhdxfile", "a VHDX image"),
];

impl Ends<'_> {
    /// What is here, if anything is.
    pub(super) fn find(&self) -> Option<&'static str> {
        let by_magic = || {
            MAGICS
                .iter()
                .find(|magic| self.at(magic.at, magic.bytes))
                .map(|magic| magic.what)
        };
        // A GPT comes with an MBR, and the boot sector of a FAT looks like one: those before it.
        self.gpt()
            .or_else(by_magic)
            .or_else(|| self.raid())
            .or_else(|| self.stack())
            .or_else(|| self.file_system())
            .or_else(|| self.mbr())
    }

    fn at(&self, at: usize, bytes: &[u8]) -> bool {
        self.head.get(at..at + bytes.len()) == Some(bytes)
    }

    /// GPT: in the second block and in the last, also as a device with other blocks wrote it.
    fn gpt(&self) -> Option<&'static str> {
        let signature = b"EFI PART\0\0\x01\0";
        [self.block_size, 512, 4096].into_iter().find_map(|block| {
            let last = self.tail.get(self.tail.len().wrapping_sub(block)..);
            (self.at(block, signature) || last.is_some_and(|last| last.starts_with(signature)))
                .then_some("a GPT partition table")
        })
    }

    /// Linux md, Intel and DDF: mostly at the end.
    fn raid(&self) -> Option<&'static str> {
        const MD: &str = "a member of a Linux md RAID";
        if [0, 4096].into_iter().any(|at| md_1(self.head, at)) {
            return Some(MD);
        }
        let from_end = |bytes: usize| self.tail.len().saturating_sub(bytes);
        // Version 1.0: 8 to 12 KiB before the end. Version 0.90: 64 to 128 KiB.
        let sectors = |from: usize, to: usize| (from_end(from)..from_end(to)).step_by(512);
        if sectors(12 << 10, (8 << 10) - 512).any(|at| md_1(self.tail, at))
            || sectors(128 << 10, (64 << 10) - 512).any(|at| md_0_90(self.tail, at))
        {
            return Some(MD);
        }
        [self.block_size, 512, 4096].into_iter().find_map(|block| {
            let intel = self.tail.get(from_end(2 * block)..)?;
            let ddf = self.tail.get(from_end(block)..)?;
            if intel.starts_with(b"Intel Raid ISM Cfg Sig. ") {
                Some("a member of an Intel RAID")
            } else if ddf.starts_with(b"\xde\x11\xde\x11")
                && matches!(ddf.get(32..35), Some(b"01." | b"02."))
            {
                Some("a member of a DDF RAID")
            } else {
                None
            }
        })
    }

    /// LVM, swap, ZFS.
    fn stack(&self) -> Option<&'static str> {
        let lvm = |sector: &usize| {
            self.at(sector * 512, b"LABELONE") && self.at(sector * 512 + 24, b"LVM2 001")
        };
        let swap = |page: &usize| {
            [
                &b"SWAPSPACE2"[..],
                b"SWAP-SPACE",
                b"S1SUSPEND\0",
                b"S2SUSPEND\0",
                b"LINHIB0001",
            ]
            .into_iter()
            .any(|magic| self.at(page - 10, magic))
        };
        if (0..4).any(|sector| lvm(&sector)) {
            Some("an LVM physical volume")
        } else if PAGES.iter().any(swap) {
            Some("swap space")
        } else if self.zfs() {
            Some("a member of a ZFS pool")
        } else {
            None
        }
    }

    /// A label is 256 KiB at a multiple of that: two at the beginning, two at the end.
    fn zfs(&self) -> bool {
        const LABEL: usize = 256 << 10;
        /// The name of the first pair in the label's list, as XDR has it after 16 bytes of header
        /// and sizes.
        const FIRST_PAIR: &[u8] = b"\0\0\0\x07version\0";
        let list = |bytes: &[u8]| {
            matches!(bytes, [1, 0 | 1, 0, 0, rest @ ..]
                if rest.get(16..).is_some_and(|rest| rest.starts_with(FIRST_PAIR)))
        };
        if self.head.get(16 << 10..).is_some_and(list) {
            return true;
        }
        // How far past a multiple of 256 KiB the device ends is not known: any block may begin one.
        let in_ring = self.head.get(LABEL / 2..LABEL).unwrap_or_default();
        in_ring.chunks_exact(1024).any(uberblock)
            || self.tail.len() >= LABEL && self.tail.rchunks_exact(512).any(uberblock)
    }

    /// File systems and images whose magics are short.
    fn file_system(&self) -> Option<&'static str> {
        if ext(self.head) {
            Some("an ext2, ext3 or ext4 file system")
        } else if xfs(self.head) {
            Some("an XFS file system")
        } else if [1024, 5120].into_iter().any(|at| f2fs(self.head, at)) {
            Some("an F2FS file system")
        } else if squashfs(self.head) {
            Some("a squashfs file system")
        } else if self.at(0, b"QFI\xfb") && matches!(u32_be(self.head, 4), Some(1..=3)) {
            Some("a qcow2 image")
        } else if fat(self.head) {
            Some("a FAT file system")
        } else {
            None
        }
    }

    /// Four entries of 16 bytes, each unused or plausible.
    fn mbr(&self) -> Option<&'static str> {
        if !self.at(510, b"\x55\xaa") {
            return None;
        }
        let entries = self.head.get(446..510)?.chunks_exact(16);
        let plausible = |entry: &[u8]| {
            let sectors = u32_le(entry, 12).unwrap_or_default();
            let used = entry[4] != 0 && sectors != 0;
            matches!(entry[0], 0 | 0x80) && (used || entry[4..] == [0; 12])
        };
        entries
            .into_iter()
            .all(plausible)
            .then_some("an MBR partition table")
    }
}

/// Version 1.x of the superblock of Linux md.
fn md_1(bytes: &[u8], at: usize) -> bool {
    u32_le(bytes, at) == Some(0xa92b_4efc) && u32_le(bytes, at + 4) == Some(1)
}

/// Version 0.90, which is in the byte order of the machine that wrote it.
fn md_0_90(bytes: &[u8], at: usize) -> bool {
    [u32_le, u32_be].into_iter().any(|word| {
        word(bytes, at) == Some(0xa92b_4efc)
            && word(bytes, at + 4) == Some(0)
            && matches!(word(bytes, at + 8), Some(90 | 91))
    })
}

/// Magic in either byte order, version of on-disk formats that were ever used, a transaction.
fn uberblock(bytes: &[u8]) -> bool {
    let Some([magic, version, transaction]) = bytes.first_chunk::<24>().map(|words| {
        std::array::from_fn(|word| {
            u64::from_le_bytes(std::array::from_fn(|byte| words[word * 8 + byte]))
        })
    }) else {
        return false;
    };
    let version = match magic {
        0x00ba_b10c => version,
        0x0cb1_ba00_0000_0000 => version.swap_bytes(),
        _ => return false,
    };
    matches!(version, 1..=28 | 5000) && transaction != 0
}

/// The superblock is at 1024. Its magic has two bytes, so much else must hold.
fn ext(head: &[u8]) -> bool {
    let word = |at: usize| u32_le(head, 1024 + at).unwrap_or_default();
    let half = |at: usize| u16_le(head, 1024 + at).unwrap_or_default();
    half(0x38) == 0xef53
        && word(0x00) != 0 // inodes
        && word(0x14) <= 1 // first data block
        && word(0x18) <= 6 // block size: 1 KiB << n
        && word(0x20) != 0 // blocks of a group
        && word(0x28) != 0 // inodes of a group
        && word(0x4c) <= 1 // revision
}

fn xfs(head: &[u8]) -> bool {
    head.starts_with(b"XFSB")
        && u32_be(head, 4)
            .is_some_and(|size| size.is_power_of_two() && (512..=65536).contains(&size))
}

fn f2fs(head: &[u8], at: usize) -> bool {
    u32_le(head, at) == Some(0xf2f5_2010)
        && matches!(u32_le(head, at + 8), Some(9..=12)) // sector size: 1 << n
        && matches!(u32_le(head, at + 16), Some(12..=16)) // block size: 1 << n
}

fn squashfs(head: &[u8]) -> bool {
    let block = u32_le(head, 12).unwrap_or_default();
    let block_log = u32::from(u16_le(head, 22).unwrap_or_default());
    head.starts_with(b"hsqs")
        && u16_le(head, 28) == Some(4)
        && (12..=20).contains(&block_log)
        && block == 1 << block_log
}

/// A boot sector with the parameters of a FAT.
fn fat(head: &[u8]) -> bool {
    let Some(sector) = head.first_chunk::<512>() else {
        return false;
    };
    let reserved = u16_le(sector, 14).unwrap_or_default();
    let name = |at: usize| sector[at..at + 3] == *b"FAT";
    sector[510..] == [0x55, 0xaa]
        && matches!((sector[0], sector[2]), (0xeb, 0x90) | (0xe9, _))
        && matches!(u16_le(sector, 11), Some(512 | 1024 | 2048 | 4096)) // bytes of a sector
        && sector[13].is_power_of_two() // sectors of a cluster
        && reserved != 0
        && matches!(sector[16], 1 | 2) // copies
        && (sector[21] == 0xf0 || sector[21] >= 0xf8 || name(54) || name(82))
}

fn u16_le(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*two))
}

fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*four))
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    u32_le(bytes, at).map(u32::swap_bytes)
}
