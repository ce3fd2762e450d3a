//! The configuration: a TOML file, and flags that overrule it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use api::quantity::{parse_bytes, parse_duration_ns};
use clap::Parser;
use logging::LogTo;
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use crate::lvol_driver::MAP_CACHE_PIECES_DEFAULT;
use crate::model;

/// Why the configuration is not one. The text names the file and the line, or the flag.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key is unknown or a value is wrong. The detail shows the line.
    #[error("{path}: {detail}")]
    File {
        /// The file.
        path: String,
        /// Line, column and what is wrong there.
        detail: String,
    },
    /// Options do not go together.
    #[error("{0}")]
    Combination(String),
}

/// The command line of `aditd`.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "aditd",
    version,
    about = "NVMe over Fabrics target",
    max_term_width = 100
)]
pub struct Flags {
    /// Where the state is kept [default: /var/lib/adit]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Keep the state in the system pool too, and look for it on the drives when the state directory
    /// has none; for a node without a disk of its own
    #[arg(long)]
    pub system_pool: bool,
    /// The system pool is the one with this UUID: no other is looked for, whatever its mark says
    #[arg(long, value_name = "UUID")]
    pub system_pool_uuid: Option<Uuid>,
    /// TOML file; flags overrule it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where gRPC is served: unix:PATH or tcp:ADDRESS:PORT; may be given more than once
    /// [default: unix:/run/adit/aditd.sock]
    #[arg(long, value_name = "URI")]
    pub grpc: Vec<Endpoint>,
    /// CPUs for reactors: a mask (0x6), a list ([1-2,4]) or how many [default: all but one]
    #[arg(long, value_name = "MASK|COUNT")]
    pub reactors: Option<Reactors>,
    /// Serve Prometheus text at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Certificate authority of clients (PEM), for tcp:
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM), for tcp:
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// The key of our certificate (PEM), for tcp:
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Control socket of adit-init: health is reported there every 5 s [default: nowhere]
    #[arg(long, value_name = "SOCKET")]
    pub init: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,target=debug
    #[arg(long, value_name = "FILTER", env = "ADIT_LOG")]
    pub log: Option<String>,
    /// Where the log goes: auto (the journal when systemd has started this, else stderr), journald,
    /// stderr, or both, for a service of adit-init [default: auto]
    #[arg(long, value_name = "PLACE")]
    pub log_to: Option<LogTo>,
}

/// Where gRPC is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket in the filesystem, for root and for the user that runs this.
    Unix(PathBuf),
    /// TCP, with certificates of both sides unless it is the loopback.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let rest = |scheme: &str| {
            let rest = text.strip_prefix(scheme)?;
            Some(rest.strip_prefix("//").unwrap_or(rest))
        };
        if let Some(path) = rest("unix:") {
            // The kernel's bound on the name of a socket.
            return match path.len() {
                1..108 => Ok(Endpoint::Unix(PathBuf::from(path))),
                _ => Err(format!("{text:?}: the path of a socket has 1 to 107 bytes")),
            };
        }
        let Some(address) = rest("tcp:") else {
            return Err(format!("{text:?} must be unix:PATH or tcp:ADDRESS:PORT"));
        };
        match address.parse() {
            Ok(address) => Ok(Endpoint::Tcp(address)),
            Err(_) => Err(format!(
                "{text:?}: {address:?} is no ADDRESS:PORT, as in 127.0.0.1:4421"
            )),
        }
    }
}

/// Which CPUs reactors run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reactors {
    /// These.
    Mask(reactor::CpuMask),
    /// So many, chosen among those that the process may use.
    Count(usize),
}

impl FromStr for Reactors {
    type Err = String;

