use proptest::prelude::*;

use super::*;

/// The checksum of the sample, as an encoder in another language computed it.
const SUPERBLOCK_SUM: [u8; 4] = [0x6b, 0x70, 0x7f, 0xb0];
/// The same for what a program without a log wrote.
const FORMAT_1_SUM: [u8; 4] = [0xfe, 0x34, 0x3d, 0x47];

fn sample() -> Superblock {
    Superblock {
        sequence: 0x0102_0304_0506_0708,
        pool_uuid: std::array::from_fn(|byte| 0xa0 + byte as u8),
        name: "tank-ö".to_owned(),
        granularity: Granularity::new(1 << 20).unwrap(),
        block_size: 4096,
        clusters: 1000,
        clean: true,
        metadata: vec![
            Extent {
                start: 998,
                clusters: 2,
            },
            Extent {
                start: 1,
                clusters: 4,
            },
        ],
        log: Some(Extent {
            start: 900,
            clusters: 8,
        }),
        boot_id: std::array::from_fn(|byte| 0xc0 + byte as u8),
    }
}

/// The sample as a program without a log wrote it.
fn sample_of_format_1() -> (Superblock, Box<[u8; SUPERBLOCK_BYTES]>) {
    let superblock = Superblock {
        log: None,
        boot_id: [0; 16],
        ..sample()
    };
    let mut bytes = superblock.encode();
    bytes[at::VERSION] = 1;
    bytes[at::MIN_READER] = 1;
    seal(&mut bytes);
    (superblock, bytes)
}

