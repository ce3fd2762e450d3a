//! Versions: old stores open for ever, newer ones if they allow it, migrations survive power cuts.

use std::path::PathBuf;

use simulation::Image;

use super::schema::Migration;
use super::tests::{Extents, create, get, open, put};
use super::*;

fn start(device: &Rc<Extents>, schema: &Schema) -> Result<PoolStore, PoolStoreError> {
    let options = PoolStoreOptions::default();
    PoolStore::start(device.clone(), options, schema.clone(), false)
}

/// A future version that keeps names in capitals.
const CAPITALS: Migration = |transaction| {
    let definition = Table::Names.definition();
    let mut table = transaction.open_table(definition)?;
    let mut changed = Vec::new();
    for entry in redb::ReadableTable::iter(&table)? {
        let (key, value) = entry?;
        changed.push((key.value().to_vec(), value.value().to_ascii_uppercase()));
    }
    for (key, value) in changed {
        table.insert(key.as_slice(), value.as_slice())?;
    }
    Ok(())
};

const TIDIED: Migration = |transaction| {
    transaction.delete_table(Table::Operations.definition())?;
    transaction.open_table(Table::Operations.definition())?;
    Ok(())
};

fn version(version: u64, min_reader: u64, migrations: &'static [Migration]) -> Schema {
    Schema {
        version,
        min_reader,
        migrations,
    }
}

fn named(store: &PoolStore) -> Vec<u8> {
    store.get(Table::Names, b"name").unwrap().unwrap()
}

fn old_store() -> Rc<Extents> {
    let device = Extents::new(64 << 20);
    let options = PoolStoreOptions::default();
    let store = PoolStore::start(device.clone(), options, version(1, 1, &[]), true).unwrap();
    let mut transaction = store.transaction();
    transaction.put(Table::Names, b"name", b"volume").unwrap();
    transaction.put(Table::Operations, b"1", b"delete").unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();
    device
}

#[test]
fn older_store_is_brought_forward_once() {
    let device = old_store();
    let third = version(3, 1, &[CAPITALS, TIDIED]);
    for _ in 0..2 {
        let store = start(&device, &third).unwrap();
        assert_eq!(named(&store), b"VOLUME");
        assert_eq!(store.len(Table::Operations).unwrap(), 0);
        let mut transaction = store.transaction();
        transaction.put(Table::Operations, b"2", b"scrub").unwrap();
        transaction.delete(Table::Operations, b"2").unwrap();
        transaction.commit().unwrap();
    }
    // From version 2 only the second step is taken.
    let device = old_store();
    drop(start(&device, &version(2, 1, &[TIDIED])).unwrap());
    let store = start(&device, &version(3, 1, &[CAPITALS, TIDIED])).unwrap();
    assert_eq!(named(&store), b"volume");
}

#[test]
fn newer_store_opens_if_it_allows_older_readers_and_is_refused_otherwise() {
    let device = old_store();
    drop(start(&device, &version(2, 1, &[CAPITALS])).unwrap());
    let store = start(&device, &version(1, 1, &[])).unwrap();
    assert_eq!(named(&store), b"VOLUME");
    put(&store, "a", "1").unwrap();
    drop(store);
    // The version is still the newer one's: nothing is migrated a second time.
    let store = start(&device, &version(2, 1, &[TIDIED])).unwrap();
    assert_eq!(store.len(Table::Operations).unwrap(), 1);
    assert_eq!(get(&store, "a").as_deref(), Some("1"));
    drop(store);
    drop(start(&device, &version(3, 3, &[CAPITALS, CAPITALS])).unwrap());
    let error = start(&device, &version(1, 1, &[])).unwrap_err();
    assert!(
        matches!(error, PoolStoreError::Newer { needed: 3 }),
        "{error:?}"
    );
    assert!(error.to_string().contains("run the newer program"));
}

