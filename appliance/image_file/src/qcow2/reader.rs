//! Reading.

use flate2::{Decompress, FlushDecompress};

use super::header::{HEADER_BYTES, Header, Problem};
use super::{COMPRESSED, OFFSET_MASK, ZERO, be64};
use crate::ImageError;
use crate::file::Source;

/// Clusters of a file that are kept account of, at two bits each.
const CLUSTERS_MAX: u64 = 1 << 28;
/// Entries of L1 in memory at a time.
const L1_WINDOW: u64 = 8192;
/// Bytes of a backing file's name that an error shows.
const NAME_BYTES_MAX: u32 = 1023;

/// Where a cluster of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Zero,
    At(u64),
    /// Offset, and bytes that hold it at most.
    Compressed(u64, u64),
}

/// An image that is read in order; going back works, and is slower.
#[derive(Debug)]
pub(crate) struct Qcow2Reader<S> {
    source: S,
    header: Header,
    /// First index and entries of the part of L1 that is in memory.
    l1: (u64, Vec<u8>),
    /// Index in L1 and entries of the L2 table in memory; none: no entry of it is used.
    l2: Option<(u64, Option<Vec<u8>>)>,
    /// L1 entries from here on have not been accounted for.
    unaccounted: u64,
    plain: Bits,
    compressed: Bits,
    /// The compressed cluster that was read last, by its index.
    inflated: Option<(u64, Vec<u8>)>,
}

/// A set of clusters of the file.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn of(clusters: u64) -> Self {
        Self(vec![0; clusters.div_ceil(64) as usize])
    }

    fn has(&self, cluster: u64) -> bool {
        let word = self.0.get((cluster / 64) as usize);
        word.is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    fn set(&mut self, cluster: u64) {
        if let Some(word) = self.0.get_mut((cluster / 64) as usize) {
            *word |= 1 << (cluster % 64);
        }
    }
}

