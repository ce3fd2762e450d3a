//! Nodes by name: `contexts.toml` in the user's configuration folder. It holds keys: nobody else may
//! read it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// How one node is reached.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
}

/// All of them.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    pub(crate) contexts: BTreeMap<String, Entry>,
}

impl Contexts {
    /// Reads the file; there is none at first.
    pub(crate) fn read() -> Result<Contexts, Failure> {
        let Some(path) = path() else {
            return Ok(Contexts::default());
        };
        Contexts::read_from(&path)
    }

    fn read_from(path: &Path) -> Result<Contexts, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| Failure::Document {
                path: path.display().to_string(),
                problem: error.to_string(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
            Err(source) => Err(Failure::File {
                path: path.display().to_string(),
                source,
            }),
        }
    }

    /// Writes the file.
    pub(crate) fn write(&self) -> Result<(), Failure> {
        let path = path().ok_or_else(|| {
            Failure::Usage("there is no HOME: name a file in ADIT_CONTEXTS".to_owned())
        })?;
        self.write_to(&path)
    }

    fn write_to(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).map_err(|error| Failure::Document {
            path: path.display().to_string(),
            problem: error.to_string(),
        })?;
        write_private(path, &text)
    }

    /// The context of this name, else the one in use.
    pub(crate) fn chosen(&self, name: Option<&str>) -> Result<Option<(String, &Entry)>, Failure> {
        let Some(name) = name.or(self.current.as_deref()) else {
            return Ok(None);
        };
        let entry = self.contexts.get(name).ok_or_else(|| {
            Failure::Usage(format!(
                "there is no context {name:?}; see `aditctl context list`"
            ))
        })?;
        Ok(Some((name.to_owned(), entry)))
    }
}

fn path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ADIT_CONTEXTS") {
        return Some(path.into());
    }
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    Some(folder?.join("adit/contexts.toml"))
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source| Failure::File {
        path: path.display().to_string(),
        source,
    };
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let _ = std::fs::remove_file(&new);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn contexts_are_kept_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adit/contexts.toml");
        let mut contexts = Contexts::read_from(&path).unwrap();
        assert!(contexts.chosen(None).unwrap().is_none());
        let entry = Entry {
            endpoint: "192.0.2.1:50051".to_owned(),
            code: Some("X".to_owned()),
            ..Entry::default()
        };
        contexts.contexts.insert("n1".to_owned(), entry.clone());
        contexts.current = Some("n1".to_owned());
        contexts.write_to(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Contexts::read_from(&path).unwrap();
        let (name, chosen) = again.chosen(None).unwrap().unwrap();
        assert!(name == "n1" && *chosen == entry);
        assert!(again.chosen(Some("n2")).is_err());
    }
}
