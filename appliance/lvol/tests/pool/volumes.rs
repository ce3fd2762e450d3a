//! What volumes do, on a simulated drive, one call after another.

use crate::rig::Rig;
use block::{Io, Op};
use lvol::{LvolError, NewVolume, OperationKind, OperationState, VolumeChange};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed) | 1)
        .collect()
}

#[test]
fn a_new_volume_reads_as_zeroes_and_takes_no_cluster() {
    let mut rig = Rig::create(64, 1);
    let free = rig.free_clusters();
    rig.create_volume("v", 1 << 40);
    let mut channel = rig.channel("v");
    assert_eq!(
        rig.read(&mut channel, (1 << 40) - 8192, 8192),
        vec![0; 8192]
    );
    assert_eq!(rig.free_clusters(), free);
}

#[test]
fn what_was_written_is_read_at_every_alignment() {
    let mut rig = Rig::create(64, 2);
    rig.create_volume("v", 8 * MIB);
    let mut channel = rig.channel("v");
    let mut expected = vec![0; 2 * MIB as usize];
    for (number, (offset, len)) in [
        (0, 512),
        (512, 512),
        (4096, 4096),
        (3584, 1024),
        (65536 - 512, 1024),
        (100 * 512, 131072),
        (MIB, 65536),
        (MIB + 4096 + 512, 8192),
    ]
    .into_iter()
    .enumerate()
    {
        let data = pattern(len, number as u8);
        rig.write(&mut channel, offset, &data);
        expected[offset as usize..offset as usize + len].copy_from_slice(&data);
    }
    for offset in (0..2 * MIB).step_by(131072) {
        let read = rig.read(&mut channel, offset, 131072);
        assert!(read == expected[offset as usize..][..131072], "at {offset}");
    }
}

#[test]
fn flushed_data_is_there_after_the_power_was_cut() {
    let mut rig = Rig::create(64, 3);
    rig.create_volume("v", 8 * MIB);
    let mut channel = rig.channel("v");
    let data = pattern(8192, 5);
    rig.write(&mut channel, 12288, &data);
    rig.flush(&mut channel);
    let image = rig.drive.cut(0);
    let mut rig = Rig::open_image(image, 4).unwrap();
    let mut channel = rig.channel("v");
    assert_eq!(rig.read(&mut channel, 12288, 8192), data);
}

#[test]
fn fua_data_is_there_after_the_power_was_cut() {
    let mut rig = Rig::create(64, 5);
    rig.create_volume("v", 8 * MIB);
    let mut channel = rig.channel("v");
    let first = pattern(4096, 5);
    rig.write(&mut channel, 0, &first);
    // In place of one that is not committed.
    let second = pattern(4096, 9);
    rig.try_write(&mut channel, 0, &second, true).unwrap();
    let mut rig = Rig::open_image(rig.drive.cut(0), 6).unwrap();
    let mut channel = rig.channel("v");
    assert_eq!(rig.read(&mut channel, 0, 4096), second);
}

#[test]
fn a_snapshot_keeps_what_was_and_the_volume_goes_on() {
    let mut rig = Rig::create(64, 7);
    rig.create_volume("v", 8 * MIB);
    let mut channel = rig.channel("v");
    let old = pattern(65536, 1);
    rig.write(&mut channel, 0, &old);
    rig.snapshot(&[("v", "s")]).unwrap();
    let new = pattern(512, 99);
    rig.write(&mut channel, 1024, &new);
    let mut expected = old.clone();
    expected[1024..1536].copy_from_slice(&new);
    assert_eq!(rig.read(&mut channel, 0, 65536), expected);
    let mut frozen = rig.channel("v@s");
    assert_eq!(rig.read(&mut frozen, 0, 65536), old);
    rig.clone_snapshot("v@s", "c").unwrap();
    let mut clone = rig.channel("c");
    assert_eq!(rig.read(&mut clone, 0, 65536), old);
    rig.op(&mut clone, Op::Unmap, 0, 8192);
    assert_eq!(rig.read(&mut clone, 0, 8192), vec![0; 8192]);
    assert_eq!(rig.read(&mut frozen, 0, 65536), old);
    let image = {
        rig.flush(&mut channel);
        rig.drive.cut(0)
    };
    let mut rig = Rig::open_image(image, 8).unwrap();
    for (name, expected) in [("v", &expected), ("v@s", &old)] {
        let mut channel = rig.channel(name);
        assert_eq!(&rig.read(&mut channel, 0, 65536), expected, "{name}");
    }
    let mut clone = rig.channel("c");
    assert_eq!(rig.read(&mut clone, 8192, 8192), old[8192..16384]);
    assert_eq!(rig.read(&mut clone, 0, 8192), vec![0; 8192]);
}

