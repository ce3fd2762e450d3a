use proptest::prelude::*;

use super::*;

/// The definition, bit by bit.
fn by_definition(bytes: &[u8]) -> u32 {
    let mut register = u32::MAX;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            let low = register & 1;
            register >>= 1;
            if low == 1 {
                register ^= 0x82F6_3B78;
            }
        }
    }
    !register
}

/// RFC 3720 appendix B.4, and the check value of the usual catalogues.
#[test]
fn known_answers_are_met() {
    let ascending: Vec<u8> = (0..32).collect();
    let descending: Vec<u8> = (0..32).rev().collect();
    let mut read_command = [0_u8; 48];
    read_command[0] = 0x01;
    read_command[1] = 0xC0;
    read_command[16] = 0x14;
    read_command[22] = 0x04;
    read_command[27] = 0x14;
    read_command[31] = 0x18;
    read_command[32] = 0x28;
    read_command[40] = 0x02;
    for (bytes, wire) in [
        (&[0_u8; 32][..], [0xAA, 0x36, 0x91, 0x8A]),
        (&[0xFF; 32], [0x43, 0xAB, 0xA8, 0x62]),
        (&ascending, [0x4E, 0x79, 0xDD, 0x46]),
        (&descending, [0x5C, 0xDB, 0x3F, 0x11]),
        (&read_command, [0x56, 0x3A, 0x96, 0xD9]),
    ] {
        assert_eq!(crc32c(bytes).to_le_bytes(), wire);
        assert_eq!(!update_by_table(u32::MAX, bytes), u32::from_le_bytes(wire));
        assert_eq!(!update_by_vector(u32::MAX, bytes), u32::from_le_bytes(wire));
    }
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(b""), 0);
}

#[test]
fn every_length_agrees_with_the_definition() {
    let bytes: Vec<u8> = (0..1100_u32).map(|n| (n * 37 % 251) as u8).collect();
    for len in 0..bytes.len() {
        assert_eq!(crc32c(&bytes[..len]), by_definition(&bytes[..len]), "{len}");
    }
}

#[test]
fn a_payload_in_two_parts_gives_the_same_at_every_split() {
    let bytes: Vec<u8> = (0..600_u32).map(|n| (n * 13 % 255) as u8).collect();
    let whole = crc32c(&bytes);
    for split in 0..=bytes.len() {
        let mut state = Crc32c::default();
        state.update(&bytes[..split]);
        state.update(&bytes[split..]);
        assert_eq!(state.finalize(), whole, "{split}");
    }
}

proptest! {
    #[test]
    fn parts_of_any_size_give_the_same(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8)
    ) {
        let mut state = Crc32c::new();
        for part in &parts {
            state.update(part);
        }
        let whole = parts.concat();
        prop_assert_eq!(state.finalize(), by_definition(&whole));
        prop_assert_eq!(crc32c(&whole), by_definition(&whole));
    }
}
