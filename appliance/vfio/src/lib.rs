//! PCI functions in user space: what the kernel's VFIO gives, and no more.
//!
//! What it is: the container with its IOMMU groups, memory mapped for devices at its own address
//! (IOVA = VA), and for each function its configuration space, BAR 0, MSI-X eventfds, reset and the
//! kernel's request to have it back.
//!
//! What it is not: it binds nothing to vfio-pci (`machine` does), knows nothing of NVMe, has no
//! threads and keeps no state beyond the process. Only VFIO's groups with the type 1 IOMMU driver
//! (v2) are used, which every kernel with VFIO has; iommufd is not, nor is "no-IOMMU" mode.
//!
//! # Main types
//! - [`Container`]: one for a process. Groups come with their first function and go with the last.
//! - [`Function`]: an open function. [`Function::open`] takes it, dropping it gives it back.
//! - [`IommuInfo`]: which addresses can be mapped, and how many mappings are left.
//! - [`bound_functions`]: what is with vfio-pci.
//!
//! # Threading
//! All is `Send` and `Sync`. Registers are read and written without a lock. Opening, closing,
//! mapping and resetting are system calls that can take long; mapping holds the container's lock.
//!
//! # Memory
//! A region is mapped once for the container, whichever functions use it, and kept alive while it is
//! mapped. A function stops reaching memory before its regions are taken away: by its command
//! register, and by the kernel when its descriptor is closed.
//!
//! # Errors
//! [`VfioError`] names the function, its group and what to do. Calls that pass on one system call
//! give its [`std::io::Error`].

mod capabilities;
mod container;
mod error;
mod function;
mod place;
mod sys;

pub use capabilities::IommuInfo;
pub use container::Container;
pub use error::VfioError;
pub use function::Function;
pub use place::{Bound, VFIO_DRIVER, bound_functions, group_of, numa_node_of};
