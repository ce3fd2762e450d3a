//! Memory as a bus master sees it: by address, and only what was mapped for it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::copy;
use crate::region::Region;

/// A device reached for an address that nothing is mapped at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory is mapped for the device at {address:#x}+{len}")]
pub struct BusFault {
    /// First byte of the access.
    pub address: u64,
    /// Bytes of the access.
    pub len: usize,
}

/// The address space of a device model: regions at their own addresses.
///
/// This is for emulated devices, which do what a real device does: read and write the memory that
/// a driver's commands name, also the buffers of a pool. As with a real device and its IOMMU, the
/// map bounds what can be reached, and the driver answers for naming only memory that it owns
/// until the command ends. Copies are opaque to the compiler, as those of a device are.
#[derive(Debug, Default)]
pub struct BusView {
    regions: RwLock<BTreeMap<usize, Arc<Region>>>,
}

impl BusView {
    /// An address space with nothing in it.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Lets the device reach a region, at the region's own address. A second time changes nothing.
    pub fn map(&self, region: &Arc<Region>) {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.insert(region.addr(), Arc::clone(region));
    }

    /// Takes a region away. The device faults on it from now on.
    pub fn unmap(&self, region: &Region) {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.remove(&region.addr());
    }

    /// The device reads memory.
    ///
    /// # Errors
    /// The range is not wholly inside one mapped region.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BusFault> {
        self.with(address, into.len(), |pointer| {
            // SAFETY: `with` checked that the range is mapped and keeps the region alive.
            unsafe { copy::read_shared(pointer, into) }
        })
    }

    /// The device writes memory.
    ///
    /// # Errors
    /// The range is not wholly inside one mapped region.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), BusFault> {
        self.with(address, from.len(), |pointer| {
            // SAFETY: `with` checked that the range is mapped and keeps the region alive. That
            // nobody holds a reference to it is the driver's side of the bargain: it owns the
            // memory that it names in a command until the command has ended.
            unsafe { copy::write_shared(pointer, from) }
        })
    }

    fn with(&self, address: u64, len: usize, access: impl FnOnce(*mut u8)) -> Result<(), BusFault> {
        let fault = BusFault { address, len };
        let start = usize::try_from(address).map_err(|_| fault)?;
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let (base, region) = regions.range(..=start).next_back().ok_or(fault)?;
        let offset = start - base;
        let end = offset.checked_add(len).ok_or(fault)?;
        if end > region.len() {
            return Err(fault);
        }
        // SAFETY: `offset` lies inside the region, or at its end where `len` is 0.
        access(unsafe { region.base().as_ptr().add(offset) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackingPreference, RegionOptions};

    fn region() -> Arc<Region> {
        Region::allocate(&RegionOptions {
            len: 8192,
            backing: BackingPreference::Plain4K,
            ..RegionOptions::default()
        })
        .unwrap()
    }

    #[test]
    fn a_device_reaches_what_is_mapped_and_nothing_else() {
        let (bus, region) = (BusView::new(), region());
        let at = region.addr() as u64;
        assert!(bus.write(at, &[1]).is_err());
        bus.map(&region);
        bus.write(at + 8190, &[1, 2]).unwrap();
        let mut back = [0; 2];
        region.read_at(8190, &mut back);
        assert_eq!(back, [1, 2]);
        assert!(bus.read(at + 8191, &mut back).is_err());
        assert!(bus.read(at - 1, &mut back).is_err());
        assert!(bus.read(u64::MAX, &mut back).is_err());
        bus.unmap(&region);
        assert!(bus.read(at, &mut back).is_err());
    }

    #[test]
    fn words_are_stored_and_loaded_in_place() {
        let region = region();
        region.store_words(64, &[1u64, 2, 3]);
        assert_eq!(region.load_words::<2>(72), [2, 3]);
        region.store_u32(4092, 7);
        assert_eq!(region.load_u32(4092), 7);
    }

    #[test]
    #[should_panic(expected = "aligned")]
    fn an_unaligned_word_is_refused() {
        region().store_u32(2, 7);
    }
}
