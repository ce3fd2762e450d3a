//! The private data of the RDMA connection manager's messages, RECFMT 0.

use nvme_spec::{Cntlid, Qid};
use thiserror::Error;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the private data of a request in bytes.
pub const REQUEST_LEN: usize = 32;
/// Length of the private data of an accept in bytes.
pub const ACCEPT_LEN: usize = 32;
/// Length of the private data of a reject in bytes.
pub const REJECT_LEN: usize = 4;

const RECFMT: u16 = 0;

/// STS of a reject: why a connection is refused. As an error it is what a target answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u16)]
pub enum CmStatus {
    /// The private data is shorter than its format.
    #[error("invalid private data length")]
    InvalidLength = 0x01,
    /// RECFMT is not 0.
    #[error("invalid record format")]
    InvalidRecfmt = 0x02,
    /// There is no such queue.
    #[error("invalid queue id")]
    InvalidQid = 0x03,
    /// The host's send queue is too short or too long.
    #[error("invalid host send queue size")]
    InvalidHsqsize = 0x04,
    /// The host's receive queue is too short.
    #[error("invalid host receive queue size")]
    InvalidHrqsize = 0x05,
    /// The target has no room.
    #[error("no resources")]
    NoResources = 0x06,
    /// The host's inbound read depth cannot be.
    #[error("invalid inbound read depth")]
    InvalidIrd = 0x07,
    /// The host's outbound read depth cannot be.
    #[error("invalid outbound read depth")]
    InvalidOrd = 0x08,
    /// There is no such controller.
    #[error("invalid controller id")]
    InvalidCntlid = 0x09,
}

impl CmStatus {
    /// Its number.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        self as u16
    }

    /// The status of a number; `None` if it is none of those.
    #[must_use]
    pub const fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            0x01 => Self::InvalidLength,
            0x02 => Self::InvalidRecfmt,
            0x03 => Self::InvalidQid,
            0x04 => Self::InvalidHsqsize,
            0x05 => Self::InvalidHrqsize,
            0x06 => Self::NoResources,
            0x07 => Self::InvalidIrd,
            0x08 => Self::InvalidOrd,
            0x09 => Self::InvalidCntlid,
            _ => return None,
        })
    }
}

/// What a host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// QID: the queue that the connection is for.
    pub qid: Qid,
    /// HRQSIZE: entries of the host's receive queue, and so the responses that may be on their way.
    /// Counted from 1.
    pub hrqsize: u16,
    /// HSQSIZE: entries of the host's send queue less one, as in SQSIZE of its Connect.
    pub hsqsize: u16,
    /// CNTLID: the controller of an I/O queue. Hosts of before revision 1.4 of NVMe-oF leave 0.
    pub cntlid: Cntlid,
}

/// What a target grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectAccept {
    /// CRQSIZE: entries of the controller's receive queue, counted from 1.
    pub crqsize: u16,
}

/// Why a target refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectReject {
    /// STS; see [`CmStatus::from_wire`].
    pub sts: u16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RequestLayout {
    recfmt: U16,
    qid: U16,
    hrqsize: U16,
    hsqsize: U16,
    cntlid: U16,
    reserved10: [u8; 22],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AcceptLayout {
    recfmt: U16,
    crqsize: U16,
    reserved4: [u8; 28],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RejectLayout {
    recfmt: U16,
    sts: U16,
}

const _: () = {
    assert!(size_of::<RequestLayout>() == REQUEST_LEN);
    assert!(size_of::<AcceptLayout>() == ACCEPT_LEN);
    assert!(size_of::<RejectLayout>() == REJECT_LEN);
};

/// The bytes as a layout. Connection managers pad private data: what follows is not looked at.
fn view<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<&T, CmStatus> {
    T::ref_from_prefix(bytes)
        .map(|(layout, _)| layout)
        .map_err(|_| CmStatus::InvalidLength)
}

fn check_recfmt(recfmt: U16) -> Result<(), CmStatus> {
    if recfmt.get() == RECFMT {
        Ok(())
    } else {
        Err(CmStatus::InvalidRecfmt)
    }
}

impl ConnectRequest {
    /// Reads a request. What the queue sizes may be is for the target to say.
    ///
    /// # Errors
    /// The status to reject it with.
    pub fn parse(bytes: &[u8]) -> Result<Self, CmStatus> {
        let layout: &RequestLayout = view(bytes)?;
        check_recfmt(layout.recfmt)?;
        Ok(Self {
            qid: Qid(layout.qid.get()),
            hrqsize: layout.hrqsize.get(),
            hsqsize: layout.hsqsize.get(),
            cntlid: Cntlid(layout.cntlid.get()),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REQUEST_LEN] {
        let layout = RequestLayout {
            recfmt: RECFMT.into(),
            qid: self.qid.0.into(),
            hrqsize: self.hrqsize.into(),
            hsqsize: self.hsqsize.into(),
            cntlid: self.cntlid.0.into(),
            reserved10: [0; 22],
        };
        zerocopy::transmute!(layout)
    }
}

impl ConnectAccept {
    /// Reads an accept.
    ///
    /// # Errors
    /// It is too short, or of another format.
    pub fn parse(bytes: &[u8]) -> Result<Self, CmStatus> {
        let layout: &AcceptLayout = view(bytes)?;
        check_recfmt(layout.recfmt)?;
        Ok(Self {
            crqsize: layout.crqsize.get(),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ACCEPT_LEN] {
        let layout = AcceptLayout {
            recfmt: RECFMT.into(),
            crqsize: self.crqsize.into(),
            reserved4: [0; 28],
        };
        zerocopy::transmute!(layout)
    }
}

impl ConnectReject {
    /// Reads a reject.
    ///
    /// # Errors
    /// It is too short, or of another format: then the connection was refused by something else
    /// than an NVMe target.
    pub fn parse(bytes: &[u8]) -> Result<Self, CmStatus> {
        let layout: &RejectLayout = view(bytes)?;
        check_recfmt(layout.recfmt)?;
        Ok(Self {
            sts: layout.sts.get(),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REJECT_LEN] {
        let layout = RejectLayout {
            recfmt: RECFMT.into(),
            sts: self.sts.into(),
        };
        zerocopy::transmute!(layout)
    }
}

impl From<CmStatus> for ConnectReject {
    fn from(status: CmStatus) -> Self {
        Self {
            sts: status.to_wire(),
        }
    }
}
