//! The document and its bounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The configuration of a node. Everything may be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Document {
    /// Version of this form; 1.
    pub version: u32,
    /// Name of the node; by default `stor-` and the serial number.
    pub hostname: Option<String>,
    /// Stay in maintenance mode: the agent takes no configuration but from a person.
    pub maintenance: bool,
    /// Where the agent fetches the configuration. `${uuid}`, `${serial}`, `${mac}` and `${hostname}`
    /// are filled in.
    pub config_url: Option<String>,
    /// Huge pages, drives and ports.
    pub machine: machine::Config,
    /// Modules beside the image's list.
    pub modules: Modules,
    /// Values for `/proc/sys` beside the table, by name: `"vm.swappiness" = "10"`.
    pub sysctl: BTreeMap<String, String>,
    /// The watchdog.
    pub watchdog: ConfigWatchdog,
    /// Crash reports.
    pub crash: Crash,
    /// The end.
    pub shutdown: Shutdown,
    /// Changes of the image's table of services, by name.
    pub services: BTreeMap<String, ServiceOverride>,
    /// What is the agent's alone: network, time, certificates. Init passes it on unread.
    pub agent: toml::Table,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            version: 1,
            hostname: None,
            maintenance: false,
            config_url: None,
            machine: machine::Config::default(),
            modules: Modules::default(),
            sysctl: BTreeMap::new(),
            watchdog: ConfigWatchdog::default(),
            crash: Crash::default(),
            shutdown: Shutdown::default(),
            services: BTreeMap::new(),
            agent: toml::Table::new(),
        }
    }
}

/// Modules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Modules {
    /// Loaded after the image's list.
    pub extra: Vec<String>,
    /// Not loaded although the image lists them.
    pub skip: Vec<String>,
    /// Parameters by module: `vfio-pci = "disable_idle_d3=1"`. Those for modules of the image's list
    /// must stand on the kernel command line: the list is loaded before the other sources are read.
    pub parameters: BTreeMap<String, String>,
}

/// The watchdog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigWatchdog {
    /// Whether it is used where there is one.
    pub enabled: bool,
    /// Seconds without food until it resets the node: 5 to 3600.
    pub timeout_s: u32,
    /// The device.
    pub device: String,
}

impl Default for ConfigWatchdog {
    fn default() -> Self {
        Self {
            enabled: true,
            timeout_s: 60,
            device: "/dev/watchdog0".to_owned(),
        }
    }
}

/// Crash reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crash {
    /// Most MiB that are kept of a dead process; 0 keeps none. At most 1024.
    pub size_max_mib: u32,
    /// Reports that are kept; the newest stay. 1 to 64.
    pub count_max: u32,
}

impl Default for Crash {
    fn default() -> Self {
        Self {
            size_max_mib: 32,
            count_max: 4,
        }
    }
}

/// The end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// Seconds for all of it; then the node goes down as it is. 10 to 3600.
    pub timeout_s: u32,
    /// Seconds for writing back what file systems hold. 1 to 600.
    pub sync_timeout_s: u32,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            timeout_s: 120,
            sync_timeout_s: 30,
        }
    }
}

/// Changes of a service of the image's table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceOverride {
    /// False: it is not started.
    pub enabled: Option<bool>,
    /// More arguments, after those of the table.
    pub arguments: Vec<String>,
    /// More environment.
    pub environment: BTreeMap<String, String>,
}

/// Whether `name` can be the name of a host: letters, digits and `-`, labels of 1 to 63 bytes, 64 in
/// all (the kernel's bound).
#[must_use]
pub fn hostname_is_right(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.len() <= 64 && name.split('.').all(label)
}

impl Document {
    /// What is wrong beyond the form.
    ///
    /// # Errors
    /// A sentence with the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        let within = |key: &str, value: u32, min: u32, max: u32| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!("{key} is {value}; it must be {min} to {max}"))
            }
        };
        within("version", self.version, 1, 1)?;
        within("watchdog.timeout_s", self.watchdog.timeout_s, 5, 3600)?;
        within("crash.size_max_mib", self.crash.size_max_mib, 0, 1024)?;
        within("crash.count_max", self.crash.count_max, 1, 64)?;
        within("shutdown.timeout_s", self.shutdown.timeout_s, 10, 3600)?;
        within(
            "shutdown.sync_timeout_s",
            self.shutdown.sync_timeout_s,
            1,
            600,
        )?;
        if let Some(name) = &self.hostname
            && !hostname_is_right(name)
        {
            return Err(format!(
                "hostname is {name:?}; it must be letters, digits and '-', 64 bytes at most"
            ));
        }
        if !self.watchdog.device.starts_with("/dev/") {
            let device = &self.watchdog.device;
            return Err(format!(
                "watchdog.device is {device:?}; it must be under /dev"
            ));
        }
        if let Some(url) = &self.config_url
            && !["http://", "https://"]
                .iter()
                .any(|scheme| url.starts_with(scheme))
        {
            return Err(format!(
                "config_url is {url:?}; it must begin with http:// or https://"
            ));
        }
        if !self.machine.claims.is_empty() {
            return Err("machine.claims is init's own; leave it out".to_owned());
        }
        let name_is_right = |name: &String| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        let modules = &self.modules;
        let mut names = (modules.extra.iter())
            .chain(&modules.skip)
            .chain(modules.parameters.keys());
        match names.find(|name| !name_is_right(name)) {
            Some(name) => Err(format!("{name:?} is no name of a module")),
            None => Ok(()),
        }
    }
}
