//! The log of first writes: what was acknowledged is there when the program dies, although no FLUSH came.
//!
//! The tests try every moment that matters: a channel is polled, or the worker stepped, once more in each
//! round before the other side goes on. The drive's own delays are drawn by its seed.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use block::{BdevChannel, Completion, Io, Op, Submit};
use lvol::{LvolError, OperationKind};

use crate::rig::{End, Rig, drive, durable_drive};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const CLUSTER: u64 = 64 * KIB;
/// Polls and steps that are tried: an I/O of the drive ends after at most 4 polls.
const MOMENTS: u32 = 14;

const ZEROES: Op = Op::WriteZeroes {
    unmap: true,
    fua: false,
};

fn submit(
    rig: &Rig,
    channel: &mut BdevChannel,
    offset: u64,
    data: &[u8],
    done: &mut Vec<Completion>,
) {
    let blocks = (data.len() / 512) as u32;
    let op = Op::Write { fua: false };
    let io = Io::with_payload(op, offset / 512, blocks, rig.payload(data), offset);
    if let Submit::Done(completion) = channel.submit(io, rig.now) {
        done.push(completion);
    }
}

/// Polls without a step of the worker.
fn polls(rig: &Rig, channel: &mut BdevChannel, count: u32, done: &mut Vec<Completion>) {
    for _ in 0..count {
        channel.poll(rig.now, done);
    }
}

/// What is read of a volume when the program has died.
fn read_after(rig: &Rig, end: End, name: &str, offset: u64, len: usize) -> Vec<u8> {
    let mut rig = rig.end(end, 0).unwrap();
    let promise = rig.pool.check();
    let findings = rig.wait(promise).unwrap();
    assert!(findings.is_empty(), "{findings:#?}");
    read_all(&mut rig, name, offset, len)
}

fn read_all(rig: &mut Rig, name: &str, offset: u64, len: usize) -> Vec<u8> {
    let mut channel = rig.channel(name);
    let offsets = (offset..offset + len as u64).step_by(65536);
    let parts = offsets.map(|at| {
        let len = (offset + len as u64 - at).min(65536) as usize;
        rig.read(&mut channel, at, len)
    });
    parts.flatten().collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_without_a_flush() {
    for (drive, end) in [
        (drive(32, 1), End::Kill),
        (durable_drive(32, 1), End::Kill),
        (durable_drive(32, 1), End::PowerCut),
    ] {
        let mut rig = Rig::create_on(drive, CLUSTER).unwrap();
        rig.create_volume("v", MIB);
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 0, &[1; 65536]);
        rig.write(&mut channel, 70 * KIB, &[2; 512]);
        rig.write(&mut channel, 128 * KIB, &[3; 65536]);
        rig.op(&mut channel, Op::Unmap, 128 * KIB, 8 * KIB);
        rig.op(&mut channel, ZEROES, 200 * KIB, 8 * KIB);
        rig.op(&mut channel, ZEROES, 137 * KIB, 512);
        rig.op(&mut channel, Op::Unmap, 0, 64 * KIB);
        rig.write(&mut channel, 8 * KIB, &[4; 4096]);
        let expected = read_all(&mut rig, "v", 0, 256 << 10);
        assert_eq!(
            read_after(&rig, end, "v", 0, 256 << 10),
            expected,
            "{end:?}"
        );
        // And once more: nothing is lost by having been read.
        let again = rig.end(end, 0).unwrap();
        assert_eq!(
            read_after(&again, end, "v", 0, 256 << 10),
            expected,
            "{end:?}"
        );
    }
}

#[test]
fn with_a_volatile_cache_the_log_is_not_used_after_another_boot() {
    for seed in 1..40 {
        let mut rig = Rig::create(16, seed);
        rig.create_volume("old", MIB);
        rig.create_volume("v", MIB);
        let mut old = rig.channel("old");
        rig.write(&mut old, 0, &[0xaa; 65536]);
        rig.flush(&mut old);
        rig.op(&mut old, Op::Unmap, 0, 64 * KIB);
        rig.flush(&mut old);
        rig.settle();
        let mut channel = rig.channel("v");
        // All of a batch of clusters: that of the other volume is in it.
        for cluster in 0..16 {
            rig.write(&mut channel, cluster * CLUSTER, &[1; 65536]);
        }
        let found = {
            let mut rig = rig.end(End::PowerCut, seed + 1).unwrap();
            read_all(&mut rig, "v", 0, 1 << 20)
        };
        for byte in found {
            assert!(
                byte == 0 || byte == 1,
                "seed {seed}: the data of another volume"
            );
        }
    }
}

