//! Kernel modules: a short list in a fixed order, with what each depends on. No coldplug: only what
//! the appliance needs is loaded, so that nothing else takes a drive.

use std::collections::{BTreeMap, BTreeSet};

use machine::{NicMode, NicRule};

use crate::config::Modules;
use crate::status::{State, Status};
use crate::system::System;

/// The image's list: a module a line, `?` before one that a machine may do without, `@` before one
/// that is loaded where a device asks for it, parameters after it.
pub(crate) const LIST_FILE: &str = "/etc/adit/modules";
/// Most modules of the list.
const MODULES_MAX: usize = 256;
/// Most lines of modules.dep.
const DEPENDENCY_LINES_MAX: usize = 1 << 16;

/// Most lines of modules.alias.
const ALIAS_LINES_MAX: usize = 1 << 17;
/// Buses whose devices say by a `modalias` which driver they want.
const BUSES: [&str; 3] = ["pci", "virtio", "platform"];

/// Where the image has no list: vfio before anything that could take a drive.
const BUILTIN_LIST: &str = "\
?irqbypass
vfio_iommu_type1
vfio-pci
?qemu_fw_cfg
?efivarfs
?efi_pstore
?button
?i6300esb
?iTCO_wdt
?sp5100_tco
?virtio_rng
?virtio_net
?virtio_blk
";

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    name: String,
    parameters: String,
    optional: bool,
    /// Only where a device asks for it.
    for_device: bool,
}

fn parse_list(text: &str) -> Vec<Wanted> {
    let lines = text.lines().filter_map(|line| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let for_device = line.starts_with('@');
        let (optional, line) = match line.strip_prefix(['?', '@']) {
            Some(line) => (true, line.trim_start()),
            None => (false, line),
        };
        let (name, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (!name.is_empty()).then(|| Wanted {
            name: name.to_owned(),
            parameters: parameters.trim().to_owned(),
            optional,
            for_device,
        })
    });
    lines.take(MODULES_MAX).collect()
}

/// `vfio-pci` and `vfio_pci` are one module.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of a module by its file: `kernel/fs/ext4/ext4.ko.xz` is `ext4`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    plain(file.split(".ko").next().unwrap_or(file))
}

/// What modules there are, and what they need.
#[derive(Debug, Default)]
pub(crate) struct Index {
    folder: String,
    /// Path and paths of what it depends on, below `folder`, by name.
    files: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
    /// What devices may say, and the module that is for them.
    aliases: Vec<(String, String)>,
}

impl Index {
    /// Reads `modules.dep` and `modules.builtin` of the running kernel.
    pub(crate) fn read(system: &dyn System) -> Self {
        let release = system
            .text("/proc/sys/kernel/osrelease")
            .unwrap_or_default();
        let folders = ["/lib/modules", "/usr/lib/modules"];
        let folder = folders
            .iter()
            .map(|folder| format!("{folder}/{release}"))
            .find(|folder| system.exists(&format!("{folder}/modules.dep")))
            .unwrap_or_else(|| format!("/lib/modules/{release}"));
        let dependencies = system
            .text(&format!("{folder}/modules.dep"))
            .unwrap_or_default();
        let builtin = system
            .text(&format!("{folder}/modules.builtin"))
            .unwrap_or_default();
        let aliases = system
            .text(&format!("{folder}/modules.alias"))
            .unwrap_or_default();
        Self {
            aliases: parse_aliases(&aliases),
            files: parse_dependencies(&dependencies),
            builtin: builtin.lines().map(name_of).collect(),
            folder,
        }
    }

    /// Whether a device asks for a module.
    fn is_asked_for(&self, name: &str, devices: &[String]) -> bool {
        let name = plain(name);
        let own = self.aliases.iter().filter(|(_, module)| *module == name);
        own.into_iter()
            .any(|(pattern, _)| devices.iter().any(|device| matches(pattern, device)))
    }

    /// Files in the order of loading; the module itself is the last.
    fn order(&self, name: &str) -> Option<Vec<String>> {
        let (path, needs) = self.files.get(&plain(name))?;
        // modules.dep names what is nearest first.
        let mut order: Vec<String> = needs.iter().rev().cloned().collect();
        order.push(path.clone());
        Some(order)
    }
}

