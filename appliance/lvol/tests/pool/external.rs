//! Volumes that lie on a block device outside the pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use block::{Bdev, BdevChannel, BdevOptions, ClaimKind, Io, IoError, Op};
use lvol::{LvolError, NewVolume, OperationKind, OperationState, VolumeInfo};
use simulation::{Random, SimDevice, SimOptions};

use crate::rig::{End, Rig, drive};

const KIB: usize = 1024;
const MIB: u64 = 1 << 20;
/// A cluster.
const CLUSTER: usize = 64 * KIB;
/// Ends in the middle of a granule, in the 13th cluster.
const LEN: usize = 12 * CLUSTER + 9 * 512;

/// No two blocks are the same, and none is zeroes.
fn gold() -> Vec<u8> {
    let mut random = Random::new(7);
    (0..LEN / 8)
        .flat_map(|_| random.next_u64().to_le_bytes())
        .collect()
}

/// The device, and zeroes up to the volume's end.
fn padded(size: usize) -> Vec<u8> {
    let mut bytes = gold();
    bytes.resize(size, 0);
    bytes
}

/// A pool, a device `gold` and a volume `e` of 1 MiB on it.
fn with_clone(seed: u64) -> (Rig, Arc<SimDevice>) {
    let mut rig = Rig::create(64, seed);
    let device = rig.devices.put("gold", 1, 512, &gold());
    rig.clone_external("gold", "e", MIB).unwrap();
    (rig, device)
}

fn info(rig: &mut Rig, name: &str) -> VolumeInfo {
    let promise = rig.pool.volume(name);
    rig.wait(promise).unwrap()
}

fn missing(rig: &mut Rig, name: &str) -> Option<String> {
    info(rig, name).external.unwrap().missing
}

/// The whole of a volume of 1 MiB.
fn all(rig: &mut Rig, name: &str) -> Vec<u8> {
    let mut channel = rig.channel(name);
    read_all(rig, &mut channel)
}

fn read_all(rig: &mut Rig, channel: &mut BdevChannel) -> Vec<u8> {
    let parts = (0..MIB).step_by(2 * CLUSTER);
    parts
        .flat_map(|at| rig.read(channel, at, 2 * CLUSTER))
        .collect()
}

fn try_read(rig: &mut Rig, channel: &mut BdevChannel, offset: u64) -> Result<Vec<u8>, IoError> {
    let payload = rig.payload(&[0xee; 4096]);
    let io = Io::with_payload(Op::Read, offset / 512, 8, payload, 1);
    let (result, payload) = rig.run(channel, io);
    let mut bytes = vec![0; 4096];
    payload.copy_range_to(0, &mut bytes);
    result.map(|()| bytes)
}

fn end_of(rig: &mut Rig, id: u64) -> OperationState {
    for _ in 0..10_000 {
        let promise = rig.pool.operations();
        let operations = rig.wait(promise).unwrap();
        let operation = operations.iter().find(|one| one.id == id).unwrap();
        if operation.state != OperationState::Running {
            return operation.state;
        }
        rig.step();
    }
    panic!("the operation does not end");
}

fn check(rig: &mut Rig) {
    let promise = rig.pool.check();
    assert_eq!(rig.wait(promise).unwrap(), []);
}

fn pass(rig: &mut Rig, time: Duration) {
    rig.now += time;
    rig.step();
}

