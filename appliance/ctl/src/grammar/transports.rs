//! Options of transports.

use clap::{Args, Subcommand};

use super::values::{bytes_u32, milliseconds_u32};

#[derive(Debug, Subcommand)]
pub(crate) enum TransportKind {
    /// NVMe/TCP
    Tcp(Box<TcpTransport>),
    /// NVMe over RDMA
    Rdma(Box<RdmaTransport>),
}

#[derive(Debug, Args)]
pub(crate) struct RdmaTransport {
    /// Entries of an I/O queue [default: 128]
    #[arg(long)]
    pub(crate) max_queue_depth: Option<u32>,
    /// I/O queue pairs of a controller [default: 127]
    #[arg(long)]
    pub(crate) max_io_qpairs_per_ctrlr: Option<u32>,
    /// Data in a write capsule, up to 8KiB [default: 4KiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes_u32)]
    pub(crate) in_capsule_data_size: Option<u32>,
    /// Largest transfer of one command [default: 128KiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes_u32)]
    pub(crate) max_io_size: Option<u32>,
    /// Entries of the admin queue [default: 128]
    #[arg(long)]
    pub(crate) max_aq_depth: Option<u32>,
    /// Small buffers that a reactor keeps [default: planned]
    #[arg(long)]
    pub(crate) iobuf_small_cache_size: Option<u32>,
    /// Large buffers that a reactor keeps [default: planned]
    #[arg(long)]
    pub(crate) iobuf_large_cache_size: Option<u32>,
    /// Keep-alive granularity, in units of 100 ms [default: 100]
    #[arg(long)]
    pub(crate) kas: Option<u32>,
    /// Smallest keep-alive timeout granted [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = milliseconds_u32)]
    pub(crate) min_kato: Option<u32>,
    /// Connections of this transport [default: 1024]
    #[arg(long)]
    pub(crate) max_connections: Option<u32>,
    /// New connections per second and listener, 0 = no limit [default: 0]
    #[arg(long)]
    pub(crate) accept_rate: Option<u32>,
    /// Time from a request to connect to a finished Connect [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = milliseconds_u32)]
    pub(crate) connect_timeout: Option<u32>,
    /// Receives that a reactor's connections share on a device [default: 4096]
    #[arg(long)]
    pub(crate) max_srq_depth: Option<u32>,
    /// Give each connection receives of its own [default: false]
    #[arg(long)]
    pub(crate) no_srq: Option<bool>,
    /// Entries that a completion queue begins with [default: 4096]
    #[arg(long)]
    pub(crate) num_cqe: Option<u32>,
    /// Pending connections per listener [default: 100]
    #[arg(long)]
    pub(crate) acceptor_backlog: Option<u32>,
    /// Post each work request by itself [default: false]
    #[arg(long)]
    pub(crate) no_wr_batching: Option<bool>,
    /// Local ACK timeout, 4.096 us * 2^n, 0 to 31 [default: 0, the adapter's]
    #[arg(long)]
    pub(crate) ack_timeout: Option<u32>,
    /// Type of service of connections, 0 to 255 [default: 0, the system's]
    #[arg(long)]
    pub(crate) tos: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct TcpTransport {
    /// Entries of an I/O queue [default: 128]
    #[arg(long)]
    pub(crate) max_queue_depth: Option<u32>,
    /// I/O queue pairs of a controller [default: 127]
    #[arg(long)]
    pub(crate) max_io_qpairs_per_ctrlr: Option<u32>,
    /// Data in a write capsule [default: 8KiB; SPDK: 4KiB, which costs a round trip at 8 KiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes_u32)]
    pub(crate) in_capsule_data_size: Option<u32>,
    /// Largest transfer of one command [default: 128KiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes_u32)]
    pub(crate) max_io_size: Option<u32>,
    /// Entries of the admin queue [default: 128]
    #[arg(long)]
    pub(crate) max_aq_depth: Option<u32>,
    /// Small buffers that a reactor keeps [default: planned]
    #[arg(long)]
    pub(crate) iobuf_small_cache_size: Option<u32>,
    /// Large buffers that a reactor keeps [default: planned]
    #[arg(long)]
    pub(crate) iobuf_large_cache_size: Option<u32>,
    /// Lend device memory to the socket for reads [default: true; SPDK: false]
    #[arg(long)]
    pub(crate) zcopy: Option<bool>,
    /// Keep-alive granularity, in units of 100 ms [default: 100]
    #[arg(long)]
    pub(crate) kas: Option<u32>,
    /// Smallest keep-alive timeout granted [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = milliseconds_u32)]
    pub(crate) min_kato: Option<u32>,
    /// Connections of this transport [default: 1024]
    #[arg(long)]
    pub(crate) max_connections: Option<u32>,
    /// New connections per second and listener, 0 = no limit [default: 0]
    #[arg(long)]
    pub(crate) accept_rate: Option<u32>,
    /// Time from accept to a finished Connect [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = milliseconds_u32)]
    pub(crate) connect_timeout: Option<u32>,
    /// No completion capsule after a successful read [default: true]
    #[arg(long)]
    pub(crate) c2h_success: Option<bool>,
    /// SO_PRIORITY of the sockets, 0 to 6 [default: 0]
    #[arg(long)]
    pub(crate) sock_priority: Option<u32>,
    /// Type of service of the sockets, 0 to 255 [default: 0]
    #[arg(long)]
    pub(crate) tos: Option<u32>,
    /// Pending connections per listener [default: 1024]
    #[arg(long)]
    pub(crate) acceptor_backlog: Option<u32>,
    /// Grant header digests [default: true]
    #[arg(long)]
    pub(crate) header_digest: Option<bool>,
    /// Grant data digests [default: true]
    #[arg(long)]
    pub(crate) data_digest: Option<bool>,
}
