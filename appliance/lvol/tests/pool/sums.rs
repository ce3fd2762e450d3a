//! Checksums of what cannot change: the first scrub makes them, the next finds what differs.

use block::{Io, Op, Submit};
use lvol::format::{LayerId, SumsRecord, layer_key, piece_key};
use lvol::{ComparedSums, Finding, MapCursor, MappedRuns, PieceSums};
use metastore::pool::Table;

use crate::damage::closed_store;
use crate::rig::Rig;

const CLUSTER: u64 = 64 << 10;

/// The next pieces.
pub(crate) fn mapped(rig: &mut Rig, from: MapCursor) -> MappedRuns {
    let promise = rig.pool.mapped(from, 16);
    rig.wait(promise).unwrap()
}

/// Reads what is frozen of them.
fn read(rig: &Rig, part: &MappedRuns) -> Vec<PieceSums> {
    let pieces = part.frozen.iter().map(|piece| {
        let mut sums = PieceSums::new(piece.clone());
        for run in &part.runs[piece.runs.clone()] {
            // In parts that fit nothing, as a driver may.
            for at in (0..run.len).step_by(12288) {
                let mut bytes = vec![0; 12288.min(run.len - at) as usize];
                rig.drive
                    .read_at(run.device_offset + at, &mut bytes)
                    .unwrap();
                sums.add(run.offset + at, &bytes);
            }
        }
        sums
    });
    pieces.collect()
}

pub(crate) fn compare(rig: &mut Rig, part: &MappedRuns, now_unix_s: u64) -> ComparedSums {
    let read = read(rig, part);
    let promise = rig.pool.compare_sums(read, now_unix_s);
    rig.wait(promise).unwrap()
}

/// Reads all that is mapped once.
pub(crate) fn scrub(rig: &mut Rig, now_unix_s: u64) -> ComparedSums {
    let (mut all, mut next) = (ComparedSums::default(), Some(MapCursor::default()));
    while let Some(from) = next {
        let part = mapped(rig, from);
        let found = compare(rig, &part, now_unix_s);
        all.differing.extend(found.differing);
        all.compared_bytes += found.compared_bytes;
        all.recorded += found.recorded;
        all.damaged += found.damaged;
        next = part.next;
    }
    rig.commit();
    all
}

/// Where the device holds a byte of a volume or a snapshot.
fn place(rig: &mut Rig, owner: &str, offset: u64) -> u64 {
    let part = mapped(rig, MapCursor::default());
    let mut runs = part.runs.iter();
    let has = |from: u64, len: u64| (from..from + len).contains(&offset);
    let run = runs.find(|run| run.owner == owner && has(run.offset, run.len));
    let run = run.expect("it is mapped");
    run.device_offset + (offset - run.offset)
}

fn flip(rig: &mut Rig, owner: &str, offset: u64) {
    let at = place(rig, owner, offset) / 512 * 512;
    let mut block = [0; 512];
    rig.drive.read_at(at, &mut block).unwrap();
    block[7] ^= 0x10;
    rig.drive.write_at(at, &block).unwrap();
    rig.drive.flush().unwrap();
}

fn write(rig: &mut Rig, name: &str, offset: u64, byte: u8, len: u64) {
    let mut channel = rig.channel(name);
    for at in (0..len).step_by(CLUSTER as usize) {
        let len = CLUSTER.min(len - at) as usize;
        rig.write(&mut channel, offset + at, &vec![byte; len]);
    }
    rig.flush(&mut channel);
}

/// Volume `v` with clusters 0 and 1 and a bit of 130, in its snapshot `s`; then it writes cluster 1 again.
fn with_snapshot() -> Rig {
    let mut rig = Rig::create(64, 1);
    rig.create_volume("v", 256 * CLUSTER);
    write(&mut rig, "v", 0, 1, 2 * CLUSTER);
    write(&mut rig, "v", 130 * CLUSTER + 8192, 2, 4096);
    rig.snapshot(&[("v", "s")]).unwrap();
    write(&mut rig, "v", CLUSTER, 3, CLUSTER);
    rig
}

fn found(compared: &ComparedSums) -> Vec<(&str, u64, u64, u64)> {
    let differing = compared.differing.iter();
    let found = differing.map(|one| {
        let owner = one.owner.as_str();
        (owner, one.offset, one.len, one.recorded_unix_s)
    });
    found.collect()
}

fn records(rig: &mut Rig) -> u64 {
    let store = closed_store(rig);
    store.len(Table::Sums).unwrap()
}

fn reopened(rig: &Rig) -> Rig {
    Rig::open_image(rig.drive.image(), 3).unwrap()
}

