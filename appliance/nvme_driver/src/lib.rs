//! NVMe over PCIe, from user space.

mod device;

pub use device::{Device, DeviceError, DmaMapper, Interrupts, PciFunction, Registers};
