//! The guest's initramfs: busybox, a few modules and `guest/init`, as a cpio archive in "newc"
//! format.
//!
//! It is written for every guest anew: it takes milliseconds, and is never out of date.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::HarnessError;

pub(crate) const MODE_DIRECTORY: u32 = 0o040_755;
pub(crate) const MODE_PROGRAM: u32 = 0o100_755;
pub(crate) const MODE_FILE: u32 = 0o100_644;
pub(crate) const MODE_CONSOLE: u32 = 0o020_600;
pub(crate) const MODE_LINK: u32 = 0o120_777;
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

/// A cpio archive in "newc" format.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Appends one entry. `device` matters to device nodes only.
    pub(crate) fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a boot file is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let (major, minor) = device;
        // Inode, mode, uid, gid, links, mtime, size, device of the file (2), device (2), name size,
        // checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            write!(header, "{field:08x}").expect("a String takes everything");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole of it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_padded_content() {
        let mut archive = Archive::default();
        archive.add("init", MODE_PROGRAM, (0, 0), b"hello");
        let text = String::from_utf8(archive.bytes).unwrap();
        // 110 bytes of header, "init\0" and a byte of padding, "hello" and three.
        assert_eq!(text.len(), 116 + 8);
        assert!(text.starts_with("07070100000001000081ed"));
        assert_eq!(&text[54..62], "00000005");
        assert_eq!(&text[94..102], "00000005");
        assert!(text.ends_with("init\0\0hello\0\0\0"));
    }

    #[test]
    fn an_archive_ends_with_the_trailer() {
        let archive = Archive::default().finish();
        assert_eq!(archive.len() % 4, 0);
        assert!(String::from_utf8(archive).unwrap().contains("TRAILER!!!\0"));
    }
}
