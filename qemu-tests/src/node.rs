//! A storage node: a guest whose process 1 is `adit-init`, in an initramfs with nothing but it, its
//! modules, `aditd` and `aditctl`, and busybox for the test's scripts.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::initramfs::cpio::Archive;
use base64::prelude::{BASE64_STANDARD, Engine};
use program_tests::{KilledChild, POLL_INTERVAL, program};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::initramfs::{MODE_CONSOLE, MODE_DIRECTORY, MODE_FILE, MODE_LINK, MODE_PROGRAM};
use crate::{HarnessError, patience, qemu, tools};

const BOOT_DEADLINE_SECONDS: u64 = 180;
const RUN_DEADLINE_SECONDS: u64 = 120;
const READ_SLICE: Duration = Duration::from_millis(500);
const CONSOLE_TAIL_LINES: usize = 80;

/// Modules that the initramfs holds, with what they depend on.
const MODULES: &[&str] = &[
    "vfio-pci",
    "vfio_iommu_type1",
    "qemu_fw_cfg",
    "button",
    "i6300esb",
    "virtio_net",
    "virtio_rng",
];

/// What a node is made of. [`NodeBuilder::boot`] starts it.
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    name: String,
    machine: &'static str,
    kernel: String,
    qemu: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    /// Programs of the project, and where they are in the node.
    programs: Vec<(&'static str, &'static str)>,
}

