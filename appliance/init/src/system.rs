//! The machine as init changes it before services run, behind a trait so that tests have their own.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;

use nix::kmod::{DeleteModuleFlags, ModuleInitFlags};
use nix::mount::MsFlags;

/// Longest file that is read, in bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 1 << 16;
/// Linux 5.17: the kernel unpacks the module itself.
const MODULE_INIT_COMPRESSED_FILE: libc::c_uint = 4;

/// What init wants of a kernel. Paths are absolute.
pub(crate) trait System {
    /// The bytes of a file, up to 4 MiB.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;
    /// One write into a file that exists.
    fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes or replaces a file.
    fn create(&self, path: &str, bytes: &[u8]) -> io::Result<()>;
    /// Names in a folder, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Whether something is there.
    fn exists(&self, path: &str) -> bool;
    /// Makes a folder and those above it.
    fn make_folder(&self, path: &str) -> io::Result<()>;
    /// Mounts.
    fn mount(
        &self,
        source: &str,
        target: &str,
        kind: &str,
        flags: MsFlags,
        options: &str,
    ) -> io::Result<()>;
    /// Loads a module, compressed or not.
    fn load_module(&self, path: &str, parameters: &str) -> io::Result<()>;
    /// Takes a module out of the kernel; not while somebody uses it.
    fn unload_module(&self, name: &str) -> io::Result<()>;
    /// Names the host.
    fn set_hostname(&self, name: &str) -> io::Result<()>;
    /// Seconds since 1970 on the machine's clock.
    fn unix_time_s(&self) -> i64;
    /// Sets the machine's clock.
    fn set_unix_time_s(&self, seconds: i64) -> io::Result<()>;

    /// A short text file, without the space around it.
    fn text(&self, path: &str) -> io::Result<String> {
        let bytes = self.read(path)?;
        Ok(String::from_utf8_lossy(&bytes)
            .trim_matches(|c: char| c.is_whitespace() || c == '\0')
            .to_owned())
    }
}

/// The running kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel;

impl System for Kernel {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "longer than 4 MiB",
            ));
        }
        Ok(bytes)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        // One call: the kernel takes each write as a whole value.
        let written = OpenOptions::new().write(true).open(path)?.write(bytes)?;
        if written == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "only a part was written",
            ))
        }
    }

    fn create(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        fs::write(path, bytes)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)?.take(ENTRIES_MAX) {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(path).is_ok()
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
    }

    fn mount(
        &self,
        source: &str,
        target: &str,
        kind: &str,
        flags: MsFlags,
        options: &str,
    ) -> io::Result<()> {
        let options = Some(options).filter(|options| !options.is_empty());
        nix::mount::mount(Some(source), target, Some(kind), flags, options)?;
        Ok(())
    }

    fn load_module(&self, path: &str, parameters: &str) -> io::Result<()> {
        let file = File::open(path)?;
        let parameters = CString::new(parameters)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in a parameter"))?;
        let packed = [".xz", ".zst", ".gz"]
            .iter()
            .any(|ending| path.ends_with(ending));
        let flags = if packed {
            MODULE_INIT_COMPRESSED_FILE
        } else {
            0
        };
        let flags = ModuleInitFlags::from_bits_retain(flags);
        nix::kmod::finit_module(file, &parameters, flags)?;
        Ok(())
    }

    fn unload_module(&self, name: &str) -> io::Result<()> {
        let name = CString::new(name)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in a name"))?;
        nix::kmod::delete_module(&name, DeleteModuleFlags::O_NONBLOCK)?;
        Ok(())
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        nix::unistd::sethostname(name)?;
        Ok(())
    }

    fn unix_time_s(&self) -> i64 {
        nix::time::ClockId::CLOCK_REALTIME
            .now()
            .map_or(0, |now| now.tv_sec())
    }

    fn set_unix_time_s(&self, seconds: i64) -> io::Result<()> {
        let time = nix::sys::time::TimeSpec::new(seconds, 0);
        nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time)?;
        Ok(())
    }
}

/// A kernel of files in memory.
#[cfg(test)]
pub(crate) mod fake {
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// What was asked of it is in `calls`; what it refuses, in `refuses`.
    #[derive(Debug, Default)]
    pub(crate) struct Fake {
        pub(crate) files: RefCell<BTreeMap<String, Vec<u8>>>,
        pub(crate) folders: RefCell<BTreeSet<String>>,
        pub(crate) calls: RefCell<Vec<String>>,
        /// A prefix of a call, and the error number that it ends with.
        pub(crate) refuses: Vec<(String, i32)>,
        pub(crate) clock_s: Cell<i64>,
    }

    impl Fake {
        pub(crate) fn with(files: &[(&str, &str)]) -> Self {
            let fake = Self::default();
            for (path, text) in files {
                fake.files
                    .borrow_mut()
                    .insert((*path).to_owned(), text.as_bytes().to_owned());
            }
            fake
        }

        fn call(&self, call: String) -> io::Result<()> {
            let refused = self
                .refuses
                .iter()
                .find(|(prefix, _)| call.starts_with(prefix.as_str()));
            self.calls.borrow_mut().push(call);
            match refused {
                Some((_, number)) => Err(io::Error::from_raw_os_error(*number)),
                None => Ok(()),
            }
        }
    }

    impl System for Fake {
        fn read(&self, path: &str) -> io::Result<Vec<u8>> {
            let files = self.files.borrow();
            files
                .get(path)
                .cloned()
                .ok_or(io::ErrorKind::NotFound.into())
        }

        fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
            self.call(format!("write {path} {}", String::from_utf8_lossy(bytes)))?;
            match self.files.borrow_mut().get_mut(path) {
                Some(file) => {
                    *file = bytes.to_owned();
                    Ok(())
                }
                None => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn create(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
            self.call(format!("create {path}"))?;
            self.files
                .borrow_mut()
                .insert(path.to_owned(), bytes.to_owned());
            Ok(())
        }

        fn list(&self, path: &str) -> io::Result<Vec<String>> {
            let inside = format!("{path}/");
            let files = self.files.borrow();
            let names: BTreeSet<String> = files
                .keys()
                .filter_map(|name| name.strip_prefix(&inside))
                .filter_map(|rest| rest.split('/').next())
                .map(str::to_owned)
                .collect();
            if names.is_empty() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(names.into_iter().collect())
        }

        fn exists(&self, path: &str) -> bool {
            let inside = format!("{path}/");
            self.folders.borrow().contains(path)
                || self
                    .files
                    .borrow()
                    .keys()
                    .any(|name| name == path || name.starts_with(&inside))
        }

        fn make_folder(&self, path: &str) -> io::Result<()> {
            self.folders.borrow_mut().insert(path.to_owned());
            Ok(())
        }

        fn mount(
            &self,
            source: &str,
            target: &str,
            kind: &str,
            flags: MsFlags,
            options: &str,
        ) -> io::Result<()> {
            self.call(format!(
                "mount {target} {kind} {source} {flags:?} {options}"
            ))
        }

        fn load_module(&self, path: &str, parameters: &str) -> io::Result<()> {
            self.call(format!("module {path} {parameters}"))
        }

        fn unload_module(&self, name: &str) -> io::Result<()> {
            self.call(format!("no module {name}"))
        }

        fn set_hostname(&self, name: &str) -> io::Result<()> {
            self.call(format!("hostname {name}"))
        }

        fn unix_time_s(&self) -> i64 {
            self.clock_s.get()
        }

        fn set_unix_time_s(&self, seconds: i64) -> io::Result<()> {
            self.call(format!("clock {seconds}"))?;
            self.clock_s.set(seconds);
            Ok(())
        }
    }
}
