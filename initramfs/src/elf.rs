//! What a program needs of shared libraries, read from its file (ELF64, little-endian: System V ABI,
//! chapters 4 and 5), as `ldd` would run code of another distribution.

use crate::InitramfsError;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
const PROGRAM_HEADER_BYTES: usize = 56;

/// What the dynamic loader would look for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The loader itself, by its path.
    pub(crate) loader: Option<String>,
    /// Libraries, by their names.
    pub(crate) libraries: Vec<String>,
    /// Folders to look in first.
    pub(crate) folders: Vec<String>,
}

/// Reads what an ELF file needs; `None` for a file that is none, such as a script.
///
/// # Errors
///
/// When it is an ELF file of another kind, or damaged; `name` is for the message.
pub(crate) fn needs(name: &str, bytes: &[u8]) -> Result<Option<Needs>, InitramfsError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    if bytes.get(4..6) != Some(&[2, 1]) {
        let detail = "it is no program for this kind of machine (ELF64, little-endian)";
        return Err(InitramfsError::damaged(name, detail));
    }
    let found = File(bytes).needs();
    let found = found.ok_or_else(|| InitramfsError::damaged(name, "its ELF headers are damaged"));
    found.map(Some)
}

struct File<'a>(&'a [u8]);

struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    bytes: usize,
}

impl File<'_> {
    fn number<const BYTES: usize>(&self, at: usize) -> Option<[u8; BYTES]> {
        self.0.get(at..at.checked_add(BYTES)?)?.try_into().ok()
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.number(at).map(u64::from_le_bytes)
    }

    fn size(&self, at: usize) -> Option<usize> {
        usize::try_from(self.u64(at)?).ok()
    }

    fn text(&self, at: usize) -> Option<String> {
        let rest = self.0.get(at..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        String::from_utf8(rest[..end].to_vec()).ok()
    }

    fn segments(&self) -> Option<Vec<Segment>> {
        let (table, count) = (self.size(32)?, u16::from_le_bytes(self.number(56)?));
        (0..usize::from(count))
            .map(|index| {
                let at = table.checked_add(index * PROGRAM_HEADER_BYTES)?;
                Some(Segment {
                    kind: u32::from_le_bytes(self.number(at)?),
                    offset: self.size(at.checked_add(8)?)?,
                    address: self.u64(at.checked_add(16)?)?,
                    bytes: self.size(at.checked_add(32)?)?,
                })
            })
            .collect()
    }

    fn needs(&self) -> Option<Needs> {
        let segments = self.segments()?;
        let mut needs = Needs::default();
        let (mut strings, mut names, mut folders) = (None, Vec::new(), Vec::new());
        for segment in &segments {
            match segment.kind {
                PT_INTERP => needs.loader = Some(self.text(segment.offset)?),
                PT_DYNAMIC => {
                    let end = segment.offset.checked_add(segment.bytes)?;
                    for at in (segment.offset..end).step_by(16) {
                        let (tag, value) = (self.u64(at)?, self.u64(at.checked_add(8)?)?);
                        match tag {
                            0 => break,
                            DT_STRTAB => strings = Some(value),
                            DT_NEEDED => names.push(value),
                            DT_RPATH | DT_RUNPATH => folders.push(value),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if names.is_empty() {
            return Some(needs);
        }
        // The table of strings is told by its address in memory.
        let strings = strings?;
        let home = segments.iter().find(|segment| {
            let inside = strings.checked_sub(segment.address);
            segment.kind == PT_LOAD && inside.is_some_and(|at| at < segment.bytes as u64)
        })?;
        let start = usize::try_from(strings - home.address).ok()?;
        let start = start.checked_add(home.offset)?;
        let text = |offset: u64| self.text(start.checked_add(usize::try_from(offset).ok()?)?);
        for offset in names {
            needs.libraries.push(text(offset)?);
        }
        for offset in folders {
            let list = text(offset)?;
            needs.folders.extend(list.split(':').map(str::to_owned));
        }
        Some(needs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with a loader, a library and a folder to look in.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 64 + 3 * PROGRAM_HEADER_BYTES];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[56] = 3;
        let loader = bytes.len();
        bytes.extend(b"/lib64/ld.so\0");
        let strings = bytes.len();
        bytes.extend(b"\0libc.so.6\0/opt/a:/opt/b\0");
        let dynamic = bytes.len();
        let base = 0x1000;
        for (tag, value) in [
            (DT_NEEDED, 1),
            (DT_RUNPATH, 11),
            (DT_STRTAB, base + strings as u64),
            (0, 0),
        ] {
            bytes.extend(u64::to_le_bytes(tag));
            bytes.extend(u64::to_le_bytes(value));
        }
        let all = bytes.len();
        let headers = [
            (PT_INTERP, loader, 0, 13),
            (PT_LOAD, 0, base, all),
            (PT_DYNAMIC, dynamic, 0, 64),
        ];
        for (index, (kind, offset, address, size)) in headers.into_iter().enumerate() {
            let at = 64 + index * PROGRAM_HEADER_BYTES;
            bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&(offset as u64).to_le_bytes());
            bytes[at + 16..at + 24].copy_from_slice(&address.to_le_bytes());
            bytes[at + 32..at + 40].copy_from_slice(&(size as u64).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn loader_libraries_and_folders_are_found() {
        let found = needs("sample", &sample()).unwrap().unwrap();
        assert_eq!(found.loader.as_deref(), Some("/lib64/ld.so"));
        assert_eq!(found.libraries, ["libc.so.6"]);
        assert_eq!(found.folders, ["/opt/a", "/opt/b"]);
    }

    #[test]
    fn this_very_program_needs_the_c_library() {
        let own = std::env::current_exe().unwrap();
        let found = needs("own", &std::fs::read(own).unwrap()).unwrap().unwrap();
        let names = &found.libraries;
        assert!(
            names.iter().any(|name| name.starts_with("libc.so")),
            "{names:?}"
        );
    }

    #[test]
    fn a_script_needs_nothing_and_another_machine_is_told() {
        assert_eq!(needs("script", b"#!/bin/sh\n").unwrap(), None);
        assert!(needs("small", b"\x7fELF\x01\x01").is_err());
    }

    #[test]
    fn a_file_that_is_cut_short_never_panics() {
        let bytes = sample();
        for end in 0..bytes.len() - 16 {
            assert!(
                !needs("cut", &bytes[..end]).is_ok_and(|found| found.is_some()),
                "{end}"
            );
        }
    }

    proptest! {
        #[test]
        fn random_changes_never_panic(
            changes in proptest::collection::vec((4..420_usize, any::<u8>()), 1..16)
        ) {
            let mut bytes = sample();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at.max(6)] = byte;
            }
            let _ = needs("random", &bytes);
        }
    }
}