impl NodeBuilder {
    /// Which machine it is: a profile in `machines/profiles` that is like `node`; that one by default.
    #[must_use]
    pub fn machine(mut self, name: &'static str) -> Self {
        self.machine = name;
        self
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn kernel(mut self, words: &str) -> Self {
        self.kernel.push(' ');
        self.kernel.push_str(words);
        self
    }

    /// Adds arguments to QEMU's, split at spaces.
    #[must_use]
    pub fn qemu(mut self, words: &str) -> Self {
        self.qemu
            .extend(words.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds or replaces a file of the initramfs; the path has no leading slash.
    #[must_use]
    pub fn file(mut self, path: &str, content: &str) -> Self {
        self.files.retain(|(old, _)| old != path);
        self.files
            .push((path.to_owned(), content.as_bytes().to_owned()));
        self
    }

    /// Adds a program of the project.
    #[must_use]
    pub fn program(mut self, name: &'static str, path: &'static str) -> Self {
        self.programs.push((name, path));
        self
    }

    /// Starts the machine and does not wait for it.
    ///
    /// # Errors
    ///
    /// When the tools root cannot be made, a program is missing, or QEMU does not start.
    pub fn start(self) -> Result<Node, HarnessError> {
        let tools = tools::tools_root()?;
        let prefix = format!("adit-{}-", self.name);
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir();
        let folder =
            folder.map_err(HarnessError::file("make a folder in", std::env::temp_dir()))?;
        let archive = folder.path().join("initramfs");
        let bytes = build(&tools, folder.path(), &self)?;
        fs::write(&archive, bytes).map_err(HarnessError::file("write", &archive))?;
        let errors = folder.path().join("qemu.log");
        let errors_file = fs::File::create(&errors).map_err(HarnessError::file("make", &errors))?;
        let arguments = self.arguments(&tools, folder.path())?;
        let qemu = KilledChild::spawn(&tools::qemu(), |command| {
            command
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(errors_file);
        })?;
        Ok(Node {
            qemu,
            folder: Some(folder),
            probe: None,
            unread: Vec::new(),
            ended: false,
        })
    }

    /// Boots it and waits until its probe answers, which is a service of `adit-init`.
    ///
    /// # Errors
    ///
    /// As [`NodeBuilder::start`], and when the probe does not answer in time.
    pub fn boot(self) -> Result<Node, HarnessError> {
        let mut node = self.start()?;
        node.wait_for_probe()?;
        Ok(node)
    }

    fn arguments(&self, tools: &Path, folder: &Path) -> Result<Vec<String>, HarnessError> {
        let machine = qemu::machine(self.machine)?;
        let mut arguments = qemu::arguments(self.machine, &machine, folder, &[])?;
        let kernel = format!("{}{}", machine.kernel(), self.kernel);
        arguments.extend(qemu::boot(tools, folder, kernel));
        let probe = folder.join("probe");
        let probe = format!(
            "socket,id=probe,server=on,wait=off,path={}",
            probe.display()
        );
        let card = machine.network().map(|card| ("-device", card.to_owned()));
        arguments.extend(qemu::options([("-chardev", probe)].into_iter().chain(card)));
        arguments.extend(self.qemu.iter().cloned());
        Ok(arguments)
    }
}

/// A running node. Dropping it cuts its power.
#[derive(Debug)]
pub struct Node {
    qemu: KilledChild,
    /// None once it is given up for the reader of a failed test.
    folder: Option<TempDir>,
    probe: Option<UnixStream>,
    unread: Vec<u8>,
    ended: bool,
}

impl Node {
    /// A node.
    pub fn builder(name: &str) -> NodeBuilder {
        let files = [
            ("etc/probe", include_str!("../guest/node/probe")),
            (
                "etc/adit/services.toml",
                include_str!("../guest/node/services.toml"),
            ),
            (
                "etc/adit/image.toml",
                "version = 'test'\nprofile = 'release'\n",
            ),
        ];
        NodeBuilder {
            name: name.to_owned(),
            machine: "node",
            kernel: String::new(),
            qemu: Vec::new(),
            files: files
                .map(|(path, text)| (path.to_owned(), text.as_bytes().to_owned()))
                .to_vec(),
            programs: vec![
                ("adit-init", "init"),
                ("aditd", "usr/bin/aditd"),
                ("aditctl", "usr/bin/aditctl"),
            ],
        }
    }

    /// Runs a shell script in it, which must succeed; both its outputs are the answer.
    ///
    /// # Errors
    ///
    /// When it fails, with what it printed, or the node is gone.
    pub fn run(&mut self, script: &str) -> Result<String, HarnessError> {
        let (status, output) = self.attempt(script)?;
        if status == 0 {
            return Ok(output);
        }
        Err(HarnessError::Failed {
            command: script.to_owned(),
            status: format!("exit status {status}"),
            stdout: output,
            stderr: String::new(),
        })
    }

    /// As [`Node::run`], for a script that may fail.
    ///
    /// # Errors
    ///
    /// When the node is gone or takes too long.
    pub fn attempt(&mut self, script: &str) -> Result<(i32, String), HarnessError> {
        self.begin(script)?;
        let line = self.read_line(script, patience(RUN_DEADLINE_SECONDS))?;
        let not_understood = || HarnessError::Answer {
            command: script.to_owned(),
            answer: line.clone(),
        };
        let (status, output) = line.split_once(' ').unwrap_or((&line, ""));
        let status = status.parse().map_err(|_| not_understood())?;
        let output = BASE64_STANDARD
            .decode(output)
            .map_err(|_| not_understood())?;
        Ok((status, String::from_utf8_lossy(&output).into_owned()))
    }

    /// Sends a script whose end the node will not tell.
    ///
    /// # Errors
    ///
    /// When the node is gone.
    pub fn begin(&mut self, script: &str) -> Result<(), HarnessError> {
        let probe = self.probe.as_mut().expect("boot() has connected it");
        let line = format!("{}\n", BASE64_STANDARD.encode(script));
        probe
            .write_all(line.as_bytes())
            .map_err(|source| HarnessError::Agent { source })
    }

    /// Runs `script` until it succeeds.
    ///
    /// # Errors
    ///
    /// When it still fails after a minute: the last failure.
    pub fn wait_until(&mut self, script: &str) -> Result<String, HarnessError> {
        let start = Instant::now();
        loop {
            match self.run(script) {
                Err(HarnessError::Failed { .. }) if start.elapsed() < patience(60) => {}
                other => return other,
            }
        }
    }

    /// What was written to the console.
    pub fn console(&self) -> String {
        let Some(folder) = &self.folder else {
            return String::new();
        };
        let bytes = fs::read(folder.path().join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the console shows what `find` finds in it.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`.
    pub fn find_on_console<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T, HarnessError> {
        let start = Instant::now();
        loop {
            if let Some(found) = find(&self.console()) {
                return Ok(found);
            }
            self.check(what, start, limit)?;
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until the console shows `text`.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`, or the machine ends before.
    pub fn wait_for_console(&mut self, text: &str, limit: Duration) -> Result<(), HarnessError> {
        let start = Instant::now();
        loop {
            if self.console().contains(text) {
                return Ok(());
            }
            let waited = start.elapsed();
            let what = format!("{text:?} on the console");
            if let Some(status) = self.qemu.ended() {
                let (program, status) = ("QEMU", status.to_string());
                if self.console().contains(text) {
                    return Ok(());
                }
                return Err(HarnessError::Ended {
                    program,
                    status,
                    what,
                });
            }
            if waited > limit {
                return Err(HarnessError::Deadline { what, waited });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Runs a command of QEMU's machine protocol that has no arguments, such as `system_powerdown`.
    ///
    /// # Errors
    ///
    /// When QEMU does not answer, or with an error.
    pub fn qmp(&mut self, command: &str) -> Result<(), HarnessError> {
        self.qmp_with(command, &json!({}))
    }

    /// Runs a command of QEMU's machine protocol, such as `device_add`.
    ///
    /// # Errors
    ///
    /// When QEMU does not answer, or with an error.
    pub fn qmp_with(&mut self, command: &str, arguments: &Value) -> Result<(), HarnessError> {
        qemu::execute(&self.path("qmp"), command, arguments).map(drop)
    }

    /// Waits until the machine has ended by itself: powered off or, as it runs with `-no-reboot`, reset.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<(), HarnessError> {
        self.qemu.wait("QEMU", limit)?;
        self.ended = true;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        let folder = self.folder.as_ref().expect("it is given up in drop() only");
        folder.path().join(name)
    }

    fn wait_for_probe(&mut self) -> Result<(), HarnessError> {
        let start = Instant::now();
        let limit = patience(BOOT_DEADLINE_SECONDS);
        let path = self.path("probe");
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) => self.check("QEMU to start", start, limit)?,
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        stream
            .set_read_timeout(Some(READ_SLICE))
            .map_err(|source| HarnessError::Agent { source })?;
        self.probe = Some(stream);
        while self.read_line("the node to boot", limit)? != "ready" {}
        Ok(())
    }

    fn read_line(&mut self, what: &str, limit: Duration) -> Result<String, HarnessError> {
        let start = Instant::now();
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            let mut bytes = [0; 4096];
            let probe = self
                .probe
                .as_mut()
                .expect("wait_for_probe() connects it first");
            match probe.read(&mut bytes) {
                Ok(count @ 1..) => self.unread.extend_from_slice(&bytes[..count]),
                Ok(0) => {
                    let _ = self.qemu.wait("QEMU", patience(10));
                    self.check(what, start, limit)?;
                    let source = ErrorKind::UnexpectedEof.into();
                    return Err(HarnessError::Agent { source });
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(source) => return Err(HarnessError::Agent { source }),
            }
            self.check(what, start, limit)?;
        }
    }

    fn check(&mut self, what: &str, start: Instant, limit: Duration) -> Result<(), HarnessError> {
        let what = what.to_owned();
        if let Some(status) = self.qemu.ended() {
            let (program, status) = ("QEMU", status.to_string());
            return Err(HarnessError::Ended {
                program,
                status,
                what,
            });
        }
        let waited = start.elapsed();
        if waited > limit {
            return Err(HarnessError::Deadline { what, waited });
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.qemu.kill_9();
        let never_came = self.probe.is_none() && !self.ended;
        if std::thread::panicking() || never_came {
            let console = self.console();
            if let Some(folder) = self.folder.take() {
                let lines: Vec<&str> = console.lines().collect();
                let tail = &lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..];
                eprintln!("--- end of the node's console ---\n{}", tail.join("\n"));
                let errors = fs::read_to_string(folder.path().join("qemu.log")).unwrap_or_default();
                eprintln!("--- QEMU's messages ---\n{errors}");
                eprintln!("--- all of it is kept in {} ---", folder.keep().display());
            }
        }
    }
}

/// The initramfs of a node.
fn build(tools: &Path, scratch: &Path, node: &NodeBuilder) -> Result<Vec<u8>, HarnessError> {
    let read = |path: &Path| fs::read(path).map_err(HarnessError::file("read", path));
    let mut archive = Archive::default();
    for folder in [
        "dev",
        "bin",
        "sbin",
        "etc",
        "etc/adit",
        "usr",
        "usr/bin",
        "lib",
        "lib/modules",
    ] {
        archive.add(folder, MODE_DIRECTORY, (0, 0), &[]);
    }
    archive.add("dev/console", MODE_CONSOLE, (5, 1), &[]);
    let busybox = read(&tools.join("busybox"))?;
    archive.add("bin/busybox", MODE_PROGRAM, (0, 0), &busybox);
    for name in ["poweroff", "reboot", "halt"] {
        archive.add(&format!("sbin/{name}"), MODE_LINK, (0, 0), b"/init");
    }
    let mut libraries: Vec<PathBuf> = Vec::new();
    for (name, target) in &node.programs {
        let path = program(name);
        archive.add(target, MODE_PROGRAM, (0, 0), &stripped(&path, scratch)?);
        libraries.extend(libraries_of(&path));
    }
    libraries.sort();
    libraries.dedup();
    let mut folders: Vec<PathBuf> = vec!["lib".into(), "usr".into()];
    for library in &libraries {
        let inside = library.strip_prefix("/").unwrap_or(library);
        add_folders(&mut archive, inside, &mut folders);
        let name = inside.display().to_string();
        archive.add(&name, MODE_PROGRAM, (0, 0), &read(library)?);
    }
    add_modules(&mut archive, tools, &mut folders)?;
    for (path, content) in &node.files {
        archive.add(path, MODE_FILE, (0, 0), content);
    }
    Ok(archive.finish())
}

/// Adds the folders that `path` is in, once.
fn add_folders(archive: &mut Archive, path: &Path, known: &mut Vec<PathBuf>) {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    for folder in above.into_iter().filter(|folder| *folder != Path::new("")) {
        if !known.iter().any(|each| each == folder) {
            archive.add(&folder.display().to_string(), MODE_DIRECTORY, (0, 0), &[]);
            known.push(folder.to_owned());
        }
    }
}

/// The program without what only a debugger reads, where there is a `strip`.
fn stripped(program: &Path, scratch: &Path) -> Result<Vec<u8>, HarnessError> {
    let small = scratch.join("stripped");
    let done = Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .arg(&small)
        .arg(program)
        .stderr(Stdio::null())
        .status();
    let path = match done {
        Ok(status) if status.success() => small.as_path(),
        _ => program,
    };
    fs::read(path).map_err(HarnessError::file("read", path))
}

/// The shared libraries of a program, the loader among them; none for a static one.
fn libraries_of(program: &Path) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(program).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect()
}

fn add_modules(
    archive: &mut Archive,
    tools: &Path,
    folders: &mut Vec<PathBuf>,
) -> Result<(), HarnessError> {
    let read = |path: &Path| fs::read(path).map_err(HarnessError::file("read", path));
    let all = tools.join("root/usr/lib/modules");
    let entries = fs::read_dir(&all).map_err(HarnessError::file("read", &all))?;
    let release = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .next()
        .unwrap_or_default();
    let from = all.join(&release);
    let to = format!("lib/modules/{release}");
    folders.push("lib/modules".into());
    let dependencies = read(&from.join("modules.dep"))?;
    let dependencies = String::from_utf8_lossy(&dependencies).into_owned();
    let mut wanted: Vec<&str> = Vec::new();
    for line in dependencies.lines() {
        let (path, needs) = line.split_once(':').unwrap_or((line, ""));
        let name = path.rsplit('/').next().unwrap_or_default();
        let name = name.split(".ko").next().unwrap_or_default();
        if MODULES.contains(&name) {
            wanted.push(path);
            wanted.extend(needs.split_whitespace());
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    for path in wanted {
        let name = format!("{to}/{path}");
        add_folders(archive, Path::new(&name), folders);
        archive.add(&name, MODE_FILE, (0, 0), &read(&from.join(path))?);
    }
    for name in ["modules.dep", "modules.builtin"] {
        archive.add(
            &format!("{to}/{name}"),
            MODE_FILE,
            (0, 0),
            &read(&from.join(name))?,
        );
    }
    Ok(())
}
