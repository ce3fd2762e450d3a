//! A tree of files in memory: what an image holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::InitramfsError;
use crate::cpio::{Archive, MODE_DIRECTORY, MODE_LINK, MODE_REGULAR};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A folder.
    Folder,
    /// A file with these bytes.
    File(Vec<u8>),
    /// A symbolic link to this.
    Link(String),
}

/// Where an entry comes from, which decides what the manifest holds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The project's `image/`: the manifest holds its size.
    Project,
    /// A program of the project: its size changes with every compiler.
    Program,
    /// A package of Debian: its size changes with every update.
    Debian,
    /// The Linux kernel package, its modules.
    Kernel,
    /// Made for this image: version, lists.
    Made,
}

impl Origin {
    /// Its word in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Program => "program",
            Self::Debian => "debian",
            Self::Kernel => "kernel",
            Self::Made => "made",
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub content: Content,
    /// Where it comes from.
    pub origin: Origin,
}

/// Entries by path, without a leading slash, parents before children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds an entry, and the folders that it is in. The same file twice is one.
    ///
    /// # Errors
    ///
    /// When the path is not relative and plain, goes through a link or a file, or is there with
    /// another content.
    pub fn add(&mut self, path: &str, entry: Entry) -> Result<(), InitramfsError> {
        let wrong = |reason| InitramfsError::Path {
            path: path.to_owned(),
            reason,
        };
        if path.is_empty() || path.split('/').any(|part| ["", ".", ".."].contains(&part)) {
            return Err(wrong("it must be relative, without . and .. and //"));
        }
        for (at, _) in path.match_indices('/') {
            let folder = Entry {
                mode: 0o755,
                content: Content::Folder,
                origin: Origin::Made,
            };
            let above = self.entries.entry(path[..at].to_owned()).or_insert(folder);
            if above.content != Content::Folder {
                return Err(wrong("what it is in is no folder"));
            }
        }
        match self.entries.get(path) {
            // A folder that had to be is given its mode.
            Some(old) if old.content == entry.content && old.content == Content::Folder => {}
            Some(old) if old.content == entry.content && old.mode == entry.mode => return Ok(()),
            Some(_) => return Err(wrong("it is there twice, with different contents")),
            None => {}
        }
        self.entries.insert(path.to_owned(), entry);
        Ok(())
    }

    /// The entries, in their order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (&**path, entry))
    }

    /// An entry.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The bytes of a file.
    #[must_use]
    pub fn bytes(&self, path: &str) -> Option<&[u8]> {
        match &self.entries.get(path)?.content {
            Content::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// A cpio archive of it, the same bytes for the same tree.
    #[must_use]
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Archive::default();
        for (path, entry) in &self.entries {
            match &entry.content {
                Content::Folder => archive.add(path, MODE_DIRECTORY | entry.mode, (0, 0), &[]),
                Content::File(bytes) => {
                    archive.add(path, MODE_REGULAR | entry.mode, (0, 0), bytes);
                }
                Content::Link(to) => {
                    archive.add(path, MODE_LINK | 0o777, (0, 0), to.as_bytes());
                }
            }
        }
        archive.finish()
    }

    /// The tree that an archive holds; what comes later replaces what was before, as in the kernel.
    ///
    /// # Errors
    ///
    /// When it is no archive, or holds a device.
    pub fn from_archive(bytes: &[u8]) -> Result<Self, InitramfsError> {
        let mut tree = Self::default();
        for member in crate::cpio::read(bytes)? {
            let path = member.name.trim_start_matches("./").trim_matches('/');
            if path.is_empty() || path == "." {
                continue;
            }
            let content = match member.mode & 0o170_000 {
                MODE_DIRECTORY => Content::Folder,
                MODE_REGULAR => Content::File(member.content.to_vec()),
                MODE_LINK => Content::Link(String::from_utf8_lossy(member.content).into_owned()),
                _ => return Err(InitramfsError::damaged(path, "it is a device or a pipe")),
            };
            let entry = Entry {
                mode: member.mode & 0o7777,
                content,
                origin: Origin::Made,
            };
            tree.entries.insert(path.to_owned(), entry);
        }
        Ok(tree)
    }

    /// Writes it below a folder, which must be empty or not be there.
    ///
    /// # Errors
    ///
    /// When something cannot be written.
    pub fn write_to(&self, folder: &Path) -> Result<(), InitramfsError> {
        let made = fs::create_dir_all(folder);
        made.map_err(InitramfsError::file("make", folder))?;
        for (path, entry) in &self.entries {
            let path = folder.join(path);
            let done = match &entry.content {
                Content::Folder => fs::create_dir(&path),
                Content::File(bytes) => fs::write(&path, bytes),
                Content::Link(to) => symlink(to, &path),
            };
            done.map_err(InitramfsError::file("write", &path))?;
            if !matches!(entry.content, Content::Link(_)) {
                let mode = fs::Permissions::from_mode(entry.mode);
                let done = fs::set_permissions(&path, mode);
                done.map_err(InitramfsError::file("set the mode of", &path))?;
            }
        }
        Ok(())
    }

    /// A line for each entry: origin, mode, size where the project decides it, path, link target.
    /// The kernel's release is `KERNEL`, so that an update of it changes nothing here.
    #[must_use]
    pub fn manifest(&self, release: &str) -> String {
        let mut text = String::new();
        for (path, entry) in &self.entries {
            let path = path.replace(release, "KERNEL");
            let (kind, size, to) = match &entry.content {
                Content::Folder => ('d', "-".to_owned(), String::new()),
                Content::Link(to) => ('l', "-".to_owned(), format!(" -> {to}")),
                Content::File(bytes) if entry.origin == Origin::Project => {
                    ('f', bytes.len().to_string(), String::new())
                }
                Content::File(_) => ('f', "-".to_owned(), String::new()),
            };
            let word = entry.origin.word();
            let _ = writeln!(
                text,
                "{word:7} {kind} {:04o} {size:>6} {path}{to}",
                entry.mode
            );
        }
        text
    }

    /// A line for each path that is here only, there only, or different, but for those excepted; a
    /// path that is excepted takes what is below it along. Owners of entries do not matter.
    #[must_use]
    pub fn difference(&self, other: &Self, except: &[String]) -> String {
        let paths: BTreeSet<&String> = self.entries.keys().chain(other.entries.keys()).collect();
        let is_excepted = |path: &str| {
            except.iter().any(|each| {
                path.strip_prefix(&**each)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let mut text = String::new();
        for path in paths.into_iter().filter(|path| !is_excepted(path)) {
            let line = match (self.entries.get(path), other.entries.get(path)) {
                (Some(_), None) => "only in the first",
                (None, Some(_)) => "only in the second",
                (Some(one), Some(two)) if one.content != two.content => "other content",
                // The mode of a link means nothing.
                (Some(one), Some(two))
                    if one.mode != two.mode && !matches!(one.content, Content::Link(_)) =>
                {
                    "other mode"
                }
                _ => continue,
            };
            let _ = writeln!(text, "{line}: {path}");
        }
        text
    }

    /// What takes the room: bytes by origin, and the largest files.
    #[must_use]
    pub fn sizes(&self, largest: usize) -> String {
        let mut by_origin: BTreeMap<Origin, (usize, usize)> = BTreeMap::new();
        let mut files = Vec::new();
        for (path, entry) in &self.entries {
            if let Content::File(bytes) = &entry.content {
                let sum = by_origin.entry(entry.origin).or_default();
                *sum = (sum.0 + 1, sum.1 + bytes.len());
                files.push((bytes.len(), path));
            }
        }
        files.sort_by_key(|(bytes, path)| (usize::MAX - bytes, *path));
        let mut text = String::new();
        for (origin, (count, bytes)) in by_origin {
            let word = origin.word();
            let _ = writeln!(
                text,
                "{:8} KiB  {word}, {count} files",
                bytes.div_ceil(1024)
            );
        }
        for (bytes, path) in files.into_iter().take(largest) {
            let _ = writeln!(text, "{:8} KiB    {path}", bytes.div_ceil(1024));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> Entry {
        Entry {
            mode: 0o644,
            content: Content::File(bytes.to_vec()),
            origin: Origin::Project,
        }
    }

    fn link(to: &str) -> Entry {
        Entry {
            mode: 0o777,
            content: Content::Link(to.to_owned()),
            origin: Origin::Made,
        }
    }

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.add("usr/bin/b", file(b"hello")).unwrap();
        tree.add("bin", link("usr/bin")).unwrap();
        tree.add("usr/lib/modules/6.12.1/x.ko", file(b"")).unwrap();
        tree
    }

    #[test]
    fn a_tree_survives_its_archive_and_the_bytes_are_the_same() {
        let tree = sample();
        let bytes = tree.archive();
        assert_eq!(bytes, sample().archive());
        let again = Tree::from_archive(&bytes).unwrap();
        let plain = |tree: &Tree| -> Vec<(String, u32, Content)> {
            let entries = tree.entries();
            entries
                .map(|(path, entry)| (path.to_owned(), entry.mode, entry.content.clone()))
                .collect()
        };
        assert_eq!(plain(&tree), plain(&again));
    }

    #[test]
    fn paths_that_leave_the_tree_or_go_through_a_link_are_refused() {
        let mut tree = sample();
        for path in ["", "/etc", "a//b", "../x", "a/.", "bin/c", "usr/bin/b/c"] {
            assert!(tree.add(path, file(b"")).is_err(), "{path}");
        }
        assert!(tree.add("usr/bin/b", file(b"other")).is_err());
        tree.add("usr/bin/b", file(b"hello")).unwrap();
    }

    #[test]
    fn the_manifest_holds_what_the_project_decides_and_no_kernel_version() {
        let text = sample().manifest("6.12.1");
        assert!(text.contains("project f 0644      5 usr/bin/b\n"), "{text}");
        assert!(
            text.contains("made    l 0777      - bin -> usr/bin\n"),
            "{text}"
        );
        assert!(text.contains("usr/lib/modules/KERNEL/x.ko"), "{text}");
    }

    #[test]
    fn two_trees_differ_in_what_is_told_and_not_in_what_is_excepted() {
        let mut other = sample();
        assert_eq!(sample().difference(&other, &[]), "");
        other.add("etc/new/file", file(b"x")).unwrap();
        other.entries.get_mut("usr/bin/b").unwrap().mode = 0o600;
        let text = sample().difference(&other, &["etc".to_owned()]);
        assert_eq!(text, "other mode: usr/bin/b\n");
        let text = sample().difference(&other, &["usr/bin".to_owned()]);
        assert_eq!(text.matches("only in the second").count(), 3, "{text}");
    }

    #[test]
    fn a_tree_is_written_to_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        sample().write_to(&root).unwrap();
        assert_eq!(fs::read(root.join("bin/b")).unwrap(), b"hello");
        assert!(sample().write_to(&root).is_err(), "it is there already");
    }
}