#[test]
fn space_comes_back_exactly_whatever_the_order_of_deletions() {
    // Every order of deleting a volume, its two snapshots and a clone of the first.
    let names = ["v", "v@a", "v@b", "c"];
    for order in 0..24_usize {
        let mut left: Vec<&str> = names.to_vec();
        let mut rig = Rig::create(64, 100 + order as u64);
        let free = rig.free_clusters();
        rig.create_volume("v", 8 * MIB);
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 0, &pattern(65536, 1));
        rig.write(&mut channel, 3 * 65536, &pattern(4096, 2));
        rig.snapshot(&[("v", "a")]).unwrap();
        rig.clone_snapshot("v@a", "c").unwrap();
        rig.write(&mut channel, 4096, &pattern(4096, 3));
        rig.write(&mut channel, 65536, &pattern(65536, 4));
        rig.snapshot(&[("v", "b")]).unwrap();
        rig.write(&mut channel, 8192, &pattern(4096, 5));
        rig.op(&mut channel, Op::Unmap, 65536, 65536);
        let expected = rig.read(&mut channel, 0, 131072);
        drop(channel);
        let mut clone = rig.channel("c");
        rig.write(&mut clone, 512, &pattern(512, 6));
        let expected_clone = rig.read(&mut clone, 0, 131072);
        drop(clone);
        let mut number = order;
        while !left.is_empty() {
            let name = left.remove(number % left.len());
            number /= left.len() + 1;
            rig.delete(name).unwrap();
            rig.settle();
            for (name, expected) in [("v", &expected), ("c", &expected_clone)] {
                if left.contains(&name) {
                    let mut channel = rig.channel(name);
                    let read = rig.read(&mut channel, 0, 131072);
                    assert!(
                        &read == expected,
                        "{name} changed, order {order}, left {left:?}"
                    );
                }
            }
        }
        rig.settle();
        assert_eq!(rig.free_clusters(), free, "order {order}");
    }
}

#[test]
fn unmap_gives_clusters_back() {
    let mut rig = Rig::create(64, 9);
    let free = rig.free_clusters();
    rig.create_volume("v", 8 * MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &pattern(131072, 1));
    rig.flush(&mut channel);
    rig.op(&mut channel, Op::Unmap, 0, 131072);
    assert_eq!(rig.read(&mut channel, 0, 131072), vec![0; 131072]);
    rig.flush(&mut channel);
    drop(channel);
    rig.settle();
    assert_eq!(rig.free_clusters(), free);
}

#[test]
fn zeroes_are_written_where_they_end_inside_a_granule() {
    let mut rig = Rig::create(64, 10);
    rig.create_volume("v", 8 * MIB);
    let mut channel = rig.channel("v");
    let mut expected = pattern(131072, 1);
    rig.write(&mut channel, 0, &expected);
    let zeroes = Op::WriteZeroes {
        unmap: true,
        fua: false,
    };
    rig.op(&mut channel, zeroes, 1536, 70000 / 512 * 512);
    expected[1536..1536 + 70000 / 512 * 512].fill(0);
    assert_eq!(rig.read(&mut channel, 0, 131072), expected);
}

#[test]
fn a_full_pool_refuses_what_needs_a_cluster_and_goes_on() {
    let mut rig = Rig::create(16, 11);
    rig.create_volume("v", 64 * MIB);
    let mut channel = rig.channel("v");
    let data = pattern(65536, 1);
    let mut written = 0;
    while rig.try_write(&mut channel, written, &data, false).is_ok() {
        written += 65536;
    }
    assert!(written > 4 * MIB, "{written}");
    assert_eq!(
        rig.try_write(&mut channel, written, &data, false),
        Err(block::IoError::NoSpace)
    );
    rig.write(&mut channel, 0, &pattern(65536, 2));
    rig.flush(&mut channel);
    rig.op(&mut channel, Op::Unmap, 0, 2 * 65536);
    rig.write(&mut channel, written, &data);
    rig.flush(&mut channel);
    assert_eq!(rig.read(&mut channel, written, 65536), data);
}