fn check(rig: &mut Rig) -> Vec<Finding> {
    let promise = rig.pool.check();
    rig.wait(promise).unwrap()
}

fn repair(rig: &mut Rig) -> Vec<Finding> {
    let promise = rig.pool.check_up(true);
    rig.wait(promise).unwrap().findings
}

#[test]
fn a_flipped_byte_of_a_snapshot_is_named_by_every_scrub_after_the_first() {
    let mut rig = with_snapshot();
    let first = scrub(&mut rig, 1000);
    assert_eq!((first.recorded, first.compared_bytes), (3, 0));
    let second = scrub(&mut rig, 2000);
    assert_eq!(
        (second.recorded, second.compared_bytes),
        (0, 2 * CLUSTER + 4096)
    );
    assert_eq!(found(&second), []);
    let mut rig = rig.end(crate::rig::End::PowerCut, 0).unwrap();
    flip(&mut rig, "v@s", CLUSTER + 5000);
    flip(&mut rig, "v@s", 130 * CLUSTER + 8192);
    let wanted = [
        ("v@s", CLUSTER, CLUSTER, 1000),
        ("v@s", 130 * CLUSTER + 8192, 4096, 1000),
    ];
    for now in [3000, 4000] {
        let compared = scrub(&mut rig, now);
        assert_eq!(found(&compared), wanted);
        assert_eq!(compared.recorded, 0);
    }
    assert_eq!(check(&mut rig), []);
}

#[test]
fn what_no_scrub_has_read_yet_and_what_volumes_write_in_place_is_not_compared() {
    let mut rig = with_snapshot();
    flip(&mut rig, "v@s", 0);
    assert_eq!(found(&scrub(&mut rig, 1)), []);
    flip(&mut rig, "v", CLUSTER);
    write(&mut rig, "v", CLUSTER, 9, 4096);
    let compared = scrub(&mut rig, 2);
    assert_eq!((compared.recorded, found(&compared)), (0, Vec::new()));
    // That is the layer of a snapshot from now on.
    rig.snapshot(&[("v", "t")]).unwrap();
    let compared = scrub(&mut rig, 3);
    assert_eq!((compared.recorded, found(&compared)), (1, Vec::new()));
}

#[test]
fn what_could_not_be_read_gets_no_checksum_and_keeps_the_one_it_has() {
    let mut rig = with_snapshot();
    let part = mapped(&mut rig, MapCursor::default());
    let short = |part: &MappedRuns| {
        let piece = part.frozen[0].clone();
        let run = &part.runs[piece.runs.start];
        let mut sums = PieceSums::new(piece);
        sums.add(run.offset, &vec![1; CLUSTER as usize - 512]);
        sums.add(CLUSTER, &vec![1; CLUSTER as usize]);
        vec![sums]
    };
    let promise = rig.pool.compare_sums(short(&part), 1);
    let compared = rig.wait(promise).unwrap();
    assert_eq!(compared.recorded, 1);
    assert_eq!(scrub(&mut rig, 2).recorded, 2);
    let promise = rig.pool.compare_sums(short(&part), 3);
    let compared = rig.wait(promise).unwrap();
    assert_eq!((compared.recorded, compared.compared_bytes), (0, CLUSTER));
    flip(&mut rig, "v@s", 0);
    assert_eq!(found(&scrub(&mut rig, 4)), [("v@s", 0, CLUSTER, 2)]);
    let many = vec![short(&part).remove(0); 17];
    let promise = rig.pool.compare_sums(many, 5);
    rig.wait(promise).unwrap_err();
}

#[test]
fn a_merge_into_a_snapshot_makes_the_checksums_stale_where_it_changed_something() {
    let mut rig = with_snapshot();
    rig.snapshot(&[("v", "t")]).unwrap();
    assert_eq!(scrub(&mut rig, 1).recorded, 4);
    flip(&mut rig, "v@t", CLUSTER);
    let before = mapped(&mut rig, MapCursor::default());
    rig.delete("v@s").unwrap();
    rig.settle();
    // What was read of another map says nothing.
    assert_eq!(compare(&mut rig, &before, 2).compared_bytes, 0);
    let compared = scrub(&mut rig, 2);
    // Clusters 0 and 130 came from `s`; 1 is as it was.
    assert_eq!(compared.recorded, 2);
    let wanted = [("v@t", CLUSTER, CLUSTER, 1)];
    assert_eq!(found(&compared), wanted);
    let compared = scrub(&mut rig, 3);
    assert_eq!(compared.compared_bytes, 2 * CLUSTER + 4096);
    assert_eq!((compared.recorded, found(&compared)), (0, wanted.to_vec()));
}

