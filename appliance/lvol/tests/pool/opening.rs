//! What opening a pool reads, and what damage to one volume's records costs the others.

use block::{Geometry, Io, IoError, Op};
use lvol::{CreateOptions, LvolError};

use crate::rig::{End, Rig, drive};

const CLUSTER: u64 = 64 << 10;
/// Bytes of the log of first writes: all of it is read.
const LOG: u64 = 4 << 20;

/// A pool with so many clusters mapped, cut without a clean close, or closed.
fn bytes_read_to_open(mapped: u64, clean: bool) -> u64 {
    let mut rig = Rig::create_on(drive(1 << 20, mapped), CLUSTER).unwrap();
    rig.create_volume("v", 1 << 40);
    let mut channel = rig.channel("v");
    for cluster in 0..mapped {
        rig.write(&mut channel, cluster * CLUSTER, &[1; 512]);
    }
    rig.flush(&mut channel);
    drop(channel);
    if clean {
        let promise = rig.pool.close();
        rig.wait(promise).unwrap();
    }
    let rig = Rig::open_image(rig.drive.cut(0), 1).unwrap();
    rig.drive.stats().bytes_read - LOG
}

#[test]
fn opening_reads_the_same_with_a_thousand_and_with_a_hundred_thousand_clusters() {
    for clean in [true, false] {
        let (few, many) = (
            bytes_read_to_open(1000, clean),
            bytes_read_to_open(100_000, clean),
        );
        println!("clean {clean}: {few} bytes with 1,000 clusters, {many} with 100,000");
        assert!(many < 2 * few, "clean {clean}: {few} bytes, then {many}");
    }
}

#[test]
fn a_pool_of_64_tib_is_made_by_a_few_writes() {
    let rig = Rig::create_on(drive(64 << 20, 1), 1 << 20).unwrap();
    let stats = rig.drive.stats();
    println!("{stats:?}");
    assert!(stats.bytes_written < 4 << 20, "{stats:?}");
}

#[test]
fn a_closed_pool_opens_with_everything_in_it_and_answers_nothing_before() {
    let mut rig = Rig::create(32, 1);
    rig.create_volume("v", 1 << 20);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[5; 4096]);
    let (pool, promise) = (rig.pool.clone(), rig.pool.close());
    rig.wait(promise).unwrap();
    assert!(pool.has_stopped());
    let refused = pool.info().try_take();
    assert!(
        matches!(refused, Some(Err(LvolError::Closed))),
        "{refused:?}"
    );
    let io = Io::with_payload(Op::Read, 0, 8, rig.payload(&[0; 4096]), 1);
    assert_eq!(rig.run(&mut channel, io).0, Err(IoError::Removed));
    let mut rig = Rig::open_image(rig.drive.image(), 2).unwrap();
    let mut channel = rig.channel("v");
    assert_eq!(rig.read(&mut channel, 0, 4096), vec![5; 4096]);
}

/// The image was made by the last program without a log of first writes, and is never made again.
#[test]
fn a_pool_of_format_1_opens_and_gets_a_log() {
    let file = include_bytes!("../data/pool-v1.image");
    let image = simulation::Image::decode(file).unwrap();
    let mut rig = Rig::open_image(image, 1).unwrap();
    for (name, granule_1) in [("v", [3; 4096]), ("v@s", [1; 4096])] {
        let mut channel = rig.channel(name);
        assert_eq!(rig.read(&mut channel, 0, 4096), [1; 4096]);
        assert_eq!(rig.read(&mut channel, 4096, 4096), granule_1);
        assert_eq!(rig.read(&mut channel, 8192, 57344), [1; 57344]);
        assert_eq!(rig.read(&mut channel, 128 << 10, 12288)[..8192], [2; 8192]);
    }
    let promise = rig.pool.check();
    assert!(rig.wait(promise).unwrap().is_empty());
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 512 << 10, &[4; 4096]);
    let mut rig = rig.end(End::Kill, 0).unwrap();
    let mut channel = rig.channel("v");
    assert_eq!(rig.read(&mut channel, 512 << 10, 4096), [4; 4096]);
    let superblock = lvol::format::Superblock::decode(&{
        let mut bytes = [0; 4096];
        rig.drive.image().read_at(0, &mut bytes);
        bytes
    });
    assert!(superblock.unwrap().log.is_some());
}

#[test]
fn a_destroyed_pool_is_no_more() {
    let mut rig = Rig::create(32, 1);
    let promise = rig.pool.destroy();
    rig.wait(promise).unwrap();
    let error = Rig::open_image(rig.drive.image(), 2).err();
    assert!(matches!(error, Some(LvolError::NoPool { .. })), "{error:?}");
    Rig::create_on(rig.drive, CLUSTER).unwrap();
}

#[test]
fn either_superblock_opens_the_pool() {
    for damaged in [0, 32768] {
        let mut rig = Rig::create(32, 1);
        rig.create_volume("v", 1 << 20);
        let mut image = rig.drive.cut(0);
        image.write_at(damaged, &[0xff; 4096]);
        let mut rig = Rig::open_image(image, 2).unwrap();
        let promise = rig.pool.volume("v");
        rig.wait(promise).unwrap();
    }
}

#[test]
fn a_device_that_fails_in_a_commit_stops_the_pool_and_loses_nothing_flushed() {
    let mut rig = Rig::create(32, 1);
    rig.create_volume("v", 1 << 20);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[5; 4096]);
    rig.flush(&mut channel);
    rig.write(&mut channel, 8192, &[6; 4096]);
    rig.drive.fail_flushes();
    let (result, _) = rig.run(&mut channel, Io::new(Op::Flush, 0, 0, 1));
    assert!(result.is_err());
    assert!(rig.pool.has_stopped());
    let promise = rig
        .pool
        .create_snapshots(&[("v".to_owned(), "s".to_owned())], 0);
    let refused = rig.wait(promise);
    assert!(refused.is_err(), "{refused:?}");
    let mut rig = Rig::open_image(rig.drive.cut(0), 2).unwrap();
    let mut channel = rig.channel("v");
    assert_eq!(rig.read(&mut channel, 0, 4096), vec![5; 4096]);
}

#[test]
fn clusters_suit_the_unit_of_the_drive() {
    let suited = |unit_blocks: u32, gib: u64| {
        let device = Geometry {
            write_granularity_blocks: unit_blocks,
            ..Geometry::new(4096, gib << 18)
        };
        CreateOptions::cluster_size_for(&device) >> 20
    };
    for (unit_blocks, mib) in [(0, 1), (1, 1), (2, 2), (4, 4), (16, 16), (32, 32)] {
        assert_eq!(suited(unit_blocks, 1024), mib, "{unit_blocks} blocks");
    }
    assert_eq!(suited(3, 1024), 1, "no power of two");
    assert_eq!(suited(64, 1024), 1, "no cluster is so large");
    assert_eq!(suited(16, 32), 1, "a small drive");
    assert_eq!(suited(u32::MAX, 1024), 1);
}
