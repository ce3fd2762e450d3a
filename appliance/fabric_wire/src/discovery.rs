//! The discovery log page, log page identifier 70h (NVMe Base 2.1, "Discovery Log Page").
//!
//! The page is a [`DiscoveryLogHeader`] and then as many [`DiscoveryLogEntry`] as it says, each of
//! 1024 bytes. The structures are the bytes; [`DiscoveryRecord`] is an entry in terms of this crate.

use nvme_spec::Cntlid;
use thiserror::Error;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{
    AddressFamily, NQN_FIELD_LEN, Nqn, NqnError, TransportAddress, TransportAddressError,
    TransportType,
};

/// Length of the header of the page in bytes.
pub const HEADER_LEN: usize = 1024;
/// Length of an entry in bytes.
pub const ENTRY_LEN: usize = 1024;

/// SUBTYPE: a referral to another discovery subsystem.
pub const SUBTYPE_REFERRAL: u8 = 1;
/// SUBTYPE: a subsystem with namespaces.
pub const SUBTYPE_NVM: u8 = 2;
/// SUBTYPE: the discovery subsystem that is being asked.
pub const SUBTYPE_CURRENT_DISCOVERY: u8 = 3;

/// EFLAGS: the entries of this discovery subsystem are the same on each of its ports.
pub const EFLAGS_DUPRETINFO: u16 = 1 << 0;
/// EFLAGS: the discovery subsystem takes persistent connections.
pub const EFLAGS_EPCSD: u16 = 1 << 1;

/// TREQ: bits that tell whether a secure channel is needed.
pub const TREQ_SECURE_CHANNEL_MASK: u8 = 0x03;
/// TREQ: whether a secure channel is needed is not told.
pub const TREQ_SECURE_CHANNEL_NOT_SPECIFIED: u8 = 0;
/// TREQ: a secure channel is needed.
pub const TREQ_SECURE_CHANNEL_REQUIRED: u8 = 1;
/// TREQ: a secure channel is not needed.
pub const TREQ_SECURE_CHANNEL_NOT_REQUIRED: u8 = 2;
/// TREQ: the controller can do without submission queue flow control.
pub const TREQ_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;

/// SECTYPE in the TSAS of TCP: no transport security.
pub const TCP_SECTYPE_NONE: u8 = 0;
/// SECTYPE in the TSAS of TCP: TLS 1.2 or earlier.
pub const TCP_SECTYPE_TLS12: u8 = 1;
/// SECTYPE in the TSAS of TCP: TLS 1.3.
pub const TCP_SECTYPE_TLS13: u8 = 2;

/// RDMA_QPTYPE in the TSAS of RDMA: reliable connected.
pub const RDMA_QPTYPE_CONNECTED: u8 = 1;
/// RDMA_PRTYPE in the TSAS of RDMA: which kind of RDMA is not told.
pub const RDMA_PRTYPE_NOT_SPECIFIED: u8 = 1;
/// RDMA_CMS in the TSAS of RDMA: connections are made through the RDMA connection manager.
pub const RDMA_CMS_RDMA_CM: u8 = 1;

/// The smallest ASQSZ that is allowed.
pub const MIN_ADMIN_QUEUE_ENTRIES: u16 = 32;

/// The header of the page.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DiscoveryLogHeader {
    /// Generation Counter: grows with every change of the page.
    pub genctr: U64,
    /// Number of entries.
    pub numrec: U64,
    /// Record format: 0.
    pub recfmt: U16,
    /// Reserved here.
    pub reserved18: [u8; 1006],
}

/// An entry of the page.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DiscoveryLogEntry {
    /// Transport Type, see [`TransportType`].
    pub trtype: u8,
    /// Address Family, see [`AddressFamily`].
    pub adrfam: u8,
    /// Subsystem Type, see the `SUBTYPE_` constants.
    pub subtype: u8,
    /// Transport Requirements, see the `TREQ_` constants.
    pub treq: u8,
    /// Port Identifier.
    pub portid: U16,
    /// Controller ID; FFFFh with dynamic controllers.
    pub cntlid: U16,
    /// Admin Max SQ Size in entries.
    pub asqsz: U16,
    /// Entry Flags, see the `EFLAGS_` constants.
    pub eflags: U16,
    /// Reserved.
    pub reserved12: [u8; 20],
    /// Transport Service Identifier: ASCII, padded with spaces.
    pub trsvcid: [u8; 32],
    /// Reserved.
    pub reserved64: [u8; 192],
    /// NVM Subsystem Qualified Name, zero-padded.
    pub subnqn: [u8; NQN_FIELD_LEN],
    /// Transport Address: ASCII, padded with spaces.
    pub traddr: [u8; 256],
    /// Transport Specific Address Subtype.
    pub tsas: [u8; 256],
}

