//! How structures whose layout the specification fixes are declared.

/// Declares structures with the byte offset of every field beside it.
///
/// Each is `repr(C)`, made of unaligned fields, and gets a `Default` of zeroes. The size after the
/// name and the offset before each field are the specification's numbers: the crate does not
/// compile if the layout differs from them.
macro_rules! wire_structs {
    ($(
        $(#[$doc:meta])*
        $name:ident[$size:literal] {
            $($(#[$field_doc:meta])* $offset:literal $field:ident: $ty:ty,)*
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(
            Clone,
            Debug,
            PartialEq,
            Eq,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::KnownLayout,
            zerocopy::Immutable,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
        };
    )*};
}

/// Declares public constants of one type.
macro_rules! constants {
    ($ty:ty; $($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: $ty = $value;)*
    };
}

pub(crate) use {constants, wire_structs};
