//! Names, claims, deletion.

use std::time::Instant;

use block::malloc::{Malloc, MallocOptions};
use block::{BdevOptions, BlockError, ClaimKind, Io, IoError, Op, Registry};

use crate::rig;

fn create(
    registry: &Registry,
    options: BdevOptions,
) -> Result<std::sync::Arc<block::Bdev>, BlockError> {
    let device = Malloc::new(MallocOptions::new(512, 8)).unwrap();
    registry.create(options, device, Instant::now())
}

#[test]
fn a_bdev_is_found_by_name_alias_and_uuid() {
    let registry = Registry::new();
    let uuid = uuid::Uuid::from_u128(7);
    let options = BdevOptions {
        name: "disk0".to_owned(),
        uuid: Some(uuid),
        aliases: vec!["boot".to_owned()],
    };
    create(&registry, options.clone()).unwrap();
    for key in ["disk0", "boot", &uuid.to_string()] {
        assert_eq!(registry.get(key).unwrap().name(), "disk0");
    }
    assert_eq!(registry.get_by_uuid(uuid).unwrap().name(), "disk0");
    assert_eq!(
        registry.get("disk1").unwrap_err().to_string(),
        "no bdev is called \"disk1\""
    );
    registry.delete("boot").unwrap();
    for key in ["disk0", "boot", &uuid.to_string()] {
        assert!(registry.get(key).is_err());
    }
    create(&registry, options).unwrap();
}

#[test]
fn names_aliases_and_uuids_are_unique() {
    let registry = Registry::new();
    let first = BdevOptions {
        name: "a".to_owned(),
        uuid: Some(uuid::Uuid::from_u128(1)),
        aliases: vec!["x".to_owned()],
    };
    create(&registry, first.clone()).unwrap();
    let clashes = [
        BdevOptions::named("a"),
        BdevOptions::named("x"),
        BdevOptions {
            aliases: vec!["a".to_owned()],
            ..BdevOptions::named("b")
        },
        BdevOptions {
            uuid: first.uuid,
            ..BdevOptions::named("c")
        },
    ];
    for options in clashes {
        let error = create(&registry, options.clone()).unwrap_err();
        assert!(
            matches!(error, BlockError::Exists { .. }),
            "{options:?}: {error}"
        );
    }
    for name in ["", "a\nb", &"n".repeat(256)] {
        let error = create(&registry, BdevOptions::named(name)).unwrap_err();
        assert!(matches!(error, BlockError::Name { .. }));
    }
    assert_eq!(registry.len(), 1);
}

#[test]
fn a_bdev_in_use_is_not_deleted() {
    let registry = Registry::new();
    let bdev = create(&registry, BdevOptions::named("d")).unwrap();
    let claim = bdev
        .claim("namespace 1 of nqn.x", ClaimKind::Exclusive)
        .unwrap();
    let error = registry.delete("d").unwrap_err();
    assert_eq!(
        error.to_string(),
        "bdev \"d\" is claimed by namespace 1 of nqn.x"
    );
    drop(claim);
    let mut channel = bdev.open(&rig::context()).unwrap();
    let error = registry.delete("d").unwrap_err();
    assert_eq!(
        error.to_string(),
        "bdev \"d\" is open on 1 channels: close them first"
    );
    rig::run_ok(&mut channel, Io::new(Op::Flush, 0, 0, 0));
    drop(channel);
    registry.delete("d").unwrap();
    assert!(matches!(
        bdev.open(&rig::context()),
        Err(BlockError::Removed { .. })
    ));
    assert!(bdev.claim("late", ClaimKind::Shared).is_err());
    assert!(matches!(
        registry.delete("d"),
        Err(BlockError::NotFound { .. })
    ));
}

#[test]
fn shared_claims_go_together_and_exclusive_ones_do_not() {
    let registry = Registry::new();
    let bdev = create(&registry, BdevOptions::named("d")).unwrap();
    let first = bdev.claim("one", ClaimKind::Shared).unwrap();
    let second = bdev.claim("two", ClaimKind::Shared).unwrap();
    assert!(matches!(
        bdev.claim("three", ClaimKind::Exclusive),
        Err(BlockError::Claimed { .. })
    ));
    drop(first);
    assert_eq!(bdev.claims(), [("two".to_owned(), ClaimKind::Shared)]);
    drop(second);
    let claim = bdev.claim("three", ClaimKind::Exclusive).unwrap();
    assert!(bdev.claim("four", ClaimKind::Shared).is_err());
    assert_eq!(claim.bdev().name(), "d");
}

#[test]
fn listing_goes_by_name_and_in_pages() {
    let registry = Registry::new();
    for name in ["c", "a", "b", "d"] {
        create(&registry, BdevOptions::named(name)).unwrap();
    }
    let names = |bdevs: Vec<std::sync::Arc<block::Bdev>>| {
        bdevs
            .iter()
            .map(|bdev| bdev.name().to_owned())
            .collect::<Vec<_>>()
            .join("")
    };
    assert_eq!(names(registry.list()), "abcd");
    assert_eq!(names(registry.page(None, 3)), "abc");
    assert_eq!(names(registry.page(Some("c"), 3)), "d");
}

#[test]
fn a_device_that_went_away_answers_removed() {
    let registry = Registry::new();
    let bdev = create(&registry, BdevOptions::named("d")).unwrap();
    let mut channel = bdev.open(&rig::context()).unwrap();
    bdev.mark_removed();
    let completion = rig::run(&mut channel, Io::new(Op::Flush, 0, 0, 0));
    assert_eq!(completion.result, Err(IoError::Removed));
}

#[test]
fn impossible_sizes_are_refused() {
    for (block_size, block_count) in [(0, 1), (513, 1), (1024, 1), (512, 0), (4096, u64::MAX)] {
        assert!(Malloc::new(MallocOptions::new(block_size, block_count)).is_err());
    }
    let bdev = create(&Registry::new(), BdevOptions::named("d")).unwrap();
    assert!(bdev.resize(0).is_err());
    assert!(bdev.resize(u64::MAX).is_err());
    assert_eq!(bdev.geometry().block_count, 8);
}
