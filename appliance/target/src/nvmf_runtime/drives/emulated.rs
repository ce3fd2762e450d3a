//! An emulated drive for the tests of what the owner of a drive does.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use dma::{BusView, Region};
use nvme_driver::{
    Controller, ControllerOptions, Device, DeviceError, DmaMapper, PciFunction, Registers,
};
use nvme_emu::{Emu, EmuOptions};

/// The emulated drive as a PCI function.
pub(super) struct Function {
    emu: Mutex<Emu>,
    bus: Arc<BusView>,
}

impl Function {
    /// An emulated drive, and a controller with one queue that is being attached to it.
    pub(super) fn attach(options: EmuOptions, now: Instant) -> (Arc<Self>, Controller) {
        let bus = BusView::new();
        let emu = Mutex::new(Emu::new(options, Arc::clone(&bus)));
        let function = Arc::new(Self { emu, bus });
        let device = Device {
            function: function.clone(),
            registers: function.clone(),
            mapper: function.clone(),
            interrupts: None,
        };
        let options = ControllerOptions {
            io_queues: 1,
            ..ControllerOptions::default()
        };
        let controller = Controller::attach(device, options, now).unwrap();
        (function, controller)
    }

    pub(super) fn emu(&self) -> MutexGuard<'_, Emu> {
        self.emu.lock().unwrap()
    }
}

impl Registers for Function {
    fn len(&self) -> u64 {
        0x4000
    }
    fn read32(&self, offset: u32) -> u32 {
        self.emu().read32(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        self.emu().write32(offset, value);
    }
}

impl DmaMapper for Function {
    fn map(&self, region: &Arc<Region>) -> Result<(), DeviceError> {
        self.bus.map(region);
        Ok(())
    }
    fn unmap(&self, region: &Arc<Region>) {
        self.bus.unmap(region);
    }
    fn address_bits(&self) -> u8 {
        48
    }
}

impl PciFunction for Function {
    fn address(&self) -> &'static str {
        "0000:01:00.0"
    }
    fn reset(&self) -> Result<(), DeviceError> {
        Err(DeviceError {
            action: "reset",
            address: self.address().into(),
            source: io::Error::other("no reset"),
        })
    }
    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        self.emu().set_bus_master(on);
        Ok(())
    }
}
