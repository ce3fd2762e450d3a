//! Options of the transport, their defaults and their bounds.

use fabric_wire::tcp::MIN_MAXH2CDATA;
use nvmf::transport::TransportLimits;

use crate::TcpError;

/// Largest in-capsule data size: the largest transfer that any option allows.
const IN_CAPSULE_DATA_SIZE_MAX: u32 = 128 * 1024;
/// Largest transfer: what a large buffer of the pool holds.
const MAX_IO_SIZE_MAX: u32 = 128 * 1024;
const MAX_IO_SIZE_MIN: u32 = 8 * 1024;
/// The specification's least number of admin queue entries.
const MAX_AQ_DEPTH_MIN: u16 = 32;
/// Connections that a poll group can number.
const MAX_CONNECTIONS_MAX: u32 = 1 << 20;
/// A timeout longer than this is a slip of the pen.
const TIMEOUT_MS_MAX: u32 = 3_600_000;

/// Options of the NVMe/TCP transport. Names and defaults are SPDK's where they mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Entries of an I/O queue: 2 to 65535, 128 by default.
    pub max_queue_depth: u16,
    /// I/O queues of one controller: 1 to 65534, 127 by default.
    pub max_io_qpairs_per_ctrlr: u16,
    /// In-capsule data of an I/O queue in bytes: a multiple of 16, at most `max_io_size`; 0: none.
    ///
    /// 8192 by default, where SPDK has 4096: a write of 4 KiB or 8 KiB then needs no R2T and no
    /// round trip for it. It costs no memory before data comes: it lands in a buffer of the pool.
    pub in_capsule_data_size: u32,
    /// Largest transfer of a command in bytes: a power of two from 8 KiB to 128 KiB, which is the
    /// default.
    pub max_io_size: u32,
    /// Entries of an admin queue: 32 to 4096, 128 by default.
    pub max_aq_depth: u16,
    /// Whether a read that succeeded is told so by a flag in its data instead of by a response
    /// PDU; on by default.
    ///
    /// As in SPDK, also where the host has submission queue flow control on: the flag carries no
    /// SQHD, and a host that must see each SQHD wants this off.
    pub c2h_success: bool,
    /// SO_PRIORITY of connections: 0 to 6, 0 by default.
    pub sock_priority: u8,
    /// TOS byte (IPv4) or traffic class (IPv6) of connections; 0, the default, is best effort.
    pub tos: u8,
    /// Connections that may wait in the kernel for each listener: 1 to 65535, 1024 by default.
    pub backlog: u16,
    /// Connections at a time over all poll groups: 1 to 1048576, 65536 by default. One more is
    /// closed as soon as it is accepted, and counted.
    pub max_connections: u32,
    /// Connections that each listener accepts in a second: 1 to 1000000, 4000 by default, with
    /// bursts of as many. More wait in the kernel's backlog. (SPDK: 32 in each 10 ms.)
    pub accept_rate_per_s: u32,
    /// Most data of one H2CData PDU in bytes (MAXH2CDATA): a multiple of 4 from 4096 to
    /// 4 MiB, 131072 by default. A host splits longer transfers.
    pub maxh2cdata: u32,
    /// Whether header digests are used with hosts that ask for them; on by default.
    pub header_digest: bool,
    /// Whether data digests are used with hosts that ask for them; on by default.
    pub data_digest: bool,
    /// Whether read data may be sent from the memory of a device that lends it, without a copy; on
    /// by default. Never with a data digest: digest and data must be of one moment.
    pub zcopy: bool,
    /// Keep-alive granularity in units of 100 ms: 1 to 65535, 100 by default.
    pub kas: u16,
    /// Shortest keep-alive timeout granted, in milliseconds, 10000 by default.
    pub min_kato_ms: u32,
    /// Small buffers that each poll group caches; `None`: the target's default.
    pub iobuf_small_cache_size: Option<u32>,
    /// Large buffers that each poll group caches; `None`: the target's default.
    pub iobuf_large_cache_size: Option<u32>,
    /// Time from accept to the whole ICReq: 1 to 3600000 ms, 10000 by default.
    pub icreq_timeout_ms: u32,
    /// Time from accept to a Connect that succeeded: 1 to 3600000 ms, 30000 by default.
    pub half_open_timeout_ms: u32,
    /// Time for a connection that is being closed to take what was still to be sent and to
    /// close its end: 1 to 3600000 ms, 2000 by default. Then it is reset.
    pub linger_timeout_ms: u32,
    /// Time in which a host must move something on: 1 to 3600000 ms, 15000 by default.
    ///
    /// While it owes data that it was asked for, or the rest of a PDU, it must send all of that
    /// or 64 KiB in each such period; while it does not take what it asked for, it must take 64
    /// KiB. Else the connection is closed, and the buffers that it held come back: after twice
    /// this time at the latest.
    pub progress_timeout_ms: u32,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            max_queue_depth: 128,
            max_io_qpairs_per_ctrlr: 127,
            in_capsule_data_size: 8192,
            max_io_size: 131_072,
            max_aq_depth: 128,
            c2h_success: true,
            sock_priority: 0,
            tos: 0,
            backlog: 1024,
            max_connections: 65_536,
            accept_rate_per_s: 4_000,
            maxh2cdata: 131_072,
            header_digest: true,
            data_digest: true,
            zcopy: true,
            kas: 100,
            min_kato_ms: 10_000,
            iobuf_small_cache_size: None,
            iobuf_large_cache_size: None,
            icreq_timeout_ms: 10_000,
            half_open_timeout_ms: 30_000,
            linger_timeout_ms: 2_000,
            progress_timeout_ms: 15_000,
        }
    }
}

