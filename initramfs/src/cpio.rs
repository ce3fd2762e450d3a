//! Archives in cpio's "newc" format, which the kernel unpacks as its first root.
//!
//! Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::fmt::Write as _;

use crate::InitramfsError;

/// A folder, among the bits of a mode.
pub const MODE_DIRECTORY: u32 = 0o040_000;
/// A file.
pub const MODE_REGULAR: u32 = 0o100_000;
/// A symbolic link.
pub const MODE_LINK: u32 = 0o120_000;

const HEADER_BYTES: usize = 110;
const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written. Owner and time of everything are 0, inodes count up: the same
/// entries are the same bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Appends one entry. `mode` has the kind of file in it; `device`, major and minor number,
    /// matters to device nodes only.
    ///
    /// # Panics
    ///
    /// When the content has 4 GiB or more: the format has no room for its length.
    pub fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a boot file is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let (major, minor) = device;
        // Inode, mode, uid, gid, links, mtime, size, device of the file (2), device (2), name size,
        // checksum.
        let inode = self.entries;
        let fields = [
            inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        self.bytes.extend_from_slice(MAGIC);
        let mut header = String::new();
        for field in fields {
            write!(header, "{field:08x}").expect("a String takes everything");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole of it.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.add(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }
}

/// One entry of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its path.
    pub name: &'a str,
    /// Kind and permissions.
    pub mode: u32,
    /// Bytes of a file, target of a link.
    pub content: &'a [u8],
}

/// Reads an archive, or several one after the other, with zeroes in between.
///
/// # Errors
///
/// When it is cut short or no archive in this format.
pub fn read(bytes: &[u8]) -> Result<Vec<Member<'_>>, InitramfsError> {
    let mut members = Vec::new();
    let mut at = 0;
    let mut is_whole = false;
    while at < bytes.len() {
        // Archives are padded; the format asks for an alignment of four.
        if bytes[at] == 0 {
            at += 1;
            continue;
        }
        let wrong =
            |what: &str| InitramfsError::damaged("cpio archive", format!("{what} at offset {at}"));
        let header = bytes
            .get(at..at + HEADER_BYTES)
            .filter(|header| header.starts_with(MAGIC))
            .ok_or_else(|| wrong("no header"))?;
        let field = |index: usize| -> Option<usize> {
            let digits = &header[6 + 8 * index..14 + 8 * index];
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let number = |index| field(index).ok_or_else(|| wrong("no hexadecimal number"));
        let (mode, size, name_size) = (number(1)?, number(6)?, number(11)?);
        let name_at = at + HEADER_BYTES;
        let content_at = (name_at + name_size).next_multiple_of(4);
        let name = bytes
            .get(name_at..name_at + name_size)
            .and_then(|name| name.strip_suffix(&[0]))
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or_else(|| wrong("no name"))?;
        let content = bytes
            .get(content_at..content_at + size)
            .ok_or_else(|| wrong("the content ends early"))?;
        is_whole = name == TRAILER;
        if !is_whole {
            let mode = u32::try_from(mode).expect("eight hexadecimal digits");
            members.push(Member {
                name,
                mode,
                content,
            });
        }
        at = (content_at + size).next_multiple_of(4);
    }
    if is_whole {
        return Ok(members);
    }
    Err(InitramfsError::damaged("cpio archive", "it has no end"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.add("dev", MODE_DIRECTORY | 0o755, (0, 0), &[]);
        archive.add("init", MODE_REGULAR | 0o755, (0, 0), b"hello");
        archive.finish()
    }

    #[test]
    fn an_entry_is_a_header_a_name_and_padded_content() {
        let mut archive = Archive::default();
        archive.add("init", MODE_REGULAR | 0o755, (0, 0), b"hello");
        let text = String::from_utf8(archive.bytes).unwrap();
        // 110 bytes of header, "init\0" and a byte of padding, "hello" and three.
        assert_eq!(text.len(), 116 + 8);
        assert!(text.starts_with("07070100000001000081ed"));
        assert_eq!(&text[54..62], "00000005");
        assert_eq!(&text[94..102], "00000005");
        assert!(text.ends_with("init\0\0hello\0\0\0"));
    }

    #[test]
    fn an_archive_ends_with_the_trailer() {
        let archive = Archive::default().finish();
        assert_eq!(archive.len() % 4, 0);
        assert!(String::from_utf8(archive).unwrap().contains("TRAILER!!!\0"));
    }

    #[test]
    fn archives_one_after_the_other_are_read_as_the_kernel_does() {
        let mut bytes = sample();
        bytes.extend([0; 512]);
        bytes.extend(sample());
        let members = read(&bytes).unwrap();
        assert_eq!(members.len(), 4);
        assert_eq!(members[3].name, "init");
        assert_eq!(members[3].content, b"hello");
        assert_eq!(members[0].mode, MODE_DIRECTORY | 0o755);
    }

    #[test]
    fn an_archive_that_is_cut_short_is_refused() {
        let bytes = sample();
        // The last three bytes are padding.
        for end in 1..bytes.len() - 3 {
            assert!(read(&bytes[..end]).is_err(), "{end} bytes");
        }
        assert!(read(b"").is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
            let mut behind = sample();
            let at = behind.len().min(7 + bytes.len());
            for (old, new) in behind[6..at - 1].iter_mut().zip(&bytes) {
                *old = *new;
            }
            let _ = read(&behind);
        }
    }
}
