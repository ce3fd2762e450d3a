//! What is mounted where, with which flags, and why.

use nix::mount::MsFlags;

use crate::status::{State, Status};
use crate::system::System;

/// When a mount is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Always,
    /// Where the kernel shows this path.
    If(&'static str),
    /// In images for developers.
    InDev,
}

/// A line of the table.
#[derive(Debug)]
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
    wanted: Wanted,
    reason: &'static str,
}

const STRICT: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
const NO_NODES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// What the rest of init stands on: before modules and configuration.
const EARLY: &[Mount] = &[
    Mount {
        kind: "proc",
        target: "/proc",
        flags: STRICT,
        options: "",
        wanted: Wanted::Always,
        reason: "command line, sysctl, processes",
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: STRICT,
        options: "",
        wanted: Wanted::Always,
        reason: "devices and their drivers",
    },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: NO_PROGRAMS,
        options: "mode=0755",
        wanted: Wanted::Always,
        reason: "device nodes, /dev/vfio/N among them, come and go with their devices",
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: NO_PROGRAMS,
        options: "mode=0620,ptmxmode=0666",
        wanted: Wanted::Always,
        reason: "terminals of a shell in images for developers",
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: STRICT,
        options: "mode=1777,size=10%",
        wanted: Wanted::Always,
        reason: "shared memory of libraries that ask for it by name",
    },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: NO_NODES,
        options: "mode=0755,size=20%",
        wanted: Wanted::Always,
        reason: "sockets, statuses, the journal; a bound keeps them from taking all memory",
    },
    Mount {
        kind: "tmpfs",
        target: "/tmp",
        flags: STRICT,
        options: "mode=1777,size=10%",
        wanted: Wanted::Always,
        reason: "scratch files",
    },
    Mount {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: STRICT,
        options: "nsdelegate",
        wanted: Wanted::Always,
        reason: "a service is ended with everything that it started",
    },
    Mount {
        kind: "securityfs",
        target: "/sys/kernel/security",
        flags: STRICT,
        options: "",
        wanted: Wanted::If("/sys/kernel/security"),
        reason: "the log of what firmware measured",
    },
    Mount {
        kind: "debugfs",
        target: "/sys/kernel/debug",
        flags: STRICT,
        options: "mode=0700",
        wanted: Wanted::InDev,
        reason: "looking into the kernel",
    },
    Mount {
        kind: "tracefs",
        target: "/sys/kernel/tracing",
        flags: STRICT,
        options: "mode=0700",
        wanted: Wanted::InDev,
        reason: "tracing the kernel",
    },
];

/// What needs a module first.
const LATE: &[Mount] = &[
    Mount {
        kind: "efivarfs",
        target: "/sys/firmware/efi/efivars",
        flags: STRICT,
        options: "",
        wanted: Wanted::If("/sys/firmware/efi/efivars"),
        reason: "boot order and Secure Boot state",
    },
    Mount {
        kind: "pstore",
        target: "/sys/fs/pstore",
        flags: STRICT,
        options: "",
        wanted: Wanted::If("/sys/fs/pstore"),
        reason: "last words of a kernel that died",
    },
];

/// Mounts what everything stands on.
pub(crate) fn mount_early(system: &dyn System, dev_image: bool) -> Vec<Status> {
    EARLY
        .iter()
        .map(|line| mount(system, line, dev_image))
        .collect()
}

/// Mounts what needed modules, and a hugetlbfs for each page size.
pub(crate) fn mount_late(system: &dyn System, dev_image: bool) -> Vec<Status> {
    let mut done: Vec<Status> = LATE
        .iter()
        .map(|line| mount(system, line, dev_image))
        .collect();
    let sizes = system.list("/sys/kernel/mm/hugepages").unwrap_or_default();
    for name in sizes {
        let Some(kib) = name
            .strip_prefix("hugepages-")
            .and_then(|rest| rest.strip_suffix("kB"))
            .and_then(|digits| digits.parse::<u64>().ok())
        else {
            continue;
        };
        let target = if kib == 2048 {
            "/dev/hugepages".to_owned()
        } else {
            format!("/dev/hugepages-{}M", kib / 1024)
        };
        let options = format!("mode=0700,pagesize={kib}K");
        let reason = "memory for I/O that a program asks for by file";
        done.push(one(system, "hugetlbfs", &target, STRICT, &options).because(reason));
    }
    done
}

