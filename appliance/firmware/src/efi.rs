//! EFI variables as efivarfs shows them: four bytes of attributes, then the value.

/// The first four bytes of a file in efivarfs.
const ATTRIBUTES_LEN: usize = 4;
/// LOAD_OPTION_ACTIVE (UEFI 2.10 §3.1.3).
const LOAD_OPTION_ACTIVE: u32 = 1;
/// Most nodes of a device path that are looked at.
const NODES_MAX: usize = 64;

/// Why bytes are not the variable that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EfiError {
    /// It ends before the named part does.
    #[error("the variable ends within its {part}")]
    Short {
        /// What is cut.
        part: &'static str,
    },
    /// A value that the specification does not have.
    #[error("the variable holds {value}, which {what} cannot be")]
    Value {
        /// The value.
        value: u64,
        /// What it should be.
        what: &'static str,
    },
}

/// What an option boots from, as far as its device path tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// PXE or HTTP.
    Network,
    /// A drive or a file on one.
    Disk,
    /// A program within the firmware: a shell, the setup.
    Firmware,
    /// Something else.
    Other,
}

impl Medium {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Firmware => "firmware",
            Self::Other => "other",
        }
    }
}

/// A boot option: the value of `Boot####` (UEFI 2.10 §3.1.3, EFI_LOAD_OPTION).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootOption {
    /// It takes part in booting.
    pub is_active: bool,
    /// What the firmware calls it.
    pub description: String,
    /// What it boots from.
    pub medium: Medium,
}

fn value(bytes: &[u8]) -> Result<&[u8], EfiError> {
    let part = "attributes";
    bytes.get(ATTRIBUTES_LEN..).ok_or(EfiError::Short { part })
}

/// Reads a variable of one byte, 0 or 1: `SecureBoot`, `SetupMode`.
///
/// # Errors
/// It is empty, or another value.
pub fn parse_flag(bytes: &[u8]) -> Result<bool, EfiError> {
    match value(bytes)? {
        [] => Err(EfiError::Short { part: "value" }),
        [0] => Ok(false),
        [1] => Ok(true),
        [other, ..] => Err(EfiError::Value {
            value: u64::from(*other),
            what: "a flag",
        }),
    }
}

/// Reads `BootOrder`: numbers of boot options, the first first.
///
/// # Errors
/// It ends within a number.
pub fn parse_boot_order(bytes: &[u8]) -> Result<Vec<u16>, EfiError> {
    let numbers = value(bytes)?.chunks(2);
    numbers
        .map(|number| match number {
            [low, high] => Ok(u16::from_le_bytes([*low, *high])),
            _ => Err(EfiError::Short {
                part: "last number",
            }),
        })
        .collect()
}

/// Reads `Boot####`.
///
/// # Errors
/// It ends within a field.
pub fn parse_load_option(bytes: &[u8]) -> Result<BootOption, EfiError> {
    let short = |part| EfiError::Short { part };
    let value = value(bytes)?;
    let (attributes, rest) = value.split_first_chunk().ok_or(short("attributes"))?;
    let (path_len, rest) = rest.split_first_chunk().ok_or(short("length"))?;
    let path_len = usize::from(u16::from_le_bytes(*path_len));
    let mut description = Vec::new();
    let mut units = rest.chunks_exact(2);
    loop {
        let unit = units.next().ok_or(short("description"))?;
        match u16::from_le_bytes([unit[0], unit[1]]) {
            0 => break,
            unit => description.push(unit),
        }
    }
    let path = rest.get((description.len() + 1) * 2..).unwrap_or_default();
    let path = path.get(..path_len).ok_or(short("device path"))?;
    Ok(BootOption {
        is_active: u32::from_le_bytes(*attributes) & LOAD_OPTION_ACTIVE != 0,
        description: String::from_utf16_lossy(&description),
        medium: medium(path)?,
    })
}

