use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use redb::{StorageBackend, backends::InMemoryBackend};

use super::*;
use crate::database::{Database, Medium, builder, opened};

fn put(generation: u64, name: &str, value: &[u8]) -> Batch {
    let mut batch = Batch::new(generation);
    batch.put("thing", name, value.to_vec());
    batch
}

fn commit(store: &StateStore, batch: Batch) -> Result<(), CommitError> {
    let (tx, rx) = mpsc::channel();
    store.commit(batch, move |result| tx.send(result).unwrap())?;
    rx.recv().unwrap()
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    (directory, path)
}

#[test]
fn records_are_there_after_a_reopen() {
    let (_directory, path) = place();
    let (store, contents) = StateStore::open(&path).unwrap();
    assert_eq!(contents, Contents::default());
    commit(&store, put(1, "a", b"one")).unwrap();
    commit(&store, put(2, "b", b"two")).unwrap();
    let mut third = put(3, "a", b"three");
    third.delete("thing", "b");
    third.delete("thing", "never there");
    commit(&store, third).unwrap();
    store.close();
    let (_store, contents) = StateStore::open(&path).unwrap();
    assert_eq!(contents.generation, 3);
    let record = Record {
        kind: "thing".into(),
        name: "a".into(),
        generation: 3,
        value: b"three".to_vec(),
    };
    assert_eq!(contents.records, [record]);
}

#[test]
fn a_restored_store_has_what_was_kept_elsewhere_and_nothing_else() {
    let (_directory, path) = place();
    let (store, _) = StateStore::open(&path).unwrap();
    commit(&store, put(1, "old", b"1")).unwrap();
    store.close();
    let record = |name: &str, generation| Record {
        kind: "bdev".to_owned(),
        name: name.to_owned(),
        generation,
        value: name.as_bytes().to_vec(),
    };
    let kept = Contents {
        generation: 41,
        records: vec![record("a", 7), record("b", 41)],
    };
    // What an interrupted restore leaves beside it does not matter.
    std::fs::write(path.with_extension("restored"), b"half").unwrap();
    let (store, contents) = StateStore::restore(&path, &kept).unwrap();
    assert_eq!(contents, kept);
    commit(&store, put(42, "c", b"3")).unwrap();
    store.close();
    let (_store, contents) = StateStore::open(&path).unwrap();
    assert_eq!(contents.generation, 42);
    assert_eq!(contents.records.len(), 3);
}

#[test]
fn the_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_directory, path) = place();
    let _store = StateStore::open(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o077,
        0
    );
}

#[test]
fn what_was_queued_is_written_before_close_returns() {
    let (_directory, path) = place();
    let (store, _) = StateStore::open(&path).unwrap();
    for generation in 1..=1000 {
        store
            .commit(put(generation, "a", b"x"), |result| result.unwrap())
            .unwrap();
    }
    store.close();
    assert_eq!(StateStore::open(&path).unwrap().1.generation, 1000);
}

#[test]
fn a_batch_that_does_not_follow_is_refused_whole() {
    let (_directory, path) = place();
    let (store, _) = StateStore::open(&path).unwrap();
    commit(&store, put(1, "a", b"one")).unwrap();
    for generation in [0, 1, 3] {
        assert_eq!(
            commit(&store, put(generation, "b", b"x")),
            Err(CommitError::OutOfOrder {
                given: generation,
                stored: 1
            })
        );
    }
    commit(&store, put(2, "c", b"two")).unwrap();
    store.close();
    let names: Vec<_> = StateStore::open(&path)
        .unwrap()
        .1
        .records
        .into_iter()
        .map(|r| r.name)
        .collect();
    assert_eq!(names, ["a", "c"]);
}

#[test]
fn bounds_are_checked_before_queueing() {
    let (_directory, path) = place();
    let (store, _) = StateStore::open(&path).unwrap();
    let long = "n".repeat(KEY_BYTES_MAX + 1);
    assert!(matches!(
        commit(&store, put(1, &long, b"")),
        Err(CommitError::TooLong { what: "a name", .. })
    ));
    assert!(matches!(
        commit(&store, put(1, "a", &vec![0; VALUE_BYTES_MAX + 1])),
        Err(CommitError::TooLong {
            what: "a value",
            ..
        })
    ));
    commit(&store, put(1, &long[1..], &vec![0; VALUE_BYTES_MAX])).unwrap();
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let (_directory, path) = place();
    let (_store, _) = StateStore::open(&path).unwrap();
    let error = StateStore::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another process"));
}

