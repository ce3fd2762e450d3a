//! What a check finds, a repair mends: nothing that was lost comes back as zeroes, and nothing else is touched.

use std::collections::BTreeMap;

use block::{Io, IoError, Op};
use lvol::format::{LayerId, LayerRecord, NameRecord, Parent, chunk_key, layer_key, piece_key};
use lvol::{Checkup, REPAIRED_LABEL, VolumeInfo};
use metastore::pool::{PoolStore, Table};
use simulation::Random;

use crate::damage::closed_store;
use crate::rig::Rig;

const CLUSTER: u64 = 64 << 10;
const SIZE: u64 = 16 * CLUSTER;

/// What each volume or snapshot shows, by cluster.
type Contents = BTreeMap<String, Vec<u8>>;

/// Volumes with snapshots and clones; each cluster that was written holds one byte, unlike any other.
fn pool_of_many(seed: u64) -> (Rig, Contents) {
    let mut rig = Rig::create(64, seed);
    let mut contents = Contents::new();
    let mut byte = 0_u8;
    let mut write = |rig: &mut Rig, contents: &mut Contents, name: &str, clusters: &[u64]| {
        let mut channel = rig.channel(name);
        for cluster in clusters {
            byte += 1;
            rig.write(&mut channel, cluster * CLUSTER, &[byte; CLUSTER as usize]);
            contents.get_mut(name).unwrap()[*cluster as usize] = byte;
        }
        rig.flush(&mut channel);
    };
    for name in ["a", "b", "c"] {
        rig.create_volume(name, SIZE);
        contents.insert(name.to_owned(), vec![0; 16]);
        write(&mut rig, &mut contents, name, &[0, 1, 2, 9]);
    }
    for (volume, snapshot) in [("a", "one"), ("b", "one")] {
        rig.snapshot(&[(volume, snapshot)]).unwrap();
        contents.insert(format!("{volume}@{snapshot}"), contents[volume].clone());
    }
    write(&mut rig, &mut contents, "a", &[1, 5]);
    write(&mut rig, &mut contents, "b", &[2]);
    for (snapshot, clone) in [("a@one", "d"), ("a@one", "e"), ("b@one", "f")] {
        rig.clone_snapshot(snapshot, clone).unwrap();
        contents.insert(clone.to_owned(), contents[snapshot].clone());
    }
    write(&mut rig, &mut contents, "d", &[0, 7]);
    rig.settle();
    (rig, contents)
}

fn read_cluster(rig: &mut Rig, name: &str, cluster: u64) -> Result<u8, IoError> {
    let mut channel = rig.channel(name);
    let blocks = (CLUSTER / 512) as u32;
    let payload = rig.payload(&vec![0; CLUSTER as usize]);
    let lba = cluster * u64::from(blocks);
    let io = Io::with_payload(Op::Read, lba, blocks, payload, 1);
    let (result, payload) = rig.run(&mut channel, io);
    let mut bytes = vec![0; CLUSTER as usize];
    payload.copy_range_to(0, &mut bytes);
    result.map(|()| {
        assert!(
            bytes.iter().all(|byte| *byte == bytes[0]),
            "{name}: a torn cluster"
        );
        bytes[0]
    })
}

fn check_up(rig: &mut Rig, repairs: bool) -> Checkup {
    let promise = rig.pool.check_up(repairs);
    rig.wait(promise).unwrap()
}

fn volumes(rig: &mut Rig) -> BTreeMap<String, VolumeInfo> {
    let promise = rig.pool.volumes("", 1000);
    let volumes = rig.wait(promise).unwrap().into_iter();
    volumes.map(|info| (info.name.clone(), info)).collect()
}

fn label(info: &VolumeInfo) -> Option<&str> {
    let mut labels = info.record.labels.iter();
    labels
        .find(|(key, _)| key == REPAIRED_LABEL)
        .map(|(_, text)| text.as_str())
}

/// Damages a closed pool and opens it.
fn damaged(mut rig: Rig, damage: impl FnOnce(&PoolStore)) -> Rig {
    let store = closed_store(&mut rig);
    damage(&store);
    store.close().unwrap();
    Rig::open_image(rig.drive.image(), 2).unwrap()
}

