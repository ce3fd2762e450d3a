//! One Linux guest, its agent and its logs.

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use program_tests::{KilledChild, POLL_INTERVAL};
use tempfile::TempDir;

use crate::{HarnessError, initramfs, patience, qemu, tools};

/// Boot takes 10 s on two quiet cores.
const BOOT_DEADLINE_SECONDS: u64 = 180;
/// A script that takes longer is run with [`Guest::spawn`] and its own deadline.
const RUN_DEADLINE_SECONDS: u64 = 180;
const POWER_OFF_DEADLINE_SECONDS: u64 = 60;
/// A read from the agent looks this often whether QEMU still lives.
const READ_SLICE: Duration = Duration::from_millis(500);
const SERIAL_TAIL_LINES: usize = 60;

/// What a guest is made of. [`GuestBuilder::boot`] starts it.
#[derive(Debug, Clone)]
pub struct GuestBuilder {
    name: String,
    machine: &'static str,
    /// Name, which the guest sees as serial number, and the socket of an NBD server.
    disks: Vec<(String, PathBuf)>,
    /// Backends of the machine's NVMe drives: names and files.
    drives: Vec<(String, PathBuf)>,
    programs: Option<PathBuf>,
    arguments: Vec<String>,
}

impl GuestBuilder {
    /// Which machine it is: a profile in `machines/profiles` that is like `host`; that one by default.
    #[must_use]
    pub fn machine(mut self, name: &'static str) -> Self {
        self.machine = name;
        self
    }

    /// Adds arguments of QEMU: words between spaces.
    #[must_use]
    pub fn qemu(mut self, arguments: &str) -> Self {
        let words = arguments.split_whitespace().map(str::to_owned);
        self.arguments.extend(words);
        self
    }

    /// Puts a file behind an NVMe drive of the machine, or a namespace of one: the backend `name`.
    #[must_use]
    pub fn drive(mut self, name: &str, file: &Path) -> Self {
        self.drives.push((name.to_owned(), file.to_owned()));
        self
    }

    /// Gives it a disk that a [`crate::VolatileDisk`] holds. The guest finds it as
    /// `/dev/disk-NAME`; its write cache is the one of the disk.
    #[must_use]
    pub fn disk(mut self, disk: &crate::VolatileDisk) -> Self {
        let socket = disk.socket().to_owned();
        self.disks.push((disk.name().to_owned(), socket));
        self
    }

    /// Has the guest see the folder of `aditd` and `aditctl`, read-only, as `/programs`.
    #[must_use]
    pub fn programs(mut self) -> Self {
        let folder = program_tests::program("aditd");
        self.programs = folder.parent().map(Path::to_owned);
        self
    }

    /// Boots it and waits until its agent answers.
    ///
    /// # Errors
    ///
    /// When the tools root cannot be made, QEMU does not start, or the guest does not come up in
    /// time.
    pub fn boot(self) -> Result<Guest, HarnessError> {
        let tools = tools::tools_root()?;
        let prefix = format!("adit-{}-", self.name);
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir();
        let folder =
            folder.map_err(HarnessError::file("make a folder in", std::env::temp_dir()))?;
        let share = folder.path().join("share");
        fs::create_dir(&share).map_err(HarnessError::file("make", &share))?;
        write(&share.join("agent"), include_bytes!("../guest/agent"))?;
        let archive = folder.path().join("initramfs");
        write(&archive, &initramfs::build(&tools)?)?;

        let arguments = self.arguments(&tools, folder.path())?;
        let errors = folder.path().join("qemu.log");
        let errors_file = fs::File::create(&errors).map_err(HarnessError::file("make", &errors))?;
        let qemu = KilledChild::spawn(&tools::qemu(), |command| {
            command
                .args(&arguments)
                .stdout(std::process::Stdio::null())
                .stderr(errors_file);
        })?;
        let mut guest = Guest {
            qemu,
            folder: Some(folder),
            share,
            agent: None,
            unread: Vec::new(),
            ended: HashMap::new(),
            last_job: 0,
        };
        guest.wait_for_agent()?;
        guest.attach(&self.disks, self.programs.is_some())?;
        Ok(guest)
    }