fn mount(system: &dyn System, line: &Mount, dev_image: bool) -> Status {
    let skipped = |text: &str| Status::new(line.target, State::Skipped, text);
    let status = match line.wanted {
        Wanted::InDev if !dev_image => skipped("only images for developers have it"),
        Wanted::If(path) if !system.exists(path) => skipped("this kernel or firmware has none"),
        _ => one(system, line.kind, line.target, line.flags, line.options),
    };
    status.because(line.reason)
}

fn one(system: &dyn System, kind: &str, target: &str, flags: MsFlags, options: &str) -> Status {
    if !system.exists(target)
        && let Err(error) = system.make_folder(target)
    {
        let text = format!("{target} cannot be made: {error}");
        return Status::new(target, State::Failed, text);
    }
    match system.mount(kind, target, kind, flags, options) {
        Ok(()) => Status::new(target, State::Ok, format!("{kind} {options}").trim_end()),
        // The kernel or an earlier stage was faster.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Status::new(target, State::Ok, format!("{kind} was mounted already"))
        }
        Err(error) => {
            let text = format!("{kind} cannot be mounted at {target}: {error}");
            Status::new(target, State::Failed, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fake::Fake;

    fn state<'a>(done: &'a [Status], name: &str) -> &'a Status {
        done.iter().find(|status| status.name == name).unwrap()
    }

    #[test]
    fn proc_is_first_and_nothing_but_run_and_dev_lets_programs_or_nodes_in() {
        let system = Fake::default();
        mount_early(&system, false);
        let calls = system.calls.borrow();
        assert!(calls[0].starts_with("mount /proc proc"), "{calls:?}");
        for call in calls.iter() {
            assert!(call.contains("MS_NOSUID"), "{call}");
            let is_dev = call.starts_with("mount /dev ") || call.starts_with("mount /dev/pts ");
            assert!(is_dev || call.contains("MS_NODEV"), "{call}");
            let is_run = call.starts_with("mount /run ");
            assert!(is_run || call.contains("MS_NOEXEC"), "{call}");
        }
    }

    #[test]
    fn a_mount_that_fails_is_a_status_and_the_others_go_on() {
        let system = Fake {
            refuses: vec![
                ("mount /tmp".to_owned(), libc::ENOMEM),
                ("mount /dev ".to_owned(), libc::EBUSY),
            ],
            ..Fake::default()
        };
        let done = mount_early(&system, false);
        assert_eq!(state(&done, "/tmp").state, State::Failed);
        assert!(
            state(&done, "/tmp")
                .text
                .starts_with("tmpfs cannot be mounted at /tmp: ")
        );
        assert_eq!(state(&done, "/dev").state, State::Ok);
        assert_eq!(state(&done, "/sys/fs/cgroup").state, State::Ok);
    }

    #[test]
    fn debugfs_is_for_developers_only() {
        let system = Fake::default();
        let done = mount_early(&system, false);
        assert_eq!(state(&done, "/sys/kernel/debug").state, State::Skipped);
        assert!(
            !system
                .calls
                .borrow()
                .iter()
                .any(|call| call.contains("debugfs"))
        );
        let done = mount_early(&Fake::default(), true);
        assert_eq!(state(&done, "/sys/kernel/debug").state, State::Ok);
    }

    #[test]
    fn each_size_of_huge_pages_has_a_hugetlbfs_of_its_own() {
        let system = Fake::with(&[
            (
                "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                "0",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
                "0",
            ),
            ("/sys/kernel/mm/hugepages/strange/x", "0"),
        ]);
        let done = mount_late(&system, false);
        assert_eq!(state(&done, "/dev/hugepages").state, State::Ok);
        assert_eq!(state(&done, "/dev/hugepages-1024M").state, State::Ok);
        assert_eq!(
            state(&done, "/sys/firmware/efi/efivars").state,
            State::Skipped
        );
        let calls = system.calls.borrow();
        assert!(calls.iter().any(|call| call.ends_with("pagesize=1048576K")));
    }
}