fn put(store: &PoolStore, table: Table, key: &[u8], value: Option<&[u8]>) {
    let mut transaction = store.transaction();
    match value {
        Some(value) => transaction.put(table, key, value).unwrap(),
        None => transaction.delete(table, key).unwrap(),
    }
    transaction.commit().unwrap();
}

fn flip(store: &PoolStore, table: Table, key: &[u8]) {
    let mut record = store.get(table, key).unwrap().expect("the record is there");
    let middle = record.len() / 2;
    record[middle] ^= 0x40;
    put(store, table, key, Some(&record));
}

/// The check finds something, the repair leaves nothing, and what shows data that it should not carries a label.
fn mends(rig: &mut Rig, contents: &Contents, untouched: &[&str]) -> BTreeMap<String, VolumeInfo> {
    let found = check_up(rig, false).findings;
    assert!(!found.is_empty(), "nothing is found");
    assert!(
        found.iter().all(|finding| !finding.action.is_empty()),
        "{found:#?}"
    );
    let repaired = check_up(rig, true).findings;
    assert!(!repaired.is_empty());
    let left = check_up(rig, false).findings;
    assert!(left.is_empty(), "{repaired:#?}\n left {left:#?}");
    let volumes = volumes(rig);
    for info in volumes.values() {
        assert!(!info.faulted, "{} is faulted", info.name);
    }
    for (name, expected) in contents {
        let Some(info) = volumes.get(name) else {
            assert!(!untouched.contains(&&**name), "{name} is gone");
            continue;
        };
        for cluster in 0..(info.record.size_bytes / CLUSTER).min(16) {
            let read = read_cluster(rig, name, cluster);
            let is_right = read == Ok(expected[cluster as usize]);
            let is_told = label(info).is_some() && !untouched.contains(&&**name);
            assert!(
                is_right || is_told,
                "{name} shows {read:?} in cluster {cluster}\n{repaired:#?}"
            );
        }
    }
    volumes
}

/// Layers by name: `a` lies on `a@one` and so on.
fn layer_of(rig: &mut Rig, name: &str) -> LayerId {
    volumes(rig)[name].record.layer
}

#[test]
fn a_damaged_piece_is_lost_and_told() {
    let (mut rig, contents) = pool_of_many(2);
    let layer = layer_of(&mut rig, "d");
    let mut rig = damaged(rig, |store| flip(store, Table::Map, &piece_key(layer, 0)));
    let volumes = mends(
        &mut rig,
        &contents,
        &["a", "b", "c", "e", "f", "a@one", "b@one"],
    );
    let text = label(&volumes["d"]).unwrap();
    assert_eq!(text, "16 clusters lost from byte 0 on");
    assert_eq!(read_cluster(&mut rig, "d", 0), Err(IoError::MediaRead));
    // Not zeroes: also where nothing was, for nobody knows.
    assert_eq!(read_cluster(&mut rig, "d", 3), Err(IoError::MediaRead));
    let mut channel = rig.channel("d");
    let refused = rig.try_write(&mut channel, 0, &[1; 4096], false);
    assert_eq!(refused, Err(IoError::MediaWrite));
    rig.op(&mut channel, Op::Unmap, 0, CLUSTER);
    rig.write(&mut channel, 0, &[1; 4096]);
    rig.flush(&mut channel);
    assert_eq!(read_cluster(&mut rig, "d", 1), Err(IoError::MediaRead));
    drop(channel);
    // It stays lost over a restart and in snapshots.
    rig.snapshot(&[("d", "s")]).unwrap();
    let promise = rig.pool.close();
    rig.wait(promise).unwrap();
    let mut rig = Rig::open(rig.drive.clone()).unwrap();
    assert_eq!(read_cluster(&mut rig, "d", 1), Err(IoError::MediaRead));
    assert_eq!(read_cluster(&mut rig, "d@s", 2), Err(IoError::MediaRead));
    assert!(check_up(&mut rig, false).findings.is_empty());
    rig.delete("d").unwrap();
    rig.delete("d@s").unwrap();
    rig.settle();
    assert!(check_up(&mut rig, false).findings.is_empty());
}

