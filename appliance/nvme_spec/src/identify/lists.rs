//! Lists that Identify returns.

use zerocopy::little_endian::{U16, U32, U64};

use super::LEN;
use crate::layout::{constants, wire_structs};
use crate::{Cntlid, Nsid};

wire_structs! {
    /// Namespace List: identifiers in increasing order, then zeroes. CNS 02h, 07h,
    /// 10h and 1Ah.
    NamespaceList[4096] {
        /// Identifiers; the first 0 ends the list.
        0 nsid: [U32; 1024],
    }

    /// Controller List: identifiers in increasing order. CNS 12h and 13h.
    ControllerList[4096] {
        /// NUMID: number of identifiers.
        0 numid: U16,
        /// Identifiers, then zeroes.
        2 cntlid: [U16; 2047],
    }

    /// Identify I/O Command Set data structure, CNS 1Ch (Base §5.1.13).
    IoCommandSetVectors[4096] {
        /// Combinations that a controller can have enabled at one time, bit n for CSI n. The
        /// feature I/O Command Set Profile holds the index of the one in use.
        0 vector: [U64; 512],
    }
}

impl NamespaceList {
    /// The list that a host gets who asks for those above `after`.
    ///
    /// `nsids` is in increasing order. Those up to `after` are left out, as are those after the
    /// first 1024 that are not: the host asks again with the last of the list.
    pub fn after(after: Nsid, nsids: impl IntoIterator<Item = Nsid>) -> Self {
        let mut list = Self::default();
        let above = nsids.into_iter().filter(|nsid| *nsid > after);
        for (entry, nsid) in list.nsid.iter_mut().zip(above) {
            *entry = U32::new(nsid.0);
        }
        list
    }

    /// The identifiers, up to the first 0.
    pub fn iter(&self) -> impl Iterator<Item = Nsid> {
        self.nsid
            .iter()
            .map(|nsid| Nsid(nsid.get()))
            .take_while(|nsid| *nsid != Nsid::NONE)
    }
}

impl ControllerList {
    /// The list that a host gets who asks for those from `first` up.
    ///
    /// `cntlids` is in increasing order. Those below `first` are left out, as are those after the
    /// first 2047 that are not.
    pub fn from(first: Cntlid, cntlids: impl IntoIterator<Item = Cntlid>) -> Self {
        let mut list = Self::default();
        let mut count = 0;
        let wanted = cntlids.into_iter().filter(|cntlid| *cntlid >= first);
        for (entry, cntlid) in list.cntlid.iter_mut().zip(wanted) {
            *entry = U16::new(cntlid.0);
            count += 1;
        }
        list.numid = U16::new(count);
        list
    }

    /// The identifiers, as many as NUMID says and there is room for.
    pub fn iter(&self) -> impl Iterator<Item = Cntlid> {
        let count = usize::from(self.numid.get());
        self.cntlid
            .iter()
            .take(count)
            .map(|cntlid| Cntlid(cntlid.get()))
    }
}

/// CSI, I/O command set identifiers.
pub mod csi {
    super::constants! { u8;
        /// NVM command set.
        NVM = 0x00;
        /// Key Value command set.
        KEY_VALUE = 0x01;
        /// Zoned Namespace command set.
        ZONED = 0x02;
        /// Subsystem Local Memory command set.
        SUBSYSTEM_LOCAL_MEMORY = 0x03;
        /// Computational Programs command set.
        COMPUTATIONAL_PROGRAMS = 0x04;
    }
}

/// NIDT, types of namespace identification descriptors (Base §5.1.13).
pub mod nidt {
    super::constants! { u8;
        /// EUI64, 8 bytes.
        EUI64 = 0x1;
        /// NGUID, 16 bytes.
        NGUID = 0x2;
        /// UUID, 16 bytes.
        UUID = 0x3;
        /// CSI, 1 byte.
        CSI = 0x4;
    }
}