/// A commit begins while a page is in flight that it would cover: its change is not in the commit.
#[test]
fn a_write_that_a_commit_overtakes_is_logged_again() {
    for moment in 0..MOMENTS {
        for seed in 1..6 {
            let mut rig = Rig::create(32, seed);
            rig.create_volume("v", MIB);
            let mut channel = rig.channel("v");
            rig.write(&mut channel, 32 * KIB, &[9; 4096]);
            let mut done = Vec::new();
            submit(&rig, &mut channel, 0, &[1; 4096], &mut done);
            polls(&rig, &mut channel, moment, &mut done);
            rig.commit();
            while done.is_empty() {
                channel.poll(rig.now, &mut done);
            }
            // In place, if the write is seen: it is acknowledged at once.
            submit(&rig, &mut channel, 512, &[2; 512], &mut done);
            while done.len() < 2 {
                channel.poll(rig.now, &mut done);
            }
            let found = read_after(&rig, End::Kill, "v", 0, 4096);
            let place = format!("after {moment} polls, seed {seed}");
            assert_eq!(found[..512], [1; 512], "{place}");
            assert_eq!(found[512..1024], [2; 512], "{place}");
            assert_eq!(found[1024..], [1; 3072], "{place}");
        }
    }
}

/// What is seen is safe: a write into a granule that another is just writing for the first time.
#[test]
fn a_write_to_what_another_has_just_written_is_not_lost() {
    for moment in 0..MOMENTS {
        for commits in [false, true] {
            let mut rig = Rig::create(32, 7);
            rig.create_volume("v", MIB);
            let (mut first, mut second) = (rig.channel("v"), rig.channel("v"));
            rig.write(&mut first, 32 * KIB, &[9; 4096]);
            rig.read(&mut second, 32 * KIB, 512);
            let (mut done, mut other) = (Vec::new(), Vec::new());
            submit(&rig, &mut first, 0, &[1; 4096], &mut done);
            polls(&rig, &mut first, moment, &mut done);
            if commits {
                rig.commit();
            }
            submit(&rig, &mut second, 512, &[2; 512], &mut other);
            polls(&rig, &mut second, MOMENTS, &mut other);
            if !other.is_empty() {
                let found = read_after(&rig, End::Kill, "v", 512, 512);
                assert_eq!(found, [2; 512], "after {moment} polls, commit {commits}");
            }
            while done.is_empty() || other.is_empty() {
                first.poll(rig.now, &mut done);
                second.poll(rig.now, &mut other);
            }
            let found = read_after(&rig, End::Kill, "v", 0, 1024);
            assert_eq!(found, [[1; 512], [2; 512]].concat(), "after {moment} polls");
        }
    }
}

#[test]
fn a_log_that_goes_round_many_times_loses_nothing() {
    // 64 KiB of log: 128 pages.
    let mut rig = Rig::create(32, 3);
    rig.create_volume("v", 16 * MIB);
    let mut channel = rig.channel("v");
    let mut model = vec![0; 4096];
    for number in 0..1000_u64 {
        let granule = number * 7 % 4096;
        if number % 5 == 4 {
            let granule = (number - 3) * 7 % 4096;
            rig.op(&mut channel, ZEROES, granule * 4096, 4096);
            model[granule as usize] = 0;
        } else {
            let byte = 1 + (number % 250) as u8;
            rig.write(&mut channel, granule * 4096, &[byte; 4096]);
            model[granule as usize] = byte;
        }
        if number % 97 == 0 {
            let mut rig = rig.end(End::Kill, number).unwrap();
            let mut channel = rig.channel("v");
            for (granule, byte) in (0..).zip(&model) {
                let found = rig.read(&mut channel, granule * 4096, 4096);
                assert_eq!(found, [*byte; 4096], "granule {granule} after {number}");
            }
        }
    }
}

