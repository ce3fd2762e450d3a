//! The ring.
/// The ring of a thread.
#[derive(Debug)]
pub(crate) struct SharedRing;
