//! [`File`]: a device in a regular file or a kernel block device, driven by io_uring.
//!
//! - I/O bypasses the page cache (`O_DIRECT`) where the file allows it; else it goes through the cache,
//!   and opening returns a sentence that says so.
//! - A completed write may sit in the drive's cache: `volatile_write_cache` is told, `Flush` is
//!   `fdatasync`, `fua` is `RWF_DSYNC`.
//! - `Unmap` punches holes, `WriteZeroes` asks for zeroed ranges, and writes zeroes where the file
//!   system knows neither.
//! - The file is locked (`flock`) as long as the device lives, so that no two programs serve it. A
//!   kernel block device is opened exclusively as well: one that is mounted is refused.

mod channel;
pub(crate) mod ring;

use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};

use crate::BlockError;
use crate::device::{BlockDevice, Channel, ChannelContext, Geometry};
use crate::file::channel::FileChannel;
use crate::file::ring::Scratch;

/// How to open a [`File`].
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The regular file or kernel block device.
    pub path: PathBuf,
    /// Bytes. Needed to create a file; an existing one must have this size if it is given. An
    /// existing empty file is given this size.
    pub size: Option<u64>,
    /// Bytes per block: 512 or 4096.
    pub block_size: u32,
    /// Bypass the page cache where possible.
    pub direct: bool,
    /// Create the file, sparse, if it is not there. Never an error if it is.
    pub create: bool,
    /// Never write.
    pub read_only: bool,
}

impl FileOptions {
    /// An existing file with blocks of 512 bytes, opened for direct I/O.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            size: None,
            block_size: 512,
            direct: true,
            create: false,
            read_only: false,
        }
    }

    /// The same, but created with `size` bytes if it is not there.
    #[must_use]
    pub fn create(path: impl Into<PathBuf>, size: u64) -> Self {
        Self {
            size: Some(size),
            create: true,
            ..Self::new(path)
        }
    }
}

/// A device in a file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    block_size: u32,
    block_count: AtomicU64,
    read_only: bool,
    is_block_device: bool,
    direct: bool,
    /// Memory, offset and length of direct I/O are multiples of this.
    alignment_bytes: u32,
    preferred_bytes: u32,
    resizing: Mutex<()>,
    shared: Arc<Shared>,
}

/// What channels need of the device.
#[derive(Debug)]
pub(crate) struct Shared {
    /// For the ring; the same open file as `lock`.
    file: Arc<fs::File>,
    /// The file system does not know `FALLOC_FL_ZERO_RANGE`.
    no_zero_range: AtomicBool,
    /// The file system does not know `FALLOC_FL_PUNCH_HOLE`.
    no_punch_hole: AtomicBool,
    /// Holds the `flock` as long as any channel or the device lives.
    _lock: Flock<fs::File>,
}

