//! From the kernel's hand-over to the first service. Nothing here stops the boot.

use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use serde::Deserialize;

use super::{Init, KMSG_LINES, Output};
use crate::config::{
    Given, Source, from_command_line, from_fw_cfg, merge, parse_document, read_smbios,
};
use crate::log::{self, Level, Log};
use crate::modules::{self, Index};
use crate::ring::{RING_BYTES_MAX, Rate, Ring};
use crate::status::{STATUS_FOLDER, State, Status, write_whole};
use crate::supervisor::Supervisor;
use crate::system::System;
use crate::watchdog::Watchdog;
use crate::{
    acpi, clock, control, crash, entropy, hardware, identity, mounts, netlink, service, tunables,
};

/// What the image says of itself.
const IMAGE_FILE: &str = "/etc/adit/image.toml";
/// The image's part of the configuration.
const CONFIG_FILE: &str = "/etc/adit/config.toml";
const IDENTITY_FILE: &str = "/run/adit/identity.json";
/// Open files of a service, at most.
const FILES_MAX: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Image {
    version: String,
    /// `dev` or `release`.
    profile: String,
    slot: String,
    made_unix_s: Option<i64>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: "release".to_owned(),
            slot: "net".to_owned(),
            made_unix_s: None,
        }
    }
}

impl Init {
    pub(super) fn boot(&mut self) {
        let (image, image_wrong) = self.read_image();
        let dev_image = image.profile == "dev";
        let mounted = mounts::mount_early(&self.system, dev_image);
        log::take_console();
        // Without it the kernel would drop most of what follows.
        let _ = self
            .system
            .write("/proc/sys/kernel/printk_devkmsg", b"on\n");
        self.log = Log::open();
        self.log
            .say(Level::Notice, &format!("Adit {}", image.version));
        if let Some(text) = image_wrong {
            self.told(
                "image",
                vec![Status::new(IMAGE_FILE, State::Degraded, text)],
            );
        }
        self.told("mounts", mounted);
        if let Ok(own) = std::fs::read_link("/proc/self/exe") {
            self.own = own.display().to_string();
        }
        self.listen_to_signals();
        self.configure_and_load(dev_image);
        self.name_the_node(&image);
        self.limits();
        self.open_sockets();
        self.begin_services();
    }

    /// Keeps statuses, and says what is wrong.
    fn told(&mut self, group: &str, items: Vec<Status>) {
        for item in items.iter().filter(|item| item.is_wrong()) {
            let text = format!("{}: {}", item.name, item.text);
            self.log.say(Level::Warning, &text);
        }
        self.board.add(group, items);
    }

    fn read_image(&self) -> (Image, Option<String>) {
        let Ok(text) = self.system.text(IMAGE_FILE) else {
            return (Image::default(), None);
        };
        match toml::from_str(&text) {
            Ok(image) => (image, None),
            Err(error) => {
                let text = format!("it is not used: {}", error.message());
                (Image::default(), Some(text))
            }
        }
    }

    /// The configuration in two steps: sources that need no module say which modules are loaded,
    /// then the others are read.
    fn configure_and_load(&mut self, dev_image: bool) {
        let line = self.system.text("/proc/cmdline").unwrap_or_default();
        let words = crate::config::words(&line);
        let mut given = vec![from_command_line(&line)];
        if let Ok(bytes) = self.system.read(CONFIG_FILE) {
            given.push(parse_document(Source::Image, &bytes));
        }
        let early = merge(&given);
        let index = Index::read(&self.system);
        let loaded = modules::load_list(&self.system, &index, &words, &early.document.modules);
        given.push(read_smbios(&self.system));
        given.push(from_fw_cfg(&self.system));
        given.push(Given::new(Source::Agent));
        self.effective = merge(&given);
        self.given = given;
        self.told("modules", loaded);
        let document = &self.effective.document;
        let ports = &document.machine.nic;
        let more = modules::load_extra(&self.system, &index, &words, &document.modules, ports);
        self.told("modules", more);
        self.show_configuration();
        let mounted = mounts::mount_late(&self.system, dev_image);
        self.told("mounts", mounted);
        let written = tunables::write_all(&self.system, &self.effective.document.sysctl);
        self.told("sysctl", written);
    }

    /// The configuration as statuses: what somebody said, and what of it does not hold.
    pub(super) fn show_configuration(&mut self) {
        let mut items: Vec<Status> = Vec::new();
        for problem in &self.effective.problems {
            let name = if problem.key.is_empty() {
                problem.source.to_string()
            } else {
                problem.key.clone()
            };
            self.log.say(Level::Warning, &problem.to_string());
            items.push(Status::new(name, State::Degraded, problem.to_string()));
        }
        for value in &self.effective.values {
            let text = format!("{} from {}", value.value, value.source);
            items.push(Status::new(&value.key, State::Ok, text));
        }
        if items.is_empty() {
            let text = "no source says anything: the defaults hold";
            items.push(Status::new("configuration", State::Ok, text));
        }
        self.board.set("configuration", items);
    }

