//! Regions: long-lived mappings that devices, sockets and other processes can reach.

use std::alloc::Layout;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::copy;
use crate::error::DmaError;
use crate::lent::Lent;
use crate::sys::{self, GIB_1, MIB_2, PAGE};

/// Lowest address that regions are placed at.
///
/// Where an IOMMU maps a region at its own address, the address must fit the IOMMU's width.
/// The narrowest in use has 39 bits; the kernel's own choice lies above that.
pub const FIRST_ADDRESS: usize = 0x20_0000_0000;
/// Addresses from here on do not fit a 39-bit IOMMU.
pub const LIMIT_ADDRESS: usize = 1 << 39;

/// Where the search for the next free address begins. It only ever saves system calls.
static NEXT_ADDRESS: AtomicUsize = AtomicUsize::new(FIRST_ADDRESS);

/// What a region is asked to be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackingPreference {
    /// Hugepages if there are enough, else locked 4 KiB pages, with a notice.
    #[default]
    Auto,
    /// A memfd on 2 MiB hugepages, or an error.
    Hugetlb2M,
    /// A memfd on 1 GiB hugepages, or an error.
    Hugetlb1G,
    /// Anonymous hugepages of the default size through `hugepage-rs`, or an error. They have no
    /// descriptor and lie where the kernel puts them.
    HugepageRs,
    /// 4 KiB pages locked in RAM. If locking is refused: unlocked, with a notice.
    Locked4K,
    /// Ordinary 4 KiB pages, for RAM disks. Pages can be given back by [`Region::discard`].
    Plain4K,
}

/// What a region is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A memfd on 2 MiB hugepages.
    Hugetlb2M,
    /// A memfd on 1 GiB hugepages.
    Hugetlb1G,
    /// Anonymous hugepages.
    HugepageRs,
    /// 4 KiB pages, locked as they are touched.
    Locked4K,
    /// 4 KiB pages, not locked.
    Plain4K,
}

impl Backing {
    /// Whether these are hugepages.
    #[must_use]
    pub fn is_huge(self) -> bool {
        matches!(self, Self::Hugetlb2M | Self::Hugetlb1G | Self::HugepageRs)
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hugetlb2M => "hugetlb-2m",
            Self::Hugetlb1G => "hugetlb-1g",
            Self::HugepageRs => "hugepage-rs",
            Self::Locked4K => "locked-4k",
            Self::Plain4K => "plain-4k",
        })
    }
}

/// How to make a [`Region`].
#[derive(Debug, Clone, Default)]
pub struct RegionOptions {
    /// Bytes wanted. Rounded up to whole pages of the backing.
    pub len: usize,
    /// What to make it of.
    pub backing: BackingPreference,
    /// Where to put it. `None`: the next free address from [`FIRST_ADDRESS`] upwards.
    pub address: Option<usize>,
    /// The NUMA node to take the pages from.
    pub numa_node: Option<u32>,
    /// Make all pages resident now. Hugepages always are.
    pub prefault: bool,
    /// For 4 KiB backings: `Some(true)` asks for transparent hugepages, `Some(false)` asks for
    /// none (memory then grows by 4 KiB), `None` leaves it to the system.
    pub transparent_huge: Option<bool>,
}

/// One mapping, readable and writable, zeroed when made, unmapped when the last `Arc` goes.
///
/// Other threads, devices and processes may write it at any time. So no method hands out a Rust
/// reference into it: data is copied in and out. Offsets out of range panic, as with slices.
/// The regions of an iobuf pool are the exception: their bytes are reached through
/// [`crate::IoBuf`]s only, and the copying accessors panic.
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    backing: Backing,
    fd: Option<OwnedFd>,
    notice: Option<String>,
    resident: bool,
    /// Its bytes are reached through [`crate::IoBuf`]s, which do hand out references.
    sliced: bool,
}

