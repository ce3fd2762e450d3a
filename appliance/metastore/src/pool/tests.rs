use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use simulation::{Image, SimDevice, SimOptions};

use super::*;

/// A part of a simulated device; grows within it in steps of 64 KiB clusters.
#[derive(Debug)]
pub(super) struct Extents {
    pub(super) device: Arc<SimDevice>,
    len: Cell<u64>,
    max: Cell<u64>,
}

const CLUSTER: u64 = 64 << 10;

impl Extents {
    /// On a device full of what somebody else has left.
    pub(super) fn new(max: u64) -> Rc<Self> {
        let mut image = Image::new(max);
        for block in (0..max.min(4 << 20)).step_by(4096) {
            image.write_at(block, &[0xa5; 4096]);
        }
        Self::on(image, 0)
    }

    pub(super) fn on(image: Image, len: u64) -> Rc<Self> {
        let max = Cell::new(image.len_bytes());
        let device = SimDevice::from_image(image, SimOptions::new(4096, 0, 1));
        Rc::new(Self {
            device,
            len: Cell::new(len),
            max,
        })
    }
}

impl MetadataDevice for Extents {
    fn len(&self) -> u64 {
        self.len.get()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        assert!(offset + out.len() as u64 <= self.len.get());
        self.device.read_at(offset, out)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(offset + data.len() as u64 <= self.len.get());
        self.device.write_at(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let len = len.next_multiple_of(CLUSTER);
        if len > self.max.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.len.set(len);
        Ok(())
    }

    fn shrink(&self, len: u64) -> io::Result<()> {
        self.len.set(len.next_multiple_of(CLUSTER));
        Ok(())
    }
}

pub(super) fn create(device: &Rc<Extents>) -> PoolStore {
    PoolStore::create(device.clone(), PoolStoreOptions::default()).unwrap()
}

pub(super) fn open(device: &Rc<Extents>) -> Result<PoolStore, PoolStoreError> {
    PoolStore::open(device.clone(), PoolStoreOptions::default())
}

pub(super) fn put(store: &PoolStore, key: &str, value: &str) -> Result<(), PoolStoreError> {
    let mut transaction = store.transaction();
    transaction.put(Table::Map, key.as_bytes(), value.as_bytes())?;
    transaction.commit()
}

pub(super) fn get(store: &PoolStore, key: &str) -> Option<String> {
    let value = store.get(Table::Map, key.as_bytes()).unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}
