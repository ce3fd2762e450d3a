//! Volumes that are given another parent.

use block::{BdevChannel, Completion, Io, Op, Submit};
use lvol::{LvolError, OperationKind};
use simulation::Step;

use crate::rig::{End, Rig};

const KIB: usize = 1024;
const MIB: u64 = 1 << 20;
/// Steps in which everything happens that can.
const STEPS: u32 = 2000;

fn pattern(seed: u8) -> Vec<u8> {
    (0..MIB as usize)
        .map(|at| (at / 512) as u8 ^ seed | 1)
        .collect()
}

fn all(rig: &mut Rig, channel: &mut BdevChannel) -> Vec<u8> {
    let parts = (0..MIB).step_by(128 * KIB);
    parts
        .flat_map(|at| rig.read(channel, at, 128 * KIB))
        .collect()
}

fn write_all(rig: &mut Rig, name: &str, bytes: &[u8]) {
    let mut channel = rig.channel(name);
    for (at, part) in bytes.chunks(128 * KIB).enumerate() {
        rig.write(&mut channel, (at * 128 * KIB) as u64, part);
    }
}

/// A snapshot `NAME@s` of that content, and nothing else: its volume is deleted.
fn snapshot_of(rig: &mut Rig, name: &str, bytes: &[u8]) {
    rig.create_volume(name, MIB);
    write_all(rig, name, bytes);
    rig.snapshot(&[(name, "s")]).unwrap();
}

fn set_parent(rig: &mut Rig, volume: &str, snapshot: &str) -> Result<(), LvolError> {
    let promise = rig.pool.set_parent(volume, snapshot);
    rig.wait(promise)
}

fn refusal(rig: &mut Rig, volume: &str, snapshot: &str) -> String {
    set_parent(rig, volume, snapshot).unwrap_err().to_string()
}

fn parent_of(rig: &mut Rig, name: &str) -> Option<String> {
    let promise = rig.pool.volume(name);
    rig.wait(promise).unwrap().parent
}

fn check(rig: &mut Rig) {
    let promise = rig.pool.check();
    assert_eq!(rig.wait(promise).unwrap(), []);
}

#[test]
fn another_parent_is_seen_where_a_volume_has_nothing_itself() {
    let mut rig = Rig::create(64, 70);
    let (a, b) = (pattern(0x10), pattern(0x80));
    snapshot_of(&mut rig, "a", &a);
    snapshot_of(&mut rig, "b", &b);
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 64 * KIB as u64, &[7; 8 * KIB]);
    // A granule is the volume's own as soon as a block of it is.
    rig.write(&mut channel, 200 * KIB as u64 + 512, &[9; 512]);
    let zero = Op::WriteZeroes {
        unmap: true,
        fua: false,
    };
    rig.op(&mut channel, zero, 66 * KIB as u64, 512);
    assert_eq!(parent_of(&mut rig, "v"), None);
    let free = rig.free_clusters();
    for (snapshot, below) in [("a@s", &a), ("b@s", &b), ("b@s", &b), ("a@s", &a)] {
        set_parent(&mut rig, "v", snapshot).unwrap();
        assert_eq!(parent_of(&mut rig, "v").as_deref(), Some(snapshot));
        let mut expected = below.clone();
        expected[64 * KIB..72 * KIB].fill(7);
        expected[66 * KIB..66 * KIB + 512].fill(0);
        expected[200 * KIB..204 * KIB].fill(0);
        expected[200 * KIB + 512..200 * KIB + 1024].fill(9);
        assert!(all(&mut rig, &mut channel) == expected, "on {snapshot}");
        check(&mut rig);
    }
    assert_eq!(rig.free_clusters(), free, "nothing was copied");
    // What is written and unmapped from now on hides the new parent.
    rig.write(&mut channel, 512 * KIB as u64, &[5; 512]);
    rig.op(&mut channel, Op::Unmap, 640 * KIB as u64, 64 * KIB as u64);
    let before = all(&mut rig, &mut channel);
    assert!(before[512 * KIB + 512..516 * KIB] == a[512 * KIB + 512..516 * KIB]);
    assert!(before[640 * KIB..704 * KIB].iter().all(|byte| *byte == 0));
    rig.flush(&mut channel);
    let mut rig = rig.reopen(rig.drive.cut(0), End::PowerCut, 71).unwrap();
    let mut channel = rig.channel("v");
    assert!(all(&mut rig, &mut channel) == before);
    // The one that it lay on before is nobody's parent, and goes like any other.
    drop(channel);
    for name in ["b@s", "b", "v", "a@s", "a"] {
        rig.delete(name).unwrap();
        rig.settle();
        check(&mut rig);
    }
    let promise = rig.pool.info();
    assert_eq!(rig.wait(promise).unwrap().used_clusters, 0);
}

