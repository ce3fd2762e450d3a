//! What commands do: fabrics, admin and NVM I/O.

pub(crate) mod abort;
pub(crate) mod admin;
pub(crate) mod fabrics;
pub(crate) mod io;
