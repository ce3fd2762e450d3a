//! Damage to one volume's records costs that volume only, and the check names it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use block::{Io, IoError, Op};
use lvol::LvolError;
use lvol::format::{LayerId, SUPERBLOCK_OFFSETS, Superblock, layer_key, piece_key};
use metastore::pool::{MetadataDevice, PoolStore, PoolStoreOptions, Table};
use simulation::SimDevice;

use crate::rig::Rig;

/// The metadata of a pool, for who knows where it is.
#[derive(Debug)]
struct Extents {
    drive: Arc<SimDevice>,
    start: u64,
    len: u64,
}

impl MetadataDevice for Extents {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.drive.read_at(self.start + offset, out)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.drive.write_at(self.start + offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.drive.flush()
    }

    fn grow(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

/// Two volumes with data, `v` on layer 1 and `w` on layer 2; then a record is overwritten.
fn with_damage(table: Table, key: &[u8]) -> Rig {
    let mut rig = Rig::create(32, 1);
    for name in ["v", "w"] {
        rig.create_volume(name, 1 << 20);
        let mut channel = rig.channel(name);
        rig.write(&mut channel, 0, &[5; 4096]);
        rig.flush(&mut channel);
    }
    let store = closed_store(&mut rig);
    let mut record = store.get(table, key).unwrap().expect("the record is there");
    let middle = record.len() / 2;
    record[middle] ^= 0x10;
    let mut transaction = store.transaction();
    transaction.put(table, key, &record).unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();
    Rig::open_image(rig.drive.image(), 2).unwrap()
}

/// Closes the pool and opens its records.
pub(crate) fn closed_store(rig: &mut Rig) -> PoolStore {
    let promise = rig.pool.close();
    rig.wait(promise).unwrap();
    let mut copies = [vec![0; 4096], vec![0; 4096]];
    for (copy, offset) in copies.iter_mut().zip(SUPERBLOCK_OFFSETS) {
        rig.drive.read_at(offset, copy).unwrap();
    }
    let (superblock, _) = Superblock::newest([&copies[0], &copies[1]]).unwrap();
    let extent = superblock.metadata[0];
    let cluster_size = superblock.granularity.cluster_size();
    let device = Rc::new(Extents {
        drive: Arc::clone(&rig.drive),
        start: extent.start * cluster_size,
        len: extent.clusters * cluster_size,
    });
    PoolStore::open(device, PoolStoreOptions::default()).unwrap()
}

fn try_read(rig: &mut Rig, name: &str) -> Result<(), IoError> {
    let mut channel = rig.channel(name);
    let io = Io::with_payload(Op::Read, 0, 8, rig.payload(&[0; 4096]), 1);
    rig.run(&mut channel, io).0
}

fn findings(rig: &mut Rig) -> Vec<String> {
    let promise = rig.pool.check();
    let findings = rig.wait(promise).unwrap();
    findings.into_iter().map(|finding| finding.record).collect()
}

#[test]
fn a_damaged_piece_costs_its_volume_only() {
    let mut rig = with_damage(Table::Map, &piece_key(LayerId(1), 0));
    assert_eq!(try_read(&mut rig, "v"), Err(IoError::MediaRead));
    assert_eq!(try_read(&mut rig, "w"), Ok(()));
    let mut channel = rig.channel("w");
    rig.write(&mut channel, 65536, &[6; 4096]);
    rig.flush(&mut channel);
    assert!(findings(&mut rig).contains(&"piece 0 of layer 1".to_owned()));
}

#[test]
fn a_damaged_layer_faults_its_volume_only() {
    let mut rig = with_damage(Table::Layers, &layer_key(LayerId(1)));
    let promise = rig.pool.volume("v");
    assert!(rig.wait(promise).unwrap().faulted);
    assert_eq!(try_read(&mut rig, "v"), Err(IoError::Internal));
    assert_eq!(try_read(&mut rig, "w"), Ok(()));
    assert!(findings(&mut rig).contains(&"layer 1".to_owned()));
}

#[test]
fn a_damaged_name_is_found_and_others_serve() {
    let mut rig = with_damage(Table::Names, b"v");
    assert_eq!(try_read(&mut rig, "w"), Ok(()));
    let promise = rig.pool.volume("v");
    let refusal = rig.wait(promise).unwrap_err();
    assert!(
        matches!(refusal, LvolError::NameDamaged { .. }),
        "{refusal}"
    );
    let found = findings(&mut rig);
    assert!(
        found.iter().any(|record| record.contains("\"v\"")),
        "{found:?}"
    );
}
