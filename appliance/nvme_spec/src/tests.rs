//! Tests against the bytes that the specification asks for.
//!
//! Offsets and sizes of the structures are checked when the crate is compiled (`layout.rs`); here
//! are the bytes: values put in by name come out at the specification's place, and back.

extern crate std;

mod commands;
mod identify;
mod logs;
mod properties;
mod registers;
mod reservations;
mod statuses;

use std::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The bytes of `value`.
fn bytes<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// Zeroes of `T`'s size with `parts` written over them, each at its offset.
fn image<T>(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = std::vec![0; size_of::<T>()];
    for (offset, part) in parts {
        image[*offset..*offset + part.len()].copy_from_slice(part);
    }
    image
}

/// `value` has exactly the bytes of `parts`, and they read back as `value`.
fn assert_golden<T>(value: &T, parts: &[(usize, &[u8])])
where
    T: FromBytes + IntoBytes + Immutable + KnownLayout + PartialEq + core::fmt::Debug,
{
    let golden = image::<T>(parts);
    let written = bytes(value);
    for (offset, (got, want)) in written.iter().zip(&golden).enumerate() {
        assert_eq!(got, want, "byte {offset}");
    }
    assert_eq!(&T::read_from_bytes(&golden).unwrap(), value);
}

/// Reading `T` from any prefix of its bytes fails; from all of them it works.
fn assert_truncation_is_rejected<T>()
where
    T: FromBytes + KnownLayout + Immutable,
{
    let bytes = std::vec![0xa5; size_of::<T>()];
    for len in 0..bytes.len() {
        assert!(T::ref_from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert!(T::ref_from_bytes(&bytes).is_ok());
}