#[test]
fn a_clone_shows_the_device_and_goes_its_own_way() {
    let (mut rig, device) = with_clone(40);
    let mut expected = padded(MIB as usize);
    let mut channel = rig.channel("e");
    let mut random = Random::new(3);
    for turn in 0..400_u64 {
        let at = random.below(MIB / 512) as usize * 512;
        let len = ((random.below(96) + 1) as usize * 512).min(MIB as usize - at);
        match random.below(6) {
            0 => {
                let data = vec![turn as u8; len];
                rig.write(&mut channel, at as u64, &data);
                expected[at..at + len].copy_from_slice(&data);
            }
            1 => {
                let op = Op::WriteZeroes {
                    unmap: true,
                    fua: false,
                };
                rig.op(&mut channel, op, at as u64, len as u64);
                expected[at..at + len].fill(0);
            }
            _ => assert!(
                rig.read(&mut channel, at as u64, len) == expected[at..at + len],
                "turn {turn}: {len} at {at}"
            ),
        }
    }
    rig.flush(&mut channel);
    drop(channel);
    let mut rig = rig.reopen(rig.drive.cut(0), End::PowerCut, 41).unwrap();
    assert!(all(&mut rig, "e") == expected);
    check(&mut rig);
    let stats = device.stats();
    assert_eq!(
        (stats.writes, stats.zeroings, stats.flushes),
        (0, 0, 0),
        "only read"
    );
}

#[test]
fn its_end_inside_a_granule_or_a_block_is_followed_by_zeroes() {
    // Blocks of 4 KiB over blocks of 512 bytes: the size is rounded up.
    let drive = SimDevice::new(SimOptions::new(4096, 64 << 8, 42));
    let mut rig = Rig::create_on(drive, 64 << 10).unwrap();
    rig.devices.put("gold", 1, 512, &gold());
    let made = rig.clone_external("gold", "e", 0).unwrap();
    let size = LEN.next_multiple_of(4096);
    assert_eq!(made.record.size_bytes, size as u64);
    let promise = rig.pool.device("e");
    let device = rig.wait(promise).unwrap();
    let bdev = Bdev::new(BdevOptions::named("e"), device, rig.now).unwrap();
    let context = block::ChannelContext::new("test", std::task::Waker::noop().clone());
    let mut channel = bdev.open(&context).unwrap();
    let mut last = vec![0; 8192];
    let payload = rig.payload(&last);
    let lba = (size / 4096 - 2) as u64;
    let io = Io::with_payload(Op::Read, lba, 2, payload, 1);
    let (result, payload) = rig.run(&mut channel, io);
    result.unwrap();
    payload.copy_range_to(0, &mut last);
    assert!(last == padded(size)[size - 8192..]);
    // A write of one block fills nothing: the granule is a block.
    let mut rig = with_clone(43).0;
    let mut channel = rig.channel("e");
    let at = (LEN - 512) as u64;
    rig.write(&mut channel, at, &[9; 512]);
    let mut expected = padded(MIB as usize);
    expected[LEN - 512..LEN].fill(9);
    assert!(
        read_all(&mut rig, &mut channel) == expected,
        "tail filled with zeroes"
    );
}

#[test]
fn a_read_that_lies_in_the_device_is_one_read_there() {
    let (mut rig, device) = with_clone(44);
    let mut channel = rig.channel("e");
    let pool = rig.drive.stats();
    device.reset_stats();
    assert!(rig.read(&mut channel, 4096, 32 * KIB) == gold()[4096..4096 + 32 * KIB]);
    let stats = device.stats();
    assert_eq!((stats.reads, stats.bytes_read), (1, 32 * 1024));
    rig.flush(&mut channel);
    assert_eq!(device.stats().flushes, 0, "a flush does not go there");
    assert_eq!(rig.drive.stats().reads, pool.reads);
    // Past its end nothing is read.
    device.reset_stats();
    assert_eq!(
        rig.read(&mut channel, 15 * CLUSTER as u64, CLUSTER),
        vec![0; CLUSTER]
    );
    assert_eq!(device.stats().reads, 0);
}

#[test]
fn compares_and_verifies_work_over_the_device() {
    let (mut rig, _device) = with_clone(45);
    let mut channel = rig.channel("e");
    rig.write(&mut channel, 8192, &[5; 512]);
    let mut expected = padded(MIB as usize);
    expected[8192..8704].fill(5);
    for (at, differs) in [
        (4096, None),
        (8192, Some(700_u32)),
        (LEN / 512 * 512 - 1024, None),
    ] {
        let mut data = expected[at..at + 4096].to_vec();
        if let Some(byte) = differs {
            data[byte as usize] ^= 1;
        }
        let payload = rig.payload(&data);
        let io = Io::with_payload(Op::Compare, at as u64 / 512, 8, payload, 1);
        let outcome = differs.map(|offset_bytes| IoError::CompareMismatch { offset_bytes });
        assert_eq!(rig.run(&mut channel, io).0.err(), outcome, "at {at}");
        rig.op(&mut channel, Op::Verify, at as u64, 4096);
    }
}

