//! The table of services: what runs, in which order, and what it means when it ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ServiceOverride;

/// The image's table; where it is absent, [`builtin`] holds.
pub(crate) const SERVICES_FILE: &str = "/etc/adit/services.toml";
/// Most services.
pub(crate) const SERVICES_MAX: usize = 32;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Name.
    pub name: String,
    /// Program, by its path.
    pub program: String,
    /// Arguments.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Environment, beside `PATH`.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// It is started once these are ready, held, or late.
    #[serde(default)]
    pub after: Vec<String>,
    /// True: it does its work and ends.
    #[serde(default)]
    pub once: bool,
    /// When it counts as ready.
    #[serde(default)]
    pub ready: Ready,
    /// Milliseconds for that; then it is ready for those that wait, and said to be late.
    #[serde(default = "default_ready_timeout_ms")]
    pub ready_timeout_ms: u64,
    /// Milliseconds between SIGTERM and SIGKILL.
    #[serde(default = "default_stop_timeout_ms")]
    pub stop_timeout_ms: u64,
    /// Its turn at the end: 0 is first.
    #[serde(default = "default_stop_turn")]
    pub stop_turn: u8,
    /// Ends within 60 s after which it is held: a person has to look.
    #[serde(default = "default_crashes_max")]
    pub crashes_max: u32,
    /// Its last report of health is older than this: it is ended and started again. Holds from its
    /// first report on.
    #[serde(default)]
    pub health_timeout_ms: Option<u64>,
    /// What the kernel adds to its score when memory runs out: -1000 to 1000.
    #[serde(default)]
    pub oom_score_adjust: i32,
}

/// When a service counts as ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// Once it runs.
    #[default]
    Started,
    /// Once it prints a line that holds this.
    Line(String),
    /// Once this unix socket takes a connection.
    Socket(String),
}

fn default_ready_timeout_ms() -> u64 {
    30_000
}

fn default_stop_timeout_ms() -> u64 {
    10_000
}

fn default_stop_turn() -> u8 {
    4
}

fn default_crashes_max() -> u32 {
    5
}

impl Service {
    /// A daemon with the defaults of the table.
    #[must_use]
    pub fn new(name: &str, program: &str) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            after: Vec::new(),
            once: false,
            ready: Ready::Started,
            ready_timeout_ms: default_ready_timeout_ms(),
            stop_timeout_ms: default_stop_timeout_ms(),
            stop_turn: default_stop_turn(),
            crashes_max: default_crashes_max(),
            health_timeout_ms: None,
            oom_score_adjust: 0,
        }
    }
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    service: Vec<Service>,
}

