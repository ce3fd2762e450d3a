//! What sysfs says of a function: its driver, its IOMMU group and who else is in that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::VfioError;

/// The driver that hands functions to user space.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// Most functions that are looked at.
const FUNCTIONS_MAX: usize = 1 << 16;

/// A function that is with vfio-pci.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// `0000:01:00.0`.
    pub address: String,
    /// Class, subclass and programming interface: `0x010802` is NVMe.
    pub class: u32,
    /// Changes when another function comes in its place.
    pub instance: u64,
}

/// Folders of sysfs.
#[derive(Clone, Debug)]
pub(crate) struct Sysfs(pub(crate) PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Self("/sys".into())
    }
}

/// The last part of where a link points to.
fn link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Whether this is the name of a folder, and not a way to somewhere else.
fn is_name(address: &str) -> bool {
    !address.contains('/') && !address.starts_with('.') && !address.is_empty()
}

impl Sysfs {
    fn function(&self, address: &str) -> PathBuf {
        self.0.join("bus/pci/devices").join(address)
    }

    /// The group of a function that is with vfio-pci.
    pub(crate) fn group(&self, address: &str) -> Result<u32, VfioError> {
        let folder = self.function(address);
        let address = address.to_owned();
        if !is_name(&address) || !folder.exists() {
            return Err(VfioError::Missing { address });
        }
        let group = link(&folder.join("iommu_group")).and_then(|group| group.parse().ok());
        let Some(group) = group else {
            return Err(VfioError::NoIommu { address });
        };
        match link(&folder.join("driver")) {
            Some(driver) if driver == VFIO_DRIVER => Ok(group),
            driver => Err(VfioError::NotBound {
                address,
                driver: driver.unwrap_or_else(|| "no driver".to_owned()),
            }),
        }
    }

    /// The NUMA node that a function is at.
    pub(crate) fn numa_node(&self, address: &str) -> Option<u32> {
        if !is_name(address) {
            return None;
        }
        let node = fs::read_to_string(self.function(address).join("numa_node")).ok()?;
        // -1 where the firmware does not say.
        node.trim().parse().ok()
    }

    /// The members of a group with their drivers, as a person reads them.
    pub(crate) fn members(&self, group: u32) -> String {
        let folder = self.0.join(format!("kernel/iommu_groups/{group}/devices"));
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut members: Vec<String> = entries
            .take(FUNCTIONS_MAX)
            .map(|entry| {
                let driver = link(&entry.path().join("driver"));
                let driver = driver.as_deref().unwrap_or("no driver");
                format!("{} ({driver})", entry.file_name().to_string_lossy())
            })
            .collect();
        members.sort();
        members.join(", ")
    }

    /// Functions that are with vfio-pci.
    pub(crate) fn bound(&self) -> io::Result<Vec<Bound>> {
        let folder = self.0.join("bus/pci/drivers").join(VFIO_DRIVER);
        let entries = match fs::read_dir(&folder) {
            // The module is not loaded: there are none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut bound = Vec::new();
        for entry in entries.flatten().take(FUNCTIONS_MAX) {
            let address = entry.file_name().to_string_lossy().into_owned();
            // bind, module, new_id and their like have no class.
            let Ok(class) = fs::read_to_string(entry.path().join("class")) else {
                continue;
            };
            let class = u32::from_str_radix(class.trim().trim_start_matches("0x"), 16);
            let instance = fs::metadata(self.function(&address));
            if let (Ok(class), Ok(instance)) = (class, instance) {
                use std::os::unix::fs::MetadataExt as _;
                let instance = instance.ino();
                bound.push(Bound {
                    address,
                    class,
                    instance,
                });
            }
        }
        bound.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(bound)
    }
}

/// The IOMMU group of a function that is with vfio-pci.
///
/// # Errors
/// It is not there, in no group, or not with vfio-pci.
pub fn group_of(address: &str) -> Result<u32, VfioError> {
    Sysfs::default().group(address)
}

/// The NUMA node that a function is at; `None` where there are none, or the firmware does not say.
#[must_use]
pub fn numa_node_of(address: &str) -> Option<u32> {
    Sysfs::default().numa_node(address)
}

/// The functions that are with vfio-pci, by address.
///
/// # Errors
/// Sysfs cannot be read.
pub fn bound_functions() -> io::Result<Vec<Bound>> {
    Sysfs::default().bound()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const DRIVE: &str = "0000:01:00.0";
    const BRIDGE: &str = "0000:00:01.0";

    fn tree() -> (tempfile::TempDir, Sysfs) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        for address in [DRIVE, BRIDGE] {
            fs::create_dir_all(root.join("bus/pci/devices").join(address)).unwrap();
        }
        let devices = root.join("bus/pci/devices");
        fs::write(devices.join(DRIVE).join("class"), "0x010802\n").unwrap();
        (folder, Sysfs(root))
    }

