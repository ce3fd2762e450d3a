//! The records of the tables `pool`, `names`, `layers`, `free` and `operations`.

use super::FormatError;
use super::value::{Reader, Writer};

/// Clusters that one [`FreeChunk`] accounts for.
pub const CHUNK_CLUSTERS: u64 = 32768;
/// Words of a chunk's bitmap.
const CHUNK_WORDS: usize = 512;

/// Number of a layer. 0 is never used, and no number is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub u64);

/// What is read where a layer has nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Parent {
    /// Zeroes.
    #[default]
    None,
    /// Another layer of the pool.
    Layer(LayerId),
    /// A block device outside the pool, which is only read.
    External {
        /// The device's UUID.
        uuid: [u8; 16],
        /// The name it had; only the UUID identifies it.
        name: String,
        /// Bytes that it had. Past them all is zeroes, also when it grows.
        len_bytes: u64,
    },
    /// Something that nobody knows any more: what the layer does not have cannot be read.
    Lost,
}

/// What a layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LayerState {
    /// A volume, a snapshot or a child needs it.
    #[default]
    Live,
    /// No name is on it: its clusters are freed, or go to its child, in the background.
    Garbage,
}

/// A record of the table `layers`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerRecord {
    /// What lies under it.
    pub parent: Parent,
    /// Layers whose parent it is.
    pub children: u32,
    /// What it is for.
    pub state: LayerState,
    /// Data clusters that it owns.
    pub clusters: u64,
    /// First piece index past its end: the bound of walks.
    pub pieces: u64,
    /// Index of the piece that background work looks at next.
    pub progress: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// Written and read.
    Volume,
    /// Never changes.
    Snapshot,
}

/// A record of the table `names`. Its key is the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRecord {
    /// Volume or snapshot.
    pub kind: NameKind,
    /// Identity, also over renames.
    pub uuid: [u8; 16],
    /// NGUID of its namespaces.
    pub nguid: [u8; 16],
    /// Size, bytes.
    pub size_bytes: u64,
    /// The layer that it is a name of.
    pub layer: LayerId,
    /// Room for all of it is reserved.
    pub thick: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// When it was made, seconds since 1970.
    pub created_unix_s: u64,
    /// Keys and values that its owner gave it.
    pub labels: Vec<(String, String)>,
}

/// The record of the table `pool`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRecord {
    /// Number of the next layer that is made, at least 1.
    pub next_layer: u64,
    /// Number of the next operation.
    pub next_operation: u64,
    /// Clusters in use, by whatever.
    pub used_clusters: u64,
    /// Clusters that thick volumes have a right to and do not use yet.
    pub reserved_clusters: u64,
    /// Text that its owner gave it.
    pub label: String,
    /// The commit that wrote this has the changes of all pages of the log with a lower epoch.
    pub log_epoch: u64,
}

/// A record of the table `operations`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OperationRecord {
    /// What is done; the numbers are the caller's.
    pub kind: u8,
    /// To what: a name, for people.
    pub subject: String,
    /// To which layer; 0 if it is not about one.
    pub layer: u64,
    /// How much is done, in units of the kind.
    pub done: u64,
    /// How much there is to do.
    pub total: u64,
    /// Where it stands; the numbers are the caller's.
    pub state: u8,
    /// Result or error, for people.
    pub text: String,
}

/// A record of the table `free`: which of 32,768 clusters are in use. No record: none is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeChunk {
    /// Cluster `n` of the chunk is bit `n % 64` of word `n / 64`; set if it is in use.
    pub used: Box<[u64; CHUNK_WORDS]>,
}

