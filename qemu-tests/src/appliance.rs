//! The appliance itself: a machine that boots the image as a storage node does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ::initramfs::{Tree, decompress};
use program_tests::{KilledChild, POLL_INTERVAL, program, until};
use qemu_machines::Machine;
use serde_json::Value;
use tempfile::TempDir;

use crate::{HarnessError, HttpServer, VolatileDisk, patience, qemu, tools};

const CONSOLE_TAIL_LINES: usize = 80;
/// Port of the agent in the node.
const AGENT_PORT: u16 = 50051;

/// The bootable files of an image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where they are.
    pub folder: PathBuf,
    /// The name that they begin with: `adit-release`.
    pub name: String,
}

impl Image {
    /// Makes the image of the programs under test with mkosi, if what is there is not of them.
    ///
    /// # Errors
    ///
    /// When `image/make-image` fails: it needs root, or sudo, and the tools root.
    pub fn make(profile: &str) -> Result<Self, HarnessError> {
        let tools = tools::tools_root()?;
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let programs = program("aditd");
        let programs = programs.parent().unwrap_or(Path::new("."));
        let folder = programs.with_file_name("image-tests");
        let script = project.join("image/make-image");
        let mut command = Command::new(&script);
        command.arg(profile).arg(tools).arg(programs).arg(&folder);
        run(command.env("INITRAMFS", program("initramfs")))?;
        Ok(Self {
            folder,
            name: format!("adit-{profile}"),
        })
    }

    /// An archive for [`ApplianceBuilder::overlay`]: busybox as `/beside/busybox` and a service `beside`
    /// that runs a shell script once, after `aditd`. Releases have no shell.
    ///
    /// # Errors
    ///
    /// When the image cannot be read.
    pub fn with_script(&self, script: &str) -> Result<Vec<u8>, HarnessError> {
        use ::initramfs::cpio::{Archive, MODE_REGULAR};

        let path = self.file("initrd");
        let not_understood = |problem: String| HarnessError::Answer {
            command: format!("reading {}", path.display()),
            answer: problem,
        };
        let initrd = fs::read(&path).map_err(HarnessError::file("read", &path))?;
        let initrd = decompress(&initrd).map_err(|error| not_understood(error.to_string()))?;
        let tree =
            Tree::from_archive(&initrd).map_err(|error| not_understood(error.to_string()))?;
        let services = tree.bytes("etc/adit/services.toml").unwrap_or_default();
        let mut services = String::from_utf8_lossy(services).into_owned();
        services.push_str(
            "\n[[service]]\nname = \"beside\"\nprogram = \"/beside/busybox\"\n\
             arguments = [\"sh\", \"/beside/script\"]\nonce = true\n\
             after = [\"aditd\"]\nready_timeout_ms = 600000\n",
        );
        let busybox = tools::tools_root()?.join("busybox");
        let busybox = fs::read(&busybox).map_err(HarnessError::file("read", busybox))?;
        let mut archive = Archive::default();
        archive.add("beside", 0o040_755, (0, 0), &[]);
        for (name, mode, bytes) in [
            ("beside/busybox", 0o755, &*busybox),
            ("beside/script", 0o644, script.as_bytes()),
            ("etc/adit/services.toml", 0o644, services.as_bytes()),
        ] {
            archive.add(name, MODE_REGULAR | mode, (0, 0), bytes);
        }
        Ok(archive.finish())
    }

    /// One of its files: `efi`, `vmlinuz`, `initrd`.
    pub fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.name))
    }
}

