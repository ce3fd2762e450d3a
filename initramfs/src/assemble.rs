//! Puts a tree together from the description, cargo's programs and the tools root.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::description::{Description, Module, mode};
use crate::tree::{Content, Entry, Origin, Tree};
use crate::{InitramfsError, Kernel, Profile, elf, kernel_modules};

/// Where Debian keeps shared libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Most links from one to the other.
const LINKS_MAX: u32 = 16;
/// Largest tree that is unpacked, for a bound.
const UNPACKED_MAX: u64 = 2 << 30;

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Its version.
    pub version: String,
    /// Seconds since 1970: no clock of a node runs behind it. The time of the commit, so that the same
    /// sources are the same bytes.
    pub made_unix_s: i64,
}

impl Stamp {
    /// The stamp of a checkout: version and commit; `SOURCE_DATE_EPOCH` overrules the time.
    #[must_use]
    pub fn of_checkout(folder: &Path) -> Self {
        let git = |format: &str| {
            let mut command = Command::new("git");
            command.arg("-C").arg(folder).args(["log", "-1"]);
            let output = command.arg(format!("--format={format}")).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            (output.status.success() && !text.is_empty()).then_some(text)
        };
        let own = env!("CARGO_PKG_VERSION");
        let commit = git("%h").map(|hash| format!("+g{hash}"));
        let time = std::env::var("SOURCE_DATE_EPOCH")
            .ok()
            .or_else(|| git("%ct"));
        Self {
            version: format!("{own}{}", commit.unwrap_or_default()),
            made_unix_s: time.and_then(|text| text.parse().ok()).unwrap_or(0),
        }
    }
}

/// Where the parts of an image are.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The project's folder `image/`.
    pub image: PathBuf,
    /// What `qemu-tests/guest/make-root` printed.
    pub tools: PathBuf,
    /// Where cargo put the programs.
    pub programs: PathBuf,
    /// Which image.
    pub profile: Profile,
    /// What it says of itself.
    pub stamp: Stamp,
}

/// A tree, and the kernel for it.
#[derive(Debug, Clone)]
pub struct Assembled {
    /// The files.
    pub tree: Tree,
    /// The kernel.
    pub kernel: Kernel,
    /// Files of the tools root that are in the tree, by their paths there.
    pub debian: BTreeSet<String>,
    /// Programs of the project that are in the tree.
    pub programs: Vec<String>,
}

/// Puts the tree together.
///
/// # Errors
///
/// When the description is wrong, or something that it names is not there.
pub fn assemble(sources: &Sources) -> Result<Assembled, InitramfsError> {
    let description = Description::read(&sources.image, sources.profile)?;
    let mut assembly = Assembly {
        tree: Tree::default(),
        root: sources.tools.join("root"),
        debian: BTreeSet::new(),
    };
    for folder in &description.folder {
        let mode = mode(folder.mode.as_deref(), 0o755)?;
        assembly.add(&folder.path, mode, Content::Folder, Origin::Made)?;
    }
    for link in &description.link {
        for path in &link.paths {
            let content = Content::Link(link.to.clone());
            assembly.add(path, 0o777, content, Origin::Made)?;
        }
    }
    let mut programs = Vec::new();
    for program in &description.program {
        let path = sources.programs.join(&program.name);
        if !path.is_file() {
            let (name, folder) = (program.name.clone(), sources.programs.clone());
            return Err(InitramfsError::Program { name, folder });
        }
        let bytes = stripped(&path)?;
        assembly.libraries_of(&program.name, &bytes)?;
        let content = Content::File(bytes);
        assembly.add(&program.path, 0o755, content, Origin::Program)?;
        programs.push(program.name.clone());
    }
    for debian in &description.debian {
        assembly.debian(&debian.path)?;
    }
    for library in &description.library {
        assembly.library(&library.name, "tree.toml", &[])?;
    }
    for file in &description.file {
        let path = sources.image.join("files").join(&file.source);
        let bytes = fs::read(&path).map_err(InitramfsError::file("read", &path))?;
        let mode = mode(file.mode.as_deref(), 0o644)?;
        assembly.add(&file.path, mode, Content::File(bytes), Origin::Project)?;
    }
    let kernel = Kernel::find(&sources.tools)?;
    let names: Vec<String> = description
        .module
        .iter()
        .map(|module| module.name.clone())
        .collect();
    kernel_modules::add(&mut assembly.tree, &kernel, &names)?;
    assembly.made(sources, &description)?;
    Ok(Assembled {
        tree: assembly.tree,
        kernel,
        debian: assembly.debian,
        programs,
    })
}

