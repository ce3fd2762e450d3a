//! The PCI Express capability in a function's configuration space.

/// Bytes of the header that anybody may read.
const HEADER_LEN: usize = 64;
/// Status: there is a list of capabilities.
const CAPABILITIES_LIST: u8 = 1 << 4;
/// Capability ID of PCI Express (PCIe 5.0 §7.5.3).
const EXPRESS: u8 = 0x10;
/// Capabilities have four bytes at least, and lie between 0x40 and 0xff.
const CAPABILITIES_MAX: usize = 48;

/// Fields of the PCI Express capability that firmware sets up (PCIe 5.0 §7.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpressCapability {
    /// Device Control, Enable Relaxed Ordering.
    pub relaxed_ordering: bool,
    /// Device Control, Max_Read_Request_Size in bytes.
    pub max_read_request_bytes: u16,
    /// Link Control, ASPM Control: L0s may be entered.
    pub aspm_l0s: bool,
    /// Link Control, ASPM Control: L1 may be entered.
    pub aspm_l1: bool,
}

/// Finds the capability.
///
/// # Errors
/// Why there is none that can be read, for people.
pub fn find_express_capability(config: &[u8]) -> Result<ExpressCapability, &'static str> {
    let byte = |at: usize| config.get(at).copied();
    let word = |at: usize| Some(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
    if config.len() < HEADER_LEN {
        return Err("its configuration space is shorter than the header");
    }
    let status = byte(0x06).unwrap_or(0);
    if status & CAPABILITIES_LIST == 0 {
        return Err("it has no capabilities: it is no PCI Express function");
    }
    let mut next = byte(0x34).unwrap_or(0);
    for _ in 0..CAPABILITIES_MAX {
        // The two lowest bits are reserved.
        let at = usize::from(next & !0b11);
        if at == 0 {
            return Err("it is no PCI Express function");
        }
        if at < HEADER_LEN {
            return Err("its list of capabilities leads into the header");
        }
        let beyond = if config.len() == HEADER_LEN {
            "only root may read its configuration space past the header"
        } else {
            "its list of capabilities leads out of its configuration space"
        };
        let (id, following) = byte(at).zip(byte(at + 1)).ok_or(beyond)?;
        if id == EXPRESS {
            let device = word(at + 8).ok_or(beyond)?;
            let link = word(at + 0x10).ok_or(beyond)?;
            let size = device >> 12 & 0b111;
            if size > 5 {
                return Err("its largest read request has a reserved value");
            }
            return Ok(ExpressCapability {
                relaxed_ordering: device & 1 << 4 != 0,
                max_read_request_bytes: 128 << size,
                aspm_l0s: link & 1 << 0 != 0,
                aspm_l1: link & 1 << 1 != 0,
            });
        }
        next = following;
    }
    Err("its list of capabilities does not end")
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Configuration space with another capability before the one of PCI Express.
    pub(crate) fn config(device_control: u16, link_control: u16) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[0x06] = CAPABILITIES_LIST;
        bytes[0x34] = 0x40;
        (bytes[0x40], bytes[0x41]) = (0x01, 0x60);
        (bytes[0x60], bytes[0x61]) = (EXPRESS, 0);
        bytes[0x68..0x6a].copy_from_slice(&device_control.to_le_bytes());
        bytes[0x70..0x72].copy_from_slice(&link_control.to_le_bytes());
        bytes
    }

    #[test]
    fn the_fields_are_read() {
        let read = find_express_capability(&config(0x5010, 0b10)).unwrap();
        let wanted = ExpressCapability {
            relaxed_ordering: true,
            max_read_request_bytes: 4096,
            aspm_l0s: false,
            aspm_l1: true,
        };
        assert_eq!(read, wanted);
        let read = find_express_capability(&config(0, 0b01)).unwrap();
        assert!(!read.relaxed_ordering && read.aspm_l0s && !read.aspm_l1);
        assert_eq!(read.max_read_request_bytes, 128);
    }

    #[test]
    fn what_only_root_may_see_is_called_so() {
        let why = find_express_capability(&config(0, 0)[..64]).unwrap_err();
        assert!(why.contains("only root"), "{why}");
    }

    #[test]
    fn a_list_without_an_end_ends() {
        let mut bytes = config(0, 0);
        bytes[0x41] = 0x40;
        let why = find_express_capability(&bytes).unwrap_err();
        assert!(why.contains("does not end"), "{why}");
        bytes[0x41] = 0x20;
        find_express_capability(&bytes).unwrap_err();
    }

    #[test]
    fn configuration_space_cut_at_any_byte_is_refused() {
        let bytes = config(0x5010, 0b10);
        for len in 0..0x72 {
            find_express_capability(&bytes[..len]).unwrap_err();
        }
        find_express_capability(&bytes[..0x72]).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_configuration_space_or_not(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = find_express_capability(&bytes);
            if let Some(status) = bytes.get_mut(0x06) {
                *status |= CAPABILITIES_LIST;
            }
            let _ = find_express_capability(&bytes);
        }
    }
}