// SAFETY: the mapping is plain memory, reached only through copies that allow for other writers.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps a region.
    ///
    /// # Errors
    /// With a backing asked for by name: that it cannot be had. With `Auto`: only if there is no
    /// memory at all, or if `address`, `len` or `numa_node` cannot be met.
    pub fn allocate(options: &RegionOptions) -> Result<Arc<Self>, DmaError> {
        Self::map(options).map(Arc::new)
    }

    /// A region whose bytes are handed out as slices, by their one holder at a time. The copying
    /// accessors refuse it: they could write under a slice.
    pub(crate) fn allocate_sliced(options: &RegionOptions) -> Result<Arc<Self>, DmaError> {
        let mut region = Self::map(options)?;
        region.sliced = true;
        Ok(Arc::new(region))
    }

    fn map(options: &RegionOptions) -> Result<Self, DmaError> {
        if options.len == 0 {
            return Err(DmaError::RegionLength {
                len: 0,
                why: "it would be empty",
            });
        }
        if options.len > isize::MAX as usize - GIB_1 {
            return Err(DmaError::RegionLength {
                len: options.len,
                why: "the address space is smaller",
            });
        }
        match options.backing {
            BackingPreference::Hugetlb2M => hugetlb(options, Backing::Hugetlb2M),
            BackingPreference::Hugetlb1G => hugetlb(options, Backing::Hugetlb1G),
            BackingPreference::HugepageRs => hugepage_rs(options),
            BackingPreference::Locked4K => small_pages(options, Backing::Locked4K, None),
            BackingPreference::Plain4K => small_pages(options, Backing::Plain4K, None),
            BackingPreference::Auto => auto(options),
        }
    }

    /// What it is made of.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The one sentence about what could not be had as asked, to be shown once.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// The descriptor that another process can map, if the backing has one.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Address of the first byte.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// Bytes mapped: the asked length, rounded up to whole pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a region has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether all of it was made resident when it was allocated. Registering a region that is
    /// not (with `io_uring`, VFIO or verbs) makes all of it resident.
    #[must_use]
    pub fn is_resident(&self) -> bool {
        self.resident
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `at` checked the range; no reference into a region is ever made.
        unsafe { copy::read_shared(from, into) }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn write_at(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: `at` checked the range; no reference into a region is ever made.
        unsafe { copy::write_shared(to, from) }
    }

    /// Loads one word that a device writes, and all that it wrote before it (acquire).
    ///
    /// The word is as the memory holds it: a little-endian device's word is for the caller to turn.
    ///
    /// # Panics
    /// If the word is not inside the region, or not aligned.
    #[inline]
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4), "a word is aligned to its size");
        let word = self.at(offset, 4).cast::<u32>();
        // SAFETY: inside the mapping, aligned, and only ever reached by atomics and opaque copies.
        unsafe { AtomicU32::from_ptr(word) }.load(Ordering::Acquire)
    }

    /// Stores one word that a device reads, after all that was stored before it (release).
    ///
    /// # Panics
    /// If the word is not inside the region, or not aligned.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "a word is aligned to its size");
        let word = self.at(offset, 4).cast::<u32>();
        // SAFETY: inside the mapping, aligned, and only ever reached by atomics and opaque copies.
        unsafe { AtomicU32::from_ptr(word) }.store(value, Ordering::Release);
    }

    /// Loads words in no order: an entry of a queue whose phase or index was loaded before.
    ///
    /// # Panics
    /// If the words are not inside the region, or not aligned.
    #[inline]
    #[must_use]
    pub fn load_words<const N: usize>(&self, offset: usize) -> [u64; N] {
        assert!(offset.is_multiple_of(8), "a word is aligned to its size");
        let first = self.at(offset, N * 8).cast::<u64>();
        // SAFETY: inside the mapping, aligned, and only ever reached by atomics and opaque copies.
        std::array::from_fn(|index| unsafe {
            AtomicU64::from_ptr(first.add(index)).load(Ordering::Relaxed)
        })
    }

    /// Stores words in no order: an entry of a queue whose index is stored afterwards.
    ///
    /// # Panics
    /// If the words are not inside the region, or not aligned.
    #[inline]
    pub fn store_words<const N: usize>(&self, offset: usize, words: &[u64; N]) {
        assert!(offset.is_multiple_of(8), "a word is aligned to its size");
        let first = self.at(offset, N * 8).cast::<u64>();
        for (index, word) in words.iter().enumerate() {
            // SAFETY: as in `load_words`.
            unsafe { AtomicU64::from_ptr(first.add(index)).store(*word, Ordering::Relaxed) };
        }
    }

    /// Zeroes bytes.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn zero(&self, offset: usize, len: usize) {
        let to = self.at(offset, len);
        // SAFETY: `at` checked the range; no reference into a region is ever made.
        unsafe { copy::zero_shared(to, len) }
    }

    /// Zeroes bytes, and gives whole pages back to the system where the backing can.
    ///
    /// # Panics
    /// If the range is not inside the region.
    pub fn discard(&self, offset: usize, len: usize) {
        let _ = self.at(offset, len);
        let first = offset.next_multiple_of(PAGE);
        let last = (offset + len) / PAGE * PAGE;
        if self.backing != Backing::Plain4K || last <= first {
            return self.zero(offset, len);
        }
        let pages = self.at(first, last - first);
        self.zero(offset, first - offset);
        self.zero(last, offset + len - last);
        // SAFETY: whole pages of a private anonymous mapping, which nobody holds references to.
        if !unsafe { sys::release(pages, last - first) } {
            self.zero(first, last - first);
        }
    }

    /// Compares bytes: the index of the first that differs, `None` if all are equal.
    ///
    /// # Panics
    /// If the range is not inside the region.
    #[must_use]
    pub fn compare_at(&self, offset: usize, with: &[u8]) -> Option<usize> {
        let _ = self.at(offset, with.len());
        let mut copied = [0u8; 512];
        for (index, part) in with.chunks(copied.len()).enumerate() {
            let at = index * copied.len();
            let ours = &mut copied[..part.len()];
            self.read_at(offset + at, ours);
            if ours != part {
                let differs = ours.iter().zip(part).position(|(a, b)| a != b);
                return differs.map(|position| at + position);
            }
        }
        None
    }

    /// Lends a range for a read that needs no copy.
    ///
    /// # Panics
    /// If the range is not inside the region, or has 4 GiB or more.
    #[must_use]
    pub fn lend(self: &Arc<Self>, offset: usize, len: usize) -> Lent {
        let _ = self.at(offset, len);
        Lent::new(Arc::clone(self), offset, len)
    }

    /// The address of a range inside the region.
    pub(crate) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            fits,
            "range {offset}+{len} is outside of a region of {} bytes",
            self.len
        );
        assert!(
            !self.sliced,
            "the memory of an iobuf pool is reached through its buffers"
        );
        // SAFETY: just checked to be inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Address of the first byte, with the right to reach the whole region.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("addr", &format_args!("{:#x}", self.addr()))
            .field("len", &self.len)
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.backing == Backing::HugepageRs {
            let layout = Layout::from_size_align(self.len, PAGE);
            let layout = layout.expect("the same layout was valid when it was allocated");
            // SAFETY: allocated by hugepage-rs with this layout; the last owner is going.
            return unsafe { hugepage_rs::dealloc(self.base.as_ptr(), layout) };
        }
        // SAFETY: our mapping; whoever uses it holds an Arc, and the last one is going.
        unsafe { sys::unmap(self.base, self.len) };
    }
}

