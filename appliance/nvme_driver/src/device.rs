//! What the driver needs of a PCI function: registers, DMA, interrupts, reset.
//!
//! `vfio` implements these for real drives, tests for the emulated one.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::Region;

/// A call on the function failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} of pci function {address}")]
pub struct DeviceError {
    /// What was tried: "map memory", "reset", "set bus mastering".
    pub action: &'static str,
    /// The function, `0000:01:00.0`.
    pub address: String,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// BAR 0. Offsets are in bytes and aligned to the access; the values are in host byte order.
///
/// Reads of a function that is gone give all ones, and writes to it are lost: neither fails.
pub trait Registers: Send + Sync {
    /// Bytes of the BAR. The driver touches nothing beyond.
    fn len(&self) -> u64;

    /// Whether there is no BAR at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads 32 bits.
    fn read32(&self, offset: u32) -> u32;

    /// Writes 32 bits, after all earlier stores to memory.
    fn write32(&self, offset: u32, value: u32);

    /// Reads 64 bits. Where the bus has no such access: low half first.
    fn read64(&self, offset: u32) -> u64 {
        let low = u64::from(self.read32(offset));
        low | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes 64 bits. Where the bus has no such access: low half first.
    fn write64(&self, offset: u32, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}

/// The IOMMU, as far as this function goes.
pub trait DmaMapper: Send + Sync {
    /// Lets the function read and write a region at the region's own address (IOVA = VA). Mapping
    /// a region again changes nothing. The mapper keeps the region alive while it is mapped.
    ///
    /// # Errors
    /// The IOMMU refuses: address beyond its width, limit of mappings or of locked memory reached.
    fn map(&self, region: &Arc<Region>) -> Result<(), DeviceError>;

    /// Takes a region away from the function. The caller knows that no command names it any more.
    fn unmap(&self, region: &Arc<Region>);

    /// Bits of an address that the function can reach.
    fn address_bits(&self) -> u8;
}

/// MSI-X vectors, each with an eventfd.
pub trait Interrupts: Send + Sync {
    /// Number of vectors.
    fn count(&self) -> u16;

    /// The eventfd of a vector.
    fn fd(&self, vector: u16) -> Option<BorrowedFd<'_>>;

    /// Makes the eventfd unreadable until the next interrupt.
    fn clear(&self, vector: u16);
}

/// The function itself.
pub trait PciFunction: Send + Sync {
    /// `0000:01:00.0`.
    fn address(&self) -> &str;

    /// Resets the function. When this returns, it does no DMA and its registers are those after
    /// a reset; BARs and interrupts are usable again.
    ///
    /// # Errors
    /// It has no reset, or did not come back.
    fn reset(&self) -> Result<(), DeviceError>;

    /// Lets it do DMA, or stops it from it.
    ///
    /// # Errors
    /// Its configuration space cannot be written.
    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError>;
}

/// All handles of one function.
#[derive(Clone)]
pub struct Device {
    /// The function.
    pub function: Arc<dyn PciFunction>,
    /// Its BAR 0.
    pub registers: Arc<dyn Registers>,
    /// Its IOMMU.
    pub mapper: Arc<dyn DmaMapper>,
    /// Its vectors; without them it is polled only.
    pub interrupts: Option<Arc<dyn Interrupts>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("address", &self.function.address())
            .finish_non_exhaustive()
    }
}