#[test]
fn a_damaged_layer_is_made_again_where_its_parent_is_known() {
    let (mut rig, contents) = pool_of_many(3);
    let layer = layer_of(&mut rig, "f");
    let mut rig = damaged(rig, |store| flip(store, Table::Layers, &layer_key(layer)));
    assert!(volumes(&mut rig)["f"].faulted);
    let all: Vec<&str> = contents.keys().map(String::as_str).collect();
    // Its parent misses one: nothing is lost.
    mends(&mut rig, &contents, &all);
}

#[test]
fn a_damaged_layer_without_a_known_parent_shows_no_zeroes() {
    let (mut rig, contents) = pool_of_many(2);
    let layer = layer_of(&mut rig, "c");
    let mut rig = damaged(rig, |store| flip(store, Table::Layers, &layer_key(layer)));
    let volumes = mends(&mut rig, &contents, &["a", "b", "d", "e", "f"]);
    assert!(label(&volumes["c"]).unwrap().contains("not known"));
    assert_eq!(read_cluster(&mut rig, "c", 0), Ok(contents["c"][0]));
    assert_eq!(read_cluster(&mut rig, "c", 3), Err(IoError::MediaRead));
    // A host may write there, and may say that it needs nothing of it.
    let mut channel = rig.channel("c");
    rig.write(&mut channel, 3 * CLUSTER, &[9; 4096]);
    assert_eq!(rig.read(&mut channel, 3 * CLUSTER, 4096), [9; 4096]);
    rig.op(&mut channel, Op::Unmap, 4 * CLUSTER, CLUSTER);
    drop(channel);
    assert_eq!(read_cluster(&mut rig, "c", 4), Ok(0));
}

#[test]
fn names_that_are_gone_come_back_as_recovered() {
    let (mut rig, mut contents) = pool_of_many(2);
    let layer = layer_of(&mut rig, "c");
    let snapshot = layer_of(&mut rig, "a@one");
    let mut rig = damaged(rig, |store| {
        put(store, Table::Names, b"c", None);
        put(store, Table::Names, b"a@one", None);
    });
    let c = contents.remove("c").unwrap();
    contents.remove("a@one");
    let volumes = mends(&mut rig, &contents, &["a", "b", "d", "e", "f", "b@one"]);
    let name = format!("recovered-{}", layer.0);
    assert!(label(&volumes[&name]).is_some());
    assert_eq!(volumes[&name].record.size_bytes, 10 * CLUSTER);
    for cluster in 0..10 {
        let read = read_cluster(&mut rig, &name, cluster);
        assert_eq!(read, Ok(c[cluster as usize]));
    }
    let name = format!("recovered-{}@recovered", snapshot.0);
    assert_eq!(read_cluster(&mut rig, &name, 0), Ok(contents["a"][0]));
}

#[test]
fn a_damaged_name_keeps_its_data_and_its_name_when_it_can_be_no_other() {
    let (rig, contents) = pool_of_many(2);
    let mut rig = damaged(rig, |store| flip(store, Table::Names, b"c"));
    let volumes = mends(&mut rig, &contents, &["a", "b", "d", "e", "f"]);
    assert!(label(&volumes["c"]).is_some());
    assert_eq!(read_cluster(&mut rig, "c", 9), Ok(contents["c"][9]));
}

#[test]
fn the_pool_opens_without_its_own_record() {
    for remove in [false, true] {
        let (rig, contents) = pool_of_many(2);
        let mut rig = damaged(rig, |store| {
            if remove {
                put(store, Table::Pool, b"pool", None);
            } else {
                flip(store, Table::Pool, b"pool");
            }
        });
        let all: Vec<&str> = contents.keys().map(String::as_str).collect();
        mends(&mut rig, &contents, &all);
        // No number of a layer is used twice.
        rig.create_volume("new", SIZE);
        assert!(check_up(&mut rig, false).findings.is_empty());
    }
}

