//! Block devices.

use std::path::PathBuf;

use api::quantity::parse_bytes;
use clap::{Args, Subcommand};

use super::Expected;
use super::values::{bytes_u32, microseconds, milliseconds_u32, rule};

#[derive(Debug, Subcommand)]
pub(crate) enum BdevVerb {
    /// Create a block device
    #[command(subcommand)]
    Create(BdevKind),
    /// List block devices
    List,
    /// Show one
    Show {
        /// Name or UUID
        name: String,
    },
    /// Delete one; no namespace or layer may use it
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// Change its size
    Resize {
        /// Its name
        name: String,
        /// The new size
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        #[command(flatten)]
        expected: Expected,
    },
    /// Reset the controller of a drive; I/O waits meanwhile
    Reset {
        /// Its name
        name: String,
    },
    /// Show its counters and latencies
    Stat {
        /// Its name
        name: Option<String>,
        /// By thread as well
        #[arg(long)]
        per_thread: bool,
    },
    /// Set its limits; what is not given stays, 0 takes a limit away
    Qos {
        /// Its name
        name: String,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        expected: Expected,
    },
    /// Change the errors that an error layer makes
    Error {
        /// Its name
        name: String,
        /// See bdev create error; none: no more errors
        #[arg(long = "rule", value_parser = rule)]
        rules: Vec<api::v1::ErrorRule>,
        #[command(flatten)]
        expected: Expected,
    },
    /// Change the latencies of a delay layer
    Delay {
        /// Its name
        name: String,
        #[command(flatten)]
        latency: Latency,
        #[command(flatten)]
        expected: Expected,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BdevKind {
    /// A disk in memory; its content is gone after a restart
    Malloc {
        /// Its name
        name: String,
        #[arg(long, value_parser = parse_bytes)]
        /// Its size
        size: u64,
        #[command(flatten)]
        options: BdevOptions,
    },
    /// Takes every write, reads as zeroes
    Null {
        /// Its name
        name: String,
        #[arg(long, value_parser = parse_bytes)]
        /// Its size
        size: u64,
        #[command(flatten)]
        options: BdevOptions,
    },
    /// A regular file or a block device of the kernel
    File {
        /// Its name
        name: String,
        /// Absolute path
        path: PathBuf,
        /// Create or grow the file to this size [default: as it is]
        #[arg(long, value_parser = parse_bytes)]
        size: Option<u64>,
        /// Go round the page cache where that is possible [default: true]
        #[arg(long)]
        direct: Option<bool>,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        #[command(flatten)]
        options: BdevOptions,
    },
    /// A drive, driven past the kernel; its namespaces become NAMEn1, NAMEn2 and so on
    #[command(group = clap::ArgGroup::new("drive").required(true).args(["address", "serial"]))]
    Nvme {
        /// Its name
        name: String,
        /// PCI address, as in 0000:01:00.0
        address: Option<String>,
        /// Serial number; the drive is looked for among those that vfio-pci has
        #[arg(long)]
        serial: Option<String>,
        /// I/O queue pairs to ask for [default: enough for all reactors]
        #[arg(long)]
        io_queues: Option<u32>,
    },
    /// A layer that fails or corrupts I/O on purpose
    Error {
        /// Its name
        name: String,
        /// The device below
        base: String,
        /// io=read|write|flush|unmap|write-zeroes|compare|any, type=failure|pending|corrupt-data,
        /// num=N, ppm=N (of a million), sct=N, sc=N, dnr, offset=N, value=N, lba=FIRST-LAST;
        /// separated by commas
        #[arg(long = "rule", value_parser = rule)]
        rules: Vec<api::v1::ErrorRule>,
    },
    /// A layer that makes I/O slower
    Delay {
        /// Its name
        name: String,
        /// The device below
        base: String,
        #[command(flatten)]
        latency: Latency,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BdevOptions {
    /// 512 or 4096 [default: 512]
    #[arg(long, value_parser = bytes_u32)]
    pub(crate) block_size: Option<u32>,
    /// Identity of the device [default: made at random]
    #[arg(long)]
    pub(crate) uuid: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Latency {
    /// Average latency of reads
    #[arg(long, value_name = "TIME", value_parser = microseconds)]
    pub(crate) avg_read: Option<u64>,
    /// Latency of one read in a hundred
    #[arg(long, value_name = "TIME", value_parser = microseconds)]
    pub(crate) p99_read: Option<u64>,
    /// Average latency of writes
    #[arg(long, value_name = "TIME", value_parser = microseconds)]
    pub(crate) avg_write: Option<u64>,
    /// Latency of one write in a hundred
    #[arg(long, value_name = "TIME", value_parser = microseconds)]
    pub(crate) p99_write: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Reads and writes per second
    #[arg(long)]
    pub(crate) iops: Option<u64>,
    /// Bytes per second, reads and writes together
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) bandwidth: Option<u64>,
    /// Bytes read per second
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) read_bandwidth: Option<u64>,
    /// Bytes written per second
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) write_bandwidth: Option<u64>,
    /// How far an idle device may run ahead
    #[arg(long, value_name = "TIME", value_parser = milliseconds_u32)]
    pub(crate) burst: Option<u32>,
}
