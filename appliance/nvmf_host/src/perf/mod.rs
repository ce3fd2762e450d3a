//! A load generator.
//!
//! [`PerfEngine`] connects, runs a workload, and reports. It is passive as everything here: call
//! [`PerfEngine::poll`] in a loop with the time. It allocates nothing per I/O, sends the commands of a
//! poll with one call and receives their answers with another.
//!
//! Without verification, data that is read is received and counted, not kept, and all writes send the
//! same random bytes: the generator shall not be what limits. With verification every block carries
//! a stamp and a checksum; each write is read back, and each read compared.

mod engine;
mod histogram;
mod options;
mod pattern;
mod report;
mod units;

pub use engine::{PerfEngine, PerfPhase};
pub use histogram::{LatencyHistogram, LatencySummary};
pub use options::{PerfOptions, Workload};
pub use pattern::{BlockStamp, Content, Mismatch};
pub use report::{OpReport, PerfReport};
