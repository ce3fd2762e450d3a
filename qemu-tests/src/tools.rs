//! Where the tools root is, and whether this machine can run guests at all.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::HarnessError;

/// The emulator; `ADIT_QEMU` names another.
pub(crate) fn qemu() -> String {
    std::env::var("ADIT_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned())
}

/// The folder with the pieces that guests boot from; made now if it is not there (a minute or two).
///
/// # Errors
///
/// When `guest/make-root` fails: it needs root or sudo, debootstrap, and a Debian mirror.
pub fn tools_root() -> Result<PathBuf, HarnessError> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/make-root");
    let output = Command::new(&script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.map_err(|source| HarnessError::Spawn {
        program: script.display().to_string(),
        source,
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        return Err(HarnessError::Failed {
            command: script.display().to_string(),
            status: output.status.to_string(),
            stdout,
            stderr: "see above".to_owned(),
        });
    }
    Ok(PathBuf::from(stdout))
}

/// True, with the reason printed, where there is no QEMU and nobody insists on one.
///
/// `ADIT_QEMU_TESTS=require`, which `make test` sets, turns a machine without QEMU into a failure;
/// `ADIT_QEMU_TESTS=skip` skips everywhere.
pub fn skip_without_qemu() -> bool {
    match std::env::var("ADIT_QEMU_TESTS").as_deref() {
        Ok("skip") => {
            println!("skipped: ADIT_QEMU_TESTS=skip");
            return true;
        }
        Ok("require") => return false,
        _ => {}
    }
    let probe = Command::new(qemu())
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    let missing = !probe.is_ok_and(|status| status.success());
    if missing {
        println!(
            "skipped: {} does not run here; `make deps` installs it",
            qemu()
        );
    }
    missing
}