    fn arguments(&self, tools: &Path, folder: &Path) -> Result<Vec<String>, HarnessError> {
        let machine = qemu::machine(self.machine)?;
        let given: Vec<&str> = self.drives.iter().map(|(name, _)| &**name).collect();
        let mut arguments = qemu::arguments(self.machine, &machine, folder, &given)?;
        arguments.extend(qemu::boot(tools, folder, machine.kernel()));
        arguments.extend(self.arguments.iter().cloned());
        let agent = folder.join("agent");
        let agent = format!(
            "socket,id=agent,server=on,wait=off,path={}",
            agent.display()
        );
        let shared = |name: &str, options: &str, path: &Path| {
            let how = "security_model=none,multidevs=remap";
            format!("local,id={name}{options},{how},path={}", path.display())
        };
        let mut pairs = vec![
            ("-chardev", agent),
            (
                "-fsdev",
                shared("root", ",readonly=on", &tools.join("root")),
            ),
            ("-fsdev", shared("share", "", &folder.join("share"))),
        ];
        if let Some(card) = machine.network() {
            pairs.push(("-netdev", "user,id=net,ipv6=off".to_owned()));
            pairs.push(("-device", card.to_owned()));
        }
        for (name, file) in &self.drives {
            let backend = format!("driver=file,node-name={name},filename={}", file.display());
            pairs.push(("-blockdev", backend));
        }
        for (name, socket) in &self.disks {
            pairs.push(qemu::nbd(name, socket));
            let device = format!("virtio-blk-pci,drive={name},serial={name},write-cache=on");
            pairs.push(("-device", device));
        }
        if let Some(folder) = &self.programs {
            pairs.push(("-fsdev", shared("programs", ",readonly=on", folder)));
            let device = "virtio-9p-pci,fsdev=programs,mount_tag=programs";
            pairs.push(("-device", device.to_owned()));
        }
        arguments.extend(qemu::options(pairs));
        Ok(arguments)
    }
}

/// A script that runs in a guest; [`Guest::join`] waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Job(u32);

/// What a script in a guest left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status; 128 and more for a signal.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A running guest. Dropping it ends it at once; [`Guest::power_off`] does so in order.
#[derive(Debug)]
pub struct Guest {
    qemu: KilledChild,
    /// None once it is given up for the reader of a failed test.
    folder: Option<TempDir>,
    share: PathBuf,
    agent: Option<UnixStream>,
    unread: Vec<u8>,
    ended: HashMap<u32, i32>,
    last_job: u32,
}

impl Guest {
    /// A guest; `name` shows up in the name of its folder of logs.
    pub fn builder(name: &str) -> GuestBuilder {
        GuestBuilder {
            name: name.to_owned(),
            machine: "host",
            disks: Vec::new(),
            drives: Vec::new(),
            programs: None,
            arguments: Vec::new(),
        }
    }

    /// Runs a shell script (`sh -eu`) and waits for it; its standard output is the answer.
    ///
    /// # Errors
    ///
    /// When the script fails, with what it printed, or takes too long.
    pub fn run(&mut self, script: &str) -> Result<String, HarnessError> {
        let output = self.attempt(script)?;
        succeeded(script, output).map(|output| output.stdout)
    }

    /// As [`Guest::run`], for a script that may fail.
    ///
    /// # Errors
    ///
    /// When the guest is gone or the script takes too long.
    pub fn attempt(&mut self, script: &str) -> Result<Output, HarnessError> {
        let job = self.spawn(script)?;
        self.wait_for_job(job, script, patience(RUN_DEADLINE_SECONDS))
    }