#[test]
fn a_full_log_waits_for_a_commit_and_goes_on() {
    let mut rig = Rig::create(32, 3);
    rig.create_volume("v", 16 * MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[1; 4096]);
    let (mut done, mut sent) = (Vec::new(), 1);
    // The worker is not stepped: only it can make room.
    for _ in 0..4000 {
        if done.len() as u64 == sent - 1 && sent < 4096 {
            submit(&rig, &mut channel, sent * 4096, &[1; 4096], &mut done);
            sent += 1;
        }
        channel.poll(rig.now, &mut done);
    }
    assert_eq!(done.len() as u64, sent - 2, "one waits");
    assert!(done.len() < 128, "{} pages of 128", done.len());
    for _ in 0..100 {
        rig.step();
        channel.poll(rig.now, &mut done);
    }
    assert_eq!(done.len() as u64, sent - 1);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    let len = sent as usize * 4096;
    let mut reopened = rig.end(End::Kill, 0).unwrap();
    let mut channel = reopened.channel("v");
    for offset in (0..len as u64).step_by(4096) {
        assert_eq!(reopened.read(&mut channel, offset, 4096), [1; 4096]);
    }
}

/// A page of a write that failed is on the device all the same, and what comes after it is acknowledged.
#[test]
fn what_a_lost_channel_was_writing_does_not_come_back_over_later_zeroes() {
    for moment in 0..MOMENTS {
        let mut rig = Rig::create(32, 8);
        rig.create_volume("v", MIB);
        let (mut lost, mut channel) = (rig.channel("v"), rig.channel("v"));
        rig.write(&mut lost, 32 * KIB, &[9; 4096]);
        rig.read(&mut channel, 32 * KIB, 512);
        let mut done = Vec::new();
        submit(&rig, &mut lost, 0, &[1; 4096], &mut done);
        polls(&rig, &mut lost, moment, &mut done);
        drop(lost);
        rig.op(&mut channel, ZEROES, 0, 4096);
        assert_eq!(
            read_after(&rig, End::Kill, "v", 0, 4096),
            [0; 4096],
            "after {moment} polls"
        );
        // Another first write of the place gets another cluster, or the same: it counts.
        rig.write(&mut channel, 0, &[2; 4096]);
        assert_eq!(read_after(&rig, End::Kill, "v", 0, 4096), [2; 4096]);
    }
}

/// A page that the device refuses fails the write, and no other.
#[test]
fn a_log_that_cannot_be_written_fails_first_writes_only() {
    let mut rig = Rig::create(32, 1);
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[1; 4096]);
    // Header, and metadata of 2 MiB: then comes the log.
    let log = CLUSTER + 2 * MIB;
    rig.drive.fail_writes(log..log + 512 * KIB);
    assert!(
        rig.try_write(&mut channel, 64 * KIB, &[2; 4096], false)
            .is_err()
    );
    rig.write(&mut channel, 0, &[3; 4096]);
    rig.drive.clear_faults();
    rig.write(&mut channel, 64 * KIB, &[4; 4096]);
    assert_eq!(read_after(&rig, End::Kill, "v", 0, 4096), [3; 4096]);
    assert_eq!(read_after(&rig, End::Kill, "v", 64 * KIB, 4096), [4; 4096]);
}

#[test]
fn a_log_that_cannot_be_read_is_told_of_and_the_pool_opens() {
    let mut rig = Rig::create(32, 1);
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[1; 4096]);
    rig.flush(&mut channel);
    rig.write(&mut channel, 64 * KIB, &[2; 4096]);
    let log = CLUSTER + 2 * MIB;
    let drive = simulation::SimDevice::from_image(
        rig.drive.killed(0),
        simulation::SimOptions::new(512, 1, 1),
    );
    drive.fail_reads(log..log + 512);
    let mut rig = Rig::open_with(drive, rig.devices.clone(), 1).unwrap();
    let promise = rig.pool.check();
    let findings = rig.wait(promise).unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(
        findings[0].record.contains("log of first writes"),
        "{findings:#?}"
    );
    let mut channel = rig.channel("v");
    assert_eq!(rig.read(&mut channel, 0, 4096), [1; 4096]);
    let promise = rig.pool.check_up(true);
    rig.wait(promise).unwrap();
    let promise = rig.pool.check();
    assert!(rig.wait(promise).unwrap().is_empty());
}

