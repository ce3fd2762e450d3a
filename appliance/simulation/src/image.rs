//! [`Image`]: the content of a device, sparse.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub(crate) const PAGE_BYTES: u64 = 4096;
const PAGE: usize = PAGE_BYTES as usize;

type Page = [u8; PAGE];

/// The content of a device. What was never written is zeroes and costs nothing. A clone shares its
/// pages with the original until one of them changes.
#[derive(Clone)]
pub struct Image {
    len_bytes: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Image {
    /// An image of zeroes.
    #[must_use]
    pub fn new(len_bytes: u64) -> Self {
        Self {
            len_bytes,
            pages: BTreeMap::new(),
        }
    }

    /// Bytes of the device.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Bytes of memory that hold something.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES
    }

    /// Reads at any byte.
    ///
    /// # Panics
    /// If the range is not inside the image.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) {
        self.check(offset, out.len());
        pieces(offset, out.len(), |page, at, range| {
            let out = &mut out[range.clone()];
            match self.pages.get(&page) {
                Some(bytes) => out.copy_from_slice(&bytes[at..at + range.len()]),
                None => out.fill(0),
            }
        });
    }

    /// Writes at any byte: tests damage images with this.
    ///
    /// # Panics
    /// If the range is not inside the image.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) {
        self.check(offset, data.len());
        pieces(offset, data.len(), |page, at, range| {
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[at..at + range.len()].copy_from_slice(&data[range]);
        });
    }

    /// Makes a range zeroes.
    ///
    /// # Panics
    /// If the range is not inside the image.
    pub fn zero(&mut self, range: Range<u64>) {
        assert!(range.end <= self.len_bytes, "{range:?} in {self:?}");
        for page in self.stored(&range) {
            let start = page * PAGE_BYTES;
            let from = range.start.saturating_sub(start) as usize;
            let to = (range.end - start).min(PAGE_BYTES) as usize;
            if to - from == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[from..to].fill(0);
            }
        }
    }

    /// Changes the length. New bytes are zeroes.
    pub fn resize(&mut self, len_bytes: u64) {
        if len_bytes < self.len_bytes {
            self.zero(len_bytes..self.len_bytes);
        }
        self.len_bytes = len_bytes;
    }

    /// The image as bytes of a file, to keep in a repository: its length, then for each stored page its
    /// number, how many bytes of it follow, and these; the rest of the page is zeroes. Little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut file = self.len_bytes.to_le_bytes().to_vec();
        for (page, bytes) in &self.pages {
            let len = bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |at| at + 1);
            if len > 0 {
                file.extend(page.to_le_bytes());
                file.extend((len as u32).to_le_bytes());
                file.extend(&bytes[..len]);
            }
        }
        file
    }

    /// The image that [`Image::encode`] made these bytes of; `None` if it made none such.
    #[must_use]
    pub fn decode(file: &[u8]) -> Option<Self> {
        let (len_bytes, mut rest) = file.split_first_chunk()?;
        let mut image = Self::new(u64::from_le_bytes(*len_bytes));
        while !rest.is_empty() {
            let (page, after) = rest.split_first_chunk()?;
            let (len, after) = after.split_first_chunk()?;
            let offset = u64::from_le_bytes(*page).checked_mul(PAGE_BYTES)?;
            let (data, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            let end = offset.checked_add(data.len() as u64)?;
            if end > image.len_bytes || data.len() > PAGE {
                return None;
            }
            image.write_at(offset, data);
            rest = after;
        }
        Some(image)
    }

    /// Pages with content that a range touches.
    pub(crate) fn stored(&self, range: &Range<u64>) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        let pages = range.start / PAGE_BYTES..=(range.end - 1) / PAGE_BYTES;
        self.pages.range(pages).map(|(page, _)| *page).collect()
    }

    fn check(&self, offset: u64, len: usize) {
        let end = offset.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.len_bytes),
            "{len} bytes at {offset} in {self:?}"
        );
    }
}

/// Calls `f(page, offset in it, range of the data)` for each page of a range.
fn pieces(offset: u64, len: usize, mut f: impl FnMut(u64, usize, Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let in_page = (at % PAGE_BYTES) as usize;
        let n = (PAGE - in_page).min(len - done);
        f(at / PAGE_BYTES, in_page, done..done + n);
        done += n;
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        let filled = |image: &Self| -> BTreeMap<u64, Arc<Page>> {
            let pages = image
                .pages
                .iter()
                .filter(|(_, bytes)| ***bytes != [0; PAGE]);
            pages
                .map(|(page, bytes)| (*page, Arc::clone(bytes)))
                .collect()
        };
        self.len_bytes == other.len_bytes && filled(self) == filled(other)
    }
}

impl Eq for Image {}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("len_bytes", &self.len_bytes)
            .field("stored_bytes", &self.stored_bytes())
            .finish()
    }
}
