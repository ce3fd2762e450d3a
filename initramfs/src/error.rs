//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// Why there is no tree, or no image of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// A file or folder on the host.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The description of the tree.
    #[error("{path}: {detail}")]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        detail: String,
    },
    /// A path that cannot be in a tree.
    #[error("{path:?} cannot be in the tree: {reason}")]
    Path {
        /// The path.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// A program of the project that is not built.
    #[error("{name} is not in {folder}: build it with cargo build --release --bin {name}")]
    Program {
        /// Its name.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A file that the tools root lacks.
    #[error("{path} is not in {root}: the packages of qemu-tests/guest/make-root must bring it")]
    Missing {
        /// What.
        path: String,
        /// The tools root.
        root: PathBuf,
    },
    /// A shared library that is nowhere.
    #[error("{name}, which {wanted_by} needs, is not in {root}")]
    Library {
        /// Its name.
        name: String,
        /// Who needs it.
        wanted_by: String,
        /// The tools root.
        root: PathBuf,
    },
    /// A kernel module that is not there.
    #[error("the kernel {release} has no module {name}: correct the list of modules")]
    Module {
        /// Its name.
        name: String,
        /// The kernel.
        release: String,
    },
    /// A file that is not what its name says.
    #[error("{path}: {detail}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A program of the host that failed.
    #[error("{program}: {detail}")]
    Tool {
        /// Its name.
        program: &'static str,
        /// What it said.
        detail: String,
    },
}

impl InitramfsError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    pub(crate) fn damaged(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.into(),
            detail: detail.into(),
        }
    }
}