const _: () = {
    assert!(size_of::<DiscoveryLogHeader>() == HEADER_LEN);
    assert!(size_of::<DiscoveryLogEntry>() == ENTRY_LEN);
    assert!(std::mem::offset_of!(DiscoveryLogEntry, trsvcid) == 32);
    assert!(std::mem::offset_of!(DiscoveryLogEntry, subnqn) == 256);
    assert!(std::mem::offset_of!(DiscoveryLogEntry, traddr) == 512);
    assert!(std::mem::offset_of!(DiscoveryLogEntry, tsas) == 768);
};

/// Why a page or an entry cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// Fewer bytes than the structure has.
    #[error("discovery log {what} is {len} bytes long; 1024 are needed")]
    TooShort {
        /// `header` or `entry`.
        what: &'static str,
        /// Length in bytes.
        len: usize,
    },
    /// RECFMT is not 0.
    #[error("discovery log has record format {recfmt}; 0 is the only one known")]
    RecordFormat {
        /// Its value.
        recfmt: u16,
    },
    /// TRTYPE is none of those known here.
    #[error("discovery log entry has transport type {trtype}; 1 (rdma) and 3 (tcp) are known")]
    UnknownTransport {
        /// Its value.
        trtype: u8,
    },
    /// ADRFAM is none of those known here.
    #[error("discovery log entry has address family {adrfam}; 1 (ipv4) and 2 (ipv6) are known")]
    UnknownFamily {
        /// Its value.
        adrfam: u8,
    },
    /// SUBTYPE is none of those defined.
    #[error("discovery log entry has subsystem type {subtype}; 1, 2 and 3 are defined")]
    UnknownSubtype {
        /// Its value.
        subtype: u8,
    },
    /// TRADDR or TRSVCID is not printable ASCII.
    #[error("discovery log entry's {field} is not printable ascii")]
    NotAscii {
        /// `traddr` or `trsvcid`.
        field: &'static str,
    },
    /// TRADDR and TRSVCID are not an address.
    #[error("discovery log entry's address is wrong: {error}")]
    Address {
        /// What is wrong with it.
        error: TransportAddressError,
    },
    /// SUBNQN is not an NQN.
    #[error("discovery log entry's subsystem name is wrong: {error}")]
    SubNqn {
        /// What is wrong with it.
        error: NqnError,
    },
}

/// An entry, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryRecord {
    /// Where the subsystem is reached.
    pub address: TransportAddress,
    /// Subsystem Type, see the `SUBTYPE_` constants.
    pub subtype: u8,
    /// Transport Requirements, see the `TREQ_` constants.
    pub treq: u8,
    /// Port Identifier.
    pub portid: u16,
    /// Controller ID.
    pub cntlid: Cntlid,
    /// Admin Max SQ Size in entries.
    pub asqsz: u16,
    /// Entry Flags, see the `EFLAGS_` constants.
    pub eflags: u16,
    /// Name of the subsystem.
    pub subnqn: Nqn,
    /// SECTYPE, with TCP; 0 with others.
    pub tcp_sectype: u8,
}

impl DiscoveryLogHeader {
    /// The header of a page of `numrec` entries in generation `genctr`.
    #[must_use]
    pub fn new(genctr: u64, numrec: u64) -> Self {
        Self {
            genctr: genctr.into(),
            numrec: numrec.into(),
            recfmt: 0.into(),
            reserved18: [0; 1006],
        }
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// NUMREC is the peer's word: bound it before memory is set aside for the entries.
    pub fn parse(bytes: &[u8]) -> Result<Self, DiscoveryError> {
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| DiscoveryError::TooShort {
            what: "header",
            len: bytes.len(),
        })?;
        match header.recfmt.get() {
            0 => Ok(header),
            recfmt => Err(DiscoveryError::RecordFormat { recfmt }),
        }
    }

