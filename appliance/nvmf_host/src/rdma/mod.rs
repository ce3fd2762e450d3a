//! Connections over RDMA.
//!
//! A queue has a queue pair of its own, with memory that is registered for it: capsules, responses,
//! and buffers that data is staged in. A command shows the controller the range of its buffer and no
//! more, by a memory window, where the device has such; the controller's answer takes the window
//! away again, or this side does, before the buffer goes back to its owner. Without windows the
//! controller is given the key of the queue's buffers.

mod link;
mod memory;
mod queue;

pub(crate) use queue::RdmaQueue;