impl LayerRecord {
    const NAME: &str = "layer record";

    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match &self.parent {
            Parent::None => out.u8(0),
            Parent::Layer(layer) => {
                out.u8(1);
                out.u64(layer.0);
            }
            Parent::External {
                uuid,
                name,
                len_bytes,
            } => {
                out.u8(2);
                out.bytes(uuid);
                out.text(name);
                out.u64(*len_bytes);
            }
            Parent::Lost => out.u8(3),
        }
        out.u32(self.children);
        out.u8(match self.state {
            LayerState::Live => 0,
            LayerState::Garbage => 1,
        });
        out.u64(self.clusters);
        out.u64(self.pieces);
        out.u64(self.progress);
        out.finish()
    }

    /// The record of a value.
    ///
    /// # Errors
    /// [`FormatError`] if it is damaged, or of a newer version.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Reader::open(Self::NAME, value)?;
        let parent = match fields.u8("parent kind")? {
            0 => Parent::None,
            1 => Parent::Layer(layer_id(&mut fields, "parent layer")?),
            2 => Parent::External {
                uuid: fields.uuid("parent uuid")?,
                name: fields.text("parent name")?,
                len_bytes: fields.u64("parent length")?,
            },
            3 => Parent::Lost,
            other => return Err(fields.wrong("parent kind", other.into(), "must be 0 to 3")),
        };
        let record = Self {
            parent,
            children: fields.u32("children")?,
            state: match fields.u8("state")? {
                0 => LayerState::Live,
                1 => LayerState::Garbage,
                other => return Err(fields.wrong("state", other.into(), "must be 0 or 1")),
            },
            clusters: fields.u64("clusters")?,
            pieces: fields.u64("pieces")?,
            progress: fields.u64("progress")?,
        };
        fields.finish()?;
        Ok(record)
    }
}

impl NameRecord {
    const NAME: &str = "name record";

    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(match self.kind {
            NameKind::Volume => 0,
            NameKind::Snapshot => 1,
        });
        out.bytes(&self.uuid);
        out.bytes(&self.nguid);
        out.u64(self.size_bytes);
        out.u64(self.layer.0);
        out.u8(self.thick.into());
        out.u8(self.read_only.into());
        out.u64(self.created_unix_s);
        out.varint(self.labels.len() as u64);
        for (key, value) in &self.labels {
            out.text(key);
            out.text(value);
        }
        out.finish()
    }

    /// The record of a value.
    ///
    /// # Errors
    /// [`FormatError`] if it is damaged, or of a newer version.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Reader::open(Self::NAME, value)?;
        let mut record = Self {
            kind: match fields.u8("kind")? {
                0 => NameKind::Volume,
                1 => NameKind::Snapshot,
                other => return Err(fields.wrong("kind", other.into(), "must be 0 or 1")),
            },
            uuid: fields.uuid("uuid")?,
            nguid: fields.uuid("nguid")?,
            size_bytes: fields.u64("size")?,
            layer: layer_id(&mut fields, "layer")?,
            thick: fields.flag("thick flag")?,
            read_only: fields.flag("read-only flag")?,
            created_unix_s: fields.u64("time of creation")?,
            labels: Vec::new(),
        };
        // The count is not trusted with memory: each label takes bytes that must be there.
        for _ in 0..fields.varint("label count")? {
            let key = fields.text("label key")?;
            record.labels.push((key, fields.text("label value")?));
        }
        fields.finish()?;
        Ok(record)
    }
}

impl PoolRecord {
    const NAME: &str = "pool record";

    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.next_layer);
        out.u64(self.next_operation);
        out.u64(self.used_clusters);
        out.u64(self.reserved_clusters);
        out.text(&self.label);
        // As a program without a log wrote it, as long as there is nothing in one.
        if self.log_epoch != 0 {
            out.u64(self.log_epoch);
        }
        out.finish()
    }

    /// The record of a value.
    ///
    /// # Errors
    /// [`FormatError`] if it is damaged, or of a newer version.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Reader::open(Self::NAME, value)?;
        let mut record = Self {
            next_layer: layer_id(&mut fields, "next layer")?.0,
            next_operation: fields.u64("next operation")?,
            used_clusters: fields.u64("used clusters")?,
            reserved_clusters: fields.u64("reserved clusters")?,
            label: fields.text("label")?,
            log_epoch: 0,
        };
        if !fields.is_empty() {
            record.log_epoch = fields.u64("log epoch")?;
            if record.log_epoch == 0 {
                return Err(fields.wrong("log epoch", 0, "epoch 0 is left out"));
            }
        }
        fields.finish()?;
        Ok(record)
    }
}

