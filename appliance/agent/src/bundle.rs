//! The support bundle: a tar.zst with all that is needed to understand a node. No keys and no codes
//! are in it, but for cores where they are asked for.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Longest file of a bundle that is made here, in bytes; a longer one is cut, and the manifest says so.
pub const FILE_BYTES_MAX: u64 = 32 << 20;
/// Longest bundle, in bytes of its files before they are compressed.
pub const BUNDLE_BYTES_MAX: u64 = 512 << 20;
/// Bytes of one message of the stream.
const CHUNK_BYTES: usize = 64 << 10;
/// Of zstd: fast, and most of the gain for logs.
const LEVEL: i32 = 3;

/// What a file of a bundle holds.
#[derive(Debug)]
pub enum Content {
    /// This.
    Bytes(Vec<u8>),
    /// What a file of the node holds, to its end; it is read when the bundle is written.
    File(PathBuf),
}

/// One file of a bundle, or why it is not there.
#[derive(Debug)]
pub struct Part {
    /// Its name in the archive.
    pub name: String,
    /// What it holds.
    pub content: Result<Content, String>,
    /// What of it was left out, in a sentence for the manifest.
    pub left_out: Option<String>,
}

impl Part {
    /// A file with this in it.
    pub fn new(name: &str, content: Result<impl Into<Vec<u8>>, String>) -> Part {
        Part {
            name: name.to_owned(),
            content: content.map(|content| Content::Bytes(content.into())),
            left_out: None,
        }
    }

    /// A file of the node.
    pub fn of_file(name: &str, path: PathBuf) -> Part {
        Part {
            name: name.to_owned(),
            content: Ok(Content::File(path)),
            left_out: None,
        }
    }

    /// The same, of which something was left out.
    #[must_use]
    pub fn without(self, left_out: Option<String>) -> Part {
        Part { left_out, ..self }
    }
}

/// Writes the archive with `parts` under `folder/` and a manifest with their digests. After `bytes_max` bytes
/// what is left of the parts is left out, and the manifest says so. Blocks.
///
/// # Errors
/// As the writer says.
pub fn write<W: Write>(
    writer: W,
    folder: &str,
    unix_s: u64,
    parts: Vec<Part>,
    bytes_max: u64,
) -> std::io::Result<W> {
    let encoder = zstd::stream::write::Encoder::new(writer, LEVEL)?;
    let mut archive = tar::Builder::new(encoder);
    let mut manifest = Vec::new();
    let mut room = bytes_max;
    for part in parts {
        let opened = part.content.and_then(|content| open(content, room));
        let (mut source, bytes) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                manifest.push(serde_json::json!({ "name": part.name, "missing": reason }));
                continue;
            }
        };
        let kept = bytes.min(room);
        room -= kept;
        let mut content = Exactly::new(&mut *source, kept);
        append(
            &mut archive,
            &format!("{folder}/{}", part.name),
            unix_s,
            kept,
            &mut content,
        )?;
        let mut entry = serde_json::json!({
            "name": part.name,
            "bytes": kept,
            "sha256": hexadecimal(content.digest.finish().as_ref()),
            "cut": kept < bytes,
        });
        if let Some(left_out) = part.left_out {
            entry["left_out"] = left_out.into();
        }
        if let Some(problem) = content.problem {
            entry["problem"] = problem.into();
        }
        manifest.push(entry);
    }
    let manifest = serde_json::json!({
        "made_unix_s": unix_s,
        "left_out": "private keys, the maintenance code, agent.api.key",
        "files": manifest,
    });
    let text = format!("{manifest:#}\n");
    append(
        &mut archive,
        &format!("{folder}/manifest.json"),
        unix_s,
        text.len() as u64,
        &mut text.as_bytes(),
    )?;
    archive.into_inner()?.finish()
}

/// A content to be read, and how many bytes of it are wanted.
fn open(content: Content, room: u64) -> Result<(Box<dyn Read>, u64), String> {
    let (source, bytes): (Box<dyn Read>, u64) = match content {
        Content::Bytes(bytes) => {
            let length = bytes.len() as u64;
            (Box::new(std::io::Cursor::new(bytes)), length)
        }
        Content::File(path) => {
            let opened = File::open(&path).and_then(|file| {
                let length = file.metadata()?.len();
                Ok((file, length))
            });
            let (file, length) = opened.map_err(|error| format!("it cannot be read: {error}"))?;
            (Box::new(file), length)
        }
    };
    if room == 0 && bytes > 0 {
        return Err("the bundle is as long as it may be".to_owned());
    }
    Ok((source, bytes))
}

/// So many bytes of a source and no others: the archive tells their number first. Where a source has fewer -
/// another program may have cut its file meanwhile - zeros follow.
struct Exactly<'a> {
    source: &'a mut dyn Read,
    left: u64,
    digest: ring::digest::Context,
    problem: Option<String>,
}

