//! Errors of the control side.

use std::borrow::Cow;

/// Why the transport could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// An option has a value that cannot be.
    #[error("{option} is {value}; it must be {right}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: u32,
        /// What would be right.
        right: Cow<'static, str>,
    },
}