#[test]
fn a_parent_that_cannot_be_is_refused_and_nothing_changes() {
    let mut rig = Rig::create(64, 72);
    let a = pattern(0x10);
    snapshot_of(&mut rig, "a", &a);
    rig.create_volume("v", MIB);
    rig.create_volume("small", MIB / 2);
    assert!(refusal(&mut rig, "v", "a").contains("is a volume"));
    assert!(refusal(&mut rig, "a@s", "a@s").contains("is a snapshot"));
    assert!(refusal(&mut rig, "small", "a@s").contains("cannot be smaller"));
    assert!(refusal(&mut rig, "v", "a@none").contains("a@none"));
    assert!(refusal(&mut rig, "none", "a@s").contains("none"));
    // What it has of a snapshot that was deleted is its own, as far as anyone can tell.
    rig.clone_snapshot("a@s", "c").unwrap();
    rig.snapshot(&[("v", "s")]).unwrap();
    rig.delete("a@s").unwrap();
    rig.settle();
    assert!(refusal(&mut rig, "c", "v@s").contains("decouple it first"));
    let mut channel = rig.channel("c");
    assert!(all(&mut rig, &mut channel) == a);
    let promise = rig.pool.detach("c", OperationKind::Decouple);
    let id = rig.wait(promise).unwrap();
    assert!(refusal(&mut rig, "c", "v@s").contains("cancel that first"));
    let promise = rig.pool.cancel(id);
    rig.wait(promise).unwrap();
    let promise = rig.pool.detach("c", OperationKind::Decouple);
    rig.wait(promise).unwrap();
    rig.settle();
    set_parent(&mut rig, "c", "v@s").unwrap();
    assert!(all(&mut rig, &mut channel) == a, "all of it is its own");
    check(&mut rig);
}

#[test]
fn io_pauses_while_the_parent_changes_and_what_is_in_flight_ends_first() {
    let mut rig = Rig::create(64, 73);
    let a = pattern(0x10);
    snapshot_of(&mut rig, "a", &a);
    rig.create_volume("v", MIB);
    let (mut held, mut other) = (rig.channel("v"), rig.channel("v"));
    // Both have clusters in hand.
    for (channel, at) in [(&mut held, 768), (&mut other, 896)] {
        rig.write(channel, at * 1024, &[6; 4096]);
        assert_eq!(rig.read(channel, 0, 512), vec![0; 512]);
    }
    let write = |rig: &Rig, offset: u64, byte: u8| {
        let payload = rig.payload(&[byte; 512]);
        Io::with_payload(Op::Write { fua: false }, offset / 512, 1, payload, 7)
    };
    // Its granule is filled up from what was below when it began.
    let io = write(&rig, 512, 3);
    assert!(matches!(held.submit(io, rig.now), Submit::Pending));
    let promise = rig.pool.set_parent("v", "a@s");
    let io = write(&rig, 64 * 1024, 4);
    let mut done: Vec<Completion> = Vec::new();
    rig.step();
    assert!(matches!(other.submit(io, rig.now), Submit::Pending));
    for _ in 0..STEPS {
        rig.step();
        other.poll(rig.now, &mut done);
    }
    assert!(promise.try_take().is_none(), "a write is in flight");
    assert!(done.is_empty(), "it would not know its parent");
    assert!(rig.snapshot(&[("v", "t")]).is_err());
    let mut ended: Vec<Completion> = Vec::new();
    for _ in 0..STEPS {
        rig.step();
        held.poll(rig.now, &mut ended);
        other.poll(rig.now, &mut done);
    }
    promise.try_take().expect("nothing is in flight").unwrap();
    assert!(ended.len() == 1 && ended[0].result.is_ok());
    assert!(done.len() == 1 && done[0].result.is_ok());
    let mut expected = a.clone();
    expected[..4096].fill(0);
    expected[512..1024].fill(3);
    expected[64 * KIB..64 * KIB + 512].fill(4);
    for at in [768 * KIB, 896 * KIB] {
        expected[at..at + 4096].fill(6);
    }
    assert!(all(&mut rig, &mut held) == expected);
    // Also after a crash that nothing was flushed before.
    let mut rig = rig.end(End::Kill, 74).unwrap();
    let mut channel = rig.channel("v");
    assert!(all(&mut rig, &mut channel) == expected);
    check(&mut rig);
}