#[test]
fn pages_of_an_earlier_pool_and_torn_pages_are_passed_over() {
    let mut rig = Rig::create(32, 1);
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[1; 4096]);
    let promise = rig.pool.destroy();
    drop(channel);
    rig.wait(promise).unwrap();
    let mut rig = Rig::create_on(rig.drive, CLUSTER).unwrap();
    rig.create_volume("w", MIB);
    assert_eq!(read_after(&rig, End::Kill, "w", 0, 65536), [0; 65536]);
    let mut channel = rig.channel("w");
    rig.write(&mut channel, 0, &[2; 4096]);
    rig.write(&mut channel, 64 * KIB, &[3; 4096]);
    let mut image = rig.drive.killed(0);
    // A byte of the first page.
    let log = CLUSTER + 2 * MIB;
    let mut byte = [0];
    image.read_at(log + 60, &mut byte);
    image.write_at(log + 60, &[byte[0] ^ 1]);
    let mut rig = rig.reopen(image, End::Kill, 2).unwrap();
    let mut channel = rig.channel("w");
    assert_eq!(rig.read(&mut channel, 0, 4096), [0; 4096]);
    assert_eq!(rig.read(&mut channel, 64 * KIB, 4096), [3; 4096]);
}

/// Writes while the worker does something, from the moment of its choice on. What the program's death would
/// leave when the write is acknowledged must have it.
fn write_during(
    (name, offset, data): (&str, u64, &[u8]),
    prepare: impl Fn(&mut Rig),
    work: impl Fn(&mut Rig),
) -> Vec<Rig> {
    let mut ends = Vec::new();
    for moment in 0..150 {
        let mut rig = Rig::create(32, 14);
        prepare(&mut rig);
        let mut channel = rig.channel(name);
        let before = rig.read(&mut channel, offset, 4096);
        let image = Rc::new(RefCell::new(None));
        let (found, drive, now) = (Rc::clone(&image), Arc::clone(&rig.drive), rig.now);
        let mut to_write = Some(rig.payload(data));
        let blocks = (data.len() / 512) as u32;
        let (mut turns, mut done) = (0, Vec::new());
        rig.hook.set(move || {
            turns += 1;
            if turns > moment
                && let Some(payload) = to_write.take()
            {
                let op = Op::Write { fua: false };
                let io = Io::with_payload(op, offset / 512, blocks, payload, 1);
                if let Submit::Done(completion) = channel.submit(io, now) {
                    done.push(completion);
                }
            }
            channel.poll(now, &mut done);
            if let Some(completion) = done.pop() {
                completion.result.unwrap();
                *found.borrow_mut() = Some(drive.killed(0));
            }
        });
        work(&mut rig);
        rig.hook.clear();
        let Some(image) = image.take() else { continue };
        let mut rig = rig.reopen(image, End::Kill, 1).unwrap();
        let promise = rig.pool.check();
        let findings = rig.wait(promise).unwrap();
        assert!(findings.is_empty(), "moment {moment}: {findings:#?}");
        let mut channel = rig.channel(name);
        let after = rig.read(&mut channel, offset, 4096);
        assert_eq!(after[..data.len()], *data, "moment {moment}");
        let rest = data.len()..4096;
        assert_eq!(after[rest.clone()], before[rest], "moment {moment}");
        drop(channel);
        ends.push(rig);
    }
    assert!(ends.len() > 20, "the write has hardly ever ended in time");
    ends
}

