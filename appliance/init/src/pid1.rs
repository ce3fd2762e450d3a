//! Process 1: the boot, and the loop after it, which is the one place where it waits.

mod boot;
mod calls;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use machine::Uevent;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as new_socket,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::config::{Effective, Given};
use crate::control::{self, Answer};
use crate::identity::Identity;
use crate::log::{self, Level, Log};
use crate::netlink::Netlink;
use crate::program::CGROUP;
use crate::ring::{Rate, Ring};
use crate::service::MACHINE;
use crate::shutdown::{Do, Goal, Shutdown, View};
use crate::status::{Board, Status};
use crate::supervisor::{Exit, Order, Supervisor};
use crate::system::Kernel;
use crate::watchdog::{Meal, Watchdog};
use crate::{acpi, hardware};

/// The loop turns at least this often, in ms.
const TURN_MS_MAX: u64 = 1000;
/// Sockets of services that are not ready are tried this often, in ms.
const PROBE_MS: u64 = 100;
/// Output of one service that is read in one turn, in bytes.
const READ_BYTES_MAX: usize = 64 << 10;
/// Children that are reaped in one turn.
const REAPED_MAX: usize = 256;
/// Devices come in flocks: the hardware is looked at this many ms after the last.
const SETTLE_MS: u64 = 500;
/// Lines of one service that go on into the kernel log: at once, and a second.
const KMSG_LINES: (u64, u64) = (100, 20);

/// What a service's process is connected to.
#[derive(Debug)]
struct Output {
    ring: Ring,
    rate: Rate,
    pipe: Option<File>,
}

/// Process 1.
struct Init {
    start: Instant,
    own: String,
    system: Kernel,
    log: Log,
    board: Board,
    identity: Identity,
    /// What each source says; the agent's part may be replaced.
    given: Vec<Given>,
    effective: Effective,
    signals: Option<SignalFd>,
    uevents: Option<Netlink>,
    acpi: Option<Netlink>,
    control: Option<control::Server>,
    watchdog: Option<Watchdog>,
    supervisor: Supervisor,
    outputs: Vec<Output>,
    shutdown: Option<Shutdown>,
    sync_child: Option<Pid>,
    /// When the hardware is to be looked at again.
    prepare_at_ms: Option<u64>,
    /// Whether `waitpid` said that there is no child.
    childless: bool,
}

/// What the kernel's `panic=` says of a system that cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Hold,
    RebootIn(u64),
}

fn policy(command_line: &str) -> Policy {
    let value = command_line
        .split_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix("panic="))
        .and_then(|text| text.parse::<i64>().ok());
    match value {
        None | Some(0) => Policy::Hold,
        Some(seconds) => Policy::RebootIn(u64::try_from(seconds).unwrap_or(0)),
    }
}

/// Boots, and never returns.
pub(crate) fn run() -> ExitCode {
    log::log_panics();
    let mut init = Init::new();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        init.boot();
        loop {
            init.turn();
        }
    }));
    let why = match ended {
        Ok(()) => "its loop ended".to_owned(),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "an internal error".to_owned()),
    };
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    give_up(init.watchdog.take(), policy(&line), &why)
}

/// The end of a process 1 that cannot go on. Services that run are left running: the node may still
/// be reached and serve.
fn give_up(watchdog: Option<Watchdog>, policy: Policy, why: &str) -> ! {
    let mut log = Log::open();
    let mut say = |text: &str| log.say(Level::Error, text);
    say(&format!("init cannot go on: {why}"));
    let mut left = match policy {
        Policy::RebootIn(seconds) => Some(seconds),
        Policy::Hold => {
            // A reset would wipe the screen that says why.
            if let Some(watchdog) = watchdog {
                watchdog.disarm();
            }
            say(
                "services go on without supervision; panic= of the kernel command line is 0 or \
                 absent, so the node is held here: look at the log, then reset it",
            );
            None
        }
    };
    loop {
        while waitpid(None, Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != WaitStatus::StillAlive)
        {}
        match &mut left {
            Some(0) => {
                nix::unistd::sync();
                let error = reboot(RebootMode::RB_AUTOBOOT);
                say(&format!("the kernel does not reboot: {error:?}"));
                left = None;
            }
            Some(seconds) => {
                if *seconds <= 5 || *seconds % 10 == 0 {
                    say(&format!("the node reboots in {seconds} s"));
                }
                *seconds -= 1;
            }
            None => {}
        }
        let _ = poll(&mut [], 1000u16);
    }
}

