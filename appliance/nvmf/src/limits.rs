//! Limits of commands: told in Identify, enforced where the command runs.

/// Highest ANA group identifier (Identify ANAGRPMAX) and number of groups (NANAGRPID).
pub(crate) const ANA_GROUPS_MAX: u32 = 1024;
/// Bytes that one Write Zeroes may cover (Identify WZSL). NLB allows 65,536 blocks: no less.
pub(crate) const WRITE_ZEROES_BYTES_MAX: u64 = 256 << 20;
/// Bytes that one Verify may cover (Identify VSL). It reads them all: a host waits that long.
pub(crate) const VERIFY_BYTES_MAX: u64 = 8 << 20;
/// Ranges of one Dataset Management command (Identify DMRL), the most that the command can name.
pub(crate) const DSM_RANGES_MAX: u32 = 256;
/// Ranges of one Copy command (Identify Namespace MSRC + 1).
pub(crate) const COPY_RANGES_MAX: u32 = 16;
/// Blocks of one range of a Copy command (Identify Namespace MSSRL).
pub(crate) const COPY_RANGE_BLOCKS_MAX: u32 = 65_535;
/// Blocks of one Copy command (Identify Namespace MCL).
pub(crate) const COPY_BLOCKS_MAX: u32 = 1 << 20;
/// Blocks of a fused Compare and Write (Identify ACWU + 1). Both halves share one data buffer.
pub(crate) const COMPARE_AND_WRITE_BLOCKS_MAX: u32 = 1;
/// Abort commands of one controller that wait for other threads (Identify ACL + 1).
pub(crate) const ABORTS_MAX: u8 = 4;
