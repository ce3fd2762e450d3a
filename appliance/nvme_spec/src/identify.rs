//! Identify data structures (Base §5.1.13; NVM §4.1.5).
//!
//! All answers to Identify are 4096 bytes ([`LEN`]).

mod controller;
mod lists;
mod namespace;

pub use controller::{
    IdentifyController, PowerState, anacap, cmic, cntrltype, ctratt, fcatt, frmw, fuses, lpa, oacs,
    oaes, ofcs, oncs, sgls, vwc,
};
pub use lists::{
    ControllerList, IoCommandSetVectors, NamespaceList, NsDescriptor, NsDescriptors, csi,
    encode_ns_descriptors, nidt, ns_descriptors,
};
pub use namespace::{
    IdentifyIndependentNamespace, IdentifyNamespace, IdentifyNvmController, IdentifyNvmNamespace,
    LbaFormat, dlfeat, nmic, nsattr, nsfeat, nstat, rescap,
};

/// Length of every Identify data structure, in bytes.
pub const LEN: usize = 4096;

/// Values of CNS, the Controller or Namespace Structure asked for (Base §5.1.13).
pub mod cns {
    crate::layout::constants! { u8;
        /// Identify Namespace of the NVM command set.
        NAMESPACE = 0x00;
        /// Identify Controller.
        CONTROLLER = 0x01;
        /// List of active namespaces.
        ACTIVE_NAMESPACES = 0x02;
        /// Namespace identification descriptors.
        NAMESPACE_DESCRIPTORS = 0x03;
        /// NVM set list.
        NVM_SETS = 0x04;
        /// Identify Namespace of the I/O command set in CSI.
        CSI_NAMESPACE = 0x05;
        /// Identify Controller of the I/O command set in CSI.
        CSI_CONTROLLER = 0x06;
        /// List of active namespaces of the I/O command set in CSI.
        CSI_ACTIVE_NAMESPACES = 0x07;
        /// I/O command set independent Identify Namespace.
        INDEPENDENT_NAMESPACE = 0x08;
        /// Identify Namespace of one LBA format; the format's index is in CNSSID.
        FORMAT_NAMESPACE = 0x09;
        /// As 09h, of the I/O command set in CSI.
        CSI_FORMAT_NAMESPACE = 0x0a;
        /// List of allocated namespaces.
        ALLOCATED_NAMESPACES = 0x10;
        /// Identify Namespace of an allocated namespace.
        ALLOCATED_NAMESPACE = 0x11;
        /// Controllers that a namespace is attached to.
        NAMESPACE_CONTROLLERS = 0x12;
        /// Controllers of the subsystem.
        CONTROLLERS = 0x13;
        /// Primary controller capabilities.
        PRIMARY_CONTROLLER_CAPABILITIES = 0x14;
        /// Secondary controllers.
        SECONDARY_CONTROLLERS = 0x15;
        /// Namespace granularity list.
        NAMESPACE_GRANULARITY = 0x16;
        /// UUID list.
        UUIDS = 0x17;
        /// Domain list.
        DOMAINS = 0x18;
        /// Endurance group list.
        ENDURANCE_GROUPS = 0x19;
        /// List of allocated namespaces of the I/O command set in CSI.
        CSI_ALLOCATED_NAMESPACES = 0x1a;
        /// Identify Namespace of an allocated namespace, of the I/O command set in CSI.
        CSI_ALLOCATED_NAMESPACE = 0x1b;
        /// I/O command set combinations.
        IO_COMMAND_SETS = 0x1c;
        /// Underlying namespaces.
        UNDERLYING_NAMESPACES = 0x1d;
        /// Ports.
        PORTS = 0x1e;
        /// I/O command set independent Identify Namespace of an allocated namespace.
        INDEPENDENT_ALLOCATED_NAMESPACE = 0x1f;
        /// Supported controller state formats.
        CONTROLLER_STATE_FORMATS = 0x20;
    }
}

/// Writes `s` into an ASCII field: left-justified, padded with spaces.
///
/// What does not fit is cut. A byte that such a field may not hold (outside 20h to 7Eh) becomes
/// `_`: the field stays valid whatever the configuration says.
pub fn put_ascii(dst: &mut [u8], s: &str) {
    let bytes = s
        .bytes()
        .map(|b| if matches!(b, 0x20..=0x7e) { b } else { b'_' });
    for (to, from) in dst.iter_mut().zip(bytes.chain(core::iter::repeat(b' '))) {
        *to = from;
    }
}

/// The text of an ASCII field: without the padding of spaces or zeroes at its end.
///
/// `None` if what remains is not UTF-8, which no correct peer sends.
pub fn trim_ascii(field: &[u8]) -> Option<&str> {
    let end = field
        .iter()
        .rposition(|b| !matches!(b, b' ' | 0))
        .map_or(0, |last| last + 1);
    core::str::from_utf8(&field[..end]).ok()
}

/// Writes a NUL-terminated name such as SUBNQN: `name`, then zeroes.
///
/// `false`, with `dst` all zero, if there is no room for `name` and one NUL.
pub fn put_nul_terminated(dst: &mut [u8], name: &str) -> bool {
    dst.fill(0);
    let fits = name.len() < dst.len();
    if fits {
        dst[..name.len()].copy_from_slice(name.as_bytes());
    }
    fits
}

/// The text of a NUL-terminated field, up to the first NUL or the end.
///
/// `None` if it is not UTF-8.
pub fn nul_terminated(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    core::str::from_utf8(&field[..end]).ok()
}
