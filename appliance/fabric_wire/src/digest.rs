//! CRC-32C, the header and data digest of NVMe/TCP (NVMe TCP 1.1, "Digests").
//!
//! The polynomial, the initial value and the final inversion are those of RFC 3720 §12.1. On the
//! wire a digest is four bytes, least significant first.

use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// Length of a digest on the wire in bytes.
pub const DIGEST_LEN: usize = 4;

/// Up to this length the table below is cheaper than a call of the vector code.
const TABLE_MAX_LEN: usize = 16;

/// The CRC-32C of `bytes`.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() <= TABLE_MAX_LEN {
        !update_by_table(u32::MAX, bytes)
    } else {
        crc_fast::crc32_iscsi(bytes)
    }
}

/// A CRC-32C over bytes that arrive in several parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc32c {
    /// The register: not inverted, least significant bit first.
    register: u32,
}

impl Crc32c {
    /// The state before the first byte.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self { register: u32::MAX }
    }

    /// Adds `bytes`.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.register = if bytes.len() <= TABLE_MAX_LEN {
            update_by_table(self.register, bytes)
        } else if self.register == u32::MAX {
            // The call for whole inputs is cheaper than one that takes a register.
            !crc_fast::crc32_iscsi(bytes)
        } else {
            update_by_vector(self.register, bytes)
        };
    }

    /// The CRC of all bytes added so far.
    #[inline]
    #[must_use]
    pub const fn finalize(self) -> u32 {
        !self.register
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

fn update_by_vector(register: u32, bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new_with_init_state(Crc32Iscsi, u64::from(register));
    digest.update(bytes);
    u32::try_from(digest.get_state() & u64::from(u32::MAX)).expect("masked to 32 bits")
}

/// `TABLES[k][b]`: what byte `b` does to the register when `k` more bytes follow it in the group.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ POLYNOMIAL
            } else {
                value >> 1
            };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

fn update_by_table(mut register: u32, bytes: &[u8]) -> u32 {
    let (groups, rest) = bytes.as_chunks::<8>();
    for group in groups {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = *group;
        let [r0, r1, r2, r3] = register.to_le_bytes();
        register = TABLES[7][usize::from(b0 ^ r0)]
            ^ TABLES[6][usize::from(b1 ^ r1)]
            ^ TABLES[5][usize::from(b2 ^ r2)]
            ^ TABLES[4][usize::from(b3 ^ r3)]
            ^ TABLES[3][usize::from(b4)]
            ^ TABLES[2][usize::from(b5)]
            ^ TABLES[1][usize::from(b6)]
            ^ TABLES[0][usize::from(b7)];
    }
    for byte in rest {
        let [low, ..] = register.to_le_bytes();
        register = (register >> 8) ^ TABLES[0][usize::from(low ^ byte)];
    }
    register
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
