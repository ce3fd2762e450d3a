//! Nodes as machines: the verbs of `node`, `machine`, `context` and `pki`.

use std::path::PathBuf;

use clap::Subcommand;

use super::values::milliseconds;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Show what aditd runs and how it is
    Show,
    /// Stop accepting and finish I/O
    Drain {
        /// How long I/O in flight may take
        #[arg(long, default_value = "10s", value_parser = milliseconds)]
        timeout: u64,
    },
    /// Drain, then end aditd
    Shutdown {
        /// How long I/O in flight may take
        #[arg(long, default_value = "10s", value_parser = milliseconds)]
        timeout: u64,
    },
    /// Show the machine: name, mode, addresses, alerts
    System,
    /// List the programs that init keeps running
    Services,
    /// End a service and start it again, a held one too
    Restart {
        /// Its name
        service: String,
    },
    /// Show what was done to the hardware, and how that went
    Actions,
    /// Print what services printed
    Logs {
        /// Only of this one
        service: Option<String>,
        /// Go on
        #[arg(long)]
        follow: bool,
        /// Only what is not older
        #[arg(long, value_name = "TIME", value_parser = milliseconds)]
        since: Option<u64>,
        /// At most so many lines of each that are there already
        #[arg(long)]
        tail: Option<u32>,
    },
    /// Print the kernel's log
    Kmsg {
        /// Go on
        #[arg(long)]
        follow: bool,
        /// Only what is not older
        #[arg(long, value_name = "TIME", value_parser = milliseconds)]
        since: Option<u64>,
        /// At most so many records that are there already
        #[arg(long)]
        tail: Option<u32>,
    },
    /// Write a support bundle (tar.zst); keys are left out
    Bundle {
        /// Where to
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Take the memory of programs that crashed along, keys included (administrators)
        #[arg(long)]
        cores: bool,
    },
    /// The configuration document
    #[command(subcommand)]
    Config(ConfigVerb),
    /// The clock
    #[command(subcommand)]
    Time(TimeVerb),
    /// Show the management interface
    Network,
    /// Destroy all data of a drive that nothing uses
    Wipe {
        /// Name of the disk, as in nvme0n1, or PCI address of an NVMe drive
        drive: String,
        /// Its serial number; without it the answer tells which it is, and nothing is done
        #[arg(long, default_value = "", hide_default_value = true)]
        serial: String,
    },
    /// Restart the node in order
    Reboot,
    /// Switch the node off in order
    Poweroff,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Print the document in force
    Get {
        /// The one before it
        #[arg(long)]
        previous: bool,
    },
    /// Make a document the one in force
    Apply {
        /// TOML
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Check only
        #[arg(long)]
        dry_run: bool,
        /// Sign the node's certificate with the authority in this directory (`pki init`)
        #[arg(long, value_name = "DIRECTORY")]
        sign_with: Option<PathBuf>,
        /// Fail unless the document in force has this digest
        #[arg(long, value_name = "DIGEST")]
        expected_digest: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TimeVerb {
    /// Show the node's clock
    Get,
    /// Set it: to this machine's time, or by the time servers
    Set {
        /// Ask the configured time servers
        #[arg(long)]
        sync: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MachineVerb {
    /// Show the hardware and who uses it
    Show,
    /// Say what would be done for a configuration
    Plan {
        /// The document (TOML) [default: the one in force]
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Do it
    Apply {
        /// The document (TOML); of this machine only
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Do not only say what would be done
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextVerb {
    /// Remember a node: with --ca, --cert and --key, or with the code and the fingerprint on its console
    Add {
        /// What to call it
        name: String,
        /// Where its agent is
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: String,
        /// The code on its console
        #[arg(long, requires = "fingerprint")]
        code: Option<String>,
        /// SHA-256 of its certificate
        #[arg(long, value_name = "SHA256")]
        fingerprint: Option<String>,
    },
    /// List nodes
    List,
    /// Talk to this one from now on
    Use {
        /// Its name; - is none
        name: String,
    },
    /// Forget one, with its certificates
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiVerb {
    /// Make an authority and the certificate of an administrator
    Init {
        /// Where to
        directory: PathBuf,
        /// Name of the authority
        #[arg(long, default_value = "adit")]
        name: String,
        /// How long the authority holds
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Make the certificate of a client
    Issue {
        /// Where the authority is
        directory: PathBuf,
        /// Who it is for
        name: String,
        /// reader, operator or admin
        #[arg(long)]
        role: String,
        /// How long it holds
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}
