//! What the agent keeps: generations of the configuration, each a folder, and which holds.
//!
//! `STATE/config/GENERATION/{document.toml,ca.pem,ca-key.pem,certificate.pem,key.pem,fetched-from}`;
//! the symbolic link `STATE/config/current` names the one in force and `previous` the one before. Replacing the
//! link is the one step in which a new configuration holds: a crash leaves the old or the new one.
//! `STATE/asked` is there once `aditd` was asked for what outlived the power (`keep.rs`).

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::AgentError;
use crate::keep::Kept;

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One generation of the configuration. Names of fields never change: it is kept over power cuts.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// The document, without a key.
    pub document: String,
    /// The authority of clients, PEM.
    pub ca_pem: String,
    /// The key of an authority that this node made, PEM.
    pub ca_key_pem: Option<String>,
    /// The node's certificate, PEM.
    pub certificate_pem: String,
    /// Its key, PEM.
    pub key_pem: String,
    /// Where the document was fetched; `None` when a person or a controller applied it.
    pub fetched_from: Option<String>,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}

impl Generation {
    /// SHA-256 of the document.
    #[must_use]
    pub fn digest(&self) -> String {
        pki::sha256_hex(self.document.as_bytes())
    }
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens a state directory, which is made where it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> Result<Store, AgentError> {
        let config = folder.join("config");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config)
            .map_err(AgentError::state("make", &config))?;
        Ok(Store {
            folder: folder.to_owned(),
        })
    }

    /// The key that this node made for itself; made at the first call. It stays over configurations,
    /// so that the fingerprint of the node's own certificate does.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub fn node_key(&self) -> Result<String, AgentError> {
        let path = self.folder.join("node-key.pem");
        match read(&path) {
            Ok(pem) => Ok(pem),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let pem = pki::generate_key()?;
                write(&path, &pem)?;
                Ok(pem)
            }
            Err(error) => Err(AgentError::state("read", path)(error)),
        }
    }

    /// The certificate that the node made for that key, where it is there.
    #[must_use]
    pub fn own_certificate(&self) -> Option<String> {
        read(&self.folder.join("node-certificate.pem")).ok()
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_own_certificate(&self, pem: &str) -> Result<(), AgentError> {
        write(&self.folder.join("node-certificate.pem"), pem)
    }

    /// Whether `aditd` was asked for what outlived the power.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        self.folder.join("asked").exists()
    }

    /// It was.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn set_asked(&self) -> Result<(), AgentError> {
        write(&self.folder.join("asked"), "")
    }

    /// What is to outlive the power.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn to_keep(&self) -> Result<Kept, AgentError> {
        Ok(Kept::new(
            self.node_key()?,
            self.own_certificate(),
            self.current()?,
        ))
    }

    /// Makes what outlived the power the node's own. The key comes last of all but the generation: a
    /// certificate that is not the key's is made anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn restore(&self, kept: &Kept) -> Result<(), AgentError> {
        if let Some(pem) = &kept.node_certificate_pem {
            self.keep_own_certificate(pem)?;
        }
        write(&self.folder.join("node-key.pem"), &kept.node_key_pem)?;
        match &kept.generation {
            Some(generation) => self.commit(generation),
            None => Ok(()),
        }
    }

    /// The generation in force.
    ///
    /// # Errors
    /// When there is one and it cannot be read.
    pub fn current(&self) -> Result<Option<Generation>, AgentError> {
        self.load("current")
    }

    /// The one before.
    ///
    /// # Errors
    /// When there is one and it cannot be read.
    pub fn previous(&self) -> Result<Option<Generation>, AgentError> {
        self.load("previous")
    }

    /// Makes a generation the one in force, in one step.
    ///
    /// # Errors
    /// When it cannot be written; the old one holds then.
    pub fn commit(&self, generation: &Generation) -> Result<(), AgentError> {
        let config = self.folder.join("config");
        let name = self.free_name(&config);
        let folder = config.join(&name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(AgentError::state("make", &folder))?;
        let mut files = vec![
            ("document.toml", generation.document.as_str()),
            ("ca.pem", &generation.ca_pem),
            ("certificate.pem", &generation.certificate_pem),
            ("key.pem", &generation.key_pem),
        ];
        if let Some(key) = &generation.ca_key_pem {
            files.push(("ca-key.pem", key));
        }
        if let Some(url) = &generation.fetched_from {
            files.push(("fetched-from", url));
        }
        for (file, text) in files {
            write(&folder.join(file), text)?;
        }
        sync_folder(&folder)?;
        let before = fs::read_link(config.join("current")).ok();
        link(&config, "current", Path::new(&name))?;
        if let Some(before) = &before {
            link(&config, "previous", before)?;
        }
        self.prune(&config, &[Some(PathBuf::from(name)), before]);
        Ok(())
    }

    fn load(&self, link: &str) -> Result<Option<Generation>, AgentError> {
        let folder = self.folder.join("config").join(link);
        if fs::symlink_metadata(&folder).is_err() {
            return Ok(None);
        }
        let file = |name: &str| {
            let path = folder.join(name);
            read(&path).map_err(AgentError::state("read", path))
        };
        Ok(Some(Generation {
            document: file("document.toml")?,
            ca_pem: file("ca.pem")?,
            ca_key_pem: read(&folder.join("ca-key.pem")).ok(),
            certificate_pem: file("certificate.pem")?,
            key_pem: file("key.pem")?,
            fetched_from: read(&folder.join("fetched-from")).ok(),
        }))
    }

    fn free_name(&self, config: &Path) -> String {
        let numbers = entries(config).filter_map(|name| name.parse::<u64>().ok());
        (numbers.max().unwrap_or(0) + 1).to_string()
    }

    fn prune(&self, config: &Path, keep: &[Option<PathBuf>]) {
        for name in entries(config).filter(|name| name.parse::<u64>().is_ok()) {
            if !keep.contains(&Some(PathBuf::from(&name))) {
                // One that stays costs a few KiB and is tried again at the next change.
                let _ = fs::remove_dir_all(config.join(name));
            }
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    if read as u64 == FILE_BYTES_MAX {
        return Err(std::io::Error::new(
            ErrorKind::InvalidData,
            "longer than 1 MiB",
        ));
    }
    Ok(text)
}

/// Writes a file whole, or not at all; nobody else may read it.
fn write(path: &Path, text: &str) -> Result<(), AgentError> {
    let failed = || AgentError::state("write", path);
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed())?;
    file.write_all(text.as_bytes()).map_err(failed())?;
    file.sync_all().map_err(failed())?;
    fs::rename(&new, path).map_err(failed())
}

fn link(config: &Path, name: &str, to: &Path) -> Result<(), AgentError> {
    let new = config.join(format!("{name}.new"));
    let path = config.join(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(AgentError::state("remove", new)(error));
        }
        _ => {}
    }
    symlink(to, &new).map_err(AgentError::state("link", &new))?;
    fs::rename(&new, &path).map_err(AgentError::state("replace", &path))?;
    sync_folder(config)
}

