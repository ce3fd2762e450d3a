//! The error of this crate.

use std::io;

/// Why a function cannot be had, or memory cannot be mapped for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// `/dev/vfio/vfio` cannot be opened.
    #[error(
        "cannot open /dev/vfio/vfio: load the modules vfio-pci and vfio_iommu_type1, and give this \
         process the right to read and write it"
    )]
    Container {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel speaks another version, or has no type 1 IOMMU driver.
    #[error("this kernel's vfio cannot be used: {what}")]
    Kernel {
        /// What is missing, and what to do.
        what: &'static str,
    },
    /// There is no such function.
    #[error("there is no pci function {address}")]
    Missing {
        /// The function.
        address: String,
    },
    /// The function is in no IOMMU group.
    #[error(
        "pci function {address} is in no iommu group: there is no iommu, or it is off (VT-d or \
         AMD-Vi in the firmware, intel_iommu=on on the kernel command line)"
    )]
    NoIommu {
        /// The function.
        address: String,
    },
    /// Another driver has the function.
    #[error("pci function {address} is not with vfio-pci but with {driver}: bind it to vfio-pci")]
    NotBound {
        /// The function.
        address: String,
        /// Its driver, or `no driver`.
        driver: String,
    },
    /// The node of the group cannot be opened.
    #[error("cannot open /dev/vfio/{group} for pci function {address}: {advice}")]
    Group {
        /// The group.
        group: u32,
        /// The function.
        address: String,
        /// What to do.
        advice: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others have functions of the group.
    #[error(
        "iommu group {group} of pci function {address} cannot be given to user space while other \
         drivers have functions of it: {members}; bind them to vfio-pci or take their drivers away"
    )]
    NotViable {
        /// The group.
        group: u32,
        /// The function.
        address: String,
        /// The members with their drivers.
        members: String,
    },
    /// A call on the function or its group failed.
    #[error("cannot {action} of pci function {address} (iommu group {group})")]
    Call {
        /// What was tried: `get the descriptor`.
        action: &'static str,
        /// The function.
        address: String,
        /// The group.
        group: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The function lacks something.
    #[error("pci function {address} cannot be used: {what}")]
    Unsupported {
        /// The function.
        address: String,
        /// What it lacks.
        what: &'static str,
    },
    /// The IOMMU says nothing of itself.
    #[error("cannot ask the iommu what it takes")]
    IommuInfo {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The region lies where the IOMMU does not reach.
    #[error(
        "the region of {len_bytes} bytes at {address:#x} is outside what the iommu can map \
         ({ranges}): a device could not reach it"
    )]
    OutOfReach {
        /// First address.
        address: usize,
        /// Its length.
        len_bytes: usize,
        /// What it can map.
        ranges: String,
    },
    /// The container has as many mappings as it may have.
    #[error(
        "the region of {len_bytes} bytes at {address:#x} would be one mapping more than the iommu \
         driver takes: raise dma_entry_limit of vfio_iommu_type1"
    )]
    Entries {
        /// First address.
        address: usize,
        /// Its length.
        len_bytes: usize,
    },
    /// The region cannot be mapped.
    #[error("cannot map the region of {len_bytes} bytes at {address:#x} in the iommu{advice}")]
    Map {
        /// First address.
        address: usize,
        /// Its length.
        len_bytes: usize,
        /// What to do, or nothing.
        advice: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
