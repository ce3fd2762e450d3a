//! Disk images as sparse streams of bytes: raw files, block devices, qcow2.
//!
//! What it is: [`ImageReader`] tells which parts of an image hold data and reads them; [`ImageWriter`] makes
//! an image of what it is given in rising order. Raw files and qcow2 (read: versions 2 and 3, with clusters
//! compressed by deflate; written: version 3); raw block devices.
//!
//! What it is not: it keeps no chains of images. An image with a backing file, an external data file or
//! encryption is refused, and the error says what to do. Nothing here writes into an image that is there.
//!
//! # Trust
//! An image comes from anywhere. Of its tables one part at a time is in memory, at most 2 MiB, besides two bits
//! for each of its clusters, at most 64 MiB. No file but the named one is ever opened, so that an image can be
//! recognised by its first bytes without danger. Tables that overlap, point at themselves or out of the file
//! are errors. Refcounts are not read: they say nothing that a reader needs.
//!
//! # Why this is not the crate `imago`
//! imago, by a developer of QEMU's qcow2, was the first choice and does much more. Its `Storage` must be
//! `Send + Sync`; the files of `tokio-uring`, which bulk work on files runs on here, are neither. What is left
//! to write without it, reading in order and writing once, is about 700 lines.
//!
//! # Threading
//! Everything lives on one thread with a `tokio-uring` runtime. Asking for holes and lengths are plain system
//! calls there: never on a thread that serves I/O.
//!
//! # Errors
//! [`ImageError`], a variant per failing operation with the path.

mod error;
mod file;
mod qcow2;
mod reader;
mod writer;

use std::fmt;
use std::path::Path;

pub use error::ImageError;
pub use reader::{Extent, Identity, ImageReader};
pub use writer::{ImageWriter, part_path};

/// How an image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes as they are.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl Format {
    /// The format of this name: `raw` or `qcow2`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format that a new file of this name has: by its suffix, raw if that says nothing.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("qcow2" | "qcow") => Self::Qcow2,
            _ => Self::Raw,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
