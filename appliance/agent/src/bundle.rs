//! The support bundle: a tar.zst with all that is needed to understand a node. No keys and no codes
//! are in it.

use std::io::Write;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Longest file in a bundle, in bytes; a longer one is cut, and the manifest says so.
const FILE_BYTES_MAX: usize = 32 << 20;
/// Bytes of one message of the stream.
const CHUNK_BYTES: usize = 64 << 10;
/// Of zstd: fast, and most of the gain for logs.
const LEVEL: i32 = 3;

/// One file of a bundle, or why it is not there.
#[derive(Debug)]
pub struct Part {
    /// Its name in the archive.
    pub name: String,
    /// What it holds.
    pub content: Result<Vec<u8>, String>,
}

impl Part {
    /// A file.
    pub fn new(name: &str, content: Result<impl Into<Vec<u8>>, String>) -> Part {
        Part {
            name: name.to_owned(),
            content: content.map(Into::into),
        }
    }
}

/// Writes the archive with `parts` under `folder/` and a manifest with their digests. Blocks.
///
/// # Errors
/// As the writer says.
pub fn write<W: Write>(
    writer: W,
    folder: &str,
    unix_s: u64,
    parts: Vec<Part>,
) -> std::io::Result<W> {
    let encoder = zstd::stream::write::Encoder::new(writer, LEVEL)?;
    let mut archive = tar::Builder::new(encoder);
    let mut manifest = Vec::new();
    for part in parts {
        let name = part.name;
        let entry = match part.content {
            Ok(mut content) => {
                let is_cut = content.len() > FILE_BYTES_MAX;
                content.truncate(FILE_BYTES_MAX);
                append(&mut archive, &format!("{folder}/{name}"), unix_s, &content)?;
                serde_json::json!({
                    "name": name,
                    "bytes": content.len(),
                    "sha256": pki::sha256_hex(&content),
                    "cut": is_cut,
                })
            }
            Err(reason) => serde_json::json!({ "name": name, "missing": reason }),
        };
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
        text.as_bytes(),
    )?;
    archive.into_inner()?.finish()
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    unix_s: u64,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
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
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_bundle_unpacks_and_its_manifest_tells_what_is_in_it() {
        let parts = vec![
            Part::new("facts.json", Ok("{}")),
            Part::new(
                "logs/aditd.log",
                Err::<String, _>("init does not answer".to_owned()),
            ),
        ];
        let bytes = write(Vec::new(), "node", 1_790_000_000, parts).unwrap();
        let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(&bytes[..]).unwrap());
        let mut files = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(name, text);
        }
        assert_eq!(files["node/facts.json"], "{}");
        let manifest: serde_json::Value =
            serde_json::from_str(&files["node/manifest.json"]).unwrap();
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
        assert!(write(ChunkWriter::new(sender), "n", 0, parts).is_err());
    }
}