// ---- how regions are made -------------------------------------------------------------------

fn auto(options: &RegionOptions) -> Result<Region, DmaError> {
    let gib_pages = options.len.div_ceil(GIB_1);
    if options.len >= GIB_1
        && options.len.is_multiple_of(GIB_1)
        && sys::free_hugepages(GIB_1) >= gib_pages
        && let Ok(region) = hugetlb(options, Backing::Hugetlb1G)
    {
        return Ok(region);
    }
    let shortage = match hugetlb(options, Backing::Hugetlb2M) {
        Ok(region) => return Ok(region),
        // These would fail with any backing.
        Err(error @ (DmaError::NumaNode { .. } | DmaError::RegionAddress { .. })) => {
            return Err(error);
        }
        Err(error) => error,
    };
    if options.address.is_none()
        && let Ok(region) = hugepage_rs(options)
    {
        return Ok(region);
    }
    let needed = options.len.div_ceil(MIB_2);
    let (why, missing) = match shortage {
        DmaError::Hugepages { free, .. } if free < needed => (
            format!("{free} of the {needed} hugepages of 2 MiB needed are free"),
            needed - free,
        ),
        _ => (
            format!("the kernel refuses the {needed} hugepages of 2 MiB needed"),
            needed,
        ),
    };
    let advice = format!("raise vm.nr_hugepages by {missing} for full speed");
    small_pages(options, Backing::Locked4K, Some((why, advice)))
}

