//! Request slots: where a command lives from its capsule to its response.
//!
//! A queue pair owns its slots. Each slot has one future, written in place on first use and kept
//! for the queue pair's life, that serves one command after another. Nothing is allocated for a
//! command: whatever the future waits for is put into a cell of the slot, and then exactly this
//! future is polled. Wakers are not used.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::Poll;

use block::Completion;
use dma::{IoBuf, Payload};
use nvme_spec::{Cqe, Sqe, Status};

use crate::exec::io::FirstHalf;
use crate::share::Charge;
use crate::transport::{SlotId, Step};

/// How far a slot's command has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// No command.
    Free,
    /// A command has arrived and its future has not seen it yet.
    Arrived,
    /// The future works or waits for a device, a buffer or an event.
    Running,
    /// The transport shall fetch the host's data.
    Receive,
    /// The transport has the buffer and receives.
    Receiving,
    /// The transport shall send the response.
    Respond,
    /// The transport has the response and sends.
    Responding,
    /// The command has ended without a response, which the transport shall be told.
    Forgotten,
}

/// What a command ended with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    /// Dwords 0 and 1 of the completion.
    pub(crate) result: u64,
}

impl Outcome {
    pub(crate) const OK: Self = Self {
        status: Status::SUCCESS,
        result: 0,
    };

    pub(crate) const fn ok(result: u64) -> Self {
        Self {
            status: Status::SUCCESS,
            result,
        }
    }
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

impl From<Result<u64, Status>> for Outcome {
    fn from(result: Result<u64, Status>) -> Self {
        match result {
            Ok(result) => Self::ok(result),
            Err(status) => status.into(),
        }
    }
}

/// One command slot.
pub(crate) struct Slot {
    pub(crate) id: SlotId,
    sqe: Cell<Sqe>,
    state: Cell<SlotState>,
    /// The command's data: the host's when it came in, the host's to be when it goes out.
    payload: Cell<Payload>,
    data_len: Cell<u32>,
    completion: Cell<Option<Completion>>,
    buffer: Cell<Option<IoBuf>>,
    /// For the buffer that the command holds.
    charge: Cell<Option<Charge>>,
    cqe: Cell<Cqe>,
    /// Bytes of data that came within the capsule.
    in_capsule_len: Cell<u32>,
    /// Set by the Abort command; a future that can give up does so when it is polled.
    aborted: Cell<bool>,
    /// How the first half of a fused pair ended, when this slot serves one.
    pub(crate) fused: Cell<FirstHalf>,
    /// The second half, when it waits for this first half's data.
    pub(crate) fused_second: Cell<Option<SlotId>>,
    is_parked: Cell<bool>,
    /// The future waits for something that an abort ends.
    can_give_up: Cell<bool>,
    /// It is aborted because its host was preempted.
    is_preempted: Cell<bool>,
    /// Counts the commands.
    generation: Cell<u32>,
    /// Another command that is not finished has the same identifier.
    is_duplicate: Cell<bool>,
    /// The command ends without a response: the controller was reset.
    is_forgotten: Cell<bool>,
}

impl Slot {
    pub(crate) fn new(id: SlotId) -> Self {
        Self {
            id,
            sqe: Cell::new(Sqe::default()),
            state: Cell::new(SlotState::Free),
            payload: Cell::new(Payload::None),
            data_len: Cell::new(0),
            completion: Cell::new(None),
            buffer: Cell::new(None),
            charge: Cell::new(None),
            cqe: Cell::new(Cqe::default()),
            in_capsule_len: Cell::new(0),
            aborted: Cell::new(false),
            fused: Cell::new(FirstHalf::Ended(Status::SUCCESS)),
            fused_second: Cell::new(None),
            is_parked: Cell::new(false),
            can_give_up: Cell::new(false),
            is_preempted: Cell::new(false),
            generation: Cell::new(0),
            is_duplicate: Cell::new(false),
            is_forgotten: Cell::new(false),
        }
    }

    // The group's and the transport's side.

    #[cfg(test)]
    pub(crate) fn state(&self) -> SlotState {
        self.state.get()
    }

