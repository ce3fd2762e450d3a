//! Where the host is read and written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::dcb::{self, Dcb};
use crate::rdma_link::{self, RdmaLink};

/// Longest file that is read, in bytes. The longest in practice are mountinfo and routes.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;

/// Most entries of a folder.
pub(crate) const ENTRIES_MAX: usize = 1 << 16;

/// A host: `sys/`, `proc/` and `dev/`, by paths without a leading slash.
///
/// [`Root`] is the real one. A test wraps it to let a kernel of its own react to writes.
pub trait Host {
    /// The whole of a text file.
    ///
    /// # Errors
    /// As the system says; `InvalidData` when it is longer than 4 MiB.
    fn read(&self, path: &str) -> io::Result<String>;

    /// One write of `text` into a file that exists.
    ///
    /// # Errors
    /// As the system says; the kernel answers a write into sysfs with its own verdict.
    fn write(&self, path: &str, text: &str) -> io::Result<()>;

    /// Where a symbolic link points, as it is written in the link.
    ///
    /// # Errors
    /// As the system says.
    fn link(&self, path: &str) -> io::Result<String>;

    /// Names of the entries of a folder, sorted.
    ///
    /// # Errors
    /// As the system says; `InvalidData` when there are more than 65536.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// Whether something is there.
    fn exists(&self, path: &str) -> bool;

    /// Whether the kernel (a mount in any namespace, a volume manager, swap) has a block device for
    /// itself, told by an exclusive open that is closed at once. `None` where that cannot be asked:
    /// no such node, or no permission.
    fn is_claimed(&self, path: &str) -> Option<bool>;

    /// Asks the kernel for a change of its RDMA devices.
    ///
    /// # Errors
    /// As the system says; `Unsupported` where the host is not this machine.
    fn change_rdma_link(&self, _change: &RdmaLink) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Data centre bridging of a network port.
    ///
    /// # Errors
    /// As the system says: the port has none; `Unsupported` where the host is not this machine.
    fn dcb(&self, _interface: &str) -> io::Result<Dcb> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A folder that holds `sys/`, `proc/` and `dev/`.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// A host below `path`; `/` is this machine.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Host for Root {
    fn read(&self, path: &str) -> io::Result<String> {
        let file = File::open(self.path.join(path))?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "longer than 4 MiB",
            ));
        }
        // A name in mountinfo or of a process may be any bytes; what matters is ASCII.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(self.path.join(path))?;
        // One call: sysfs takes each write as a whole value.
        let written = file.write(text.as_bytes())?;
        if written != text.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "only a part was written",
            ));
        }
        Ok(())
    }

    fn link(&self, path: &str) -> io::Result<String> {
        let target = fs::read_link(self.path.join(path))?;
        Ok(target.to_string_lossy().into_owned())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path.join(path))? {
            if names.len() == ENTRIES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "more than 65536 entries",
                ));
            }
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &str) -> bool {
        self.path.join(path).exists()
    }

    fn is_claimed(&self, path: &str) -> Option<bool> {
        let path = self.path.join(path);
        if !fs::metadata(&path).ok()?.file_type().is_block_device() {
            return None;
        }
        // Without O_CREAT, O_EXCL on a block device asks for the claim that a mount takes.
        match OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&path)
        {
            Ok(_) => Some(false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Some(true),
            Err(_) => None,
        }
    }

    fn change_rdma_link(&self, change: &RdmaLink) -> io::Result<()> {
        if self.path != Path::new("/") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        rdma_link::change(change)
    }

    fn dcb(&self, interface: &str) -> io::Result<Dcb> {
        if self.path != Path::new("/") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        dcb::read(interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        (folder, root)
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let (folder, root) = root();
        assert_eq!(
            root.write("x", "1").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(!folder.path().join("x").exists());
    }

    #[test]
    fn a_file_of_any_bytes_is_read_up_to_the_bound() {
        let (folder, root) = root();
        fs::write(folder.path().join("bytes"), b"a\xffb").unwrap();
        assert_eq!(root.read("bytes").unwrap(), "a\u{fffd}b");
        let long = File::create(folder.path().join("long")).unwrap();
        long.set_len(FILE_BYTES_MAX).unwrap();
        assert_eq!(root.read("long").unwrap().len() as u64, FILE_BYTES_MAX);
        long.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(
            root.read("long").unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn only_a_block_device_is_asked_for_its_claim() {
        let (folder, root) = root();
        fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(root.is_claimed("file"), None);
        assert_eq!(root.is_claimed("nothing"), None);
        assert_eq!(Root::new("/").is_claimed("dev/null"), None);
    }
}
