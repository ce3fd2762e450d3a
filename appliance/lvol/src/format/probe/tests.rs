use proptest::prelude::*;

use super::*;
use crate::format::Extent;
use crate::map::Granularity;

/// A device: 1 MiB of zeroes unless something is put there.
struct Device(Vec<u8>);

impl Device {
    fn new() -> Self {
        Self(vec![0; 1 << 20])
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// `from_end` bytes before the end.
    fn with_tail(self, from_end: usize, bytes: &[u8]) -> Self {
        let at = self.0.len() - from_end;
        self.with(at, bytes)
    }

    fn probe(&self, block_size: u32) -> Found {
        let head = &self.0[..self.0.len().min(PROBE_BYTES)];
        let tail = &self.0[self.0.len().saturating_sub(PROBE_TAIL_BYTES)..];
        probe(head, tail, block_size)
    }

    /// What is found must be this, whatever the blocks.
    #[track_caller]
    fn holds(&self, expected: &str) {
        for block_size in [512, 4096] {
            match self.probe(block_size) {
                Found::Foreign { what } => assert_eq!(what, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}

fn pool(sequence: u64) -> Superblock {
    Superblock {
        sequence,
        pool_uuid: [7; 16],
        name: "tank".to_owned(),
        granularity: Granularity::new(64 << 10).unwrap(),
        block_size: 512,
        clusters: 16,
        clean: true,
        metadata: vec![Extent {
            start: 1,
            clusters: 2,
        }],
        log: None,
        boot_id: [0; 16],
    }
}

fn ext4(device: Device) -> Device {
    device
        .with(1024, &128_u32.to_le_bytes()) // inodes
        .with(1024 + 4, &1024_u32.to_le_bytes()) // blocks
        .with(1024 + 0x14, &1_u32.to_le_bytes())
        .with(1024 + 0x20, &8192_u32.to_le_bytes())
        .with(1024 + 0x28, &128_u32.to_le_bytes())
        .with(1024 + 0x38, &[0x53, 0xef, 1, 0])
        .with(1024 + 0x4c, &1_u32.to_le_bytes())
}

#[test]
fn zeroes_are_nothing() {
    assert_eq!(Device::new().probe(512), Found::Nothing);
    assert_eq!(Device::new().probe(4096), Found::Nothing);
    assert_eq!(probe(&[], &[], 512), Found::Nothing);
    assert_eq!(probe(&[], &[], 0), Found::Nothing);
    assert_eq!(probe(&[], &[], u32::MAX), Found::Nothing);
}

#[test]
fn pool_is_found_by_either_copy() {
    let (old, new) = (pool(1), pool(2));
    let both = Device::new()
        .with(0, &old.encode()[..])
        .with(32768, &new.encode()[..]);
    assert_eq!(both.probe(512), Found::Pool(new.clone()));
    let second = both.with(0, &[0; SUPERBLOCK_BYTES]);
    assert_eq!(second.probe(512), Found::Pool(new));
    let first = second
        .with(0, &old.encode()[..])
        .with(32768, &[0; SUPERBLOCK_BYTES]);
    assert_eq!(first.probe(512), Found::Pool(old));
}

#[test]
fn pool_wins_over_what_was_left_around_it() {
    let device = Device::new()
        .with(0, &pool(1).encode()[..])
        .with(65600, b"_BHRfS_M")
        .with_tail(512, b"EFI PART\0\0\x01\0");
    assert_eq!(device.probe(512), Found::Pool(pool(1)));
}

#[test]
fn damaged_pool_is_somebodys() {
    let torn = Device::new()
        .with(0, &pool(1).encode()[..])
        .with(4000, &[1]);
    torn.holds("a damaged Adit pool");
    let second = Device::new().with(32768, &pool(1).encode()[..512]);
    second.holds("a damaged Adit pool");
    let small = &second.0[..32768 + 100];
    assert_eq!(
        probe(small, small, 512),
        Found::Foreign {
            what: "a damaged Adit pool"
        }
    );
}

#[test]
fn pool_of_another_format_or_two_pools_are_somebodys() {
    let mut newer = pool(1).encode();
    newer[8] = 3;
    newer[12] = 3;
    let sum = crate::format::value::crc32c(&newer[..4092]);
    newer[4092..].copy_from_slice(&sum.to_le_bytes());
    Device::new()
        .with(0, &newer[..])
        .holds("an Adit pool of a newer format");
    let other = Superblock {
        pool_uuid: [8; 16],
        ..pool(1)
    };
    Device::new()
        .with(0, &pool(1).encode()[..])
        .with(32768, &other.encode()[..])
        .holds("superblocks of two Adit pools");
}

#[test]
fn file_system_made_over_a_pool_is_found_although_a_copy_is_left() {
    let both = Device::new()
        .with(0, &pool(1).encode()[..])
        .with(32768, &pool(2).encode()[..]);
    // It leaves the first 1,024 bytes alone.
    ext4(both.with(1024, &[0; 3072])).holds("an ext2, ext3 or ext4 file system");
    let only_first = Device::new().with(0, &pool(1).encode()[..]);
    ext4(only_first.with(1024, &[0; 3072])).holds("an ext2, ext3 or ext4 file system");
    let both = Device::new()
        .with(0, &pool(1).encode()[..])
        .with(32768, &pool(2).encode()[..]);
    both.with(512, b"EFI PART\0\0\x01\0")
        .holds("a GPT partition table");
}

#[test]
fn partition_tables_are_found() {
    const GPT: &str = "a GPT partition table";
    let signature = b"EFI PART\0\0\x01\0\x5c\0\0\0";
    for block in [512, 4096] {
        Device::new().with(block, signature).holds(GPT);
        Device::new().with_tail(block, signature).holds(GPT);
    }
    let entry = [
        0x80, 1, 1, 0, 0x83, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 0, 1, 0,
    ];
    let mbr = Device::new().with(446, &entry).with(510, &[0x55, 0xaa]);
    mbr.holds("an MBR partition table");
    let empty = Device::new().with(510, &[0x55, 0xaa]);
    empty.holds("an MBR partition table");
    let protective = [
        0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 7, 0, 0,
    ];
    mbr.with(446, &protective).with(512, signature).holds(GPT);
}

#[test]
fn file_systems_are_found() {
    ext4(Device::new()).holds("an ext2, ext3 or ext4 file system");
    Device::new()
        .with(0, b"XFSB\0\0\x10\0")
        .holds("an XFS file system");
    Device::new()
        .with(65600, b"_BHRfS_M")
        .holds("a btrfs file system");
    Device::new()
        .with(0, b"\xeb\x52\x90NTFS    ")
        .with(510, &[0x55, 0xaa])
        .holds("an NTFS file system");
    Device::new()
        .with(0, b"\xeb\x76\x90EXFAT   ")
        .with(510, &[0x55, 0xaa])
        .holds("an exFAT file system");
    for name_at in [54, 82] {
        Device::new()
            .with(0, b"\xeb\x58\x90mkfs.fat\0\x02\x08\x20\0\x02\0\0\0\0\xf8")
            .with(name_at, b"FAT")
            .with(510, &[0x55, 0xaa])
            .holds("a FAT file system");
    }
    for at in [1024, 5120] {
        Device::new()
            .with(
                at,
                &[
                    0x10, 0x20, 0xf5, 0xf2, 1, 0, 16, 0, 9, 0, 0, 0, 3, 0, 0, 0, 12, 0,
                ],
            )
            .holds("an F2FS file system");
    }
    Device::new()
        .with(32768, b"\x01CD001\x01")
        .holds("an ISO 9660 file system");
    Device::new()
        .with(32768, b"\x00BEA01\x01")
        .holds("a UDF file system");
    Device::new()
        .with(0, b"hsqs")
        .with(12, &[0, 0, 2, 0])
        .with(22, &[17, 0])
        .with(28, &[4, 0])
        .holds("a squashfs file system");
}

#[test]
fn swap_is_found_for_every_page_size() {
    for page in [4096, 8192, 16384, 32768, 65536] {
        for magic in [b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND\0"] {
            Device::new().with(page - 10, magic).holds("swap space");
        }
    }
}

#[test]
fn volume_managers_are_found() {
    for sector in 0..4 {
        Device::new()
            .with(sector * 512, b"LABELONE")
            .with(sector * 512 + 24, b"LVM2 001")
            .holds("an LVM physical volume");
    }
    for version in [1, 2] {
        Device::new()
            .with(0, &[b'L', b'U', b'K', b'S', 0xba, 0xbe, 0, version])
            .holds("a LUKS encrypted device");
    }
    Device::new()
        .with(0x4000, b"SKUL\xba\xbe\0\x02")
        .holds("a LUKS encrypted device");
    Device::new()
        .with(
            4096 + 24,
            b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        )
        .holds("a bcache device");
}

#[test]
fn raid_members_are_found() {
    const MD: &str = "a member of a Linux md RAID";
    let version_1 = [0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0];
    Device::new().with(0, &version_1).holds(MD);
    Device::new().with(4096, &version_1).holds(MD);
    let version_0 = [0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90, 0, 0, 0];
    let of_big_endian = [0xa9, 0x2b, 0x4e, 0xfc, 0, 0, 0, 0, 0, 0, 0, 90];
    // Every length that a device of 512-byte blocks can have past a multiple of 64 KiB.
    for past in (0..65536).step_by(512) {
        let mut device = Device::new();
        device.0.resize((1 << 20) + past, 0);
        let sectors = device.0.len() / 512;
        let last_1_0 = (sectors - 16) / 8 * 8 * 512;
        device.with(last_1_0, &version_1).holds(MD);
        for magic in [&version_0[..], &of_big_endian] {
            let mut device = Device::new();
            device.0.resize((1 << 20) + past, 0);
            let at = device.0.len() / 65536 * 65536 - 65536;
            device.with(at, magic).holds(MD);
        }
    }
    Device::new()
        .with_tail(1024, b"Intel Raid ISM Cfg Sig. 1.3.00")
        .holds("a member of an Intel RAID");
    Device::new()
        .with_tail(512, b"\xde\x11\xde\x11")
        .with_tail(512 - 32, b"02.00.00")
        .holds("a member of a DDF RAID");
}

#[test]
fn zfs_labels_are_found() {
    const ZFS: &str = "a member of a ZFS pool";
    let list = b"\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\0\0\x24\0\0\0\x20\0\0\0\x07version\0";
    Device::new().with(16 << 10, list).holds(ZFS);
    let little = [0x00ba_b10c_u64, 5000, 9].map(u64::to_le_bytes).concat();
    let big = [0x00ba_b10c_u64, 28, 9].map(u64::to_be_bytes).concat();
    for uberblock in [little, big] {
        Device::new()
            .with((128 << 10) + 3072, &uberblock)
            .holds(ZFS);
        for past in [0, 512, 100 << 10, (256 << 10) - 512] {
            let mut device = Device::new();
            device.0.resize((1 << 20) + past, 0);
            let ring = (1 << 20) - (128 << 10);
            device.with(ring, &uberblock).holds(ZFS);
        }
    }
}

#[test]
fn images_and_stores_are_found() {
    let cases: [(&[u8], &str); 7] = [
        (b"SPDKBLOB", "an SPDK blobstore"),
        (b"bluestore block device\n", "a Ceph BlueStore device"),
        (b"redb\x1a\x0a\xa9\x0d\x0a", "a redb database"),
        (b"QFI\xfb\0\0\0\x03", "a qcow2 image"),
        (b"dmvdo001", "a VDO volume"),
        (b"integrt\0", "a dm-integrity device"),
        (b"vhdxfile", "a VHDX image"),
    ];
    for (bytes, what) in cases {
        Device::new().with(0, bytes).holds(what);
    }
}

#[test]
fn plain_data_with_short_magics_is_nothing() {
    let cases: [(&str, usize, &[u8]); 8] = [
        ("ext magic alone", 1080, &[0x53, 0xef]),
        ("xfs magic alone", 0, b"XFSB text"),
        ("squashfs magic alone", 0, b"hsqs"),
        ("qcow2 magic alone", 0, b"QFI\xfb"),
        ("md magic alone", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
        ("f2fs magic alone", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
        ("uberblock magic alone", 128 << 10, &[0x0c, 0xb1, 0xba, 0]),
        ("lvm label without its type", 512, b"LABELONE"),
    ];
    for (what, at, bytes) in cases {
        let device = Device::new().with(at, bytes);
        assert_eq!(device.probe(512), Found::Nothing, "{what}");
    }
    // A boot signature behind data that is no table.
    let device = Device::new()
        .with(440, &[b'x'; 70])
        .with(510, &[0x55, 0xaa]);
    assert_eq!(device.probe(512), Found::Nothing);
}

#[test]
fn patterns_are_nothing() {
    for pattern in 0..=u16::MAX {
        if pattern % 251 != 0 && !matches!(pattern, 0x55aa | 0xaa55 | 0xef53 | 0x53ef | 0xffff) {
            continue;
        }
        let data: Vec<u8> = pattern.to_be_bytes().repeat(PROBE_TAIL_BYTES / 2);
        assert_eq!(
            probe(&data[..PROBE_BYTES], &data, 512),
            Found::Nothing,
            "{pattern:04x}"
        );
    }
    let text = b"The quick brown fox jumps over the lazy dog. ".repeat(9000);
    assert_eq!(probe(&text[..PROBE_BYTES], &text, 4096), Found::Nothing);
}

#[test]
fn short_devices_never_panic() {
    let device = ext4(Device::new()).with(510, &[0x55, 0xaa]);
    for length in (0..9000).chain((9000..PROBE_BYTES).step_by(997)) {
        let bytes = &device.0[..length];
        let _ = probe(bytes, bytes, 512);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_data_is_nothing(seed in any::<u64>(), length in 0..PROBE_TAIL_BYTES) {
        let mut state = seed | 1;
        let data: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .take(length)
        .collect();
        let head = &data[..length.min(PROBE_BYTES)];
        prop_assert_eq!(probe(head, &data, 512), Found::Nothing);
        prop_assert_eq!(probe(head, &data, 4096), Found::Nothing);
    }

    #[test]
    fn damage_to_a_pool_never_panics(
        changes in prop::collection::vec((0..36864_usize, any::<u8>()), 1..20),
    ) {
        let mut device = Device::new()
            .with(0, &pool(1).encode()[..])
            .with(32768, &pool(2).encode()[..]);
        changes.into_iter().for_each(|(at, byte)| device.0[at] = byte);
        prop_assert_ne!(device.probe(512), Found::Nothing);
    }
}
