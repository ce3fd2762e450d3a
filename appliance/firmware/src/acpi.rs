//! ACPI tables that tell of the IOMMU.

/// Bytes of the header that every table begins with (ACPI 6.5, "System Description Table Header").
const HEADER_LEN: usize = 36;
/// The header, host address width, flags and reserved bytes of a DMAR table.
const DMAR_LEN: usize = 48;
/// The header, IVinfo and reserved bytes of an IVRS table.
const IVRS_LEN: usize = 48;

/// Why the bytes are not the table that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Fewer bytes than the table needs, or than it says that it has.
    #[error("the table has {len} bytes and should have {wanted}")]
    Short {
        /// Bytes that there are.
        len: usize,
        /// Bytes that there should be.
        wanted: usize,
    },
    /// Another table, or none.
    #[error("the table begins with {found:02x?}, not with {wanted:?}")]
    Signature {
        /// The first four bytes.
        found: [u8; 4],
        /// The signature of the table.
        wanted: &'static str,
    },
    /// The bytes do not add up to zero.
    #[error("the table's checksum is wrong")]
    Checksum,
}

/// What a DMAR table says of Intel's IOMMU (VT-d specification, "DMA Remapping Reporting Structure").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dmar {
    /// Bits of the widest DMA address.
    pub address_bits: u16,
    /// INTR_REMAP: interrupts can be remapped.
    pub interrupt_remapping: bool,
    /// DMA_CTRL_PLATFORM_OPT_IN_FLAG: firmware asks that DMA be kept in bounds from the start.
    pub dma_protection: bool,
}

/// The table's own bytes, checked.
fn table<'a>(bytes: &'a [u8], name: &'static str, len_min: usize) -> Result<&'a [u8], TableError> {
    let short = |wanted| TableError::Short {
        len: bytes.len(),
        wanted,
    };
    let Some((signature, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(short(len_min));
    };
    if signature != name.as_bytes() {
        return Err(TableError::Signature {
            found: *signature,
            wanted: name,
        });
    }
    let Some(length) = rest.first_chunk::<4>() else {
        return Err(short(len_min));
    };
    let length = u32::from_le_bytes(*length) as usize;
    let table = bytes.get(..length).ok_or_else(|| short(length))?;
    if table.len() < len_min.max(HEADER_LEN) {
        return Err(TableError::Short {
            len: table.len(),
            wanted: len_min,
        });
    }
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if sum != 0 {
        return Err(TableError::Checksum);
    }
    Ok(table)
}

/// Reads a DMAR table.
///
/// # Errors
/// It is cut short, another table, or damaged.
pub fn parse_dmar(bytes: &[u8]) -> Result<Dmar, TableError> {
    let table = table(bytes, "DMAR", DMAR_LEN)?;
    // Its length was checked.
    let (width, flags) = (table[HEADER_LEN], table[HEADER_LEN + 1]);
    Ok(Dmar {
        address_bits: u16::from(width) + 1,
        interrupt_remapping: flags & 1 << 0 != 0,
        dma_protection: flags & 1 << 2 != 0,
    })
}

/// Checks an IVRS table, which tells of AMD's IOMMU. An IOMMU of that kind always remaps interrupts.
///
/// # Errors
/// It is cut short, another table, or damaged.
pub fn parse_ivrs(bytes: &[u8]) -> Result<(), TableError> {
    table(bytes, "IVRS", IVRS_LEN).map(drop)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table with a right length and checksum.
    pub(crate) fn sealed(name: &str, body: &[u8]) -> Vec<u8> {
        let mut table = vec![0; HEADER_LEN];
        table[..4].copy_from_slice(name.as_bytes());
        table.extend_from_slice(body);
        let length = u32::try_from(table.len()).unwrap();
        table[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = 0u8.wrapping_sub(sum);
        table
    }

    pub(crate) fn dmar(flags: u8) -> Vec<u8> {
        let mut body = [0; 12];
        (body[0], body[1]) = (38, flags);
        sealed("DMAR", &body)
    }

    #[test]
    fn flags_of_a_dmar_table_are_read() {
        let read = parse_dmar(&dmar(0b101)).unwrap();
        assert_eq!(read.address_bits, 39);
        assert!(read.interrupt_remapping && read.dma_protection);
        let read = parse_dmar(&dmar(0b010)).unwrap();
        assert!(!read.interrupt_remapping && !read.dma_protection);
    }

    #[test]
    fn bytes_after_the_table_do_not_count() {
        let mut bytes = dmar(1);
        bytes.extend_from_slice(&[1, 2, 3]);
        assert!(parse_dmar(&bytes).unwrap().interrupt_remapping);
    }

    #[test]
    fn another_table_and_a_damaged_one_are_refused() {
        let mut bytes = sealed("IVRS", &[0; 12]);
        parse_ivrs(&bytes).unwrap();
        let error = parse_dmar(&bytes).unwrap_err();
        assert!(matches!(
            error,
            TableError::Signature { wanted: "DMAR", .. }
        ));
        bytes[40] ^= 1;
        assert_eq!(parse_ivrs(&bytes), Err(TableError::Checksum));
    }

    #[test]
    fn a_table_cut_at_any_byte_is_refused() {
        let bytes = dmar(0b111);
        for len in 0..bytes.len() {
            let error = parse_dmar(&bytes[..len]).unwrap_err();
            assert!(matches!(error, TableError::Short { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn a_table_shorter_than_its_fields_is_refused() {
        let error = parse_dmar(&sealed("DMAR", &[])).unwrap_err();
        assert_eq!(
            error,
            TableError::Short {
                len: 36,
                wanted: 48
            }
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_table_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
            let _ = (parse_dmar(&bytes), parse_ivrs(&bytes));
        }

        #[test]
        fn a_table_of_any_length_field_is_one_or_an_error(length: u32, at in 0usize..64) {
            let mut bytes = dmar(1);
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            bytes.truncate(at);
            let _ = parse_dmar(&bytes);
        }
    }
}
