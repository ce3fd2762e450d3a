//! Formats over bytes in memory, and whole images as files.

use std::cell::RefCell;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use crate::file::{Sink, Source};
use crate::qcow2::{Qcow2Reader, Qcow2Writer};
use crate::{Format, ImageError, ImageReader, ImageWriter, part_path};

const CLUSTER: usize = 64 << 10;

/// A file in memory.
#[derive(Debug, Clone, Default)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl Source for Memory {
    fn path(&self) -> &Path {
        Path::new("/memory")
    }

    fn len(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    async fn read(&self, offset: u64, mut buffer: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        assert!(buffer.len() <= 16 << 20, "unbounded: {}", buffer.len());
        let bytes = self.0.borrow();
        for (at, byte) in buffer.iter_mut().enumerate() {
            let at = offset.saturating_add(at as u64);
            *byte = bytes.get(at as usize).copied().unwrap_or(0);
        }
        Ok(buffer)
    }
}

impl Sink for Memory {
    async fn write(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        let mut bytes = self.0.borrow_mut();
        let end = offset as usize + buffer.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(&buffer);
        Ok(buffer)
    }

    async fn sync(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

/// Runs what never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory does not wait"),
    }
}

/// An image with these clusters of data.
fn image(size: u64, clusters: &[(u64, u8)]) -> Memory {
    let memory = Memory::default();
    let mut writer = Qcow2Writer::new(memory.clone(), size).unwrap();
    for (cluster, byte) in clusters {
        let offset = cluster * CLUSTER as u64;
        let len = (size - offset).min(CLUSTER as u64) as usize;
        now(writer.write(offset, vec![*byte; len])).unwrap();
    }
    now(writer.finish()).unwrap();
    memory
}

/// All that an image shows, by its extents.
fn walk(memory: Memory) -> Result<Vec<(u64, u64, bool)>, ImageError> {
    now(async {
        let mut reader = Qcow2Reader::open(memory).await?;
        let (mut at, mut all) = (0, Vec::new());
        while at < reader.len_bytes() && all.len() < 10_000 {
            let (end, is_data) = reader.extent(at).await?;
            assert!(end > at && end <= reader.len_bytes());
            if is_data {
                let len = (end - at).min(1 << 20) as usize;
                assert_eq!(reader.read(at, vec![1; len]).await?.len(), len);
            }
            all.push((at, end, is_data));
            at = end;
        }
        Ok(all)
    })
}

#[test]
fn a_written_qcow2_image_shows_what_was_written_and_holes_between() {
    let cluster = CLUSTER as u64;
    // The last table of L2 is another one.
    let size = (512 << 20) + 3 * cluster + 512;
    let last = size / cluster;
    let memory = image(size, &[(1, 7), (2, 8), (100, 9), (last, 4)]);
    let extents = walk(memory.clone()).unwrap();
    let data: Vec<_> = extents.iter().filter(|extent| extent.2).collect();
    assert_eq!(
        data,
        [
            &(cluster, 3 * cluster, true),
            &(100 * cluster, 101 * cluster, true),
            &(last * cluster, size, true)
        ]
    );
    let mut reader = now(Qcow2Reader::open(memory)).unwrap();
    let bytes = now(reader.read(cluster - 4, vec![1; 2 * CLUSTER + 8])).unwrap();
    assert_eq!(bytes[..4], [0; 4]);
    assert!(bytes[4..4 + CLUSTER].iter().all(|byte| *byte == 7));
    assert!(
        bytes[4 + CLUSTER..4 + 2 * CLUSTER]
            .iter()
            .all(|byte| *byte == 8)
    );
    assert_eq!(bytes[4 + 2 * CLUSTER..], [0; 4]);
    // Past the end there are zeroes.
    let bytes = now(reader.read(size - 512, vec![1; 1024])).unwrap();
    assert!(bytes[..512].iter().all(|byte| *byte == 4));
    assert!(bytes[512..].iter().all(|byte| *byte == 0));
}