    fn bind(sysfs: &Sysfs, address: &str, driver: &str) {
        let drivers = sysfs.0.join("bus/pci/drivers").join(driver);
        fs::create_dir_all(&drivers).unwrap();
        symlink(&drivers, sysfs.function(address).join("driver")).unwrap();
        symlink(sysfs.function(address), drivers.join(address)).unwrap();
    }

    fn group(sysfs: &Sysfs, address: &str, group: &str) {
        let folder = sysfs.0.join("kernel/iommu_groups").join(group);
        fs::create_dir_all(folder.join("devices")).unwrap();
        symlink(&folder, sysfs.function(address).join("iommu_group")).unwrap();
        symlink(
            sysfs.function(address),
            folder.join("devices").join(address),
        )
        .unwrap();
    }

    #[test]
    fn each_thing_that_is_missing_has_its_own_error() {
        let (_folder, sysfs) = tree();
        let error = |address| sysfs.group(address).unwrap_err();
        for missing in ["0000:09:00.0", "", "..", "a/b"] {
            assert!(
                matches!(error(missing), VfioError::Missing { .. }),
                "{missing}"
            );
        }
        assert!(matches!(error(DRIVE), VfioError::NoIommu { .. }));
        group(&sysfs, DRIVE, "7");
        let unbound = error(DRIVE).to_string();
        assert!(unbound.contains("with no driver: bind it"), "{unbound}");
        bind(&sysfs, DRIVE, "nvme");
        assert!(error(DRIVE).to_string().contains("with nvme: bind it"));
    }

    #[test]
    fn a_function_with_vfio_has_a_group_whose_members_are_told() {
        let (_folder, sysfs) = tree();
        group(&sysfs, DRIVE, "7");
        group(&sysfs, BRIDGE, "7");
        bind(&sysfs, DRIVE, VFIO_DRIVER);
        assert_eq!(sysfs.group(DRIVE).unwrap(), 7);
        assert_eq!(
            sysfs.members(7),
            "0000:00:01.0 (no driver), 0000:01:00.0 (vfio-pci)"
        );
        let bound = sysfs.bound().unwrap();
        assert_eq!(bound.len(), 1);
        assert_eq!(
            (bound[0].address.as_str(), bound[0].class),
            (DRIVE, 0x01_0802)
        );
    }

    #[test]
    fn a_function_is_at_the_node_that_the_firmware_told() {
        let (_folder, sysfs) = tree();
        assert_eq!(sysfs.numa_node(DRIVE), None);
        for (text, node) in [
            ("1\n", Some(1)),
            ("0\n", Some(0)),
            ("-1\n", None),
            ("", None),
        ] {
            fs::write(sysfs.function(DRIVE).join("numa_node"), text).unwrap();
            assert_eq!(sysfs.numa_node(DRIVE), node, "{text}");
        }
        fs::write(sysfs.0.join("bus/pci/numa_node"), "3\n").unwrap();
        for other in [BRIDGE, "0000:09:00.0", "", ".."] {
            assert_eq!(sysfs.numa_node(other), None, "{other}");
        }
    }

    #[test]
    fn without_the_module_nothing_is_bound() {
        let (_folder, sysfs) = tree();
        assert_eq!(sysfs.bound().unwrap(), []);
        assert_eq!(sysfs.members(7), "");
    }
}
