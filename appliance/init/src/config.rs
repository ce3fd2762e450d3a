//! What the node is told to be: one TOML document, put together from several sources.
//!
//! Each source gives values by key (`watchdog.timeout_s`). A later source of [`Source`] overrules an
//! earlier one, key by key. A value that is wrong is left out with a [`Problem`] that names its
//! source; what the sources before it say then holds, at last the default. So there is always a
//! configuration, and the node is always reached.

mod document;
mod merge;
mod sources;

pub use document::{
    ConfigWatchdog, Crash, Document, Modules, ServiceOverride, Shutdown, hostname_is_right,
};
pub use merge::{Effective, Problem, Source, Value, leaves, merge, parse_document};
pub use sources::{FW_CFG_FOLDER, PREFIX, from_command_line, from_smbios};

pub(crate) use sources::{from_fw_cfg, read_smbios, words};

/// A source and the values that it gives, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// Where they are from.
    pub source: Source,
    /// Key and value.
    pub values: Vec<(String, toml::Value)>,
    /// What could not be read as values at all.
    pub problems: Vec<Problem>,
}

impl Given {
    /// A source that gives nothing yet.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            values: Vec::new(),
            problems: Vec::new(),
        }
    }
}