    /// The command that the slot serves, or served last.
    pub(crate) fn sqe(&self) -> Sqe {
        self.sqe.get()
    }

    pub(crate) fn in_capsule_len(&self) -> u32 {
        self.in_capsule_len.get()
    }

    pub(crate) fn accept(&self, sqe: Sqe, in_capsule_len: u32, is_duplicate: bool) {
        debug_assert_eq!(
            self.state.get(),
            SlotState::Free,
            "a slot serves one command at a time"
        );
        self.sqe.set(sqe);
        self.in_capsule_len.set(in_capsule_len);
        self.generation.set(self.generation.get().wrapping_add(1));
        self.data_len.set(0);
        self.is_duplicate.set(is_duplicate);
        self.is_forgotten.set(false);
        self.is_preempted.set(false);
        self.aborted.set(false);
        self.can_give_up.set(false);
        self.state.set(SlotState::Arrived);
    }

    /// What the transport shall do next.
    pub(crate) fn step(&self) -> Step {
        match self.state.get() {
            SlotState::Receive => Step::Receive,
            SlotState::Respond => Step::Respond,
            SlotState::Forgotten => Step::Forget,
            _ => Step::Pending,
        }
    }

    /// The buffer to fill, and how many bytes the host shall send.
    pub(crate) fn take_receive(&self) -> (Payload, u32) {
        debug_assert_eq!(self.state.get(), SlotState::Receive);
        self.state.set(SlotState::Receiving);
        (self.payload.take(), self.data_len.get())
    }

    pub(crate) fn data_received(&self, payload: Payload) {
        debug_assert_eq!(self.state.get(), SlotState::Receiving);
        self.payload.set(payload);
        self.state.set(SlotState::Running);
    }

    pub(crate) fn take_response(&self) -> (Cqe, Payload, u32) {
        debug_assert_eq!(self.state.get(), SlotState::Respond);
        self.state.set(SlotState::Responding);
        (self.cqe.get(), self.payload.take(), self.data_len.get())
    }

    pub(crate) fn response_sent(&self) {
        debug_assert_eq!(self.state.get(), SlotState::Responding);
        self.discharge();
        self.state.set(SlotState::Free);
    }

    pub(crate) fn deliver_completion(&self, completion: Completion) {
        self.completion.set(Some(completion));
    }

    pub(crate) fn deliver_buffer(&self, buffer: IoBuf) {
        self.buffer.set(Some(buffer));
    }

    /// The command's buffer is charged to its host.
    pub(crate) fn charge(&self, charge: Charge) {
        self.charge.set(Some(charge));
    }

    pub(crate) fn is_charged(&self) -> bool {
        let charge = self.charge.take();
        let is_charged = charge.is_some();
        self.charge.set(charge);
        is_charged
    }

    /// The command holds no buffer any more.
    pub(crate) fn discharge(&self) {
        self.charge.take();
    }

    pub(crate) fn can_give_up(&self) -> bool {
        self.can_give_up.get()
    }

    pub(crate) fn set_aborted(&self) {
        self.aborted.set(true);
    }

    pub(crate) fn set_preempted(&self) {
        self.is_preempted.set(true);
    }

    /// The command has ended as aborted; how that is told.
    pub(crate) fn abort_status(&self) -> Status {
        if self.is_preempted.get() {
            Status::ABORTED_PREEMPT_AND_ABORT
        } else {
            Status::COMMAND_ABORT_REQUESTED
        }
    }

    /// A command is there and has not been answered.
    pub(crate) fn is_in_work(&self) -> bool {
        matches!(
            self.state.get(),
            SlotState::Arrived | SlotState::Running | SlotState::Receive | SlotState::Receiving
        )
    }

    /// What the command waits for can no longer be taken back: an abort comes too late.
    pub(crate) fn hold(&self) {
        self.can_give_up.set(false);
    }

    /// Tells the present command from an earlier one.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.get()
    }

    pub(crate) fn is_duplicate(&self) -> bool {
        self.is_duplicate.get()
    }

    /// Ends a command that waits, without a response.
    pub(crate) fn forget(&self) {
        self.is_forgotten.set(true);
        self.aborted.set(true);
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.is_forgotten.get()
    }