impl File {
    /// Opens or creates the file. With the device comes a sentence to show if it works otherwise
    /// than asked for.
    ///
    /// # Errors
    /// When the file is not there, is neither file nor block device, has the wrong size, is in use,
    /// or cannot be opened.
    pub fn open(options: FileOptions) -> Result<(Arc<Self>, Option<String>), BlockError> {
        let FileOptions {
            path,
            size,
            block_size,
            ..
        } = &options;
        if let Some(size) = *size {
            Geometry::check_size(*block_size, size / u64::from((*block_size).max(1)))?;
        } else {
            Geometry::check_size(*block_size, 1)?;
        }
        let mut opened = open_locked(&options)?;
        let len_bytes = opened.settle_size(&options)?;
        let block_count = len_bytes / u64::from(*block_size);
        if block_count == 0 {
            let (path, block_size) = (path.clone(), *block_size);
            return Err(BlockError::FileTooSmall {
                path,
                actual_bytes: len_bytes,
                block_size,
            });
        }
        let alignment_bytes = opened.settle_direct(*block_size)?;
        if len_bytes % u64::from(*block_size) != 0 {
            opened.notice(format!(
                "{} holds {len_bytes} bytes: the last {} do not fill a block and are not used",
                path.display(),
                len_bytes % u64::from(*block_size)
            ));
        }
        let call = |source| BlockError::FileCall {
            action: "duplicate",
            path: path.clone(),
            source,
        };
        let file = Arc::new(opened.lock.try_clone().map_err(call)?);
        let device = Self {
            block_size: *block_size,
            block_count: AtomicU64::new(block_count),
            read_only: options.read_only,
            is_block_device: opened.is_block_device,
            direct: opened.direct,
            alignment_bytes,
            preferred_bytes: opened.preferred_bytes,
            resizing: Mutex::default(),
            shared: Arc::new(Shared {
                file,
                no_zero_range: AtomicBool::new(false),
                no_punch_hole: AtomicBool::new(false),
                _lock: opened.lock,
            }),
            path: options.path,
        };
        Ok((Arc::new(device), opened.notice))
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether I/O bypasses the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    fn call_error(&self, action: &'static str, source: io::Error) -> BlockError {
        BlockError::FileCall {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

impl BlockDevice for File {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn geometry(&self) -> Geometry {
        let preferred_blocks = (self.preferred_bytes / self.block_size).max(1);
        Geometry {
            optimal_io_blocks: preferred_blocks,
            write_granularity_blocks: preferred_blocks,
            unmap_granularity_blocks: preferred_blocks,
            alignment_bytes: self.alignment_bytes,
            volatile_write_cache: true,
            read_only: self.read_only,
            ..Geometry::new(self.block_size, self.block_count.load(Ordering::Relaxed))
        }
    }

    fn open_channel(&self, ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        let alignment = if self.direct { self.alignment_bytes } else { 1 };
        let block_shift = self.block_size.trailing_zeros();
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(FileChannel::open(
            ctx,
            shared,
            block_shift,
            alignment as usize,
        )?))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        Geometry::check_size(self.block_size, block_count)?;
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let from_blocks = self.block_count.load(Ordering::Relaxed);
        if block_count < from_blocks {
            return Err(BlockError::ResizeShrink {
                kind: "file",
                from_blocks,
                to_blocks: block_count,
            });
        }
        let asked_bytes = block_count * u64::from(self.block_size);
        let mut file: &fs::File = &self.shared.file;
        let actual_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|source| self.call_error("measure", source))?;
        if self.is_block_device && actual_bytes < asked_bytes {
            let path = self.path.clone();
            return Err(BlockError::FileSize {
                path,
                actual_bytes,
                asked_bytes,
            });
        }
        if actual_bytes < asked_bytes {
            file.set_len(asked_bytes)
                .map_err(|source| self.call_error("extend", source))?;
            file.sync_all()
                .map_err(|source| self.call_error("sync", source))?;
        }
        self.block_count.store(block_count, Ordering::Relaxed);
        Ok(())
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("path", self.path.display().to_string()),
            ("direct", self.direct.to_string()),
            ("alignment_bytes", self.alignment_bytes.to_string()),
        ]
    }
}

/// A file that is open and locked, on its way to be a device.
struct Opened {
    lock: Flock<fs::File>,
    path: PathBuf,
    is_block_device: bool,
    direct: bool,
    preferred_bytes: u32,
    notice: Option<String>,
}

/// Opens, or creates, and locks.
fn open_locked(options: &FileOptions) -> Result<Opened, BlockError> {
    let path = &options.path;
    let open_error = |source| BlockError::OpenFile {
        path: path.clone(),
        source,
    };
    let mut is_block_device = false;
    let mut create = false;
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(metadata) if metadata.file_type().is_block_device() => is_block_device = true,
        Ok(_) => return Err(BlockError::FileType { path: path.clone() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !options.create || options.size.is_none() || options.read_only {
                return Err(BlockError::FileMissing { path: path.clone() });
            }
            create = true;
        }
        Err(error) => return Err(open_error(error)),
    }
    let open = |flags: i32| {
        // On a block device O_EXCL keeps mounts and other exclusive users out.
        let flags = flags | if is_block_device { libc::O_EXCL } else { 0 };
        fs::OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
    };
    let mut notice = None;
    let mut direct = options.direct;
    let file = match open(if direct { libc::O_DIRECT } else { 0 }) {
        // The file system refuses the flag. (It may have created the file already.)
        Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
            direct = false;
            notice = Some(buffered_notice(path, "its file system refuses O_DIRECT"));
            open(0)
        }
        other => other,
    };
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => BlockError::FileInUse { path: path.clone() },
        _ => open_error(error),
    })?;
    let preferred_bytes = file.metadata().map_err(open_error)?.blksize();
    let how = if options.read_only {
        FlockArg::LockSharedNonblock
    } else {
        FlockArg::LockExclusiveNonblock
    };
    let lock = Flock::lock(file, how).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => BlockError::FileInUse { path: path.clone() },
        errno => BlockError::FileCall {
            action: "lock",
            path: path.clone(),
            source: errno.into(),
        },
    })?;
    Ok(Opened {
        lock,
        path: path.clone(),
        is_block_device,
        direct,
        preferred_bytes: u32::try_from(preferred_bytes)
            .unwrap_or(4096)
            .clamp(512, 1 << 20),
        notice,
    })
}