    /// Starts a shell script and does not wait for it. Several run side by side.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn spawn(&mut self, script: &str) -> Result<Job, HarnessError> {
        self.last_job += 1;
        let job = self.last_job;
        write(&self.share.join(format!("{job}.sh")), script.as_bytes())?;
        self.send(&format!("{job}\n"))?;
        Ok(Job(job))
    }

    /// Waits for a script to succeed.
    ///
    /// # Errors
    ///
    /// When it fails, with what it printed, or takes longer than `deadline`.
    pub fn join(&mut self, job: Job, deadline: Duration) -> Result<Output, HarnessError> {
        let path = self.share.join(format!("{}.sh", job.0));
        let script = fs::read_to_string(&path).map_err(HarnessError::file("read", &path))?;
        let output = self.wait_for_job(job, &script, deadline)?;
        succeeded(&script, output)
    }

    /// What a script that still runs has printed up to now.
    pub fn printed(&self, job: Job) -> String {
        fs::read_to_string(self.share.join(format!("{}.out", job.0))).unwrap_or_default()
    }

    /// Runs `script` again and again until it succeeds; its standard output is the answer.
    ///
    /// # Errors
    ///
    /// When it still fails at the deadline: the last failure.
    pub fn wait_until(
        &mut self,
        what: &str,
        script: &str,
        deadline: Duration,
    ) -> Result<String, HarnessError> {
        // The loop is in the guest: a round trip costs more than a look. The script has a shell of
        // its own, as a shell's -e does not hold in the condition of a loop.
        let try_file = format!("{}.try", self.last_job + 1);
        write(&self.share.join(&try_file), script.as_bytes())?;
        let script = format!(
            "deadline=$(($(cut -d. -f1 /proc/uptime) + {seconds}))\n\
             until sh -eu /share/{try_file} >/tmp/{try_file} 2>&1; do\n\
             [ $(cut -d. -f1 /proc/uptime) -lt $deadline ] ||\n\
             {{ echo 'not in time: {what}. The last try said:'; cat /tmp/{try_file}; exit 1; }}\n\
             sleep 0.1\ndone\ncat /tmp/{try_file}",
            seconds = deadline.as_secs(),
        );
        let job = self.spawn(&script)?;
        // The guest's clock may run behind under emulation.
        self.join(job, deadline * 2 + patience(30))
            .map(|output| output.stdout)
    }

    /// Runs a command of QEMU's machine protocol, such as `device_del`; what it returned.
    ///
    /// # Errors
    ///
    /// When QEMU does not answer, or with an error.
    pub fn qmp(
        &mut self,
        command: &str,
        arguments: &serde_json::Value,
    ) -> Result<serde_json::Value, HarnessError> {
        qemu::execute(&self.share.with_file_name("qmp"), command, arguments)
    }

    /// What QEMU itself has written, traces among it.
    pub fn qemu_log(&self) -> String {
        let log = self.share.with_file_name("qemu.log");
        let bytes = fs::read(log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The host's end of the folder that the guest sees as `/share`.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// What the guest's kernel and its agent wrote to the console.
    pub fn serial(&self) -> String {
        let Some(folder) = &self.folder else {
            return String::new();
        };
        let bytes = fs::read(folder.path().join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Syncs, powers the guest off and waits until QEMU has ended.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn power_off(mut self) -> Result<(), HarnessError> {
        self.send("poweroff\n")?;
        self.qemu
            .wait("QEMU", patience(POWER_OFF_DEADLINE_SECONDS))
            .map(|_| ())
    }

    /// Ends it as a power cut does: at once, with SIGKILL.
    ///
    /// `quit` of QEMU's monitor would flush its disks first, and the guest's connections would end
    /// in order; a cut does neither.
    pub fn cut(mut self) {
        self.qemu.kill_9();
    }

    /// Takes connections to a port of the host's 127.0.0.1 for the guest, from now on.
    ///
    /// # Errors
    ///
    /// When the port is taken, or QEMU does not answer.
    pub fn forward(&mut self, host_port: u16, guest_port: u16) -> Result<(), HarnessError> {
        let line = format!("hostfwd_add net tcp:127.0.0.1:{host_port}-:{guest_port}");
        qemu::monitor_line(&self.share.with_file_name("qmp"), &line)
    }

    /// Mounts and names what [`GuestBuilder::disk`] and [`GuestBuilder::programs`] asked for.
    fn attach(
        &mut self,
        disks: &[(String, PathBuf)],
        has_programs: bool,
    ) -> Result<(), HarnessError> {
        let mut script = String::new();
        if has_programs {
            script.push_str(
                "mkdir -p /programs\n\
                 mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 \
                 programs /programs\n",
            );
        }
        if !disks.is_empty() {
            script.push_str(
                "modprobe virtio_blk\n\
                 for disk in /sys/block/vd*; do\n\
                 ln -s /dev/${disk##*/} /dev/disk-$(cat $disk/serial)\ndone\n",
            );
        }
        if script.is_empty() {
            return Ok(());
        }
        self.run(&script).map(|_| ())
    }

    fn send(&mut self, line: &str) -> Result<(), HarnessError> {
        let agent = self
            .agent
            .as_mut()
            .expect("boot() returns after the agent has answered");
        agent
            .write_all(line.as_bytes())
            .map_err(|source| HarnessError::Agent { source })
    }

    fn wait_for_agent(&mut self) -> Result<(), HarnessError> {
        let deadline = Deadline::new("the guest to boot", patience(BOOT_DEADLINE_SECONDS));
        let socket = self.share.with_file_name("agent");
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) => self.check_alive(&deadline)?,
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let limited = stream.set_read_timeout(Some(READ_SLICE));
        limited.map_err(|source| HarnessError::Agent { source })?;
        self.agent = Some(stream);
        while self.read_line(&deadline)? != "ready" {}
        Ok(())
    }

    fn wait_for_job(
        &mut self,
        job: Job,
        script: &str,
        limit: Duration,
    ) -> Result<Output, HarnessError> {
        let deadline = Deadline::new(script, limit);
        let status = loop {
            if let Some(status) = self.ended.remove(&job.0) {
                break status;
            }
            let line = self.read_line(&deadline)?;
            if let Some((id, status)) = line.split_once(' ')
                && let (Ok(id), Ok(status)) = (id.parse(), status.parse())
            {
                self.ended.insert(id, status);
            }
        };
        let read = |extension: &str| {
            let path = self.share.join(format!("{}.{extension}", job.0));
            let bytes = fs::read(&path).map_err(HarnessError::file("read", &path))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Output {
            status,
            stdout: read("out")?,
            stderr: read("err")?,
        })
    }

    fn read_line(&mut self, deadline: &Deadline) -> Result<String, HarnessError> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            let mut bytes = [0; 256];
            let agent = self
                .agent
                .as_mut()
                .expect("read_line is called once it is connected");
            match agent.read(&mut bytes) {
                Ok(0) => {
                    // QEMU closes its end as it goes; its status follows in a moment.
                    let _ = self.qemu.wait("QEMU", patience(10));
                    self.check_alive(deadline)?;
                    return Err(HarnessError::Agent {
                        source: ErrorKind::UnexpectedEof.into(),
                    });
                }
                Ok(count) => self.unread.extend_from_slice(&bytes[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(source) => return Err(HarnessError::Agent { source }),
            }
            self.check_alive(deadline)?;
        }
    }

    fn check_alive(&mut self, deadline: &Deadline) -> Result<(), HarnessError> {
        let what = || deadline.what.clone();
        if let Some(status) = self.qemu.ended() {
            let (program, status) = ("QEMU", status.to_string());
            return Err(HarnessError::Ended {
                program,
                status,
                what: what(),
            });
        }
        let waited = deadline.start.elapsed();
        if waited > deadline.limit {
            return Err(HarnessError::Deadline {
                what: what(),
                waited,
            });
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.qemu.kill_9();
        // Boot failed, or the test is failing: someone will want to read what the guest said.
        if std::thread::panicking() || self.agent.is_none() {
            let serial = self.serial();
            if let Some(folder) = self.folder.take() {
                let lines: Vec<&str> = serial.lines().collect();
                let tail = &lines[lines.len().saturating_sub(SERIAL_TAIL_LINES)..];
                eprintln!("--- end of the guest's console ---\n{}", tail.join("\n"));
                let errors = fs::read_to_string(folder.path().join("qemu.log")).unwrap_or_default();
                eprintln!("--- QEMU's messages ---\n{errors}");
                eprintln!("--- all of it is kept in {} ---", folder.keep().display());
            }
        }
    }
}

struct Deadline {
    what: String,
    start: Instant,
    limit: Duration,
}

impl Deadline {
    fn new(what: &str, limit: Duration) -> Self {
        Self {
            what: what.to_owned(),
            start: Instant::now(),
            limit,
        }
    }
}

fn succeeded(script: &str, output: Output) -> Result<Output, HarnessError> {
    if output.status == 0 {
        return Ok(output);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    let (command, status) = (script.to_owned(), format!("exit status {status}"));
    Err(HarnessError::Failed {
        command,
        status,
        stdout,
        stderr,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), HarnessError> {
    fs::write(path, bytes).map_err(HarnessError::file("write", path))
}