#[test]
fn what_cannot_be_a_parent_is_refused() {
    let (mut rig, _device) = with_clone(46);
    rig.devices.put("large blocks", 2, 4096, &[1; 8192]);
    let refused = |result: Result<VolumeInfo, LvolError>| result.unwrap_err().to_string();
    let text = refused(rig.clone_external("large blocks", "x", 0));
    assert!(text.contains("4096 bytes and the pool's 512"), "{text}");
    let text = refused(rig.clone_external("gold", "x", 4096));
    assert!(text.contains("cannot be smaller"), "{text}");
    let text = refused(rig.clone_external("gold", "e", 0));
    assert!(text.contains("there already"), "{text}");
    let promise = rig.pool.device("e");
    let volume = rig.wait(promise).unwrap();
    rig.devices.put_device("tank/e", 3, volume);
    let text = refused(rig.clone_external("tank/e", "x", 0));
    assert!(text.contains("lies in a pool"), "{text}");
    rig.devices.put("written", 4, 512, &[1; 8192]);
    let bdev = rig.devices.registry.get("written").unwrap();
    let _claim = bdev.claim("nqn/1", ClaimKind::Shared).unwrap();
    let text = refused(rig.clone_external("written", "x", 0));
    assert!(text.contains("claimed by nqn/1"), "{text}");
    assert_eq!(info(&mut rig, "e").children, 0);
}

#[test]
fn the_device_is_kept_from_deletion_and_writers_while_a_name_lies_on_it() {
    let (mut rig, _device) = with_clone(47);
    let mut channel = rig.channel("e");
    rig.read(&mut channel, 0, 4096);
    let devices = Arc::clone(&rig.devices);
    let bdev = devices.registry.get("gold").unwrap();
    let refused = || devices.registry.delete("gold").unwrap_err().to_string();
    assert!(
        refused().ends_with("claimed by volume tank/e"),
        "{}",
        refused()
    );
    bdev.claim("nqn/1", ClaimKind::Shared).unwrap_err();
    let promise = rig.pool.rename("e", "f");
    rig.wait(promise).unwrap();
    rig.step();
    assert!(
        refused().ends_with("claimed by volume tank/f"),
        "{}",
        refused()
    );
    rig.snapshot(&[("f", "s")]).unwrap();
    rig.step();
    assert!(
        refused().ends_with("volume tank/f and 1 more"),
        "{}",
        refused()
    );
    drop(channel);
    rig.delete("f").unwrap();
    rig.settle();
    assert!(refused().ends_with("snapshot tank/f@s"), "{}", refused());
    assert!(all(&mut rig, "f@s") == padded(MIB as usize));
    rig.delete("f@s").unwrap();
    rig.settle();
    assert!(devices.registry.delete("gold").is_ok());
    let promise = rig.pool.info();
    assert_eq!(rig.wait(promise).unwrap().layers, 0);
}