    /// The transport knows that the command is forgotten: the slot may serve another one.
    pub(crate) fn forgotten(&self) {
        debug_assert_eq!(self.state.get(), SlotState::Forgotten);
        self.state.set(SlotState::Free);
    }

    /// Drops what the slot holds; for a queue pair that is closed. Its charge stays while a device
    /// has the buffer: it goes with the slot.
    pub(crate) fn clear(&self) {
        self.payload.take();
        self.completion.take();
        self.buffer.take();
    }

    // The future's side.

    /// Waits until `ready` says so, or until the command is aborted.
    ///
    /// # Errors
    /// The command was aborted.
    pub(crate) async fn until(&self, ready: impl Fn() -> bool) -> Result<(), Status> {
        self.can_give_up.set(true);
        let result = poll_fn(|_| match (ready(), self.aborted.get()) {
            (true, _) => Poll::Ready(Ok(())),
            (false, true) => Poll::Ready(Err(Status::COMMAND_ABORT_REQUESTED)),
            (false, false) => Poll::Pending,
        })
        .await;
        self.can_give_up.set(false);
        result
    }

    /// Keeps data in the slot until somebody takes it.
    pub(crate) fn park(&self, payload: Payload) {
        self.payload.set(payload);
        self.is_parked.set(true);
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.is_parked.get()
    }

    pub(crate) fn take_payload(&self) -> Payload {
        self.is_parked.set(false);
        self.payload.take()
    }

    /// Sets the data that goes to the host with a successful response.
    pub(crate) fn set_response_data(&self, payload: Payload, data_len: u32) {
        self.payload.set(payload);
        self.data_len.set(data_len);
    }

    pub(crate) async fn command(&self) -> Sqe {
        poll_fn(|_| match self.state.get() {
            SlotState::Arrived => {
                self.state.set(SlotState::Running);
                Poll::Ready(self.sqe.get())
            }
            _ => Poll::Pending,
        })
        .await
    }

    /// Waits until the transport has filled `payload` with `len` bytes of the host. An error if
    /// they have not come intact.
    pub(crate) async fn receive(&self, payload: Payload, len: u32) -> Result<Payload, Status> {
        self.payload.set(payload);
        self.data_len.set(len);
        self.state.set(SlotState::Receive);
        let received = poll_fn(|_| match self.state.get() {
            SlotState::Running => Poll::Ready(self.payload.take()),
            _ => Poll::Pending,
        })
        .await;
        // What came in is not what goes out.
        self.data_len.set(0);
        match received {
            Payload::None => Err(Status::TRANSIENT_TRANSPORT_ERROR),
            payload => Ok(payload),
        }
    }

    pub(crate) async fn completion(&self) -> Completion {
        poll_fn(|_| match self.completion.take() {
            Some(completion) => Poll::Ready(completion),
            None => Poll::Pending,
        })
        .await
    }

    /// Waits for a buffer for which the slot has queued; `None` once the command is aborted.
    pub(crate) async fn buffer(&self) -> Option<IoBuf> {
        poll_fn(|_| match self.buffer.take() {
            Some(buffer) => Poll::Ready(Some(buffer)),
            None if self.aborted.get() => Poll::Ready(None),
            None => Poll::Pending,
        })
        .await
    }

    /// Gives the response to the transport and waits until it has been sent.
    pub(crate) async fn respond(&self, cqe: Cqe) {
        self.cqe.set(cqe);
        if !cqe.status().is_success() || self.data_len.get() == 0 {
            self.drop_data();
        }
        self.state.set(SlotState::Respond);
        self.until_free().await;
    }

    /// Ends the command without a response, and waits until the transport knows.
    pub(crate) async fn end_unanswered(&self) {
        self.drop_data();
        self.state.set(SlotState::Forgotten);
        self.until_free().await;
    }

    /// The command has nothing for the host, and holds no buffer.
    fn drop_data(&self) {
        self.payload.take();
        self.data_len.set(0);
        self.discharge();
    }

