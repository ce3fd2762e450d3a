//! What an operation is to do, as the pool keeps it over a restart: TOML in its detail.

use std::path::PathBuf;

use image_file::{Format, Identity};
use lvol::MapCursor;
use serde::{Deserialize, Serialize};

/// Places of a scrub that are named; all are counted.
pub(super) const PLACES_MAX: usize = 100;

/// What an operation is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub(crate) enum Detail {
    /// Fills a new volume from an image.
    Import {
        file: PathBuf,
        format: String,
        /// What the file was like when it began.
        len_bytes: u64,
        modified_ns: i64,
    },
    /// Writes a volume or a snapshot to an image.
    Export { file: PathBuf, format: String },
    /// Copies what a snapshot has itself to a block device.
    Copy { bdev: String },
    /// Reads everything that is mapped.
    Scrub {
        bytes_per_sec: u64,
        /// Where it goes on.
        layer: u64,
        piece: u64,
        /// Bytes that cannot be read.
        unreadable_bytes: u64,
        /// Places that cannot be read.
        unreadable: u64,
        /// The first of them.
        places: Vec<String>,
        /// What is not what its checksum says.
        #[serde(default)]
        differing: Differing,
    },
}

/// Places that are not what their checksums say. Details from before there were any do without.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Differing {
    /// All of them.
    pub(super) count: u64,
    /// Bytes of the clusters that they are in.
    pub(super) bytes: u64,
    /// The first of them.
    pub(super) places: Vec<String>,
}

impl Detail {
    pub(crate) fn import(file: PathBuf, format: Format, identity: Identity) -> Detail {
        Detail::Import {
            file,
            format: format.name().to_owned(),
            len_bytes: identity.len_bytes,
            modified_ns: identity.modified_ns,
        }
    }

    pub(crate) fn export(file: PathBuf, format: Format) -> Detail {
        Detail::Export {
            file,
            format: format.name().to_owned(),
        }
    }

    pub(crate) fn scrub(bytes_per_sec: u64) -> Detail {
        Detail::Scrub {
            // Numbers of TOML have a sign.
            bytes_per_sec: bytes_per_sec.min(i64::MAX as u64),
            layer: 0,
            piece: 0,
            unreadable_bytes: 0,
            unreadable: 0,
            places: Vec::new(),
            differing: Differing::default(),
        }
    }

    /// As the pool keeps it.
    pub(crate) fn encode(&self) -> String {
        toml::to_string(self).expect("all of it is strings and numbers of 63 bits")
    }

    /// What the pool has kept.
    pub(crate) fn decode(text: &str) -> Result<Detail, String> {
        toml::from_str(text).map_err(|error| format!("its detail cannot be read: {error}"))
    }
}

pub(super) fn cursor(layer: u64, piece: u64) -> MapCursor {
    MapCursor { layer, piece }
}

/// What there is to say of an operation that goes on.
pub(crate) fn describe(detail: &str) -> String {
    match Detail::decode(detail) {
        Ok(Detail::Import { file, .. }) => format!("from {}", file.display()),
        Ok(Detail::Export { file, .. }) => format!("to {}", file.display()),
        Ok(Detail::Copy { bdev }) => format!("to {bdev}"),
        Ok(Detail::Scrub {
            unreadable,
            differing,
            ..
        }) => {
            let mut found = Vec::new();
            if unreadable > 0 {
                found.push(format!("{unreadable} places cannot be read so far"));
            }
            if differing.count > 0 {
                let count = differing.count;
                found.push(format!("{count} places differ from their checksums so far"));
            }
            found.join(", ")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_done_is_read_as_it_was_kept() {
        let identity = Identity {
            len_bytes: 1 << 40,
            modified_ns: -5,
        };
        let file = PathBuf::from("/images/a \"b\".qcow2");
        let mut scrub = Detail::scrub(u64::MAX);
        if let Detail::Scrub {
            places, differing, ..
        } = &mut scrub
        {
            places.extend(["v at 0".to_owned(), "w@s at 4096".to_owned()]);
            differing.count = 1;
            differing.bytes = 65536;
            differing.places.push("w@s at 0".to_owned());
        }
        for detail in [
            Detail::import(file.clone(), Format::Qcow2, identity),
            Detail::export(file, Format::Raw),
            Detail::Copy { bdev: "b0".into() },
            scrub,
        ] {
            assert_eq!(Detail::decode(&detail.encode()), Ok(detail));
        }
        // As it was kept before there were checksums.
        let before = "job = \"scrub\"\nbytes_per_sec = 0\nlayer = 0\npiece = 0\nunreadable_bytes = 0\n\
                      unreadable = 0\nplaces = []\n";
        assert_eq!(Detail::decode(before), Ok(Detail::scrub(0)));
        assert!(Detail::decode("job = \"dance\"").is_err());
        assert!(Detail::decode("").is_err());
    }
}