fn sync_folder(folder: &Path) -> Result<(), AgentError> {
    let file = File::open(folder).map_err(AgentError::state("open", folder))?;
    file.sync_all().map_err(AgentError::state("sync", folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn generation(document: &str) -> Generation {
        Generation {
            document: document.to_owned(),
            ca_pem: "ca".to_owned(),
            ca_key_pem: None,
            certificate_pem: "certificate".to_owned(),
            key_pem: "key".to_owned(),
            fetched_from: None,
        }
    }

    #[test]
    fn the_previous_one_is_kept_and_older_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.current().unwrap(), None);
        for document in ["1", "2", "3"] {
            store.commit(&generation(document)).unwrap();
        }
        let again = Store::open(folder.path()).unwrap();
        assert_eq!(again.current().unwrap(), Some(generation("3")));
        assert_eq!(again.previous().unwrap(), Some(generation("2")));
        let kept = entries(&folder.path().join("config")).count();
        assert_eq!(kept, 4, "two generations and two links");
    }

    #[test]
    fn a_commit_cut_short_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.commit(&generation("1")).unwrap();
        // What a crash leaves behind: a folder that no link names, and a link that was not moved.
        let config = folder.path().join("config");
        fs::create_dir(config.join("2")).unwrap();
        fs::write(config.join("2/document.toml"), "half").unwrap();
        symlink("2", config.join("current.new")).unwrap();
        assert_eq!(store.current().unwrap(), Some(generation("1")));
        store.commit(&generation("3")).unwrap();
        assert_eq!(store.current().unwrap(), Some(generation("3")));
        assert_eq!(store.previous().unwrap(), Some(generation("1")));
    }

    #[test]
    fn nobody_else_reads_keys_and_the_nodes_own_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let key = store.node_key().unwrap();
        assert_eq!(store.node_key().unwrap(), key);
        store.commit(&generation("1")).unwrap();
        for file in ["node-key.pem", "config/current/key.pem"] {
            let mode = fs::metadata(folder.path().join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert!(!format!("{:?}", generation("1")).contains("key"));
    }
}