#[test]
fn a_missing_device_costs_only_what_is_read_from_it() {
    let (mut rig, _device) = with_clone(48);
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("e");
    rig.write(&mut channel, 0, &[1; CLUSTER]);
    rig.flush(&mut channel);
    drop(channel);
    // The pool is opened before the device is there.
    let drive = SimDevice::from_image(rig.drive.cut(0), SimOptions::new(512, 1, 49));
    let mut rig = Rig::open(drive).unwrap();
    let text = missing(&mut rig, "e").unwrap();
    assert!(text.contains("no bdev has the uuid"), "{text}");
    assert_eq!(info(&mut rig, "e").external.unwrap().name, "gold");
    let mut channel = rig.channel("e");
    // Not a media error: a host may try again.
    let failed = Err(IoError::Internal);
    assert_eq!(try_read(&mut rig, &mut channel, CLUSTER as u64), failed);
    assert_eq!(
        rig.try_write(&mut channel, 70 * 1024 + 512, &[2; 512], false),
        Err(IoError::Internal)
    );
    // What it has, what covers whole granules, and what lies past the device's end.
    assert_eq!(rig.read(&mut channel, 0, CLUSTER), vec![1; CLUSTER]);
    rig.write(&mut channel, CLUSTER as u64, &[3; 4096]);
    rig.write(&mut channel, 3 * CLUSTER as u64, &[4; CLUSTER]);
    rig.op(&mut channel, Op::Unmap, 4 * CLUSTER as u64, CLUSTER as u64);
    assert_eq!(
        rig.read(&mut channel, 4 * CLUSTER as u64, CLUSTER),
        vec![0; CLUSTER]
    );
    assert_eq!(
        rig.read(&mut channel, 14 * CLUSTER as u64, CLUSTER),
        vec![0; CLUSTER]
    );
    rig.write(&mut channel, 14 * CLUSTER as u64 + 512, &[5; 512]);
    rig.flush(&mut channel);
    let mut other = rig.channel("v");
    rig.write(&mut other, 512, &[6; 512]);
    // Calls work.
    rig.snapshot(&[("e", "s")]).unwrap();
    rig.clone_snapshot("e@s", "c").unwrap();
    let promise = rig.pool.rename("c", "d");
    rig.wait(promise).unwrap();
    rig.delete("d").unwrap();
    let promise = rig.pool.check();
    let found = rig.wait(promise).unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].problem.contains("missing"), "{found:?}");
    // Failing reads do not look for it each time.
    let looks = rig.devices.looks.load(Ordering::Relaxed);
    for _ in 0..100 {
        assert_eq!(
            try_read(&mut rig, &mut channel, 2 * CLUSTER as u64),
            Err(IoError::Internal)
        );
    }
    assert!(rig.devices.looks.load(Ordering::Relaxed) <= looks + 1);
    // It comes.
    rig.devices.put("other name", 1, 512, &gold());
    pass(&mut rig, Duration::from_millis(1100));
    assert_eq!(missing(&mut rig, "e"), None);
    pass(&mut rig, Duration::from_millis(1100));
    let mut expected = padded(MIB as usize);
    expected[..CLUSTER].fill(1);
    expected[CLUSTER..CLUSTER + 4096].fill(3);
    expected[3 * CLUSTER..4 * CLUSTER].fill(4);
    expected[4 * CLUSTER..5 * CLUSTER].fill(0);
    expected[14 * CLUSTER + 512..14 * CLUSTER + 1024].fill(5);
    assert!(
        read_all(&mut rig, &mut channel) == expected,
        "the same channel"
    );
    rig.settle();
    check(&mut rig);
}

#[test]
fn a_device_that_is_not_what_it_was_is_missing() {
    let (rig, _device) = with_clone(50);
    let bytes = gold();
    let cases: [(&str, u128, u32, &[u8], &str); 3] = [
        ("another uuid", 2, 512, &bytes, "no bdev has the uuid"),
        ("smaller", 1, 512, &bytes[..LEN - 512], "less than the"),
        (
            "larger blocks",
            1,
            4096,
            &bytes[..12 * CLUSTER],
            "may not be larger",
        ),
    ];
    for (what, uuid, block, content, expected) in cases {
        let drive = SimDevice::from_image(rig.drive.cut(0), SimOptions::new(512, 1, 51));
        let mut rig = Rig::open(drive).unwrap();
        rig.devices.put("gold", uuid, block, content);
        pass(&mut rig, Duration::from_millis(1100));
        let text = missing(&mut rig, "e").unwrap();
        assert!(text.contains(expected), "{what}: {text}");
        let mut channel = rig.channel("e");
        assert_eq!(
            try_read(&mut rig, &mut channel, 0),
            Err(IoError::Internal),
            "{what}"
        );
        rig.write(&mut channel, 0, &[1; 4096]);
    }
    // One that grew is the same: what it grew by is not seen.
    let drive = SimDevice::from_image(rig.drive.cut(0), SimOptions::new(512, 1, 51));
    let mut rig = Rig::open(drive).unwrap();
    rig.devices.put("gold", 1, 512, &vec![7; MIB as usize]);
    pass(&mut rig, Duration::from_millis(1100));
    let mut expected = vec![7; MIB as usize];
    expected[LEN..].fill(0);
    assert!(all(&mut rig, "e") == expected);
}

