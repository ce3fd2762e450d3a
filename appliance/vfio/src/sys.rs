//! The system calls: VFIO's ioctls, each with its own argument, and the mapping of a BAR.
#![expect(
    unsafe_code,
    reason = "ioctls take pointers to structures; a BAR is mapped and accessed by pointer"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use dma::Region;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE, vfio_device_info,
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
    vfio_irq_info, vfio_irq_set, vfio_region_info,
};

/// Longest answer with capabilities that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The number of one of VFIO's ioctls: all are `_IO(VFIO_TYPE, VFIO_BASE + index)`.
const fn number(index: u32) -> libc::Ioctl {
    ((VFIO_TYPE as u32) << 8 | (VFIO_BASE + index)) as libc::Ioctl
}

const GET_API_VERSION: libc::Ioctl = number(0);
const CHECK_EXTENSION: libc::Ioctl = number(1);
const SET_IOMMU: libc::Ioctl = number(2);
const GROUP_GET_STATUS: libc::Ioctl = number(3);
const GROUP_SET_CONTAINER: libc::Ioctl = number(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = number(6);
const DEVICE_GET_INFO: libc::Ioctl = number(7);
const DEVICE_GET_REGION_INFO: libc::Ioctl = number(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = number(9);
const DEVICE_SET_IRQS: libc::Ioctl = number(10);
const DEVICE_RESET: libc::Ioctl = number(11);
const IOMMU_GET_INFO: libc::Ioctl = number(12);
const IOMMU_MAP_DMA: libc::Ioctl = number(13);
const IOMMU_UNMAP_DMA: libc::Ioctl = number(14);

/// An ioctl whose argument is a number or nothing.
///
/// # Safety
/// The ioctl must not take its argument for an address.
unsafe fn with_number(
    fd: BorrowedFd<'_>,
    ioctl: libc::Ioctl,
    value: libc::c_ulong,
) -> io::Result<i32> {
    // SAFETY: the caller's promise: nothing is read or written through the argument.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl, value) };
    check(result)
}

/// An ioctl on a structure.
///
/// # Safety
/// The ioctl must read and write no more than the `T`, or what its `argsz` says is there.
unsafe fn with<T>(fd: BorrowedFd<'_>, ioctl: libc::Ioctl, argument: &mut T) -> io::Result<i32> {
    // SAFETY: the caller's promise; the reference is valid for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl, std::ptr::from_mut(argument)) };
    check(result)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn size_of_argument<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("structures of the interface are small")
}

pub(crate) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: takes no argument.
    unsafe { with_number(container, GET_API_VERSION, 0) }
}

pub(crate) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> io::Result<bool> {
    // SAFETY: the argument is a number.
    unsafe { with_number(container, CHECK_EXTENSION, extension.into()) }.map(|there| there > 0)
}

pub(crate) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    unsafe { with_number(container, SET_IOMMU, kind.into()) }.map(drop)
}

