//! The appliance's image as a tree of files, and what is made of it: an initramfs, a folder for mkosi, a
//! manifest, a bill of materials.
//!
//! What is in the tree stands in one place, `image/tree.toml`. `make initramfs` packs it with this
//! crate alone, in seconds; `make image` gives the same tree to mkosi, which makes the bootable file
//! of kernel and tree. Programs are cargo's; kernel, modules, shared libraries and the journal are
//! those of Debian packages in the tools root (`qemu-tests/guest/make-root`), so that the image does
//! not depend on the machine that makes it. The same inputs are the same bytes.
//!
//! This crate boots nothing and does not know what the files do.
//!
//! # Main types
//!
//! - [`Sources`]: where the parts are; [`assemble`] puts them together.
//! - [`Tree`]: files by path.
//! - [`Kernel`]: the kernel and its modules.
//! - [`cpio`]: the format that the kernel unpacks.
//!
//! # Threading and errors
//!
//! Everything runs on the caller's thread. An [`InitramfsError`] names the file and what to do.

mod assemble;
pub mod cpio;
mod description;
mod elf;
mod error;
mod kernel_modules;
mod sbom;
mod tree;

use std::path::PathBuf;

pub use assemble::{Assembled, Sources, Stamp, assemble, compress, decompress};
pub use description::Profile;
pub use error::InitramfsError;
pub use sbom::sbom;
pub use tree::{Content, Entry, Origin, Tree};

/// The kernel of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// Debian's version of the package.
    pub version: String,
    /// Its file.
    pub image: PathBuf,
    /// The folder of its modules, all of them.
    pub modules: PathBuf,
}
