//! What a run does.

use std::str::FromStr;
use std::time::Duration;

use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::Nsid;

use crate::error::HostError;
use crate::options::HostOptions;

/// The pattern of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Both, at random places.
    RandRw,
    /// Reads one after the other.
    Read,
    /// Writes one after the other.
    Write,
    /// Both, one after the other.
    Rw,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RandRead,
        Self::RandWrite,
        Self::RandRw,
        Self::Read,
        Self::Write,
        Self::Rw,
    ];

    /// Its name, as in fio and SPDK.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::RandRw => "randrw",
            Self::Read => "read",
            Self::Write => "write",
            Self::Rw => "rw",
        }
    }

    /// Whether places are random.
    #[must_use]
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Reads of 100 I/Os, when the mix is `read_percent`.
    #[must_use]
    pub const fn read_percent(self, read_percent: u8) -> u8 {
        match self {
            Self::RandRead | Self::Read => 100,
            Self::RandWrite | Self::Write => 0,
            Self::RandRw | Self::Rw => read_percent,
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|workload| workload.name() == name).ok_or_else(|| {
            format!("workload {name} is unknown: randread, randwrite, randrw, read, write and rw are")
        })
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Options of a run.
#[derive(Clone, Debug)]
pub struct PerfOptions {
    /// Where the subsystem is.
    pub address: TransportAddress,
    /// Its name.
    pub subnqn: Nqn,
    /// The host's options. The number and the depth of its I/O queues follow from those here.
    pub host: HostOptions,
    /// The namespace; the first one if not told.
    pub nsid: Option<Nsid>,
    /// What to do.
    pub workload: Workload,
    /// Reads of 100 I/Os of a mixed workload.
    pub read_percent: u8,
    /// Bytes of an I/O, a multiple of the block size.
    pub io_size: u32,
    /// I/Os outstanding on each connection.
    pub queue_depth: u16,
    /// Connections, each an I/O queue of the one controller.
    pub connections: u16,
    /// How long to run.
    pub time: Option<Duration>,
    /// How many I/Os to run. With neither, 10 seconds.
    pub count: Option<u64>,
    /// Time to run before anything is counted.
    pub warm_up: Duration,
    /// Write stamped blocks, read them back and compare. A workload that reads first writes
    /// everything it may read.
    pub verify: bool,
    /// Bytes at the start of the namespace to use; all of them if not told.
    pub region_bytes: Option<u64>,
    /// Where random numbers begin: the same seed makes the same run.
    pub seed: u64,
    /// I/Os that may fail before the run ends.
    pub max_errors: u64,
    /// Keep what is read in buffers even without verification.
    pub keep_data: bool,
}

impl PerfOptions {
    /// Random reads of 4 KiB at depth 32 on one connection for 10 seconds.
    #[must_use]
    pub fn new(address: TransportAddress, subnqn: Nqn, host: HostOptions) -> Self {
        Self {
            address,
            subnqn,
            host,
            nsid: None,
            workload: Workload::RandRead,
            read_percent: 50,
            io_size: 4096,
            queue_depth: 32,
            connections: 1,
            time: None,
            count: None,
            warm_up: Duration::ZERO,
            verify: false,
            region_bytes: None,
            seed: 1,
            max_errors: 0,
            keep_data: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), HostError> {
        let refuse = |option, value, reason| {
            Err(HostError::Option {
                option,
                value,
                reason,
            })
        };
        if self.read_percent > 100 {
            return refuse(
                "read_percent",
                self.read_percent.into(),
                "0 to 100 are possible",
            );
        }
        if self.io_size < 512 || !self.io_size.is_multiple_of(512) {
            return refuse(
                "io_size",
                self.io_size.into(),
                "a multiple of 512 is needed",
            );
        }
        if !(1..=4095).contains(&self.queue_depth) {
            return refuse(
                "queue_depth",
                self.queue_depth.into(),
                "1 to 4095 are possible",
            );
        }
        if !(1..=1024).contains(&self.connections) {
            return refuse(
                "connections",
                self.connections.into(),
                "1 to 1024 are possible",
            );
        }
        Ok(())
    }
}
