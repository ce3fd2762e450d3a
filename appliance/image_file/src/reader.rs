//! [`ImageReader`].

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::file::{ByteFile, Source as _};
use crate::qcow2::{self, Qcow2Reader};
use crate::{Format, ImageError};

/// Bytes of an image that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// False: they are zeroes, and nothing is stored for them.
    pub is_data: bool,
}

/// What tells that a file is still the one that was looked at before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Bytes of the file, not of the image in it.
    pub len_bytes: u64,
    /// When it was last written, nanoseconds since 1970. 0 for a block device, which does not tell.
    pub modified_ns: i64,
}

/// An image that is read.
#[derive(Debug)]
pub struct ImageReader {
    image: Image,
    identity: Identity,
}

#[derive(Debug)]
enum Image {
    Raw(ByteFile),
    Qcow2(Box<Qcow2Reader<ByteFile>>),
}

impl ImageReader {
    /// Opens the image of an absolute path. Without a format its first bytes tell.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged, or needs more than this crate has.
    pub async fn open(path: &Path, format: Option<Format>) -> Result<Self, ImageError> {
        let file = ByteFile::open(path, false)?;
        let identity = identity(&file)?;
        let format = match format {
            Some(format) => format,
            None if qcow2::recognise(&file.read(0, vec![0; 4]).await?) => Format::Qcow2,
            None => Format::Raw,
        };
        let image = match format {
            Format::Raw => Image::Raw(file),
            Format::Qcow2 => Image::Qcow2(Box::new(Qcow2Reader::open(file).await?)),
        };
        Ok(Self { image, identity })
    }

    /// How it is laid out.
    #[must_use]
    pub fn format(&self) -> Format {
        match self.image {
            Image::Raw(_) => Format::Raw,
            Image::Qcow2(_) => Format::Qcow2,
        }
    }

    /// Bytes of the disk that it is an image of.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match &self.image {
            Image::Raw(file) => file.len(),
            Image::Qcow2(image) => image.len_bytes(),
        }
    }

    /// What tells that it is still the same later on.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The extent at `offset`; `None` at the end. An extent may be followed by one of its kind.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub async fn extent(&mut self, offset: u64) -> Result<Option<Extent>, ImageError> {
        let len = self.len_bytes();
        if offset >= len {
            return Ok(None);
        }
        let (end, is_data) = match &mut self.image {
            Image::Raw(file) => match file.next_data(offset)? {
                None => (len, false),
                Some((start, _)) if start > offset => (start, false),
                Some((_, end)) => (end, true),
            },
            Image::Qcow2(image) => image.extent(offset).await?,
        };
        Ok(Some(Extent {
            offset,
            len: end.min(len) - offset,
            is_data,
        }))
    }

    /// Fills the buffer with what the disk holds from `offset` on. What lies past its end is zeroes.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub async fn read(&mut self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        match &mut self.image {
            Image::Raw(file) => file.read(offset, buffer).await,
            Image::Qcow2(image) => image.read(offset, buffer).await,
        }
    }
}

fn identity(file: &ByteFile) -> Result<Identity, ImageError> {
    let metadata = file.metadata().map_err(|source| ImageError::Open {
        path: file.path().to_owned(),
        source,
    })?;
    let modified_ns = metadata
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.mtime_nsec());
    Ok(Identity {
        len_bytes: file.len(),
        modified_ns: if file.is_device() { 0 } else { modified_ns },
    })
}
