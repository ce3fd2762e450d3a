//! An NVMe controller in this process.