/// Puts the right checksum under changed bytes.
fn seal(bytes: &mut [u8; SUPERBLOCK_BYTES]) {
    let sum = crc32c(&bytes[..at::CHECKSUM]);
    bytes[at::CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
}

fn changed(at: usize, bytes: &[u8]) -> Result<Superblock, FormatError> {
    let mut copy = sample().encode();
    copy[at..at + bytes.len()].copy_from_slice(bytes);
    seal(&mut copy);
    Superblock::decode(&copy[..])
}

#[test]
fn superblock_is_these_bytes() {
    let bytes = sample().encode();
    let head = [
        b"ADITPOOL".as_slice(),
        &[2, 0, 0, 0],
        &[2, 0, 0, 0],
        &[8, 7, 6, 5, 4, 3, 2, 1],
        &std::array::from_fn::<u8, 16, _>(|byte| 0xa0 + byte as u8),
        &[0xe8, 3, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0x10, 0],
        &[0, 0x10, 0, 0],
        &[1, 0, 0, 0],
        &[2, 0],
        &[7, 0],
        b"tank-\xc3\xb6",
    ]
    .concat();
    let extents = [
        [0xe6, 3, 0, 0, 0, 0, 0, 0],
        [2, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [4, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(bytes[..head.len()], head);
    assert!(bytes[head.len()..320].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[320..352], extents);
    assert!(bytes[352..3520].iter().all(|byte| *byte == 0));
    let log = [[0x84, 3, 0, 0, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(bytes[3520..3536], log);
    assert_eq!(
        bytes[3536..3552],
        std::array::from_fn::<u8, 16, _>(|byte| 0xc0 + byte as u8)
    );
    assert!(bytes[3552..4092].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[4092..], SUPERBLOCK_SUM, "{:02x?}", &bytes[4092..]);
    assert_eq!(Superblock::decode(&bytes[..]), Ok(sample()));
}

#[test]
fn a_superblock_of_format_1_has_no_log() {
    let (superblock, mut bytes) = sample_of_format_1();
    assert_eq!(bytes[4092..], FORMAT_1_SUM, "{:02x?}", &bytes[4092..]);
    assert_eq!(Superblock::decode(&bytes[..]), Ok(superblock));
    bytes[at::LOG] = 1;
    seal(&mut bytes);
    assert!(
        Superblock::decode(&bytes[..]).is_err(),
        "format 1 has zeroes there"
    );
}

#[test]
fn truncation_at_every_byte_is_refused() {
    let bytes = sample().encode();
    for length in 0..SUPERBLOCK_BYTES {
        let error = Superblock::decode(&bytes[..length]).unwrap_err();
        assert!(
            matches!(error, FormatError::Truncated { .. }),
            "{length}: {error}"
        );
    }
}

#[test]
fn what_follows_the_superblock_is_not_looked_at() {
    let mut bytes = sample().encode().to_vec();
    bytes.extend_from_slice(&[0xff; 100]);
    assert_eq!(Superblock::decode(&bytes), Ok(sample()));
}

#[test]
fn every_flipped_bit_is_found() {
    let mut bytes = sample().encode();
    for bit in 0..SUPERBLOCK_BYTES * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::decode(&bytes[..]).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn zeroes_are_no_superblock() {
    assert_eq!(
        Superblock::decode(&[0; SUPERBLOCK_BYTES]),
        Err(FormatError::Magic)
    );
}

#[test]
fn newer_format_is_read_if_it_says_so_and_refused_by_name_if_not() {
    let newer = [[3, 0, 0, 0], [2, 0, 0, 0]].concat();
    assert_eq!(changed(at::VERSION, &newer), Ok(sample()));
    let mut bytes = sample().encode();
    bytes[at::VERSION] = 4;
    bytes[at::MIN_READER] = 3;
    bytes[4000] = 1;
    seal(&mut bytes);
    let error = Superblock::decode(&bytes[..]).unwrap_err();
    assert_eq!(
        error,
        FormatError::TooNew {
            version: 4,
            min_reader: 3,
            known: 2
        }
    );
    assert!(error.to_string().contains("format 4"), "{error}");
    bytes[at::MIN_READER] = 2;
    seal(&mut bytes);
    assert_eq!(
        Superblock::decode(&bytes[..]),
        Ok(sample()),
        "what a newer format has where this one has zeroes is not looked at"
    );
}

#[test]
fn versions_that_cannot_be_are_refused() {
    for versions in [[0, 0], [0, 1], [1, 0], [1, 2], [2, 0], [2, 3]] {
        let bytes: Vec<u8> = versions
            .iter()
            .flat_map(|each: &u32| each.to_le_bytes())
            .collect();
        assert!(changed(at::VERSION, &bytes).is_err(), "{versions:?}");
    }
}

#[test]
fn fields_that_cannot_be_are_refused_although_the_checksum_is_right() {
    let cases: [(&str, usize, &[u8]); 15] = [
        ("no clusters", at::CLUSTERS, &[0; 8]),
        ("more bytes than fit", at::CLUSTERS, &[0xff; 8]),
        ("extent past the end", at::CLUSTERS, &[0xe7, 3]),
        ("cluster size", at::CLUSTER_SIZE, &[1, 0, 0x10, 0]),
        ("small clusters", at::CLUSTER_SIZE, &[0, 0x80, 0, 0]),
        ("block size", at::BLOCK_SIZE, &[0, 8, 0, 0]),
        ("unknown flag", at::FLAGS, &[2, 0, 0, 0]),
        ("extent count", at::EXTENT_COUNT, &[201, 0]),
        ("empty name", at::NAME_BYTES, &[0]),
        ("name cut inside a letter", at::NAME_BYTES, &[6]),
        ("name that is no text", at::NAME, &[0xff]),
        ("unused byte after the name", at::NAME + 7, &[1]),
        ("unused byte after the extents", at::EXTENTS + 32, &[1]),
        ("unused byte before the checksum", at::CHECKSUM - 1, &[1]),
        ("unused byte in the header", at::NAME - 1, &[1]),
    ];
    for (what, at, bytes) in cases {
        assert!(changed(at, bytes).is_err(), "{what}");
    }
}

#[test]
fn extents_that_cannot_be_are_refused() {
    let cases: [(&str, &[(u64, u64)]); 7] = [
        ("the header", &[(0, 1)]),
        ("empty", &[(1, 0)]),
        ("past the end", &[(999, 2)]),
        ("far past the end", &[(u64::MAX, u64::MAX)]),
        ("overlapping", &[(10, 5), (1, 10)]),
        ("twice", &[(10, 5), (10, 5)]),
        ("one inside another", &[(1, 900), (5, 1)]),
    ];
    for (what, extents) in cases {
        let mut superblock = sample();
        superblock.metadata = extents
            .iter()
            .map(|&(start, clusters)| Extent { start, clusters })
            .collect();
        let error = superblock.check().unwrap_err();
        assert!(
            matches!(error, FormatError::Extent { .. }),
            "{what}: {error}"
        );
        assert_eq!(
            Superblock::decode(&superblock.encode()[..]),
            Err(error),
            "{what}"
        );
    }
}

#[test]
fn largest_superblock_fits() {
    let superblock = Superblock {
        name: "n".repeat(NAME_BYTES_MAX),
        metadata: (0..EXTENTS_MAX as u64)
            .map(|index| Extent {
                start: 1 + index,
                clusters: 1,
            })
            .collect(),
        clusters: EXTENTS_MAX as u64 + 2,
        log: Some(Extent {
            start: EXTENTS_MAX as u64 + 1,
            clusters: 1,
        }),
        ..sample()
    };
    assert_eq!(superblock.check(), Ok(()));
    assert_eq!(Superblock::decode(&superblock.encode()[..]), Ok(superblock));
}

#[test]
fn what_does_not_fit_is_refused_and_its_bytes_do_not_decode() {
    let mut long_name = sample();
    long_name.name = "n".repeat(NAME_BYTES_MAX + 1);
    let mut many_extents = sample();
    many_extents.metadata = (0..70_000)
        .map(|index| Extent {
            start: 1 + index,
            clusters: 1,
        })
        .collect();
    many_extents.clusters = 100_000;
    for superblock in [long_name, many_extents] {
        assert!(superblock.check().is_err());
        assert!(Superblock::decode(&superblock.encode()[..]).is_err());
    }
}

fn copy(sequence: u64) -> Box<[u8; SUPERBLOCK_BYTES]> {
    Superblock {
        sequence,
        ..sample()
    }
    .encode()
}

fn newest(first: &[u8], second: &[u8]) -> Result<(u64, usize), FormatError> {
    Superblock::newest([first, second]).map(|(superblock, index)| (superblock.sequence, index))
}

#[test]
fn newer_valid_copy_counts() {
    let (old, new) = (copy(7), copy(8));
    let mut torn = copy(9);
    torn[512..].copy_from_slice(&old[512..]);
    torn[100] ^= 1;
    assert_eq!(newest(&old[..], &new[..]), Ok((8, 1)));
    assert_eq!(newest(&new[..], &old[..]), Ok((8, 0)));
    assert_eq!(newest(&old[..], &old[..]), Ok((7, 0)));
    assert_eq!(newest(&torn[..], &old[..]), Ok((7, 1)));
    assert_eq!(newest(&old[..], &torn[..]), Ok((7, 0)));
    assert_eq!(newest(&old[..], &[]), Ok((7, 0)));
}

#[test]
fn error_is_that_of_the_copy_that_is_nearer_to_be_one() {
    let mut torn = copy(9);
    torn[100] ^= 1;
    let zeroes = [0; SUPERBLOCK_BYTES];
    for (first, second) in [(&zeroes[..], &torn[..]), (&torn[..], &zeroes[..])] {
        let error = newest(first, second).unwrap_err();
        assert!(matches!(error, FormatError::Checksum { .. }), "{error}");
    }
    assert_eq!(newest(&zeroes, &[]), Err(FormatError::Magic));
}

#[test]
fn older_copy_does_not_stand_in_for_one_that_needs_a_newer_program() {
    let mut newer = copy(8);
    newer[at::VERSION] = 3;
    newer[at::MIN_READER] = 3;
    seal(&mut newer);
    for (first, second) in [(copy(7), newer.clone()), (newer.clone(), copy(7))] {
        let error = newest(&first[..], &second[..]).unwrap_err();
        assert!(matches!(error, FormatError::TooNew { .. }), "{error}");
    }
    assert_eq!(newest(&copy(9)[..], &newer[..]), Ok((9, 0)));
}

#[test]
fn copies_of_two_pools_are_refused() {
    let other = Superblock {
        pool_uuid: [1; 16],
        ..sample()
    };
    assert_eq!(
        newest(&copy(1)[..], &other.encode()[..]),
        Err(FormatError::TwoPools)
    );
}

prop_compose! {
    fn any_superblock()(
        sequence: u64,
        pool_uuid: [u8; 16],
        name in "\\PC{1,60}",
        shift in 16..26_u32,
        large_blocks: bool,
        clean: bool,
        gaps in prop::collection::vec((0..1_000_u64, 1..1_000_u64), 0..=EXTENTS_MAX),
        rest in 0..1_000_u64,
        log_clusters in prop::option::of(1..100_u64),
        boot_id: [u8; 16],
        turn: prop::sample::Index,
    ) -> Superblock {
        let mut at = 1;
        let mut metadata: Vec<Extent> = gaps
            .into_iter()
            .map(|(gap, clusters)| {
                let start = at + gap;
                at = start + clusters;
                Extent { start, clusters }
            })
            .collect();
        if !metadata.is_empty() {
            let by = turn.index(metadata.len());
            metadata.rotate_left(by);
        }
        let log = log_clusters.map(|clusters| Extent {
            start: at + rest,
            clusters,
        });
        let rest = rest + log_clusters.unwrap_or(0) + rest;
        Superblock {
            sequence,
            pool_uuid,
            name,
            granularity: Granularity::new(1 << shift).unwrap(),
            block_size: if large_blocks { 4096 } else { 512 },
            clusters: at + rest,
            clean,
            metadata,
            log,
            boot_id,
        }
    }
}

proptest! {
    #[test]
    fn what_passes_the_check_decodes_to_itself(superblock in any_superblock()) {
        prop_assert_eq!(superblock.check(), Ok(()));
        let bytes = superblock.encode();
        prop_assert_eq!(Superblock::decode(&bytes[..]), Ok(superblock));
    }

    #[test]
    fn random_fields_under_a_right_checksum_never_panic(
        fields in prop::collection::vec(any::<u8>(), 340),
        keep_names: bool,
    ) {
        let mut bytes = sample().encode();
        let from = if keep_names { at::EXTENT_COUNT } else { at::VERSION };
        bytes[from..from + fields.len()].copy_from_slice(&fields);
        seal(&mut bytes);
        if let Ok(superblock) = Superblock::decode(&bytes[..]) {
            prop_assert_eq!(superblock.check(), Ok(()));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(Superblock::decode(&bytes).is_err());
    }
}
