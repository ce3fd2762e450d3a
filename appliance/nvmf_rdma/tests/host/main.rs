//! A target over RDMA on a double of verbs, against a host made by hand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod allocations;
mod capsules;
mod raw;
mod removal;