    async fn until_free(&self) {
        poll_fn(|_| match self.state.get() {
            SlotState::Free | SlotState::Arrived => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Waker};

    use nvme_spec::Cid;

    use super::*;

    fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn accepted(slot: &Slot, cid: u16) {
        slot.accept(Sqe::default().with_cid(Cid(cid)), 0, false);
    }

    #[test]
    fn a_slot_serves_one_command_after_another() {
        let slot = Slot::new(SlotId(3));
        let mut served = pin!(async {
            for _ in 0..2 {
                let sqe = slot.command().await;
                slot.respond(Cqe::new(sqe.cid(), Status::SUCCESS)).await;
            }
        });
        assert!(poll(served.as_mut()).is_pending());
        for cid in [5, 6] {
            accepted(&slot, cid);
            assert!(poll(served.as_mut()).is_pending());
            assert_eq!(slot.step(), Step::Respond);
            // Polled for nothing: still one response.
            assert!(poll(served.as_mut()).is_pending());
            let (cqe, payload, len) = slot.take_response();
            assert_eq!((cqe.cid(), payload.len(), len), (Cid(cid), 0, 0));
            assert_eq!(slot.step(), Step::Pending);
            slot.response_sent();
        }
        assert!(poll(served.as_mut()).is_ready());
    }

    #[test]
    fn data_that_does_not_come_intact_ends_the_command() {
        let slot = Slot::new(SlotId(0));
        accepted(&slot, 1);
        let mut received = pin!(slot.receive(Payload::None, 512));
        assert!(poll(received.as_mut()).is_pending());
        assert_eq!((slot.step(), slot.take_receive().1), (Step::Receive, 512));
        assert!(poll(received.as_mut()).is_pending(), "the transport has it");
        slot.data_received(Payload::None);
        let Poll::Ready(Err(status)) = poll(received.as_mut()) else {
            panic!()
        };
        assert_eq!(status, Status::TRANSIENT_TRANSPORT_ERROR);
    }

    #[test]
    fn an_abort_ends_what_waits_unless_it_is_held_or_ready() {
        let slot = Slot::new(SlotId(0));
        accepted(&slot, 1);
        let is_ready = Cell::new(false);
        assert!(!slot.can_give_up());
        {
            let mut waiting = pin!(slot.until(|| is_ready.get()));
            assert!(poll(waiting.as_mut()).is_pending());
            assert!(slot.can_give_up());
            slot.hold();
            assert!(!slot.can_give_up());
            slot.set_aborted();
            let aborted = Err(Status::COMMAND_ABORT_REQUESTED);
            assert_eq!(poll(waiting.as_mut()), Poll::Ready(aborted));
        }
        assert!(!slot.can_give_up());
        is_ready.set(true);
        let mut waiting = pin!(slot.until(|| is_ready.get()));
        assert_eq!(
            poll(waiting.as_mut()),
            Poll::Ready(Ok(())),
            "it came too late"
        );
    }

    #[test]
    fn a_forgotten_commands_slot_is_free_once_the_transport_knows() {
        let slot = Slot::new(SlotId(0));
        accepted(&slot, 1);
        let generation = slot.generation();
        slot.forget();
        assert!(slot.is_forgotten());
        {
            let mut ended = pin!(slot.end_unanswered());
            assert!(poll(ended.as_mut()).is_pending());
            assert_eq!(slot.step(), Step::Forget);
            slot.forgotten();
            assert!(poll(ended.as_mut()).is_ready());
        }
        assert_eq!(
            (slot.state(), slot.step()),
            (SlotState::Free, Step::Pending)
        );
        accepted(&slot, 1);
        assert!(!slot.is_forgotten());
        assert_ne!(slot.generation(), generation);
    }

    #[test]
    fn a_failed_command_sends_no_data() {
        let slot = Slot::new(SlotId(0));
        accepted(&slot, 1);
        slot.set_response_data(Payload::None, 512);
        let mut responding = pin!(slot.respond(Cqe::new(Cid(1), Status::INTERNAL_ERROR)));
        assert!(poll(responding.as_mut()).is_pending());
        let (.., len) = slot.take_response();
        assert_eq!(len, 0);
    }
}