#[test]
fn every_cluster_of_a_written_image_has_a_refcount_of_one() {
    let memory = image(1 << 30, &[(0, 1), (9000, 2)]);
    let bytes = memory.0.borrow();
    let be = |at: usize, len: usize| {
        bytes[at..at + len]
            .iter()
            .fold(0_u64, |all, byte| (all << 8) | u64::from(*byte))
    };
    assert_eq!(bytes.len() % CLUSTER, 0);
    let block = be(be(48, 8) as usize, 8) as usize;
    for cluster in 0..bytes.len() / CLUSTER {
        assert_eq!(be(block + 2 * cluster, 2), 1, "cluster {cluster}");
    }
    assert_eq!(be(block + 2 * (bytes.len() / CLUSTER), 2), 0);
}

fn put(memory: &Memory, at: usize, bytes: &[u8]) {
    memory.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Offset of the first L2 table and of the first entry in it that is used.
fn first_entry(memory: &Memory) -> usize {
    let bytes = memory.0.borrow();
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[CLUSTER..CLUSTER + 8]);
    (u64::from_be_bytes(field) & !(1 << 63)) as usize
}

fn refused(memory: Memory) -> String {
    walk(memory).unwrap_err().to_string()
}

#[test]
fn what_is_not_read_here_is_refused_by_name() {
    let fresh = || image(1 << 20, &[(0, 1)]);
    let backed = fresh();
    put(&backed, 8, &200_u64.to_be_bytes());
    put(&backed, 16, &9_u32.to_be_bytes());
    put(&backed, 200, b"/base.img");
    let text = refused(backed);
    assert!(text.contains("\"/base.img\""), "{text}");
    assert!(text.contains("flatten"), "{text}");
    for (at, bytes, what) in [
        (32, &1_u32.to_be_bytes()[..], "encryption"),
        (72, &4_u64.to_be_bytes()[..], "another file"),
        (72, &16_u64.to_be_bytes()[..], "subclusters"),
        (72, &2_u64.to_be_bytes()[..], "corrupt"),
        (72, &(1_u64 << 40).to_be_bytes()[..], "features"),
        (4, &4_u32.to_be_bytes()[..], "version 4"),
        (20, &30_u32.to_be_bytes()[..], "2^30"),
        (36, &0_u32.to_be_bytes()[..], "L1"),
        (40, &1_u64.to_be_bytes()[..], "L1"),
        (40, &(u64::MAX - 65535).to_be_bytes()[..], "L1"),
        (24, &u64::MAX.to_be_bytes()[..], "a disk of"),
    ] {
        let image = fresh();
        put(&image, at, bytes);
        let text = refused(image);
        assert!(text.contains(what), "{what}: {text}");
    }
}

#[test]
fn tables_that_overlap_or_point_at_themselves_are_errors() {
    let size = 1 << 30;
    let fresh = || image(size, &[(0, 1), (1, 2), (9000, 3)]);
    let entry = first_entry(&fresh());
    let table = (entry as u64) | (1 << 63);
    for (at, value, what) in [
        // A cluster that is the table, the header, another cluster, none.
        (entry, entry as u64, "used twice"),
        (entry, CLUSTER as u64, "used twice"),
        (entry + 8, entry as u64 + CLUSTER as u64, "used twice"),
        (entry, 513 << 9, "where none begins"),
        (entry, 1 << 50, "past its end"),
        (entry, (1 << 62) | (1 << 50), "past its end"),
        // Both entries of L1 name one table, or L1 itself.
        (CLUSTER + 8, table, "used twice"),
        (CLUSTER, CLUSTER as u64, "used twice"),
        (CLUSTER, 1 << 50, "past its end"),
        // Not deflate.
        (
            entry,
            (1 << 62) | (entry as u64 + CLUSTER as u64),
            "unpacked",
        ),
    ] {
        let image = fresh();
        put(&image, at, &value.to_be_bytes());
        let text = refused(image);
        assert!(text.contains(what), "{what}: {text}");
    }
}