#[test]
fn free_clusters_are_made_again_from_the_maps() {
    for remove in [false, true] {
        let (mut rig, contents) = pool_of_many(2);
        let free = rig.free_clusters();
        let mut rig = damaged(rig, |store| {
            if remove {
                put(store, Table::Free, &chunk_key(0), None);
            } else {
                flip(store, Table::Free, &chunk_key(0));
            }
        });
        if !remove {
            // Nothing can be taken from there, and nobody is told lies or stopped.
            let mut channel = rig.channel("c");
            let refused = rig.try_write(&mut channel, 12 * CLUSTER, &[1; 4096], false);
            assert_eq!(refused, Err(IoError::NoSpace));
            rig.op(&mut channel, Op::Unmap, 9 * CLUSTER, CLUSTER);
            rig.write(&mut channel, 0, &[contents["c"][0]; 4096]);
            rig.flush(&mut channel);
        }
        let mut contents = contents;
        if !remove {
            contents.get_mut("c").unwrap()[9] = 0;
        }
        let all: Vec<&str> = contents.keys().map(String::as_str).collect();
        mends(&mut rig, &contents, &all);
        rig.settle();
        assert_eq!(rig.free_clusters(), free + u64::from(!remove));
        let mut channel = rig.channel("c");
        rig.write(&mut channel, 12 * CLUSTER, &[1; 4096]);
    }
}

#[test]
fn a_missing_piece_makes_its_volumes_read_only() {
    let (mut rig, contents) = pool_of_many(2);
    let layer = layer_of(&mut rig, "c");
    let mut rig = damaged(rig, |store| {
        put(store, Table::Map, &piece_key(layer, 0), None);
    });
    let volumes = mends(&mut rig, &contents, &["a", "b", "d", "e", "f"]);
    assert!(volumes["c"].record.read_only);
    assert_eq!(
        label(&volumes["c"]),
        Some("4 clusters lost, nobody knows where")
    );
}

fn with_layer(store: &PoolStore, layer: LayerId, change: impl FnOnce(&mut LayerRecord)) {
    let key = layer_key(layer);
    let record = store.get(Table::Layers, &key).unwrap().unwrap();
    let mut record = LayerRecord::decode(&record).unwrap();
    change(&mut record);
    put(store, Table::Layers, &key, Some(&record.encode()));
}

#[test]
fn circles_and_missing_parents_are_cut() {
    for circle in [false, true] {
        let (mut rig, contents) = pool_of_many(2);
        let (clone, snapshot) = (layer_of(&mut rig, "f"), layer_of(&mut rig, "b@one"));
        let mut rig = damaged(rig, |store| {
            if circle {
                with_layer(store, snapshot, |record| {
                    record.parent = Parent::Layer(clone);
                });
            } else {
                with_layer(store, clone, |record| {
                    record.parent = Parent::Layer(LayerId(777));
                });
            }
        });
        assert!(volumes(&mut rig)["f"].faulted);
        // Nothing hangs: calls that walk the layers.
        rig.snapshot(&[("a", "two")]).unwrap();
        rig.delete("a@two").unwrap();
        mends(&mut rig, &contents, &["a", "c", "d", "e", "a@one"]);
        assert_eq!(read_cluster(&mut rig, "b@one", 0), Ok(contents["b@one"][0]));
    }
}

#[test]
fn wrong_counts_are_counted_again_and_delete_nothing_before() {
    let (mut rig, contents) = pool_of_many(2);
    let (snapshot, volume) = (layer_of(&mut rig, "b@one"), layer_of(&mut rig, "c"));
    let mut rig = damaged(rig, |store| {
        with_layer(store, snapshot, |record| {
            record.children = 0;
            record.state = lvol::format::LayerState::Garbage;
        });
        with_layer(store, volume, |record| record.clusters = 1);
    });
    rig.settle();
    mends(&mut rig, &contents, &["a", "c", "d", "e", "a@one"]);
    assert_eq!(read_cluster(&mut rig, "b@one", 9), Ok(contents["b@one"][9]));
    assert_eq!(read_cluster(&mut rig, "f", 9), Ok(contents["f"][9]));
}

#[test]
fn a_cluster_of_two_is_copied_for_the_second() {
    let (mut rig, contents) = pool_of_many(2);
    let (c, f) = (layer_of(&mut rig, "c"), layer_of(&mut rig, "f"));
    let mut rig = damaged(rig, |store| {
        let piece = store.get(Table::Map, &piece_key(c, 0)).unwrap().unwrap();
        put(store, Table::Map, &piece_key(f, 0), Some(&piece));
    });
    let channel = rig.channel("f");
    let left = check_up(&mut rig, true).findings;
    assert!(
        left.iter().any(|one| one.action.contains("is in use")),
        "{left:#?}"
    );
    drop(channel);
    let volumes = mends(&mut rig, &contents, &["a", "b", "d", "e"]);
    assert!(label(&volumes["c"]).is_some() && label(&volumes["f"]).is_some());
    // Both have the data, and no longer each other's.
    let mut channel = rig.channel("f");
    rig.write(&mut channel, 0, &[0xaa; CLUSTER as usize]);
    drop(channel);
    assert_eq!(read_cluster(&mut rig, "c", 0), Ok(contents["c"][0]));
    assert_eq!(read_cluster(&mut rig, "f", 1), Ok(contents["c"][1]));
}

