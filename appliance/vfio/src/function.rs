//! A PCI function in our hands: configuration space, BAR 0, MSI-X, reset.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dma::Region;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD,
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
};

use crate::capabilities::RegionCaps;
use crate::container::Container;
use crate::error::VfioError;
use crate::place::Sysfs;
use crate::sys::{self, Mapped};

/// Configuration space: the command register and its bits.
const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Configuration space: vendor; all ones when the function is gone.
const VENDOR: u64 = 0x00;

const PAGE: u64 = 4096;
/// Longest BAR that is mapped.
const BAR_BYTES_MAX: u64 = 1 << 30;

/// A function of this process. It masters the bus only while told to; dropped, it stops, lets go of
/// its regions and gives the function back to vfio-pci, which resets it.
#[derive(Debug)]
pub struct Function {
    address: String,
    group: u32,
    container: Arc<Container>,
    /// Regions that are mapped for it, by address.
    regions: Mutex<BTreeMap<usize, Arc<Region>>>,
    can_reset: bool,
    config_offset: u64,
    /// Taken apart by `drop` in its order.
    open: Option<Open>,
    vectors: Vec<EventFd>,
    request: Option<EventFd>,
}

#[derive(Debug)]
struct Open {
    bar: Bar,
    device: File,
}

#[derive(Debug)]
struct Bar {
    len: u64,
    /// Where it is in the device's descriptor.
    file_offset: u64,
    /// Parts that are mapped: offset in the BAR, length, mapping.
    areas: Vec<(u64, u64, Mapped)>,
}

impl Function {
    /// Opens a function that is with vfio-pci. Of its MSI-X vectors at most `vectors_max` are used.
    ///
    /// # Errors
    /// It is not there, not with vfio-pci, in no viable group, somebody else has it, or it is not
    /// what is needed.
    pub fn open(
        container: &Arc<Container>,
        address: &str,
        vectors_max: u16,
    ) -> Result<Arc<Self>, VfioError> {
        let sysfs = Sysfs::default();
        let group = sysfs.group(address)?;
        let device: File = container.open_device(&sysfs, group, address)?.into();
        let mut function = Self {
            address: address.to_owned(),
            group,
            container: Arc::clone(container),
            regions: Mutex::default(),
            can_reset: false,
            config_offset: 0,
            open: None,
            vectors: Vec::new(),
            request: None,
        };
        function.set_up(device, vectors_max)?;
        Ok(Arc::new(function))
    }