#[test]
fn a_device_that_goes_away_and_comes_back_is_found_by_the_same_channel() {
    let (mut rig, device) = with_clone(52);
    let mut channel = rig.channel("e");
    let bytes = gold();
    assert_eq!(try_read(&mut rig, &mut channel, 0).unwrap(), bytes[..4096]);
    rig.devices.registry.get("gold").unwrap().mark_removed();
    assert_eq!(try_read(&mut rig, &mut channel, 0), Err(IoError::Internal));
    assert!(missing(&mut rig, "e").unwrap().contains("removed"));
    // Nobody reads it now: whoever cares for devices may take it away.
    pass(&mut rig, Duration::from_millis(1100));
    assert_eq!(try_read(&mut rig, &mut channel, 0), Err(IoError::Internal));
    rig.devices.registry.delete("gold").unwrap();
    rig.devices.put_device("gold", 1, device.clone());
    for _ in 0..2 {
        pass(&mut rig, Duration::from_millis(1100));
    }
    assert_eq!(try_read(&mut rig, &mut channel, 0).unwrap(), bytes[..4096]);
    // What the medium says stays what it is.
    device.fail_reads(0..512);
    assert_eq!(try_read(&mut rig, &mut channel, 0), Err(IoError::MediaRead));
    assert_eq!(
        rig.try_write(&mut channel, 1024, &[1; 512], false),
        Err(IoError::MediaRead)
    );
    device.clear_faults();
    assert_eq!(try_read(&mut rig, &mut channel, 0).unwrap(), bytes[..4096]);
}

#[test]
fn snapshots_and_clones_over_it_are_deleted_in_any_order() {
    let names = ["e", "e@a", "e@b", "c"];
    for order in 0..24_usize {
        let mut rig = Rig::create(64, 200 + order as u64);
        let free = rig.free_clusters();
        rig.devices.put("gold", 1, 512, &gold());
        rig.clone_external("gold", "e", MIB).unwrap();
        let mut channel = rig.channel("e");
        rig.write(&mut channel, 512, &[1; 512]);
        rig.op(&mut channel, Op::Unmap, CLUSTER as u64, CLUSTER as u64);
        rig.snapshot(&[("e", "a")]).unwrap();
        rig.clone_snapshot("e@a", "c").unwrap();
        rig.write(&mut channel, 1024, &[2; 512]);
        rig.op(&mut channel, Op::Unmap, 2 * CLUSTER as u64 + 8192, 8192);
        rig.snapshot(&[("e", "b")]).unwrap();
        rig.write(&mut channel, CLUSTER as u64 + 512, &[3; 512]);
        drop(channel);
        let mut clone = rig.channel("c");
        rig.write(&mut clone, 2 * CLUSTER as u64 + 512, &[4; 512]);
        drop(clone);
        let mut e = padded(MIB as usize);
        e[512..1024].fill(1);
        e[CLUSTER..2 * CLUSTER].fill(0);
        let mut c = e.clone();
        c[2 * CLUSTER + 512..2 * CLUSTER + 1024].fill(4);
        e[1024..1536].fill(2);
        e[2 * CLUSTER + 8192..2 * CLUSTER + 16384].fill(0);
        e[CLUSTER + 512..CLUSTER + 1024].fill(3);
        let (mut left, mut number) = (names.to_vec(), order);
        while !left.is_empty() {
            let name = left.remove(number % left.len());
            number /= left.len() + 1;
            rig.delete(name).unwrap();
            rig.settle();
            for (name, expected) in [("e", &e), ("c", &c)] {
                if left.contains(&name) {
                    assert!(&all(&mut rig, name) == expected, "{name}, order {order}");
                }
            }
        }
        assert_eq!(rig.free_clusters(), free, "order {order}");
        check(&mut rig);
    }
}

