//! How a command names its data: PRP entries, a PRP list, or one SGL descriptor.

use dma::Region;
use nvme_spec::{SglDescriptor, Sqe};

use crate::memory::SLOT_BYTES;

const PAGE: usize = 4096;
/// Most bytes of one transfer: what a slot's PRP list can name whatever the first offset is.
pub(crate) const TRANSFER_MAX: usize = SLOT_BYTES / 8 * PAGE;

/// What the controller takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DataFormat {
    /// SGLs may be used.
    pub(crate) sgl: bool,
    /// With SGLs, data may begin at any byte.
    pub(crate) byte_aligned: bool,
}

impl DataFormat {
    /// Whether data at this address can be named without a copy.
    pub(crate) fn takes(self, address: usize) -> bool {
        address.is_multiple_of(4) || self.byte_aligned
    }
}

/// The command with `len` bytes at `address` as its data. `list` is the slot's own area, for a
/// PRP list: its region, its offset there.
#[inline]
pub(crate) fn with_data(
    sqe: Sqe,
    format: DataFormat,
    address: usize,
    len: usize,
    list: (&Region, usize),
) -> Sqe {
    let (first, last) = (address / PAGE, (address + len.max(1) - 1) / PAGE);
    let wants_sgl = last - first > 1 || !address.is_multiple_of(4);
    if format.sgl && wants_sgl {
        return sqe.with_sgl(SglDescriptor::data_block(address as u64, len as u32));
    }
    let page = |index: usize| (index * PAGE) as u64;
    match last - first {
        0 => sqe.with_prp(address as u64, 0),
        1 => sqe.with_prp(address as u64, page(last)),
        _ => {
            let (region, offset) = list;
            for (entry, index) in (first + 1..=last).enumerate() {
                region.store_words(offset + entry * 8, &[page(index).to_le()]);
            }
            sqe.with_prp(address as u64, (region.addr() + offset) as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dma::{BackingPreference, RegionOptions};
    use nvme_spec::Cid;

    #[test]
    fn data_is_named_by_pages() {
        let region = Region::allocate(&RegionOptions {
            len: PAGE,
            backing: BackingPreference::Plain4K,
            ..RegionOptions::default()
        })
        .unwrap();
        let name = |address, len| {
            let format = DataFormat::default();
            let sqe = Sqe::new(0, Cid(0));
            with_data(sqe, format, address, len, (&region, 512)).prp()
        };
        assert_eq!(name(0x10_0200, 512), (0x10_0200, 0));
        assert_eq!(name(0x10_0000, 8192), (0x10_0000, 0x10_1000));
        assert_eq!(name(0x10_0800, 4096), (0x10_0800, 0x10_1000));
        let list = (region.addr() + 512) as u64;
        assert_eq!(name(0x10_0800, 8192), (0x10_0800, list));
        assert_eq!(region.load_words::<3>(512), [0x10_1000, 0x10_2000, 0]);
        assert_eq!(name(0x10_0ffc, TRANSFER_MAX), (0x10_0ffc, list));
        let last = region.load_words::<1>(512 + SLOT_BYTES - 8);
        assert_eq!(last, [0x10_0000 + TRANSFER_MAX as u64]);
    }

    #[test]
    fn an_sgl_replaces_a_list_and_names_odd_addresses() {
        let region = Region::allocate(&RegionOptions {
            len: PAGE,
            backing: BackingPreference::Plain4K,
            ..RegionOptions::default()
        })
        .unwrap();
        let format = DataFormat {
            sgl: true,
            byte_aligned: true,
        };
        let sqe = Sqe::new(0, Cid(0));
        let long = with_data(sqe, format, 0x10_0000, 65536, (&region, 0));
        assert_eq!(long.psdt(), Sqe::PSDT_SGL);
        assert_eq!(long.sgl(), SglDescriptor::data_block(0x10_0000, 65536));
        let odd = with_data(sqe, format, 0x10_0001, 512, (&region, 0));
        assert_eq!(odd.psdt(), Sqe::PSDT_SGL);
        let short = with_data(sqe, format, 0x10_0000, 4096, (&region, 0));
        assert_eq!(short.psdt(), Sqe::PSDT_PRP);
    }
}