fn buffered_notice(path: &Path, why: &str) -> String {
    format!("{} is used through the page cache: {why}", path.display())
}

impl Opened {
    fn notice(&mut self, sentence: String) {
        self.notice = Some(match self.notice.take() {
            Some(earlier) => format!("{earlier}. {sentence}"),
            None => sentence,
        });
    }

    fn call_error(&self, action: &'static str, source: io::Error) -> BlockError {
        BlockError::FileCall {
            action,
            path: self.path.clone(),
            source,
        }
    }

    /// Gives an empty file its size, durably, and checks that of others. Returns the bytes.
    fn settle_size(&mut self, options: &FileOptions) -> Result<u64, BlockError> {
        let mut file: &fs::File = &self.lock;
        let measured = file.seek(SeekFrom::End(0));
        let actual_bytes = measured.map_err(|source| self.call_error("measure", source))?;
        let Some(asked_bytes) = options.size else {
            return Ok(actual_bytes);
        };
        if actual_bytes == asked_bytes {
            return Ok(actual_bytes);
        }
        if actual_bytes != 0 || self.is_block_device || options.read_only {
            let path = self.path.clone();
            return Err(BlockError::FileSize {
                path,
                actual_bytes,
                asked_bytes,
            });
        }
        file.set_len(asked_bytes)
            .map_err(|source| self.call_error("size", source))?;
        file.sync_all()
            .map_err(|source| self.call_error("sync", source))?;
        self.sync_parent()?;
        Ok(asked_bytes)
    }

    /// Makes the file's name durable.
    fn sync_parent(&self) -> Result<(), BlockError> {
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = fs::File::open(parent).and_then(|folder| folder.sync_all());
        synced.map_err(|source| self.call_error("sync the folder of", source))
    }

    /// Finds the alignment of direct I/O by trying, or turns direct I/O off. Returns the alignment.
    fn settle_direct(&mut self, block_size: u32) -> Result<u32, BlockError> {
        if !self.direct {
            return Ok(1);
        }
        let mut scratch = Scratch::new();
        for alignment in [512u32, 4096] {
            let buffer = &mut scratch.as_mut_slice()[..alignment as usize];
            match self.lock.read_at(buffer, 0) {
                Ok(_) if alignment <= block_size => return Ok(alignment),
                Ok(_) => {
                    let why = format!(
                        "direct I/O wants units of {alignment} bytes and blocks are {block_size}"
                    );
                    return self.use_page_cache(&why);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                // A medium that cannot read its first block still is a device.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(block_size),
                Err(error) => return Err(self.call_error("read", error)),
            }
        }
        self.use_page_cache("direct I/O is refused")
    }

    fn use_page_cache(&mut self, why: &str) -> Result<u32, BlockError> {
        self.direct = false;
        let file: &fs::File = &self.lock;
        let cleared = fcntl(file, FcntlArg::F_GETFL).and_then(|flags| {
            let flags = OFlag::from_bits_retain(flags).difference(OFlag::O_DIRECT);
            fcntl(file, FcntlArg::F_SETFL(flags))
        });
        cleared.map_err(|errno| self.call_error("turn off direct I/O on", errno.into()))?;
        self.notice(buffered_notice(&self.path.clone(), why));
        Ok(1)
    }
}