fn hugetlb(options: &RegionOptions, backing: Backing) -> Result<Region, DmaError> {
    let page_bytes = if backing == Backing::Hugetlb1G {
        GIB_1
    } else {
        MIB_2
    };
    let len = options.len.next_multiple_of(page_bytes);
    let short = |source| DmaError::Hugepages {
        backing,
        len,
        needed: len / page_bytes,
        free: sys::free_hugepages(page_bytes),
        page_bytes,
        source,
    };
    let fd = sys::hugetlb_memfd(page_bytes, len).map_err(short)?;
    let (base, notice) = place(options.address, len, page_bytes, Some(fd.as_fd()))
        .map_err(|error| error.or(short))?;
    let mut region = Region {
        base,
        len,
        backing,
        fd: Some(fd),
        notice,
        resident: true,
        sliced: false,
    };
    finish_huge(&mut region, options, page_bytes)?;
    Ok(region)
}

fn hugepage_rs(options: &RegionOptions) -> Result<Region, DmaError> {
    let backing = Backing::HugepageRs;
    // hugepage-rs panics where the kernel has no hugepages at all: ask first.
    let page_bytes = sys::default_hugepage_bytes().unwrap_or(0);
    let len = options.len.next_multiple_of(page_bytes.max(PAGE));
    let short = |source| DmaError::Hugepages {
        backing,
        len,
        needed: len / page_bytes.max(PAGE),
        free: if page_bytes == 0 {
            0
        } else {
            sys::free_hugepages(page_bytes)
        },
        page_bytes: page_bytes.max(PAGE),
        source,
    };
    let Some(layout) = Layout::from_size_align(len, PAGE)
        .ok()
        .filter(|_| page_bytes != 0)
    else {
        return Err(short(io::Error::from(io::ErrorKind::Unsupported)));
    };
    // SAFETY: the layout is not empty.
    let pointer = unsafe { hugepage_rs::alloc(layout) };
    let Some(base) = NonNull::new(pointer) else {
        return Err(short(io::Error::last_os_error()));
    };
    let notice = (base.as_ptr().addr() >= LIMIT_ADDRESS).then(|| {
        format!(
            "{} MiB of anonymous hugepages lie at {:p}, which an IOMMU of 39 bits cannot map; \
             use the backing hugetlb-2m for such a machine",
            len >> 20,
            base.as_ptr()
        )
    });
    let mut region = Region {
        base,
        len,
        backing,
        fd: None,
        notice,
        resident: true,
        sliced: false,
    };
    finish_huge(&mut region, options, page_bytes)?;
    Ok(region)
}

/// NUMA node and prefault of a new hugepage mapping.
fn finish_huge(
    region: &mut Region,
    options: &RegionOptions,
    page_bytes: usize,
) -> Result<(), DmaError> {
    let (base, len, backing) = (region.base, region.len, region.backing);
    bind(region, options)?;
    sys::populate(base, len, page_bytes).map_err(|source| DmaError::Hugepages {
        backing,
        len,
        needed: len / page_bytes,
        free: sys::free_hugepages(page_bytes),
        page_bytes,
        source,
    })?;
    sys::advise(base, len, libc::MADV_DONTDUMP);
    Ok(())
}

fn small_pages(
    options: &RegionOptions,
    mut backing: Backing,
    fallback: Option<(String, String)>,
) -> Result<Region, DmaError> {
    let len = options.len.next_multiple_of(PAGE);
    let failed = |call| {
        move |source| DmaError::Map {
            call,
            len,
            backing,
            source,
        }
    };
    // Aligned to 2 MiB, so that transparent hugepages can be used where they are asked for.
    let align = if len >= MIB_2 && options.address.is_none() {
        MIB_2
    } else {
        PAGE
    };
    let (base, notice) =
        place(options.address, len, align, None).map_err(|error| error.or(failed("map")))?;
    let mut region = Region {
        base,
        len,
        backing,
        fd: None,
        notice,
        resident: false,
        sliced: false,
    };
    bind(&mut region, options)?;
    sys::advise(base, len, libc::MADV_DONTDUMP);
    match options.transparent_huge {
        Some(true) => sys::advise(base, len, libc::MADV_HUGEPAGE),
        Some(false) => sys::advise(base, len, libc::MADV_NOHUGEPAGE),
        None => true,
    };
    let mut unlocked = None;
    if backing == Backing::Locked4K {
        let limit = sys::raise_memlock_limit();
        if let Err(error) = sys::lock(base, len, !options.prefault) {
            backing = Backing::Plain4K;
            unlocked = Some(unlocked_sentence(&error, limit));
        }
    }
    region.backing = backing;
    region.resident = options.prefault;
    if options.prefault {
        sys::populate(base, len, PAGE).map_err(|source| DmaError::Map {
            call: "prefault",
            len,
            backing,
            source,
        })?;
    }
    let mib = len.div_ceil(1 << 20);
    let sentence = match (fallback, unlocked) {
        (None, None) => None,
        (Some((why, advice)), None) => Some(format!(
            "{mib} MiB of buffers are locked 4 KiB pages: {why}; {advice}"
        )),
        (Some((why, advice)), Some((refusal, remedy))) => Some(format!(
            "{mib} MiB of buffers are unlocked 4 KiB pages: {why} and {refusal}; {advice}, or \
             {remedy}"
        )),
        (None, Some((refusal, remedy))) => Some(format!(
            "{mib} MiB of buffers are unlocked 4 KiB pages: {refusal}; {remedy}"
        )),
    };
    region.notice = sentence.or(region.notice.take());
    Ok(region)
}