/// Runs a program of the host to its end.
fn run(command: &mut Command) -> Result<Output, HarnessError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| HarnessError::Spawn {
        program: program.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(HarnessError::Failed {
        command: format!("{command:?}"),
        status: output.status.to_string(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

/// How the image comes into the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// Kernel and initrd, from QEMU itself.
    Kernel,
    /// The UKI, started by UEFI firmware.
    Uki,
    /// The UKI, which UEFI firmware fetches over HTTP.
    UefiHttp,
    /// iPXE, which UEFI firmware fetches over TFTP, as iPXE its script; kernel and initrd over HTTP.
    Ipxe,
}

/// What an appliance is made of. [`ApplianceBuilder::boot`] starts it.
#[derive(Debug, Clone)]
pub struct ApplianceBuilder {
    name: String,
    image: Image,
    boot: Boot,
    machine: &'static str,
    /// Backends of the machine's drives: names and sockets of NBD servers.
    drives: Vec<(String, PathBuf)>,
    config: String,
    kernel: String,
    /// More arguments of QEMU.
    qemu: Vec<String>,
    /// More files for a boot from kernel and initrd: a cpio archive.
    overlay: Vec<u8>,
    /// The authority of who manages it; by default one of this boot alone.
    site: Option<PathBuf>,
}

impl ApplianceBuilder {
    /// Adds a cpio archive, whose files the kernel unpacks over those of the image; for a boot from
    /// kernel and initrd.
    #[must_use]
    pub fn overlay(mut self, archive: Vec<u8>) -> Self {
        self.overlay = archive;
        self
    }

    /// Gives it the authority in a folder, as `aditctl pki init` makes it: who manages it is the same over
    /// several boots.
    #[must_use]
    pub fn site(mut self, folder: &Path) -> Self {
        self.site = Some(folder.to_owned());
        self
    }

    /// How it boots; from kernel and initrd by default.
    #[must_use]
    pub fn by(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }

    /// Which machine it is: a profile in `machines/profiles` that is like `appliance`; that one by default.
    #[must_use]
    pub fn machine(mut self, name: &'static str) -> Self {
        self.machine = name;
        self
    }

    /// Puts a disk behind the machine's drive of that name.
    #[must_use]
    pub fn drive(mut self, disk: &VolatileDisk) -> Self {
        let socket = disk.socket().to_owned();
        self.drives.push((disk.name().to_owned(), socket));
        self
    }

    /// Adds lines to its configuration (docs/operations/init.md).
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self
    }

    /// Adds words to the kernel's command line, where the boot has one.
    #[must_use]
    pub fn kernel(mut self, words: &str) -> Self {
        self.kernel.push(' ');
        self.kernel.push_str(words);
        self
    }

    /// Adds arguments to QEMU's, split at spaces.
    #[must_use]
    pub fn qemu(mut self, words: &str) -> Self {
        let words = words.split_whitespace().map(str::to_owned);
        self.qemu.extend(words);
        self
    }

    /// Boots it and waits until `aditd` is ready and the agent answers.
    ///
    /// # Errors
    ///
    /// When QEMU does not start, or `aditd` is not ready in time.
    pub fn boot(self) -> Result<Appliance, HarnessError> {
        let mut appliance = self.start()?;
        appliance.wait_for_console("aditd: ready", patience(240))?;
        appliance.manage()?;
        Ok(appliance)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    ///
    /// When QEMU does not start.
    pub fn start(self) -> Result<Appliance, HarnessError> {
        let tools = tools::tools_root()?;
        let prefix = format!("adit-{}-", self.name);
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir();
        let folder =
            folder.map_err(HarnessError::file("make a folder in", std::env::temp_dir()))?;
        if let Some(site) = &self.site {
            run(Command::new("cp")
                .arg("-r")
                .arg(site)
                .arg(folder.path().join("site")))?;
        } else {
            make_site(&folder.path().join("site"))?;
        }
        let authority = folder.path().join("site/ca.pem");
        let authority =
            fs::read_to_string(&authority).map_err(HarnessError::file("read", &authority))?;
        let document = self.document(&authority);
        write(&folder.path().join("config.toml"), document.as_bytes())?;
        let machine = qemu::machine(self.machine)?;
        let kernel = format!("{}{}", machine.kernel(), self.kernel);
        let server = self.serve(&tools, folder.path(), &kernel)?;
        let agent_port = crate::free_port()?;
        let mut arguments = self.arguments(&machine, folder.path(), agent_port, server.as_ref())?;
        arguments.extend(self.boot_arguments(&tools, folder.path(), kernel)?);
        arguments.extend(self.qemu.iter().cloned());
        let errors = folder.path().join("qemu.log");
        let errors_file = fs::File::create(&errors).map_err(HarnessError::file("make", &errors))?;
        let qemu = KilledChild::spawn(&tools::qemu(), |command| {
            command
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(errors_file);
        })?;
        Ok(Appliance {
            qemu,
            folder: Some(folder),
            server,
            agent_port,
            started: Instant::now(),
        })
    }

    /// The node's configuration: who may manage it, drives to vfio, huge pages.
    fn document(&self, authority: &str) -> String {
        format!(
            "hostname = 'storage'\n{}\n[agent.api]\nca = '''{authority}'''\n\
             [machine]\nvfio = [{{ class = 'nvme' }}]\n\
             hugepages = [{{ size_kib = 2048, pages = 160 }}]\n\
             [services.aditd]\narguments = ['--reactors', '1']\n",
            self.config
        )
    }

    fn arguments(
        &self,
        machine: &Machine,
        folder: &Path,
        agent_port: u16,
        server: Option<&HttpServer>,
    ) -> Result<Vec<String>, HarnessError> {
        let given: Vec<&str> = self.drives.iter().map(|(name, _)| &**name).collect();
        let mut arguments = qemu::arguments(self.machine, machine, folder, &given)?;
        let drives = self.drives.iter();
        let backends = drives.map(|(name, socket)| qemu::nbd(name, socket));
        arguments.extend(qemu::options(backends));
        let path = |name: &str| folder.join(name).display().to_string();
        let config = format!("name=opt/io.adit/config,file={}", path("config.toml"));
        let mut network =
            format!("user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{agent_port}-:{AGENT_PORT}");
        match self.boot {
            Boot::Ipxe => {
                network.push_str(&format!(",tftp={},bootfile=ipxe.efi", path("tftp")));
            }
            Boot::UefiHttp => {
                let port = server.map_or(0, HttpServer::port);
                let name = &self.image.name;
                network.push_str(&format!(",bootfile=http://10.0.2.2:{port}/{name}.efi"));
            }
            Boot::Kernel | Boot::Uki => {}
        }
        let mut pairs = vec![("-fw_cfg", config), ("-netdev", network)];
        if let Some(card) = machine.network() {
            let is_booted_from = matches!(self.boot, Boot::UefiHttp | Boot::Ipxe);
            let place = if is_booted_from { ",bootindex=1" } else { "" };
            pairs.push(("-device", format!("{card}{place}")));
        }
        arguments.extend(qemu::options(pairs));
        Ok(arguments)
    }

    /// What a network boot fetches.
    fn serve(
        &self,
        tools: &Path,
        folder: &Path,
        kernel: &str,
    ) -> Result<Option<HttpServer>, HarnessError> {
        if !matches!(self.boot, Boot::Ipxe | Boot::UefiHttp) {
            return Ok(None);
        }
        let server = HttpServer::start(&self.image.folder)?;
        if self.boot == Boot::Ipxe {
            let tftp = folder.join("tftp");
            fs::create_dir(&tftp).map_err(HarnessError::file("make", &tftp))?;
            let ipxe = tools.join("root/usr/lib/ipxe/ipxe.efi");
            let to = tftp.join("ipxe.efi");
            fs::copy(&ipxe, &to).map_err(HarnessError::file("copy", ipxe))?;
            let template = include_str!("../../image/netboot/autoexec.ipxe");
            let script = template
                .replace("@BASE@", &format!("http://10.0.2.2:{}", server.port()))
                .replace("@NAME@", &self.image.name)
                .replace("@KERNEL@", kernel);
            write(&tftp.join("autoexec.ipxe"), script.as_bytes())?;
        }
        Ok(Some(server))
    }

    fn boot_arguments(
        &self,
        tools: &Path,
        folder: &Path,
        words: String,
    ) -> Result<Vec<String>, HarnessError> {
        if self.boot == Boot::Kernel {
            let (kernel, mut initrd) = (self.image.file("vmlinuz"), self.image.file("initrd"));
            if !self.overlay.is_empty() {
                let bytes = fs::read(&initrd);
                let mut bytes = bytes.map_err(HarnessError::file("read", &initrd))?;
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                bytes.extend(&self.overlay);
                initrd = folder.join("initrd");
                write(&initrd, &bytes)?;
            }
            let (kernel, initrd) = (kernel.display(), initrd.display());
            let pairs = [
                ("-kernel", kernel.to_string()),
                ("-initrd", initrd.to_string()),
                ("-append", words),
            ];
            return Ok(qemu::options(pairs));
        }
        let ovmf = tools.join("root/usr/share/OVMF");
        let (from, variables) = (ovmf.join("OVMF_VARS_4M.fd"), folder.join("efi-variables"));
        fs::copy(&from, &variables).map_err(HarnessError::file("copy", from))?;
        let flash = |path: &Path, options: &str| {
            format!("if=pflash,format=raw{options},file={}", path.display())
        };
        // A UKI brings its command line; this is appended to it (systemd-stub).
        let more = format!(
            "type=11,value=io.systemd.stub.kernel-cmdline-extra={}",
            words.replace(',', ",,")
        );
        let mut all = qemu::options([
            (
                "-drive",
                flash(&ovmf.join("OVMF_CODE_4M.fd"), ",readonly=on"),
            ),
            ("-drive", flash(&variables, "")),
            ("-smbios", more),
        ]);
        if self.boot == Boot::Uki {
            let uki = self.image.file("efi").display().to_string();
            all.extend(qemu::options([("-kernel", uki)]));
        }
        // What firmware would try before, for a minute.
        let without: &[u8] = match self.boot {
            Boot::Ipxe => &[6],
            Boot::UefiHttp => &[4, 6],
            Boot::Kernel | Boot::Uki => &[],
        };
        for version in without {
            let knob = format!("name=opt/org.tianocore/IPv{version}PXESupport,string=n");
            all.extend(qemu::options([("-fw_cfg", knob)]));
        }
        Ok(all)
    }
}

/// A running appliance. Dropping it cuts its power.
#[derive(Debug)]
pub struct Appliance {
    qemu: KilledChild,
    /// None once it is given up for the reader of a failed test.
    folder: Option<TempDir>,
    server: Option<HttpServer>,
    agent_port: u16,
    started: Instant,
}

impl Appliance {
    /// A node that boots this image.
    pub fn builder(name: &str, image: &Image) -> ApplianceBuilder {
        ApplianceBuilder {
            name: name.to_owned(),
            image: image.clone(),
            boot: Boot::Kernel,
            machine: "appliance",
            drives: Vec::new(),
            config: String::new(),
            kernel: String::new(),
            qemu: Vec::new(),
            overlay: Vec::new(),
            site: None,
        }
    }

    /// Waits for the fingerprint on the console, and until the agent behind it answers `aditctl`.
    ///
    /// # Errors
    ///
    /// When there is none in time.
    pub fn manage(&mut self) -> Result<(), HarnessError> {
        let start = Instant::now();
        loop {
            let answered = fingerprint(&self.console()).map(|fingerprint| {
                let endpoint = self.endpoint();
                let words = ["context", "add", "node", "--endpoint", &endpoint];
                let known = ["--fingerprint", &fingerprint, "--cert", "site/admin.pem"];
                self.ctl(&[&words[..], &known, &["--key", "site/admin.key"]].concat())?;
                self.ctl(&["node", "system"])
            });
            if let Some(Ok(_)) = answered {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited > patience(120) {
                let what = format!("the agent; the last try: {answered:?}");
                self.keep();
                return Err(HarnessError::Deadline { what, waited });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs `aditctl` on the host against the node; its standard output.
    ///
    /// # Errors
    ///
    /// When it fails, with what it printed.
    pub fn ctl(&self, words: &[&str]) -> Result<String, HarnessError> {
        let output = run(ctl(self.folder()).args(words))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until `aditctl` succeeds.
    ///
    /// # Panics
    ///
    /// When it does not in time: with its last words.
    #[track_caller]
    pub fn ctl_until(&self, words: &[&str], wanted: &str) -> String {
        let mut last = String::new();
        let start = Instant::now();
        until(&format!("{words:?} to say {wanted:?}"), || {
            last = match self.ctl(words) {
                Ok(text) if text.contains(wanted) => return Some(text),
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            assert!(start.elapsed() < patience(50), "{words:?} says: {last}");
            None
        })
    }

    /// Has connections to a port of the host's 127.0.0.1 reach a port of the node, from now on.
    ///
    /// # Errors
    ///
    /// When the port is taken, or QEMU does not answer.
    pub fn forward(&self, host_port: u16, port: u16) -> Result<(), HarnessError> {
        let line = format!("hostfwd_add net tcp:127.0.0.1:{host_port}-:{port}");
        qemu::monitor_line(&self.folder().join("qmp"), &line)
    }

    /// Runs a command of QEMU's machine protocol, such as `device_del`; what it returned.
    ///
    /// # Errors
    ///
    /// When QEMU does not answer, or with an error.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value, HarnessError> {
        qemu::execute(&self.folder().join("qmp"), command, arguments)
    }

    /// Waits until it has powered itself off.
    ///
    /// # Errors
    ///
    /// When it has not within `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<(), HarnessError> {
        let ended = self.qemu.wait("QEMU", limit).map(drop);
        if ended.is_err() {
            self.keep();
        }
        ended
    }

    /// Where `aditctl` reaches its agent.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.agent_port)
    }

    /// The fingerprint of its certificate, from the newest screen on the console.
    pub fn fingerprint(&self) -> Option<String> {
        fingerprint(&self.console())
    }

    /// What was written to the console.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.folder().join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a network boot has fetched over HTTP.
    pub fn fetched(&self) -> Vec<String> {
        let server = self.server.as_ref();
        server.map(HttpServer::requests).unwrap_or_default()
    }

    /// How long ago QEMU was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until the console shows `text`.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`, or the machine ends before.
    pub fn wait_for_console(&mut self, text: &str, limit: Duration) -> Result<(), HarnessError> {
        let start = Instant::now();
        loop {
            let ended = self.qemu.ended();
            if self.console().contains(text) {
                return Ok(());
            }
            let waited = start.elapsed();
            let what = format!("{text:?} on the console");
            if let Some(status) = ended {
                let (program, status) = ("QEMU", status.to_string());
                let error = HarnessError::Ended {
                    program,
                    status,
                    what,
                };
                self.keep();
                return Err(error);
            }
            if waited > limit {
                self.keep();
                return Err(HarnessError::Deadline { what, waited });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Cuts its power: at once, without a word to anybody.
    pub fn cut(mut self) {
        self.qemu.kill_9();
    }

    fn folder(&self) -> &Path {
        let folder = self.folder.as_ref();
        folder.expect("it is given up last").path()
    }

    /// Prints the end of the console and keeps the folder.
    fn keep(&mut self) {
        self.qemu.kill_9();
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = &lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..];
        eprintln!("--- end of the node's console ---\n{}", tail.join("\n"));
        let errors = fs::read_to_string(self.folder().join("qemu.log")).unwrap_or_default();
        eprintln!("--- QEMU's messages ---\n{errors}");
        eprintln!("--- fetched: {:?} ---", self.fetched());
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.qemu.kill_9();
        if std::thread::panicking() {
            self.keep();
            if let Some(folder) = self.folder.take() {
                eprintln!("--- all of it is kept in {} ---", folder.keep().display());
            }
        }
    }
}

/// Makes an authority and an administrator's certificate: see [`ApplianceBuilder::site`].
///
/// # Errors
///
/// When `aditctl` cannot make them.
pub fn make_site(folder: &Path) -> Result<(), HarnessError> {
    let beside = folder.parent().unwrap_or(Path::new("/"));
    let words = ["pki", "init", "--name", "site"];
    run(ctl(beside).args(words).arg(folder)).map(drop)
}

/// `aditctl` with what is known of nodes in a folder.
fn ctl(folder: &Path) -> Command {
    let mut command = Command::new(program("aditctl"));
    command
        .env("ADIT_CONTEXTS", folder.join("contexts.toml"))
        .env_remove("ADIT_SERVER")
        .env_remove("ADIT_CONTEXT")
        .current_dir(folder);
    command
}

/// The fingerprint on the newest whole screen of the console: two lines of 16 pairs.
fn fingerprint(console: &str) -> Option<String> {
    let lines: Vec<&str> = console.lines().map(str::trim).collect();
    lines.windows(2).rev().find_map(|pair| {
        let first = pair[0].strip_prefix("fingerprint")?.trim();
        let whole = first.len() == 48 && pair[1].len() == 47;
        whole.then(|| format!("{first}{}", pair[1]))
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), HarnessError> {
    fs::write(path, bytes).map_err(HarnessError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_stands_on_two_lines_of_a_whole_screen() {
        let (first, second) = ("ab:".repeat(16), "cd:".repeat(15) + "cd");
        let screen = format!("Adit 1\r\n  fingerprint  {first}\r\n               {second}\r\n");
        let wanted = format!("{first}{second}");
        assert_eq!(fingerprint(&screen).unwrap(), wanted);
        let cut = format!("{screen}Adit 1\r\n  fingerprint  ab:");
        assert_eq!(fingerprint(&cut).unwrap(), wanted);
        assert_eq!(fingerprint("fingerprint\nnone\n"), None);
    }
}
