//! A command on its way through the transport.

use dma::Payload;
use fabric_wire::rdma::{KeyedBlock, KeyedSgl};
use nvme_spec::Cqe;

use crate::stats::{RdmaGroupStats, add};

/// How far a command is, as the transport sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RequestState {
    /// No command.
    #[default]
    Free = 0,
    /// The target library runs it, or waits for a buffer for it.
    Executing = 1,
    /// Its data is to be read from the host, which waits for read depth or room in the queue.
    TransferToControllerPending = 2,
    /// Its data is being read from the host.
    TransferringToController = 3,
    /// It has a response, which waits for room in the queue.
    CompletePending = 4,
    /// Its data is being written to the host and its response sent.
    Completing = 5,
}

impl RequestState {
    /// How many there are.
    pub const COUNT: usize = 6;

    /// All of them, by number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Free,
        Self::Executing,
        Self::TransferToControllerPending,
        Self::TransferringToController,
        Self::CompletePending,
        Self::Completing,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Executing => "executing",
            Self::TransferToControllerPending => "transfer_to_controller_pending",
            Self::TransferringToController => "transferring_to_controller",
            Self::CompletePending => "complete_pending",
            Self::Completing => "completing",
        }
    }

    /// Whether `next` may come after it.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use RequestState as S;
        matches!(
            (self, next),
            (S::Free, S::Executing)
                | (S::Executing, S::TransferToControllerPending | S::CompletePending)
                | (S::TransferToControllerPending, S::TransferringToController)
                | (
                    S::TransferringToController,
                    S::TransferToControllerPending | S::Executing
                )
                | (S::CompletePending, S::Completing)
                | (S::Completing, S::Free)
                // The connection has ended.
                | (_, S::Free)
        )
    }
}

/// A command; there is one for each slot of the queue pair.
#[derive(Debug, Default)]
pub(crate) struct Request {
    state: RequestState,
    pub(crate) sgl: KeyedSgl,
    /// The command is not an admin or fabrics command.
    pub(crate) is_io: bool,
    /// The capsule, while its data has not been taken from it.
    pub(crate) receive: Option<u32>,
    /// The data: what is read from the host or written to it. Belongs to the device while a work
    /// request names it.
    pub(crate) payload: Payload,
    pub(crate) data_len: u32,
    pub(crate) cqe: Cqe,
    /// Bytes of the data that reads were posted for.
    pub(crate) posted_len: u32,
    /// Reads of the part that is outstanding.
    pub(crate) reads: u16,
    /// Work requests of the chain that is outstanding.
    pub(crate) chain_len: u16,
}

impl Request {
    pub(crate) fn state(&self) -> RequestState {
        self.state
    }

    /// Moves it on, and counts.
    #[inline]
    pub(crate) fn set_state(&mut self, next: RequestState, stats: &RdmaGroupStats) {
        debug_assert!(
            self.state.may_become(next),
            "{:?} cannot become {next:?}",
            self.state
        );
        self.state = next;
        add(&stats.states[next as usize], 1);
    }

    /// The parts of the host's memory from byte `from` of the data, none beyond `len`, with where
    /// each begins in the data.
    pub(crate) fn blocks(&self, from: u32, len: u32) -> impl Iterator<Item = (u32, KeyedBlock)> {
        let mut at = 0;
        self.sgl.blocks().iter().filter_map(move |block| {
            let start = at;
            at += block.len;
            let end = at.min(len);
            let begin = start.max(from);
            (begin < end).then(|| {
                let skipped = begin - start;
                let part = KeyedBlock {
                    address: block.address.wrapping_add(u64::from(skipped)),
                    rkey: block.rkey,
                    len: end - begin,
                };
                (begin, part)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use nvme_spec::{SglDescriptor, Sqe};

    use super::*;

    #[test]
    fn states_have_their_numbers_and_names() {
        let mut names = std::collections::HashSet::new();
        for (number, state) in RequestState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
            assert!(names.insert(state.name()));
            assert!(state.may_become(RequestState::Free), "a connection may end");
        }
        assert!(!RequestState::Free.may_become(RequestState::Completing));
        assert!(!RequestState::Executing.may_become(RequestState::Completing));
    }

    #[test]
    fn blocks_are_cut_to_the_data_that_is_moved() {
        let segment: Vec<u8> = [(0x1000, 100), (0x2000, 50), (0x3000, 100)]
            .into_iter()
            .flat_map(|(address, len)| SglDescriptor::keyed(address, len, 1, false).0)
            .collect();
        let mut sgl = SglDescriptor::last_segment(0, 48);
        sgl.0[15] |= SglDescriptor::SUBTYPE_OFFSET;
        let request = Request {
            sgl: KeyedSgl::parse(&Sqe::default().with_sgl(sgl), &segment).unwrap(),
            ..Request::default()
        };
        let parts = |from, len| -> Vec<_> {
            request
                .blocks(from, len)
                .map(|(at, block)| (at, block.address, block.len))
                .collect()
        };
        let all = [(0, 0x1000, 100), (100, 0x2000, 50), (150, 0x3000, 100)];
        assert_eq!(parts(0, 250), all);
        assert_eq!(parts(120, 160), [(120, 0x2014, 30), (150, 0x3000, 10)]);
        assert_eq!(parts(250, 250), []);
        assert_eq!(parts(0, 0), []);
    }
}