#[test]
fn a_compressed_cluster_is_unpacked() {
    let memory = image(1 << 20, &[(0, 1), (1, 2)]);
    let entry = first_entry(&memory);
    let plain: Vec<u8> = (0..CLUSTER).map(|at| (at % 251) as u8).collect();
    let mut packer = flate2::Compress::new(flate2::Compression::best(), false);
    let mut packed = Vec::with_capacity(CLUSTER);
    let ended = packer.compress_vec(&plain, &mut packed, flate2::FlushCompress::Finish);
    assert_eq!(ended.unwrap(), flate2::Status::StreamEnd);
    // Where the first cluster was, but for 100 bytes.
    let host = (entry + CLUSTER + 100) as u64;
    put(&memory, host as usize, &packed);
    let sectors = (host % 512 + packed.len() as u64 - 1) / 512;
    let value: u64 = (1 << 62) | (sectors << 54) | host;
    put(&memory, entry, &value.to_be_bytes());
    let mut reader = now(Qcow2Reader::open(memory)).unwrap();
    assert_eq!(now(reader.extent(0)).unwrap(), (2 * CLUSTER as u64, true));
    let bytes = now(reader.read(10, vec![0; CLUSTER])).unwrap();
    assert_eq!(bytes[..CLUSTER - 10], plain[10..]);
    assert_eq!(bytes[CLUSTER - 10..], [2; 10]);
}

#[test]
fn an_image_cut_anywhere_is_an_error_or_shows_zeroes() {
    let whole = image(1 << 20, &[(0, 1), (3, 2)]);
    let bytes = whole.0.borrow().clone();
    let near = (0..200).chain(CLUSTER - 8..CLUSTER + 24);
    for cut in near.chain((0..bytes.len()).step_by(4099)) {
        let memory = Memory(Rc::new(RefCell::new(bytes[..cut].to_vec())));
        // No panic; what it says may be either.
        drop(walk(memory));
    }
}

proptest! {
    #[test]
    fn random_bytes_in_the_tables_never_panic(
        bits in 9_u32..22,
        version in 2_u32..4,
        noise in prop::collection::vec((0_usize..(3 * CLUSTER), any::<u64>(), any::<bool>()), 0..64),
    ) {
        let memory = image(1 << 30, &[(0, 1), (1, 2), (9000, 3)]);
        put(&memory, 20, &bits.to_be_bytes());
        put(&memory, 4, &version.to_be_bytes());
        // Offsets that lie in the file reach further than random ones.
        for (at, value, is_near) in noise {
            let near = (value % (memory.len() / 512) * 512) | (value & (3 << 62));
            let value = if is_near { near } else { value };
            put(&memory, at.max(24) / 8 * 8, &value.to_be_bytes());
        }
        drop(walk(memory));
    }

    #[test]
    fn random_headers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        for (byte, magic) in bytes.iter_mut().zip(*b"QFI\xfb\0\0\0\x03") {
            *byte = magic;
        }
        drop(walk(Memory(Rc::new(RefCell::new(bytes)))));
    }

    #[test]
    fn what_is_written_is_read(
        clusters in prop::collection::btree_map(0_u64..20_000, any::<u8>(), 0..20),
        tail in 0_u64..65536,
    ) {
        let size = 20_000 * CLUSTER as u64 + tail;
        let list: Vec<_> = clusters.clone().into_iter().collect();
        let mut reader = now(Qcow2Reader::open(image(size, &list))).unwrap();
        let (mut at, mut seen) = (0, std::collections::BTreeMap::new());
        while at < size {
            let (end, is_data) = now(reader.extent(at)).unwrap();
            while is_data && at < end {
                let bytes = now(reader.read(at, vec![0; CLUSTER])).unwrap();
                prop_assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                seen.insert(at / CLUSTER as u64, bytes[0]);
                at += CLUSTER as u64;
            }
            at = end;
        }
        prop_assert_eq!(seen, clusters);
    }
}

/// Reads a whole image.
async fn contents(path: &Path) -> Result<(Vec<u8>, u64), ImageError> {
    let mut reader = ImageReader::open(path, None).await?;
    let (mut all, mut data) = (vec![0; reader.len_bytes() as usize], 0);
    let mut at = 0;
    while let Some(extent) = reader.extent(at).await? {
        if extent.is_data {
            let bytes = reader.read(at, vec![0; extent.len as usize]).await?;
            all[at as usize..(at + extent.len) as usize].copy_from_slice(&bytes);
            data += extent.len;
        }
        at += extent.len;
    }
    Ok((all, data))
}