/// The worker copies granules into a volume, and a host writes to them before a commit has that.
#[test]
fn a_write_to_what_a_merge_has_copied_is_not_lost() {
    let prepare = |rig: &mut Rig| {
        rig.create_volume("v", MIB);
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 0, &[1; 65536]);
        rig.snapshot(&[("v", "s")]).unwrap();
        // The volume has a part of the cluster: the rest is copied.
        rig.write(&mut channel, 0, &[2; 4096]);
        rig.flush(&mut channel);
    };
    write_during(("v", 8 * KIB, &[3; 512]), prepare, |rig| {
        let mut reader = rig.channel("v");
        let io = Io::with_payload(Op::Read, 0, 1, rig.payload(&[0; 512]), 1);
        assert!(matches!(reader.submit(io, rig.now), Submit::Pending));
        // The collector waits for the read, and so is not in one step with the commit of the call.
        rig.delete("v@s").unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            reader.poll(rig.now, &mut done);
        }
        (0..50).for_each(|_| rig.step());
    });
}

/// The call may come to nothing until a commit has it: what is merged must not be written to before.
#[test]
fn a_snapshot_whose_deletion_was_cut_short_is_as_it_was() {
    let prepare = |rig: &mut Rig| {
        rig.create_volume("v", MIB);
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 0, &[1; 65536]);
        rig.snapshot(&[("v", "s")]).unwrap();
        rig.write(&mut channel, 64 * KIB, &[2; 4096]);
        rig.flush(&mut channel);
    };
    let ends = write_during(("v", 8 * KIB, &[3; 512]), prepare, |rig| {
        rig.delete("v@s").unwrap();
        (0..50).for_each(|_| rig.step());
    });
    for mut rig in ends {
        let promise = rig.pool.volume("v@s");
        if rig.wait(promise).is_ok() {
            let mut channel = rig.channel("v@s");
            let found = rig.read(&mut channel, 0, 65536);
            assert!(
                found == [1; 65536],
                "the snapshot has what was written later"
            );
        }
    }
}

#[test]
fn a_write_to_what_a_decoupling_has_copied_is_not_lost() {
    let prepare = |rig: &mut Rig| {
        rig.create_volume("v", MIB);
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 0, &[1; 65536]);
        rig.snapshot(&[("v", "s")]).unwrap();
        rig.clone_snapshot("v@s", "c").unwrap();
    };
    write_during(("c", 8 * KIB, &[3; 512]), prepare, |rig| {
        let promise = rig.pool.detach("c", OperationKind::Decouple);
        rig.wait(promise).unwrap();
        (0..50).for_each(|_| rig.step());
    });
}

/// Below a new end that lies in the middle of a cluster, of which only what is beyond had anything.
#[test]
fn a_write_during_a_truncation_is_not_lost() {
    let prepare = |rig: &mut Rig| {
        rig.create_volume("v", MIB);
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 80 * KIB, &[1; 4096]);
        rig.flush(&mut channel);
    };
    write_during(("v", 64 * KIB, &[3; 4096]), prepare, |rig| {
        let promise = rig.pool.resize("v", 72 * KIB);
        rig.wait(promise).unwrap();
        (0..50).for_each(|_| rig.step());
    });
}

/// The volume goes on in a layer that the device must know before anything is written to it.
#[test]
fn writes_during_a_snapshot_are_not_lost() {
    for steps in 0..8 {
        for polled in [0, MOMENTS] {
            let mut rig = Rig::create(32, 11);
            rig.create_volume("v", MIB);
            let mut channel = rig.channel("v");
            rig.write(&mut channel, 0, &[1; 65536]);
            let mut done = Vec::new();
            // In flight: the snapshot waits for it.
            submit(&rig, &mut channel, 128 * KIB, &[2; 4096], &mut done);
            let pairs = [("v".to_owned(), "s".to_owned())];
            let promise = rig.pool.create_snapshots(&pairs, 0);
            (0..steps).for_each(|_| rig.step());
            let mut other = rig.channel("v");
            let mut later = Vec::new();
            submit(&rig, &mut other, 0, &[3; 4096], &mut later);
            for _ in 0..4 {
                polls(&rig, &mut other, MOMENTS, &mut later);
                rig.step();
            }
            polls(&rig, &mut channel, polled, &mut done);
            let place = format!("after {steps} steps, {polled} polls");
            assert_eq!(later.len(), 1, "{place}: it waits for the snapshot");
            assert_eq!(
                read_after(&rig, End::Kill, "v", 0, 4096),
                [3; 4096],
                "{place}"
            );
            if !done.is_empty() {
                let found = read_after(&rig, End::Kill, "v", 128 * KIB, 4096);
                assert_eq!(found, [2; 4096], "{place}");
            }
            while done.is_empty() {
                channel.poll(rig.now, &mut done);
            }
            rig.wait(promise).unwrap();
            assert_eq!(
                read_after(&rig, End::Kill, "v@s", 128 * KIB, 4096),
                [2; 4096]
            );
        }
    }
}

