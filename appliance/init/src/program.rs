//! The program: process 1, and the small things that it starts of itself.

use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpid, setsid, sync};

use crate::control::{Answer, Request, SOCKET, call};
use crate::log::{Level, Log};
use crate::supervisor::ServiceReport;
use crate::{crash, hardware, pid1};

/// How long process 1 may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Where services have their control groups.
pub(crate) const CGROUP: &str = "/sys/fs/cgroup";

const USAGE: &str = "\
adit-init is process 1 of the appliance. Outside of that:
  adit-init status              what it did and how it went
  adit-init services            what runs
  adit-init logs SERVICE        what a service printed
  adit-init call JSON           any request of the control socket
  poweroff | reboot | halt [-f] end the node in order; -f: at once, without
";

/// Runs what the words ask for; the first is the name by which the program was called.
#[must_use]
pub fn run(words: &[String]) -> ExitCode {
    if getpid().as_raw() == 1 {
        return pid1::run();
    }
    let called = words.first().map_or("", String::as_str);
    let called = called.rsplit('/').next().unwrap_or_default();
    let rest = words.get(1..).unwrap_or_default();
    let result = match (called, rest.first().map_or("", String::as_str)) {
        ("poweroff", _) => end(&Request::Poweroff, rest),
        ("reboot", _) => end(&Request::Reboot, rest),
        ("halt", _) => end(&Request::Halt, rest),
        (_, "poweroff") => end(&Request::Poweroff, &rest[1..]),
        (_, "reboot") => end(&Request::Reboot, &rest[1..]),
        (_, "halt") => end(&Request::Halt, &rest[1..]),
        (_, "run-service") => run_service(&rest[1..]),
        (_, "machine") => hardware::run(),
        (_, "sync") => {
            write_back();
            Ok(())
        }
        (_, "crash-report") => crash_report(&rest[1..]),
        (_, "status") => show(&Request::Status),
        (_, "services") => show(&Request::Services),
        (_, "logs") => show(&Request::Logs {
            service: rest.get(1).cloned().unwrap_or_default(),
            after: 0,
            max: crate::control::LOG_LINES_MAX,
        }),
        (_, "call") => raw_call(rest.get(1).map_or("", String::as_str)),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{called}: {text}");
            ExitCode::FAILURE
        }
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Ends the node. Who is not answered says it by a signal.
fn end(request: &Request, words: &[String]) -> Result<(), String> {
    let (mode, signal) = match request {
        Request::Reboot => (RebootMode::RB_AUTOBOOT, Signal::SIGTERM),
        Request::Halt => (RebootMode::RB_HALT_SYSTEM, Signal::SIGUSR1),
        _ => (RebootMode::RB_POWER_OFF, Signal::SIGUSR2),
    };
    if words.iter().any(|word| word == "-f" || word == "--force") {
        let error = reboot(mode).expect_err("it does not return when it works");
        return Err(format!("the kernel refuses: {error}"));
    }
    match call(Path::new(SOCKET), request, ANSWER) {
        Ok(Answer::Error { text }) => Err(text),
        Ok(_) => Ok(()),
        Err(error) => kill(Pid::from_raw(1), signal)
            .map_err(|second| format!("{}; and no signal either: {second}", with_source(&error))),
    }
}

/// Becomes a service: `run-service NAME OOM PROGRAM ARGUMENTS`. In a session and a control group of
/// its own, with the signals of an ordinary program.
fn run_service(words: &[String]) -> Result<(), String> {
    use std::os::unix::process::CommandExt as _;

    let [name, oom, program, arguments @ ..] = words else {
        return Err(USAGE.to_owned());
    };
    // What fails here costs comfort: a service without its own group still runs.
    let _ = setsid();
    let group = format!("{CGROUP}/{name}");
    let _ = std::fs::create_dir(&group);
    let _ = std::fs::write(format!("{group}/cgroup.procs"), "0");
    let _ = std::fs::write("/proc/self/oom_score_adj", oom);
    let _ = SigSet::empty().thread_set_mask();
    let error = Command::new(program).args(arguments).exec();
    Err(format!("{program} cannot be started: {error}"))
}

/// Everything to the disks, then the disks away. What cannot be unmounted becomes read-only.
fn write_back() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    sync();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (target, source) in disks(&table).into_iter().rev() {
        if umount2(target.as_str(), MntFlags::UMOUNT_NOFOLLOW).is_ok() {
            println!("{target} is unmounted");
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let none: Option<&str> = None;
        match mount(Some(source.as_str()), target.as_str(), none, flags, none) {
            Ok(()) => println!("{target} is read-only"),
            Err(error) => println!("{target} stays as it is: {error}"),
        }
    }
    sync();
}

/// Mount points of block devices, in the order of mounting, with the device.
fn disks(mountinfo: &str) -> Vec<(String, String)> {
    let lines = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let target = left.split(' ').nth(4)?;
        let source = right.split(' ').nth(1)?;
        // Spaces and such stand there in octal; a name that has them is left to the sync.
        let plain = source.starts_with("/dev/") && !target.contains('\\') && target != "/";
        plain.then(|| (target.to_owned(), source.to_owned()))
    });
    lines.take(4096).collect()
}

