//! The container: the groups of this process, and the memory that their devices reach.
#![expect(
    unsafe_code,
    reason = "memory that devices write must outlive its mapping, which is kept here"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dma::Region;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU,
};

use crate::capabilities::IommuInfo;
use crate::error::VfioError;
use crate::place::Sysfs;
use crate::sys;

/// The groups of this process behind one set of IOMMU mappings. One is enough for a process: a
/// region is then mapped once for all devices.
#[derive(Debug)]
pub struct Container {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<u32, Group>,
    /// By address.
    maps: BTreeMap<usize, Mapping>,
}

#[derive(Debug)]
struct Group {
    file: File,
    functions: usize,
}

#[derive(Debug)]
struct Mapping {
    /// Keeps the memory while devices reach it.
    region: Arc<Region>,
    users: usize,
}

impl Container {
    /// An empty container.
    ///
    /// # Errors
    /// There is no VFIO, or not the kind that is needed.
    pub fn open() -> Result<Arc<Self>, VfioError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/vfio/vfio")
            .map_err(|source| VfioError::Container { source })?;
        let of_kernel = |what| VfioError::Kernel { what };
        let version = sys::api_version(file.as_fd());
        if version.ok() != i32::try_from(VFIO_API_VERSION).ok() {
            return Err(of_kernel("its API has another version"));
        }
        if !sys::has_extension(file.as_fd(), VFIO_TYPE1v2_IOMMU).unwrap_or(false) {
            return Err(of_kernel(
                "it has no type 1 v2 IOMMU driver: load the module vfio_iommu_type1",
            ));
        }
        Ok(Arc::new(Self {
            file,
            state: Mutex::default(),
        }))
    }

    /// What the IOMMU takes now. It can take less once a further group is there.
    ///
    /// # Errors
    /// There is no group yet.
    pub fn iommu_info(&self) -> Result<IommuInfo, VfioError> {
        let asked = sys::iommu_info(self.file.as_fd());
        let (info, answer) = asked.map_err(|source| VfioError::IommuInfo { source })?;
        Ok(IommuInfo::parse(
            info.iova_pgsizes,
            &answer,
            info.cap_offset,
        ))
    }

    /// Regions that are mapped, with their lengths.
    #[must_use]
    pub fn mapped(&self) -> Vec<(usize, usize)> {
        let state = self.lock();
        let lengths = state.maps.iter();
        lengths.map(|(at, map)| (*at, map.region.len())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held left counts that err on the side of staying mapped.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor of a function, whose group joins the container.
    pub(crate) fn open_device(
        &self,
        sysfs: &Sysfs,
        group: u32,
        address: &str,
    ) -> Result<OwnedFd, VfioError> {
        let call = |action| {
            move |source| VfioError::Call {
                action,
                address: address.to_owned(),
                group,
                source,
            }
        };
        let name = std::ffi::CString::new(address).map_err(|_| VfioError::Missing {
            address: address.to_owned(),
        })?;
        let mut state = self.lock();
        if !state.groups.contains_key(&group) {
            let file = self.join(sysfs, group, address, state.groups.is_empty())?;
            let functions = 0;
            state.groups.insert(group, Group { file, functions });
        }
        let State { groups, maps } = &mut *state;
        let Some(entry) = groups.get_mut(&group) else {
            unreachable!("it was there or has just been put there");
        };
        let opened = sys::device_fd(entry.file.as_fd(), &name);
        match opened {
            Ok(_) => entry.functions += 1,
            Err(_) if entry.functions == 0 => leave(groups, maps, group),
            Err(_) => {}
        }
        opened.map_err(call("get the descriptor"))
    }

    fn join(
        &self,
        sysfs: &Sysfs,
        group: u32,
        address: &str,
        is_first: bool,
    ) -> Result<File, VfioError> {
        let call = |action| {
            move |source| VfioError::Call {
                action,
                address: address.to_owned(),
                group,
                source,
            }
        };
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/vfio/{group}"));
        let file = opened.map_err(|source| VfioError::Group {
            group,
            address: address.to_owned(),
            advice: advice_for_open(&source),
            source,
        })?;
        let status = sys::group_status(file.as_fd()).map_err(call("read the group's status"))?;
        if status & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(VfioError::NotViable {
                group,
                address: address.to_owned(),
                members: sysfs.members(group),
            });
        }
        sys::set_container(file.as_fd(), self.file.as_fd())
            .map_err(call("add the group to the container"))?;
        if is_first {
            sys::set_iommu(self.file.as_fd(), VFIO_TYPE1v2_IOMMU)
                .map_err(call("turn the iommu on for the group"))?;
        }
        Ok(file)
    }

    /// A function of the group is closed, and has let go of its regions.
    pub(crate) fn function_closed(&self, group: u32) {
        let State { groups, maps } = &mut *self.lock();
        if let Some(entry) = groups.get_mut(&group) {
            entry.functions -= 1;
            if entry.functions == 0 {
                leave(groups, maps, group);
            }
        }
    }

    /// Maps a region at its own address, or counts one user more.
    pub(crate) fn map(&self, region: &Arc<Region>) -> Result<(), VfioError> {
        let mut state = self.lock();
        let (address, len_bytes) = (region.addr(), region.len());
        // A region that is mapped stays alive, so none other can be at its address.
        if let Some(mapping) = state.maps.get_mut(&address) {
            mapping.users += 1;
            return Ok(());
        }
        let info = self.iommu_info()?;
        if !info.reaches(address as u64, len_bytes as u64) {
            return Err(VfioError::OutOfReach {
                address,
                len_bytes,
                ranges: told(&info),
            });
        }
        if info.dma_avail == Some(0) {
            return Err(VfioError::Entries { address, len_bytes });
        }
        // SAFETY: `state.maps` holds the region until it is unmapped, or until the last group has left.
        let mapped = unsafe { sys::map_dma(self.file.as_fd(), region) };
        mapped.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSPC) => VfioError::Entries { address, len_bytes },
            errno => VfioError::Map {
                address,
                len_bytes,
                advice: advice_for_map(errno),
                source,
            },
        })?;
        let region = Arc::clone(region);
        state.maps.insert(address, Mapping { region, users: 1 });
        Ok(())
    }

    /// One user less; the last takes the region away from the devices.
    pub(crate) fn unmap(&self, region: &Arc<Region>) {
        let mut state = self.lock();
        let Some(mapping) = state.maps.get_mut(&region.addr()) else {
            return;
        };
        mapping.users -= 1;
        if mapping.users > 0 {
            return;
        }
        let (iova, len) = (region.addr() as u64, region.len() as u64);
        if sys::unmap_dma(self.file.as_fd(), iova, len).is_ok() {
            state.maps.remove(&region.addr());
        } else {
            // The devices may still reach it: it stays until the container has no groups.
            mapping.users = 1;
        }
    }
}

/// Takes a group out. With the last one the kernel drops all mappings.
fn leave(groups: &mut BTreeMap<u32, Group>, maps: &mut BTreeMap<usize, Mapping>, group: u32) {
    // Closing its descriptor takes it out of the container: no device of it is open.
    drop(groups.remove(&group).map(|group| group.file));
    if groups.is_empty() {
        maps.clear();
    }
}

fn advice_for_open(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another process has the group: stop it, or give it back",
        Some(libc::EACCES | libc::EPERM) => "this process has no right to read and write it",
        Some(libc::ENOENT) => "the node is not there (yet): is vfio-pci loaded, and does udev run?",
        _ => "see below",
    }
}

fn advice_for_map(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::ENOMEM) => ": raise the limit of locked memory (RLIMIT_MEMLOCK, LimitMEMLOCK)",
        Some(libc::EEXIST) => ": something is mapped at its addresses already",
        _ => "",
    }
}

fn told(info: &IommuInfo) -> String {
    let mut text = String::new();
    for (index, range) in info.ranges.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{:#x} to {:#x}", range.start(), range.end());
    }
    text
}
