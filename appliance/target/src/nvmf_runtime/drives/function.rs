//! An open PCI function as the driver wants it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::Region;
use nvme_driver::{Device, DeviceError, DmaMapper, Interrupts, PciFunction, Registers};

/// All handles of a function in one.
struct VfioFunction(Arc<vfio::Function>);

/// The function for the driver. It is given back when the driver has dropped all handles.
pub(super) fn device(function: Arc<vfio::Function>) -> Device {
    let has_vectors = function.vector_count() > 0;
    let function = Arc::new(VfioFunction(function));
    Device {
        function: function.clone(),
        registers: function.clone(),
        mapper: function.clone(),
        interrupts: has_vectors.then_some(function as Arc<dyn Interrupts>),
    }
}

impl VfioFunction {
    fn failed(&self, action: &'static str, source: io::Error) -> DeviceError {
        let address = self.0.address().to_owned();
        DeviceError {
            action,
            address,
            source,
        }
    }
}

impl Registers for VfioFunction {
    fn len(&self) -> u64 {
        self.0.bar_len()
    }

    #[inline]
    fn read32(&self, offset: u32) -> u32 {
        self.0.read32(offset)
    }

    #[inline]
    fn write32(&self, offset: u32, value: u32) {
        self.0.write32(offset, value);
    }
}

impl DmaMapper for VfioFunction {
    fn map(&self, region: &Arc<Region>) -> Result<(), DeviceError> {
        let mapped = self.0.map(region);
        mapped.map_err(|error| {
            let address = self.0.address();
            let error = io::Error::other(error);
            tracing::warn!(address, %error, "memory cannot be mapped for the drive");
            self.failed("map memory", error)
        })
    }

    fn unmap(&self, region: &Arc<Region>) {
        self.0.unmap(region);
    }

    fn address_bits(&self) -> u8 {
        let info = self.0.container().iommu_info();
        info.map_or(64, |info| info.address_bits())
    }
}

impl Interrupts for VfioFunction {
    fn count(&self) -> u16 {
        self.0.vector_count()
    }

    fn fd(&self, vector: u16) -> Option<BorrowedFd<'_>> {
        self.0.vector_fd(vector)
    }

    fn clear(&self, vector: u16) {
        self.0.clear_vector(vector);
    }
}

impl PciFunction for VfioFunction {
    fn address(&self) -> &str {
        self.0.address()
    }

    fn reset(&self) -> Result<(), DeviceError> {
        let reset = self.0.reset();
        reset.map_err(|error| self.failed("reset", error))
    }

    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        let set = self.0.set_bus_master(on);
        set.map_err(|error| self.failed("set bus mastering", error))
    }
}
