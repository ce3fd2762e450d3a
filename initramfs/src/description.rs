//! `image/tree.toml`: what an image holds, in one place.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::InitramfsError;

/// Which of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// For machines that serve: no shell, nothing that runs what it is told.
    Release,
    /// For a developer: a shell on the serial console, a host's tools.
    Dev,
}

impl Profile {
    /// Its word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "release" => Ok(Self::Release),
            "dev" => Ok(Self::Dev),
            _ => Err(format!("{text:?} must be release or dev")),
        }
    }
}

/// The description.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    /// Programs of the project.
    pub(crate) program: Vec<Program>,
    /// Files of Debian packages, each with the libraries that it needs.
    pub(crate) debian: Vec<Debian>,
    /// Libraries that are looked for by name at run time.
    pub(crate) library: Vec<Library>,
    /// Files of `image/`.
    pub(crate) file: Vec<File>,
    /// Symbolic links.
    pub(crate) link: Vec<Link>,
    /// Folders beside those that files are in.
    pub(crate) folder: Vec<Folder>,
    /// Modules that are loaded, in this order.
    pub(crate) module: Vec<Module>,
    /// What process 1 keeps running, in the words of its table of services.
    pub(crate) service: Vec<toml::Table>,
    /// The configuration that every node begins with: sysctls and the like.
    pub(crate) config: toml::Table,
}

/// Whether something belongs to a profile: to all, where none is named.
trait OfProfile {
    fn profile(&self) -> Option<Profile>;

    fn is_in(&self, profile: Profile) -> bool {
        self.profile().is_none_or(|own| own == profile)
    }
}

macro_rules! of_profile {
    ($($name:ident),*) => {
        $(impl OfProfile for $name {
            fn profile(&self) -> Option<Profile> {
                self.profile
            }
        })*
    };
}

of_profile!(Program, Debian, Library, File, Link, Folder, Module);

/// A program of the project.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Program {
    /// Its name in cargo's folder.
    pub(crate) name: String,
    /// Its path in the image.
    pub(crate) path: String,
    /// The only profile that has it.
    pub(crate) profile: Option<Profile>,
}

/// A file of a Debian package.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Debian {
    /// Its path, there and here.
    pub(crate) path: String,
    /// The only profile that has it.
    pub(crate) profile: Option<Profile>,
}

/// A library by its name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Library {
    /// Its name.
    pub(crate) name: String,
    /// The only profile that has it.
    pub(crate) profile: Option<Profile>,
}

/// A file of the project.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// Its path in the image.
    pub(crate) path: String,
    /// Its path in `image/files`.
    pub(crate) source: String,
    /// Permission bits, as text: "0600".
    pub(crate) mode: Option<String>,
    /// The only profile that has it.
    pub(crate) profile: Option<Profile>,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Link {
    /// Its paths.
    pub(crate) paths: Vec<String>,
    /// What it points to.
    pub(crate) to: String,
    /// The only profile that has it.
    pub(crate) profile: Option<Profile>,
}

/// A folder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Folder {
    /// Its path.
    pub(crate) path: String,
    /// Permission bits, as text: "0700".
    pub(crate) mode: Option<String>,
    /// The only profile that has it.
    pub(crate) profile: Option<Profile>,
}

/// A kernel module.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Module {
    /// Its name.
    pub(crate) name: String,
    /// True: a machine may do without what it drives.
    #[serde(default)]
    pub(crate) optional: bool,
    /// True: it is loaded where there is a device that asks for it.
    #[serde(default)]
    pub(crate) device: bool,
    /// True: it is in the image and not loaded by the list. A configuration may ask for it.
    #[serde(default)]
    pub(crate) unlisted: bool,
    /// The only profile that has it.
    pub(crate) profile: Option<Profile>,
}

impl Description {
    /// Reads `tree.toml` of a folder and keeps what is of a profile. A service may name its profile, as
    /// everything may.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is wrong.
    pub(crate) fn read(folder: &Path, profile: Profile) -> Result<Self, InitramfsError> {
        let path = folder.join("tree.toml");
        let text = fs::read_to_string(&path).map_err(InitramfsError::file("read", &path))?;
        let wrong = |detail: String| InitramfsError::Description {
            path: path.clone(),
            detail,
        };
        let mut all: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        all.program.retain(|each| each.is_in(profile));
        all.debian.retain(|each| each.is_in(profile));
        all.library.retain(|each| each.is_in(profile));
        all.file.retain(|each| each.is_in(profile));
        all.link.retain(|each| each.is_in(profile));
        all.folder.retain(|each| each.is_in(profile));
        all.module.retain(|each| each.is_in(profile));
        let mut services = Vec::new();
        for mut service in std::mem::take(&mut all.service) {
            let own = match service.remove("profile") {
                None => Some(profile),
                Some(word) => word.as_str().and_then(|word| word.parse().ok()),
            };
            match own {
                Some(own) if own == profile => services.push(service),
                Some(_) => {}
                None => return Err(wrong(format!("a service has a wrong profile: {service}"))),
            }
        }
        all.service = services;
        Ok(all)
    }
}

/// Permission bits in octal digits.
pub(crate) fn mode(text: Option<&str>, default: u32) -> Result<u32, InitramfsError> {
    let Some(text) = text else {
        return Ok(default);
    };
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode < 0o10000);
    mode.ok_or(InitramfsError::Description {
        path: "tree.toml".into(),
        detail: format!("{text:?} is no mode such as \"0644\""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../image")
    }

    #[test]
    fn a_release_has_no_shell_and_none_of_the_tools_of_a_developer() {
        let release = Description::read(&folder(), Profile::Release).unwrap();
        let dev = Description::read(&folder(), Profile::Dev).unwrap();
        let programs = |all: &Description| -> Vec<String> {
            all.debian.iter().map(|each| each.path.clone()).collect()
        };
        let shells = ["sh", "bash", "dash", "busybox", "fio", "nvme"];
        let is_shell = |path: &String| {
            shells
                .iter()
                .any(|name| path.ends_with(&format!("/{name}")))
        };
        assert!(!programs(&release).iter().any(is_shell));
        assert!(programs(&dev).iter().any(is_shell));
        assert!(
            release
                .link
                .iter()
                .all(|link| !link.paths.iter().any(is_shell))
        );
        for service in &release.service {
            let name = service["name"].as_str().unwrap();
            assert_ne!(name, "shell");
        }
    }

    #[test]
    fn no_image_loads_the_drivers_that_would_take_drives() {
        for profile in [Profile::Release, Profile::Dev] {
            let all = Description::read(&folder(), profile).unwrap();
            let loaded = all.module.iter().filter(|module| !module.unlisted);
            for module in loaded {
                let name = module.name.replace('-', "_");
                assert!(!["nvme", "ahci", "virtio_blk"].contains(&&*name), "{name}");
            }
            assert_eq!(all.module[0].name, "vfio_iommu_type1");
            assert_eq!(all.module[1].name, "vfio-pci");
        }
    }

    #[test]
    fn a_mode_is_octal() {
        assert_eq!(mode(Some("0600"), 0).unwrap(), 0o600);
        assert_eq!(mode(None, 0o755).unwrap(), 0o755);
        for text in ["", "rw", "0999", "77777"] {
            assert!(mode(Some(text), 0).is_err(), "{text}");
        }
    }
}