#[test]
fn granules_that_a_merge_copies_into_a_cluster_are_no_damage() {
    let mut rig = Rig::create(64, 1);
    rig.create_volume("v", 4 * CLUSTER);
    write(&mut rig, "v", 0, 1, CLUSTER);
    rig.snapshot(&[("v", "s")]).unwrap();
    write(&mut rig, "v", 4096, 2, 4096);
    rig.snapshot(&[("v", "t")]).unwrap();
    assert_eq!(scrub(&mut rig, 1).recorded, 2);
    rig.delete("v@s").unwrap();
    rig.settle();
    let compared = scrub(&mut rig, 2);
    assert_eq!((compared.recorded, found(&compared)), (1, Vec::new()));
    let compared = scrub(&mut rig, 3);
    assert_eq!((compared.recorded, compared.compared_bytes), (0, CLUSTER));
}

/// While a layer is merged into a volume's, hosts write in place to what by the records is still the parent's.
#[test]
fn a_layer_that_is_merged_into_a_volume_is_not_compared() {
    for steps in 0..16 {
        let mut rig = with_snapshot();
        assert_eq!(scrub(&mut rig, 1).recorded, 3);
        let before = mapped(&mut rig, MapCursor::default());
        // It knows its map from here on: what it reads is in flight at once.
        let mut slow = rig.channel("v");
        rig.read(&mut slow, 0, 512);
        rig.delete("v@s").unwrap();
        for _ in 0..steps {
            rig.step();
        }
        // As long as this is in flight no merge that begins now comes to its end.
        let payload = rig.payload(&[0; 512]);
        let io = Io::with_payload(Op::Read, 0, 1, payload, 1);
        let pending = slow.submit(io, rig.now);
        assert!(matches!(pending, Submit::Pending));
        for _ in 0..8 {
            rig.step();
        }
        let mut channel = rig.channel("v");
        rig.write(&mut channel, 0, &[7; 4096]);
        let part = mapped(&mut rig, MapCursor::default());
        for part in [&part, &before] {
            let compared = compare(&mut rig, part, 2);
            assert_eq!(found(&compared), [], "{steps}");
            assert_eq!(compared.recorded, 0, "{steps}");
        }
        drop((slow, channel));
        rig.settle();
        assert_eq!(records(&mut rig), 0);
    }
}

#[test]
fn what_several_clones_see_of_a_deleted_snapshot_is_compared() {
    let mut rig = with_snapshot();
    rig.clone_snapshot("v@s", "c").unwrap();
    scrub(&mut rig, 1);
    rig.delete("v@s").unwrap();
    rig.settle();
    flip(&mut rig, "c", 0);
    let compared = scrub(&mut rig, 2);
    assert_eq!(found(&compared), [("c", 0, CLUSTER, 1)]);
}

#[test]
fn a_snapshot_that_is_being_taken_is_not_compared() {
    let mut rig = with_snapshot();
    let pairs = [("v".to_owned(), "t".to_owned())];
    let taken = rig.pool.create_snapshots(&pairs, 0);
    // In the same step: by the records it is there, and hosts write to its layer.
    let mapped = rig.pool.mapped(MapCursor::default(), 16);
    let part = rig.wait(mapped).unwrap();
    assert_eq!(part.frozen.len(), 2, "{:?}", part.frozen);
    rig.wait(taken).unwrap();
    let part = self::mapped(&mut rig, MapCursor::default());
    assert_eq!(part.frozen.len(), 3);
}

#[test]
fn a_deleted_layer_leaves_no_record() {
    let mut rig = with_snapshot();
    scrub(&mut rig, 1);
    assert_eq!(records(&mut rig), 2);
    for name in ["v", "v@s"] {
        let mut rig = reopened(&rig);
        // Alone under a volume it is merged, with nothing on it emptied.
        if name == "v" {
            rig.delete("v").unwrap();
        }
        rig.delete("v@s").unwrap();
        rig.settle();
        assert_eq!(check(&mut rig), []);
        assert_eq!(records(&mut rig), 0);
    }
}