    fn from_str(text: &str) -> Result<Reactors, String> {
        if let Ok(count) = text.parse::<usize>() {
            return match count {
                1..=1024 => Ok(Reactors::Count(count)),
                _ => Err(format!("{count} reactors are not possible; give 1 to 1024")),
            };
        }
        match text.parse::<reactor::CpuMask>() {
            Ok(mask) if !mask.is_empty() => Ok(Reactors::Mask(mask)),
            Ok(_) => Err(format!("{text:?} names no CPU")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The file. Every key may be left out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    system_pool: bool,
    #[serde(deserialize_with = "system_pool_uuid")]
    system_pool_uuid: Option<Uuid>,
    #[serde(deserialize_with = "endpoints")]
    grpc: Vec<Endpoint>,
    #[serde(deserialize_with = "reactors")]
    reactors: Option<Reactors>,
    metrics: Option<SocketAddr>,
    drain_timeout: Option<Time>,
    tls: Option<Tls>,
    memory: Memory,
    limits: LimitsTable,
    pools: PoolsTable,
    log: Log,
}

/// Certificates for gRPC over TCP (all PEM).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate authority of clients.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Memory for I/O. Names and defaults are SPDK's iobuf_set_options.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// auto, hugetlb-2m, hugetlb-1g, hugepage-rs, locked-4k or plain-4k.
    pub backing: Backing,
    /// Small buffers of all threads.
    #[serde(deserialize_with = "small_pool_count")]
    pub small_pool_count: u32,
    /// Bytes of a small buffer.
    pub small_bufsize: Size,
    /// Large buffers of all threads.
    #[serde(deserialize_with = "large_pool_count")]
    pub large_pool_count: u32,
    /// Bytes of a large buffer: the largest transfer and a block more.
    pub large_bufsize: Size,
    /// NUMA node to take memory from.
    pub numa_node: Option<u32>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            backing: Backing::Auto,
            small_pool_count: 8192,
            small_bufsize: Size(8192),
            large_pool_count: 1024,
            large_bufsize: Size(135_168),
            numa_node: None,
        }
    }
}

/// What memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// The best there is.
    Auto,
    /// Huge pages of 2 MiB.
    #[serde(rename = "hugetlb-2m")]
    Hugetlb2M,
    /// Huge pages of 1 GiB.
    #[serde(rename = "hugetlb-1g")]
    Hugetlb1G,
    /// Anonymous huge pages.
    HugepageRs,
    /// Small pages that are never swapped out.
    #[serde(rename = "locked-4k")]
    Locked4K,
    /// Small pages.
    #[serde(rename = "plain-4k")]
    Plain4K,
}

/// A size in bytes: a number, or a text with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        let read = |text: &str| parse_bytes(text).map_err(|error| error.to_string());
        number_or_text(deserializer, read).map(Size)
    }
}

/// A time in nanoseconds: a text with a unit, or a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let read = |text: &str| parse_duration_ns(text).map_err(|error| error.to_string());
        number_or_text(deserializer, read).map(|ns| Time(Duration::from_nanos(ns)))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsTable {
    subsystems_max: Option<usize>,
    namespaces_per_subsystem_max: Option<u32>,
    listeners_per_subsystem_max: Option<usize>,
    hosts_per_subsystem_max: Option<usize>,
    bdevs_max: Option<usize>,
    pools_max: Option<usize>,
    connections_max: Option<u32>,
}

/// How pools are run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PoolsTable {
    /// Pieces of maps that each pool keeps in memory while nobody uses them.
    #[serde(deserialize_with = "map_cache_pieces")]
    map_cache_pieces: u32,
}

