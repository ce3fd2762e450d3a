//! The driver on an emulated controller: no root, no device.

mod admin;
mod faults;
mod io;
mod rig;
