//! How a machine becomes a QEMU that runs, and commands to it then: a client of its machine protocol
//! (QMP), as small as tests need it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use qemu_machines::Machine;
use serde_json::{Value, json};

use crate::{HarnessError, patience};

const ANSWER_DEADLINE_SECONDS: u64 = 180;

/// The machine of a profile of this crate: `machines/profiles/NAME.toml`.
pub(crate) fn machine(name: &str) -> Result<Machine, HarnessError> {
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/profiles");
    Machine::load(&profiles.join(format!("{name}.toml"))).map_err(wrong(name))
}

/// Makes an error of what is wrong with a machine; for `map_err`.
fn wrong<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    name: &str,
) -> impl FnOnce(E) -> HarnessError {
    move |source| HarnessError::Machine {
        name: name.to_owned(),
        source: source.into(),
    }
}

/// The arguments of QEMU for a machine whose folder is `folder`: the console is written to `serial.log` in it, the
/// protocol is spoken on its `qmp`. `given` are the names of the backends that its drives get.
pub(crate) fn arguments(
    name: &str,
    machine: &Machine,
    folder: &Path,
    given: &[&str],
) -> Result<Vec<String>, HarnessError> {
    let needed = machine.backends();
    if let Some(missing) = needed.iter().find(|name| !given.contains(name)) {
        return Err(wrong(name)(format!(
            "nothing is behind its drive {missing}"
        )));
    }
    if let Some(left) = given.iter().find(|name| !needed.contains(name)) {
        return Err(wrong(name)(format!("it has no drive for {left}")));
    }
    let path = |name: &str| folder.join(name).display().to_string();
    let mut arguments = machine.arguments();
    arguments.extend(options([
        ("-serial", format!("file:{}", path("serial.log"))),
        ("-qmp", format!("unix:{},server=on,wait=off", path("qmp"))),
    ]));
    Ok(arguments)
}

/// Options of QEMU and their values, one after the other.
pub(crate) fn options(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Vec<String> {
    let pairs = pairs.into_iter();
    pairs
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect()
}

/// A backend that an NBD server on a socket holds, as `-blockdev`.
pub(crate) fn nbd(name: &str, socket: &Path) -> (&'static str, String) {
    let socket = socket.display();
    let backend =
        format!("driver=nbd,node-name={name},export={name},server.type=unix,server.path={socket}");
    ("-blockdev", backend)
}

/// The arguments that boot the tools root's kernel with the folder's `initramfs`.
pub(crate) fn boot(tools: &Path, folder: &Path, kernel: String) -> Vec<String> {
    let path = |path: PathBuf| path.display().to_string();
    options([
        ("-kernel", path(tools.join("vmlinuz"))),
        ("-initrd", path(folder.join("initramfs"))),
        ("-append", kernel),
    ])
}

/// Runs one command on the QEMU that listens at `socket`; what it returned.
///
/// QEMU serves one client at a time, so the connection is made for the command and closed after it.
pub(crate) fn execute(
    socket: &Path,
    command: &str,
    arguments: &Value,
) -> Result<Value, HarnessError> {
    let failed = |source| HarnessError::Agent { source };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let limit = Some(patience(ANSWER_DEADLINE_SECONDS));
    stream.set_read_timeout(limit).map_err(failed)?;
    let mut lines = BufReader::new(stream.try_clone().map_err(failed)?).lines();
    let mut ask = |request: Value| -> Result<Value, HarnessError> {
        writeln!(stream, "{request}").map_err(failed)?;
        loop {
            let line = lines
                .next()
                .unwrap_or_else(|| Err(ErrorKind::UnexpectedEof.into()));
            let line = line.map_err(failed)?;
            let not_understood = || HarnessError::Answer {
                command: request.to_string(),
                answer: line.clone(),
            };
            let mut answer: Value = serde_json::from_str(&line).map_err(|_| not_understood())?;
            // The greeting and events come between.
            if answer.get("error").is_some() {
                return Err(not_understood());
            }
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
        }
    };
    ask(json!({"execute": "qmp_capabilities"}))?;
    ask(json!({"execute": command, "arguments": arguments}))
}

/// Runs a line of QEMU's monitor for people, for what the protocol has no command. It prints nothing
/// when it succeeds.
pub(crate) fn monitor_line(socket: &Path, line: &str) -> Result<(), HarnessError> {
    let printed = execute(
        socket,
        "human-monitor-command",
        &json!({"command-line": line}),
    )?;
    match printed.as_str() {
        Some("") => Ok(()),
        _ => Err(HarnessError::Answer {
            command: line.to_owned(),
            answer: printed.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_given_what_its_drives_need_and_nothing_else() {
        let folder = Path::new("/");
        let drives = machine("drives").unwrap();
        let refused = |given: &[&str]| {
            let refused = arguments("drives", &drives, folder, given);
            format!("{:?}", refused.unwrap_err())
        };
        let wanted = "the machine \"drives\" of a guest: nothing is behind its drive a2";
        assert_eq!(refused(&["a1", "DRIVE-B"]), wanted);
        let left = refused(&["a1", "a2", "DRIVE-B", "c"]);
        assert!(left.ends_with("it has no drive for c"), "{left}");
        assert!(arguments("drives", &drives, folder, &["a1", "a2", "DRIVE-B"]).is_ok());
        assert!(machine("no-such-machine").is_err());
    }
}
