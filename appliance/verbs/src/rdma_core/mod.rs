//! The implementation over rdma-core's libraries, which `rdma-mummy-sys` looks for when the program
//! starts. Each call of theirs that is not there fails with EOPNOTSUPP.
//!
//! The objects of the libraries are pointers. Each is owned by one structure here, which holds an
//! `Arc` of every structure that its own object stands on: so objects are destroyed in the order
//! that the libraries ask for, whatever the order in which their owners drop them.

mod address;
mod cm;
mod device;
mod qp;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rdma_mummy_sys as sys;

use crate::error::VerbsError;
use crate::traits::{CmChannel, Device, Provider};
use cm::RdmaCmChannel;
use device::RdmaDevice;

/// Verbs of the system's own libraries and devices.
#[derive(Debug)]
pub struct RdmaCore {
    devices: Arc<Devices>,
}

impl RdmaCore {
    /// Looks whether the libraries and the connection manager are there.
    ///
    /// # Errors
    /// What is missing, and what to install.
    pub fn load() -> Result<Arc<Self>, VerbsError> {
        let mut count = 0;
        // SAFETY: `count` is written; the list is freed by the same library.
        let is_there = unsafe {
            let list = sys::ibv_get_device_list(&raw mut count);
            let error = io::Error::last_os_error();
            if list.is_null() {
                Err(error)
            } else {
                sys::ibv_free_device_list(list);
                Ok(())
            }
        };
        if let Err(error) = is_there {
            return Err(missing("libibverbs.so.1", &error));
        }
        let core = Self {
            devices: Arc::default(),
        };
        // The connection manager is another library, with a device file of its own.
        match RdmaCmChannel::open(&core.devices) {
            Ok(_) => Ok(Arc::new(core)),
            Err(VerbsError::Call { source, .. }) => Err(missing("librdmacm.so.1", &source)),
            Err(error) => Err(error),
        }
    }
}

fn missing(library: &str, error: &io::Error) -> VerbsError {
    let what = if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        format!("{library} cannot be loaded")
    } else {
        format!("{library} finds no way to the kernel ({error})")
    };
    VerbsError::NotAvailable { what }
}

impl Provider for RdmaCore {
    fn devices(&self) -> Result<Vec<Arc<dyn Device>>, VerbsError> {
        self.devices.let_go();
        self.devices.refresh()?;
        let known = self.devices.lock();
        let mut all: Vec<Arc<dyn Device>> = known
            .values()
            .flatten()
            .map(|device| Arc::new(device.clone()) as Arc<dyn Device>)
            .collect();
        all.sort_by(|a, b| a.info().name.cmp(&b.info().name));
        Ok(all)
    }

    fn cm_channel(&self) -> Result<Box<dyn CmChannel>, VerbsError> {
        Ok(Box::new(RdmaCmChannel::open(&self.devices)?))
    }
}

/// The devices of librdmacm, by the address of their context.
///
/// The library counts who uses a context and frees it when it is removed and unused. The lists that
/// it was asked for are never given back: no context in here is freed for as long as the program
/// runs. There is one list for each time that a device had appeared. `None` stands for a device that
/// was removed: whoever still has objects on it holds it.
#[derive(Debug, Default)]
struct Devices(Mutex<HashMap<usize, Option<RdmaDevice>>>);

impl Devices {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Option<RdmaDevice>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of devices that were removed.
    fn let_go(&self) {
        let is_gone = |device: &RdmaDevice| device.is_removed();
        for device in self.lock().values_mut() {
            *device = device.take().filter(|device| !is_gone(device));
        }
    }

    /// The connection manager tells that a device is being removed.
    fn removed(&self, context: *mut sys::ibv_context) {
        if let Some(device) = self.lock().get_mut(&context.addr())
            && let Some(device) = device.take()
        {
            device.set_removed();
        }
    }

    /// Looks for devices that have appeared.
    fn refresh(&self) -> Result<(), VerbsError> {
        let mut count = 0;
        // SAFETY: `count` is written.
        let list = unsafe { sys::rdma_get_devices(&raw mut count) };
        if list.is_null() {
            let error = io::Error::last_os_error();
            // Without a device some versions of the library have no list.
            return match error.raw_os_error() {
                Some(libc::ENODEV) | Some(libc::ENOENT) | Some(0) | None => Ok(()),
                _ => Err(VerbsError::call("rdma_get_devices", "this node", error)),
            };
        }
        let mut known = self.lock();
        let mut is_new = false;
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the list has `count` contexts, which stay open: the list is only given back
            // below if it has no context that was not kept by an earlier list.
            let context = unsafe { *list.add(index) };
            if context.is_null() || known.contains_key(&context.addr()) {
                continue;
            }
            is_new = true;
            // SAFETY: an open context of librdmacm that is never closed.
            match unsafe { RdmaDevice::new(context) } {
                Ok(device) => {
                    known.insert(context.addr(), Some(device));
                }
                // It has gone while it was looked at.
                Err(_) => continue,
            }
        }
        if !is_new {
            // SAFETY: the list came from the library; all its contexts are held by earlier lists.
            unsafe { sys::rdma_free_devices(list) };
        }
        Ok(())
    }

    /// The device of an identifier.
    fn find(&self, context: *mut sys::ibv_context) -> Option<RdmaDevice> {
        if context.is_null() {
            return None;
        }
        let known = self.lock().get(&context.addr()).cloned();
        if let Some(known) = known {
            return known;
        }
        self.refresh().ok()?;
        self.lock().get(&context.addr()).cloned().flatten()
    }
}

/// The result of a call that returns 0, or -1 with errno, or a positive errno.
fn check(
    call: &'static str,
    object: impl FnOnce() -> String,
    result: i32,
) -> Result<(), VerbsError> {
    match result {
        0 => Ok(()),
        errno if errno > 0 => Err(VerbsError::call(
            call,
            object(),
            io::Error::from_raw_os_error(errno),
        )),
        _ => Err(VerbsError::call(call, object(), io::Error::last_os_error())),
    }
}

/// The result of a call that returns an object, or null with errno.
fn check_pointer<T>(
    call: &'static str,
    object: impl FnOnce() -> String,
    pointer: *mut T,
) -> Result<*mut T, VerbsError> {
    if pointer.is_null() {
        let error = io::Error::last_os_error();
        return Err(VerbsError::call(call, object(), error));
    }
    Ok(pointer)
}

/// Makes a descriptor's reads return at once when there is nothing.
fn set_nonblocking(fd: std::os::fd::BorrowedFd<'_>, object: &str) -> Result<(), VerbsError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let set = || -> nix::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    };
    set().map_err(|errno| VerbsError::call("fcntl", object, errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_libraries_it_is_told_what_is_missing() {
        match RdmaCore::load() {
            Ok(core) => println!("rdma-core is here: {:?}", core.devices().map(|d| d.len())),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("install libibverbs1"), "{text}");
                assert!(text.contains(".so.1"), "{text}");
            }
        }
    }
}