#[test]
fn two_names_of_one_layer_part() {
    let (mut rig, contents) = pool_of_many(2);
    let layer = layer_of(&mut rig, "c");
    let mut rig = damaged(rig, |store| {
        let record = store.get(Table::Names, b"f").unwrap().unwrap();
        let mut record = NameRecord::decode(&record).unwrap();
        record.layer = layer;
        put(store, Table::Names, b"f", Some(&record.encode()));
    });
    assert!(volumes(&mut rig)["c"].faulted, "both would write there");
    mends(&mut rig, &contents, &["a", "b", "d", "e"]);
    assert_eq!(read_cluster(&mut rig, "c", 1), Ok(contents["c"][1]));
    assert_eq!(read_cluster(&mut rig, "f", 1), Ok(contents["c"][1]));
    let mut channel = rig.channel("f");
    rig.write(&mut channel, CLUSTER, &[0xaa; CLUSTER as usize]);
    drop(channel);
    assert_eq!(read_cluster(&mut rig, "c", 1), Ok(contents["c"][1]));
}

#[test]
fn io_and_calls_go_on_in_the_steps_of_a_check() {
    let mut rig = Rig::create(256, 2);
    rig.create_volume("big", 3000 * 128 * CLUSTER);
    let mut channel = rig.channel("big");
    for piece in 0..3000_u64 {
        rig.write(&mut channel, piece * 128 * CLUSTER, &[7; 4096]);
    }
    rig.flush(&mut channel);
    let promise = rig.pool.check_up(false);
    rig.step();
    let mut between = 0;
    let checkup = loop {
        // A call and first writes, while it walks: in front of it and behind it.
        rig.create_volume(&format!("v{between}"), SIZE);
        let at = (between * 131 % 3000) * 128 * CLUSTER + CLUSTER;
        rig.write(&mut channel, at, &[8; 4096]);
        rig.flush(&mut channel);
        between += 1;
        if let Some(answer) = promise.try_take() {
            break answer.unwrap();
        }
    };
    assert_eq!(checkup.findings, []);
    assert!(between >= 3, "only {between} calls came in between");
    assert!(
        checkup.records >= 3000 && checkup.steps >= 12,
        "{checkup:?}"
    );
    assert!(checkup.records_per_step_max <= 256, "{checkup:?}");
}

/// A random record is flipped, exchanged or deleted. The volumes that may show it.
fn damage_one(
    store: &PoolStore,
    random: &mut Random,
    over: &dyn Fn(LayerId) -> Vec<String>,
) -> (Vec<String>, bool) {
    let tables = [
        Table::Pool,
        Table::Names,
        Table::Names,
        Table::Layers,
        Table::Layers,
        Table::Map,
        Table::Map,
        Table::Free,
    ];
    let table = tables[random.below(tables.len() as u64) as usize];
    let records = store.scan(table, .., 1000).unwrap();
    if records.is_empty() {
        return (Vec::new(), false);
    }
    let (key, mut value) = records[random.below(records.len() as u64) as usize].clone();
    let about = |key: &[u8]| match table {
        Table::Names => vec![String::from_utf8(key.to_vec()).unwrap()],
        Table::Layers => over(lvol::format::parse_layer_key(key).unwrap()),
        Table::Map => over(lvol::format::parse_piece_key(key).unwrap().0),
        _ => Vec::new(),
    };
    let mut concerned = about(&key);
    let mut is_exchanged = false;
    match random.below(4) {
        0 => put(store, table, &key, None),
        1 => {
            let (other, copy) = &records[random.below(records.len() as u64) as usize];
            concerned.extend(about(other));
            is_exchanged = true;
            // Whoever has the layer that it names.
            if table == Table::Names
                && let (Ok(old), Ok(new)) = (NameRecord::decode(&value), NameRecord::decode(copy))
            {
                concerned.extend(over(old.layer));
                concerned.extend(over(new.layer));
            }
            put(store, table, &key, Some(copy));
        }
        _ => {
            let at = random.below(value.len() as u64) as usize;
            value[at] ^= 1 << random.below(8);
            put(store, table, &key, Some(&value));
        }
    }
    (concerned, is_exchanged)
}

