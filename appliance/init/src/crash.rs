//! What is kept of those that died: crash reports of processes, last words of the kernel.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Crash;
use crate::status::{State, Status};
use crate::system::System;

/// Where reports are. The agent's support bundle lists them and takes them along.
pub const FOLDER: &str = "/run/adit/crash";
/// Where in it the last words of a kernel are.
pub const PSTORE_FOLDER: &str = "pstore";
const PSTORE: &str = "/sys/fs/pstore";
/// Most records of the kernel that are kept, and most bytes of one.
const PSTORE_MAX: usize = 32;
const PSTORE_BYTES_MAX: usize = 1 << 20;

/// What the name of a report's file tells: `TIME-PROGRAM-PID-SIGNAL.core`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When, in seconds since 1970 by the node's clock.
    pub unix_s: u64,
    /// Name of the thread that crashed, which is the program's unless it gave it another. What is no letter,
    /// digit or `-` in it is `_` here.
    pub program: String,
    /// Process.
    pub pid: u64,
    /// Signal that ended it.
    pub signal: u64,
}

impl Report {
    fn file_name(&self) -> String {
        let (unix_s, pid, signal) = (self.unix_s, self.pid, self.signal);
        format!("{unix_s:012}-{}-{pid}-{signal}.core", self.program)
    }

    /// The report in a file of this name; `None` where it is none.
    #[must_use]
    pub fn of_file(name: &str) -> Option<Report> {
        let (unix_s, rest) = name.strip_suffix(".core")?.split_once('-')?;
        let (rest, signal) = rest.rsplit_once('-')?;
        let (program, pid) = rest.rsplit_once('-')?;
        Some(Report {
            unix_s: unix_s.parse().ok()?,
            program: program.to_owned(),
            pid: pid.parse().ok()?,
            signal: signal.parse().ok()?,
        })
    }
}

/// Has the kernel hand the memory of crashed processes to `own`.
pub(crate) fn set_handler(system: &dyn System, own: &str, config: &Crash) -> Status {
    let path = "/proc/sys/kernel/core_pattern";
    let told = |state, text: String| {
        Status::new("core_pattern", state, text)
            .because("what a program was doing when it crashed is in its memory")
    };
    // The kernel splits before it fills in, so a name with spaces stays one argument.
    let pattern = format!(
        "|{own} crash-report %P %e %s %t {} {}",
        u64::from(config.size_max_mib) << 20,
        config.count_max
    );
    let pattern = if config.size_max_mib == 0 {
        // A pattern without a pipe writes into the working directory; this one goes nowhere.
        "|/bin/false".to_owned()
    } else {
        pattern
    };
    match system.write(path, pattern.as_bytes()) {
        Ok(()) => told(State::Ok, format!("reports go to {FOLDER}")),
        Err(error) => told(
            State::Degraded,
            format!("there will be no crash reports: {error}"),
        ),
    }
}

/// Takes a report: the kernel's arguments, and the memory on `input`. What it says goes to the log.
pub(crate) fn report(words: &[String], input: &mut dyn Read, folder: &Path) -> io::Result<String> {
    let number = |at: usize, default: u64| {
        let word = words.get(at);
        word.and_then(|word| word.parse().ok()).unwrap_or(default)
    };
    let (pid, signal, unix_s) = (number(0, 0), number(2, 0), number(3, 0));
    let size_max = number(4, 32 << 20);
    let count_max = usize::try_from(number(5, 4)).unwrap_or(4).max(1);
    let name: String = words
        .get(1)
        .map_or("unknown", String::as_str)
        .chars()
        .map(|each| {
            if each.is_ascii_alphanumeric() || each == '-' {
                each
            } else {
                '_'
            }
        })
        .take(32)
        .collect();
    fs::create_dir_all(folder)?;
    // Room first: /run is memory.
    prune(folder, count_max.saturating_sub(1))?;
    let report = Report {
        unix_s,
        program: name.clone(),
        pid,
        signal,
    };
    let path = folder.join(report.file_name());
    let mut file = File::create(&path)?;
    let kept = io::copy(&mut input.take(size_max), &mut file)?;
    let whole = input.read(&mut [0; 1])? == 0;
    file.flush()?;
    let cut = if whole { "" } else { ", cut there" };
    Ok(format!(
        "{name}[{pid}] crashed by signal {signal}: {} KiB of its memory are in {}{cut}",
        kept >> 10,
        path.display()
    ))
}