#[test]
fn a_damaged_record_costs_nothing_but_itself() {
    let mut rig = with_snapshot();
    scrub(&mut rig, 1);
    let key = piece_key(LayerId(1), 0);
    let store = closed_store(&mut rig);
    let mut record = store.get(Table::Sums, &key).unwrap().unwrap();
    record[20] ^= 1;
    let mut transaction = store.transaction();
    transaction.put(Table::Sums, &key, &record).unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();

    let mut rig = reopened(&rig);
    let findings = check(&mut rig);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].record, "checksums of piece 0 of layer 1");
    let mut other = reopened(&rig);
    assert_eq!(repair(&mut other).len(), 1);
    assert_eq!(check(&mut other), []);
    for rig in [&mut rig, &mut other] {
        let compared = scrub(rig, 2);
        assert_eq!((compared.recorded, compared.compared_bytes), (2, 4096));
        assert_eq!(found(&compared), []);
        assert_eq!(check(rig), []);
        let mut channel = rig.channel("v@s");
        assert_eq!(rig.read(&mut channel, CLUSTER, 512), [1; 512]);
    }
    assert_eq!(scrub(&mut rig, 3).compared_bytes, 2 * CLUSTER + 4096);
    rig.end(crate::rig::End::PowerCut, 0).unwrap();
}

#[test]
fn a_damaged_record_is_told_by_the_scrub() {
    let mut rig = with_snapshot();
    scrub(&mut rig, 1);
    let store = closed_store(&mut rig);
    let mut transaction = store.transaction();
    let key = piece_key(LayerId(1), 1);
    transaction.put(Table::Sums, &key, b"nothing").unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();
    let mut rig = reopened(&rig);
    assert_eq!(scrub(&mut rig, 2).damaged, 1);
    assert_eq!(scrub(&mut rig, 3).damaged, 0);
}

#[test]
fn a_record_of_no_layer_is_found_and_deleted_and_its_layer_never_made() {
    let mut rig = with_snapshot();
    scrub(&mut rig, 1);
    let store = closed_store(&mut rig);
    let key = piece_key(LayerId(1), 0);
    let record = store.get(Table::Sums, &key).unwrap().unwrap();
    let mut transaction = store.transaction();
    let lost = piece_key(LayerId(7), 0);
    transaction.put(Table::Sums, &lost, &record).unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();

    let mut rig = reopened(&rig);
    for number in 0..6 {
        rig.create_volume(&format!("n{number}"), CLUSTER);
    }
    let findings = check(&mut rig);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].record, "checksums of piece 0 of layer 7");
    assert_eq!(findings[0].problem, "is a record of no layer");
    repair(&mut rig);
    assert_eq!(check(&mut rig), []);
    assert_eq!(records(&mut rig), 2);
}

/// Who writes in place to what was a snapshot's must not be told later that its data differ.
#[test]
fn a_lost_snapshot_that_a_repair_makes_a_volume_loses_its_checksums() {
    let mut rig = with_snapshot();
    scrub(&mut rig, 1);
    rig.delete("v").unwrap();
    rig.settle();
    let store = closed_store(&mut rig);
    let mut transaction = store.transaction();
    transaction.delete(Table::Names, b"v@s").unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();

    let mut rig = reopened(&rig);
    repair(&mut rig);
    write(&mut rig, "recovered-1", 0, 9, 4096);
    rig.snapshot(&[("recovered-1", "t")]).unwrap();
    let compared = scrub(&mut rig, 2);
    assert_eq!((compared.recorded, found(&compared)), (3, Vec::new()));
}

#[test]
fn a_layer_whose_record_is_lost_keeps_its_checksums() {
    let mut rig = with_snapshot();
    scrub(&mut rig, 1);
    let store = closed_store(&mut rig);
    let mut transaction = store.transaction();
    transaction
        .delete(Table::Layers, &layer_key(LayerId(1)))
        .unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();
    let mut rig = reopened(&rig);
    repair(&mut rig);
    assert_eq!(check(&mut rig), []);
    flip(&mut rig, "v@s", 0);
    assert_eq!(found(&scrub(&mut rig, 2)), [("v@s", 0, CLUSTER, 1)]);
}

/// What a program that knows nothing of checksums changes in a map shows by itself.
#[test]
fn checksums_of_another_place_are_dropped_whoever_changed_the_map() {
    let mut rig = with_snapshot();
    scrub(&mut rig, 1);
    let store = closed_store(&mut rig);
    let key = piece_key(LayerId(1), 0);
    let value = store.get(Table::Sums, &key).unwrap().unwrap();
    let mut record = SumsRecord::decode(&value).unwrap();
    record.slots[0].place ^= 1;
    record.slots[0].data ^= 1;
    let mut transaction = store.transaction();
    transaction
        .put(Table::Sums, &key, &record.encode())
        .unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();
    let mut rig = reopened(&rig);
    let compared = scrub(&mut rig, 2);
    assert_eq!((compared.recorded, found(&compared)), (1, Vec::new()));
}
