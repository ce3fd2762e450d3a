//! Options of the transport, their defaults and their bounds.

use nvmf::transport::TransportLimits;

use crate::RdmaError;

/// Largest transfer: what a large buffer of the pool holds.
const MAX_IO_SIZE_MAX: u32 = 128 * 1024;
const MAX_IO_SIZE_MIN: u32 = 8 * 1024;
/// In-capsule data lands in small buffers of the pool.
const IN_CAPSULE_DATA_SIZE_MAX: u32 = 8 * 1024;
/// The specification's least number of admin queue entries.
const MAX_AQ_DEPTH_MIN: u16 = 32;
/// Connections that a poll group can number.
const MAX_CONNECTIONS_MAX: u32 = 1 << 20;
/// A timeout longer than this is a slip of the pen.
const TIMEOUT_MS_MAX: u32 = 3_600_000;

/// Options of the NVMe over RDMA transport. Names and defaults are SPDK's where they mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaOptions {
    /// Entries of an I/O queue: 2 to 4096, 128 by default.
    pub max_queue_depth: u16,
    /// I/O queues of one controller: 1 to 65534, 127 by default.
    pub max_io_qpairs_per_ctrlr: u16,
    /// In-capsule data of an I/O queue in bytes: a multiple of 16 up to 8192, 4096 by default; 0:
    /// none. Each receive that is posted holds memory for it.
    pub in_capsule_data_size: u32,
    /// Largest transfer of a command in bytes: a power of two from 8 KiB to 128 KiB, which is the
    /// default.
    pub max_io_size: u32,
    /// Entries of an admin queue: 32 to 4096, 128 by default.
    pub max_aq_depth: u16,
    /// Receives of a queue that the connections of a poll group share on a device: 32 to 32768,
    /// 4096 by default. Devices that have no shared queue, or no such long one, do without or with less.
    pub max_srq_depth: u32,
    /// Whether each connection has a receive queue of its own instead; off by default.
    pub no_srq: bool,
    /// Entries that a completion queue begins with: 64 to 1048576, 4096 by default. It grows with
    /// the connections where the device can; where it cannot, connections beyond it are refused.
    pub num_cqe: u32,
    /// Connections that may wait for each listener: 1 to 65535, 100 by default.
    pub acceptor_backlog: u16,
    /// Whether each work request is posted by itself; off by default, for tests of devices.
    pub no_wr_batching: bool,
    /// ACK timeout of a queue pair: 4.096 µs times 2 to this power, 0 to 31; 0, the default, leaves
    /// it to the connection manager.
    pub ack_timeout: u8,
    /// Retries of a message that the host does not acknowledge: 0 to 7, 7 by default.
    pub retry_count: u8,
    /// Retries of a message for which the host has no receive: 0 to 7, where 7, the default, is for
    /// ever.
    pub rnr_retry_count: u8,
    /// Type of service of connections; 0, the default, leaves it to the system.
    pub tos: u8,
    /// Whether responses of 16 bytes are sent from the work request itself where the device can; on by default.
    pub inline_responses: bool,
    /// Connections at a time over all poll groups: 1 to 1048576, 65536 by default. One more is
    /// rejected with "no resources".
    pub max_connections: u32,
    /// Requests to connect that each listener answers in a second: 1 to 1000000, 4000 by default.
    /// More wait.
    pub accept_rate_per_s: u32,
    /// Keep-alive granularity in units of 100 ms: 1 to 65535, 100 by default.
    pub kas: u16,
    /// Shortest keep-alive timeout granted, in milliseconds, 10000 by default.
    pub min_kato_ms: u32,
    /// Small buffers that each poll group caches; `None`: the target's default.
    pub iobuf_small_cache_size: Option<u32>,
    /// Large buffers that each poll group caches; `None`: the target's default.
    pub iobuf_large_cache_size: Option<u32>,
    /// Time from a request to connect to a Connect command that succeeded: 1 to 3600000 ms, 30000 by
    /// default.
    pub half_open_timeout_ms: u32,
    /// Time for a connection that ends to get back what was posted: 1 to 3600000 ms, 2000 by
    /// default. Then its queue pair is destroyed with what it has.
    pub linger_timeout_ms: u32,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self {
            max_queue_depth: 128,
            max_io_qpairs_per_ctrlr: 127,
            in_capsule_data_size: 4096,
            max_io_size: 131_072,
            max_aq_depth: 128,
            max_srq_depth: 4096,
            no_srq: false,
            num_cqe: 4096,
            acceptor_backlog: 100,
            no_wr_batching: false,
            ack_timeout: 0,
            retry_count: 7,
            rnr_retry_count: 7,
            tos: 0,
            inline_responses: true,
            max_connections: 65_536,
            accept_rate_per_s: 4_000,
            kas: 100,
            min_kato_ms: 10_000,
            iobuf_small_cache_size: None,
            iobuf_large_cache_size: None,
            half_open_timeout_ms: 30_000,
            linger_timeout_ms: 2_000,
        }
    }
}