#[test]
fn a_parent_that_goes_while_io_ends_is_refused_and_io_goes_on() {
    let mut rig = Rig::create(64, 75);
    snapshot_of(&mut rig, "a", &pattern(0x10));
    rig.create_volume("v", MIB);
    let mut held = rig.channel("v");
    rig.write(&mut held, 0, &[1; 512]);
    let payload = rig.payload(&[2; 512]);
    let io = Io::with_payload(Op::Write { fua: false }, 1, 1, payload, 7);
    assert!(matches!(held.submit(io, rig.now), Submit::Pending));
    let promise = rig.pool.set_parent("v", "a@s");
    rig.step();
    rig.delete("a@s").unwrap();
    let mut done = Vec::new();
    for _ in 0..STEPS {
        rig.step();
        held.poll(rig.now, &mut done);
    }
    let problem = promise.try_take().expect("it ends").unwrap_err();
    assert!(problem.to_string().contains("a@s"), "{problem}");
    assert!(done.len() == 1 && done[0].result.is_ok());
    let mut expected = vec![0; MIB as usize];
    expected[..512].fill(1);
    expected[512..1024].fill(2);
    assert!(all(&mut rig, &mut held) == expected);
    rig.snapshot(&[("v", "t")]).unwrap();
    check(&mut rig);
}

#[test]
fn a_volume_is_put_on_a_device_outside_the_pool_and_taken_off_it() {
    let mut rig = Rig::create(64, 76);
    let (a, mut gold) = (pattern(0x10), pattern(0x80));
    snapshot_of(&mut rig, "a", &a);
    gold.truncate(900 * KIB + 512);
    rig.devices.put("gold", 1, 512, &gold);
    rig.create_volume("v", MIB);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 64 * KIB as u64, &[7; 8 * KIB]);
    gold.resize(MIB as usize, 0);
    let device = rig.devices.registry.get("gold").unwrap();
    for on_device in [true, false, true] {
        let promise = if on_device {
            rig.pool.set_external_parent("v", &device)
        } else {
            rig.pool.set_parent("v", "a@s")
        };
        rig.wait(promise).unwrap();
        let mut expected = if on_device { gold.clone() } else { a.clone() };
        expected[64 * KIB..72 * KIB].fill(7);
        assert!(all(&mut rig, &mut channel) == expected);
        assert_eq!(!device.claims().is_empty(), on_device);
        let promise = rig.pool.volume("v");
        let info = rig.wait(promise).unwrap();
        assert_eq!(info.external.is_some(), on_device);
        assert_eq!(info.parent.is_some(), !on_device);
        check(&mut rig);
    }
    rig.create_volume("small", MIB / 2);
    let promise = rig.pool.set_external_parent("small", &device);
    let problem = rig.wait(promise).unwrap_err().to_string();
    assert!(problem.contains("cannot be smaller"), "{problem}");
}

/// A volume of two pieces, whose map is committed in several transactions while its parent changes.
#[test]
fn what_was_unmapped_before_is_the_new_parents_after_a_kill_at_every_write() {
    const PIECES: u64 = 9 * MIB;
    let second = 8 * MIB;
    // One transaction for each piece.
    let mut rig = Rig::create(64, 77);
    rig.create_volume("a", PIECES);
    let mut channel = rig.channel("a");
    for at in [0, second] {
        rig.write(&mut channel, at, &[1; 64 * KIB]);
    }
    rig.snapshot(&[("a", "s")]).unwrap();
    rig.create_volume("v", PIECES);
    let mut channel = rig.channel("v");
    for at in [0, second] {
        rig.write(&mut channel, at, &[2; 64 * KIB]);
    }
    rig.flush(&mut channel);
    rig.drive.start_recording();
    for at in [0, second] {
        rig.op(&mut channel, Op::Unmap, at, 16 * KIB as u64);
    }
    rig.drive.mark(1);
    set_parent(&mut rig, "v", "a@s").unwrap();
    rig.drive.mark(2);
    let recording = rig.drive.stop_recording();
    let mut replay = recording.replay();
    let (mut mark, mut seen) = (0, [0; 2]);
    while let Some(step) = replay.next() {
        if let Step::Mark(number) = step {
            mark = number;
        }
        if mark == 0 || !matches!(step, Step::End | Step::Flush | Step::Mark(_)) {
            continue;
        }
        let mut left = rig.reopen(replay.killed(0), End::Kill, 77).unwrap();
        let is_new = parent_of(&mut left, "v").is_some();
        assert!(is_new || mark < 2, "it was acknowledged");
        seen[usize::from(is_new)] += 1;
        let mut channel = left.channel("v");
        for at in [0, second] {
            let mut expected = vec![2; 64 * KIB];
            expected[..16 * KIB].fill(u8::from(is_new));
            let is_right = left.read(&mut channel, at, 64 * KIB) == expected;
            assert!(is_right, "{step:?} after {mark}, new: {is_new}, at {at}");
        }
        check(&mut left);
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}