impl<'a> Exactly<'a> {
    fn new(source: &'a mut dyn Read, bytes: u64) -> Exactly<'a> {
        Exactly {
            source,
            left: bytes,
            digest: ring::digest::Context::new(&ring::digest::SHA256),
            problem: None,
        }
    }
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..wanted];
        let found = if self.problem.is_some() || wanted == 0 {
            Ok(0)
        } else {
            self.source.read(buffer)
        };
        let count = match found {
            Ok(0) | Err(_) if wanted > 0 => {
                let missing = self.left;
                self.problem.get_or_insert_with(|| match found {
                    Err(error) => {
                        format!("it cannot be read; {missing} zeros are in its place: {error}")
                    }
                    Ok(_) => {
                        format!("it became shorter meanwhile; its last {missing} bytes are zeros")
                    }
                });
                buffer.fill(0);
                wanted
            }
            Ok(count) => count,
            Err(error) => return Err(error),
        };
        self.digest.update(&buffer[..count]);
        self.left -= count as u64;
        Ok(count)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    unix_s: u64,
    bytes: u64,
    content: &mut dyn Read,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(unix_s);
    header.set_cksum();
    archive.append_data(&mut header, path, content)
}

/// A writer into a bounded channel: it waits for a slow reader and ends with one that went away.
#[derive(Debug)]
pub struct ChunkWriter {
    chunks: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl ChunkWriter {
    /// Writes into `chunks`. To be used off the runtime's threads.
    #[must_use]
    pub fn new(chunks: mpsc::Sender<Bytes>) -> ChunkWriter {
        ChunkWriter {
            chunks,
            buffer: Vec::with_capacity(CHUNK_BYTES),
        }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.chunks
            .blocking_send(chunk)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn unpacked(parts: Vec<Part>, bytes_max: u64) -> BTreeMap<String, String> {
        let bytes = write(Vec::new(), "node", 1_790_000_000, parts, bytes_max).unwrap();
        let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(&bytes[..]).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(name, text);
        }
        files
    }

    fn manifest(files: &BTreeMap<String, String>) -> serde_json::Value {
        serde_json::from_str(&files["node/manifest.json"]).unwrap()
    }

    #[test]
    fn a_bundle_is_cut_at_its_bound_and_says_what_is_not_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        std::fs::write(&path, "0123456789").unwrap();
        let parts = vec![
            Part::new("a", Ok("12345")).without(Some("the oldest lines".to_owned())),
            Part::of_file("core", path.clone()),
            Part::of_file("gone", folder.path().join("gone")),
            Part::of_file("late", path),
        ];
        let files = unpacked(parts, 12);
        assert_eq!(
            (&*files["node/a"], &*files["node/core"]),
            ("12345", "0123456")
        );
        assert!(!files.contains_key("node/late"));
        let manifest = manifest(&files);
        assert_eq!(manifest["files"][0]["left_out"], "the oldest lines");
        assert_eq!(manifest["files"][0]["cut"], false);
        assert_eq!(manifest["files"][1]["cut"], true);
        assert_eq!(manifest["files"][1]["sha256"], pki::sha256_hex(b"0123456"));
        let missing = |at: usize| manifest["files"][at]["missing"].as_str().unwrap();
        assert!(missing(2).contains("cannot be read"), "{manifest}");
        assert_eq!(missing(3), "the bundle is as long as it may be");
    }

    #[test]
    fn a_file_that_becomes_shorter_meanwhile_breaks_no_archive() {
        let mut source = &b"123"[..];
        let mut five = Exactly::new(&mut source, 5);
        let mut bytes = Vec::new();
        five.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"123\0\0");
        let problem = five.problem.unwrap();
        assert!(problem.ends_with("its last 2 bytes are zeros"), "{problem}");
    }

    #[test]
    fn a_bundle_unpacks_and_its_manifest_tells_what_is_in_it() {
        let parts = vec![
            Part::new("facts.json", Ok("{}")),
            Part::new(
                "logs/aditd.log",
                Err::<String, _>("init does not answer".to_owned()),
            ),
        ];
        let files = unpacked(parts, BUNDLE_BYTES_MAX);
        assert_eq!(files["node/facts.json"], "{}");
        let manifest = manifest(&files);
        assert_eq!(manifest["files"][0]["sha256"], pki::sha256_hex(b"{}"));
        assert_eq!(manifest["files"][1]["missing"], "init does not answer");
    }

    #[test]
    fn a_reader_that_went_away_ends_the_writing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        // What zstd cannot make small.
        let mut state = 1u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(1 << 20)
        .collect();
        let parts = vec![Part::new("x", Ok(noise))];
        assert!(write(ChunkWriter::new(sender), "n", 0, parts, BUNDLE_BYTES_MAX).is_err());
    }
}
