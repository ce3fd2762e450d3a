//! The guest's initramfs: busybox, a few modules and `guest/init`, as a cpio archive in "newc"
//! format.
//!
//! It is written for every guest anew: it takes milliseconds, and is never out of date.

use std::fs;
use std::path::Path;

use ::initramfs::cpio::{self, Archive};

use crate::HarnessError;

pub(crate) const MODE_DIRECTORY: u32 = cpio::MODE_DIRECTORY | 0o755;
pub(crate) const MODE_PROGRAM: u32 = cpio::MODE_REGULAR | 0o755;
pub(crate) const MODE_FILE: u32 = cpio::MODE_REGULAR | 0o644;
pub(crate) const MODE_LINK: u32 = cpio::MODE_LINK | 0o777;
/// A character device.
pub(crate) const MODE_CONSOLE: u32 = 0o020_600;
/// Major and minor number of /dev/console, which the kernel opens before anything is mounted.
const CONSOLE_DEVICE: (u32, u32) = (5, 1);

/// Builds the archive from the folder that [`crate::tools_root`] names.
pub(crate) fn build(tools: &Path) -> Result<Vec<u8>, HarnessError> {
    let read = |path: &Path| fs::read(path).map_err(HarnessError::file("read", path));
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules"] {
        archive.add(folder, MODE_DIRECTORY, (0, 0), &[]);
    }
    archive.add("dev/console", MODE_CONSOLE, CONSOLE_DEVICE, &[]);
    archive.add(
        "init",
        MODE_PROGRAM,
        (0, 0),
        include_bytes!("../guest/init"),
    );
    archive.add(
        "bin/busybox",
        MODE_PROGRAM,
        (0, 0),
        &read(&tools.join("busybox"))?,
    );
    let modules = tools.join("boot-modules");
    let order = read(&modules.join("order"))?;
    archive.add("modules/order", MODE_FILE, (0, 0), &order);
    for module in String::from_utf8_lossy(&order).lines() {
        let bytes = read(&modules.join(module))?;
        archive.add(&format!("modules/{module}"), MODE_FILE, (0, 0), &bytes);
    }
    Ok(archive.finish())
}
