//! The value of a record: version, checksum, fields.
//!
//! Byte 0 is the version, bytes 1 to 4 are the CRC-32C of the version byte and all bytes from 5
//! on. This does not change with the version, so that a damaged record is told from a newer one.

use super::FormatError;

/// Version of all records.
pub(super) const VERSION: u8 = 1;
/// Bytes before the first field.
pub(super) const HEADER_BYTES: usize = 5;

/// CRC-32C (Castagnoli), as of RFC 3720.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The checksum in the header of a value; `None` if it has none. Two values of one key that have the same are
/// taken for the same.
#[must_use]
pub fn value_checksum(value: &[u8]) -> Option<u32> {
    let (header, _) = value.split_first_chunk::<HEADER_BYTES>()?;
    Some(u32::from_le_bytes([
        header[1], header[2], header[3], header[4],
    ]))
}

/// CRC-32C of bytes that come in parts.
#[derive(Clone)]
pub(crate) struct Crc32c(crc_fast::Digest);

impl Crc32c {
    pub(crate) fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crc32c")
    }
}

fn checksum(version: u8, fields: &[u8]) -> u32 {
    let mut digest = Crc32c::new();
    digest.update(&[version]);
    digest.update(fields);
    digest.finish()
}

/// Appends fields.
#[derive(Debug)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// A value without fields.
    pub(super) fn new() -> Self {
        Self(vec![VERSION, 0, 0, 0, 0])
    }

    /// The value, with its checksum.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let sum = checksum(self.0[0], &self.0[HEADER_BYTES..]);
        self.0[1..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        self.0
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Seven bits a byte, lowest first; the top bit says that another byte follows.
    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Length in bytes as a varint, then the bytes.
    pub(super) fn text(&mut self, text: &str) {
        self.varint(text.len() as u64);
        self.bytes(text.as_bytes());
    }
}

/// Takes fields off the front.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    record: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The fields of a value whose checksum and version are right.
    pub(super) fn open(record: &'static str, value: &'a [u8]) -> Result<Self, FormatError> {
        let Some((&[version, a, b, c, d], fields)) = value.split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(FormatError::Truncated {
                record,
                field: "header",
            });
        };
        let stored = u32::from_le_bytes([a, b, c, d]);
        let computed = checksum(version, fields);
        if stored != computed {
            return Err(FormatError::Checksum {
                record,
                stored,
                computed,
            });
        }
        if version != VERSION {
            return Err(FormatError::Version {
                record,
                version,
                known: VERSION,
            });
        }
        Ok(Self {
            record,
            rest: fields,
        })
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(FormatError::Trailing {
                record: self.record,
                bytes: self.rest.len(),
            })
        }
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The error for a field with a value that it cannot have.
    pub(super) fn wrong(&self, field: &'static str, value: u64, rule: &'static str) -> FormatError {
        FormatError::Field {
            record: self.record,
            field,
            value,
            rule,
        }
    }

    pub(super) fn bytes(
        &mut self,
        field: &'static str,
        count: usize,
    ) -> Result<&'a [u8], FormatError> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(FormatError::Truncated {
                record: self.record,
                field,
            })?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(FormatError::Truncated {
                record: self.record,
                field,
            })?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(super) fn uuid(&mut self, field: &'static str) -> Result<[u8; 16], FormatError> {
        self.array(field)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, FormatError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, FormatError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, FormatError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.wrong(field, other.into(), "must be 0 or 1")),
        }
    }

    /// A varint in its shortest form, so that a value has one encoding.
    pub(super) fn varint(&mut self, field: &'static str) -> Result<u64, FormatError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            let bits = u64::from(byte & 0x7f);
            if (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                return Err(self.wrong(
                    field,
                    byte.into(),
                    "a varint must be short and fit 64 bits",
                ));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.wrong(field, value, "a varint has at most 10 bytes"))
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<String, FormatError> {
        let length = self.varint(field)?;
        // A length that is no usize is more than is there.
        let bytes = self.bytes(field, usize::try_from(length).unwrap_or(usize::MAX))?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(FormatError::Text {
                record: self.record,
                field,
            }),
        }
    }
}
