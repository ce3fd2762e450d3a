//! Regions: back-ends, fallbacks, copies. What needs hugepages is skipped where none are free.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::fs;
use std::sync::Arc;

use dma::{
    Backing, BackingPreference, ChannelOptions, DmaError, FIRST_ADDRESS, IobufOptions, IobufPool,
    LIMIT_ADDRESS, Region, RegionOptions,
};
use proptest::prelude::*;

const MIB_2: usize = 2 << 20;

fn plain(len: usize) -> Arc<Region> {
    let backing = BackingPreference::Plain4K;
    Region::allocate(&RegionOptions {
        len,
        backing,
        ..RegionOptions::default()
    })
    .unwrap()
}

fn free_hugepages(kib: usize) -> usize {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages");
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// The number of KiB of a mapping that a line of smaps tells.
fn smaps_kib(address: usize, field: &str) -> Option<usize> {
    let smaps = fs::read_to_string("/proc/self/smaps").ok()?;
    let mut lines = smaps
        .lines()
        .skip_while(|line| !line.starts_with(&format!("{address:x}-")));
    lines.next()?;
    let line = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[test]
fn regions_lie_low_and_do_not_overlap() {
    let regions: Vec<_> = (1..20).map(|pages| plain(pages * 4096 - 1)).collect();
    for (index, region) in regions.iter().enumerate() {
        assert_eq!(region.len(), (index + 1) * 4096, "whole pages");
        assert!((FIRST_ADDRESS..LIMIT_ADDRESS).contains(&region.addr()));
        assert_eq!(region.backing(), Backing::Plain4K);
        assert!(region.notice().is_none() && region.fd().is_none() && !region.is_resident());
        let end = region.addr() + region.len();
        let apart =
            |other: &Region| other.addr() >= end || other.addr() + other.len() <= region.addr();
        assert!(
            regions
                .iter()
                .filter(|r| r.addr() != region.addr())
                .all(|r| apart(r))
        );
    }
}

#[test]
fn a_taken_address_is_refused_and_left_alone() {
    let first = plain(4096);
    first.write_at(0, b"mine");
    let options = RegionOptions {
        len: 4096,
        backing: BackingPreference::Plain4K,
        address: Some(first.addr()),
        ..RegionOptions::default()
    };
    let error = Region::allocate(&options).unwrap_err();
    assert!(
        matches!(error, DmaError::Map { call: "map", .. }),
        "{error}"
    );
    let mut read = [0; 4];
    first.read_at(0, &mut read);
    assert_eq!(&read, b"mine");
    let address = Some(first.addr() + 1);
    let error = Region::allocate(&RegionOptions { address, ..options }).unwrap_err();
    assert!(matches!(error, DmaError::RegionAddress { .. }), "{error}");
}

#[test]
fn an_address_asked_for_is_given() {
    let address = 0x30_1234_5000;
    let options = RegionOptions {
        len: 10_000,
        backing: BackingPreference::Plain4K,
        address: Some(address),
        ..RegionOptions::default()
    };
    for _ in 0..2 {
        let region = Region::allocate(&options).unwrap();
        assert_eq!((region.addr(), region.len()), (address, 12_288));
        // Dropped here: the address is free again in the next turn.
    }
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    for len in [0, usize::MAX, isize::MAX as usize] {
        let error = Region::allocate(&RegionOptions {
            len,
            ..RegionOptions::default()
        });
        assert!(matches!(error, Err(DmaError::RegionLength { .. })), "{len}");
    }
}

#[test]
fn auto_always_gives_memory_and_says_what_it_is() {
    let options = RegionOptions {
        len: 64 << 20,
        ..RegionOptions::default()
    };
    let region = Region::allocate(&options).unwrap();
    assert!(region.len() >= 64 << 20);
    match region.backing() {
        backing if backing.is_huge() => assert!(region.is_resident()),
        _ => {
            let notice = region.notice().unwrap();
            assert!(notice.contains("4 KiB pages"), "{notice}");
            assert!(notice.contains("vm.nr_hugepages"), "{notice}");
            assert_eq!(notice.lines().count(), 1);
        }
    }
    region.write_at(region.len() - 1, &[1]);
}

#[test]
fn locked_pages_are_locked_as_they_are_touched() {
    let options = RegionOptions {
        len: 1 << 20,
        backing: BackingPreference::Locked4K,
        transparent_huge: Some(false),
        ..RegionOptions::default()
    };
    let region = Region::allocate(&options).unwrap();
    if region.backing() != Backing::Locked4K {
        let notice = region.notice().unwrap();
        assert!(notice.contains("RLIMIT_MEMLOCK"), "{notice}");
        println!("skipped: {notice}");
        return;
    }
    assert_eq!(
        smaps_kib(region.addr(), "Rss"),
        Some(0),
        "nothing is resident at first"
    );
    region.write_at(5 * 4096 + 1, &[1; 4096]);
    assert_eq!(smaps_kib(region.addr(), "Rss"), Some(8));
    assert_eq!(smaps_kib(region.addr(), "Locked"), Some(8));
}

#[test]
fn prefault_makes_all_pages_resident() {
    let options = RegionOptions {
        len: 1 << 20,
        backing: BackingPreference::Plain4K,
        prefault: true,
        ..RegionOptions::default()
    };
    let region = Region::allocate(&options).unwrap();
    assert!(region.is_resident());
    assert_eq!(smaps_kib(region.addr(), "Rss"), Some(1024));
}

#[test]
fn discard_zeroes_and_gives_pages_back() {
    let options = RegionOptions {
        len: 1 << 20,
        backing: BackingPreference::Plain4K,
        transparent_huge: Some(false),
        ..RegionOptions::default()
    };
    let region = Region::allocate(&options).unwrap();
    region.write_at(0, &vec![0xAA; 1 << 20]);
    region.discard(100, (1 << 20) - 200);
    assert_eq!(
        smaps_kib(region.addr(), "Rss"),
        Some(8),
        "the first and the last page"
    );
    let mut all = vec![1; 1 << 20];
    region.read_at(0, &mut all);
    let expected = [vec![0xAA; 100], vec![0; (1 << 20) - 200], vec![0xAA; 100]].concat();
    assert!(all == expected);
    region.discard(50, 10);
    assert_eq!(region.compare_at(0, &[0xAA; 100]), Some(50));
    region.discard(1 << 20, 0);
}

#[test]
fn backings_asked_for_by_name_are_given_or_refused_with_numbers() {
    for (preference, backing, kib) in [
        (BackingPreference::Hugetlb2M, Backing::Hugetlb2M, 2048),
        (BackingPreference::Hugetlb1G, Backing::Hugetlb1G, 1 << 20),
        (BackingPreference::HugepageRs, Backing::HugepageRs, 2048),
    ] {
        let options = RegionOptions {
            len: MIB_2 + 1,
            backing: preference,
            ..RegionOptions::default()
        };
        match Region::allocate(&options) {
            Ok(region) => {
                println!("{backing}: {region:?}");
                assert_eq!(region.backing(), backing);
                assert_eq!(region.len() % (kib << 10), 0);
                assert_eq!(region.fd().is_some(), backing != Backing::HugepageRs);
                assert!(region.is_resident());
                region.write_at(MIB_2, &[7]);
                assert_eq!(region.compare_at(MIB_2, &[7]), None);
                assert_eq!(region.compare_at(0, &[0; 4096]), None, "zeroed at first");
            }
            Err(error) => {
                println!(
                    "skipped {backing}, {} pages free: {error}",
                    free_hugepages(kib)
                );
                assert!(matches!(error, DmaError::Hugepages { .. }), "{error}");
                assert!(
                    error.to_string().contains(&format!("hugepages-{kib}kB")),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn a_hugetlb_region_can_be_shared_by_its_descriptor() {
    if free_hugepages(2048) == 0 {
        println!("skipped: no free 2 MiB hugepages");
        return;
    }
    let backing = BackingPreference::Hugetlb2M;
    let options = RegionOptions {
        len: MIB_2,
        backing,
        ..RegionOptions::default()
    };
    let Ok(region) = Region::allocate(&options) else {
        println!("skipped: the free hugepages were taken meanwhile");
        return;
    };
    let fd = region.fd().unwrap().try_clone_to_owned().unwrap();
    let file = fs::File::from(fd);
    assert_eq!(file.metadata().unwrap().len(), MIB_2 as u64);
    assert!((FIRST_ADDRESS..LIMIT_ADDRESS).contains(&region.addr()));
}

#[test]
fn a_numa_node_that_is_there_is_used_and_one_that_is_not_is_refused() {
    let options = RegionOptions {
        len: 8192,
        backing: BackingPreference::Plain4K,
        numa_node: Some(0),
        prefault: true,
        ..RegionOptions::default()
    };
    let region = Region::allocate(&options).unwrap();
    if let Some(notice) = region.notice() {
        println!("skipped: {notice}");
        return;
    }
    for numa_node in [Some(1000), Some(u32::MAX)] {
        let error = Region::allocate(&RegionOptions {
            numa_node,
            ..options.clone()
        })
        .unwrap_err();
        assert!(matches!(error, DmaError::NumaNode { .. }), "{error}");
    }
}

#[test]
fn lent_memory_outlives_the_owner_and_follows_later_writes() {
    let region = plain(8192);
    region.write_at(4000, &[1; 200]);
    let lent = region.lend(4000, 200);
    let part = lent.slice(100, 50);
    region.write_at(4100, &[2; 10]);
    drop(region);
    let mut into = [0; 50];
    part.copy_to(&mut into);
    assert_eq!(into[..10], [2; 10]);
    assert_eq!(into[10..], [1; 40]);
    assert_eq!(
        (lent.len(), part.offset(), part.addr()),
        (200, 4100, lent.addr() + 100)
    );
}

#[test]
fn ranges_outside_of_a_region_panic() {
    let region = plain(4096);
    type Call = fn(&Arc<Region>);
    let calls: [Call; 9] = [
        |r| r.read_at(4096, &mut [0]),
        |r| r.read_at(usize::MAX, &mut [0; 2]),
        |r| r.write_at(4090, &[0; 7]),
        |r| r.zero(1, 4096),
        |r| r.discard(usize::MAX, 2),
        |r| assert!(r.compare_at(4000, &[0; 97]).is_some()),
        |r| drop(r.lend(0, 4097)),
        |r| drop(r.lend(0, 4096).slice(4096, 1)),
        |r| r.lend(0, 2).copy_to(&mut [0; 3]),
    ];
    for (index, call) in calls.into_iter().enumerate() {
        let result = std::panic::catch_unwind(|| call(&region));
        assert!(result.is_err(), "call {index}");
    }
}

#[test]
fn short_copies_are_exact_at_every_length_and_alignment() {
    let region = plain(4096);
    let data: Vec<u8> = (1..=255).collect();
    for len in 0..=160 {
        for offset in 0..17 {
            region.write_at(0, &[0; 256]);
            region.write_at(offset, &data[..len]);
            let mut read = [0; 256];
            region.read_at(0, &mut read);
            let mut wanted = [0; 256];
            wanted[offset..offset + len].copy_from_slice(&data[..len]);
            assert_eq!(read, wanted, "{len} bytes at {offset}");
            let mut part = vec![0xee; len + 2];
            region.read_at(offset, &mut part[1..=len]);
            assert_eq!(part[1..=len], data[..len]);
            assert_eq!((part[0], part[len + 1]), (0xee, 0xee));
        }
    }
}

fn quiet() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(quiet())]
    #[test]
    fn copies_agree_with_a_vector(
        writes in prop::collection::vec((0usize..8000, 0usize..3000, any::<u8>(), 0u8..4), 1..40)
    ) {
        let region = plain(12_288);
        let mut model = vec![0u8; region.len()];
        for (offset, len, byte, what) in writes {
            let range = offset..offset + len;
            match what {
                0 => {
                    model[range].fill(0);
                    region.zero(offset, len);
                }
                1 => {
                    model[range].fill(0);
                    region.discard(offset, len);
                }
                _ => {
                    let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                    model[range].copy_from_slice(&data);
                    region.write_at(offset, &data);
                }
            }
        }
        let mut read = vec![1u8; model.len()];
        region.read_at(0, &mut read);
        prop_assert!(read == model);
        prop_assert_eq!(region.compare_at(0, &model), None);
    }

    #[test]
    fn compare_finds_the_first_difference(
        len in 1usize..3000,
        offset in 0usize..1000,
        at in 0usize..3000,
    ) {
        let region = plain(8192);
        let at = at % len;
        region.write_at(offset + at, &[1]);
        if at + 1 < len {
            region.write_at(offset + len - 1, &[2]);
        }
        prop_assert_eq!(region.compare_at(offset, &vec![0; len]), Some(at));
    }
}

#[test]
fn a_pool_on_small_pages_is_resident_only_where_it_was_used() {
    for backing in [BackingPreference::Plain4K, BackingPreference::Locked4K] {
        let options = IobufOptions {
            backing,
            ..IobufOptions::default()
        };
        let pool = IobufPool::new(options).unwrap();
        let region = &pool.regions()[0];
        assert!(region.len() > 190 << 20, "the defaults");
        let channels: Vec<_> = (0..8)
            .map(|_| pool.channel("test", ChannelOptions::default()).unwrap())
            .collect();
        assert_eq!(
            smaps_kib(region.addr(), "Rss"),
            Some(0),
            "channels touch nothing"
        );
        for _ in 0..1000 {
            channels[0].get(8192).unwrap().as_mut_slice().fill(1);
        }
        assert_eq!(
            smaps_kib(region.addr(), "Rss"),
            Some(8),
            "one buffer, used again and again"
        );
    }
}

#[test]
#[should_panic(expected = "reached through its buffers")]
fn the_memory_of_a_pool_cannot_be_copied_to_beside_its_buffers() {
    let backing = BackingPreference::Plain4K;
    let pool = IobufPool::new(IobufOptions {
        backing,
        ..IobufOptions::default()
    })
    .unwrap();
    pool.regions()[0].write_at(0, &[1]);
}