fn parse_aliases(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().take(ALIAS_LINES_MAX).filter_map(|line| {
        let (pattern, module) = line.strip_prefix("alias ")?.rsplit_once(' ')?;
        Some((pattern.to_owned(), plain(module)))
    });
    lines.collect()
}

/// Whether a pattern of modules.alias, in which `*` is any text and `?` any character, is a
/// device's. No driver of the image has a set of characters in its pattern.
fn matches(pattern: &str, device: &str) -> bool {
    let (pattern, device) = (pattern.as_bytes(), device.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // Where to go on after the last `*` when what follows it does not fit.
    let mut again: Option<(usize, usize)> = None;
    while seen < device.len() {
        match pattern.get(at) {
            Some(b'*') => {
                again = Some((at + 1, seen));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == device[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((star, from)) = again else {
                    return false;
                };
                again = Some((star, from + 1));
                (at, seen) = (star, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// What the devices of the machine say.
fn devices(system: &dyn System) -> Vec<String> {
    let mut found = Vec::new();
    for bus in BUSES {
        let folder = format!("/sys/bus/{bus}/devices");
        for device in system.list(&folder).unwrap_or_default() {
            found.extend(system.text(&format!("{folder}/{device}/modalias")));
        }
    }
    found
}

fn parse_dependencies(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let mut files = BTreeMap::new();
    for line in text.lines().take(DEPENDENCY_LINES_MAX) {
        if let Some((path, needs)) = line.split_once(':') {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            files.insert(name_of(path), (path.trim().to_owned(), needs));
        }
    }
    files
}

/// Parameters as on the command line of the kernel: `vfio_pci.disable_idle_d3=1`.
fn from_command_line(words: &[String], name: &str) -> Vec<String> {
    let prefix = format!("{}.", plain(name));
    words
        .iter()
        .filter_map(|word| {
            let (module, rest) = word.split_once('.')?;
            (format!("{}.", plain(module)) == prefix && !rest.is_empty()).then(|| rest.to_owned())
        })
        .collect()
}

/// Loads the image's list.
pub(crate) fn load_list(
    system: &dyn System,
    index: &Index,
    words: &[String],
    config: &Modules,
) -> Vec<Status> {
    let list = match system.read(LIST_FILE) {
        Ok(bytes) => parse_list(&String::from_utf8_lossy(&bytes)),
        Err(_) => parse_list(BUILTIN_LIST),
    };
    load(system, index, words, config, &list)
}

/// Loads what the configuration adds, and what ports for verbs need.
pub(crate) fn load_extra(
    system: &dyn System,
    index: &Index,
    words: &[String],
    config: &Modules,
    ports: &[NicRule],
) -> Vec<Status> {
    let wanted = |name: &str, optional| Wanted {
        name: name.to_owned(),
        parameters: String::new(),
        optional,
        for_device: false,
    };
    let extra = config.extra.iter().take(MODULES_MAX);
    let mut list: Vec<Wanted> = extra.map(|name| wanted(name, false)).collect();
    if ports.iter().any(|port| port.soft_roce) {
        // On Linux 6.12 rdma_rxe looks for this checksum without asking for its module; later
        // kernels have it built in.
        list.push(wanted("crc32_generic", true));
        list.push(wanted("rdma_rxe", false));
    }
    if ports.iter().any(|port| port.mode == NicMode::Verbs) {
        // It brings rdma_cm and ib_uverbs. An adapter's driver has brought ib_uverbs before, if it is
        // among the extra ones; else rdma_cm may come first. Nothing depends on which: the kernel shows
        // each of them the devices that are there when it comes, and those that come later. Only the
        // removal of a device is told to the one that came last first, and `aditd` lets go of it
        // either way (`nvmf_rdma`).
        list.push(wanted("rdma_ucm", false));
    }
    load(system, index, words, config, &list)
}

/// The kernel's driver for drives. No boot loads it; it is there for a drive that is to be wiped.
const DRIVE_MODULE: &str = "nvme";
/// Whether drivers take functions of PCI unasked.
const AUTOPROBE: &str = "/sys/bus/pci/drivers_autoprobe";

/// Loads the kernel's driver for drives in such a way that it takes none: who wants it to have one says which.
pub(crate) fn load_for_drives(
    system: &dyn System,
    words: &[String],
    config: &Modules,
) -> Result<String, String> {
    let failed = |error| format!("{AUTOPROBE} cannot be written: {error}");
    let before = system.read(AUTOPROBE).map_err(failed)?;
    system.write(AUTOPROBE, b"0").map_err(failed)?;
    let wanted = Wanted {
        name: DRIVE_MODULE.to_owned(),
        parameters: String::new(),
        optional: false,
        for_device: false,
    };
    let loaded = load(system, &Index::read(system), words, config, &[wanted]);
    // Else no card that is plugged in would get its driver.
    system.write(AUTOPROBE, &before).map_err(failed)?;
    match loaded.first() {
        Some(status) if status.state == State::Ok => Ok(status.text.clone()),
        Some(status) => Err(format!("{DRIVE_MODULE}: {}", status.text)),
        None => Err(format!("{DRIVE_MODULE} was not loaded")),
    }
}

/// Unloads it again: a drive that is plugged in later is not the kernel's.
pub(crate) fn unload_for_drives(system: &dyn System) -> Result<String, String> {
    match system.unload_module(DRIVE_MODULE) {
        Ok(()) => Ok(format!("{DRIVE_MODULE} is unloaded")),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(format!("{DRIVE_MODULE} was not loaded"))
        }
        Err(error) => Err(format!("{DRIVE_MODULE} cannot be unloaded: {error}")),
    }
}

fn load(
    system: &dyn System,
    index: &Index,
    words: &[String],
    config: &Modules,
    list: &[Wanted],
) -> Vec<Status> {
    let mut loaded = BTreeSet::new();
    let mut done = Vec::new();
    let devices = if list.iter().any(|wanted| wanted.for_device) {
        devices(system)
    } else {
        Vec::new()
    };
    for wanted in list {
        let name = &wanted.name;
        if wanted.for_device && !index.is_asked_for(name, &devices) {
            let text = "no device asks for it";
            done.push(Status::new(name, State::Skipped, text));
            continue;
        }
        if config.skip.iter().any(|skip| plain(skip) == plain(name)) {
            done.push(Status::new(
                name,
                State::Skipped,
                "the configuration skips it",
            ));
            continue;
        }
        let mut parameters: Vec<String> = Vec::new();
        if !wanted.parameters.is_empty() {
            parameters.push(wanted.parameters.clone());
        }
        let configured = config.parameters.iter();
        parameters.extend(
            configured
                .filter(|(module, _)| plain(module) == plain(name))
                .map(|(_, value)| value.clone()),
        );
        parameters.extend(from_command_line(words, name));
        done.push(load_one(
            system,
            index,
            wanted,
            &parameters.join(" "),
            words,
            &mut loaded,
        ));
    }
    done
}

fn load_one(
    system: &dyn System,
    index: &Index,
    wanted: &Wanted,
    parameters: &str,
    words: &[String],
    loaded: &mut BTreeSet<String>,
) -> Status {
    let name = &wanted.name;
    let absent = if wanted.optional {
        State::Skipped
    } else {
        State::Degraded
    };
    if index.builtin.contains(&plain(name)) {
        return Status::new(name, State::Ok, "built into the kernel");
    }
    if system.exists(&format!("/sys/module/{}/initstate", plain(name))) {
        return Status::new(name, State::Ok, "was loaded already");
    }
    let Some(order) = index.order(name) else {
        let text = format!("{} has no such module", index.folder);
        return Status::new(name, absent, text);
    };
    let (own, needs) = order
        .split_last()
        .expect("the module itself is in its order");
    for path in needs {
        let need = name_of(path);
        if index.builtin.contains(&need) || !loaded.insert(path.clone()) {
            continue;
        }
        let parameters = from_command_line(words, &need).join(" ");
        let file = format!("{}/{path}", index.folder);
        match system.load_module(&file, &parameters) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                let text = format!("{need}, which it needs, cannot be loaded: {error}");
                return Status::new(name, absent, text);
            }
            _ => {}
        }
    }
    if !loaded.insert(own.clone()) {
        return Status::new(name, State::Ok, "loaded before");
    }
    match system.load_module(&format!("{}/{own}", index.folder), parameters) {
        Ok(()) => Status::new(name, State::Ok, format!("loaded {parameters}").trim_end()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EEXIST) => Status::new(name, State::Ok, "was loaded already"),
            Some(libc::ENODEV) => Status::new(name, State::Skipped, "there is no such device"),
            _ => Status::new(name, absent, format!("cannot be loaded: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::system::fake::Fake;

    fn system() -> Fake {
        Fake::with(&[
            ("/proc/sys/kernel/osrelease", "6.12\n"),
            (
                "/lib/modules/6.12/modules.dep",
                "kernel/vfio-pci.ko.xz: kernel/core.ko.xz kernel/vfio.ko.xz\n\
                 kernel/core.ko.xz: kernel/vfio.ko.xz\nkernel/vfio.ko.xz:\n\
                 kernel/button.ko.xz:\nkernel/dog.ko.xz:\n",
            ),
            (
                "/lib/modules/6.12/modules.builtin",
                "kernel/drivers/tty/virtio_console.ko\n",
            ),
            (
                "/etc/adit/modules",
                "vfio_pci disable_vga=1 # first\n\n?button\n?absent\nmissing\nvirtio_console\n?dog\n",
            ),
        ])
    }

    #[test]
    fn the_driver_for_drives_is_loaded_while_no_driver_takes_anything_unasked() {
        let files = [
            ("/proc/sys/kernel/osrelease", "6.12\n"),
            (
                "/lib/modules/6.12/modules.dep",
                "kernel/nvme.ko.xz: kernel/nvme-core.ko.xz\nkernel/nvme-core.ko.xz:\n",
            ),
            (AUTOPROBE, "1\n"),
        ];
        let modules = [
            "module /lib/modules/6.12/kernel/nvme-core.ko.xz ",
            "module /lib/modules/6.12/kernel/nvme.ko.xz ",
        ];
        let (off, on) = (
            format!("write {AUTOPROBE} 0"),
            format!("write {AUTOPROBE} 1\n"),
        );
        let system = Fake::with(&files);
        load_for_drives(&system, &[], &Modules::default()).unwrap();
        assert_eq!(
            *system.calls.borrow(),
            [&*off, modules[0], modules[1], &*on]
        );
        // Also when it cannot be loaded.
        let mut system = Fake::with(&files);
        system.refuses.push((modules[1].to_owned(), libc::ENOMEM));
        load_for_drives(&system, &[], &Modules::default()).unwrap_err();
        assert_eq!(system.calls.borrow().last(), Some(&on));
        // Where nothing can be held back nothing is loaded.
        let system = Fake::with(&files[..2]);
        load_for_drives(&system, &[], &Modules::default()).unwrap_err();
        assert!(system.calls.borrow().is_empty());
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_once() {
        let system = system();
        let index = Index::read(&system);
        let words = [
            "vfio-pci.disable_idle_d3=1",
            "vfio_pci.",
            "vfio.x=2",
            "novfio_pci.x=1",
        ];
        let words = words.map(str::to_owned);
        let config = Modules {
            parameters: BTreeMap::from([("vfio-pci".to_owned(), "ids=1:2".to_owned())]),
            ..Modules::default()
        };
        let done = load_list(&system, &index, &words, &config);
        let calls = system.calls.borrow();
        assert_eq!(
            calls[..3],
            [
                "module /lib/modules/6.12/kernel/vfio.ko.xz x=2",
                "module /lib/modules/6.12/kernel/core.ko.xz ",
                "module /lib/modules/6.12/kernel/vfio-pci.ko.xz disable_vga=1 ids=1:2 disable_idle_d3=1",
            ]
        );
        let states: Vec<State> = done.iter().map(|status| status.state).collect();
        use State::{Degraded, Ok, Skipped};
        assert_eq!(states, [Ok, Ok, Skipped, Degraded, Ok, Ok]);
        assert_eq!(done[3].text, "/lib/modules/6.12 has no such module");
    }

    #[test]
    fn ports_for_verbs_bring_their_modules_in_order() {
        let system = Fake::with(&[
            ("/proc/sys/kernel/osrelease", "6.12\n"),
            (
                "/lib/modules/6.12/modules.dep",
                "kernel/rdma_ucm.ko.xz: kernel/ib_uverbs.ko.xz\nkernel/ib_uverbs.ko.xz:\n\
                 kernel/crc32_generic.ko.xz:\nkernel/rdma_rxe.ko.xz: kernel/ib_uverbs.ko.xz\n",
            ),
        ]);
        let index = Index::read(&system);
        let port = |mode, soft_roce| NicRule {
            port: machine::Selector::Interface("eth0".to_owned()),
            mode,
            soft_roce,
        };
        let config = Modules::default();
        let ports = [port(NicMode::Kernel, false)];
        assert_eq!(load_extra(&system, &index, &[], &config, &ports), []);
        let ports = [port(NicMode::Verbs, true)];
        let done = load_extra(&system, &index, &[], &config, &ports);
        assert!(
            done.iter().all(|status| status.state == State::Ok),
            "{done:?}"
        );
        let calls = system.calls.borrow();
        let modules = ["crc32_generic", "ib_uverbs", "rdma_rxe", "rdma_ucm"];
        let wanted = modules.map(|name| format!("module /lib/modules/6.12/kernel/{name}.ko.xz "));
        assert_eq!(*calls, wanted);
    }

    #[test]
    fn a_module_that_does_not_load_stops_nothing() {
        let mut system = system();
        let refuse =
            |call: &str, number| (format!("module /lib/modules/6.12/kernel/{call}"), number);
        system.refuses = vec![
            refuse("vfio.ko.xz", libc::ENOEXEC),
            refuse("button", libc::EEXIST),
            refuse("dog", libc::ENODEV),
        ];
        let index = Index::read(&system);
        let config = Modules {
            skip: vec!["missing".to_owned()],
            ..Modules::default()
        };
        let done = load_list(&system, &index, &[], &config);
        assert_eq!(done[0].state, State::Degraded);
        assert!(
            done[0]
                .text
                .starts_with("vfio, which it needs, cannot be loaded: ")
        );
        assert_eq!(done[1].text, "was loaded already");
        assert_eq!(done[3].text, "the configuration skips it");
        assert_eq!(done[5].text, "there is no such device");
    }

    #[test]
    fn a_module_for_devices_is_loaded_where_there_is_one() {
        let system = Fake::with(&[
            ("/proc/sys/kernel/osrelease", "6.12\n"),
            (
                "/lib/modules/6.12/modules.dep",
                "kernel/e1000e.ko.xz:\nkernel/igb.ko.xz:\nkernel/virtio_net.ko.xz:\n",
            ),
            (
                "/lib/modules/6.12/modules.alias",
                "# Aliases\nalias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n\
                 alias pci:v00008086d00001521sv*sd*bc*sc*i* igb\n\
                 alias virtio:d00000001v* virtio_net\n",
            ),
            ("/etc/adit/modules", "@e1000e\n@igb\n@virtio-net\n"),
            (
                "/sys/bus/pci/devices/0000:00:02.0/modalias",
                "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00\n",
            ),
            (
                "/sys/bus/virtio/devices/virtio0/modalias",
                "virtio:d00000001v00001AF4\n",
            ),
        ]);
        let index = Index::read(&system);
        let done = load_list(&system, &index, &[], &Modules::default());
        assert_eq!(done[1].text, "no device asks for it");
        assert_eq!(done[1].state, State::Skipped);
        let loaded: Vec<String> = system.calls.borrow().clone();
        let folder = "module /lib/modules/6.12/kernel";
        let wanted = [
            format!("{folder}/e1000e.ko.xz "),
            format!("{folder}/virtio_net.ko.xz "),
        ];
        assert_eq!(loaded, wanted);
    }

    #[test]
    fn patterns_of_devices_match_as_globs() {
        for (pattern, device) in [
            ("pci:v*d*bc02*", "pci:v1d2bc02sc"),
            ("*", ""),
            ("a?c", "abc"),
            ("a*b*c", "axxbyybzc"),
            ("", ""),
        ] {
            assert!(matches(pattern, device), "{pattern} {device}");
        }
        for (pattern, device) in [("pci:v1", "pci:v12"), ("a*b", "ac"), ("", "a"), ("?", "")] {
            assert!(!matches(pattern, device), "{pattern} {device}");
        }
    }

    #[test]
    fn vfio_is_before_all_that_could_take_a_drive() {
        let list = parse_list(BUILTIN_LIST);
        let at = |name: &str| list.iter().position(|wanted| wanted.name == name).unwrap();
        assert!(at("vfio-pci") < at("virtio_blk"));
        assert!(!list.iter().any(|wanted| wanted.name == "nvme"));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "[a-z:./?# \n-]{0,200}") {
            let _ = parse_list(&text);
            let _ = parse_aliases(&text);
            let _ = matches(&text, "a:b./c");
            let index = Index { files: parse_dependencies(&text), ..Index::default() };
            for name in index.files.keys() {
                let _ = index.order(name);
            }
        }
    }
}
