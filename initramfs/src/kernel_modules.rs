//! Kernel modules of a list with what they depend on, and the indexes that `adit-init` reads, cut down
//! to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::tree::{Content, Entry, Origin, Tree};
use crate::{InitramfsError, Kernel};

/// Below the root, as everywhere since `/usr` was merged.
const MODULES: &str = "usr/lib/modules";

impl Kernel {
    /// Finds the one kernel of a tools root.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub fn find(tools: &Path) -> Result<Self, InitramfsError> {
        let folder = tools.join("root").join(MODULES);
        let entries = fs::read_dir(&folder).map_err(InitramfsError::file("read", &folder))?;
        let releases: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        let [release] = &*releases else {
            let detail = format!("it must hold one kernel and holds {}", releases.len());
            return Err(InitramfsError::damaged(
                folder.display().to_string(),
                detail,
            ));
        };
        let path = tools.join("vmlinuz");
        let image = fs::read(&path).map_err(InitramfsError::file("read", &path))?;
        let version = version_of(&image);
        let version = version.ok_or_else(|| {
            InitramfsError::damaged(path.display().to_string(), "it is no kernel for x86")
        })?;
        Ok(Self {
            release: release.clone(),
            version,
            image: path,
            modules: folder.join(release),
        })
    }
}

/// Debian's version of the package, from the header of the kernel (Linux/x86 boot protocol,
/// `kernel_version`): "6.12.1 (debian...) #1 SMP Debian 6.12.1-1 (2026-01-01)".
fn version_of(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?);
    let text = image.get(usize::from(offset) + 0x200..)?;
    let text = &text[..text.iter().take(512).position(|byte| *byte == 0)?];
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split(' ').skip_while(|word| *word != "Debian");
    let version = words.nth(1).or_else(|| text.split(' ').next());
    version.map(str::to_owned)
}

/// The name of a module by its file: `kernel/fs/ext4/ext4.ko.xz` is `ext4`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Adds modules to a tree, each with what it depends on, and `modules.dep`, `modules.builtin` and
/// `modules.alias` that know only them. The kernel may have a module built in.
pub(crate) fn add(
    tree: &mut Tree,
    kernel: &Kernel,
    names: &[String],
) -> Result<(), InitramfsError> {
    let index = Index::read(&kernel.modules)?;
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    for name in names {
        let plain = name.replace('-', "_");
        match index.files.get(&plain) {
            Some((path, needs)) => {
                wanted.insert(path);
                wanted.extend(needs.iter().map(String::as_str));
            }
            None if index.builtin.contains(&plain) => {}
            None => {
                return Err(InitramfsError::Module {
                    name: name.clone(),
                    release: kernel.release.clone(),
                });
            }
        }
    }
    let folder = format!("{MODULES}/{}", kernel.release);
    let mut add = |name: &str, origin, bytes: Vec<u8>| {
        let entry = Entry {
            mode: 0o644,
            content: Content::File(bytes),
            origin,
        };
        tree.add(&format!("{folder}/{name}"), entry)
    };
    let mut dependencies = String::new();
    let mut included = BTreeSet::new();
    for path in &wanted {
        let file = kernel.modules.join(path);
        let bytes = fs::read(&file).map_err(InitramfsError::file("read", file))?;
        add(path, Origin::Kernel, bytes)?;
        let name = name_of(path);
        let needs = &index.files[&name].1;
        let _ = writeln!(dependencies, "{path}: {}", needs.join(" "));
        included.insert(name);
    }
    let aliases = index.aliases.lines().filter(|line| {
        let module = line.rsplit(' ').next().unwrap_or_default();
        included.contains(&module.replace('-', "_"))
    });
    let mut text = String::new();
    for line in aliases {
        let _ = writeln!(text, "{line}");
    }
    add("modules.dep", Origin::Made, dependencies.into_bytes())?;
    add("modules.alias", Origin::Made, text.into_bytes())?;
    add(
        "modules.builtin",
        Origin::Made,
        index.builtin_text.into_bytes(),
    )
}

struct Index {
    /// Path and paths of what it depends on, by name.
    files: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
    builtin_text: String,
    aliases: String,
}

impl Index {
    fn read(folder: &Path) -> Result<Self, InitramfsError> {
        let text = |name: &str| {
            let path: PathBuf = folder.join(name);
            fs::read_to_string(&path).map_err(InitramfsError::file("read", path))
        };
        let mut files = BTreeMap::new();
        for line in text("modules.dep")?.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                files.insert(name_of(path), (path.trim().to_owned(), needs));
            }
        }
        let builtin_text = text("modules.builtin")?;
        Ok(Self {
            files,
            builtin: builtin_text.lines().map(name_of).collect(),
            builtin_text,
            aliases: text("modules.alias")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel of two modules, one of which needs the other, and one that is built in.
    fn kernel(folder: &Path) -> Kernel {
        let modules = folder.join("6.12.1-test");
        fs::create_dir_all(modules.join("kernel/a")).unwrap();
        for (name, text) in [
            (
                "modules.dep",
                "kernel/a/vfio-pci.ko.xz: kernel/a/vfio.ko.xz\nkernel/a/vfio.ko.xz:\nkernel/a/nvme.ko.xz:\n",
            ),
            ("modules.builtin", "kernel/b/efivarfs.ko\n"),
            (
                "modules.alias",
                "alias pci:v* vfio_pci\nalias pci:nvme nvme\n",
            ),
            ("kernel/a/vfio-pci.ko.xz", "pci"),
            ("kernel/a/vfio.ko.xz", "core"),
            ("kernel/a/nvme.ko.xz", "nvme"),
        ] {
            fs::write(modules.join(name), text).unwrap();
        }
        Kernel {
            release: "6.12.1-test".to_owned(),
            version: "6.12.1-1".to_owned(),
            image: PathBuf::new(),
            modules,
        }
    }

    #[test]
    fn a_module_comes_with_what_it_needs_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        let names = ["vfio_pci".to_owned(), "efivarfs".to_owned()];
        add(&mut tree, &kernel(folder.path()), &names).unwrap();
        let at = |name: &str| {
            let path = format!("usr/lib/modules/6.12.1-test/{name}");
            tree.bytes(&path)
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        assert_eq!(at("kernel/a/vfio-pci.ko.xz").unwrap(), "pci");
        assert_eq!(at("kernel/a/vfio.ko.xz").unwrap(), "core");
        assert_eq!(at("kernel/a/nvme.ko.xz"), None);
        assert!(!at("modules.dep").unwrap().contains("nvme"));
        assert_eq!(at("modules.alias").unwrap(), "alias pci:v* vfio_pci\n");
    }

    #[test]
    fn a_module_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["no-such".to_owned()];
        let error = add(&mut Tree::default(), &kernel(folder.path()), &names).unwrap_err();
        let text = "the kernel 6.12.1-test has no module no-such: correct the list of modules";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn the_version_stands_in_the_header_of_the_kernel() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e] = 0x40;
        let text = b"6.12.1+deb13-amd64 (x@y) #1 SMP Debian 6.12.1-1 (2026-01-01)\0";
        image[0x240..0x240 + text.len()].copy_from_slice(text);
        assert_eq!(version_of(&image).unwrap(), "6.12.1-1");
        for end in 0..0x240 {
            assert_eq!(version_of(&image[..end]), None);
        }
    }
}
