//! Pools, volumes, snapshots, operations.

use api::quantity::parse_bytes;
use clap::{Args, Subcommand, ValueEnum};

use super::Expected;
use super::bdevs::Limits;
use super::values::{label, milliseconds_u32, percent};

/// Of work that takes long.
#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// Do not wait: print the operation that does it
    #[arg(long)]
    pub(crate) detach: bool,
}

/// Labels of something new, or that is looked for.
#[derive(Debug, Args)]
pub(crate) struct Labels {
    /// A label; give it again for more
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
}

/// When a pool warns.
#[derive(Debug, Args)]
pub(crate) struct Thresholds {
    /// Share in use or set aside at which it warns [default: 80]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) warn_percent: Option<u32>,
    /// Share at which it is critical [default: 90]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) critical_percent: Option<u32>,
}

/// Limits of a new volume.
#[derive(Debug, Args)]
pub(crate) struct NewLimits {
    /// Limit: reads and writes per second
    #[arg(long)]
    qos_iops: Option<u64>,
    /// Limit: bytes per second, reads and writes together
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    qos_bandwidth: Option<u64>,
    /// Limit: bytes read per second
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    qos_read_bandwidth: Option<u64>,
    /// Limit: bytes written per second
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    qos_write_bandwidth: Option<u64>,
    /// How far it may run ahead of its limits after it was idle
    #[arg(long, value_name = "TIME", value_parser = milliseconds_u32)]
    qos_burst: Option<u32>,
}

impl NewLimits {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            iops: self.qos_iops,
            bandwidth: self.qos_bandwidth,
            read_bandwidth: self.qos_read_bandwidth,
            write_bandwidth: self.qos_write_bandwidth,
            burst: self.qos_burst,
        }
    }
}

/// Formats of images.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The bytes as they are
    Raw,
    /// QEMU's format
    Qcow2,
}

impl ImageFormat {
    pub(crate) fn name(format: Option<Self>) -> String {
        match format {
            None => "",
            Some(Self::Raw) => "raw",
            Some(Self::Qcow2) => "qcow2",
        }
        .to_owned()
    }
}

/// Whether it is the system pool.
#[derive(Debug, Args)]
pub(crate) struct SystemMark {
    /// Keep the node's own state in it, in the place of what it holds of a node
    #[arg(long, conflicts_with = "no_system")]
    system: bool,
    /// Keep the node's own state in it no more
    #[arg(long)]
    no_system: bool,
}