    fn name_the_node(&mut self, image: &Image) {
        entropy::mix(&self.system);
        let (random, status) = entropy::gather();
        self.told("entropy", vec![status]);
        let hostname = self.effective.document.hostname.clone();
        let (mut identity, done) = identity::establish(&self.system, hostname.as_deref(), random);
        identity.image_version.clone_from(&image.version);
        identity.slot.clone_from(&image.slot);
        self.told("identity", done);
        let clock = clock::set_floor(&self.system, image.made_unix_s);
        self.told("time", clock);
        self.log.say(
            Level::Notice,
            &format!("this is {}, UUID {}", identity.hostname, identity.uuid),
        );
        self.identity = identity;
    }

    /// What services inherit.
    fn limits(&mut self) {
        let set = |name: &str, resource, value, reason: &str| {
            let status = match setrlimit(resource, value, value) {
                Ok(()) => Status::new(name, State::Ok, "raised"),
                Err(error) => Status::new(name, State::Degraded, format!("stays: {error}")),
            };
            status.because(reason)
        };
        let items = vec![
            set(
                "open files",
                Resource::RLIMIT_NOFILE,
                FILES_MAX,
                "each connection and each drive is some",
            ),
            set(
                "locked memory",
                Resource::RLIMIT_MEMLOCK,
                RLIM_INFINITY,
                "memory that a drive writes to is locked, with vfio as well",
            ),
        ];
        self.told("limits", items);
        let status = match netlink::loopback_up() {
            Ok(()) => Status::new("lo", State::Ok, "up"),
            Err(error) => Status::new("lo", State::Degraded, format!("stays down: {error}")),
        };
        self.told("network", vec![status]);
    }

    fn open_sockets(&mut self) {
        let folder = Path::new(STATUS_FOLDER);
        if let Err(error) = self.board.show_in(folder) {
            let text = format!("{STATUS_FOLDER} cannot be written: {error}");
            self.log.say(Level::Warning, &text);
        }
        let written = serde_json::to_vec_pretty(&self.identity)
            .map_err(std::io::Error::from)
            .and_then(|bytes| write_whole(Path::new(IDENTITY_FILE), &bytes));
        if let Err(error) = written {
            let text = format!("{IDENTITY_FILE} cannot be written: {error}");
            self.log.say(Level::Warning, &text);
        }
        let handler = crash::set_handler(&self.system, &self.own, &self.effective.document.crash);
        self.told("crash", vec![handler, crash::keep_pstore(&self.system)]);
        let mut items = Vec::new();
        let mut opened = |name: &str, error: Option<std::io::Error>, without: &str| {
            items.push(match error {
                None => Status::new(name, State::Ok, "open"),
                Some(error) => Status::new(name, State::Degraded, format!("{error}: {without}")),
            });
        };
        match control::Server::bind(Path::new(control::SOCKET)) {
            Ok(server) => {
                self.control = Some(server);
                opened("control", None, "");
            }
            Err(error) => opened("control", Some(error), "only signals reach init"),
        }
        match netlink::Netlink::uevents() {
            Ok(uevents) => {
                self.uevents = Some(uevents);
                opened("uevents", None, "");
            }
            Err(error) => opened(
                "uevents",
                Some(error),
                "a drive that is plugged in is not noticed",
            ),
        }
        match acpi::listen() {
            Ok(acpi) => {
                self.acpi = Some(acpi);
                opened("acpi", None, "");
            }
            Err(error) => opened("acpi", Some(error), "the power button is not heard"),
        }
        self.told("sockets", items);
        let config = self.effective.document.watchdog.clone();
        let (watchdog, status) = Watchdog::open(&config, self.now_ms());
        self.watchdog = watchdog;
        self.told("watchdog", vec![status]);
    }

    /// What the child that prepares the hardware is told.
    pub(super) fn write_machine_config(&mut self) {
        let config = &self.effective.document.machine;
        let written = serde_json::to_vec_pretty(config)
            .map_err(std::io::Error::from)
            .and_then(|bytes| write_whole(Path::new(hardware::CONFIG_FILE), &bytes));
        if let Err(error) = written {
            let text = format!("{} cannot be written: {error}", hardware::CONFIG_FILE);
            self.log.say(Level::Error, &text);
        }
    }

    fn begin_services(&mut self) {
        self.write_machine_config();
        let file = self.system.read(service::SERVICES_FILE).ok();
        let overrides = &self.effective.document.services;
        let (services, wrong) = service::table(file.as_deref(), overrides, &self.own, &|path| {
            self.system.exists(path)
        });
        let wrong = wrong
            .into_iter()
            .enumerate()
            .map(|(at, text)| Status::new(format!("table {}", at + 1), State::Degraded, text));
        let wrong: Vec<Status> = wrong.collect();
        self.told("services", wrong);
        self.supervisor = Supervisor::new(services, self.now_ms());
        self.outputs = (0..self.supervisor.len())
            .map(|_| Output {
                ring: Ring::new(RING_BYTES_MAX),
                rate: Rate::new(KMSG_LINES.0, KMSG_LINES.1),
                pipe: None,
            })
            .collect();
        let wrong = self.board.wrong().count();
        let text = match wrong {
            0 => "booted".to_owned(),
            1 => "booted degraded: 1 thing is not as wanted, see above".to_owned(),
            _ => format!("booted degraded: {wrong} things are not as wanted, see above"),
        };
        let text = format!("{text}; services begin after {} ms", self.now_ms());
        self.log.say(Level::Notice, &text);
    }
}
