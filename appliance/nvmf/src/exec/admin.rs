//! Admin commands.

use std::rc::Rc;

use nvme_spec::{Sqe, Status, opcode::admin};

use crate::queue::Queue;
use crate::slot::{Outcome, Slot};

/// Runs an admin command.
pub(crate) async fn execute(queue: &Rc<Queue>, slot: &Rc<Slot>, sqe: Sqe) -> Outcome {
    let _ = (queue, slot);
    match sqe.opcode() {
        admin::KEEP_ALIVE => Outcome::OK,
        _ => Status::INVALID_OPCODE.with_dnr(true).into(),
    }
}
