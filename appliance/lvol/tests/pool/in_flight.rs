//! What I/O that is in flight may see and change. A channel that is not polled holds its I/O in flight.

use block::{BdevChannel, Completion, Io, IoError, Op, Submit};

use crate::rig::Rig;

const MIB: u64 = 1 << 20;
/// Steps in which everything happens that can.
const STEPS: u32 = 2000;

fn submit(rig: &Rig, channel: &mut BdevChannel, op: Op, offset: u64, data: &[u8]) {
    let blocks = (data.len() / 512) as u32;
    let io = Io::with_payload(op, offset / 512, blocks, rig.payload(data), 7);
    assert!(matches!(channel.submit(io, rig.now), Submit::Pending));
}

fn steps(rig: &mut Rig) {
    (0..STEPS).for_each(|_| rig.step());
}

fn end(rig: &mut Rig, channel: &mut BdevChannel) -> (Result<(), IoError>, Vec<u8>) {
    let mut done: Vec<Completion> = Vec::new();
    for _ in 0..STEPS {
        channel.poll(rig.now, &mut done);
        if let Some(completion) = done.pop() {
            let mut bytes = vec![0; completion.io.payload.len()];
            completion.io.payload.copy_range_to(0, &mut bytes);
            return (completion.result, bytes);
        }
        rig.step();
    }
    panic!("the i/o does not end");
}

#[test]
fn a_freed_cluster_is_nobody_elses_while_a_read_of_it_is_in_flight() {
    let mut rig = Rig::create(16, 1);
    rig.create_volume("v", MIB);
    rig.create_volume("w", 64 * MIB);
    let (mut reader, mut v) = (rig.channel("v"), rig.channel("v"));
    let mut w = rig.channel("w");
    let (ours, theirs) = (vec![1; 65536], vec![2; 65536]);
    rig.write(&mut v, 0, &ours);
    assert_eq!(rig.read(&mut reader, 0, 512), vec![1; 512]);
    let mut full = 0;
    while rig.try_write(&mut w, full, &theirs, false).is_ok() {
        full += 65536;
    }
    submit(&rig, &mut reader, Op::Read, 0, &ours);
    rig.op(&mut v, Op::Unmap, 0, 65536);
    rig.flush(&mut v);
    // The one free cluster is the one that is being read.
    submit(&rig, &mut w, Op::Write { fua: false }, full, &theirs);
    let mut done = Vec::new();
    for _ in 0..STEPS {
        rig.step();
        w.poll(rig.now, &mut done);
    }
    let (result, read) = end(&mut rig, &mut reader);
    result.unwrap();
    assert!(!read.contains(&2), "the data of another volume was read");
    if done.is_empty() {
        end(&mut rig, &mut w).0.unwrap();
    }
    assert_eq!(rig.read(&mut w, full, 65536), theirs);
    assert_eq!(rig.read(&mut v, 0, 65536), vec![0; 65536]);
}

#[test]
fn a_snapshot_is_taken_when_writes_in_flight_have_ended() {
    let mut rig = Rig::create(32, 2);
    rig.create_volume("v", MIB);
    let mut writer = rig.channel("v");
    rig.write(&mut writer, 0, &[1; 4096]);
    submit(&rig, &mut writer, Op::Write { fua: false }, 512, &[2; 512]);
    let pairs = [("v".to_owned(), "s".to_owned())];
    let promise = rig.pool.create_snapshots(&pairs, 0);
    steps(&mut rig);
    assert!(
        promise.try_take().is_none(),
        "the snapshot was taken with a write to it in flight"
    );
    end(&mut rig, &mut writer).0.unwrap();
    rig.wait(promise).unwrap();
    let mut frozen = rig.channel("v@s");
    assert_eq!(rig.read(&mut frozen, 512, 512), vec![2; 512]);
    assert_eq!(rig.read(&mut writer, 512, 512), vec![2; 512]);
}

#[test]
fn a_write_in_flight_at_a_snapshot_is_not_lost_to_a_copy_of_its_granule() {
    let mut rig = Rig::create(32, 3);
    rig.create_volume("v", MIB);
    let (mut first, mut second) = (rig.channel("v"), rig.channel("v"));
    rig.write(&mut first, 0, &[1; 4096]);
    assert_eq!(rig.read(&mut second, 0, 512), vec![1; 512]);
    submit(&rig, &mut first, Op::Write { fua: false }, 512, &[2; 512]);
    let pairs = [("v".to_owned(), "s".to_owned())];
    let promise = rig.pool.create_snapshots(&pairs, 0);
    rig.step();
    // Another block of the same granule: the rest of the granule is copied from the snapshot.
    submit(&rig, &mut second, Op::Write { fua: false }, 1024, &[3; 512]);
    let mut done = Vec::new();
    for _ in 0..STEPS {
        rig.step();
        second.poll(rig.now, &mut done);
    }
    end(&mut rig, &mut first).0.unwrap();
    if done.is_empty() {
        end(&mut rig, &mut second).0.unwrap();
    }
    rig.wait(promise).unwrap();
    assert_eq!(rig.read(&mut second, 512, 512), vec![2; 512]);
    assert_eq!(rig.read(&mut second, 1024, 512), vec![3; 512]);
    let mut frozen = rig.channel("v@s");
    assert_eq!(rig.read(&mut frozen, 1024, 512), vec![1; 512]);
}

#[test]
fn whole_granules_are_written_during_a_snapshot_without_a_pause() {
    let mut rig = Rig::create(32, 4);
    rig.create_volume("v", MIB);
    let (mut first, mut second) = (rig.channel("v"), rig.channel("v"));
    rig.write(&mut first, 0, &[1; 4096]);
    submit(&rig, &mut first, Op::Write { fua: false }, 512, &[2; 512]);
    let pairs = [("v".to_owned(), "s".to_owned())];
    let promise = rig.pool.create_snapshots(&pairs, 0);
    rig.step();
    rig.write(&mut second, 8192, &[3; 4096]);
    assert!(promise.try_take().is_none());
    end(&mut rig, &mut first).0.unwrap();
    rig.wait(promise).unwrap();
    let mut frozen = rig.channel("v@s");
    assert_eq!(rig.read(&mut frozen, 8192, 4096), vec![0; 4096]);
    assert_eq!(rig.read(&mut second, 8192, 4096), vec![3; 4096]);
}

#[test]
fn a_cluster_that_a_dropped_channel_was_writing_to_is_nobody_elses() {
    let mut rig = Rig::create(16, 5);
    let free = rig.free_clusters();
    rig.create_volume("v", MIB);
    let (mut v, mut writer) = (rig.channel("v"), rig.channel("v"));
    rig.write(&mut v, 0, &[1; 65536]);
    assert_eq!(rig.read(&mut writer, 0, 512), vec![1; 512]);
    submit(&rig, &mut writer, Op::Write { fua: false }, 0, &[2; 512]);
    drop(writer);
    rig.op(&mut v, Op::Unmap, 0, 65536);
    rig.flush(&mut v);
    drop(v);
    rig.settle();
    assert_eq!(
        rig.free_clusters(),
        free - 1,
        "the cluster was given to others"
    );
    let mut rig = Rig::open_image(rig.drive.image(), 6).unwrap();
    assert_eq!(
        rig.free_clusters(),
        free,
        "it is free again once nothing is in flight"
    );
}