#[test]
fn power_cut_while_migrating_leaves_the_old_version_or_the_new_one() {
    let device = old_store();
    let second = version(2, 2, &[CAPITALS]);
    device.device.start_recording();
    drop(start(&device, &second).unwrap());
    let recording = device.device.stop_recording();
    let mut replay = recording.replay();
    let (mut old, mut new) = (0, 0);
    while replay.next().is_some() {
        for seed in 0..20 {
            let cut = Extents::on(replay.cut(seed), device.len());
            match start(&cut, &version(1, 1, &[])) {
                Ok(store) => {
                    assert_eq!(named(&store), b"volume");
                    old += 1;
                }
                Err(PoolStoreError::Newer { needed: 2 }) => new += 1,
                Err(error) => panic!("{error}"),
            }
            let store = start(&cut, &second).unwrap();
            assert_eq!(named(&store), b"VOLUME");
        }
    }
    assert!(old > 0 && new > 0, "{old} {new}");
}

/// The table of checksums is there after the step to version 2, and an older program leaves it alone.
#[test]
fn older_program_leaves_the_checksums_alone() {
    let device = old_store();
    let store = open(&device).unwrap();
    assert_eq!(store.len(Table::Sums).unwrap(), 0);
    let mut transaction = store.transaction();
    transaction.put(Table::Sums, b"piece", b"sums").unwrap();
    transaction.commit().unwrap();
    drop(store);
    let older = start(&device, &version(1, 1, &[])).unwrap();
    put(&older, "a", "1").unwrap();
    older.compact().unwrap();
    drop(older);
    let store = open(&device).unwrap();
    let sums = store.get(Table::Sums, b"piece").unwrap();
    assert_eq!(sums.as_deref(), Some(b"sums".as_slice()));
    assert_eq!(get(&store, "a").as_deref(), Some("1"));
}

fn image_path(version: u64) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    folder.join(format!("pool-metadata-v{version}.image"))
}

/// What stands in the kept image of a version with so many tables.
fn kept_records(tables: usize) -> impl Iterator<Item = (Table, Vec<u8>, Vec<u8>)> {
    let tables = Table::ALL.into_iter().take(tables).zip(1_u8..);
    tables.flat_map(|(table, number)| {
        (0..20_u8).map(move |key| (table, vec![key, number], vec![key ^ number; 10]))
    })
}

/// Makes the image. Run by hand, once per version: what is there is never made again.
#[test]
#[ignore = "writes the file that the tests below read"]
fn make_the_image_of_this_version() {
    let device = Extents::new_clean(64 << 20);
    let store = create(&device);
    for (table, key, value) in kept_records(Table::ALL.len()) {
        let mut transaction = store.transaction();
        transaction.put(table, &key, &value).unwrap();
        transaction.commit().unwrap();
    }
    // Without closing it: as a power cut leaves it.
    let mut image = device.device.cut(0);
    image.resize(device.len());
    let path = image_path(SCHEMA_VERSION);
    assert!(!path.exists(), "old images stay as they are");
    std::fs::write(path, image.encode()).unwrap();
}

fn opens_for_ever(version: u64, tables: usize) {
    let file = std::fs::read(image_path(version)).unwrap();
    let image = Image::decode(&file).unwrap();
    let len = image.len_bytes();
    let store = open(&Extents::on(image, len)).unwrap();
    assert!(!store.stats().repaired);
    assert_eq!(store.stats().commits, 20 * tables as u64);
    for (table, key, value) in kept_records(tables) {
        assert_eq!(store.get(table, &key).unwrap(), Some(value));
    }
    put(&store, "new", "record").unwrap();
}

#[test]
fn store_of_version_1_opens_for_ever() {
    opens_for_ever(1, 6);
}

#[test]
fn store_of_version_2_opens_for_ever() {
    opens_for_ever(2, 7);
}

#[test]
fn store_of_version_3_opens_for_ever() {
    opens_for_ever(3, 8);
}