struct Assembly {
    tree: Tree,
    root: PathBuf,
    debian: BTreeSet<String>,
}

impl Assembly {
    fn add(
        &mut self,
        path: &str,
        mode: u32,
        content: Content,
        origin: Origin,
    ) -> Result<(), InitramfsError> {
        let entry = Entry {
            mode,
            content,
            origin,
        };
        self.tree.add(path.trim_start_matches('/'), entry)
    }

    /// A file of the tools root, through links, with the libraries that it needs.
    fn debian(&mut self, path: &str) -> Result<(), InitramfsError> {
        let (wanted, root) = (path.to_owned(), self.root.clone());
        let missing = || InitramfsError::Missing {
            path: wanted.clone(),
            root: root.clone(),
        };
        let mut path = self.resolved(path).ok_or_else(missing)?;
        for _ in 0..LINKS_MAX {
            if !self.debian.insert(path.clone()) {
                return Ok(());
            }
            let Ok(to) = fs::read_link(self.root.join(&path)) else {
                break;
            };
            let to = to.display().to_string();
            let (folder, _) = path.rsplit_once('/').unwrap_or(("", &path));
            let next = if to.starts_with('/') {
                to.clone()
            } else {
                format!("{folder}/{to}")
            };
            let next = self.resolved(&next).ok_or_else(missing)?;
            self.add(&path, 0o777, Content::Link(to), Origin::Debian)?;
            path = next;
        }
        let file = self.root.join(&path);
        let bytes = fs::read(&file).map_err(InitramfsError::file("read", &file))?;
        self.libraries_of(&path, &bytes)?;
        let mode = if bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"#!") {
            0o755
        } else {
            0o644
        };
        self.add(&path, mode, Content::File(bytes), Origin::Debian)
    }

    /// The path without links among its folders, `.` and `..`, in the tools root.
    fn resolved(&self, path: &str) -> Option<String> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let root = self.root.canonicalize().ok()?;
        let folder = folder.trim_start_matches('/');
        let folder = root.join(folder).canonicalize().ok()?;
        let inside = folder.strip_prefix(&root).ok()?.join(name);
        let there = root.join(&inside).symlink_metadata().is_ok();
        there.then(|| inside.display().to_string())
    }

    fn libraries_of(&mut self, name: &str, bytes: &[u8]) -> Result<(), InitramfsError> {
        let Some(needs) = elf::needs(name, bytes)? else {
            return Ok(());
        };
        if let Some(loader) = &needs.loader {
            self.debian(loader)?;
        }
        for library in &needs.libraries {
            self.library(library, name, &needs.folders)?;
        }
        Ok(())
    }

    fn library(
        &mut self,
        name: &str,
        wanted_by: &str,
        folders: &[String],
    ) -> Result<(), InitramfsError> {
        // The loader is a library of the C library too.
        let usual = [LIBRARIES.to_owned(), "usr/lib64".to_owned()];
        let mut places = folders.iter().chain(&usual);
        let found = places.find_map(|folder| {
            let path = format!("{}/{name}", folder.trim_matches('/'));
            self.resolved(&path)
        });
        let Some(path) = found else {
            return Err(InitramfsError::Library {
                name: name.to_owned(),
                wanted_by: wanted_by.to_owned(),
                root: self.root.clone(),
            });
        };
        self.debian(&path)
    }

    /// What is made for this image: its version, the list of modules, services, configuration.
    fn made(&mut self, sources: &Sources, description: &Description) -> Result<(), InitramfsError> {
        let Stamp {
            version,
            made_unix_s,
        } = &sources.stamp;
        let profile = sources.profile.word();
        let image = format!(
            "version = \"{version}\"\nprofile = \"{profile}\"\nslot = \"net\"\n\
             made_unix_s = {made_unix_s}\n"
        );
        let release = format!(
            "NAME=\"Adit\"\nID=adit\nID_LIKE=debian\nVERSION_ID=\"{version}\"\n\
             PRETTY_NAME=\"Adit {version} ({profile})\"\nVARIANT_ID={profile}\n"
        );
        let config = toml::to_string(&description.config).map_err(|error| wrong(&error))?;
        let services = self.services(description)?;
        for (path, text) in [
            ("etc/adit/image.toml", image),
            ("usr/lib/os-release", release),
            ("etc/adit/modules", modules(&description.module)),
            ("etc/adit/services.toml", services),
            ("etc/adit/config.toml", config),
        ] {
            let content = Content::File(text.into_bytes());
            self.add(path, 0o644, content, Origin::Made)?;
        }
        Ok(())
    }

    /// The table of services.
    fn services(&self, description: &Description) -> Result<String, InitramfsError> {
        let mut table = Vec::new();
        for service in &description.service {
            let program = service.get("program").and_then(toml::Value::as_str);
            let path = program.unwrap_or_default().trim_start_matches('/');
            if self.tree.get(path).is_none() {
                let detail = format!("the image has no program {program:?} for a service");
                return Err(wrong(&detail));
            }
            table.push(toml::Value::Table(service.clone()));
        }
        let all = toml::Table::from_iter([("service".to_owned(), toml::Value::Array(table))]);
        toml::to_string(&all).map_err(|error| wrong(&error))
    }
}

