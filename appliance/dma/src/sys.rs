//! System calls on mappings: map, bind, prefault, lock. One function per call, no policy.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

/// Base page size that the whole crate reckons with.
pub(crate) const PAGE: usize = 4096;
pub(crate) const MIB_2: usize = 2 << 20;
pub(crate) const GIB_1: usize = 1 << 30;

const MPOL_BIND: libc::c_int = 2;

/// Maps `len` bytes, zeroed, at `address` exactly if given. `EEXIST` if something is there.
pub(crate) fn map(
    address: Option<usize>,
    len: usize,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<NonNull<u8>> {
    let mut flags = match fd {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    if address.is_some() {
        flags |= libc::MAP_FIXED_NOREPLACE;
    }
    let wanted = ptr::without_provenance_mut::<libc::c_void>(address.unwrap_or(0));
    let raw_fd = fd.map_or(-1, |fd| fd.as_raw_fd());
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping; MAP_FIXED_NOREPLACE never replaces one that is there.
    let got = unsafe { libc::mmap(wanted, len, prot, flags, raw_fd, 0) };
    if got == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if address.is_some_and(|address| address != got.addr()) {
        // Kernels before 4.17 take the address as a hint.
        // SAFETY: just mapped by us, nobody knows of it.
        unsafe { libc::munmap(got, len) };
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    NonNull::new(got.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

/// # Safety
/// The range must be a mapping made by [`map`] that nothing uses any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, len: usize) {
    // SAFETY: as the caller vouches. A failure leaves the mapping there, which harms nobody.
    unsafe { libc::munmap(address.as_ptr().cast(), len) };
}

/// A memfd on hugepages of `page_bytes`, `len` long.
pub(crate) fn hugetlb_memfd(page_bytes: usize, len: usize) -> io::Result<OwnedFd> {
    let log2 = page_bytes.trailing_zeros() << libc::MFD_HUGE_SHIFT;
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | log2;
    // SAFETY: the name is a C string with static life.
    let fd = unsafe { libc::memfd_create(c"adit-dma".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: plain call on a descriptor of ours.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Binds a mapping to a NUMA node, before its pages are touched.
pub(crate) fn bind_to_node(address: NonNull<u8>, len: usize, node: u32) -> io::Result<()> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    let node = node as usize;
    let mut mask = [0 as libc::c_ulong; 1024 / BITS];
    let Some(word) = mask.get_mut(node / BITS) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    *word = 1 << (node % BITS);
    // SAFETY: the mask has the stated number of bits (the kernel reads one less than told).
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address.as_ptr(),
            len,
            MPOL_BIND,
            mask.as_ptr(),
            1024 + 1,
            0,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes every page of the mapping resident and writable.
pub(crate) fn populate(address: NonNull<u8>, len: usize, page_bytes: usize) -> io::Result<()> {
    // SAFETY: a mapping of ours; populating does not change its contents.
    let rc = unsafe { libc::madvise(address.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
    if rc == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    // A kernel before 5.14: touch the pages by hand. Nobody else knows the mapping yet.
    for offset in (0..len).step_by(page_bytes) {
        // SAFETY: inside the new, zeroed mapping.
        unsafe { address.as_ptr().add(offset).write_volatile(0) };
    }
    Ok(())
}

/// Gives advice on a mapping. Advice may be refused; nothing depends on it.
pub(crate) fn advise(address: NonNull<u8>, len: usize, advice: libc::c_int) -> bool {
    debug_assert!(matches!(
        advice,
        libc::MADV_DONTDUMP | libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE
    ));
    // SAFETY: a mapping of ours; these kinds of advice do not change contents.
    unsafe { libc::madvise(address.as_ptr().cast(), len, advice) == 0 }
}

/// Gives whole pages of a private anonymous mapping back; they read as zero afterwards.
///
/// # Safety
/// The range must lie in a private anonymous mapping, page-aligned, with no reference into it.
pub(crate) unsafe fn release(address: *mut u8, len: usize) -> bool {
    // SAFETY: as the caller vouches.
    unsafe { libc::madvise(address.cast(), len, libc::MADV_DONTNEED) == 0 }
}

/// Locks a mapping in RAM: all of it now, or each page as it is first touched.
pub(crate) fn lock(address: NonNull<u8>, len: usize, on_fault: bool) -> io::Result<()> {
    let flags = if on_fault { libc::MLOCK_ONFAULT } else { 0 };
    // SAFETY: locking does not change contents. Through syscall(): musl has no wrapper.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mlock2,
            address.as_ptr(),
            len,
            libc::c_long::from(flags),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises the limit of locked memory as far as we may. Returns the soft limit in force, bytes.
pub(crate) fn raise_memlock_limit() -> u64 {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structures live on this stack for the length of the calls.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) == 0 {
            return u64::MAX;
        }
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut now) != 0 {
            return 0;
        }
        let to_hard = libc::rlimit {
            rlim_cur: now.rlim_max,
            ..now
        };
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const to_hard) == 0 {
            return to_hard.rlim_cur;
        }
    }
    now.rlim_cur
}

/// Free hugepages of one size, as sysfs tells; 0 if it does not.
pub(crate) fn free_hugepages(page_bytes: usize) -> usize {
    let path = format!(
        "/sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages",
        page_bytes / 1024
    );
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// The kernel's default hugepage size in bytes, if it has hugepages at all.
pub(crate) fn default_hugepage_bytes() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
        .filter(|bytes| bytes.is_power_of_two())
}
