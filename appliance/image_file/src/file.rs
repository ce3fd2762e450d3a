//! Files by their bytes: what the formats read from and write to.

use std::fs::{self, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use tokio_uring::buf::BoundedBuf as _;

use crate::ImageError;

/// Bytes that can be read. A seam: the formats are tested without files.
pub(crate) trait Source {
    /// Where errors say it is.
    fn path(&self) -> &Path;
    /// Bytes in all.
    fn len(&self) -> u64;
    /// Fills the buffer; what lies past the end is zeroes.
    async fn read(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, ImageError>;
}

/// Bytes that can be written.
pub(crate) trait Sink {
    /// Writes the buffer and gives it back.
    async fn write(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, ImageError>;
    /// Makes durable what was written.
    async fn sync(&self) -> Result<(), ImageError>;
}

/// A file or a block device.
#[derive(Debug)]
pub(crate) struct ByteFile {
    path: PathBuf,
    file: tokio_uring::fs::File,
    /// The same file, for what no ring does.
    plain: fs::File,
    len: u64,
    is_device: bool,
}

/// Bytes that a hole is filled with at a time where the system cannot.
const ZEROES_BYTES: u64 = 1 << 20;

impl ByteFile {
    /// Opens what is there.
    pub(crate) fn open(path: &Path, write: bool) -> Result<Self, ImageError> {
        Self::open_with(path, OpenOptions::new().read(true).write(write))
    }

    pub(crate) fn open_with(path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        if !path.is_absolute() {
            let path = path.to_owned();
            return Err(ImageError::NotAbsolute { path });
        }
        let failed = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        // To open a fifo would wait for its other end.
        if let Ok(metadata) = fs::metadata(path)
            && !metadata.is_file()
            && !metadata.file_type().is_block_device()
        {
            let path = path.to_owned();
            return Err(ImageError::Kind { path });
        }
        let mut plain = options.open(path).map_err(failed)?;
        let kind = plain.metadata().map_err(failed)?.file_type();
        let len = plain.seek(SeekFrom::End(0)).map_err(failed)?;
        let file = tokio_uring::fs::File::from_std(plain.try_clone().map_err(failed)?);
        Ok(Self {
            path: path.to_owned(),
            file,
            plain,
            len,
            is_device: kind.is_block_device(),
        })
    }

    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    pub(crate) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.plain.metadata()
    }

    pub(crate) fn set_len(&mut self, len: u64) -> Result<(), ImageError> {
        self.plain
            .set_len(len)
            .map_err(|source| ImageError::Finish {
                doing: "set the size of",
                path: self.path.clone(),
                source,
            })?;
        self.len = len;
        Ok(())
    }

    /// Where data begins at or after `offset`, and where it ends; `None` when nothing but a hole follows.
    pub(crate) fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, ImageError> {
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).unwrap_or(i64::MAX);
            lseek(&self.plain, from, whence).map(|at| u64::try_from(at).unwrap_or(self.len))
        };
        if offset >= self.len {
            return Ok(None);
        }
        let (start, end) = match seek(offset, Whence::SeekData) {
            Ok(start) => (start, seek(start, Whence::SeekHole)),
            Err(Errno::ENXIO) => return Ok(None),
            // A block device, or a filesystem that does not know: all of it is data.
            Err(Errno::EINVAL | Errno::ENOTSUP) => (offset, Ok(self.len)),
            Err(error) => return Err(self.failed_read(offset, 0, error.into())),
        };
        let end = end.map_err(|error| self.failed_read(start, 0, error.into()))?;
        // A file that is changed meanwhile may give anything.
        let start = start.clamp(offset, self.len);
        Ok(Some((start, end.clamp(start, self.len))).filter(|(start, end)| start < end))
    }

    /// Makes the bytes read as zeroes: for what is not new.
    pub(crate) async fn zero(&self, offset: u64, len: u64) -> Result<(), ImageError> {
        let (at, bytes) = (i64::try_from(offset), i64::try_from(len));
        if let (Ok(at), Ok(bytes)) = (at, bytes) {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if [punch, zero]
                .into_iter()
                .any(|mode| fallocate(&self.plain, mode, at, bytes).is_ok())
            {
                return Ok(());
            }
        }
        let mut at = offset;
        let mut zeroes = vec![0; ZEROES_BYTES as usize];
        while at < offset + len {
            zeroes.resize(ZEROES_BYTES.min(offset + len - at) as usize, 0);
            at += zeroes.len() as u64;
            zeroes = Sink::write(self, at - zeroes.len() as u64, zeroes).await?;
        }
        Ok(())
    }

    fn failed_read(&self, offset: u64, len: usize, source: io::Error) -> ImageError {
        let path = self.path.clone();
        ImageError::Read {
            path,
            offset,
            len,
            source,
        }
    }
}

impl Source for ByteFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    async fn read(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        let wanted = buffer.len();
        let there = self.len.saturating_sub(offset).min(wanted as u64) as usize;
        let mut buffer = buffer;
        if there > 0 {
            let (result, slice) = self.file.read_exact_at(buffer.slice(..there), offset).await;
            buffer = slice.into_inner();
            result.map_err(|source| self.failed_read(offset, there, source))?;
        }
        buffer.resize(wanted, 0);
        buffer[there..].fill(0);
        Ok(buffer)
    }
}

impl Sink for ByteFile {
    async fn write(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        let (result, buffer) = self.file.write_all_at(buffer, offset).await;
        result.map_err(|source| ImageError::Write {
            path: self.path.clone(),
            offset,
            source,
        })?;
        Ok(buffer)
    }

    async fn sync(&self) -> Result<(), ImageError> {
        let synced = self.file.sync_all().await;
        synced.map_err(|source| ImageError::Finish {
            doing: "make durable",
            path: self.path.clone(),
            source,
        })
    }
}
