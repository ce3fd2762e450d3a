//! The journal gets lines in its own protocol, also those from before it came, and one that stands still holds
//! nothing up. Method: the test runs itself again in a mount namespace with a `/run` of its own, where a datagram
//! socket stands for journald.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use logging::{Log, LogTo};

const SOCKET: &str = "/run/systemd/journal/socket";
const INSIDE: &str = "ADIT_TEST_INSIDE";
/// For what is expected to happen.
const SOON: Duration = Duration::from_secs(60);

/// Runs this test again inside, and returns what it printed; `None` when this is the inside.
fn outside(test: &str) -> Option<String> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(output) if output.stdout.is_empty() => {
            let why = String::from_utf8_lossy(&output.stderr);
            println!("skipped: no mount namespace here: {}", why.trim());
            return Some(String::new());
        }
        Ok(output) => panic!("{output:?}"),
        Err(error) => {
            println!("skipped: no unshare here: {error}");
            return Some(String::new());
        }
    };
    Some(String::from_utf8(output.stderr).unwrap())
}

type Fields = BTreeMap<String, String>;

/// An entry in the journal's native protocol: `NAME=VALUE` lines, or `NAME`, a length and the bytes.
fn parse(mut bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let line = String::from_utf8(bytes[..end].to_vec()).unwrap();
        bytes = &bytes[end + 1..];
        if let Some((name, value)) = line.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let (length, rest) = bytes.split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let value = String::from_utf8(rest[..length].to_vec()).unwrap();
        fields.insert(line, value);
        bytes = &rest[length + 1..];
    }
    fields
}

fn receive(journal: &UnixDatagram) -> Fields {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = journal.recv(&mut bytes).unwrap();
        // An empty one asks whether somebody is there.
        if count > 0 {
            return parse(&bytes[..count]);
        }
    }
}

fn journal() -> UnixDatagram {
    let journal = UnixDatagram::bind(SOCKET).unwrap();
    journal.set_read_timeout(Some(SOON)).unwrap();
    journal
}

#[test]
fn the_journal_gets_levels_and_fields_also_from_before_it_came_and_after_it_went() {
    if let Some(said) =
        outside("the_journal_gets_levels_and_fields_also_from_before_it_came_and_after_it_went")
    {
        assert!(
            said.is_empty() || said.contains("WARN  pools: the pool is full pool=\"tank\" used=3"),
            "{said}"
        );
        return;
    }
    assert!(!Path::new(SOCKET).exists());
    let log = Log::start("adit-test", "info", LogTo::Both).unwrap();
    tracing::warn!(target: "pools", pool = "tank", used = 3, "the pool is full");
    tracing::debug!("nobody wants to know");
    // In vain: nobody takes the line yet.
    log.flush(Duration::from_millis(100));

    let first = journal();
    let entry = receive(&first);
    for (name, value) in [
        ("SYSLOG_IDENTIFIER", "adit-test"),
        ("PRIORITY", "4"),
        ("MESSAGE", "the pool is full pool=\"tank\" used=3"),
        ("TARGET", "pools"),
        ("F_POOL", "tank"),
        ("F_USED", "3"),
    ] {
        assert_eq!(entry[name], value, "{entry:?}");
    }
    assert!(entry["CODE_FILE"].ends_with("journal.rs"), "{entry:?}");

    // It goes, and comes back.
    drop(first);
    std::fs::remove_file(SOCKET).unwrap();
    tracing::info!("while it was away");
    log.flush(Duration::from_millis(100));
    let second = journal();
    let entry = receive(&second);
    assert_eq!(entry["MESSAGE"], "while it was away");
    assert_eq!(entry["PRIORITY"], "6");
}

/// Five statements of it, each an event of its own, as one alone is let through ten times a second only.
macro_rules! five {
    ($($event:tt)*) => {
        $($event)* $($event)* $($event)* $($event)* $($event)*
    };
}

#[test]
fn a_journal_that_stands_still_costs_standard_error_nothing() {
    const LINES: usize = 1250;
    if let Some(said) = outside("a_journal_that_stands_still_costs_standard_error_nothing") {
        let lines = said.lines().filter(|line| line.contains("line number="));
        assert!(said.is_empty() || lines.count() == LINES, "{said}");
        return;
    }
    let journal = journal();
    let log = Log::start("adit-test", "info", LogTo::Both).unwrap();
    let mut number = 0;
    for _ in 0..10 {
        five! { five! { five! { { tracing::info!(number, "line"); number += 1; } } } }
    }
    assert_eq!(number, LINES);
    // It has taken what its socket has room for; the end of the program waits no longer than it is told to.
    log.flush(Duration::from_millis(100));
    let first = receive(&journal);
    assert_eq!(first["MESSAGE"], "line number=0");
    for number in 1..LINES {
        assert_eq!(receive(&journal)["F_NUMBER"], number.to_string());
    }
}
