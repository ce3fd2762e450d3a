//! Records of the table `node`: what a node keeps in its system pool. Only the node knows what the bytes mean.
//!
//! After the header come the bytes as they were given. The record of the generation, under a key that no
//! other record has, is 8 bytes.

use super::FormatError;
use super::value::{Reader, Writer};

/// Key of the generation. Keys of other records are not empty and do not begin with a zero.
pub const NODE_GENERATION_KEY: &[u8] = &[0];

/// What these records are called where one is damaged.
const NAME: &str = "state of the node";

/// Whether a record of the node may have this key.
#[must_use]
pub fn is_node_key(key: &[u8]) -> bool {
    key.first().is_some_and(|first| *first != 0)
}

/// The value of a record.
#[must_use]
pub fn encode_node_record(bytes: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(bytes);
    out.finish()
}

/// The bytes of a record.
///
/// # Errors
/// [`FormatError`] if it is damaged, or of a newer version.
pub fn decode_node_record(value: &[u8]) -> Result<Vec<u8>, FormatError> {
    Ok(Reader::open(NAME, value)?.rest().to_vec())
}

/// The value under [`NODE_GENERATION_KEY`].
#[must_use]
pub fn encode_node_generation(generation: u64) -> Vec<u8> {
    encode_node_record(&generation.to_le_bytes())
}

/// What [`encode_node_generation`] was made of.
///
/// # Errors
/// As [`decode_node_record`]; or it is no number.
pub fn decode_node_generation(value: &[u8]) -> Result<u64, FormatError> {
    let mut fields = Reader::open(NAME, value)?;
    let generation = fields.u64("generation")?;
    fields.finish()?;
    Ok(generation)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_these_bytes() {
        let value = encode_node_generation(0x0102);
        assert_eq!(value[0], 1);
        assert_eq!(value[5..], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode_node_generation(&value), Ok(0x0102));
        let value = encode_node_record(b"state");
        assert_eq!(value[5..], *b"state");
    }

    #[test]
    fn truncated_and_damaged_values_are_refused() {
        for value in [encode_node_record(b"state"), encode_node_generation(7)] {
            for len in 0..value.len() {
                decode_node_record(&value[..len]).unwrap_err();
                decode_node_generation(&value[..len]).unwrap_err();
            }
            for byte in 0..value.len() {
                let mut damaged = value.clone();
                damaged[byte] ^= 0x10;
                decode_node_record(&damaged).unwrap_err();
            }
        }
        decode_node_generation(&encode_node_record(b"123456789")).unwrap_err();
    }

    #[test]
    fn the_generation_has_a_key_of_its_own() {
        assert!(!is_node_key(NODE_GENERATION_KEY));
        assert!(!is_node_key(&[]));
        assert!(is_node_key(b"bdev"));
    }

    proptest! {
        #[test]
        fn records_come_back_and_other_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode_node_record(&bytes);
            let _ = decode_node_generation(&bytes);
            prop_assert_eq!(decode_node_record(&encode_node_record(&bytes)), Ok(bytes));
        }
    }
}
