//! The system calls without a safe wrapper.
#![expect(
    unsafe_code,
    reason = "ioctl of watchdogs, for which nobody has a safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, libc::c_int);

/// Sets a watchdog's timeout in seconds; the driver answers with the one that it took
/// (`WDIOC_SETTIMEOUT`, the kernel's watchdog-api).
pub(crate) fn set_watchdog_timeout(device: &File, seconds: u32) -> io::Result<u32> {
    let mut value =
        libc::c_int::try_from(seconds).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the request reads and writes one c_int, which `value` is and which lives until the call
    // returns; the descriptor is open as long as `device` is borrowed. A device that knows no such
    // request answers ENOTTY and touches nothing.
    unsafe { wdioc_settimeout(device.as_raw_fd(), &raw mut value) }?;
    u32::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_watchdog_says_so() {
        let file = File::open("/dev/null").unwrap();
        let error = set_watchdog_timeout(&file, 30).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