/// What was refused, and what to do about it.
fn unlocked_sentence(error: &io::Error, limit: u64) -> (String, &'static str) {
    let refusal = match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN) => {
            format!(
                "RLIMIT_MEMLOCK allows only {} KiB to be locked",
                limit >> 10
            )
        }
        _ => format!("locking failed ({error})"),
    };
    (
        refusal,
        "raise RLIMIT_MEMLOCK (`ulimit -l unlimited`, LimitMEMLOCK=infinity)",
    )
}

fn bind(region: &mut Region, options: &RegionOptions) -> Result<(), DmaError> {
    let Some(node) = options.numa_node else {
        return Ok(());
    };
    let Err(source) = sys::bind_to_node(region.base, region.len, node) else {
        return Ok(());
    };
    match source.raw_os_error() {
        // No NUMA in this kernel, or a sandbox forbids the call: the memory works all the same.
        Some(libc::ENOSYS | libc::EPERM) => {
            region.notice.get_or_insert_with(|| {
                format!(
                    "memory was not bound to numa node {node}: the kernel or a sandbox refuses \
                     mbind ({source}); start without a numa node or allow the call"
                )
            });
            Ok(())
        }
        _ => Err(DmaError::NumaNode { node, source }),
    }
}

/// Why a mapping could not be placed.
enum PlaceError {
    Known(DmaError),
    Io(io::Error),
}

impl PlaceError {
    fn or(self, make: impl FnOnce(io::Error) -> DmaError) -> DmaError {
        match self {
            Self::Known(error) => error,
            Self::Io(source) => make(source),
        }
    }
}

/// Maps at the address asked for, else at the next free low one, else anywhere with a notice.
fn place(
    address: Option<usize>,
    len: usize,
    align: usize,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(NonNull<u8>, Option<String>), PlaceError> {
    if let Some(address) = address {
        if !address.is_multiple_of(align) || address == 0 {
            let error = DmaError::RegionAddress {
                address,
                page_bytes: align,
            };
            return Err(PlaceError::Known(error));
        }
        let base = sys::map(Some(address), len, fd).map_err(PlaceError::Io)?;
        return Ok((base, None));
    }
    // A gap of one page between regions, so that a stray write past an end faults.
    let step = len.next_multiple_of(MIB_2) + MIB_2;
    let mut start = NEXT_ADDRESS.load(Ordering::Relaxed).next_multiple_of(align);
    let mut wrapped = false;
    // Bounded: each turn moves up by the region's own length, and the window is 384 GiB.
    loop {
        if start.checked_add(len).is_none_or(|end| end > LIMIT_ADDRESS) {
            if wrapped {
                break;
            }
            wrapped = true;
            start = FIRST_ADDRESS.next_multiple_of(align);
            continue;
        }
        match sys::map(Some(start), len, fd) {
            Ok(base) => {
                NEXT_ADDRESS.store(start + step, Ordering::Relaxed);
                return Ok((base, None));
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                start = (start + step).next_multiple_of(align);
            }
            Err(error) => return Err(PlaceError::Io(error)),
        }
    }
    let base = sys::map(None, len, fd).map_err(PlaceError::Io)?;
    let notice = format!(
        "{} MiB of memory lie at {:p} because the addresses below 512 GiB are taken; an IOMMU of \
         39 bits cannot map that, so take less memory on such a machine",
        len >> 20,
        base.as_ptr()
    );
    Ok((base, Some(notice)))
}