    fn set_up(&mut self, device: File, vectors_max: u16) -> Result<(), VfioError> {
        let fd = device.as_fd();
        let info = sys::device_info(fd).map_err(self.call("read the properties"))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(self.unsupported("it is no PCI function"));
        }
        self.can_reset = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let (config, _) = sys::region_info(fd, VFIO_PCI_CONFIG_REGION_INDEX)
            .map_err(self.call("find the configuration space"))?;
        self.config_offset = config.offset;
        // Registers answer only with this on. Bus mastering is for the owner to turn on.
        let command = self.read_config16(&device, COMMAND);
        let command = command.map_err(self.call("read the command register"))?;
        let wanted = (command | COMMAND_MEMORY) & !COMMAND_BUS_MASTER;
        let written = self.write_config16(&device, COMMAND, wanted);
        written.map_err(self.call("write the command register"))?;
        let bar = self.map_bar(fd)?;
        self.vectors = self.enable_vectors(fd, vectors_max)?;
        self.request = self.watch_requests(fd)?;
        self.open = Some(Open { bar, device });
        Ok(())
    }

    fn map_bar(&self, fd: BorrowedFd<'_>) -> Result<Bar, VfioError> {
        let (info, answer) =
            sys::region_info(fd, VFIO_PCI_BAR0_REGION_INDEX).map_err(self.call("find BAR 0"))?;
        if info.size == 0 {
            return Err(self.unsupported("it has no BAR 0"));
        }
        let caps = if info.flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
            RegionCaps::default()
        } else {
            RegionCaps::parse(&answer, info.cap_offset)
        };
        let mut bar = Bar {
            len: info.size,
            file_offset: info.offset,
            areas: Vec::new(),
        };
        if info.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Ok(bar);
        }
        for (offset, len) in mappable(&caps, info.size) {
            let mapped = info
                .offset
                .checked_add(offset)
                .map(|at| Mapped::new(fd, at, len as usize));
            let mapped = mapped.unwrap_or_else(|| Err(io::ErrorKind::InvalidData.into()));
            let mapped = mapped.map_err(self.call("map BAR 0"))?;
            bar.areas.push((offset, len, mapped));
        }
        Ok(bar)
    }

    fn enable_vectors(
        &self,
        fd: BorrowedFd<'_>,
        vectors_max: u16,
    ) -> Result<Vec<EventFd>, VfioError> {
        let info = sys::irq_info(fd, VFIO_PCI_MSIX_IRQ_INDEX);
        let there = info.map_or(0, |info| info.count);
        let count = there.min(vectors_max.into());
        let vectors: Vec<EventFd> = (0..count)
            .map(|_| event_fd())
            .collect::<Result<_, _>>()
            .map_err(self.call("make eventfds for the interrupts"))?;
        let fds: Vec<BorrowedFd<'_>> = vectors.iter().map(AsFd::as_fd).collect();
        if !fds.is_empty() {
            sys::set_irqs(fd, VFIO_PCI_MSIX_IRQ_INDEX, &fds)
                .map_err(self.call("turn on the MSI-X vectors"))?;
        }
        Ok(vectors)
    }

    /// The kernel tells by this that it wants the function back.
    fn watch_requests(&self, fd: BorrowedFd<'_>) -> Result<Option<EventFd>, VfioError> {
        let info = sys::irq_info(fd, VFIO_PCI_REQ_IRQ_INDEX);
        let is_there = info.is_ok_and(|i| i.count > 0 && i.flags & VFIO_IRQ_INFO_EVENTFD != 0);
        if !is_there {
            return Ok(None);
        }
        let request = event_fd().map_err(self.call("make an eventfd for removal requests"))?;
        sys::set_irqs(fd, VFIO_PCI_REQ_IRQ_INDEX, &[request.as_fd()])
            .map_err(self.call("watch removal requests"))?;
        Ok(Some(request))
    }

    fn call(&self, action: &'static str) -> impl Fn(io::Error) -> VfioError + use<> {
        let (address, group) = (self.address.clone(), self.group);
        move |source| VfioError::Call {
            action,
            address: address.clone(),
            group,
            source,
        }
    }

    fn unsupported(&self, what: &'static str) -> VfioError {
        VfioError::Unsupported {
            address: self.address.clone(),
            what,
        }
    }

    fn open_parts(&self) -> &Open {
        let open = self.open.as_ref();
        open.expect("a function is handed out open, and closed by its drop only")
    }

    /// Its address, `0000:01:00.0`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its IOMMU group.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.group
    }

    /// Its container.
    #[must_use]
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    // BAR 0.

    /// Bytes of BAR 0.
    #[must_use]
    pub fn bar_len(&self) -> u64 {
        self.open_parts().bar.len
    }

    /// Reads a register of BAR 0. A function that is gone reads as all ones.
    ///
    /// # Panics
    /// If `offset` is not aligned.
    #[inline]
    #[must_use]
    pub fn read32(&self, offset: u32) -> u32 {
        let open = self.open_parts();
        match open.bar.area(offset) {
            Some((area, at)) => area.read32(at),
            None => open.slow_read32(offset),
        }
    }

    /// Writes a register of BAR 0, after all earlier stores to memory. To a function that is gone,
    /// nothing happens.
    ///
    /// # Panics
    /// If `offset` is not aligned.
    #[inline]
    pub fn write32(&self, offset: u32, value: u32) {
        // Device memory is uncached: the store does not pass earlier ones on the machines that this
        // runs on (x86-64). The fence keeps the compiler from it as well.
        fence(Ordering::Release);
        let open = self.open_parts();
        match open.bar.area(offset) {
            Some((area, at)) => area.write32(at, value),
            None => open.slow_write32(offset, value),
        }
    }

    // Memory.

    /// Lets the function reach a region at the region's own address. Again: nothing happens.
    ///
    /// # Errors
    /// Outside of what the IOMMU reaches, too many mappings, or too much locked memory.
    pub fn map(&self, region: &Arc<Region>) -> Result<(), VfioError> {
        let mut regions = self.regions();
        if regions.contains_key(&region.addr()) {
            return Ok(());
        }
        self.container.map(region)?;
        regions.insert(region.addr(), Arc::clone(region));
        Ok(())
    }

    /// Takes a region away from the function, unless another function of the container has it.
    pub fn unmap(&self, region: &Arc<Region>) {
        if let Some(region) = self.regions().remove(&region.addr()) {
            self.container.unmap(&region);
        }
    }

    fn regions(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<Region>>> {
        // A panic while the lock was held left a plain map behind.
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Interrupts.

    /// MSI-X vectors that are in use; 0: it has none.
    #[must_use]
    pub fn vector_count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// The eventfd of a vector.
    #[must_use]
    pub fn vector_fd(&self, vector: u16) -> Option<BorrowedFd<'_>> {
        self.vectors.get(usize::from(vector)).map(AsFd::as_fd)
    }

    /// Makes the eventfd of a vector unreadable until the next interrupt.
    pub fn clear_vector(&self, vector: u16) {
        if let Some(event) = self.vectors.get(usize::from(vector)) {
            // Fails only with EAGAIN: it was clear.
            let _ = event.read();
        }
    }

    /// Readable once the kernel wants the function back. Close it then: whoever unplugs or unbinds
    /// it waits.
    #[must_use]
    pub fn request_fd(&self) -> Option<BorrowedFd<'_>> {
        self.request.as_ref().map(AsFd::as_fd)
    }

    /// Whether the kernel wants the function back. It asks again while it has to wait.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        let request = self.request.as_ref();
        request.is_some_and(|request| request.read().is_ok())
    }

    // Configuration space.

    /// Lets the function reach memory, or stops it.
    ///
    /// # Errors
    /// Its configuration space cannot be written.
    pub fn set_bus_master(&self, on: bool) -> io::Result<()> {
        let device = &self.open_parts().device;
        let command = self.read_config16(device, COMMAND)?;
        let wanted = if on {
            command | COMMAND_BUS_MASTER | COMMAND_MEMORY
        } else {
            command & !COMMAND_BUS_MASTER
        };
        if wanted == command {
            return Ok(());
        }
        self.write_config16(device, COMMAND, wanted)
    }

    /// Resets the function. The kernel keeps its configuration space and its vectors.
    ///
    /// # Errors
    /// It has no reset, or is gone afterwards.
    pub fn reset(&self) -> io::Result<()> {
        if !self.can_reset {
            let what = "the function has no reset of its own";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let device = &self.open_parts().device;
        sys::reset(device.as_fd())?;
        // Through the kernel: where the function did not come back, its registers would not answer.
        if self.read_config16(device, VENDOR)? == u16::MAX {
            let what = "the function did not come back from its reset";
            return Err(io::Error::new(io::ErrorKind::NotConnected, what));
        }
        Ok(())
    }

    /// Reads 16 bits of the configuration space.
    ///
    /// # Errors
    /// What the system says.
    pub fn config16(&self, offset: u16) -> io::Result<u16> {
        self.read_config16(&self.open_parts().device, offset.into())
    }

    fn read_config16(&self, device: &File, offset: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        device.read_exact_at(&mut bytes, self.config_offset + offset)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn write_config16(&self, device: &File, offset: u64, value: u16) -> io::Result<()> {
        device.write_all_at(&value.to_le_bytes(), self.config_offset + offset)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            // A function that is gone does no DMA either.
            let command = self.read_config16(&open.device, COMMAND);
            let _ = command.and_then(|command| {
                self.write_config16(&open.device, COMMAND, command & !COMMAND_BUS_MASTER)
            });
        }
        // The mapping of the BAR holds the device's descriptor: it goes first. With the descriptor
        // the kernel stops and resets the function; only then may it lose its memory.
        if let Some(Open { bar, device }) = self.open.take() {
            drop(bar);
            drop(device);
        }
        for region in std::mem::take(&mut *self.regions()).into_values() {
            self.container.unmap(&region);
        }
        self.container.function_closed(self.group);
    }
}

