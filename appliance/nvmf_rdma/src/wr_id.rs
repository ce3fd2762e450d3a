//! The numbers of work requests: what completes, and whose it is.

use nvmf::transport::ConnectionId;

/// What a work request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A receive of a connection's own queue.
    Receive = 1,
    /// A receive of a shared queue: of no connection.
    SharedReceive = 2,
    /// The last read of a part of a command's data.
    Read = 3,
    /// The response of a command; writes of its data are before it.
    Send = 4,
    /// One of a chain, not the last: tells of itself only when it fails.
    Chained = 5,
}

const INDEX_BITS: u32 = 24;
const KIND_SHIFT: u32 = 56;

/// A work request's number: kind, connection, and the slot's or receive's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrId {
    pub(crate) kind: Kind,
    pub(crate) connection: ConnectionId,
    pub(crate) index: u32,
}

impl WrId {
    pub(crate) fn pack(self) -> u64 {
        debug_assert!(self.index < 1 << INDEX_BITS);
        (self.kind as u64) << KIND_SHIFT
            | u64::from(self.connection.0) << INDEX_BITS
            | u64::from(self.index)
    }

    /// `None` for a number that was not made here.
    pub(crate) fn unpack(wr_id: u64) -> Option<Self> {
        let kind = match wr_id >> KIND_SHIFT {
            1 => Kind::Receive,
            2 => Kind::SharedReceive,
            3 => Kind::Read,
            4 => Kind::Send,
            5 => Kind::Chained,
            _ => return None,
        };
        Some(Self {
            kind,
            connection: ConnectionId((wr_id >> INDEX_BITS) as u32),
            index: (wr_id & ((1 << INDEX_BITS) - 1)) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unpacked_as_they_were_packed() {
        for kind in [
            Kind::Receive,
            Kind::SharedReceive,
            Kind::Read,
            Kind::Send,
            Kind::Chained,
        ] {
            for (connection, index) in [(0, 0), (u32::MAX, 0xff_ffff), (5, 7)] {
                let wr_id = WrId {
                    kind,
                    connection: ConnectionId(connection),
                    index,
                };
                assert_eq!(WrId::unpack(wr_id.pack()), Some(wr_id));
            }
        }
        assert_eq!(WrId::unpack(0), None);
        assert_eq!(WrId::unpack(u64::MAX), None);
    }
}
