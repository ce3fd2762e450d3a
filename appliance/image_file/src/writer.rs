//! [`ImageWriter`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::file::{ByteFile, Sink as _, Source as _};
use crate::qcow2::Qcow2Writer;
use crate::{Format, ImageError};

/// Where a file is written before it gets its name.
#[must_use]
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// An image that is made. A file is written beside its place, as `FILE.part`, and gets its name when all of it
/// is durable. A block device is written in place.
#[derive(Debug)]
pub struct ImageWriter {
    image: Image,
    path: PathBuf,
    len: u64,
    /// No write may begin before it.
    next: u64,
    is_device: bool,
}

#[derive(Debug)]
enum Image {
    Raw(ByteFile),
    Qcow2(Box<Qcow2Writer<ByteFile>>),
}

impl ImageWriter {
    /// Begins an image of `len_bytes` at an absolute path.
    ///
    /// A raw image may go on from `from`: up to there it was written and made durable before. A qcow2 image
    /// begins anew, whatever `from` says; [`ImageWriter::position`] tells.
    ///
    /// # Errors
    /// When the place is taken, too small, or cannot be written.
    pub fn create(
        path: &Path,
        format: Format,
        len_bytes: u64,
        from: u64,
    ) -> Result<Self, ImageError> {
        let kind = fs::metadata(path);
        let is_device = kind.as_ref().is_ok_and(|metadata| !metadata.is_file());
        if kind.is_ok() && !is_device {
            let path = path.to_owned();
            return Err(ImageError::Exists { path });
        }
        let (file, next) = if is_device {
            (device(path, format, len_bytes)?, from)
        } else {
            let part = part_path(path);
            let is_there = fs::metadata(&part).is_ok_and(|part| part.len() == len_bytes);
            let goes_on = is_there && from > 0 && format == Format::Raw;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true);
            let mut file = ByteFile::open_with(&part, options.truncate(!goes_on))?;
            if format == Format::Raw {
                file.set_len(len_bytes)?;
            }
            (file, if goes_on { from } else { 0 })
        };
        let image = match format {
            Format::Raw => Image::Raw(file),
            Format::Qcow2 => Image::Qcow2(Box::new(Qcow2Writer::new(file, len_bytes)?)),
        };
        Ok(Self {
            image,
            path: path.to_owned(),
            len: len_bytes,
            next,
            is_device,
        })
    }

    /// Where the next write is to begin, at the earliest.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Writes are to begin and, but for the last, to end at multiples of this many bytes.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        match &self.image {
            Image::Raw(_) => 512,
            Image::Qcow2(image) => image.cluster_size(),
        }
    }

    /// Writes bytes, and gives the buffer back. What is passed over is zeroes.
    ///
    /// # Errors
    /// [`ImageError::Order`] for a write before the end of the last one, past the end of the image, or beside
    /// the granularity; else when the file cannot be written.
    pub async fn write(&mut self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        let end = offset.saturating_add(buffer.len() as u64);
        let granularity = self.granularity();
        if offset < self.next
            || end > self.len
            || !offset.is_multiple_of(granularity)
            || !(end.is_multiple_of(granularity) || end == self.len)
        {
            let path = self.path.clone();
            return Err(ImageError::Order { path, offset });
        }
        self.skip(offset).await?;
        let buffer = match &mut self.image {
            Image::Raw(file) => file.write(offset, buffer).await?,
            Image::Qcow2(image) => image.write(offset, buffer).await?,
        };
        self.next = end;
        Ok(buffer)
    }

    /// Leaves zeroes up to `offset`.
    ///
    /// # Errors
    /// When a block device cannot be zeroed there.
    pub async fn skip(&mut self, offset: u64) -> Result<(), ImageError> {
        let offset = offset.min(self.len);
        if self.is_device
            && offset > self.next
            && let Image::Raw(file) = &self.image
        {
            file.zero(self.next, offset - self.next).await?;
        }
        self.next = self.next.max(offset);
        Ok(())
    }

    /// Makes durable what was written so far.
    ///
    /// # Errors
    /// When the system cannot.
    pub async fn sync(&self) -> Result<(), ImageError> {
        match &self.image {
            Image::Raw(file) => file.sync().await,
            Image::Qcow2(_) => Ok(()),
        }
    }

    /// Ends the image: makes it durable and gives it its name. What was not written is zeroes.
    ///
    /// # Errors
    /// When the system cannot, or when somebody has made a file of that name meanwhile.
    pub async fn finish(mut self) -> Result<(), ImageError> {
        self.skip(self.len).await?;
        match self.image {
            Image::Raw(file) => file.sync().await?,
            Image::Qcow2(image) => image.finish().await?,
        }
        if self.is_device {
            return Ok(());
        }
        let failed = |source| ImageError::Finish {
            doing: "give its name to",
            path: self.path.clone(),
            source,
        };
        // A hard link, unlike a rename, replaces nothing.
        let part = part_path(&self.path);
        match fs::hard_link(&part, &self.path) {
            Ok(()) => fs::remove_file(&part).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let path = self.path;
                return Err(ImageError::Exists { path });
            }
            // A filesystem without links.
            Err(_) => fs::rename(&part, &self.path).map_err(failed)?,
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(failed)
    }

    /// Takes away what was written, if it is a file. A block device keeps what it got.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn discard(path: &Path) -> Result<(), ImageError> {
        let part = part_path(path);
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::Finish {
                doing: "remove",
                path: part,
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

fn device(path: &Path, format: Format, wanted: u64) -> Result<ByteFile, ImageError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // On a block device: refused while it is mounted or held.
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_EXCL);
    let file = ByteFile::open_with(path, &options)?;
    if format != Format::Raw {
        return Err(ImageError::Unsupported {
            path: path.to_owned(),
            what: "no file system".to_owned(),
            instead: "write a block device as raw, or name a file",
        });
    }
    if file.len() < wanted {
        return Err(ImageError::TooSmall {
            path: path.to_owned(),
            len: file.len(),
            wanted,
        });
    }
    Ok(file)
}
