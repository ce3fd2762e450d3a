//! The grammar: nouns, verbs and options. The doc comments are the help texts.

mod bdevs;
mod firmware;
mod nodes;
mod pools;
mod transports;
mod values;

use std::path::PathBuf;

use api::quantity::parse_bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::bdevs::*;
pub(crate) use self::firmware::*;
pub(crate) use self::nodes::{ConfigVerb, ContextVerb, MachineVerb, NodeVerb, PkiVerb, TimeVerb};
pub(crate) use self::pools::*;
pub(crate) use self::transports::*;
use self::values::{ana_state, bytes_u32, milliseconds};

/// Manage an Adit node.
///
/// Sizes take units (512MiB, 1TiB, 4KiB), times too (10s, 500ms). Exit codes: 0 done, 1 failed,
/// 2 wrong usage, 3 and 4 as firmware check says.
#[derive(Debug, Parser)]
#[command(
    name = "aditctl",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where aditd is: unix:PATH or tcp:ADDRESS:PORT [default: the context in use, else
    /// unix:/run/adit/aditd.sock]
    #[arg(long, global = true, env = "ADIT_SERVER")]
    pub(crate) server: Option<String>,
    /// The node to talk to, by the name that `context add` gave it
    #[arg(long, global = true, env = "ADIT_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Output for people (table) or for programs (json)
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Wait until what was created is in place, or what was begun has ended, at most this long
    #[arg(long, global = true, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "60s", value_parser = milliseconds)]
    pub(crate) wait: Option<u64>,
    /// Certificate authority of the server (PEM); turns TLS on for tcp:
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate (PEM)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The key of our certificate (PEM)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Name in the server's certificate, when it is not its address
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// The node itself
    #[command(subcommand)]
    Node(NodeVerb),
    /// The hardware of a node: of this one, or of the one that a context names
    #[command(subcommand)]
    Machine(MachineVerb),
    /// Nodes by name, and how each is reached
    #[command(subcommand)]
    Context(ContextVerb),
    /// Certificates for nodes and their clients
    #[command(subcommand)]
    Pki(PkiVerb),
    /// How hosts reach this node
    #[command(subcommand)]
    Transport(TransportVerb),
    /// RDMA devices of this node
    #[command(subcommand)]
    Rdma(RdmaVerb),
    /// Block devices
    #[command(subcommand)]
    Bdev(BdevVerb),
    /// Block devices that hold volumes
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Volumes of pools
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Snapshots of volumes
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Long work on pools and volumes
    #[command(subcommand)]
    Operation(OperationVerb),
    /// What a host connects to
    #[command(subcommand)]
    Subsystem(SubsystemVerb),
    /// Block devices as hosts see them
    #[command(subcommand)]
    Namespace(NamespaceVerb),
    /// Addresses at which a subsystem is reached
    #[command(subcommand)]
    Listener(ListenerVerb),
    /// Hosts that may connect to a subsystem
    #[command(subcommand)]
    Host(HostVerb),
    /// Path states (asymmetric namespace access)
    #[command(subcommand)]
    Ana(AnaVerb),
    /// Threads pinned to CPUs
    #[command(subcommand)]
    Reactor(ListOnly),
    /// Threads on reactors
    #[command(subcommand)]
    Thread(ListOnly),
    /// What threads run
    #[command(subcommand)]
    Poller(ListOnly),
    /// Ways from threads to devices
    #[command(subcommand)]
    Channel(ListOnly),
    /// Poll groups: the queue pairs of a thread
    #[command(subcommand)]
    PollGroup(ListOnly),
    /// I/O buffers
    #[command(subcommand)]
    Iobuf(IobufVerb),
    /// Connected controllers
    #[command(subcommand)]
    Controller(ControllerVerb),
    /// Connected queue pairs
    #[command(subcommand)]
    Qpair(QpairVerb),
    /// Settings of firmware and drives, beside what a profile wants
    #[command(subcommand)]
    Firmware(FirmwareVerb),
    /// Find out why a host cannot use a subsystem: walks from the node to a connection
    Check {
        /// NQN of the subsystem
        nqn: String,
        /// NQN of the host in question [default: one that may connect]
        #[arg(long, value_name = "HOSTNQN")]
        host: Option<String>,
    },
    /// Generate load on a subsystem, as a host
    Perf(Box<Perf>),
    /// Make the node be what a document says, in one transaction
    Apply {
        /// TOML or JSON; - is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Say what would change and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Leave alone what the document does not name
        #[arg(long)]
        keep_others: bool,
        /// Fail unless the state has this revision
        #[arg(long, value_name = "REVISION")]
        expected_revision: Option<u64>,
    },
    /// Print the state as a document that apply takes
    Export,
    /// Print changes as they happen
    Watch {
        /// Only these kinds: transport, bdev, pool, volume, snapshot, operation, subsystem,
        /// namespace, listener, host, controller
        #[arg(long, value_name = "KIND")]
        kind: Vec<String>,
        /// Begin after this revision
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
    /// Show reactors, devices and connections live
    Top {
        /// Time between two screens
        #[arg(long, default_value = "1s", value_parser = milliseconds)]
        interval: u64,
        /// End after so many screens; 0: go on until interrupted
        #[arg(long, default_value_t = 0)]
        count: u64,
    },
    /// Print a completion script
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    Man {
        /// Where to
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Perf {
    /// tcp://ADDRESS:PORT/NQN or rdma://ADDRESS:PORT/NQN
    pub(crate) subsystem: String,
    /// randread, randwrite, randrw, read, write or rw
    #[arg(long, default_value = "randread")]
    pub(crate) workload: nvmf_host::perf::Workload,
    /// Reads of 100 I/Os in a mixed workload
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: u8,
    /// Size of an I/O
    #[arg(long, default_value = "4KiB", value_name = "SIZE", value_parser = bytes_u32)]
    pub(crate) io_size: u32,
    /// I/Os outstanding on each connection
    #[arg(long, default_value_t = 32)]
    pub(crate) queue_depth: u16,
    /// How long to run [default: 10s, unless --count is given]
    #[arg(long, value_parser = milliseconds)]
    pub(crate) time: Option<u64>,
    /// How many I/Os to run
    #[arg(long)]
    pub(crate) count: Option<u64>,
    /// Time to run before anything is counted
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = milliseconds)]
    pub(crate) warm_up: u64,
    /// Connections, each an I/O queue
    #[arg(long, default_value_t = 1)]
    pub(crate) connections: u16,
    /// Write stamped blocks, read them back and compare; destroys what is there
    #[arg(long)]
    pub(crate) verify: bool,
    /// Ask for header digests
    #[arg(long)]
    pub(crate) header_digest: bool,
    /// Ask for data digests
    #[arg(long)]
    pub(crate) data_digest: bool,
    /// Namespace [default: the first]
    #[arg(long)]
    pub(crate) nsid: Option<u32>,
    /// Use only so much of its start [default: all]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) region: Option<u64>,
    /// Where random numbers begin
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// NQN to connect as [default: a new host each time]
    #[arg(long, value_name = "HOSTNQN")]
    pub(crate) host: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ListOnly {
    /// List them
    List {
        /// Only of this thread
        #[arg(long)]
        thread: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum IobufVerb {
    /// Show pools and who uses them
    Stat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RdmaVerb {
    /// List devices with their ports, addresses and the listeners that use them
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TransportVerb {
    /// Create a transport with these options
    Create {
        #[command(subcommand)]
        kind: TransportKind,
    },
    /// List transports
    List,
    /// Show one
    Show {
        /// Its type: tcp or rdma
        #[arg(default_value = "tcp")]
        trtype: String,
    },
    /// Change options; they hold for connections made afterwards
    Set {
        #[command(subcommand)]
        kind: TransportKind,
    },
    /// Delete one; no listener may use it
    Delete {
        /// Its type: tcp or rdma
        trtype: String,
        #[command(flatten)]
        expected: Expected,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Expected {
    /// Fail unless the object has this generation
    #[arg(long, value_name = "GENERATION")]
    pub(crate) expected_generation: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SubsystemVerb {
    /// Create a subsystem
    Create {
        /// Its NVMe qualified name
        nqn: String,
        /// Let every host in
        #[arg(long)]
        allow_any_host: bool,
        /// Serial number, at most 20 characters [default: derived from the NQN]
        #[arg(long)]
        serial: Option<String>,
        /// Model number, at most 40 characters
        #[arg(long)]
        model: Option<String>,
        /// Free text for people
        #[arg(long)]
        label: Option<String>,
        /// Largest NSID [default: 32]
        #[arg(long)]
        max_namespaces: Option<u32>,
        /// Report path states to hosts [default: true; SPDK: false]
        #[arg(long)]
        ana_reporting: Option<bool>,
        /// Smallest controller ID [default: 1]
        #[arg(long)]
        min_cntlid: Option<u32>,
        /// Largest controller ID [default: 65519]
        #[arg(long)]
        max_cntlid: Option<u32>,
    },
    /// List subsystems
    List,
    /// Show one with its namespaces, listeners and hosts
    Show {
        /// Its NQN
        nqn: String,
    },
    /// Change one
    Set {
        /// Its NQN
        nqn: String,
        /// Let every host in
        #[arg(long)]
        allow_any_host: Option<bool>,
        /// Free text for people
        #[arg(long)]
        label: Option<String>,
        /// Largest NSID; only upwards
        #[arg(long)]
        max_namespaces: Option<u32>,
        #[command(flatten)]
        expected: Expected,
    },
    /// Delete one with all under it; its block devices stay
    Delete {
        /// Its NQN
        nqn: String,
        #[command(flatten)]
        expected: Expected,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceVerb {
    /// Show a block device to hosts
    Add {
        /// NQN of the subsystem
        nqn: String,
        /// Name or UUID of the block device
        bdev: String,
        /// Namespace ID [default: the lowest that is free]
        #[arg(long)]
        nsid: Option<u32>,
        /// Globally unique ID, 32 hexadecimal digits [default: the UUID]
        #[arg(long)]
        nguid: Option<String>,
        /// Extended unique ID, 16 hexadecimal digits [default: none]
        #[arg(long)]
        eui64: Option<String>,
        /// UUID [default: the block device's]
        #[arg(long)]
        uuid: Option<String>,
        /// ANA group [default: the NSID]
        #[arg(long)]
        anagrpid: Option<u32>,
        /// Show it to these hosts only
        #[arg(long, value_name = "HOSTNQN")]
        visible_to: Vec<String>,
        /// Show it to no host but those in --visible-to
        #[arg(long)]
        no_auto_visible: bool,
        /// Refuse writes
        #[arg(long)]
        write_protect: bool,
    },
    /// Show one, with the hosts that are registered with it and who holds a reservation
    Show {
        /// NQN of the subsystem
        nqn: String,
        /// Namespace ID
        nsid: u32,
    },
    /// List namespaces
    List {
        /// Only of this subsystem
        nqn: Option<String>,
    },
    /// Change one live
    Set {
        /// NQN of the subsystem
        nqn: String,
        /// Namespace ID
        nsid: u32,
        /// ANA group
        #[arg(long)]
        anagrpid: Option<u32>,
        /// Refuse writes
        #[arg(long)]
        write_protect: Option<bool>,
        /// Show it to no host but those in --visible-to
        #[arg(long)]
        no_auto_visible: Option<bool>,
        /// Show it to these hosts
        #[arg(long, value_name = "HOSTNQN")]
        visible_to: Vec<String>,
        #[command(flatten)]
        expected: Expected,
    },
    /// Change the size of the device behind one
    Resize {
        /// NQN of the subsystem
        nqn: String,
        /// Namespace ID
        nsid: u32,
        /// The new size
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
    },
    /// Take one away from hosts; its block device stays
    Remove {
        /// NQN of the subsystem
        nqn: String,
        /// Namespace ID
        nsid: u32,
        #[command(flatten)]
        expected: Expected,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ListenerVerb {
    /// Let hosts reach a subsystem at an address
    Add {
        /// NQN of the subsystem
        nqn: String,
        /// tcp://ADDRESS:PORT or rdma://ADDRESS:PORT
        address: String,
        /// Path state: optimized, non-optimized, inaccessible, persistent-loss or change
        #[arg(long, value_parser = ana_state)]
        ana_state: Option<api::v1::AnaState>,
    },
    /// List listeners
    List {
        /// Only of this subsystem
        nqn: Option<String>,
    },
    /// Stop listening; connections made there are closed
    Remove {
        /// NQN of the subsystem
        nqn: String,
        /// tcp://ADDRESS:PORT or rdma://ADDRESS:PORT
        address: String,
        #[command(flatten)]
        expected: Expected,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostVerb {
    /// Let a host in
    Add {
        /// NQN of the subsystem
        nqn: String,
        /// NQN of the host
        host: String,
    },
    /// List hosts
    List {
        /// Only of this subsystem
        nqn: Option<String>,
    },
    /// Take the right away and disconnect the host
    Remove {
        /// NQN of the subsystem
        nqn: String,
        /// NQN of the host
        host: String,
        /// How long its I/O in flight may take
        #[arg(long, default_value = "5s", value_parser = milliseconds)]
        timeout: u64,
        #[command(flatten)]
        expected: Expected,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AnaVerb {
    /// Set the state of a path
    Set {
        /// NQN of the subsystem
        nqn: String,
        /// tcp://ADDRESS:PORT or rdma://ADDRESS:PORT
        address: String,
        /// optimized, non-optimized, inaccessible, persistent-loss or change
        #[arg(value_parser = ana_state)]
        state: api::v1::AnaState,
        /// Only this ANA group [default: every group]
        #[arg(long)]
        group: Option<u32>,
        #[command(flatten)]
        expected: Expected,
    },
    /// List path states
    List {
        /// Only of this subsystem
        nqn: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ControllerVerb {
    /// List controllers
    List {
        /// Only of this subsystem
        nqn: Option<String>,
    },
    /// End one; its host may connect again
    Disconnect {
        /// NQN of the subsystem
        nqn: String,
        /// Controller ID
        cntlid: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum QpairVerb {
    /// List queue pairs
    List {
        /// Only of this subsystem
        nqn: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::values::rule;
    use super::*;

    fn parses(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_grammar_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn lines_of_the_manual_are_understood() {
        for line in [
            "aditctl --server unix:/run/x bdev create malloc m0 --size 512MiB --block-size 512",
            "aditctl transport create tcp --in-capsule-data-size 8KiB --max-queue-depth 128 \
             --max-io-size 128KiB",
            "aditctl transport list",
            "aditctl context add n1 --endpoint 192.0.2.1:50051 --ca ca --cert c --key k",
            "aditctl context add n1 --endpoint 192.0.2.1:50051 --code X --fingerprint ab:cd",
            "aditctl context list",
            "aditctl context use n1",
            "aditctl context remove n1",
            "aditctl --context n1 machine show",
            "aditctl machine plan -f node.toml",
            "aditctl machine apply --yes",
            "aditctl node system",
            "aditctl node logs aditd --follow --since 10m --tail 5",
            "aditctl node kmsg --follow",
            "aditctl node services",
            "aditctl node bundle -f b.tar.zst",
            "aditctl node reboot",
            "aditctl node poweroff",
            "aditctl node wipe nvme0n1 --serial S",
            "aditctl node config get --previous",
            "aditctl node config apply -f node.toml --dry-run --sign-with pki",
            "aditctl pki init pki --name site",
            "aditctl pki issue pki alice --role operator --days 30",
            "aditctl bdev create null n0 --size 1TiB",
            "aditctl bdev create file f0 /srv/f0 --size 4GiB",
            "aditctl bdev create file f0 /srv/f0",
            "aditctl bdev create error e0 m0 --rule io=read,num=5,sc=0x81",
            "aditctl bdev create delay d0 m0 --avg-read 5ms --p99-read 10ms",
            "aditctl bdev list",
            "aditctl bdev delete m0",
            "aditctl bdev stat m0",
            "aditctl bdev qos m0 --iops 500",
            "aditctl subsystem create nqn.2026-11.io.adit:a --allow-any-host --serial S --model M",
            "aditctl namespace add nqn.2026-11.io.adit:a m0 --nsid 3",
            "aditctl namespace list",
            "aditctl namespace remove nqn.2026-11.io.adit:a 3",
            "aditctl namespace resize nqn.2026-11.io.adit:a 3 --size 2GiB",
            "aditctl listener add nqn.2026-11.io.adit:a tcp://127.0.0.1:4420",
            "aditctl host add nqn.2026-11.io.adit:a nqn.2014-08.org.nvmexpress:uuid:x",
            "aditctl ana set nqn.2026-11.io.adit:a tcp://127.0.0.1:4420 inaccessible --group 2",
            "aditctl subsystem list -o json",
            "aditctl subsystem show nqn.2026-11.io.adit:a",
            "aditctl subsystem delete nqn.2026-11.io.adit:a",
            "aditctl reactor list",
            "aditctl thread list",
            "aditctl poller list",
            "aditctl channel list",
            "aditctl iobuf stat",
            "aditctl controller list",
            "aditctl qpair list",
            "aditctl pool create p m0",
            "aditctl pool create p m0 --cluster-size 64KiB --force",
            "aditctl pool import m0 --name p",
            "aditctl pool list",
            "aditctl pool show p",
            "aditctl pool grow p",
            "aditctl pool export p",
            "aditctl pool delete p",
            "aditctl pool check p",
            "aditctl pool repair p",
            "aditctl pool scrub p --rate 100MiB --wait",
            "aditctl volume create p/v --size 10GiB --thick",
            "aditctl volume clone p/v@s p/w",
            "aditctl volume list p",
            "aditctl volume show p/v",
            "aditctl volume resize p/v --size 20GiB",
            "aditctl volume resize p/v --size 1GiB --allow-shrink",
            "aditctl volume rename p/v p/w",
            "aditctl volume delete p/v --wait",
            "aditctl volume inflate p/v",
            "aditctl volume decouple p/v",
            "aditctl volume rollback p/v p/v@s",
            "aditctl volume set-parent p/v p/w@s",
            "aditctl volume set-parent p/v --bdev gold",
            "aditctl volume diff p/v@s p/v@t",
            "aditctl volume share p/v --listen tcp://127.0.0.1:4420 --nqn n --host a --host b",
            "aditctl snapshot create p/v@s p/w@s",
            "aditctl snapshot list p/v",
            "aditctl snapshot show p/v@s",
            "aditctl snapshot delete p/v@s",
            "aditctl operation list p",
            "aditctl operation show p/1",
            "aditctl operation cancel p/1",
            "aditctl operation wait p/1",
            "aditctl apply -f FILE",
            "aditctl watch",
            "aditctl check nqn.2026-11.io.adit:a",
            "aditctl perf tcp://127.0.0.1:4420/nqn.2026-11.io.adit:a --workload randrw --read-percent 70 \
             --io-size 4KiB --queue-depth 32 --time 10s --connections 1 --verify --header-digest \
             --data-digest -o json",
            "aditctl top",
            "aditctl completion bash",
            "aditctl man /tmp/x",
            "aditctl listener add n tcp://127.0.0.1:4420 --wait",
            "aditctl listener add n tcp://127.0.0.1:4420 --wait=5s",
        ] {
            if let Err(error) = parses(line) {
                panic!("{line}\n{error}");
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused_with_code_2() {
        for line in [
            "aditctl bdev create malloc m0",
            "aditctl bdev create malloc m0 --size lots",
            "aditctl bdev create delay d m --avg-read 1ns",
            "aditctl bdev create error e m --rule io=nothing",
            "aditctl bdev create error e m --rule what=1",
            "aditctl ana set n tcp://127.0.0.1:4420 fine",
            "aditctl nonsense",
            "aditctl pool create p",
            "aditctl volume create p/v",
            "aditctl volume share p/v",
            "aditctl snapshot create",
            "aditctl perf tcp://127.0.0.1:4420/n --workload sometimes",
            "aditctl perf tcp://127.0.0.1:4420/n --read-percent 101",
        ] {
            assert_eq!(parses(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn rules_carry_every_word() {
        let rule = rule(
            "io=write,type=corrupt-data,num=3,ppm=10,sct=2,sc=0x80,dnr,offset=4,value=1,lba=5-9",
        );
        assert_eq!(
            rule.unwrap(),
            api::v1::ErrorRule {
                io_type: api::v1::IoType::Write.into(),
                error_type: api::v1::ErrorType::CorruptData.into(),
                num: 3,
                probability_ppm: Some(10),
                sct: Some(2),
                sc: Some(0x80),
                dnr: true,
                corrupt_offset: 4,
                corrupt_value: Some(1),
                lba_first: Some(5),
                lba_last: Some(9),
            }
        );
    }
}