fn crash_report(words: &[String]) -> Result<(), String> {
    let folder = Path::new(crash::FOLDER);
    let mut log = Log::open();
    match crash::report(words, &mut io::stdin().lock(), folder) {
        Ok(text) => log.say(Level::Warning, &text),
        Err(error) => log.say(
            Level::Warning,
            &format!("a crash report was not kept: {error}"),
        ),
    }
    Ok(())
}

fn show(request: &Request) -> Result<(), String> {
    match call(Path::new(SOCKET), request, ANSWER).map_err(|error| with_source(&error))? {
        Answer::Error { text } => return Err(text),
        Answer::Status { groups } => {
            for (group, items) in groups {
                for item in items {
                    println!("{group:10} {:9} {}: {}", item.state, item.name, item.text);
                }
            }
        }
        Answer::Services { services } => {
            for each in services {
                let pid = each.pid.map_or("-".to_owned(), |pid| pid.to_string());
                let ServiceReport {
                    name, state, text, ..
                } = each;
                println!("{name:16} {state:9} {pid:>6} {text}");
            }
        }
        Answer::Logs { lines, .. } => {
            for line in lines {
                println!("{}", line.text);
            }
        }
        other => println!("{other:?}"),
    }
    Ok(())
}

fn raw_call(text: &str) -> Result<(), String> {
    let request: Request =
        serde_json::from_str(text).map_err(|error| format!("this is no request: {error}"))?;
    let answer = call(Path::new(SOCKET), &request, ANSWER).map_err(|error| with_source(&error))?;
    let text = serde_json::to_string_pretty(&answer).map_err(|error| error.to_string())?;
    println!("{text}");
    match answer {
        Answer::Error { .. } => Err("init refuses".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_block_devices_are_unmounted_and_never_the_root() {
        let table = "22 1 0:20 / / rw - rootfs rootfs rw\n\
            23 22 0:21 / /proc rw,nosuid shared:1 - proc proc rw\n\
            30 22 254:1 / /mnt rw - ext4 /dev/vda1 rw\n\
            31 30 254:2 / /mnt/a\\040b rw - ext4 /dev/vda2 rw\n\
            32 22 254:3 / / rw - ext4 /dev/vda3 rw\nnonsense\n - - -\n";
        let found = disks(table);
        assert_eq!(found, [("/mnt".to_owned(), "/dev/vda1".to_owned())]);
    }

    #[test]
    fn other_words_are_answered_with_the_usage() {
        let words = ["adit-init".to_owned(), "fly".to_owned()];
        assert_eq!(run(&words), ExitCode::FAILURE);
        assert!(run_service(&["a".to_owned()]).is_err());
    }
}
