//! What kind of drive to be.

/// A namespace to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// Bytes per logical block: 512 or 4096.
    pub block_size: u32,
    /// Logical blocks.
    pub block_count: u64,
}

/// What kind of drive to be.
#[derive(Clone, Debug)]
pub struct EmuOptions {
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Model, at most 40 characters.
    pub model: String,
    /// Firmware revision, at most 8 characters.
    pub firmware: String,
    /// Namespaces; the first gets NSID 1.
    pub namespaces: Vec<NamespaceOptions>,
    /// MDTS: transfers of at most 4096 << mdts bytes; 0: no limit.
    pub mdts: u8,
    /// VSL: one Verify checks at most 4096 << vsl bytes; 0: no limit.
    pub vsl: u8,
    /// CAP.MQES plus one: entries of the largest I/O queue.
    pub max_queue_entries: u16,
    /// I/O queue pairs offered.
    pub io_queues: u16,
    /// CAP.TO, in units of 500 ms.
    pub ready_timeout: u8,
    /// Steps from CC.EN changing to CSTS.RDY following.
    pub ready_steps: u64,
    /// CAP.DSTRD.
    pub doorbell_stride: u8,
    /// There is a volatile write cache.
    pub volatile_write_cache: bool,
    /// SGLs are supported.
    pub sgl: bool,
    /// Doorbell Buffer Config is supported.
    pub shadow_doorbells: bool,
    /// Compare, Verify, Dataset Management and Write Zeroes are supported.
    pub optional_commands: bool,
    /// A format of one namespace is one of all (FNA bit 0).
    pub formats_all_namespaces: bool,
    /// Commands taken from each queue per step.
    pub burst: u32,
    /// Interrupt vectors.
    pub vectors: u16,
}

impl Default for EmuOptions {
    fn default() -> Self {
        Self {
            serial: "EMU0001".into(),
            model: "Emulated NVMe drive".into(),
            firmware: "1.0".into(),
            namespaces: vec![NamespaceOptions {
                block_size: 512,
                block_count: 65536,
            }],
            mdts: 5,
            vsl: 0,
            max_queue_entries: 1024,
            io_queues: 8,
            ready_timeout: 2,
            ready_steps: 1,
            doorbell_stride: 0,
            volatile_write_cache: true,
            sgl: false,
            shadow_doorbells: false,
            optional_commands: true,
            formats_all_namespaces: false,
            burst: 64,
            vectors: 9,
        }
    }
}