/// What runs where the image has no table of its own: the journal, the agent, the target. Those
/// whose program `exists` not are left out. `own` is the path of this program.
pub(crate) fn builtin(own: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Service> {
    let journal = Service {
        ready: Ready::Socket("/run/systemd/journal/stdout".to_owned()),
        ready_timeout_ms: 10_000,
        stop_turn: 9,
        oom_score_adjust: -250,
        ..Service::new("journald", "/usr/lib/systemd/systemd-journald")
    };
    // These two speak to the journal themselves, and print what they say: process 1 keeps that.
    let log = ["--log-to", "both"].map(str::to_owned);
    let agent = Service {
        arguments: log.to_vec(),
        after: vec!["journald".to_owned()],
        stop_timeout_ms: 10_000,
        stop_turn: 5,
        health_timeout_ms: Some(30_000),
        oom_score_adjust: -900,
        ..Service::new("adit-agent", "/usr/bin/adit-agent")
    };
    let target = Service {
        arguments: [
            "--state-dir",
            "/run/adit/state/aditd",
            "--grpc",
            "unix:/run/adit/aditd.sock",
            // The state directory is in memory.
            "--system-pool",
            "--init",
            crate::control::SOCKET,
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(log)
        .collect(),
        after: vec![MACHINE.to_owned(), "journald".to_owned()],
        ready: Ready::Socket("/run/adit/aditd.sock".to_owned()),
        // It looks at every drive before it serves.
        ready_timeout_ms: 60_000,
        // Its own drain takes 30 s at most.
        stop_timeout_ms: 45_000,
        stop_turn: 0,
        health_timeout_ms: Some(30_000),
        oom_score_adjust: -500,
        ..Service::new("aditd", "/usr/bin/aditd")
    };
    let mut all: Vec<Service> = [journal, agent, target]
        .into_iter()
        .filter(|service| exists(&service.program))
        .collect();
    all.insert(0, machine(own));
    all
}

/// Name of the service that prepares the hardware.
pub(crate) const MACHINE: &str = "machine";

/// Huge pages and drives are prepared by a child: the kernel may take seconds for each.
fn machine(own: &str) -> Service {
    Service {
        arguments: vec!["machine".to_owned()],
        once: true,
        ready_timeout_ms: 60_000,
        stop_timeout_ms: 5_000,
        ..Service::new(MACHINE, own)
    }
}

/// Reads the image's table and puts the configuration's changes into it. What is wrong is told, and
/// left out; `machine` is always there.
pub(crate) fn table(
    file: Option<&[u8]>,
    overrides: &BTreeMap<String, ServiceOverride>,
    own: &str,
    exists: &dyn Fn(&str) -> bool,
) -> (Vec<Service>, Vec<String>) {
    let mut wrong = Vec::new();
    let mut services = match file.map(parse) {
        None => builtin(own, exists),
        Some(Ok(services)) => services,
        Some(Err(text)) => {
            wrong.push(format!(
                "{SERVICES_FILE} is not used: {text}; the built-in table is used"
            ));
            builtin(own, exists)
        }
    };
    if services.iter().all(|service| service.name != MACHINE) {
        services.insert(0, machine(own));
    }
    if services.len() > SERVICES_MAX {
        wrong.push(format!(
            "there are more than {SERVICES_MAX} services: the rest is left out"
        ));
        services.truncate(SERVICES_MAX);
    }
    for (name, change) in overrides {
        let Some(at) = services.iter().position(|service| service.name == *name) else {
            wrong.push(format!(
                "services.{name} changes nothing: there is no such service"
            ));
            continue;
        };
        if change.enabled == Some(false) {
            services.remove(at);
            continue;
        }
        services[at]
            .arguments
            .extend(change.arguments.iter().cloned());
        let more = change.environment.clone();
        services[at].environment.extend(more);
    }
    let names: Vec<String> = services
        .iter()
        .map(|service| service.name.clone())
        .collect();
    for service in &mut services {
        service.after.retain(|name| names.contains(name));
    }
    (services, wrong)
}

fn parse(bytes: &[u8]) -> Result<Vec<Service>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no UTF-8".to_owned())?;
    let table: Table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut seen = Vec::new();
    for service in &table.service {
        let name = &service.name;
        let is_right = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if !is_right {
            return Err(format!("{name:?} is no name of a service"));
        }
        if seen.contains(&name) {
            return Err(format!("there are two services {name:?}"));
        }
        if !service.program.starts_with('/') {
            return Err(format!("the program of {name:?} must be a path"));
        }
        seen.push(name);
    }
    Ok(table.service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_table_has_what_the_image_has() {
        let (all, wrong) = table(None, &BTreeMap::new(), "/init", &|path| {
            path == "/usr/bin/aditd"
        });
        let names: Vec<&str> = all.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["machine", "aditd"]);
        assert_eq!(
            all[1].after,
            ["machine"],
            "what is not there is not waited for"
        );
        assert!(wrong.is_empty());
    }

    #[test]
    fn a_table_that_is_wrong_is_told_and_the_builtin_one_holds() {
        for text in [
            "[[service]]\nname = 'a/b'\nprogram = '/x'",
            "[[service]]\nname = 'a'\nprogram = 'x'",
            "[[service]]\nname = 'a'\nprogram = '/x'\nwhen = 'now'",
            "[[service]]\nname = 'a'\nprogram = '/x'\n[[service]]\nname = 'a'\nprogram = '/y'",
            "\u{0}",
        ] {
            let (all, wrong) = table(Some(text.as_bytes()), &BTreeMap::new(), "/init", &|_| false);
            assert_eq!(all[0].name, MACHINE);
            assert!(
                wrong[0].starts_with("/etc/adit/services.toml is not used: "),
                "{wrong:?}"
            );
        }
        assert_eq!(
            table(Some(&[0xff]), &BTreeMap::new(), "/init", &|_| false)
                .1
                .len(),
            1
        );
    }

    #[test]
    fn the_configuration_changes_services() {
        let file = b"[[service]]\nname = 'a'\nprogram = '/a'\n[[service]]\nname = 'b'\nprogram = '/b'\nready = { socket = '/run/b' }\n";
        let overrides = BTreeMap::from([
            (
                "a".to_owned(),
                ServiceOverride {
                    enabled: Some(false),
                    ..Default::default()
                },
            ),
            (
                "b".to_owned(),
                ServiceOverride {
                    arguments: vec!["-v".to_owned()],
                    ..Default::default()
                },
            ),
            ("c".to_owned(), ServiceOverride::default()),
        ]);
        let (all, wrong) = table(Some(file), &overrides, "/init", &|_| false);
        let names: Vec<&str> = all.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["machine", "b"]);
        assert_eq!(all[1].arguments, ["-v"]);
        assert_eq!(all[1].ready, Ready::Socket("/run/b".to_owned()));
        assert_eq!(
            wrong,
            ["services.c changes nothing: there is no such service"]
        );
    }
}