/// One entry of the Namespace Identification Descriptor list, CNS 03h (Base §5.1.13).
///
/// Identifiers are in the byte order of the wire, which is big-endian for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NsDescriptor<'a> {
    /// IEEE extended unique identifier.
    Eui64([u8; 8]),
    /// Namespace globally unique identifier.
    Nguid([u8; 16]),
    /// UUID of RFC 9562.
    Uuid([u8; 16]),
    /// I/O command set of the namespace.
    Csi(u8),
    /// A type not known here, or a known one of a length that it cannot have.
    Other {
        /// NIDT.
        nidt: u8,
        /// NID, 1 to 255 bytes.
        nid: &'a [u8],
    },
}

/// NIDT, NIDL and two reserved bytes.
const NS_DESCRIPTOR_HEADER: usize = 4;

impl NsDescriptor<'_> {
    /// NIDT.
    pub const fn nidt(&self) -> u8 {
        match self {
            Self::Eui64(_) => nidt::EUI64,
            Self::Nguid(_) => nidt::NGUID,
            Self::Uuid(_) => nidt::UUID,
            Self::Csi(_) => nidt::CSI,
            Self::Other { nidt, .. } => *nidt,
        }
    }

    /// NID: the identifier itself.
    pub fn nid(&self) -> &[u8] {
        match self {
            Self::Eui64(id) => id,
            Self::Nguid(id) | Self::Uuid(id) => id,
            Self::Csi(csi) => core::slice::from_ref(csi),
            Self::Other { nid, .. } => nid,
        }
    }
}

/// Writes the list into `buf`, zeroes after its end. Returns the bytes used.
///
/// `None`, with `buf` all zero, if the list does not fit or an identifier is empty or longer than
/// 255 bytes: the list on the wire ends at an identifier of length 0.
pub fn encode_ns_descriptors(
    buf: &mut [u8; LEN],
    descriptors: &[NsDescriptor<'_>],
) -> Option<usize> {
    buf.fill(0);
    let used = write_ns_descriptors(buf, descriptors);
    if used.is_none() {
        buf.fill(0);
    }
    used
}

fn write_ns_descriptors(buf: &mut [u8], descriptors: &[NsDescriptor<'_>]) -> Option<usize> {
    let mut used = 0;
    for descriptor in descriptors {
        let nid = descriptor.nid();
        let nidl = u8::try_from(nid.len()).ok().filter(|nidl| *nidl != 0)?;
        let entry = buf.get_mut(used..used + NS_DESCRIPTOR_HEADER + nid.len())?;
        let (header, body) = entry.split_at_mut(NS_DESCRIPTOR_HEADER);
        header.copy_from_slice(&[descriptor.nidt(), nidl, 0, 0]);
        body.copy_from_slice(nid);
        used += NS_DESCRIPTOR_HEADER + nid.len();
    }
    Some(used)
}

/// The entries of a list that came in `buf`.
///
/// It ends at an entry of length 0, and at one that is longer than what is left of `buf`.
pub const fn ns_descriptors(buf: &[u8]) -> NsDescriptors<'_> {
    NsDescriptors { rest: buf }
}

/// Iterator over a Namespace Identification Descriptor list; see [`ns_descriptors`].
#[derive(Clone, Debug)]
pub struct NsDescriptors<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for NsDescriptors<'a> {
    type Item = NsDescriptor<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (header, after) = self.rest.split_first_chunk::<NS_DESCRIPTOR_HEADER>()?;
        let [nidt, nidl, ..] = *header;
        let nid = after.get(..usize::from(nidl)).filter(|nid| !nid.is_empty());
        let Some(nid) = nid else {
            self.rest = &[];
            return None;
        };
        self.rest = &after[nid.len()..];
        Some(decode_ns_descriptor(nidt, nid))
    }
}

fn decode_ns_descriptor(nidt: u8, nid: &[u8]) -> NsDescriptor<'_> {
    let other = NsDescriptor::Other { nidt, nid };
    match nidt {
        nidt::EUI64 => nid.try_into().map_or(other, NsDescriptor::Eui64),
        nidt::NGUID => nid.try_into().map_or(other, NsDescriptor::Nguid),
        nidt::UUID => nid.try_into().map_or(other, NsDescriptor::Uuid),
        nidt::CSI => match nid {
            [csi] => NsDescriptor::Csi(*csi),
            _ => other,
        },
        _ => other,
    }
}