fn wrong(error: &dyn std::fmt::Display) -> InitramfsError {
    InitramfsError::Description {
        path: "tree.toml".into(),
        detail: error.to_string(),
    }
}

/// The list that process 1 loads.
fn modules(modules: &[Module]) -> String {
    let mut text = String::new();
    for module in modules.iter().filter(|module| !module.unlisted) {
        let mark = match (module.device, module.optional) {
            (true, _) => "@",
            (false, true) => "?",
            (false, false) => "",
        };
        let _ = writeln!(text, "{mark}{}", module.name);
    }
    text
}

/// A program without what only a debugger reads; the names of functions stay, for backtraces.
fn stripped(program: &Path) -> Result<Vec<u8>, InitramfsError> {
    let failed = |detail: String| InitramfsError::Tool {
        program: "strip",
        detail,
    };
    let folder = std::env::temp_dir().join(format!("adit-strip-{}", std::process::id()));
    let small = folder.with_extension(program.file_name().unwrap_or_default());
    let done = Command::new("strip")
        .args(["--strip-debug", "--preserve-dates", "-o"])
        .args([&small, program])
        .stdin(Stdio::null())
        .output();
    let done = done.map_err(|error| failed(format!("{error}; install binutils")))?;
    if !done.status.success() {
        return Err(failed(String::from_utf8_lossy(&done.stderr).into_owned()));
    }
    let bytes = fs::read(&small).map_err(InitramfsError::file("read", &small));
    let _ = fs::remove_file(&small);
    bytes
}

/// Compresses an archive as the kernel unpacks it (zstd).
///
/// # Errors
///
/// When the compressor refuses.
pub fn compress(archive: &[u8], level: i32) -> Result<Vec<u8>, InitramfsError> {
    let done = zstd::bulk::compress(archive, level);
    done.map_err(|error| InitramfsError::damaged("initramfs", error.to_string()))
}

/// Unpacks what [`compress`] or mkosi made; an archive that is not compressed stays as it is.
///
/// # Errors
///
/// When it is damaged, or larger than any image.
pub fn decompress(bytes: &[u8]) -> Result<Vec<u8>, InitramfsError> {
    if bytes.starts_with(b"070701") {
        return Ok(bytes.to_vec());
    }
    let failed =
        |error: std::io::Error| InitramfsError::damaged("initramfs", format!("no zstd: {error}"));
    let mut archive = Vec::new();
    let reader = zstd::stream::read::Decoder::new(bytes).map_err(failed)?;
    let read = reader.take(UNPACKED_MAX).read_to_end(&mut archive);
    read.map_err(failed)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_modules_says_which_a_machine_may_do_without() {
        let module = |name: &str, optional, device, unlisted| Module {
            name: name.to_owned(),
            optional,
            device,
            unlisted,
            profile: None,
        };
        let list = [
            module("vfio-pci", false, false, false),
            module("button", true, false, false),
            module("e1000e", false, true, false),
            module("nvme", false, false, true),
        ];
        assert_eq!(modules(&list), "vfio-pci\n?button\n@e1000e\n");
    }

    #[test]
    fn an_archive_survives_compression_and_garbage_is_refused() {
        let archive = Tree::default().archive();
        let small = compress(&archive, 3).unwrap();
        assert_eq!(decompress(&small).unwrap(), archive);
        assert_eq!(decompress(&archive).unwrap(), archive);
        assert!(decompress(b"garbage").is_err());
        assert!(decompress(&small[..small.len() - 4]).is_err());
    }
}