/// The flags of a group.
pub(crate) fn group_status(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio_group_status {
        argsz: size_of_argument::<vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: this is the structure of this ioctl, with its size in argsz.
    unsafe { with(group, GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags)
}

pub(crate) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd: RawFd = container.as_raw_fd();
    // SAFETY: the argument is the address of a descriptor, a 32-bit integer.
    unsafe { with(group, GROUP_SET_CONTAINER, &mut fd) }.map(drop)
}

pub(crate) fn device_fd(group: BorrowedFd<'_>, address: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: the argument is a string that ends with a NUL; it is only read.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, address.as_ptr()) };
    let fd = check(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info {
        argsz: size_of_argument::<vfio_device_info>(),
        ..vfio_device_info::default()
    };
    // SAFETY: this is the structure of this ioctl, with its size in argsz.
    unsafe { with(device, DEVICE_GET_INFO, &mut info) }?;
    Ok(info)
}

/// A region, and the whole answer with its capabilities (`cap_offset` counts from its start).
pub(crate) fn region_info(
    device: BorrowedFd<'_>,
    index: u32,
) -> io::Result<(vfio_region_info, Vec<u8>)> {
    let first = vfio_region_info {
        argsz: size_of_argument::<vfio_region_info>(),
        index,
        ..vfio_region_info::default()
    };
    // SAFETY: the structure is the one of this ioctl, begins with argsz, and holds integers only.
    unsafe { answer(device, DEVICE_GET_REGION_INFO, first, |info| info.argsz) }
}

/// What the IOMMU says of itself, and the whole answer with its capabilities.
pub(crate) fn iommu_info(
    container: BorrowedFd<'_>,
) -> io::Result<(vfio_iommu_type1_info, Vec<u8>)> {
    let first = vfio_iommu_type1_info {
        argsz: size_of_argument::<vfio_iommu_type1_info>(),
        ..vfio_iommu_type1_info::default()
    };
    // SAFETY: the structure is the one of this ioctl, begins with argsz, and holds integers only.
    unsafe { answer(container, IOMMU_GET_INFO, first, |info| info.argsz) }
}

/// Asks twice: for the length of the answer, then for all of it.
///
/// # Safety
/// `T` is the structure of the ioctl, begins with a 32-bit `argsz`, and holds integers only; the
/// kernel writes no more bytes than `argsz` says.
unsafe fn answer<T: Copy>(
    fd: BorrowedFd<'_>,
    ioctl: libc::Ioctl,
    first: T,
    argsz: impl Fn(&T) -> u32,
) -> io::Result<(T, Vec<u8>)> {
    let mut info = first;
    // SAFETY: the caller's promise.
    unsafe { with(fd, ioctl, &mut info) }?;
    let wanted = argsz(&info) as usize;
    let len = wanted.clamp(size_of::<T>(), ANSWER_BYTES_MAX);
    // Words, so that the structure at its start is aligned.
    let mut words = vec![0u64; len.div_ceil(8)];
    let start = words.as_mut_ptr();
    let told = u32::try_from(len).unwrap_or(u32::MAX);
    // SAFETY: the buffer holds at least a `T` and is aligned for it (no field is wider than 64
    // bits); argsz, the first field, says how much there is.
    let result = unsafe {
        start.cast::<T>().write(first);
        start.cast::<u32>().write(told);
        libc::ioctl(fd.as_raw_fd(), ioctl, start)
    };
    check(result)?;
    // SAFETY: written above and then by the kernel; integers have no invalid values.
    let (info, bytes) = unsafe {
        (
            start.cast::<T>().read(),
            std::slice::from_raw_parts(start.cast::<u8>(), len).to_vec(),
        )
    };
    Ok((info, bytes))
}

pub(crate) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_irq_info> {
    let mut info = vfio_irq_info {
        argsz: size_of_argument::<vfio_irq_info>(),
        index,
        ..vfio_irq_info::default()
    };
    // SAFETY: this is the structure of this ioctl, with its size in argsz.
    unsafe { with(device, DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(info)
}

/// Has interrupts `0..fds.len()` of an index write these eventfds. None: takes all away.
pub(crate) fn set_irqs(
    device: BorrowedFd<'_>,
    index: u32,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let data = if fds.is_empty() {
        VFIO_IRQ_SET_DATA_NONE
    } else {
        VFIO_IRQ_SET_DATA_EVENTFD
    };
    let count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
    let header = size_of_argument::<vfio_irq_set>();
    // The header is five words (argsz, flags, index, start, count); descriptors follow.
    let mut words = vec![
        header.saturating_add(count.saturating_mul(4)),
        data | VFIO_IRQ_SET_ACTION_TRIGGER,
        index,
        0,
        count,
    ];
    words.extend(fds.iter().map(|fd| fd.as_raw_fd().cast_unsigned()));
    // SAFETY: the words are the structure of this ioctl with its data, and argsz is their length.
    // The kernel takes its own references of the eventfds.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_SET_IRQS, words.as_mut_ptr()) };
    check(result).map(drop)
}

pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { with_number(device, DEVICE_RESET, 0) }.map(drop)
}

/// Lets the devices of a container reach a region at its own address.
///
/// # Safety
/// The region must stay alive until [`unmap_dma`] or until the container has no groups: the kernel
/// pins its pages, and devices write them whatever this process has there by then.
pub(crate) unsafe fn map_dma(container: BorrowedFd<'_>, region: &Region) -> io::Result<()> {
    let mut map = vfio_iommu_type1_dma_map {
        argsz: size_of_argument::<vfio_iommu_type1_dma_map>(),
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: region.addr() as u64,
        iova: region.addr() as u64,
        size: region.len() as u64,
    };
    // SAFETY: this is the structure of this ioctl; the memory it names is the region's, all of it.
    unsafe { with(container, IOMMU_MAP_DMA, &mut map) }.map(drop)
}

pub(crate) fn unmap_dma(container: BorrowedFd<'_>, iova: u64, size: u64) -> io::Result<()> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: size_of_argument::<vfio_iommu_type1_dma_unmap>(),
        iova,
        size,
        ..vfio_iommu_type1_dma_unmap::default()
    };
    // SAFETY: this is the structure of this ioctl; without flags it has no data behind it.
    unsafe { with(container, IOMMU_UNMAP_DMA, &mut unmap) }.map(drop)
}

/// A mapped part of a BAR.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: device registers; every access is one volatile load or store, which may race.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `len` bytes at `offset` of a device's descriptor.
    pub(crate) fn new(device: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                device.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len })
    }

    #[inline]
    fn register(&self, offset: usize) -> *mut u32 {
        assert!(
            offset.is_multiple_of(4) && offset + 4 <= self.len,
            "registers are aligned and inside the mapping"
        );
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.as_ptr().add(offset) }.cast()
    }

    #[inline]
    pub(crate) fn read32(&self, offset: usize) -> u32 {
        // SAFETY: mapped and aligned; a function that is gone reads as all ones.
        u32::from_le(unsafe { self.register(offset).read_volatile() })
    }

    #[inline]
    pub(crate) fn write32(&self, offset: usize, value: u32) {
        // SAFETY: mapped and aligned; what the device does with it is the device's.
        unsafe { self.register(offset).write_volatile(value.to_le()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no reference into it was ever made.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
