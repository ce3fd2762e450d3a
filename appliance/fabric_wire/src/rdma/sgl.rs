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
///
/// Made once and used for one command after another: most have one block, and the room for the
/// others is neither cleared nor copied, see [`KeyedSgl::read`] and [`KeyedSgl::copy_from`].
#[derive(Clone, Debug)]
pub struct KeyedSgl {
    /// Those from `count` on are of commands before.
    blocks: [KeyedBlock; DESCRIPTORS_MAX],
    count: u8,
    place: DataPlace,
    len: u32,
    invalidate: Option<u32>,
}

impl Default for KeyedSgl {
    fn default() -> Self {
        Self {
            blocks: [KeyedBlock::default(); DESCRIPTORS_MAX],
            count: 0,
            place: DataPlace::None,
            len: 0,
            invalidate: None,
        }
    }
}

impl KeyedSgl {
    /// The SGL of `sqe`; `capsule` is what came behind it.
    ///
    /// Nothing is said of how long the data may be. A keyed data block of no bytes is no data.
    ///
    /// # Errors
    /// What is wrong, and with it the status of the command.
    pub fn parse(sqe: &Sqe, capsule: &[u8]) -> Result<Self, SglError> {
        let mut parsed = Self::default();
        parsed.read(sqe, capsule)?;
        Ok(parsed)
    }

    /// As [`KeyedSgl::parse`], in the place of another command's. After an error there is no data.
    ///
    /// # Errors
    /// What is wrong, and with it the status of the command.
    pub fn read(&mut self, sqe: &Sqe, capsule: &[u8]) -> Result<(), SglError> {
        self.clear();
        let result = self.read_into_cleared(&sqe.sgl(), capsule);
        if result.is_err() {
            self.clear();
        }
        result
    }

    /// Becomes as the other one.
    pub fn copy_from(&mut self, other: &Self) {
        let count = usize::from(other.count);
        self.blocks[..count].copy_from_slice(&other.blocks[..count]);
        self.count = other.count;
        self.place = other.place;
        self.len = other.len;
        self.invalidate = other.invalidate;
    }

    fn clear(&mut self) {
        self.count = 0;
        self.place = DataPlace::None;
        self.len = 0;
        self.invalidate = None;
    }

    fn read_into_cleared(&mut self, sgl: &SglDescriptor, capsule: &[u8]) -> Result<(), SglError> {
        match (sgl.type_(), sgl.subtype()) {
            (SglDescriptor::TYPE_DATA_BLOCK, SglDescriptor::SUBTYPE_OFFSET) => {
                let (offset, len) = inside(sgl, capsule)?;
                self.place = DataPlace::InCapsule { offset, len };
                self.len = len;
            }
            // A command without data may leave its SGL all zero.
            (SglDescriptor::TYPE_DATA_BLOCK, SglDescriptor::SUBTYPE_ADDRESS) if sgl.is_empty() => {}
            (SglDescriptor::TYPE_KEYED_DATA_BLOCK, _) => self.push(sgl)?,
            (SglDescriptor::TYPE_LAST_SEGMENT, SglDescriptor::SUBTYPE_OFFSET) => {
                let (offset, len) = inside(sgl, capsule)?;
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
                    self.push(&SglDescriptor(bytes))?;
                }
            }
            (type_, subtype) => return Err(SglError::Type { type_, subtype }),
        }
        // Sixteen blocks of 24-bit lengths fit a u32.
        if self.len > SglDescriptor::KEYED_LEN_MAX && self.place == DataPlace::Keyed {
            let len = self.len.into();
            return Err(SglError::Length { len });
        }
        Ok(())
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
            self.len += sgl.len();
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
        self.len
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
