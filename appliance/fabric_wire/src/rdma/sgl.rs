//! The SGL of a command over RDMA: a keyed data block, several of them, or data in the capsule.

use nvme_spec::{SglDescriptor, Sqe, Status};
use thiserror::Error;

/// Most descriptors that a command may have outside of its entry (MSDBD).
pub const DESCRIPTORS_MAX: usize = 16;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: usize = size_of::<SglDescriptor>();

/// A part of the host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyedBlock {
    /// Address in the host's memory.
    pub address: u64,
    /// Remote key.
    pub rkey: u32,
    /// Length in bytes.
    pub len: u32,
}

/// Where a command's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// The command has none, or says nothing of where it is.
    None,
    /// In the capsule, behind the entry.
    InCapsule {
        /// Bytes from the end of the entry.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// In the host's memory: see [`KeyedSgl::blocks`].
    Keyed,
}

/// Why an SGL cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SglError {
    /// The descriptor is of a type that RDMA does not take, or of a wrong sub type.
    #[error("sgl descriptor of type {type_:x}h, sub type {subtype:x}h is not taken over rdma")]
    Type {
        /// SGL Descriptor Type.
        type_: u8,
        /// SGL Descriptor Sub Type.
        subtype: u8,
    },
    /// Data or descriptors lie outside of the capsule.
    #[error("sgl places {len} bytes at offset {offset} of a capsule with {capsule_len} bytes")]
    Outside {
        /// Offset in bytes from the end of the entry.
        offset: u64,
        /// Length in bytes.
        len: u32,
        /// Bytes that the capsule has behind the entry.
        capsule_len: u32,
    },
    /// A segment is empty, not of whole descriptors, or of more than [`DESCRIPTORS_MAX`].
    #[error("sgl segment of {len} bytes; 1 to 16 descriptors of 16 bytes are taken")]
    Count {
        /// Length of the segment in bytes.
        len: u32,
    },
    /// The blocks are longer together than a keyed data block can tell.
    #[error("sgl of {len} bytes; at most 16777215 can be moved by one command")]
    Length {
        /// Length in bytes.
        len: u64,
    },
}

impl SglError {
    /// The status that the command ends with.
    #[must_use]
    pub const fn status(&self) -> Status {
        let status = match self {
            Self::Type { .. } => Status::SGL_DESCRIPTOR_TYPE_INVALID,
            Self::Outside { .. } => Status::SGL_OFFSET_INVALID,
            Self::Count { .. } => Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS,
            Self::Length { .. } => Status::DATA_SGL_LENGTH_INVALID,
        };
        status.with_dnr(true)
    }
}

/// Where a command's data lies in the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedSgl {
    blocks: [KeyedBlock; DESCRIPTORS_MAX],
    count: u8,
    place: DataPlace,
    invalidate: Option<u32>,
}

impl Default for KeyedSgl {
    fn default() -> Self {
        Self {
            blocks: [KeyedBlock::default(); DESCRIPTORS_MAX],
            count: 0,
            place: DataPlace::None,
            invalidate: None,
        }
    }
}

impl KeyedSgl {
    /// Reads the SGL of `sqe`; `capsule` is what came behind it.
    ///
    /// Nothing is said of how long the data may be. A keyed data block of no bytes is no data.
    ///
    /// # Errors
    /// What is wrong, and with it the status of the command.
    pub fn parse(sqe: &Sqe, capsule: &[u8]) -> Result<Self, SglError> {
        let sgl = sqe.sgl();
        let mut parsed = Self::default();
        match (sgl.type_(), sgl.subtype()) {
            (SglDescriptor::TYPE_DATA_BLOCK, SglDescriptor::SUBTYPE_OFFSET) => {
                let (offset, len) = inside(&sgl, capsule)?;
                parsed.place = DataPlace::InCapsule { offset, len };
            }
            // A command without data may leave its SGL all zero.
            (SglDescriptor::TYPE_DATA_BLOCK, SglDescriptor::SUBTYPE_ADDRESS) if sgl.is_empty() => {}
            (SglDescriptor::TYPE_KEYED_DATA_BLOCK, _) => parsed.push(&sgl)?,
            (SglDescriptor::TYPE_LAST_SEGMENT, SglDescriptor::SUBTYPE_OFFSET) => {
                let (offset, len) = inside(&sgl, capsule)?;
                let segment = &capsule[offset as usize..offset as usize + len as usize];
                let is_whole = segment.len().is_multiple_of(DESCRIPTOR_LEN);
                let count = segment.len() / DESCRIPTOR_LEN;
                if !is_whole || !(1..=DESCRIPTORS_MAX).contains(&count) {
                    return Err(SglError::Count { len });
                }
                for bytes in segment.chunks_exact(DESCRIPTOR_LEN) {
                    let bytes = bytes
                        .try_into()
                        .expect("a chunk is as long as a descriptor");
                    parsed.push(&SglDescriptor(bytes))?;
                }
            }
            (type_, subtype) => return Err(SglError::Type { type_, subtype }),
        }
        let len = parsed.blocks().iter().map(|block| u64::from(block.len));
        let len = len.sum::<u64>();
        if len > u64::from(SglDescriptor::KEYED_LEN_MAX) {
            return Err(SglError::Length { len });
        }
        Ok(parsed)
    }

    fn push(&mut self, sgl: &SglDescriptor) -> Result<(), SglError> {
        let (type_, subtype) = (sgl.type_(), sgl.subtype());
        let is_known = matches!(
            subtype,
            SglDescriptor::SUBTYPE_ADDRESS | SglDescriptor::SUBTYPE_INVALIDATE_KEY
        );
        if !sgl.is_keyed() || !is_known {
            return Err(SglError::Type { type_, subtype });
        }
        if sgl.invalidates_key() {
            // A response can invalidate one key. Hosts ask it for one.
            self.invalidate = self.invalidate.or(Some(sgl.key()));
        }
        self.place = DataPlace::Keyed;
        if !sgl.is_empty() {
            self.blocks[usize::from(self.count)] = KeyedBlock {
                address: sgl.address(),
                rkey: sgl.key(),
                len: sgl.len(),
            };
            self.count += 1;
        }
        Ok(())
    }

    /// Where the data lies.
    #[must_use]
    pub fn place(&self) -> DataPlace {
        self.place
    }

    /// The parts of the host's memory, in the order of the data. None of them is empty.
    #[must_use]
    pub fn blocks(&self) -> &[KeyedBlock] {
        &self.blocks[..usize::from(self.count)]
    }

    /// Length of the data in bytes.
    #[must_use]
    pub fn len(&self) -> u32 {
        match self.place {
            DataPlace::None => 0,
            DataPlace::InCapsule { len, .. } => len,
            DataPlace::Keyed => self.blocks().iter().map(|block| block.len).sum(),
        }
    }

    /// Whether there is no data.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key that the response shall invalidate.
    #[must_use]
    pub fn invalidate(&self) -> Option<u32> {
        self.invalidate
    }
}

/// The range of the capsule that a descriptor names.
fn inside(sgl: &SglDescriptor, capsule: &[u8]) -> Result<(u32, u32), SglError> {
    let capsule_len = u32::try_from(capsule.len()).unwrap_or(u32::MAX);
    let (offset, len) = (sgl.offset(), sgl.len());
    let end = offset.checked_add(u64::from(len));
    if end.is_none_or(|end| end > u64::from(capsule_len)) {
        return Err(SglError::Outside {
            offset,
            len,
            capsule_len,
        });
    }
    let offset = u32::try_from(offset).expect("its end lies within a u32");
    Ok((offset, len))
}