impl TcpOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// The first that is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), TcpError> {
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
                && self.in_capsule_data_size <= self.max_io_size.min(IN_CAPSULE_DATA_SIZE_MAX),
            "in_capsule_data_size",
            self.in_capsule_data_size,
            "a multiple of 16 from 0 to max_io_size",
        )?;
        check(
            self.maxh2cdata.is_multiple_of(4)
                && (MIN_MAXH2CDATA..=4 * 1024 * 1024).contains(&self.maxh2cdata),
            "maxh2cdata",
            self.maxh2cdata,
            "a multiple of 4 from 4096 to 4194304",
        )?;
        range(
            "max_queue_depth",
            self.max_queue_depth,
            2,
            u32::from(u16::MAX),
        )?;
        range(
            "max_io_qpairs_per_ctrlr",
            self.max_io_qpairs_per_ctrlr,
            1,
            65_534,
        )?;
        range(
            "max_aq_depth",
            self.max_aq_depth,
            u32::from(MAX_AQ_DEPTH_MIN),
            4096,
        )?;
        range("sock_priority", self.sock_priority, 0, 6)?;
        range("backlog", self.backlog, 1, u32::from(u16::MAX))?;
        range(
            "max_connections",
            self.max_connections,
            1,
            MAX_CONNECTIONS_MAX,
        )?;
        range("accept_rate_per_s", self.accept_rate_per_s, 1, 1_000_000)?;
        range("kas", self.kas, 1, u32::from(u16::MAX))?;
        range("icreq_timeout_ms", self.icreq_timeout_ms, 1, TIMEOUT_MS_MAX)?;
        range(
            "half_open_timeout_ms",
            self.half_open_timeout_ms,
            1,
            TIMEOUT_MS_MAX,
        )?;
        range(
            "linger_timeout_ms",
            self.linger_timeout_ms,
            1,
            TIMEOUT_MS_MAX,
        )?;
        range(
            "progress_timeout_ms",
            self.progress_timeout_ms,
            1,
            TIMEOUT_MS_MAX,
        )
    }

    /// What the target library tells hosts and enforces.
    pub(crate) fn limits(&self) -> TransportLimits {
        TransportLimits {
            max_queue_depth: self.max_queue_depth,
            max_aq_depth: self.max_aq_depth,
            max_io_qpairs_per_ctrlr: self.max_io_qpairs_per_ctrlr,
            max_io_size: self.max_io_size,
            in_capsule_data_size: self.in_capsule_data_size,
            keyed_sgl: false,
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
) -> Result<(), TcpError> {
    if is_right {
        Ok(())
    } else {
        Err(TcpError::Option {
            option,
            value,
            right: right.into(),
        })
    }
}

fn range(option: &'static str, value: impl Into<u32>, min: u32, max: u32) -> Result<(), TcpError> {
    let value = value.into();
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(TcpError::Option {
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
        TcpOptions::default().validate().unwrap();
    }

    #[test]
    fn a_wrong_option_is_named_with_what_would_be_right() {
        let default = TcpOptions::default;
        let cases: [(TcpOptions, &str); 14] = [
            (
                TcpOptions {
                    max_io_size: 100_000,
                    ..default()
                },
                "max_io_size",
            ),
            (
                TcpOptions {
                    max_io_size: 4096,
                    ..default()
                },
                "max_io_size",
            ),
            (
                TcpOptions {
                    in_capsule_data_size: 4097,
                    ..default()
                },
                "in_capsule_data_size",
            ),
            (
                TcpOptions {
                    in_capsule_data_size: 1 << 20,
                    ..default()
                },
                "in_capsule_data_size",
            ),
            (
                TcpOptions {
                    maxh2cdata: 2048,
                    ..default()
                },
                "maxh2cdata",
            ),
            (
                TcpOptions {
                    max_queue_depth: 1,
                    ..default()
                },
                "max_queue_depth",
            ),
            (
                TcpOptions {
                    max_io_qpairs_per_ctrlr: 0,
                    ..default()
                },
                "max_io_qpairs_per_ctrlr",
            ),
            (
                TcpOptions {
                    max_aq_depth: 31,
                    ..default()
                },
                "max_aq_depth",
            ),
            (
                TcpOptions {
                    sock_priority: 7,
                    ..default()
                },
                "sock_priority",
            ),
            (
                TcpOptions {
                    backlog: 0,
                    ..default()
                },
                "backlog",
            ),
            (
                TcpOptions {
                    max_connections: 0,
                    ..default()
                },
                "max_connections",
            ),
            (
                TcpOptions {
                    accept_rate_per_s: 0,
                    ..default()
                },
                "accept_rate_per_s",
            ),
            (
                TcpOptions {
                    icreq_timeout_ms: 0,
                    ..default()
                },
                "icreq_timeout_ms",
            ),
            (
                TcpOptions {
                    progress_timeout_ms: 0,
                    ..default()
                },
                "progress_timeout_ms",
            ),
        ];
        for (options, name) in cases {
            let message = options.validate().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
            assert!(message.contains("must be"), "{message}");
        }
    }
}