/// Leaves the newest `count` reports. Their names begin with the time.
fn prune(folder: &Path, count: usize) -> io::Result<()> {
    let mut reports: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "core")
        })
        .collect();
    reports.sort();
    let spare = reports.len().saturating_sub(count);
    for path in &reports[..spare] {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Takes what a kernel that died has left, and makes room for the next.
pub(crate) fn keep_pstore(system: &dyn System) -> Status {
    let names = system.list(PSTORE).unwrap_or_default();
    if names.is_empty() {
        return Status::new("pstore", State::Ok, "no kernel has left last words");
    }
    let folder = Path::new(FOLDER).join(PSTORE_FOLDER);
    let mut kept = 0;
    let mut failed = None;
    for name in names.iter().take(PSTORE_MAX) {
        let from = format!("{PSTORE}/{name}");
        let taken = system.read(&from).and_then(|bytes| {
            fs::create_dir_all(&folder)?;
            fs::write(
                folder.join(name),
                &bytes[..bytes.len().min(PSTORE_BYTES_MAX)],
            )?;
            // Removing the file erases the record.
            fs::remove_file(&from)
        });
        match taken {
            Ok(()) => kept += 1,
            Err(error) => failed = Some(format!("; {name} cannot be kept: {error}")),
        }
    }
    let text = format!(
        "{kept} records of a kernel that died are in {}{}",
        folder.display(),
        failed.unwrap_or_default()
    );
    Status::new("pstore", State::Degraded, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fake::Fake;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_report_is_cut_at_its_bound_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        for time in 1..=6 {
            let arguments = words(&format!("42 ../x {} {time} 1000 3", 11));
            let text = report(&arguments, &mut io::repeat(7).take(5000), folder.path()).unwrap();
            assert!(
                text.starts_with("___x[42] crashed by signal 11: "),
                "{text}"
            );
            assert!(text.ends_with(", cut there"), "{text}");
        }
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3);
        assert_eq!(names[0], "000000000004-___x-42-11.core");
        assert_eq!(
            fs::metadata(folder.path().join(&names[0])).unwrap().len(),
            1000
        );
    }

    #[test]
    fn the_name_of_a_report_tells_who_crashed_and_why() {
        let report = Report {
            unix_s: 1_790_000_000,
            program: "adit-agent".to_owned(),
            pid: 42,
            signal: 6,
        };
        assert_eq!(Report::of_file(&report.file_name()), Some(report));
        for none in [
            "",
            ".core",
            "pstore",
            "1-x-2.core",
            "1-x-y-6.core",
            "x-y-1-6.core",
            "1-x-1-6",
        ] {
            assert_eq!(Report::of_file(none), None, "{none}");
        }
    }

    #[test]
    fn strange_arguments_make_a_report_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let text = report(&words("x"), &mut io::empty(), folder.path()).unwrap();
        assert!(
            text.starts_with("unknown[0] crashed by signal 0: 0 KiB"),
            "{text}"
        );
    }

    #[test]
    fn the_kernel_is_told_who_takes_reports() {
        let system = Fake::with(&[("/proc/sys/kernel/core_pattern", "core")]);
        let status = set_handler(&system, "/init", &Crash::default());
        assert_eq!(status.state, State::Ok);
        let pattern = system.text("/proc/sys/kernel/core_pattern").unwrap();
        assert_eq!(pattern, "|/init crash-report %P %e %s %t 33554432 4");
        assert_eq!(
            set_handler(&Fake::default(), "/init", &Crash::default()).state,
            State::Degraded
        );
    }
}