impl Bar {
    #[inline]
    fn area(&self, offset: u32) -> Option<(&Mapped, usize)> {
        let offset = u64::from(offset);
        let holds =
            |(start, len, _): &&(u64, u64, Mapped)| *start <= offset && offset + 4 <= *start + *len;
        let (start, _, mapped) = self.areas.iter().find(holds)?;
        Some((mapped, (offset - start) as usize))
    }
}

impl Open {
    #[cold]
    fn slow_read32(&self, offset: u32) -> u32 {
        let mut bytes = [0xff; 4];
        let at = self.bar.file_offset + u64::from(offset);
        match self.device.read_exact_at(&mut bytes, at) {
            Ok(()) => u32::from_le_bytes(bytes),
            Err(_) => u32::MAX,
        }
    }

    #[cold]
    fn slow_write32(&self, offset: u32, value: u32) {
        let at = self.bar.file_offset + u64::from(offset);
        // As to a mapped register of a function that is gone: nothing happens.
        let _ = self.device.write_all_at(&value.to_le_bytes(), at);
    }
}

fn event_fd() -> io::Result<EventFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    Ok(EventFd::from_value_and_flags(0, flags)?)
}

/// The whole pages of a region that may be mapped.
fn mappable(caps: &RegionCaps, size: u64) -> Vec<(u64, u64)> {
    let areas = match &caps.areas {
        Some(areas) if !caps.msix_mappable => areas.clone(),
        _ => vec![(0, size)],
    };
    let is_sound = |(offset, len): &(u64, u64)| {
        offset.is_multiple_of(PAGE)
            && *len >= PAGE
            && *len <= BAR_BYTES_MAX
            && offset.checked_add(*len).is_some_and(|end| end <= size)
    };
    let whole = areas.into_iter().map(|(at, len)| (at, len / PAGE * PAGE));
    whole.filter(is_sound).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_inside_the_bar_are_mapped() {
        let all = RegionCaps::default();
        assert_eq!(mappable(&all, 0x4000), [(0, 0x4000)]);
        assert_eq!(mappable(&all, 0x800), []);
        let sparse = RegionCaps {
            areas: Some(vec![
                (0, 0x2000),
                (0x3000, 0x1000),
                (0x800, 0x1000),
                (0x4000, 0x1000),
            ]),
            msix_mappable: false,
        };
        assert_eq!(mappable(&sparse, 0x4000), [(0, 0x2000), (0x3000, 0x1000)]);
        let whole = RegionCaps {
            msix_mappable: true,
            ..sparse
        };
        assert_eq!(mappable(&whole, 0x4000), [(0, 0x4000)]);
    }
}