/// A volume shrinks in the middle of a cluster and grows again, and a host writes below all the time.
#[test]
fn writes_during_a_resize_are_not_lost() {
    for steps in 0..8 {
        let mut rig = Rig::create(32, 12);
        rig.create_volume("v", MIB);
        let mut channel = rig.channel("v");
        // Only beyond the new end: the slot has nothing left then.
        rig.write(&mut channel, 80 * KIB, &[1; 4096]);
        rig.flush(&mut channel);
        let shrunk = rig.pool.resize("v", 72 * KIB);
        let grown = rig.pool.resize("v", MIB);
        (0..steps).for_each(|_| rig.step());
        let mut done = Vec::new();
        submit(&rig, &mut channel, 64 * KIB, &[2; 4096], &mut done);
        polls(&rig, &mut channel, 2 * MOMENTS, &mut done);
        let place = format!("after {steps} steps");
        if !done.is_empty() {
            let found = read_after(&rig, End::Kill, "v", 64 * KIB, 4096);
            assert_eq!(found, [2; 4096], "{place}");
        }
        for promise in [shrunk, grown] {
            match rig.wait(promise) {
                Ok(()) | Err(LvolError::Refused { .. }) => {}
                Err(error) => panic!("{place}: {error}"),
            }
        }
        while done.is_empty() {
            rig.step();
            channel.poll(rig.now, &mut done);
        }
        let found = read_after(&rig, End::Kill, "v", 64 * KIB, 20 << 10);
        assert_eq!(found[..4096], [2; 4096], "{place}");
        assert_eq!(found[4096..], [0; 16384], "{place}");
    }
}

#[test]
fn a_device_without_a_cache_needs_no_commit_for_fua() {
    let mut rig = Rig::create_on(durable_drive(32, 1), CLUSTER).unwrap();
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[1; 4096]);
    rig.drive.reset_stats();
    rig.try_write(&mut channel, 8 * KIB, &[2; 4096], true)
        .unwrap();
    rig.try_write(&mut channel, 0, &[3; 4096], true).unwrap();
    let stats = rig.drive.stats();
    assert_eq!(stats.flushes, 0, "{stats:?}");
    assert_eq!(stats.bytes_written, 4096 + 512 + 4096, "{stats:?}");
    let found = read_after(&rig, End::PowerCut, "v", 0, 12 << 10);
    assert_eq!(found, [[3; 4096], [0; 4096], [2; 4096]].concat());
}

/// What the drive is given for each byte of a host: data, pages of the log, and what commits write.
#[test]
fn first_writes_cost_little_more_than_their_data() {
    for depth in [1_u64, 32] {
        let mut rig = Rig::create_on(drive(512, 2), MIB).unwrap();
        rig.create_volume("v", 256 * MIB);
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 0, &[1; 512]);
        rig.flush(&mut channel);
        rig.drive.reset_stats();
        let (mut done, mut ended, mut sent) = (Vec::new(), 0, 0);
        let count = 16_384_u64;
        while ended < count {
            while sent < count && sent - ended < depth {
                // Each granule once, in an order of no pattern.
                let granule = 1 + sent * 40_503 % 65_521;
                submit(&rig, &mut channel, granule * 4096, &[1; 4096], &mut done);
                sent += 1;
            }
            rig.step();
            channel.poll(rig.now, &mut done);
            ended += done.drain(..).count() as u64;
        }
        rig.commit();
        let stats = rig.drive.stats();
        let per_byte = stats.bytes_written as f64 / (count * 4096) as f64;
        println!("depth {depth}: {per_byte:.3} bytes written for each byte, {stats:?}");
        assert!(per_byte < 1.5, "depth {depth}: {per_byte}, {stats:?}");
    }
}