#[test]
fn a_newer_store_is_refused_with_a_sentence() {
    let (_directory, path) = place();
    drop(StateStore::open(&path).unwrap());
    let database = redb::Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(redb::TableDefinition::<&str, u64>::new("meta"))
        .unwrap()
        .insert("min_reader_version", FORMAT_VERSION + 1)
        .unwrap();
    write.commit().unwrap();
    drop(database);
    let error = StateStore::open(&path).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Newer {
                needed: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn files_that_are_no_store_are_refused_not_overwritten() {
    let (_directory, path) = place();
    for content in [
        &b"not a database"[..],
        &[0_u8; 8192][..],
        &b"redb\x1A\x0A\xA9\x0D\x0A"[..],
    ] {
        std::fs::write(&path, content).unwrap();
        let error = StateStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    let (directory, _) = place();
    assert!(matches!(
        StateStore::open(directory.path()),
        Err(OpenError::File { .. })
    ));
    let nowhere = directory.path().join("none/state.redb");
    assert!(matches!(
        StateStore::open(&nowhere),
        Err(OpenError::File { .. })
    ));
}

#[test]
fn a_damaged_file_never_panics() {
    let (_directory, path) = place();
    let (store, _) = StateStore::open(&path).unwrap();
    for generation in 1..=50 {
        commit(
            &store,
            put(generation, &format!("n{generation}"), &[7; 300]),
        )
        .unwrap();
    }
    store.close();
    let good = std::fs::read(&path).unwrap();
    // The header closely, and strides through the rest.
    for at in (0..320).step_by(3).chain((320..good.len()).step_by(16_411)) {
        let mut bad = good.clone();
        bad[at] ^= 0xFF;
        std::fs::write(&path, &bad).unwrap();
        let _ = StateStore::open(&path);
    }
    for len in (0..good.len()).step_by(65_521) {
        std::fs::write(&path, &good[..len]).unwrap();
        let _ = StateStore::open(&path);
    }
}

/// A disk that starts to fail after so many writes and forgets what was not flushed.
#[derive(Debug, Clone, Default)]
struct Faulty(Arc<Mutex<FaultyState>>);

#[derive(Debug, Default)]
struct FaultyState {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    writes_left: Option<u64>,
}

impl Faulty {
    fn spend(&self) -> std::io::Result<std::sync::MutexGuard<'_, FaultyState>> {
        let mut state = self.0.lock().unwrap();
        match &mut state.writes_left {
            Some(0) => return Err(std::io::Error::other("no space left")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let state = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let from = state.bytes.get(start..start + out.len());
        out.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.spend()?.bytes.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }
    fn sync_data(&self) -> std::io::Result<()> {
        let mut state = self.spend()?;
        state.durable = state.bytes.clone();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.spend()?.bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl Medium for Faulty {
    fn name(&self) -> String {
        "a faulty disk".to_owned()
    }
    fn open(&self) -> Result<redb::Database, OpenError> {
        builder()
            .create_with_backend(self.clone())
            .map_err(|error| opened(&self.name(), error))
    }
}

/// For each k: the disk fails at the k-th write of a group of three batches; then it works again, or
/// the power goes. What was acknowledged is there, what was refused is not, nothing is half there.
#[test]
fn a_disk_that_fails_at_any_write_loses_nothing_acknowledged() {
    for k in 0..400 {
        let disk = Faulty::default();
        let mut database = Database::open(Box::new(disk.clone())).unwrap();
        assert!(database.write(&[put(1, "base", b"1")])[0].is_ok());
        disk.0.lock().unwrap().writes_left = Some(k);
        let group: Vec<_> = (2..=4).map(|g| put(g, &format!("n{g}"), b"v")).collect();
        let results = database.write(&group);
        let acknowledged = results[0].is_ok();
        assert!(results.iter().all(|result| result.is_ok() == acknowledged));
        disk.0.lock().unwrap().writes_left = None;
        let mut generation = if acknowledged { 4 } else { 1 };
        let next = database
            .write(&[put(generation + 1, "after", b"x")])
            .remove(0);
        match (&results[0], next) {
            (Err(CommitError::Unknown { .. }), next) => {
                assert!(matches!(next, Err(CommitError::Unknown { .. })));
            }
            (_, next) => {
                next.unwrap();
                generation += 1;
            }
        }
        let unknown = matches!(results[0], Err(CommitError::Unknown { .. }));
        drop(database);
        // The power goes: only what was flushed is left.
        let after = Faulty::default();
        after.0.lock().unwrap().bytes = disk.0.lock().unwrap().durable.clone();
        let database = Database::open(Box::new(after)).unwrap();
        let contents = database.contents().unwrap();
        if !unknown {
            assert_eq!(contents.generation, generation, "write {k}");
        }
        let group_there = contents
            .records
            .iter()
            .filter(|r| r.name.starts_with('n'))
            .count();
        assert!(
            group_there == 0 || group_there == 3,
            "write {k}: {group_there} of 3"
        );
        if acknowledged {
            assert_eq!(group_there, 3);
            // Enough writes for the whole group: larger k would test the same.
            if k > 0 {
                return;
            }
        }
    }
    panic!("400 writes were not enough for one transaction");
}

/// A medium that counts flushes.
#[derive(Debug, Clone)]
struct Counting(Arc<InMemoryBackend>, Arc<Mutex<u64>>);

impl StorageBackend for Counting {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        *self.1.lock().unwrap() += 1;
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
}

impl Medium for Counting {
    fn name(&self) -> String {
        "memory".to_owned()
    }
    fn open(&self) -> Result<redb::Database, OpenError> {
        builder()
            .create_with_backend(self.clone())
            .map_err(|error| opened(&self.name(), error))
    }
}

#[test]
fn batches_of_a_group_share_their_flushes() {
    let flushes = Arc::new(Mutex::new(0));
    let medium = Counting(Arc::new(InMemoryBackend::new()), flushes.clone());
    let mut database = Database::open(Box::new(medium)).unwrap();
    let cost = |database: &mut Database, batches: &[Batch]| {
        let before = *flushes.lock().unwrap();
        assert!(database.write(batches).iter().all(Result::is_ok));
        *flushes.lock().unwrap() - before
    };
    let one = cost(&mut database, &[put(1, "a", b"x")]);
    let many: Vec<_> = (2..=201).map(|g| put(g, &format!("n{g}"), b"x")).collect();
    assert!(one > 0);
    assert_eq!(cost(&mut database, &many), one);
}

const CHILD: &str = "METASTORE_CRASH_CHILD";

/// Runs in a process of its own: batches without end, each acknowledged one printed.
#[test]
fn crash_child() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let (store, contents) = StateStore::open(path.as_ref()).unwrap();
    let (tx, rx) = mpsc::sync_channel::<u64>(64);
    // At most 16 unacknowledged, as sixteen callers would have.
    let (token_tx, token_rx) = mpsc::sync_channel::<()>(16);
    let printer = std::thread::spawn(move || {
        for generation in rx {
            println!("acknowledged {generation}");
            token_rx.recv().unwrap();
        }
    });
    for generation in contents.generation + 1.. {
        token_tx.send(()).unwrap();
        let mut batch = Batch::new(generation);
        let value = generation.to_string().into_bytes();
        batch.put("left", &format!("{}", generation % 40), value.clone());
        batch.put("right", &format!("{}", generation % 40), value);
        let tx = tx.clone();
        store
            .commit(batch, move |result| {
                result.unwrap();
                tx.send(generation).unwrap();
            })
            .unwrap();
    }
    printer.join().unwrap();
}

#[test]
fn acknowledged_batches_survive_sigkill() {
    let (_directory, path) = place();
    let mut last_generation = 0;
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash_child", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different number of batches each time, so that the kill lands at different places.
        let wanted = 5 + round * round * 7 % 83;
        let mut seen = 0;
        let mut acknowledged = last_generation;
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some((_, generation)) = line.split_once("acknowledged ") {
                acknowledged = generation.parse().unwrap();
                seen += 1;
                if seen == wanted {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(seen >= wanted, "the child ended by itself");
        let (store, contents) = StateStore::open(&path).unwrap();
        assert!(
            contents.generation >= acknowledged,
            "{} < {acknowledged}",
            contents.generation
        );
        for record in &contents.records {
            assert_eq!(record.value, record.generation.to_string().into_bytes());
            assert!(record.generation + 40 > contents.generation);
        }
        let kinds = |kind| contents.records.iter().filter(move |r| r.kind == kind);
        assert!(
            kinds("left")
                .map(|r| (&r.name, r.generation))
                .eq(kinds("right").map(|r| (&r.name, r.generation)))
        );
        last_generation = contents.generation;
        store.close();
    }
}
