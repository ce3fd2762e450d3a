//! What a connection needs of the target library, apart from the library: so that a connection
//! can be tested against a core that does as the test says.

use dma::Payload;
use nvme_spec::Sqe;
use nvmf::transport::{QpairId, Response, SlotId, Step};
use nvmf::{CommandError, Core, OpenQpair};

/// The queue pairs; see [`Core`], whose methods these are.
pub(crate) trait Commands {
    fn open(&mut self, open: OpenQpair) -> Option<QpairId>;
    fn command(
        &mut self,
        qpair: QpairId,
        sqe: Sqe,
        in_capsule_len: u32,
    ) -> Result<(SlotId, Step), CommandError>;
    fn take_receive(&mut self, qpair: QpairId, slot: SlotId) -> (Payload, u32);
    /// `Payload::None` says that the data has not come intact: the command ends with Transient
    /// Transport Error.
    fn data_received(&mut self, qpair: QpairId, slot: SlotId, payload: Payload) -> Step;
    fn take_response(&mut self, qpair: QpairId, slot: SlotId) -> Option<Response>;
    fn response_sent(&mut self, qpair: QpairId, slot: SlotId);
    fn forgotten(&mut self, qpair: QpairId, slot: SlotId);
    fn closed(&mut self, qpair: QpairId);
}

impl Commands for Core {
    fn open(&mut self, open: OpenQpair) -> Option<QpairId> {
        let remote = open.peer.remote.clone();
        match Core::open(self, open) {
            Ok(qpair) => Some(qpair),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, peer = remote, "cannot make a queue pair");
                None
            }
        }
    }

    fn command(
        &mut self,
        qpair: QpairId,
        sqe: Sqe,
        in_capsule_len: u32,
    ) -> Result<(SlotId, Step), CommandError> {
        Core::command(self, qpair, sqe, in_capsule_len)
    }

    fn take_receive(&mut self, qpair: QpairId, slot: SlotId) -> (Payload, u32) {
        Core::take_receive(self, qpair, slot)
    }

    fn data_received(&mut self, qpair: QpairId, slot: SlotId, payload: Payload) -> Step {
        Core::data_received(self, qpair, slot, payload)
    }

    fn take_response(&mut self, qpair: QpairId, slot: SlotId) -> Option<Response> {
        Core::take_response(self, qpair, slot)
    }

    fn response_sent(&mut self, qpair: QpairId, slot: SlotId) {
        Core::response_sent(self, qpair, slot);
    }

    fn forgotten(&mut self, qpair: QpairId, slot: SlotId) {
        Core::forgotten(self, qpair, slot);
    }

    fn closed(&mut self, qpair: QpairId) {
        Core::closed(self, qpair);
    }
}
