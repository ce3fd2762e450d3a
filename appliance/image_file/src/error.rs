//! [`ImageError`].

use std::io;
use std::path::PathBuf;

/// Why an image cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The path does not begin at the root.
    #[error("{} is not an absolute path on the node", path.display())]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// The file cannot be opened or made.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path names something else.
    #[error("{} is neither a file nor a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// A file is there that would be replaced.
    #[error("{} is there already; remove it or name another file", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {len} bytes at {offset} of {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write at {offset} of {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be made whole: its size, its durability, its name.
    #[error("cannot {doing} {}", path.display())]
    Finish {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image is damaged, or made to harm.
    #[error("{} is damaged: {problem}; see what qemu-img check says", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The image has something that is not read here.
    #[error("{} has {what}; {instead}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it has.
        what: String,
        /// What to do.
        instead: &'static str,
    },
    /// The destination is too small.
    #[error("{} has {len} bytes and {wanted} are to be written", path.display())]
    TooSmall {
        /// The block device.
        path: PathBuf,
        /// Its bytes.
        len: u64,
        /// Bytes needed.
        wanted: u64,
    },
    /// A size that the format cannot have.
    #[error("an image of {len} bytes cannot be {format}")]
    Size {
        /// The bytes.
        len: u64,
        /// The format.
        format: crate::Format,
    },
    /// The caller goes back, or writes past the end.
    #[error("a write at {offset} of {} does not follow the one before it", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// Where it was to go.
        offset: u64,
    },
}
