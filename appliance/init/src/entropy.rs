//! Random numbers: what there is is mixed in, and for the kernel's own there is a bounded wait.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};

use crate::status::{State, Status};
use crate::system::System;

/// How long the boot waits for the kernel to have gathered enough, in ms.
const WAIT_MS: u16 = 3000;

/// Mixes in what tells this machine from others. It is credited nothing: it may be known.
pub(crate) fn mix(system: &dyn System) {
    let Ok(mut pool) = OpenOptions::new().write(true).open("/dev/urandom") else {
        return;
    };
    for path in [
        "/sys/class/dmi/id/product_uuid",
        "/sys/class/dmi/id/product_serial",
        "/proc/interrupts",
        "/proc/meminfo",
    ] {
        if let Ok(bytes) = system.read(path) {
            let _ = pool.write_all(&bytes);
        }
    }
    let _ = pool.write_all(&system.unix_time_s().to_le_bytes());
}

/// Waits until random numbers are good, a few seconds at most; 16 of them.
pub(crate) fn gather() -> ([u8; 16], Status) {
    let mut bytes = [0; 16];
    let start = Instant::now();
    let failed = |text: String| Status::new("entropy", State::Degraded, text);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/random");
    let mut file = match file {
        Ok(file) => file,
        Err(error) => {
            return (
                bytes,
                failed(format!("/dev/random cannot be opened: {error}")),
            );
        }
    };
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, WAIT_MS);
    let status = match file.read_exact(&mut bytes) {
        Ok(()) => {
            let text = format!("good after {} ms", start.elapsed().as_millis());
            Status::new("entropy", State::Ok, text)
        }
        Err(_) => failed(format!(
            "the kernel has gathered too little in {WAIT_MS} ms: making keys will wait; give the \
             machine a hardware random number generator (virtio-rng)"
        )),
    };
    (bytes, status)
}