/// What a device path leads to (UEFI 2.10 §10.3). A network card behind a path counts although the
/// path names its PCI function first; a file behind a disk is on the disk.
fn medium(mut path: &[u8]) -> Result<Medium, EfiError> {
    let mut found = Medium::Other;
    for _ in 0..NODES_MAX {
        let Some((header, rest)) = path.split_first_chunk::<4>() else {
            return Ok(found);
        };
        let [kind, subtype, low, high] = *header;
        let len = usize::from(u16::from_le_bytes([low, high]));
        let part = "device path";
        let data = len
            .checked_sub(4)
            .and_then(|len| rest.split_at_checked(len));
        let (data, rest) = data.ok_or(EfiError::Short { part })?;
        match (kind, subtype) {
            // The end of the path, or of this instance of it.
            (0x7f, _) => return Ok(found),
            // Messaging: MAC address, IPv4, IPv6, URI.
            (3, 0x0b..=0x0d | 0x18) => return Ok(Medium::Network),
            // BIOS boot specification: its device type.
            (5, 1) => {
                let device = data.first_chunk().map(|bytes| u16::from_le_bytes(*bytes));
                found = match device {
                    Some(0x80) => Medium::Network,
                    Some(1..=6) => Medium::Disk,
                    _ => found,
                };
            }
            // Messaging: SATA, SCSI, USB, NVMe and their kin. Media: partition, CD-ROM, file.
            (3, 1..=3 | 5 | 0x0f..=0x12 | 0x15..=0x17 | 0x19 | 0x1a | 0x1d) | (4, 1 | 2 | 4) => {
                found = Medium::Disk;
            }
            // Media: a file and a volume of the firmware itself.
            (4, 6 | 7) => found = Medium::Firmware,
            _ => {}
        }
        path = rest;
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn node(kind: u8, subtype: u8, data: &[u8]) -> Vec<u8> {
        let len = u16::try_from(data.len() + 4).unwrap().to_le_bytes();
        let mut node = vec![kind, subtype, len[0], len[1]];
        node.extend_from_slice(data);
        node
    }

    pub(crate) const END: [u8; 4] = [0x7f, 0xff, 4, 0];

    /// A file of efivarfs with a load option.
    pub(crate) fn option(attributes: u32, description: &str, path: &[u8]) -> Vec<u8> {
        let mut bytes = vec![7, 0, 0, 0];
        bytes.extend_from_slice(&attributes.to_le_bytes());
        let len = u16::try_from(path.len()).unwrap();
        bytes.extend_from_slice(&len.to_le_bytes());
        for unit in description.encode_utf16().chain([0]) {
            bytes.extend_from_slice(&unit.to_le_bytes());
        }
        bytes.extend_from_slice(path);
        bytes
    }

    /// ACPI root, PCI function, MAC address, IPv4, as OVMF names a card for PXE.
    pub(crate) fn network() -> Vec<u8> {
        let mut path = node(2, 1, &[0xd0, 0x41, 3, 0x0a, 0, 0, 0, 0]);
        path.extend(node(1, 1, &[0, 3]));
        path.extend(node(3, 0x0b, &[0x52; 33]));
        path.extend(node(3, 0x0c, &[0; 23]));
        path.extend(END);
        path
    }

    pub(crate) fn disk() -> Vec<u8> {
        let mut path = node(2, 1, &[0xd0, 0x41, 3, 0x0a, 0, 0, 0, 0]);
        path.extend(node(3, 0x17, &[1; 12]));
        path.extend(node(4, 1, &[0; 38]));
        path.extend(node(4, 4, &[b'a', 0, 0, 0]));
        path.extend(END);
        path
    }

    #[test]
    fn boot_options_are_told_apart() {
        let read = parse_load_option(&option(1, "UEFI PXEv4", &network())).unwrap();
        assert!(read.is_active);
        assert_eq!(read.description, "UEFI PXEv4");
        assert_eq!(read.medium, Medium::Network);
        let read = parse_load_option(&option(0, "debian", &disk())).unwrap();
        assert!(!read.is_active);
        assert_eq!(read.medium, Medium::Disk);
        let shell = [node(4, 7, &[0; 16]), node(4, 6, &[0; 16]), END.to_vec()].concat();
        let read = parse_load_option(&option(9, "EFI Shell", &shell)).unwrap();
        assert_eq!(read.medium, Medium::Firmware);
        let bbs = [node(5, 1, &[0x80, 0, 0, 0, 0]), END.to_vec()].concat();
        let read = parse_load_option(&option(1, "Legacy LAN", &bbs)).unwrap();
        assert_eq!(read.medium, Medium::Network);
    }

    #[test]
    fn the_boot_order_is_read() {
        let order = parse_boot_order(&[7, 0, 0, 0, 3, 0, 0, 0x10]).unwrap();
        assert_eq!(order, [3, 0x1000]);
        assert!(parse_boot_order(&[7, 0, 0, 0]).unwrap().is_empty());
        parse_boot_order(&[7, 0, 0, 0, 3]).unwrap_err();
    }

    #[test]
    fn a_flag_is_zero_or_one() {
        assert_eq!(parse_flag(&[6, 0, 0, 0, 1]), Ok(true));
        assert_eq!(parse_flag(&[6, 0, 0, 0, 0]), Ok(false));
        parse_flag(&[6, 0, 0, 0]).unwrap_err();
        parse_flag(&[6, 0, 0]).unwrap_err();
        parse_flag(&[6, 0, 0, 0, 2]).unwrap_err();
        parse_flag(&[6, 0, 0, 0, 1, 1]).unwrap_err();
    }

    #[test]
    fn an_option_cut_at_any_byte_is_refused() {
        let bytes = option(1, "UEFI PXEv4", &network());
        for len in 0..bytes.len() {
            parse_load_option(&bytes[..len]).unwrap_err();
        }
    }

    #[test]
    fn a_node_shorter_than_its_header_is_refused() {
        for len in 0..4u8 {
            let path = [3, 0x01, len, 0, 0, 0];
            parse_load_option(&option(1, "x", &path)).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_variable_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = (parse_flag(&bytes), parse_boot_order(&bytes), parse_load_option(&bytes));
        }

        #[test]
        fn any_device_path_is_one_or_an_error(path in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_load_option(&option(1, "x", &path));
        }
    }
}
