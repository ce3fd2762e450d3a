//! Features of a controller (NVMe Base 2.1, section 5.1.25).

/// The values of one controller's features: current, and what it starts with. Nothing is saved
/// over the end of a controller, which Get Features says (capability "saveable" is clear).
#[derive(Clone, Debug)]
pub(crate) struct Features {
    pub(crate) host_id: [u8; 16],
    pub(crate) kato_ms: u32,
    pub(crate) io_queues: u16,
    pub(crate) event_config: u32,
}

impl Features {
    pub(crate) fn new(host_id: [u8; 16], kato_ms: u32, is_discovery: bool) -> Self {
        let _ = is_discovery;
        Self { host_id, kato_ms, io_queues: 0, event_config: 0 }
    }
}