#[test]
fn whatever_is_damaged_is_found_and_mended() {
    let rounds = std::env::var("ADIT_REPAIRS").map_or(120, |rounds| rounds.parse().unwrap());
    for seed in 0..rounds {
        let (mut rig, contents) = pool_of_many(2);
        let infos = volumes(&mut rig);
        let layers: Vec<(String, Vec<LayerId>)> = infos
            .iter()
            .map(|(name, info)| {
                let mut chain = vec![info.record.layer];
                if let Some(parent) = &info.parent {
                    chain.push(infos[parent].record.layer);
                }
                (name.clone(), chain)
            })
            .collect();
        let over = |layer: LayerId| -> Vec<String> {
            let shows = layers.iter().filter(|(_, chain)| chain.contains(&layer));
            shows.map(|(name, _)| name.clone()).collect()
        };
        let mut random = Random::new(seed);
        let (mut concerned, mut exchanged) = (Vec::new(), false);
        let mut rig = damaged(rig, |store| {
            for _ in 0..=random.below(3) {
                let (volumes, is_exchanged) = damage_one(store, &mut random, &over);
                concerned.extend(volumes);
                exchanged |= is_exchanged;
            }
        });
        let untouched = contents.keys().filter(|name| !concerned.contains(name));
        let untouched: Vec<&str> = untouched.map(String::as_str).collect();
        if check_up(&mut rig, false).findings.is_empty() {
            // A record was exchanged with itself, or flipped back.
            continue;
        }
        eprintln!("seed {seed}");
        if exchanged {
            // A sound record in the wrong place is found only by what does not fit any more: of what it
            // concerns nothing is promised.
            let mut contents = contents.clone();
            contents.retain(|name, _| untouched.contains(&name.as_str()));
            mends(&mut rig, &contents, &untouched);
        } else {
            mends(&mut rig, &contents, &untouched);
        }
    }
}

#[test]
fn a_repair_can_be_cut_at_every_write_and_begun_again() {
    let (mut rig, contents) = pool_of_many(2);
    let (d, f) = (layer_of(&mut rig, "d"), layer_of(&mut rig, "f"));
    let c = layer_of(&mut rig, "c");
    let rig = damaged(rig, |store| {
        flip(store, Table::Map, &piece_key(d, 0));
        flip(store, Table::Names, b"e");
        flip(store, Table::Layers, &layer_key(f));
        flip(store, Table::Free, &chunk_key(0));
        let piece = store.get(Table::Map, &piece_key(c, 0)).unwrap().unwrap();
        put(store, Table::Map, &piece_key(f, 0), Some(&piece));
    });
    let image = rig.drive.image();
    drop(rig);
    let mut changes = 1;
    loop {
        let mut cut = Rig::open_image(image.clone(), 2).unwrap();
        cut.drive.power_off_after(changes);
        let promise = cut.pool.check_up(true);
        // It ends, or the power does.
        let ended = cut.wait(promise).is_ok() && !cut.drive.is_powered_off();
        let left = cut.drive.cut(changes);
        drop(cut);
        let mut again = Rig::open_image(left, 2).unwrap();
        let _ = check_up(&mut again, true);
        let found = check_up(&mut again, false).findings;
        assert!(found.is_empty(), "cut after {changes} writes: {found:#?}");
        for name in ["a", "b", "a@one"] {
            for cluster in 0..16 {
                let read = read_cluster(&mut again, name, cluster);
                assert_eq!(
                    read,
                    Ok(contents[name][cluster as usize]),
                    "{name}, {changes} writes"
                );
            }
        }
        assert_ne!(read_cluster(&mut again, "d", 0), Ok(0));
        if ended {
            break;
        }
        changes += 1 + changes / 16;
    }
}