#[test]
fn a_rollback_and_another_size_show_what_they_should() {
    let (mut rig, _device) = with_clone(53);
    let gold = padded(MIB as usize);
    rig.snapshot(&[("e", "s")]).unwrap();
    let mut channel = rig.channel("e");
    rig.write(&mut channel, 512, &[1; 512]);
    drop(channel);
    let promise = rig.pool.rollback("e", "e@s");
    rig.wait(promise).unwrap();
    rig.settle();
    assert!(all(&mut rig, "e") == gold);
    // Cut off is gone, in the snapshot's clone not.
    let cut = 5 * CLUSTER + 8192;
    for size in [cut as u64, MIB] {
        let promise = rig.pool.resize("e", size);
        rig.wait(promise).unwrap();
    }
    let mut expected = gold.clone();
    expected[cut..].fill(0);
    assert!(all(&mut rig, "e") == expected);
    assert!(all(&mut rig, "e@s") == gold);
    rig.delete("e@s").unwrap();
    rig.settle();
    let mut rig = rig.reopen(rig.drive.cut(0), End::PowerCut, 54).unwrap();
    assert!(all(&mut rig, "e") == expected);
    check(&mut rig);
    // Volumes without the device, rolled back to a snapshot that lies on it.
    rig.snapshot(&[("e", "t")]).unwrap();
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    assert_eq!(rig.read(&mut channel, 0, 4096), vec![0; 4096]);
    let promise = rig.pool.rollback("v", "e@t");
    rig.wait(promise).unwrap();
    assert!(read_all(&mut rig, &mut channel) == expected);
}

#[test]
fn what_was_taken_off_needs_the_device_no_more() {
    for kind in [OperationKind::Decouple, OperationKind::Inflate] {
        let mut rig = Rig::create(64, 55);
        let mut bytes = gold();
        // Takes no room.
        bytes[2 * CLUSTER..8 * CLUSTER].fill(0);
        rig.devices.put("gold", 1, 512, &bytes);
        rig.clone_external("gold", "e", MIB).unwrap();
        let mut channel = rig.channel("e");
        rig.write(&mut channel, 512, &[1; 512]);
        bytes[512..1024].fill(1);
        bytes.resize(MIB as usize, 0);
        assert!(read_all(&mut rig, &mut channel) == bytes);
        let promise = rig.pool.detach("e", kind);
        let id = rig.wait(promise).unwrap();
        assert_eq!(end_of(&mut rig, id), OperationState::Done);
        rig.settle();
        let described = info(&mut rig, "e");
        assert_eq!(described.external, None);
        assert_eq!(described.clusters, 7, "{kind:?}");
        // Also while a channel that read from it is open.
        rig.devices.registry.delete("gold").unwrap();
        assert!(read_all(&mut rig, &mut channel) == bytes);
        drop(channel);
        check(&mut rig);
        let mut rig = rig.reopen(rig.drive.cut(0), End::PowerCut, 56).unwrap();
        assert!(all(&mut rig, "e") == bytes);
    }
}

#[test]
fn taking_off_waits_for_a_missing_device_and_others_do_not() {
    let (mut rig, _device) = with_clone(57);
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[1; 4096]);
    rig.snapshot(&[("v", "s")]).unwrap();
    rig.flush(&mut channel);
    let drive = SimDevice::from_image(rig.drive.cut(0), SimOptions::new(512, 1, 58));
    let mut rig = Rig::open(drive).unwrap();
    let promise = rig.pool.detach("e", OperationKind::Decouple);
    let waits = rig.wait(promise).unwrap();
    let promise = rig.pool.detach("v", OperationKind::Decouple);
    let id = rig.wait(promise).unwrap();
    assert_eq!(end_of(&mut rig, id), OperationState::Done);
    let promise = rig.pool.operations();
    let operations = rig.wait(promise).unwrap();
    let operation = operations.iter().find(|one| one.id == waits).unwrap();
    assert_eq!(operation.state, OperationState::Running);
    assert!(operation.text.contains("gold"), "{}", operation.text);
    rig.devices.put("gold", 1, 512, &gold());
    pass(&mut rig, Duration::from_millis(1100));
    assert_eq!(end_of(&mut rig, waits), OperationState::Done);
    assert!(all(&mut rig, "e") == padded(MIB as usize));
}

