//! What every QEMU here is started with, and commands to it while it runs: a client of its machine
//! protocol (QMP), as small as tests need it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::{HarnessError, patience};

const ANSWER_DEADLINE_SECONDS: u64 = 180;

/// The processor of every machine. Without `cmpxchg16b`, which the kernel's allocator runs all the time: QEMU 7.2 can
/// leave another value where it keeps the flags, which an interrupt just then makes the flags of who goes on; a
/// double fault follows.
pub(crate) const CPU: &str = "max,cx16=off";

/// The arguments that boot `kernel` and the folder's `initramfs` on `machine`. The console is written
/// to `serial.log` in the folder, the protocol is spoken on its `qmp`.
pub(crate) fn arguments(tools: &Path, folder: &Path, machine: &str, kernel: &str) -> Vec<String> {
    let accel = std::env::var("ADIT_QEMU_ACCEL").unwrap_or("tcg,thread=multi".to_owned());
    let path = |name: &str| folder.join(name).display().to_string();
    let mut arguments: Vec<String> = "-nodefaults -no-user-config -display none -no-reboot"
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let pairs = [
        ("-cpu", CPU.to_owned()),
        ("-machine", machine.to_owned()),
        ("-accel", accel),
        ("-kernel", tools.join("vmlinuz").display().to_string()),
        ("-initrd", path("initramfs")),
        // A panic ends QEMU. Mitigations would only slow the emulation down. A machine that gets little time
        // looks to the kernel as if its timer did not work. And while it boots it rewrites instructions that
        // its processors run all the time (static keys of the scheduler's clock), which an emulated processor in a
        // thread of its own can see half done: an int3 that nobody expects. So others come later, or never.
        (
            "-append",
            format!(
                "console=ttyS0 panic=-1 loglevel=4 mitigations=off no_timer_check maxcpus=1{kernel}"
            ),
        ),
        ("-serial", format!("file:{}", path("serial.log"))),
        ("-qmp", format!("unix:{},server=on,wait=off", path("qmp"))),
    ];
    for (option, value) in pairs {
        arguments.extend([option.to_owned(), value]);
    }
    arguments
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