#[test]
fn a_device_with_something_on_it_is_refused() {
    let rig = Rig::create(64, 12);
    let drive = rig.drive.clone();
    drop(rig);
    let refused = Rig::create_on(drive, 64 << 10).err();
    assert!(
        matches!(refused, Some(LvolError::Foreign { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_volume_that_shrank_and_grew_reads_as_zeroes_past_the_old_end() {
    let mut rig = Rig::create(64, 13);
    let free = rig.free_clusters();
    rig.create_volume("v", 16 * MIB);
    let mut channel = rig.channel("v");
    let data = pattern(65536, 1);
    for offset in [0, 65536, 12 * MIB] {
        rig.write(&mut channel, offset, &data);
    }
    rig.snapshot(&[("v", "s")]).unwrap();
    rig.write(&mut channel, 13 * MIB, &data);
    drop(channel);
    for size in [65536 + 8192, 16 * MIB] {
        let promise = rig.pool.resize("v", size);
        rig.wait(promise).unwrap();
    }
    let mut channel = rig.channel("v");
    let mut expected = vec![0; 131072];
    expected[..65536].copy_from_slice(&data);
    expected[65536..65536 + 8192].copy_from_slice(&data[..8192]);
    assert!(rig.read(&mut channel, 0, 131072) == expected);
    for offset in [12 * MIB, 13 * MIB] {
        assert!(
            rig.read(&mut channel, offset, 65536) == vec![0; 65536],
            "at {offset}"
        );
    }
    let mut frozen = rig.channel("v@s");
    assert!(rig.read(&mut frozen, 12 * MIB, 65536) == data);
    drop((channel, frozen));
    for name in ["v@s", "v"] {
        rig.delete(name).unwrap();
        rig.settle();
    }
    assert_eq!(rig.free_clusters(), free);
}

#[test]
fn a_pool_uses_what_its_device_has_grown_by() {
    let mut rig = Rig::create(16, 14);
    let free = rig.free_clusters();
    block::BlockDevice::resize(&*rig.drive, 64 << 11).unwrap();
    rig.base.resize(64 << 11).unwrap();
    let promise = rig.pool.grow();
    rig.wait(promise).unwrap();
    assert_eq!(rig.free_clusters(), free + 48 * 16);
    let mut rig = Rig::open_image(rig.drive.cut(0), 15).unwrap();
    rig.create_volume("v", 64 * MIB);
    let mut channel = rig.channel("v");
    for offset in (0..32 * MIB).step_by(65536) {
        rig.write(&mut channel, offset, &pattern(65536, 3));
    }
}

#[test]
fn a_thick_volume_never_lacks_space_and_its_snapshot_needs_room() {
    let mut rig = Rig::create(32, 16);
    let free = rig.free_clusters();
    let size = 8 * MIB;
    let promise = rig.pool.create_volume(NewVolume {
        name: "thick".to_owned(),
        size_bytes: size,
        thick: true,
        ..NewVolume::default()
    });
    rig.wait(promise).unwrap();
    let promise = rig.pool.create_volume(NewVolume {
        name: "too much".to_owned(),
        size_bytes: 64 * MIB,
        thick: true,
        ..NewVolume::default()
    });
    let refused = rig.wait(promise);
    assert!(
        matches!(refused, Err(LvolError::NoSpace { .. })),
        "{refused:?}"
    );
    rig.create_volume("thin", 64 * MIB);
    let mut thin = rig.channel("thin");
    let data = pattern(65536, 1);
    let mut written = 0;
    while rig.try_write(&mut thin, written, &data, false).is_ok() {
        written += 65536;
    }
    let mut thick = rig.channel("thick");
    for offset in (0..size).step_by(65536) {
        rig.write(&mut thick, offset, &data);
    }
    rig.flush(&mut thick);
    let refused = rig.snapshot(&[("thick", "s")]);
    assert!(
        matches!(refused, Err(LvolError::NoSpace { .. })),
        "{refused:?}"
    );
    drop((thin, thick));
    rig.delete("thin").unwrap();
    rig.settle();
    rig.snapshot(&[("thick", "s")]).unwrap();
    let promise = rig.pool.info();
    assert_eq!(rig.wait(promise).unwrap().reserved_clusters, size / 65536);
    rig.delete("thick").unwrap();
    rig.delete("thick@s").unwrap();
    rig.settle();
    let promise = rig.pool.info();
    let info = rig.wait(promise).unwrap();
    assert_eq!((info.free_clusters, info.reserved_clusters), (free, 0));
}

#[test]
fn the_difference_of_two_snapshots_is_what_was_written_between_them() {
    let mut rig = Rig::create(64, 17);
    rig.create_volume("v", 32 * MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &pattern(131072, 1));
    rig.snapshot(&[("v", "a")]).unwrap();
    rig.write(&mut channel, 4096, &pattern(512, 2));
    rig.write(&mut channel, 20 * MIB, &pattern(8192, 3));
    rig.op(&mut channel, Op::Unmap, 65536, 8192);
    rig.snapshot(&[("v", "b")]).unwrap();
    let mut list = |from: Option<&str>, to: &str, limit: usize| {
        let (mut offset, mut extents) = (Some(0), Vec::new());
        while let Some(at) = offset {
            let promise = rig.pool.diff(from, to, at, limit);
            let part = rig.wait(promise).unwrap();
            assert!(part.extents.len() <= limit);
            extents.extend(
                part.extents
                    .iter()
                    .map(|extent| (extent.offset, extent.len)),
            );
            offset = part.next;
        }
        extents
    };
    let changed = [(4096, 4096), (65536, 8192), (20 * MIB, 8192)];
    for limit in [1, 2, 100] {
        assert_eq!(list(Some("v@a"), "v@b", limit), changed);
        assert_eq!(list(Some("v@b"), "v@a", limit), changed);
    }
    assert_eq!(list(Some("v@a"), "v@a", 10), []);
    assert_eq!(list(None, "v@a", 10), [(0, 131072)]);
    assert_eq!(
        list(None, "v@b", 10),
        [(0, 65536), (73728, 57344), (20 * MIB, 8192)]
    );
}

/// A clone `c` of a snapshot of `v`, with data of its own and of the snapshot.
fn with_clone(seed: u64) -> (Rig, Vec<u8>) {
    let mut rig = Rig::create(64, seed);
    rig.create_volume("v", 16 * MIB);
    let mut channel = rig.channel("v");
    for offset in [0, 65536, 9 * MIB] {
        rig.write(&mut channel, offset, &pattern(65536, offset as u8));
    }
    rig.snapshot(&[("v", "s")]).unwrap();
    rig.clone_snapshot("v@s", "c").unwrap();
    let mut clone = rig.channel("c");
    rig.write(&mut clone, 512, &pattern(512, 9));
    rig.op(&mut clone, Op::Unmap, 65536 + 8192, 8192);
    rig.flush(&mut clone);
    let expected = rig.read(&mut clone, 0, 131072);
    (rig, expected)
}

fn end_of_operation(rig: &mut Rig, id: u64) -> OperationState {
    for _ in 0..10_000 {
        let promise = rig.pool.operations();
        let operations = rig.wait(promise).unwrap();
        let operation = operations
            .iter()
            .find(|operation| operation.id == id)
            .unwrap();
        if operation.state != OperationState::Running {
            return operation.state;
        }
        rig.step();
    }
    panic!("the operation does not end");
}

#[test]
fn a_decoupled_clone_needs_its_parent_no_more() {
    let (mut rig, expected) = with_clone(18);
    let promise = rig.pool.detach("c", OperationKind::Decouple);
    let id = rig.wait(promise).unwrap();
    assert_eq!(end_of_operation(&mut rig, id), OperationState::Done);
    let promise = rig.pool.volume("c");
    assert_eq!(rig.wait(promise).unwrap().parent, None);
    for name in ["v", "v@s"] {
        rig.delete(name).unwrap();
    }
    rig.settle();
    let promise = rig.pool.check();
    assert_eq!(rig.wait(promise).unwrap(), []);
    let mut clone = rig.channel("c");
    assert!(rig.read(&mut clone, 0, 131072) == expected);
    assert!(rig.read(&mut clone, 9 * MIB, 65536) == pattern(65536, 0));
    drop(clone);
    rig.delete("c").unwrap();
    rig.settle();
    let promise = rig.pool.info();
    assert_eq!(rig.wait(promise).unwrap().used_clusters, 0);
}

#[test]
fn an_inflated_clone_is_thick() {
    let (mut rig, expected) = with_clone(19);
    let promise = rig.pool.detach("c", OperationKind::Inflate);
    let id = rig.wait(promise).unwrap();
    assert_eq!(end_of_operation(&mut rig, id), OperationState::Done);
    let promise = rig.pool.volume("c");
    let info = rig.wait(promise).unwrap();
    assert!(info.record.thick && info.parent.is_none(), "{info:?}");
    rig.settle();
    let promise = rig.pool.info();
    let info = rig.wait(promise).unwrap();
    let promise = rig.pool.volume("c");
    let has = rig.wait(promise).unwrap().clusters;
    assert_eq!(info.reserved_clusters, 16 * MIB / 65536 - has);
    let mut clone = rig.channel("c");
    assert!(rig.read(&mut clone, 0, 131072) == expected);
}

#[test]
fn an_operation_goes_on_after_a_power_cut() {
    let (mut rig, expected) = with_clone(20);
    let promise = rig.pool.detach("c", OperationKind::Decouple);
    let id = rig.wait(promise).unwrap();
    rig.step();
    let mut rig = Rig::open_image(rig.drive.cut(0), 21).unwrap();
    assert_eq!(end_of_operation(&mut rig, id), OperationState::Done);
    rig.delete("v@s").unwrap();
    rig.settle();
    let mut clone = rig.channel("c");
    assert!(rig.read(&mut clone, 0, 131072) == expected);
}

#[test]
fn an_operation_is_cancelled_by_a_call_and_by_a_rollback() {
    let (mut rig, expected) = with_clone(22);
    let promise = rig.pool.detach("c", OperationKind::Decouple);
    let cancel = rig.pool.cancel(1);
    assert_eq!(rig.wait(promise).unwrap(), 1);
    rig.wait(cancel).unwrap();
    assert_eq!(end_of_operation(&mut rig, 1), OperationState::Cancelled);
    let promise = rig.pool.detach("c", OperationKind::Decouple);
    let back = rig.pool.rollback("c", "v@s");
    let id = rig.wait(promise).unwrap();
    rig.wait(back).unwrap();
    assert_eq!(end_of_operation(&mut rig, id), OperationState::Cancelled);
    rig.settle();
    let mut clone = rig.channel("c");
    let mut rolled_back = expected;
    rolled_back[..65536].copy_from_slice(&pattern(65536, 0));
    rolled_back[65536..].copy_from_slice(&pattern(65536, 0));
    assert!(rig.read(&mut clone, 0, 131072) == rolled_back);
}

#[test]
fn a_deletion_of_a_large_volume_is_done_in_small_steps() {
    const PIECES: u64 = 1500;
    const PIECE: u64 = 128 * 64 * KIB;
    let mut rig = Rig::create(256, 2);
    rig.create_volume("big", PIECES * PIECE);
    rig.create_volume("other", MIB);
    let mut channel = rig.channel("big");
    for piece in 0..PIECES {
        rig.write(&mut channel, piece * PIECE, &[7; 4096]);
    }
    rig.flush(&mut channel);
    drop(channel);
    let mut channel = rig.channel("other");
    let free = rig.free_clusters();
    rig.delete("big").unwrap();
    let (mut ios_done, mut steps, mut most_written) = (0, 0, 0);
    // The other has some in hand.
    while rig.free_clusters() < free + PIECES - 100 {
        // A first write and a FLUSH of another volume: a few steps each, and each step is small.
        let payload = rig.payload(&[ios_done as u8; 4096]);
        let at = ios_done % 256 * 8;
        let ios = [
            Io::with_payload(Op::Write { fua: false }, at, 8, payload, 1),
            Io::new(Op::Flush, 0, 0, 2),
        ];
        for io in ios {
            let mut done = Vec::new();
            if let block::Submit::Done(completion) = channel.submit(io, rig.now) {
                done.push(completion);
            }
            let mut taken = 0;
            while done.is_empty() {
                rig.drive.reset_stats();
                rig.step();
                most_written = rig.drive.stats().bytes_written.max(most_written);
                channel.poll(rig.now, &mut done);
                taken += 1;
                assert!(taken <= 16, "an i/o waits for {taken} steps");
            }
            assert_eq!(done[0].result, Ok(()));
            steps += taken;
        }
        ios_done += 1;
        assert!(ios_done < 1000, "the deletion does not end");
    }
    // 64 pieces to a transaction, and a transaction to a step.
    assert!(steps >= PIECES / 64, "all was deleted in {steps} steps");
    assert!(
        most_written <= 512 << 10,
        "{most_written} bytes in one step"
    );
}

#[test]
fn labels_come_with_volumes_snapshots_and_clones() {
    let mut rig = Rig::create(32, 2);
    let label = |value: &str| vec![("tier".to_owned(), value.to_owned())];
    let new = |name: &str, labels| lvol::NewVolume {
        name: name.to_owned(),
        size_bytes: MIB,
        labels,
        ..lvol::NewVolume::default()
    };
    let promise = rig.pool.create_volume(new("v", label("1")));
    rig.wait(promise).unwrap();
    let pairs = [("v".to_owned(), "s".to_owned())];
    let promise = rig.pool.create_labelled_snapshots(&pairs, 0, &label("2"));
    rig.wait(promise).unwrap();
    let promise = rig.pool.clone_snapshot("v@s", new("c", label("3")));
    rig.wait(promise).unwrap();
    for (name, value) in [("v", "1"), ("v@s", "2"), ("c", "3")] {
        let promise = rig.pool.volume(name);
        assert_eq!(rig.wait(promise).unwrap().record.labels, label(value));
    }
    // The rules hold from the beginning, and nothing is made that breaks them.
    let wrong = vec![("a b".to_owned(), String::new())];
    let promise = rig.pool.create_volume(new("w", wrong.clone()));
    rig.wait(promise).unwrap_err();
    let promise = rig.pool.clone_snapshot("v@s", new("w", wrong.clone()));
    rig.wait(promise).unwrap_err();
    let pairs = [("v".to_owned(), "t".to_owned())];
    let promise = rig.pool.create_labelled_snapshots(&pairs, 0, &wrong);
    rig.wait(promise).unwrap_err();
    for name in ["w", "v@t"] {
        let promise = rig.pool.volume(name);
        rig.wait(promise).unwrap_err();
    }
}

#[test]
fn labels_and_read_only_stay_over_a_restart_and_a_rename() {
    let mut rig = Rig::create(32, 2);
    rig.create_volume("v", MIB);
    let set = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
    let change = |labels, read_only| VolumeChange { labels, read_only };
    let ask = |rig: &mut Rig, change| {
        let promise = rig.pool.change_volume("v", change);
        rig.wait(promise)
    };
    ask(
        &mut rig,
        change(vec![set("owner", "me"), set("tier", "1")], None),
    )
    .unwrap();
    let info = ask(
        &mut rig,
        change(vec![("tier".to_owned(), None), set("a", "")], Some(true)),
    );
    let labels = vec![
        ("a".to_owned(), String::new()),
        ("owner".to_owned(), "me".to_owned()),
    ];
    assert_eq!(info.unwrap().record.labels, labels);
    let mut channel = rig.channel("v");
    let refused = rig.try_write(&mut channel, 0, &[1; 4096], false);
    assert_eq!(refused, Err(block::IoError::WriteProtected));
    drop(channel);
    for wrong in [
        set("", "x"),
        set(&"k".repeat(64), "x"),
        set("a b", "x"),
        set("k", &"v".repeat(256)),
        set("k", "a\nb"),
    ] {
        assert!(ask(&mut rig, change(vec![wrong], None)).is_err());
    }
    let many = (0..64)
        .map(|number| set(&format!("k{number}"), ""))
        .collect();
    assert!(ask(&mut rig, change(many, None)).is_err(), "66 labels");
    let promise = rig.pool.rename("v", "w");
    rig.wait(promise).unwrap();
    let promise = rig.pool.set_labels(vec![set("rack", "7")]);
    rig.wait(promise).unwrap();
    let promise = rig.pool.rename_pool("lake");
    rig.wait(promise).unwrap();
    let promise = rig.pool.close();
    rig.wait(promise).unwrap();
    let mut rig = Rig::open(rig.drive.clone()).unwrap();
    let promise = rig.pool.volume("w");
    let info = rig.wait(promise).unwrap();
    assert_eq!(info.record.labels, labels);
    assert!(info.record.read_only);
    let promise = rig.pool.info();
    let pool = rig.wait(promise).unwrap();
    assert_eq!(pool.name, "lake");
    assert_eq!(pool.labels, [("rack".to_owned(), "7".to_owned())]);
    let on_again = VolumeChange {
        read_only: Some(false),
        ..VolumeChange::default()
    };
    let promise = rig.pool.change_volume("w", on_again);
    rig.wait(promise).unwrap();
    let mut channel = rig.channel("w");
    rig.write(&mut channel, 0, &[1; 4096]);
}