#[test]
fn a_difference_knows_what_lies_on_the_same_device() {
    let (mut rig, _device) = with_clone(59);
    rig.clone_external("gold", "f", MIB).unwrap();
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("e");
    rig.write(&mut channel, 8192, &[1; 512]);
    rig.snapshot(&[("e", "s"), ("f", "s"), ("v", "s")]).unwrap();
    let end = LEN.next_multiple_of(4096) as u64;
    let cases = [
        (Some("e@s"), "e@s", vec![]),
        (Some("f@s"), "e@s", vec![(8192, 4096)]),
        (Some("v@s"), "e@s", vec![(0, end)]),
        (Some("e@s"), "v@s", vec![(0, end)]),
        (None, "f@s", vec![(0, end)]),
    ];
    for (from, to, expected) in cases {
        let (mut offset, mut found) = (Some(0), Vec::new());
        while let Some(at) = offset {
            let promise = rig.pool.diff(from, to, at, 100);
            let part = rig.wait(promise).unwrap();
            found.extend(
                part.extents
                    .iter()
                    .map(|extent| (extent.offset, extent.len)),
            );
            offset = part.next;
        }
        assert_eq!(found, expected, "{from:?} {to}");
    }
}

#[test]
fn a_large_device_is_compared_and_cut_piece_by_piece() {
    let mut rig = Rig::create(64, 60);
    // Sparse: 100 pieces of 8 MiB.
    let len = 100 * 8 * MIB;
    let device = SimDevice::new(SimOptions::new(512, len / 512, 5));
    device.write_at(len - 4096, &[8; 4096]).unwrap();
    rig.devices.put_device("large", 9, device);
    rig.clone_external("large", "l", 0).unwrap();
    rig.snapshot(&[("l", "s")]).unwrap();
    let (mut offset, mut sum, mut calls) = (Some(0), 0, 0);
    while let Some(at) = offset {
        let promise = rig.pool.diff(None, "l@s", at, 1000);
        let part = rig.wait(promise).unwrap();
        sum += part.extents.iter().map(|extent| extent.len).sum::<u64>();
        offset = part.next;
        calls += 1;
    }
    assert_eq!((sum, calls), (len, 2));
    for size in [4096, len] {
        let promise = rig.pool.resize("l", size);
        rig.wait(promise).unwrap();
    }
    let mut channel = rig.channel("l");
    assert_eq!(rig.read(&mut channel, len - 4096, 4096), vec![0; 4096]);
    let mut frozen = rig.channel("l@s");
    assert_eq!(rig.read(&mut frozen, len - 4096, 4096), vec![8; 4096]);
    drop((channel, frozen));
    let promise = rig.pool.detach("l", OperationKind::Decouple);
    let id = rig.wait(promise).unwrap();
    assert_eq!(end_of(&mut rig, id), OperationState::Done);
    assert_eq!(info(&mut rig, "l").clusters, 0);
}

#[test]
fn a_pool_that_lends_none_says_so() {
    let buffers = crate::rig::buffers();
    let options = lvol::PoolOptions::new(Arc::clone(&buffers));
    let text = options.externals.claim([1; 16], "gold", "volume v").err();
    assert!(text.is_some_and(|text| text.contains("gold")));
    let mut rig = Rig::open(Rig::create_on(drive(64, 61), 64 << 10).unwrap().drive).unwrap();
    let promise = rig.pool.create_volume(NewVolume {
        name: "v".to_owned(),
        size_bytes: MIB,
        ..NewVolume::default()
    });
    assert_eq!(rig.wait(promise).unwrap().external, None);
}
