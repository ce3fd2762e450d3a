//! Abort (NVMe Base 2.1, section 5.1.1): takes back what has not gone to a device.

use std::rc::Rc;

use nvme_spec::Cid;

use crate::queue::{Queue, token};

/// Aborts a command of a queue of the same thread. `true` if it will end as aborted: it waited
/// for a buffer, for the end of a pause, for an event, or in the software queue of a device.
pub(crate) fn abort_in_queue(queue: &Rc<Queue>, cid: Cid) -> bool {
    let Some(slot) = queue.find(cid) else {
        return false;
    };
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
