//! Abort (NVMe Base 2.1, section 5.1.1): takes back what has not gone to a device.

use std::rc::Rc;

use nvme_spec::{Cid, Nsid};

use crate::queue::{Queue, token};
use crate::slot::Slot;

/// Aborts a command of a queue of the same thread. `true` if it will end as aborted: it waited
/// for a buffer, for the end of a pause, for an event, or in the software queue of a device.
pub(crate) fn abort_in_queue(queue: &Rc<Queue>, cid: Cid) -> bool {
    queue.find(cid).is_some_and(|slot| abort(queue, &slot))
}

/// Aborts the commands of a queue on a namespace that its host was preempted from. They end as
/// aborted due to Preempt and Abort; what a device has begun ends as it does.
pub(crate) fn preempt_in_queue(queue: &Rc<Queue>, nsid: Nsid) {
    let slots = queue.slots.borrow().clone();
    for slot in slots.iter().filter(|slot| slot.is_in_work()) {
        if slot.sqe().nsid() == nsid {
            slot.set_preempted();
            abort(queue, slot);
        }
    }
}

fn abort(queue: &Rc<Queue>, slot: &Slot) -> bool {
    let token = token(queue.id, slot.id);
    if queue.iobuf.borrow_mut().cancel_wait(token) || slot.can_give_up() {
        slot.set_aborted();
        queue
            .group
            .ready
            .borrow_mut()
            .push_back((queue.id, slot.id));
        return true;
    }
    queue.group.abort_in_device(token)
}