impl Default for PoolsTable {
    fn default() -> PoolsTable {
        PoolsTable {
            map_cache_pieces: MAP_CACHE_PIECES_DEFAULT as u32,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Log {
    filter: Option<String>,
    to: LogTo,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the state is kept.
    pub state_dir: PathBuf,
    /// Keep the state in the system pool too.
    pub system_pool: bool,
    /// Which pool may be found as the system pool; `None`: whichever is marked.
    pub system_pool_uuid: Option<Uuid>,
    /// Where gRPC is served.
    pub grpc: Vec<Endpoint>,
    /// Certificates for TCP.
    pub tls: Option<Tls>,
    /// CPUs for reactors; `None`: all that the process may use but one, at least one.
    pub reactors: Option<Reactors>,
    /// Where Prometheus text is served.
    pub metrics: Option<SocketAddr>,
    /// How long I/O may take to finish when the process ends.
    pub drain_timeout: Duration,
    /// Memory for I/O.
    pub memory: Memory,
    /// Bounds on objects.
    pub limits: model::Limits,
    /// Bound on connected queue pairs.
    pub connections_max: u32,
    /// Pieces of maps that each pool keeps in memory while nobody uses them; each is 1 to 15 KiB.
    pub map_cache_pieces: usize,
    /// Where health is reported.
    pub init: Option<PathBuf>,
    /// What is logged.
    pub log_filter: String,
    /// Where the log goes.
    pub log_to: LogTo,
}

impl Config {
    /// Reads the file that the flags name, if any, and lets the flags overrule it.
    ///
    /// # Errors
    /// When the file cannot be read, has an unknown key or a wrong value, or options do not go
    /// together.
    pub fn load(flags: &Flags) -> Result<Config, ConfigError> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        merge(flags, file)
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: name(),
        source,
    })?;
    parse(&text).map_err(|detail| ConfigError::File {
        path: name(),
        detail,
    })
}

fn parse(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

fn merge(flags: &Flags, file: File) -> Result<Config, ConfigError> {
    let tls = match (&flags.ca, &flags.cert, &flags.key) {
        (Some(ca), Some(cert), Some(key)) => Some(Tls {
            ca: ca.clone(),
            cert: cert.clone(),
            key: key.clone(),
        }),
        (None, None, None) => file.tls,
        _ => {
            return Err(ConfigError::Combination(
                "--ca, --cert and --key go together: give all three".to_owned(),
            ));
        }
    };
    let mut grpc = if flags.grpc.is_empty() {
        file.grpc
    } else {
        flags.grpc.clone()
    };
    if grpc.is_empty() {
        grpc.push(Endpoint::Unix(PathBuf::from("/run/adit/aditd.sock")));
    }
    for endpoint in &grpc {
        if let Endpoint::Tcp(address) = endpoint
            && !address.ip().is_loopback()
            && tls.is_none()
        {
            return Err(ConfigError::Combination(format!(
                "gRPC at tcp:{address} needs certificates: give --ca, --cert and --key, or the table \
                 [tls] in the configuration file"
            )));
        }
    }
    let defaults = model::Limits::default();
    let table = file.limits;
    let limits = model::Limits {
        subsystems_max: table.subsystems_max.unwrap_or(defaults.subsystems_max),
        namespaces_per_subsystem_max: table
            .namespaces_per_subsystem_max
            .unwrap_or(defaults.namespaces_per_subsystem_max),
        listeners_per_subsystem_max: table
            .listeners_per_subsystem_max
            .unwrap_or(defaults.listeners_per_subsystem_max),
        hosts_per_subsystem_max: table
            .hosts_per_subsystem_max
            .unwrap_or(defaults.hosts_per_subsystem_max),
        bdevs_max: table.bdevs_max.unwrap_or(defaults.bdevs_max),
        pools_max: table.pools_max.unwrap_or(defaults.pools_max),
    };
    let system_pool_uuid = flags.system_pool_uuid.or(file.system_pool_uuid);
    Ok(Config {
        state_dir: flags
            .state_dir
            .clone()
            .or(file.state_dir)
            .unwrap_or_else(|| PathBuf::from("/var/lib/adit")),
        system_pool: flags.system_pool || file.system_pool || system_pool_uuid.is_some(),
        system_pool_uuid,
        grpc,
        tls,
        reactors: flags.reactors.clone().or(file.reactors),
        metrics: flags.metrics.or(file.metrics),
        drain_timeout: file
            .drain_timeout
            .map_or(Duration::from_secs(10), |time| time.0),
        memory: file.memory,
        limits,
        connections_max: table.connections_max.unwrap_or(4096),
        map_cache_pieces: file.pools.map_cache_pieces as usize,
        init: flags.init.clone(),
        log_filter: flags
            .log
            .clone()
            .or(file.log.filter)
            .unwrap_or_else(|| "info".to_owned()),
        log_to: flags.log_to.unwrap_or(file.log.to),
    })
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

fn number_or_text<'de, D: Deserializer<'de>>(
    deserializer: D,
    read: impl Fn(&str) -> Result<u64, String>,
) -> Result<u64, D::Error> {
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(number) => read(&number.to_string()).map_err(serde::de::Error::custom),
        NumberOrText::Text(text) => read(&text).map_err(serde::de::Error::custom),
    }
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Endpoint>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts
        .iter()
        .map(|text| text.parse().map_err(serde::de::Error::custom))
        .collect()
}

fn system_pool_uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn reactors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reactors>, D::Error> {
    let text = match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(number) => number.to_string(),
        NumberOrText::Text(text) => text,
    };
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn at_least<'de, D: Deserializer<'de>>(deserializer: D, least: u32) -> Result<u32, D::Error> {
    let count = u32::deserialize(deserializer)?;
    if count < least {
        return Err(serde::de::Error::custom(format!(
            "{count} is too few; give at least {least}"
        )));
    }
    Ok(count)
}

fn small_pool_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    at_least(deserializer, 64)
}

fn map_cache_pieces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    at_least(deserializer, 64)
}