impl<S: Source> Qcow2Reader<S> {
    pub(crate) async fn open(source: S) -> Result<Self, ImageError> {
        let first = source.read(0, vec![0; HEADER_BYTES]).await?;
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&first);
        let header = Header::parse(&bytes, source.len()).map_err(|problem| {
            let path = source.path().to_owned();
            match problem {
                Problem::Damaged(problem) => ImageError::Damaged { path, problem },
                Problem::Unsupported(what, instead) => ImageError::Unsupported {
                    path,
                    what,
                    instead,
                },
            }
        })?;
        if let Some((offset, len)) = header.backing {
            let name = source
                .read(offset, vec![0; len.min(NAME_BYTES_MAX) as usize])
                .await?;
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(ImageError::Unsupported {
                path: source.path().to_owned(),
                what: format!("a backing file, {name:?}"),
                instead: "flatten it with qemu-img convert first",
            });
        }
        let clusters = source.len().div_ceil(1 << header.cluster_bits);
        if clusters > CLUSTERS_MAX {
            return Err(ImageError::Unsupported {
                path: source.path().to_owned(),
                what: format!("{clusters} clusters"),
                instead: "convert it to larger clusters with qemu-img convert first",
            });
        }
        let mut reader = Self {
            source,
            header,
            l1: (0, Vec::new()),
            l2: None,
            unaccounted: 0,
            plain: Bits::of(clusters),
            compressed: Bits::of(clusters),
            inflated: None,
        };
        reader.account(0, 1)?;
        let (l1, bytes) = (reader.header.l1_offset, reader.header.l1_entries * 8);
        if bytes > 0 {
            reader.account(l1, bytes)?;
        }
        Ok(reader)
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.header.size
    }

    fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Bytes of the disk that an L2 table maps.
    fn l2_reach(&self) -> u64 {
        self.cluster_size() * (self.cluster_size() / 8)
    }

    /// Where the run of clusters of one kind at `offset` ends, and whether they hold data. A run ends with its
    /// L2 table.
    pub(crate) async fn extent(&mut self, offset: u64) -> Result<(u64, bool), ImageError> {
        let (size, reach) = (self.header.size, self.l2_reach());
        if !self.load_l2(offset / reach).await? {
            let mut next = offset / reach + 1;
            // A disk may be huge and hold little.
            while next < self.header.l1_entries && self.l1_entry(next).await? == 0 {
                next += 1;
            }
            return Ok(((next * reach).min(size), false));
        }
        let is_data = |place| place != Place::Zero;
        let kind = is_data(self.place(offset)?);
        let end = (offset / reach + 1) * reach;
        let mut at = (offset / self.cluster_size() + 1) * self.cluster_size();
        while at < end.min(size) && is_data(self.place(at)?) == kind {
            at += self.cluster_size();
        }
        Ok((at.min(size), kind))
    }

    pub(crate) async fn read(
        &mut self,
        offset: u64,
        mut buffer: Vec<u8>,
    ) -> Result<Vec<u8>, ImageError> {
        let (size, cluster_size) = (self.header.size, self.cluster_size());
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(done as u64);
            if at >= size {
                buffer[done..].fill(0);
                break;
            }
            let inside = at % cluster_size;
            let most = (cluster_size - inside).min(size - at);
            let len = most.min((buffer.len() - done) as u64) as usize;
            let place = if self.load_l2(at / self.l2_reach()).await? {
                self.place(at)?
            } else {
                Place::Zero
            };
            let part = &mut buffer[done..done + len];
            match place {
                Place::Zero => part.fill(0),
                Place::At(host) => {
                    // Neighbours on the disk are mostly neighbours in the file.
                    let run = self.run(at, host + inside, (part.len()) as u64, buffer.len() - done);
                    let run = run?;
                    let bytes = self.source.read(host + inside, vec![0; run]).await?;
                    buffer[done..done + run].copy_from_slice(&bytes);
                    done += run;
                    continue;
                }
                Place::Compressed(host, bytes) => {
                    self.inflate(at / cluster_size, host, bytes).await?;
                    if let Some((_, cluster)) = &self.inflated {
                        part.copy_from_slice(&cluster[inside as usize..inside as usize + len]);
                    }
                }
            }
            done += len;
        }
        Ok(buffer)
    }

    /// Bytes from `at` on that lie one after another in the file, from `host` on: `first`, and more clusters
    /// of the same L2 table, up to `most`.
    fn run(&self, at: u64, host: u64, first: u64, most: usize) -> Result<usize, ImageError> {
        let cluster_size = self.cluster_size();
        let end = ((at / self.l2_reach() + 1) * self.l2_reach()).min(self.header.size);
        let mut run = first;
        while run < most as u64
            && at + run < end
            && (at + run).is_multiple_of(cluster_size)
            && self.place(at + run)? == Place::At(host + run)
        {
            run += cluster_size.min(most as u64 - run).min(end - at - run);
        }
        Ok(run as usize)
    }

    /// Where the cluster with this byte is. Its L2 table is in memory.
    fn place(&self, offset: u64) -> Result<Place, ImageError> {
        let index = (offset / self.cluster_size()) % (self.cluster_size() / 8);
        match &self.l2 {
            Some((_, Some(table))) => self.parse(be64(table, index as usize * 8)),
            _ => Ok(Place::Zero),
        }
    }

    fn parse(&self, entry: u64) -> Result<Place, ImageError> {
        if entry & COMPRESSED != 0 {
            // Bits 0 to x - 1 are the offset, those up to 61 how many more sectors of 512 bytes it reaches into.
            let x = 62 - (self.header.cluster_bits - 8);
            let host = entry & ((1 << x) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> x;
            let bytes = (sectors + 1) * 512 - (host & 511);
            if host >= self.source.len() {
                return self.damaged(format!("a compressed cluster at {host}, past its end"));
            }
            return Ok(Place::Compressed(host, bytes.min(self.source.len() - host)));
        }
        let host = entry & OFFSET_MASK;
        if self.header.version >= 3 && entry & ZERO != 0 || host == 0 {
            return Ok(Place::Zero);
        }
        self.check_cluster("a cluster", host)?;
        Ok(Place::At(host))
    }

    fn check_cluster(&self, what: &str, host: u64) -> Result<(), ImageError> {
        if !host.is_multiple_of(self.cluster_size()) {
            return self.damaged(format!("{what} at {host}, where none begins"));
        }
        if host >= self.source.len() {
            return self.damaged(format!("{what} at {host}, past its end"));
        }
        Ok(())
    }

    async fn l1_entry(&mut self, index: u64) -> Result<u64, ImageError> {
        let (first, entries) = &mut self.l1;
        if index < *first || index >= *first + entries.len() as u64 / 8 {
            let start = index - index % L1_WINDOW;
            let count = L1_WINDOW.min(self.header.l1_entries - start);
            let buffer = vec![0; count as usize * 8];
            let offset = self.header.l1_offset + start * 8;
            self.l1 = (start, self.source.read(offset, buffer).await?);
        }
        let (first, entries) = &self.l1;
        Ok(be64(entries, (index - first) as usize * 8) & OFFSET_MASK)
    }

    /// Brings an L2 table into memory. False if there is none.
    async fn load_l2(&mut self, index: u64) -> Result<bool, ImageError> {
        if let Some((there, table)) = &self.l2
            && *there == index
        {
            return Ok(table.is_some());
        }
        let offset = self.l1_entry(index).await?;
        if offset == 0 {
            self.l2 = Some((index, None));
            return Ok(false);
        }
        self.check_cluster("an L2 table", offset)?;
        if offset + self.cluster_size() > self.source.len() {
            return self.damaged(format!("an L2 table at {offset}, which is cut off"));
        }
        let buffer = match self.l2.take() {
            Some((_, Some(table))) => table,
            _ => vec![0; self.cluster_size() as usize],
        };
        let table = self.source.read(offset, buffer).await?;
        self.l2 = Some((index, Some(table)));
        if index >= self.unaccounted {
            let accounted = self.account_table(offset);
            if accounted.is_err() {
                self.l2 = None;
                accounted?;
            }
            self.unaccounted = index + 1;
        }
        Ok(true)
    }

    /// Marks a table and what it points at. Nothing may be marked before.
    fn account_table(&mut self, offset: u64) -> Result<(), ImageError> {
        let cluster_size = self.cluster_size();
        self.account(offset, cluster_size)?;
        for index in 0..cluster_size / 8 {
            match self.place(index * cluster_size)? {
                Place::Zero => {}
                Place::At(host) => self.account(host, cluster_size)?,
                Place::Compressed(host, bytes) => {
                    // Several may share a cluster of the file.
                    let last = host + bytes - 1;
                    for cluster in host / cluster_size..=last / cluster_size {
                        // Its last sector may be another's; only its first is surely its own.
                        if cluster == host / cluster_size && self.plain.has(cluster) {
                            return self.overlap(host);
                        }
                    }
                    self.compressed.set(host / cluster_size);
                }
            }
        }
        Ok(())
    }

    fn account(&mut self, offset: u64, bytes: u64) -> Result<(), ImageError> {
        let cluster_size = self.cluster_size();
        let last = (offset + bytes - 1).min(self.source.len().saturating_sub(1));
        for cluster in offset / cluster_size..=last / cluster_size {
            if self.plain.has(cluster) || self.compressed.has(cluster) {
                return self.overlap(cluster * cluster_size);
            }
            self.plain.set(cluster);
        }
        Ok(())
    }

    async fn inflate(&mut self, index: u64, host: u64, bytes: u64) -> Result<(), ImageError> {
        if self
            .inflated
            .as_ref()
            .is_some_and(|(there, _)| *there == index)
        {
            return Ok(());
        }
        let packed = self.source.read(host, vec![0; bytes as usize]).await?;
        let mut cluster = match self.inflated.take() {
            Some((_, cluster)) => cluster,
            None => vec![0; self.cluster_size() as usize],
        };
        let mut inflater = Decompress::new(false);
        let ended = inflater.decompress(&packed, &mut cluster, FlushDecompress::Finish);
        if ended.is_err() || inflater.total_out() != self.cluster_size() {
            return self.damaged(format!(
                "a compressed cluster at {host} that cannot be unpacked"
            ));
        }
        self.inflated = Some((index, cluster));
        Ok(())
    }

    fn overlap<T>(&self, offset: u64) -> Result<T, ImageError> {
        self.damaged(format!("the cluster at {offset} is used twice"))
    }

    fn damaged<T>(&self, problem: String) -> Result<T, ImageError> {
        Err(ImageError::Damaged {
            path: self.source.path().to_owned(),
            problem,
        })
    }
}
