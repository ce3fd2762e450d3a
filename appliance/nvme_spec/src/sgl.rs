//! SGL descriptors (Base §4.3.2).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One 16-byte SGL descriptor (Base §4.3.2).
///
/// Byte 15 holds the type (bits 7:4) and the sub type (bits 3:0); the other 15 bytes mean what the
/// type says. Only the accessors that belong to the type give something useful.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SglDescriptor(pub [u8; 16]);

const _: () = assert!(size_of::<SglDescriptor>() == 16);

impl SglDescriptor {
    /// Type 0h: data block.
    pub const TYPE_DATA_BLOCK: u8 = 0x0;
    /// Type 1h: bit bucket.
    pub const TYPE_BIT_BUCKET: u8 = 0x1;
    /// Type 2h: segment.
    pub const TYPE_SEGMENT: u8 = 0x2;
    /// Type 3h: last segment.
    pub const TYPE_LAST_SEGMENT: u8 = 0x3;
    /// Type 4h: keyed data block (RDMA).
    pub const TYPE_KEYED_DATA_BLOCK: u8 = 0x4;
    /// Type 5h: transport data block (TCP).
    pub const TYPE_TRANSPORT_DATA_BLOCK: u8 = 0x5;
    /// Type Fh: vendor specific.
    pub const TYPE_VENDOR: u8 = 0xf;

    /// Sub type 0h: the address field is an address.
    pub const SUBTYPE_ADDRESS: u8 = 0x0;
    /// Sub type 1h: the address field is an offset from the start of the in-capsule data.
    pub const SUBTYPE_OFFSET: u8 = 0x1;
    /// Sub type Ah of a transport data block: the transport moves the data (NVMe/TCP).
    pub const SUBTYPE_TRANSPORT: u8 = 0xa;
    /// Sub type Fh of a keyed data block: the remote key is invalidated when the command ends.
    pub const SUBTYPE_INVALIDATE_KEY: u8 = 0xf;

    /// The longest keyed data block, in bytes: its length field has 24 bits.
    pub const KEYED_LEN_MAX: u32 = 0x00ff_ffff;

    const fn plain(type_: u8, subtype: u8, address: u64, len: u32) -> Self {
        let a = address.to_le_bytes();
        let l = len.to_le_bytes();
        let id = type_ << 4 | subtype;
        Self([
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], l[0], l[1], l[2], l[3], 0, 0, 0, id,
        ])
    }

    /// Data in the capsule, `offset` bytes into its data area, `len` bytes long.
    pub const fn in_capsule(offset: u64, len: u32) -> Self {
        Self::plain(Self::TYPE_DATA_BLOCK, Self::SUBTYPE_OFFSET, offset, len)
    }

    /// `len` bytes that the transport moves on its own (NVMe/TCP H2CData and C2HData).
    pub const fn transport_data(len: u32) -> Self {
        Self::plain(
            Self::TYPE_TRANSPORT_DATA_BLOCK,
            Self::SUBTYPE_TRANSPORT,
            0,
            len,
        )
    }

    /// `len` bytes of host memory at `address` (PCIe).
    pub const fn data_block(address: u64, len: u32) -> Self {
        Self::plain(Self::TYPE_DATA_BLOCK, Self::SUBTYPE_ADDRESS, address, len)
    }

    /// A segment of `len` bytes of further descriptors at `address`, not the last one.
    pub const fn segment(address: u64, len: u32) -> Self {
        Self::plain(Self::TYPE_SEGMENT, Self::SUBTYPE_ADDRESS, address, len)
    }

    /// The last segment: `len` bytes of further descriptors at `address`.
    pub const fn last_segment(address: u64, len: u32) -> Self {
        Self::plain(Self::TYPE_LAST_SEGMENT, Self::SUBTYPE_ADDRESS, address, len)
    }

    /// `len` bytes of host memory at `address`, reached with remote key `key` (RDMA).
    ///
    /// The length field has 24 bits: bits above [`Self::KEYED_LEN_MAX`] are dropped, so the caller
    /// bounds `len` first.
    pub const fn keyed(address: u64, len: u32, key: u32, invalidate: bool) -> Self {
        let a = address.to_le_bytes();
        let l = len.to_le_bytes();
        let k = key.to_le_bytes();
        let subtype = if invalidate {
            Self::SUBTYPE_INVALIDATE_KEY
        } else {
            Self::SUBTYPE_ADDRESS
        };
        let id = Self::TYPE_KEYED_DATA_BLOCK << 4 | subtype;
        Self([
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], l[0], l[1], l[2], k[0], k[1], k[2],
            k[3], id,
        ])
    }

    /// SGL Descriptor Type, byte 15 bits 7:4.
    pub const fn type_(&self) -> u8 {
        self.0[15] >> 4
    }

    /// SGL Descriptor Sub Type, byte 15 bits 3:0.
    pub const fn subtype(&self) -> u8 {
        self.0[15] & 0xf
    }

    /// Data block given as an offset into the capsule.
    pub const fn is_in_capsule(&self) -> bool {
        self.type_() == Self::TYPE_DATA_BLOCK && self.subtype() == Self::SUBTYPE_OFFSET
    }

    /// Transport data block of sub type Ah.
    pub const fn is_transport_data(&self) -> bool {
        self.type_() == Self::TYPE_TRANSPORT_DATA_BLOCK && self.subtype() == Self::SUBTYPE_TRANSPORT
    }

    /// Keyed data block, whichever its sub type.
    pub const fn is_keyed(&self) -> bool {
        self.type_() == Self::TYPE_KEYED_DATA_BLOCK
    }

    /// Keyed data block whose key is to be invalidated when the command ends.
    pub const fn invalidates_key(&self) -> bool {
        self.is_keyed() && self.subtype() == Self::SUBTYPE_INVALIDATE_KEY
    }

    /// Bytes 7:0 as an address.
    pub const fn address(&self) -> u64 {
        let b = &self.0;
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }

    /// Bytes 7:0 as an offset, in bytes from the start of the in-capsule data.
    pub const fn offset(&self) -> u64 {
        self.address()
    }

    /// Length in bytes: 24 bits for a keyed data block, 32 bits for all others.
    pub const fn len(&self) -> u32 {
        let b = &self.0;
        let top = if self.is_keyed() { 0 } else { b[11] };
        u32::from_le_bytes([b[8], b[9], b[10], top])
    }

    /// Whether the length is 0: such a descriptor moves no data.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remote key of a keyed data block, bytes 14:11.
    pub const fn key(&self) -> u32 {
        let b = &self.0;
        u32::from_le_bytes([b[11], b[12], b[13], b[14]])
    }
}

impl fmt::Debug for SglDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("SglDescriptor");
        s.field("type", &format_args!("{:x}h", self.type_()))
            .field("subtype", &format_args!("{:x}h", self.subtype()))
            .field("address", &format_args!("{:#x}", self.address()))
            .field("len", &self.len());
        if self.is_keyed() {
            s.field("key", &format_args!("{:#x}", self.key()));
        }
        s.finish()
    }
}
