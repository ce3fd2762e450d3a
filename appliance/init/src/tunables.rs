//! What is written into sysctl and sysfs, and why.

use std::collections::BTreeMap;

use crate::status::{State, Status};
use crate::system::System;

/// Path, value, reason.
const TABLE: &[(&str, &str, &str)] = &[
    (
        "/proc/sys/kernel/printk_devkmsg",
        "on",
        "the kernel drops lines of process 1 beyond ten in five seconds; init has a limit of its own",
    ),
    (
        "/proc/sys/kernel/panic_on_oops",
        "1",
        "a kernel that tripped over its own memory is not trusted with data",
    ),
    (
        "/proc/sys/kernel/core_pipe_limit",
        "4",
        "at most four crash reports at a time, and a crashed process stays until its report is read",
    ),
    (
        "/proc/sys/fs/suid_dumpable",
        "0",
        "memory of privileged programs stays out of crash reports of others",
    ),
    (
        "/proc/sys/kernel/kptr_restrict",
        "1",
        "addresses of the kernel are for root",
    ),
    (
        "/proc/sys/kernel/unprivileged_bpf_disabled",
        "1",
        "nothing here needs it",
    ),
    (
        "/proc/sys/kernel/numa_balancing",
        "0",
        "pages that move between nodes fault in the middle of an I/O",
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "madvise",
        "memory for I/O has huge pages of its own; the rest should not compete for them",
    ),
    (
        "/proc/sys/net/core/rmem_max",
        "16777216",
        "a fast network with a long way keeps megabytes in flight per connection",
    ),
    (
        "/proc/sys/net/core/wmem_max",
        "16777216",
        "as for rmem_max, in the other direction",
    ),
    (
        "/proc/sys/net/core/somaxconn",
        "4096",
        "after a power cut every host connects every queue at once",
    ),
    (
        "/proc/sys/net/ipv4/tcp_slow_start_after_idle",
        "0",
        "a storage connection is idle and then has much to say; the path is the same as before",
    ),
];

/// Writes the table, then what the configuration adds or overrules (`vm.swappiness` = `10`).
pub(crate) fn write_all(system: &dyn System, extra: &BTreeMap<String, String>) -> Vec<Status> {
    let mut done: Vec<Status> = TABLE
        .iter()
        .filter(|(path, ..)| {
            !extra
                .keys()
                .any(|name| sysctl_path(name).as_deref() == Ok(*path))
        })
        .map(|(path, value, reason)| write(system, path, value).because(*reason))
        .collect();
    for (name, value) in extra {
        let status = match sysctl_path(name) {
            Ok(path) => write(system, &path, value),
            Err(text) => Status::new(name, State::Failed, text),
        };
        done.push(status.because("the configuration asks for it"));
    }
    done
}

fn sysctl_path(name: &str) -> Result<String, String> {
    let plain = |part: &str| {
        !part.is_empty()
            && part != ".."
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if name.split('.').all(plain) {
        Ok(format!("/proc/sys/{}", name.replace('.', "/")))
    } else {
        Err(format!(
            "{name:?} is no name of a sysctl, as in vm.swappiness"
        ))
    }
}

fn write(system: &dyn System, path: &str, value: &str) -> Status {
    if !system.exists(path) {
        return Status::new(path, State::Skipped, "this kernel does not have it");
    }
    let before = system.text(path).unwrap_or_default();
    // A line: printk_devkmsg takes nothing less.
    if let Err(error) = system.write(path, format!("{value}\n").as_bytes()) {
        let text = format!("{value:?} was not taken: {error}; it stays {before:?}");
        return Status::new(path, State::Failed, text);
    }
    Status::new(path, State::Ok, format!("{value}, was {before}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fake::Fake;

    #[test]
    fn a_value_is_written_and_one_that_is_refused_is_told() {
        let mut system = Fake::with(&[
            ("/proc/sys/net/core/somaxconn", "128\n"),
            ("/proc/sys/kernel/panic_on_oops", "0\n"),
        ]);
        system.refuses = vec![("write /proc/sys/kernel".to_owned(), libc::EPERM)];
        let done = write_all(&system, &BTreeMap::new());
        let find = |name: &str| done.iter().find(|status| status.name == name).unwrap();
        assert_eq!(find("/proc/sys/net/core/somaxconn").text, "4096, was 128");
        let refused = find("/proc/sys/kernel/panic_on_oops");
        assert_eq!(refused.state, State::Failed);
        assert!(refused.text.ends_with("it stays \"0\""), "{}", refused.text);
        assert_eq!(
            find("/proc/sys/kernel/numa_balancing").state,
            State::Skipped
        );
        assert!(done.iter().all(|status| status.reason.is_some()));
    }

    #[test]
    fn the_configuration_overrules_the_table_and_cannot_leave_proc_sys() {
        let system = Fake::with(&[("/proc/sys/net/core/somaxconn", "128\n")]);
        let extra = BTreeMap::from([
            ("net.core.somaxconn".to_owned(), "64".to_owned()),
            ("../../etc/passwd".to_owned(), "x".to_owned()),
            ("a..b".to_owned(), "x".to_owned()),
        ]);
        let done = write_all(&system, &extra);
        let calls = system.calls.borrow();
        assert_eq!(*calls, ["write /proc/sys/net/core/somaxconn 64\n"]);
        let failed = done.iter().filter(|status| status.state == State::Failed);
        assert_eq!(failed.count(), 2);
    }
}