fn large_pool_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    at_least(deserializer, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
        state_dir = "/srv/state"
        system_pool_uuid = "00000000-0000-4000-8000-000000000007"
        grpc = ["unix:/run/a.sock", "tcp:127.0.0.1:4421"]
        reactors = "0x6"
        metrics = "127.0.0.1:9420"
        drain_timeout = "3s"
        [tls]
        ca = "ca.pem"
        cert = "cert.pem"
        key = "key.pem"
        [memory]
        backing = "hugetlb-2m"
        small_pool_count = 1024
        large_bufsize = "132KiB"
        [limits]
        subsystems_max = 10
        [pools]
        map_cache_pieces = 100
        [log]
        filter = "debug"
        to = "stderr"
    "#;

    #[test]
    fn a_full_file_is_read() {
        let config = merge(&Flags::default(), parse(FULL).unwrap()).unwrap();
        assert_eq!(config.state_dir, Path::new("/srv/state"));
        let named = config.system_pool_uuid.map(|uuid| uuid.as_u128() & 0xff);
        assert!(config.system_pool && named == Some(7), "{named:?}");
        assert_eq!(config.grpc.len(), 2);
        assert!(matches!(config.reactors, Some(Reactors::Mask(_))));
        assert_eq!(config.drain_timeout, Duration::from_secs(3));
        assert_eq!(config.memory.large_bufsize, Size(135_168));
        assert_eq!(config.memory.small_bufsize, Size(8192));
        assert_eq!(config.limits.subsystems_max, 10);
        assert_eq!(config.map_cache_pieces, 100);
        assert_eq!(
            (config.log_filter.as_str(), config.log_to),
            ("debug", LogTo::Stderr)
        );
    }

    #[test]
    fn flags_overrule_the_file() {
        let line = "aditd --state-dir /x --grpc unix:/y --reactors 2 --log warn --log-to both";
        let flags = Flags::try_parse_from(line.split(' ')).unwrap();
        let config = merge(&flags, parse(FULL).unwrap()).unwrap();
        assert_eq!(config.state_dir, Path::new("/x"));
        assert_eq!(config.grpc, [Endpoint::Unix("/y".into())]);
        assert_eq!(config.reactors, Some(Reactors::Count(2)));
        assert_eq!(config.log_filter, "warn");
        assert_eq!(config.log_to, LogTo::Both);
    }

    #[test]
    fn wrong_files_name_the_line() {
        for (text, line, word) in [
            (
                "state_dir = \"/x\"\nstat_dir = \"/y\"",
                "line 2",
                "stat_dir",
            ),
            ("[memory]\nsmall_pool_count = 1", "line 2", "too few"),
            ("[memory]\nbacking = \"paper\"", "line 2", "paper"),
            (
                "[memory]\nsmall_bufsize = \"8 parsecs\"",
                "line 2",
                "parsecs",
            ),
            ("grpc = \"http://x\"", "line 1", "unix:PATH"),
            ("\nreactors = \"0x\"", "line 2", ""),
            ("reactors = 0", "line 1", "reactors"),
            ("metrics = \"here\"", "line 1", ""),
            ("drain_timeout = \"soon\"", "line 1", "soon"),
            ("[limits]\n\nbdevs = 5", "line 3", "bdevs"),
            ("[pools]\nmap_cache_pieces = 1", "line 2", "too few"),
            ("a = \n", "line 1", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains(line) && error.contains(word),
                "{text}\n{error}"
            );
        }
    }

    #[test]
    fn tcp_needs_certificates_unless_it_is_loopback() {
        let flags = |line: &str| Flags::try_parse_from(line.split(' ')).unwrap();
        let load = |line: &str| merge(&flags(line), File::default());
        assert!(load("aditd --grpc tcp:127.0.0.1:1").is_ok());
        let error = load("aditd --grpc tcp:0.0.0.0:1").unwrap_err();
        assert!(error.to_string().contains("--ca"), "{error}");
        assert!(load("aditd --grpc tcp:0.0.0.0:1 --ca a --cert b --key c").is_ok());
        assert!(load("aditd --ca a").is_err());
    }
}