impl OperationRecord {
    const NAME: &str = "operation record";

    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(self.kind);
        out.u8(self.state);
        out.u64(self.done);
        out.u64(self.total);
        out.u64(self.layer);
        out.text(&self.subject);
        out.text(&self.text);
        out.finish()
    }

    /// The record of a value.
    ///
    /// # Errors
    /// [`FormatError`] if it is damaged, or of a newer version.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Reader::open(Self::NAME, value)?;
        let record = Self {
            kind: fields.u8("kind")?,
            state: fields.u8("state")?,
            done: fields.u64("amount done")?,
            total: fields.u64("total")?,
            layer: fields.u64("layer")?,
            subject: fields.text("subject")?,
            text: fields.text("text")?,
        };
        fields.finish()?;
        Ok(record)
    }
}

impl Default for FreeChunk {
    fn default() -> Self {
        Self {
            used: Box::new([0; CHUNK_WORDS]),
        }
    }
}

impl FreeChunk {
    const NAME: &str = "free-cluster record";
    /// Fields are the bitmap.
    const BITMAP: u8 = 0;
    /// Fields are run lengths.
    const RUNS: u8 = 1;

    /// Clusters in use.
    #[must_use]
    pub fn used_count(&self) -> u32 {
        self.used.iter().map(|word| word.count_ones()).sum()
    }

    /// The record's value: runs where that is the shorter form, else the bitmap.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut runs = Writer::new();
        runs.u8(Self::RUNS);
        // Two runs are at least two bytes.
        let mut at = 0;
        let mut count = 0;
        while let Some(start) = self.seek(at, true) {
            let end = self.seek(start, false).unwrap_or(CHUNK_CLUSTERS);
            runs.varint(start - at);
            runs.varint(end - start);
            at = end;
            count += 2;
            if count >= CHUNK_WORDS * 8 {
                return self.encode_bitmap();
            }
        }
        let runs = runs.finish();
        let bitmap_bytes = super::value::HEADER_BYTES + 1 + CHUNK_WORDS * 8;
        if runs.len() < bitmap_bytes {
            runs
        } else {
            self.encode_bitmap()
        }
    }

    fn encode_bitmap(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(Self::BITMAP);
        self.used.iter().for_each(|word| out.u64(*word));
        out.finish()
    }

    /// The record of a value.
    ///
    /// # Errors
    /// [`FormatError`] if it is damaged, or of a newer version.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Reader::open(Self::NAME, value)?;
        let mut chunk = Self::default();
        match fields.u8("form")? {
            Self::BITMAP => {
                for word in chunk.used.iter_mut() {
                    *word = fields.u64("bitmap")?;
                }
            }
            Self::RUNS => chunk.read_runs(&mut fields)?,
            other => return Err(fields.wrong("form", other.into(), "must be 0 or 1")),
        }
        fields.finish()?;
        Ok(chunk)
    }

    fn read_runs(&mut self, fields: &mut Reader<'_>) -> Result<(), FormatError> {
        let mut at = 0;
        while !fields.is_empty() {
            let free = fields.varint("run of free clusters")?;
            if free > CHUNK_CLUSTERS - at || (free == 0 && at > 0) {
                return Err(fields.wrong("run of free clusters", free, "runs must fit the chunk"));
            }
            at += free;
            let used = fields.varint("run of used clusters")?;
            if used > CHUNK_CLUSTERS - at || used == 0 {
                return Err(fields.wrong("run of used clusters", used, "runs must fit the chunk"));
            }
            self.set_run(at, at + used);
            at += used;
        }
        Ok(())
    }

    /// Marks `start..end`, which are in the chunk, as used.
    fn set_run(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            self.used[(at / 64) as usize] |= u64::MAX >> (64 - (stop - at)) << (at % 64);
            at = stop;
        }
    }

    /// First cluster at or after `from` that is used, or is not.
    fn seek(&self, from: u64, used: bool) -> Option<u64> {
        let mut skip = from % 64;
        for word in (from / 64) as usize..CHUNK_WORDS {
            let bits = if used {
                self.used[word]
            } else {
                !self.used[word]
            } & (u64::MAX << skip);
            if bits != 0 {
                return Some(word as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            skip = 0;
        }
        None
    }
}

/// Layer 0 is never used.
fn layer_id(fields: &mut Reader<'_>, field: &'static str) -> Result<LayerId, FormatError> {
    match fields.u64(field)? {
        0 => Err(fields.wrong(field, 0, "layer 0 is never used")),
        id => Ok(LayerId(id)),
    }
}

#[cfg(test)]
mod tests;