async fn write(path: &Path, format: Format) -> Result<(), ImageError> {
    let mut writer = ImageWriter::create(path, format, 4 << 20, 0)?;
    writer.write(64 << 10, vec![5; CLUSTER]).await?;
    let back = writer.write(0, vec![5; CLUSTER]).await;
    assert!(matches!(back, Err(ImageError::Order { .. })));
    writer.write(2 << 20, vec![6; 2 * CLUSTER]).await?;
    assert!(!path.exists());
    writer.finish().await
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

#[test]
fn files_of_both_formats_are_sparse_and_read_back() {
    let (_folder, path) = folder();
    tokio_uring::start(async {
        for format in [Format::Raw, Format::Qcow2] {
            let path = path.join(format.name());
            write(&path, format).await.unwrap();
            assert!(!part_path(&path).exists());
            let reader = ImageReader::open(&path, None).await.unwrap();
            assert_eq!(reader.format(), format);
            let (bytes, data) = contents(&path).await.unwrap();
            assert_eq!(bytes.len(), 4 << 20);
            assert_eq!(data, 3 * CLUSTER as u64, "{format}");
            let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
            assert_eq!(sum, (5 + 6 + 6) * CLUSTER as u64);
            // What is there stays.
            let again = ImageWriter::create(&path, format, 4 << 20, 0);
            assert!(matches!(again, Err(ImageError::Exists { .. })));
        }
    });
}

#[test]
fn a_raw_image_goes_on_from_where_it_was() {
    let (_folder, path) = folder();
    let path = path.join("disk.raw");
    tokio_uring::start(async {
        let mut writer = ImageWriter::create(&path, Format::Raw, 1 << 20, 0).unwrap();
        writer.write(0, vec![1; 4096]).await.unwrap();
        writer.sync().await.unwrap();
        drop(writer);
        let mut writer = ImageWriter::create(&path, Format::Raw, 1 << 20, 4096).unwrap();
        assert_eq!(writer.position(), 4096);
        writer.write(8192, vec![2; 4096]).await.unwrap();
        writer.finish().await.unwrap();
        let (bytes, _) = contents(&path).await.unwrap();
        assert_eq!((bytes[0], bytes[4096], bytes[8192]), (1, 0, 2));
        // Of another size it is another image.
        let other = path.with_extension("other");
        drop(ImageWriter::create(&other, Format::Raw, 1 << 20, 0).unwrap());
        let writer = ImageWriter::create(&other, Format::Raw, 2 << 20, 4096).unwrap();
        assert_eq!(writer.position(), 0);
        ImageWriter::discard(&other).unwrap();
        assert!(!part_path(&other).exists());
        ImageWriter::discard(&other).unwrap();
    });
}

#[test]
fn what_is_no_image_is_told() {
    let (_folder, path) = folder();
    tokio_uring::start(async {
        let open = |path: PathBuf| async move { ImageReader::open(&path, None).await.err() };
        let error = open(PathBuf::from("disk")).await.unwrap();
        assert!(matches!(error, ImageError::NotAbsolute { .. }), "{error}");
        let error = open(path.join("none")).await.unwrap();
        assert!(matches!(error, ImageError::Open { .. }), "{error}");
        let error = open(path.clone()).await.unwrap();
        assert!(matches!(error, ImageError::Kind { .. }), "{error}");
        let raw = path.join("raw");
        std::fs::write(&raw, [1; 600]).unwrap();
        let error = ImageReader::open(&raw, Some(Format::Qcow2)).await.err();
        assert!(matches!(error, Some(ImageError::Damaged { .. })));
        let (bytes, _) = contents(&raw).await.unwrap();
        assert_eq!(bytes, [1; 600]);
    });
}

#[test]
fn names_and_suffixes_tell_the_format() {
    assert_eq!(Format::from_name("qcow2"), Some(Format::Qcow2));
    assert_eq!(Format::from_name("vmdk"), None);
    assert_eq!(Format::of_path(Path::new("/a/b.qcow2")), Format::Qcow2);
    assert_eq!(Format::of_path(Path::new("/a/b.img")), Format::Raw);
    assert_eq!(Format::of_path(Path::new("/dev/sda")), Format::Raw);
}
