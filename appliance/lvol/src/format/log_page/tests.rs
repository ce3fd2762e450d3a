use proptest::prelude::*;

use super::*;

const PAGE: usize = 512;
/// The checksum of the sample, as an encoder in another language computed it.
const SAMPLE_SUM: [u8; 4] = [0x41, 0x48, 0x04, 0xbf];

fn sample() -> (LogHeader, Vec<LogEntry>) {
    let header = LogHeader {
        pool_uuid: std::array::from_fn(|byte| 0xa0 + byte as u8),
        epoch: 0x0102_0304_0506_0708,
        number: 0x1112_1314_1516_1718,
    };
    let entries = vec![
        LogEntry {
            layer: LayerId(7),
            slot: 0x0000_0203_0405_0607,
            granules: GranuleRange::new(0, 256),
            change: LogChange::Written(Cluster::new(0x3_0201).unwrap()),
        },
        LogEntry {
            layer: LayerId(1 << 40),
            slot: NUMBER_MAX,
            granules: GranuleRange::new(3, 4),
            change: LogChange::Zero,
        },
    ];
    (header, entries)
}

fn encoded() -> Vec<u8> {
    let (header, entries) = sample();
    let mut page = vec![0xee; PAGE];
    encode_log_page(&header, &entries, &mut page);
    page
}

/// Puts the right checksum under changed bytes.
fn seal(page: &mut [u8]) {
    let end = page.len() - SUM_BYTES;
    let sum = crc32c(&page[..end]);
    page[end..].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_page_is_these_bytes() {
    let page = encoded();
    let head = [
        b"ADITWLOG".as_slice(),
        &[1, 0, 2, 0, 0, 0, 0, 0],
        &std::array::from_fn::<u8, 16, _>(|byte| 0xa0 + byte as u8),
        &[8, 7, 6, 5, 4, 3, 2, 1],
        &[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11],
        &[7, 0, 0, 0, 0, 0, 0, 0],
        &[7, 6, 5, 4, 3, 2],
        &[1, 2, 3, 0, 0, 0],
        &[1, 0, 255, 0],
        &[0, 0, 0, 0, 0, 1, 0, 0],
        &[0xff; 6],
        &[0; 6],
        &[2, 3, 3, 0],
    ]
    .concat();
    assert_eq!(page[..head.len()], head);
    assert!(page[head.len()..PAGE - 4].iter().all(|byte| *byte == 0));
    assert_eq!(page[PAGE - 4..], SAMPLE_SUM, "{:02x?}", &page[PAGE - 4..]);
    assert_eq!(decode_log_page(&page, 256), Ok(sample()));
}

#[test]
fn pages_of_both_block_sizes_have_room() {
    assert_eq!(log_entries_max(512), 19);
    assert_eq!(log_entries_max(4096), 168);
}

#[test]
fn truncation_at_every_byte_is_refused() {
    let page = encoded();
    for length in 0..PAGE {
        assert!(decode_log_page(&page[..length], 256).is_err(), "{length}");
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let mut page = encoded();
    for bit in 0..PAGE * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_log_page(&page, 256).is_err(), "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn fields_that_cannot_be_are_refused_although_the_checksum_is_right() {
    let cases: [(&str, usize, &[u8]); 9] = [
        ("version", at::VERSION, &[2, 0]),
        ("more entries than fit", at::COUNT, &[20, 0]),
        ("unused bytes of the header", at::UNUSED, &[1]),
        ("layer 0", HEADER_BYTES, &[0]),
        ("no cluster", HEADER_BYTES + 14, &[0, 0, 0]),
        ("kind", HEADER_BYTES + 20, &[3]),
        ("zeroes with a cluster", HEADER_BYTES + 20, &[2]),
        (
            "granules in the wrong order",
            HEADER_BYTES + ENTRY_BYTES + 21,
            &[4],
        ),
        ("unused byte of an entry", HEADER_BYTES + 23, &[1]),
    ];
    for (what, at, bytes) in cases {
        let mut page = encoded();
        page[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut page);
        assert!(decode_log_page(&page, 256).is_err(), "{what}");
    }
    assert!(
        decode_log_page(&encoded(), 255).is_err(),
        "a granule that no cluster of the pool has"
    );
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut page: Vec<u8>, granules in 16u16..=256) {
        drop(decode_log_page(&page, granules));
        if page.len() > HEADER_BYTES + SUM_BYTES {
            page[..8].copy_from_slice(MAGIC);
            seal(&mut page);
            drop(decode_log_page(&page, granules));
        }
    }

    #[test]
    fn what_is_encoded_is_decoded(
        epoch: u64,
        number: u64,
        entries in proptest::collection::vec((1u64.., 0..=NUMBER_MAX, 0u64..1 << 30, 0u16..256, 0u16..256), 0..19),
    ) {
        let header = LogHeader { pool_uuid: [3; 16], epoch, number };
        let entries: Vec<LogEntry> = entries
            .into_iter()
            .map(|(layer, slot, cluster, a, b)| LogEntry {
                layer: LayerId(layer),
                slot,
                granules: GranuleRange::new(a.min(b), a.max(b) + 1),
                change: Cluster::new(cluster).map_or(LogChange::Zero, LogChange::Written),
            })
            .collect();
        let mut page = vec![0; PAGE];
        encode_log_page(&header, &entries, &mut page);
        prop_assert_eq!(decode_log_page(&page, 256), Ok((header, entries)));
    }
}