fn exit_of(status: WaitStatus) -> Option<(Pid, Exit)> {
    match status {
        WaitStatus::Exited(pid, code) => Some((pid, Exit::Code(code))),
        WaitStatus::Signaled(pid, signal, _) => Some((pid, Exit::Signal(signal as i32))),
        _ => None,
    }
}

impl Init {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            own: "/init".to_owned(),
            system: Kernel,
            log: Log::open(),
            board: Board::new(),
            identity: Identity::default(),
            given: Vec::new(),
            effective: Effective::default(),
            signals: None,
            uevents: None,
            acpi: None,
            control: None,
            watchdog: None,
            supervisor: Supervisor::new(Vec::new(), 0),
            outputs: Vec::new(),
            shutdown: None,
            sync_child: None,
            prepare_at_ms: None,
            childless: false,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Signals that process 1 hears; the others it ignores, as the kernel has it.
    fn listen_to_signals(&mut self) {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGPWR,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ] {
            set.add(signal);
        }
        let opened = set.thread_block().and_then(|()| {
            SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        });
        match opened {
            Ok(signals) => self.signals = Some(signals),
            Err(error) => self.log.say(
                Level::Error,
                &format!("signals are not heard: {error}; use the control socket"),
            ),
        }
        // Ctrl-Alt-Del becomes SIGINT.
        let _ = nix::sys::reboot::set_cad_enabled(false);
    }

    /// One turn: waits, hears everybody, does what is due.
    fn turn(&mut self) {
        self.wait();
        self.hear_signals();
        self.hear_kernel();
        self.read_outputs();
        self.reap();
        self.answer_calls();
        self.probe();
        self.prepare_again();
        let now_ms = self.now_ms();
        let orders = self.supervisor.tick(now_ms);
        self.carry_out(orders);
        self.feed();
        self.shut_down();
    }

    fn wait(&mut self) {
        let now_ms = self.now_ms();
        let mut due_ms = now_ms + TURN_MS_MAX;
        due_ms = due_ms.min(self.supervisor.due_ms().unwrap_or(u64::MAX));
        due_ms = due_ms.min(self.prepare_at_ms.unwrap_or(u64::MAX));
        if let Some(watchdog) = &self.watchdog {
            due_ms = due_ms.min(watchdog.feeding.due_ms());
        }
        if self.shutdown.is_some() || !self.supervisor.to_probe().is_empty() {
            due_ms = due_ms.min(now_ms + PROBE_MS);
        }
        let timeout = u16::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(u16::MAX);
        let mut fds = Vec::new();
        if let Some(signals) = &self.signals {
            fds.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
        }
        for netlink in [&self.uevents, &self.acpi].into_iter().flatten() {
            fds.push(PollFd::new(netlink.fd.as_fd(), PollFlags::POLLIN));
        }
        for pipe in self
            .outputs
            .iter()
            .filter_map(|output| output.pipe.as_ref())
        {
            fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        if let Some(server) = &self.control {
            fds.extend(server.interests().map(|(fd, flags)| PollFd::new(fd, flags)));
        }
        // Interrupted or not: all that is heard is heard without waiting.
        let _ = poll(&mut fds, PollTimeout::from(timeout));
    }

    fn hear_signals(&mut self) {
        let mut heard = Vec::new();
        if let Some(signals) = &self.signals {
            while let Ok(Some(info)) = signals.read_signal() {
                heard.push(info);
            }
        }
        for info in heard {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            let goal = match Signal::try_from(number) {
                Ok(Signal::SIGTERM | Signal::SIGINT) => Goal::Reboot,
                Ok(Signal::SIGPWR | Signal::SIGUSR1 | Signal::SIGUSR2) => Goal::Poweroff,
                _ => continue,
            };
            let name = Signal::try_from(number).map_or("a signal", Signal::as_str);
            self.begin_end(goal, &format!("{name} of process {}", info.ssi_pid));
        }
    }

    fn hear_kernel(&mut self) {
        let mut changed = false;
        if let Some(uevents) = &self.uevents {
            changed = uevents.receive(&mut |bytes| {
                changed |= Uevent::parse(bytes).is_some_and(|event| event.changes_the_plan());
            }) || changed;
        }
        if changed && self.shutdown.is_none() {
            self.prepare_at_ms = Some(self.now_ms() + SETTLE_MS);
        }
        let mut pressed = false;
        if let Some(acpi) = &self.acpi {
            acpi.receive(&mut |bytes| pressed |= acpi::is_power_button(bytes));
        }
        if pressed {
            self.begin_end(Goal::Poweroff, "the power button");
        }
    }

    fn read_outputs(&mut self) {
        for at in 0..self.outputs.len() {
            self.read_output(at);
        }
    }

    fn read_output(&mut self, at: usize) {
        let unix_ms = unix_ms();
        let now_ms = self.now_ms();
        let mut buffer = [0; 8192];
        let mut read = 0;
        while read < READ_BYTES_MAX {
            let output = &mut self.outputs[at];
            let Some(pipe) = &mut output.pipe else {
                break;
            };
            let lines = match pipe.read(&mut buffer) {
                Ok(0) => {
                    output.pipe = None;
                    output.ring.finish(unix_ms).into_iter().collect()
                }
                Ok(count) => {
                    read += count;
                    output.ring.feed(&buffer[..count], unix_ms)
                }
                Err(_) => break,
            };
            for line in lines {
                self.pass_on(at, &line, now_ms);
                let orders = self.supervisor.printed(at, &line, now_ms);
                self.carry_out(orders);
            }
        }
    }

    fn pass_on(&mut self, at: usize, line: &str, now_ms: u64) {
        let name = self.supervisor.service(at).name.clone();
        if let Some(dropped) = self.outputs[at].rate.pass(now_ms) {
            if dropped > 0 {
                let text = format!("{dropped} lines were too many and are only in its own log");
                self.log.pass_on(&name, &text);
            }
            self.log.pass_on(&name, line);
        }
    }

    fn reap(&mut self) {
        for _ in 0..REAPED_MAX {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    self.childless = false;
                    return;
                }
                Ok(status) => status,
                Err(_) => {
                    self.childless = true;
                    return;
                }
            };
            let Some((pid, exit)) = exit_of(status) else {
                continue;
            };
            if self.sync_child == Some(pid) {
                self.sync_child = None;
                continue;
            }
            // The others were orphans: programs that services left behind.
            if let Some(at) = self.supervisor.by_pid(pid.as_raw()) {
                self.service_ended(at, exit);
            }
        }
    }

    fn service_ended(&mut self, at: usize, exit: Exit) {
        self.read_output(at);
        // What it started and left behind would hold its sockets.
        self.kill_group(at);
        self.outputs[at].pipe = None;
        self.outputs[at].ring.finish(unix_ms());
        let now_ms = self.now_ms();
        let orders = self
            .supervisor
            .exited(at, exit, &self.outputs[at].ring, now_ms);
        self.carry_out(orders);
        if self.supervisor.service(at).name == MACHINE {
            self.show_machine();
        }
    }

    /// What the child that prepares hardware has written becomes a group of statuses.
    fn show_machine(&mut self) {
        let read = std::fs::read(hardware::STATUS_FILE);
        let items: Option<Vec<Status>> = read
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(items) = items else {
            return;
        };
        for item in items.iter().filter(|item| item.is_wrong()) {
            let text = format!("{}: {}", item.name, item.text);
            self.log.say(Level::Warning, &text);
        }
        self.board.set("machine", items);
    }

    fn answer_calls(&mut self) {
        // Taken out, so that its handler may change everything else.
        if let Some(mut server) = self.control.take() {
            server.serve(&mut |request| self.answer(request));
            self.control = Some(server);
        }
    }

    fn probe(&mut self) {
        for (at, path) in self.supervisor.to_probe() {
            if answers(&path) {
                let now_ms = self.now_ms();
                let orders = self.supervisor.is_ready(at, now_ms);
                self.carry_out(orders);
            }
        }
    }

    fn prepare_again(&mut self) {
        let now_ms = self.now_ms();
        if self.shutdown.is_some() {
            self.prepare_at_ms = None;
        }
        if self.prepare_at_ms.is_none_or(|at_ms| at_ms > now_ms) {
            return;
        }
        let Some(at) = self.supervisor.find(MACHINE) else {
            self.prepare_at_ms = None;
            return;
        };
        if self.supervisor.pid(at).is_some() {
            // It has looked already, perhaps before the device came.
            self.prepare_at_ms = Some(now_ms + SETTLE_MS);
            return;
        }
        self.prepare_at_ms = None;
        let orders = self.supervisor.restart(at, now_ms);
        self.carry_out(orders);
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Start(at) => self.start_service(at),
                Order::Terminate(at) => self.signal(at, Signal::SIGTERM),
                Order::Abort(at) => self.abort(at),
                Order::Kill(at) => {
                    self.kill_group(at);
                    self.signal(at, Signal::SIGKILL);
                }
                Order::Tell { wrong, text } => {
                    let level = if wrong { Level::Warning } else { Level::Notice };
                    self.log.say(level, &text);
                }
            }
        }
    }

    fn start_service(&mut self, at: usize) {
        let now_ms = self.now_ms();
        let started = self.spawn(at);
        match started {
            Ok((pid, pipe)) => {
                self.outputs[at].pipe = Some(pipe);
                self.childless = false;
                self.supervisor.started(at, pid, now_ms);
            }
            Err(error) => {
                let orders = self.supervisor.start_failed(at, &error.to_string(), now_ms);
                self.carry_out(orders);
            }
        }
    }

    /// Starts a service through ourselves (`run-service`), which gives it its session, its group and
    /// its signals. Nobody but [`Self::reap`] waits for it.
    fn spawn(&self, at: usize) -> std::io::Result<(i32, File)> {
        let service = self.supervisor.service(at);
        let (pipe, output) = std::io::pipe()?;
        let mut environment = BTreeMap::from([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("ADIT_SERVICE", service.name.as_str()),
        ]);
        for (name, value) in &service.environment {
            environment.insert(name, value);
        }
        let child = Command::new(&self.own)
            .arg("run-service")
            .arg(&service.name)
            .arg(service.oom_score_adjust.to_string())
            .arg(&service.program)
            .args(&service.arguments)
            .env_clear()
            .envs(environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        Ok((pid, pipe))
    }

    fn signal(&mut self, at: usize, signal: Signal) {
        let Some(pid) = self.supervisor.pid(at) else {
            return;
        };
        // In its first moments it has no session yet.
        if kill(Pid::from_raw(-pid), signal).is_err() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn abort(&self, at: usize) {
        if let Some(pid) = self.supervisor.pid(at).map(Pid::from_raw) {
            let _ = kill(pid, Signal::SIGABRT);
            // One that was stopped hears it only when it goes on.
            let _ = kill(pid, Signal::SIGCONT);
        }
    }

    fn kill_group(&self, at: usize) {
        let name = &self.supervisor.service(at).name;
        let _ = std::fs::write(format!("{CGROUP}/{name}/cgroup.kill"), "1");
    }

    fn feed(&mut self) {
        let now_ms = self.now_ms();
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        let stale = match self.shutdown {
            // The end has deadlines of its own.
            Some(_) => None,
            None => self.supervisor.stale(now_ms),
        };
        let meal = watchdog.feeding.due(stale, now_ms);
        let told = match meal {
            Meal::NotDue | Meal::Starve { tell: None } => None,
            Meal::Feed => {
                watchdog.feed();
                None
            }
            Meal::FeedAgain => {
                watchdog.feed();
                Some("the watchdog is fed again".to_owned())
            }
            Meal::Starve { tell } => tell,
        };
        if let Some(text) = told {
            self.log.say(Level::Error, &text);
        }
    }

    /// Begins the end, if it has not begun; who asks again is told what is under way.
    fn begin_end(&mut self, goal: Goal, why: &str) -> Answer {
        if let Some(shutdown) = &self.shutdown {
            let text = format!("{} is under way already", shutdown.goal());
            return Answer::Done { text };
        }
        self.log
            .say(Level::Notice, &format!("{goal}: asked for by {why}"));
        self.supervisor.close();
        let turns = self.supervisor.turns();
        let limits = &self.effective.document.shutdown;
        self.shutdown = Some(Shutdown::new(goal, turns, limits, self.now_ms()));
        Answer::Done {
            text: format!("{goal} begins"),
        }
    }

    fn shut_down(&mut self) {
        let Some(mut shutdown) = self.shutdown.take() else {
            return;
        };
        let now_ms = self.now_ms();
        let orders = shutdown.tick(&*self, now_ms);
        self.shutdown = Some(shutdown);
        for order in orders {
            self.take_step(order, now_ms);
        }
    }

    fn take_step(&mut self, order: Do, now_ms: u64) {
        match order {
            Do::StopTurn(turn) => {
                let orders = self.supervisor.stop_turn(turn, now_ms);
                self.carry_out(orders);
            }
            // All but process 1 and the kernel's own threads.
            Do::TerminateRest => {
                let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
            }
            Do::KillRest => {
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            }
            Do::StartSync => match Command::new(&self.own).arg("sync").spawn() {
                Ok(child) => {
                    self.sync_child = i32::try_from(child.id()).ok().map(Pid::from_raw);
                }
                Err(error) => {
                    let text = format!("nothing is written back: {error}");
                    self.log.say(Level::Error, &text);
                }
            },
            Do::GiveUpSync => {
                let text = "writing back takes too long and is left alone";
                self.log.say(Level::Error, text);
            }
            Do::Finish(goal) => self.finish(goal),
        }
    }

    fn finish(&mut self, goal: Goal) {
        self.log
            .say(Level::Notice, &format!("{goal}: everything has ended"));
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.disarm();
        }
        let mode = match goal {
            Goal::Poweroff => RebootMode::RB_POWER_OFF,
            Goal::Reboot => RebootMode::RB_AUTOBOOT,
            Goal::Halt => RebootMode::RB_HALT_SYSTEM,
        };
        let refused = reboot(mode);
        self.log.say(
            Level::Error,
            &format!("the kernel does not {goal}: {refused:?}; do it by hand"),
        );
    }
}

