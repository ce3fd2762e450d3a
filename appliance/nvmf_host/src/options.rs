//! What a host is told.

use std::sync::Arc;
use std::time::Duration;

use fabric_wire::{Nqn, tcp};
use verbs::Provider;

use crate::error::HostError;

/// Who the host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Name of the host.
    pub hostnqn: Nqn,
    /// Host Identifier. One host keeps one for all its associations; it must not be zero.
    pub hostid: [u8; 16],
}

impl HostIdentity {
    /// The identity of a host with this UUID: its name is `nqn.2014-08.org.nvmexpress:uuid:…`.
    #[must_use]
    pub fn from_uuid_bytes(uuid: [u8; 16]) -> Self {
        Self {
            hostnqn: Nqn::from_uuid_bytes(uuid),
            hostid: uuid,
        }
    }
}

/// Options of an association. The names and defaults are those of nvme-cli and SPDK where they
/// mean the same.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Who the host is.
    pub identity: HostIdentity,
    /// Ask for header digests. A controller that refuses fails the connection.
    pub header_digest: bool,
    /// Ask for data digests. A controller that refuses fails the connection.
    pub data_digest: bool,
    /// HPDA: alignment of data sent to the host, in dwords less one, 0 to 31.
    pub hpda: u8,
    /// R2Ts that a command may have outstanding, 1 to 64.
    pub max_r2t: u16,
    /// I/O queues to connect, 0 to 1024. The controller may grant fewer.
    pub io_queues: u16,
    /// Commands that an I/O queue may have outstanding, 1 to 4095; bounded by CAP.MQES.
    pub io_queue_depth: u16,
    /// Commands that the admin queue may have outstanding, 8 to 1023.
    pub admin_queue_depth: u16,
    /// Keep-alive time-out, granted in the controller's granularity. Zero: none.
    pub keep_alive: Duration,
    /// Time for a TCP connection, for ICResp, and for Connect, each.
    pub connect_timeout: Duration,
    /// Time for an admin command.
    pub admin_timeout: Duration,
    /// Time for an I/O command. Then it is aborted.
    pub io_timeout: Duration,
    /// Time for an aborted command to come back. Then its connection is failed.
    pub abort_grace: Duration,
    /// Asynchronous Event Requests to keep outstanding, at most what the controller allows.
    pub async_events: u8,
    /// Ask for submission queue flow control to be off.
    pub disable_sq_flow_control: bool,
    /// How often an admin queue that waits for nothing but events is looked at by
    /// [`crate::Controller::poll`]. A readable socket is the better reason: see
    /// [`crate::Controller::with_wake_fd`].
    pub admin_poll_interval: Duration,
    /// Type of service of the sockets (IP_TOS, IPV6_TCLASS), if any.
    pub tos: Option<u8>,
    /// Where RDMA comes from. Without it addresses of RDMA cannot be connected to.
    pub verbs: Option<Arc<dyn Provider>>,
    /// Whether a command over RDMA shows the controller its own buffer only, by a memory window,
    /// where the device has such. Otherwise each queue shows all the buffers that it has.
    pub memory_windows: bool,
}

impl HostOptions {
    /// The defaults for a host.
    #[must_use]
    pub fn new(identity: HostIdentity) -> Self {
        Self {
            identity,
            header_digest: false,
            data_digest: false,
            hpda: 0,
            max_r2t: 16,
            io_queues: 1,
            io_queue_depth: 128,
            admin_queue_depth: 31,
            keep_alive: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            admin_timeout: Duration::from_secs(10),
            io_timeout: Duration::from_secs(30),
            abort_grace: Duration::from_secs(5),
            async_events: 4,
            disable_sq_flow_control: false,
            admin_poll_interval: Duration::from_millis(1),
            tos: None,
            verbs: None,
            memory_windows: true,
        }
    }

    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), HostError> {
        let check = |option, value: u64, range: std::ops::RangeInclusive<u64>, reason| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(HostError::Option {
                    option,
                    value,
                    reason,
                })
            }
        };
        let max_alignment = tcp::MAX_DATA_ALIGNMENT.into();
        check(
            "hpda",
            self.hpda.into(),
            0..=max_alignment,
            "0 to 31 are possible",
        )?;
        check(
            "max_r2t",
            self.max_r2t.into(),
            1..=64,
            "1 to 64 are possible",
        )?;
        check(
            "io_queues",
            self.io_queues.into(),
            0..=1024,
            "0 to 1024 are possible",
        )?;
        let depth = u64::from(self.io_queue_depth);
        check("io_queue_depth", depth, 1..=4095, "1 to 4095 are possible")?;
        let depth = u64::from(self.admin_queue_depth);
        check(
            "admin_queue_depth",
            depth,
            8..=1023,
            "8 to 1023 are possible",
        )?;
        let reserved = u64::from(self.admin_queue_depth) - 4;
        let events = self.async_events.into();
        check(
            "async_events",
            events,
            0..=reserved,
            "leave 4 admin commands for others",
        )?;
        let kato_ms = crate::error::ms(self.keep_alive);
        let reason = "at most 2^32 - 1 milliseconds are possible";
        check("keep_alive", kato_ms, 0..=u32::MAX.into(), reason)?;
        if self.identity.hostid == [0; 16] {
            let reason = "a host identifier must not be zero";
            return Err(HostError::Option {
                option: "hostid",
                value: 0,
                reason,
            });
        }
        Ok(())
    }

    pub(crate) fn kato_ms(&self) -> u32 {
        u32::try_from(self.keep_alive.as_millis()).unwrap_or(u32::MAX)
    }
}