    /// Offset in the page, in bytes, of entry `index`; `None` when it does not fit in 64 bits.
    #[must_use]
    pub const fn entry_offset(index: u64) -> Option<u64> {
        match index.checked_mul(ENTRY_LEN as u64) {
            Some(offset) => offset.checked_add(HEADER_LEN as u64),
            None => None,
        }
    }
}

impl DiscoveryLogEntry {
    /// Reads the entry at the start of `bytes`, without a check of its fields.
    pub fn read(bytes: &[u8]) -> Result<Self, DiscoveryError> {
        let (entry, _) = Self::read_from_prefix(bytes).map_err(|_| DiscoveryError::TooShort {
            what: "entry",
            len: bytes.len(),
        })?;
        Ok(entry)
    }

    /// Reads and checks the entry at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<DiscoveryRecord, DiscoveryError> {
        Self::read(bytes)?.to_record()
    }

    /// Checks the entry.
    ///
    /// A transport that is not known here is an error, and one that a host should skip over.
    pub fn to_record(&self) -> Result<DiscoveryRecord, DiscoveryError> {
        let trtype =
            TransportType::from_wire(self.trtype).ok_or(DiscoveryError::UnknownTransport {
                trtype: self.trtype,
            })?;
        let adrfam =
            AddressFamily::from_wire(self.adrfam).ok_or(DiscoveryError::UnknownFamily {
                adrfam: self.adrfam,
            })?;
        if !(SUBTYPE_REFERRAL..=SUBTYPE_CURRENT_DISCOVERY).contains(&self.subtype) {
            return Err(DiscoveryError::UnknownSubtype {
                subtype: self.subtype,
            });
        }
        let traddr = ascii(&self.traddr, "traddr")?;
        let trsvcid = ascii(&self.trsvcid, "trsvcid")?;
        let address = TransportAddress::from_parts(trtype, adrfam, traddr, trsvcid)
            .map_err(|error| DiscoveryError::Address { error })?;
        let subnqn =
            Nqn::from_padded(&self.subnqn).map_err(|error| DiscoveryError::SubNqn { error })?;
        Ok(DiscoveryRecord {
            address,
            subtype: self.subtype,
            treq: self.treq,
            portid: self.portid.get(),
            cntlid: Cntlid(self.cntlid.get()),
            asqsz: self.asqsz.get(),
            eflags: self.eflags.get(),
            subnqn,
            tcp_sectype: if trtype == TransportType::Tcp {
                self.tsas[0]
            } else {
                0
            },
        })
    }
}

impl DiscoveryRecord {
    /// Lays out the entry.
    ///
    /// A TRADDR or TRSVCID that is too long for its field, which no IP address is, is cut.
    #[must_use]
    pub fn to_entry(&self) -> DiscoveryLogEntry {
        let mut tsas = [0; 256];
        match self.address.trtype {
            TransportType::Tcp => tsas[0] = self.tcp_sectype,
            TransportType::Rdma => {
                tsas[..3].copy_from_slice(&[
                    RDMA_QPTYPE_CONNECTED,
                    RDMA_PRTYPE_NOT_SPECIFIED,
                    RDMA_CMS_RDMA_CM,
                ]);
            }
        }
        DiscoveryLogEntry {
            trtype: self.address.trtype.to_wire(),
            adrfam: self.address.adrfam.to_wire(),
            subtype: self.subtype,
            treq: self.treq,
            portid: self.portid.into(),
            cntlid: self.cntlid.0.into(),
            asqsz: self.asqsz.into(),
            eflags: self.eflags.into(),
            reserved12: [0; 20],
            trsvcid: space_padded(&self.address.trsvcid),
            reserved64: [0; 192],
            subnqn: self.subnqn.to_padded(),
            traddr: space_padded(&self.address.traddr),
            tsas,
        }
    }
}

fn space_padded<const LEN: usize>(text: &str) -> [u8; LEN] {
    let mut field = [b' '; LEN];
    let len = text.len().min(LEN);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}

/// The text of a field. Targets differ: some pad with spaces, some with zeros.
fn ascii<'a>(field: &'a [u8], name: &'static str) -> Result<&'a str, DiscoveryError> {
    let wrong = || DiscoveryError::NotAscii { field: name };
    let terminated = field.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(terminated.trim_ascii_end()).map_err(|_| wrong())?;
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
#[path = "discovery_tests.rs"]
mod tests;
