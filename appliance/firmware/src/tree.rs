//! Files of a host, with bounds.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use machine::Root;

use crate::catalogue::Reading;
use crate::value::Value;

/// Longest text file. `/proc/cpuinfo` of a thousand CPUs has 2 MiB.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Longest table, variable or configuration space.
const BINARY_BYTES_MAX: u64 = 1 << 20;
/// Most entries of a folder.
const ENTRIES_MAX: usize = 1 << 16;

/// A folder that holds `sys/` and `proc/`; `/` is this machine. Paths have no leading slash.
#[derive(Debug, Clone)]
pub struct Tree {
    path: PathBuf,
}

impl Tree {
    /// A host below `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same host for `machine`.
    pub(crate) fn root(&self) -> Root {
        Root::new(&self.path)
    }

    fn read(&self, path: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let file = File::open(self.path.join(path))?;
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            let problem = format!("longer than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(bytes)
    }

    /// A file of any bytes.
    pub(crate) fn bytes(&self, path: &str) -> io::Result<Vec<u8>> {
        self.read(path, BINARY_BYTES_MAX)
    }

    /// A file without the space around it. What is no UTF-8 is replaced.
    pub(crate) fn text(&self, path: &str) -> io::Result<String> {
        let bytes = self.read(path, TEXT_BYTES_MAX)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The entries of a folder, sorted; none when it is not there.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path.join(path)) else {
            return Vec::new();
        };
        let entries = entries.take(ENTRIES_MAX).flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path.join(path).exists()
    }

    /// What `parse` makes of a file, as a reading.
    pub(crate) fn reading(
        &self,
        path: &str,
        parse: impl FnOnce(&str) -> Result<Value, String>,
    ) -> Reading {
        let source = shown(path);
        match self.text(path) {
            Ok(text) => match parse(&text) {
                Ok(value) => Reading::Value { value, source },
                Err(why) => Reading::Unreadable { why, source },
            },
            Err(error) => Reading::Unreadable {
                why: why(&error),
                source,
            },
        }
    }
}

/// A path as it is shown to people.
pub(crate) fn shown(path: &str) -> String {
    format!("/{path}")
}

/// Why a file cannot be read, for people.
pub(crate) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "only root may read it".to_owned(),
        _ => error.to_string(),
    }
}

/// What a file that holds something else than expected is called.
pub(crate) fn unexpected(text: &str, expected: &str) -> String {
    let start: String = text.chars().take(40).collect();
    format!("it holds {start:?}, not {expected}")
}

/// A number in a file.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| unexpected(text, "a number"))
}

/// `0` or `1`.
pub(crate) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(unexpected(text, "0 or 1")),
    }
}