impl SystemMark {
    /// `None` when nothing was said.
    pub(crate) fn wanted(&self) -> Option<bool> {
        match (self.system, self.no_system) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    /// Make an empty pool on a block device
    Create {
        /// Its name
        name: String,
        /// Name or UUID of the block device
        bdev: String,
        /// Size of a cluster, a power of two from 64KiB to 32MiB [default: 1MiB, more on drives that write in
        /// units above 4KiB]
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        cluster_size: Option<u64>,
        /// Overwrite what is on the device
        #[arg(long)]
        force: bool,
        /// Keep the node's own state in it: on a node without a disk of its own it comes back from there
        /// after a loss of power
        #[arg(long)]
        system: bool,
        #[command(flatten)]
        thresholds: Thresholds,
        #[command(flatten)]
        labels: Labels,
    },
    /// Set when it warns, and whether it is the system pool; what is not given stays
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        thresholds: Thresholds,
        #[command(flatten)]
        system: SystemMark,
    },
    /// Set labels with KEY=VALUE, take them away with KEY-
    Label {
        /// Its name
        name: String,
        /// KEY=VALUE or KEY-
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Give it, and its volumes with it, another name; nothing may use them
    Rename {
        /// Its name
        name: String,
        /// Its new name
        new_name: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// Attach a pool that is on a block device, after an export or from another node
    Import {
        /// Name or UUID of the block device
        bdev: String,
        /// Only if this is the pool's name
        #[arg(long)]
        name: Option<String>,
    },
    /// List pools
    List,
    /// Show one
    Show {
        /// Its name
        name: String,
    },
    /// Use what the block device has grown by
    Grow {
        /// Its name
        name: String,
    },
    /// Close one and let go of its device; everything stays on it
    Export {
        /// Its name
        name: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// Delete one with all its volumes
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// List what is wrong in its metadata and what repair would do; fails when something is
    Check {
        /// Its name
        name: String,
    },
    /// Repair what check tells of
    Repair {
        /// Its name
        name: String,
    },
    /// Read everything that is mapped and compare snapshots with their checksums; fails when the device
    /// cannot read some of it or returns something else, and says what
    Scrub {
        /// Its name
        name: String,
        /// Bytes read per second at most [default: no limit]
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        rate: Option<u64>,
        #[command(flatten)]
        detach: Detach,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Create an empty volume
    Create {
        /// POOL/NAME
        name: String,
        /// Its size
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// Set space aside for all of it, so that its writes never fail for want of space
        #[arg(long)]
        thick: bool,
        #[command(flatten)]
        limits: NewLimits,
        #[command(flatten)]
        labels: Labels,
    },
    /// Create a volume that shows what a snapshot or a block device shows
    #[command(allow_missing_positional = true)]
    Clone {
        /// POOL/NAME@SNAP
        #[arg(required_unless_present = "from_bdev", conflicts_with = "from_bdev")]
        snapshot: Option<String>,
        /// POOL/NEW
        name: String,
        /// The block device to show, in place of a snapshot; it is only read
        #[arg(long, value_name = "BDEV")]
        from_bdev: Option<String>,
        #[command(flatten)]
        labels: Labels,
    },
    /// List volumes
    List {
        /// Only of this pool
        pool: Option<String>,
        #[command(flatten)]
        labels: Labels,
    },
    /// Show one
    Show {
        /// POOL/NAME or POOL/NAME@SNAP
        name: String,
    },
    /// Change its size; hosts that see it are told
    Resize {
        /// POOL/NAME
        name: String,
        /// The new size
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// Make it smaller if that is so; what is cut off is gone
        #[arg(long)]
        allow_shrink: bool,
    },
    /// Set labels with KEY=VALUE, take them away with KEY-
    Label {
        /// POOL/NAME or POOL/NAME@SNAP
        name: String,
        /// KEY=VALUE or KEY-
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Set its limits, kept with it; what is not given stays, 0 takes a limit away
    Qos {
        /// POOL/NAME
        name: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// Refuse writes, or allow them again; hosts that see it are told
    Update {
        /// POOL/NAME
        name: String,
        /// on or off
        #[arg(long, value_name = "on|off", value_parser = ["on", "off"])]
        read_only: String,
    },
    /// Give it, and its snapshots with it, another name; nothing may use them
    Rename {
        /// POOL/NAME
        name: String,
        /// POOL/NEW
        new_name: String,
    },
    /// Delete one; no namespace or layer may use it
    Delete {
        /// POOL/NAME
        name: String,
    },
    /// Give it clusters of its own for its whole size
    Inflate {
        /// POOL/NAME
        name: String,
    },
    /// Copy what it shows of its parent, so that it rests on no snapshot
    Decouple {
        /// POOL/NAME
        name: String,
    },
    /// Make it show what a snapshot shows; what was written since is gone
    Rollback {
        /// POOL/NAME
        name: String,
        /// POOL/NAME@SNAP
        snapshot: String,
    },
    /// Make it lie on another snapshot or device; what it has itself stays
    SetParent {
        /// POOL/NAME
        name: String,
        /// POOL/NAME@SNAP
        #[arg(required_unless_present = "bdev", conflicts_with = "bdev")]
        snapshot: Option<String>,
        /// A block device outside of pools, in place of a snapshot
        #[arg(long)]
        bdev: Option<String>,
    },
    /// List where two snapshots may differ
    Diff {
        /// The older one, POOL/NAME@SNAP
        from: String,
        /// The newer one, POOL/NAME@SNAP
        to: String,
    },
    /// Make a volume of an image, as large as that
    Import {
        /// POOL/NAME, a new one
        name: String,
        /// Absolute path of a file or block device on the node where aditd runs
        file: String,
        /// Set space aside for all of it, so that its writes never fail for want of space
        #[arg(long)]
        thick: bool,
        /// Format of the image [default: its first bytes tell]
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
        #[command(flatten)]
        labels: Labels,
        #[command(flatten)]
        detach: Detach,
    },
    /// Write a snapshot, or a volume that nothing uses, to an image
    Export {
        /// POOL/NAME@SNAP or POOL/NAME
        name: String,
        /// Absolute path of a new file, or of a block device, on the node where aditd runs
        file: String,
        /// Format of the image [default: qcow2 if FILE ends so, else raw]
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
        #[command(flatten)]
        detach: Detach,
    },
    /// Serve a volume: subsystem, namespace and listener in one call
    Share {
        /// POOL/NAME or POOL/NAME@SNAP
        name: String,
        /// Where to listen: tcp://ADDRESS:PORT
        #[arg(long, value_name = "ADDRESS")]
        listen: String,
        /// NQN of the subsystem [default: nqn.2026-11.io.adit:POOL:NAME]
        #[arg(long)]
        nqn: Option<String>,
        /// A host that may connect [default: every host]
        #[arg(long = "host", value_name = "HOSTNQN")]
        hosts: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Take snapshots of volumes of one pool, all at the same moment
    Create {
        /// POOL/NAME@SNAP
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        labels: Labels,
    },
    /// List snapshots
    List {
        /// Only of this pool (POOL) or volume (POOL/NAME)
        of: Option<String>,
        #[command(flatten)]
        labels: Labels,
    },
    /// Show one
    Show {
        /// POOL/NAME@SNAP
        name: String,
    },
    /// Copy what it has, and its parent has not, to the same places of a block device
    Copy {
        /// POOL/NAME@SNAP
        name: String,
        /// Name or UUID of a block device at least as large, that nothing uses
        bdev: String,
        #[command(flatten)]
        detach: Detach,
    },
    /// Delete one, in any order and with or without clones
    Delete {
        /// POOL/NAME@SNAP
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperationVerb {
    /// List operations
    List {
        /// Only of this pool
        pool: Option<String>,
    },
    /// Show one
    Show {
        /// POOL/ID
        name: String,
    },
    /// Ask one to stop
    Cancel {
        /// POOL/ID
        name: String,
    },
    /// Wait until one has ended; fails when it did
    Wait {
        /// POOL/ID
        name: String,
    },
}
