//! The crate's error type.

use std::io;

use crate::planner::Refusal;
use crate::region::Backing;

/// What this crate's calls fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// A region of no bytes, or of more than the address space holds.
    #[error("cannot make a memory region of {len} bytes: {why}")]
    RegionLength {
        /// Bytes asked for.
        len: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The address asked for does not fit the page size.
    #[error("region address {address:#x} is not a multiple of the page size {page_bytes}")]
    RegionAddress {
        /// Address asked for.
        address: usize,
        /// Page size of the backing, bytes.
        page_bytes: usize,
    },
    /// The backing asked for by name cannot be had. `Auto` never gives this.
    #[error(
        "no {backing} memory for {len} bytes: {needed} pages of {page_bytes} bytes needed, {free} \
         free; raise /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages or choose the backing \
         auto",
        page_bytes / 1024
    )]
    Hugepages {
        /// The backing asked for.
        backing: Backing,
        /// Bytes asked for.
        len: usize,
        /// Pages needed.
        needed: usize,
        /// Pages free at the time.
        free: usize,
        /// Page size, bytes.
        page_bytes: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Memory could not be mapped.
    #[error("cannot {call} a region of {len} bytes as {backing}")]
    Map {
        /// The system call.
        call: &'static str,
        /// Bytes asked for.
        len: usize,
        /// Back-end.
        backing: Backing,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The NUMA node asked for cannot be used.
    #[error("cannot take memory from numa node {node}; `ls /sys/devices/system/node` lists them")]
    NumaNode {
        /// The node asked for.
        node: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An iobuf option has a value that cannot work.
    #[error("iobuf option {option} is {value}, but must be {must}")]
    IobufOption {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        must: &'static str,
    },
    /// A channel's caches do not fit what the pools have left.
    #[error("no iobuf channel for module {module}: {refusal}")]
    DoesNotFit {
        /// Module that asked.
        module: String,
        /// The sum and the option to change. (Part of the message, so not a source.)
        refusal: Refusal,
    },
    /// The bound on regions of one pool.
    #[error("the iobuf pool already has {bound} regions; grow it in fewer, larger steps")]
    TooManyRegions {
        /// The bound.
        bound: usize,
    },
    /// A request asks for more than a large buffer holds. It could never be served.
    #[error("a buffer of {len} bytes was asked for, but large_bufsize is {large_bufsize}")]
    TooLong {
        /// Bytes asked for.
        len: usize,
        /// Bytes of a large buffer.
        large_bufsize: usize,
    },
    /// The queue of waiters is full: nothing was queued.
    #[error(
        "{bound} requests wait for {pool} buffers already, which is the bound; raise \
         {pool}_pool_count"
    )]
    WaitersFull {
        /// `small` or `large`.
        pool: &'static str,
        /// The bound, `max_waiters`.
        bound: usize,
    },
}