impl RdmaOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// The first that is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), RdmaError> {
        let is_power = self.max_io_size.is_power_of_two();
        let io_range = MAX_IO_SIZE_MIN..=MAX_IO_SIZE_MAX;
        check(
            is_power && io_range.contains(&self.max_io_size),
            "max_io_size",
            self.max_io_size,
            "a power of two from 8192 to 131072",
        )?;
        check(
            self.in_capsule_data_size.is_multiple_of(16)
                && self.in_capsule_data_size <= IN_CAPSULE_DATA_SIZE_MAX,
            "in_capsule_data_size",
            self.in_capsule_data_size,
            "a multiple of 16 from 0 to 8192",
        )?;
        let aq_min = u32::from(MAX_AQ_DEPTH_MIN);
        let timeouts = TIMEOUT_MS_MAX;
        range("max_queue_depth", self.max_queue_depth, 2, 4096)?;
        range(
            "max_io_qpairs_per_ctrlr",
            self.max_io_qpairs_per_ctrlr,
            1,
            65_534,
        )?;
        range("max_aq_depth", self.max_aq_depth, aq_min, 4096)?;
        range("max_srq_depth", self.max_srq_depth, 32, 32_768)?;
        range("num_cqe", self.num_cqe, 64, 1 << 20)?;
        range(
            "acceptor_backlog",
            self.acceptor_backlog,
            1,
            u32::from(u16::MAX),
        )?;
        range("ack_timeout", self.ack_timeout, 0, 31)?;
        range("retry_count", self.retry_count, 0, 7)?;
        range("rnr_retry_count", self.rnr_retry_count, 0, 7)?;
        range(
            "max_connections",
            self.max_connections,
            1,
            MAX_CONNECTIONS_MAX,
        )?;
        range("accept_rate_per_s", self.accept_rate_per_s, 1, 1_000_000)?;
        range("kas", self.kas, 1, u32::from(u16::MAX))?;
        range(
            "half_open_timeout_ms",
            self.half_open_timeout_ms,
            1,
            timeouts,
        )?;
        range("linger_timeout_ms", self.linger_timeout_ms, 1, timeouts)
    }

    /// What the target library tells hosts and enforces.
    pub(crate) fn limits(&self) -> TransportLimits {
        TransportLimits {
            max_queue_depth: self.max_queue_depth,
            max_aq_depth: self.max_aq_depth,
            max_io_qpairs_per_ctrlr: self.max_io_qpairs_per_ctrlr,
            max_io_size: self.max_io_size,
            in_capsule_data_size: self.in_capsule_data_size,
            keyed_sgl: true,
            kas_100ms: self.kas,
            min_kato_ms: self.min_kato_ms,
            iobuf_small_cache_size: self.iobuf_small_cache_size,
            iobuf_large_cache_size: self.iobuf_large_cache_size,
        }
    }
}

fn check(
    is_right: bool,
    option: &'static str,
    value: u32,
    right: &'static str,
) -> Result<(), RdmaError> {
    if is_right {
        return Ok(());
    }
    Err(RdmaError::Option {
        option,
        value,
        right: right.into(),
    })
}

fn range(option: &'static str, value: impl Into<u32>, min: u32, max: u32) -> Result<(), RdmaError> {
    let value = value.into();
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(RdmaError::Option {
        option,
        value,
        right: format!("{min} to {max}").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        RdmaOptions::default().validate().unwrap();
    }

    #[test]
    fn a_wrong_option_is_named_with_what_would_be_right() {
        type Set = fn(&mut RdmaOptions);
        let cases: [(&str, Set); 15] = [
            ("max_io_size", |o| o.max_io_size = 100_000),
            ("max_io_size", |o| o.max_io_size = 4096),
            ("in_capsule_data_size", |o| o.in_capsule_data_size = 4097),
            ("in_capsule_data_size", |o| o.in_capsule_data_size = 16_384),
            ("max_queue_depth", |o| o.max_queue_depth = 1),
            ("max_io_qpairs_per_ctrlr", |o| o.max_io_qpairs_per_ctrlr = 0),
            ("max_aq_depth", |o| o.max_aq_depth = 31),
            ("max_srq_depth", |o| o.max_srq_depth = 1),
            ("num_cqe", |o| o.num_cqe = 1),
            ("acceptor_backlog", |o| o.acceptor_backlog = 0),
            ("ack_timeout", |o| o.ack_timeout = 32),
            ("retry_count", |o| o.retry_count = 8),
            ("rnr_retry_count", |o| o.rnr_retry_count = 8),
            ("max_connections", |o| o.max_connections = 0),
            ("linger_timeout_ms", |o| o.linger_timeout_ms = 0),
        ];
        for (name, set) in cases {
            let mut options = RdmaOptions::default();
            set(&mut options);
            let message = options.validate().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
            assert!(message.contains("must be"), "{message}");
        }
    }
}