impl View for Init {
    fn turn_runs(&self, turn: u8) -> bool {
        self.supervisor.turn_runs(turn)
    }

    fn anything_runs(&self) -> bool {
        !self.childless
    }

    fn sync_runs(&self) -> bool {
        self.sync_child.is_some()
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Whether somebody takes connections at a unix socket. Does not wait.
fn answers(path: &str) -> bool {
    use std::os::fd::AsRawFd as _;

    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(address) = UnixAddr::new(path) else {
        return false;
    };
    let Ok(socket) = new_socket(AddressFamily::Unix, SockType::Stream, flags, None) else {
        return false;
    };
    connect(socket.as_raw_fd(), &address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_on_the_command_line_says_what_happens_at_the_end() {
        assert_eq!(policy("quiet"), Policy::Hold);
        assert_eq!(policy("panic=10 panic=0"), Policy::Hold);
        assert_eq!(policy("panic=0 panic=10"), Policy::RebootIn(10));
        assert_eq!(policy("panic=-1"), Policy::RebootIn(0));
        assert_eq!(policy("panic=soon"), Policy::Hold);
    }

    #[test]
    fn a_socket_answers_while_somebody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let text = path.display().to_string();
        assert!(!answers(&text));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(answers(&text));
        drop(listener);
        assert!(!answers(&text));
        assert!(!answers(&"x".repeat(200)));
    }
}
