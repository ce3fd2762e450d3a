//! Transports of the target library, from what the model says.

use std::sync::Arc;

use api::v1::{TransportSpec, transport_spec};
use nvmf::transport::Transport;
use nvmf_rdma::{RdmaOptions, RdmaTransport};
use nvmf_tcp::{TcpOptions, TcpTransport};

use super::apply::{pending, wrong};
use super::refused;
use crate::runtime::RuntimeError;

/// Makes a transport.
///
/// # Errors
/// An option is wrong; or the type is not built in; or, for RDMA, what it needs of the system is
/// not there: then it is pending.
pub(super) fn make(spec: &TransportSpec) -> Result<Arc<dyn Transport>, RuntimeError> {
    match spec.trtype.as_str() {
        "tcp" => {
            let transport = TcpTransport::new(tcp_options(spec)?);
            Ok(Arc::new(transport.map_err(|error| refused(&error))?))
        }
        "rdma" => {
            let options = rdma_options(spec)?;
            let transport = RdmaTransport::new(options, provider()?);
            Ok(Arc::new(transport.map_err(|error| refused(&error))?))
        }
        other => Err(wrong(format!("transport {other} is not built in"))),
    }
}

fn provider() -> Result<Arc<dyn verbs::Provider>, RuntimeError> {
    crate::rdma::provider().map_err(pending)
}

fn rdma_options(spec: &TransportSpec) -> Result<RdmaOptions, RuntimeError> {
    let defaults = RdmaOptions::default();
    let rdma = match &spec.options {
        Some(transport_spec::Options::Rdma(rdma)) => *rdma,
        _ => api::v1::RdmaOptions::default(),
    };
    Ok(RdmaOptions {
        max_queue_depth: narrow(
            spec.max_queue_depth,
            "max_queue_depth",
            defaults.max_queue_depth,
        )?,
        max_io_qpairs_per_ctrlr: narrow(
            spec.max_io_qpairs_per_ctrlr,
            "max_io_qpairs_per_ctrlr",
            defaults.max_io_qpairs_per_ctrlr,
        )?,
        in_capsule_data_size: spec
            .in_capsule_data_size
            .unwrap_or(defaults.in_capsule_data_size),
        max_io_size: spec.max_io_size.unwrap_or(defaults.max_io_size),
        max_aq_depth: narrow(spec.max_aq_depth, "max_aq_depth", defaults.max_aq_depth)?,
        max_srq_depth: rdma.max_srq_depth.unwrap_or(defaults.max_srq_depth),
        no_srq: rdma.no_srq.unwrap_or(defaults.no_srq),
        num_cqe: rdma.num_cqe.unwrap_or(defaults.num_cqe),
        acceptor_backlog: narrow(
            rdma.acceptor_backlog,
            "acceptor_backlog",
            defaults.acceptor_backlog,
        )?,
        no_wr_batching: rdma.no_wr_batching.unwrap_or(defaults.no_wr_batching),
        ack_timeout: narrow(rdma.ack_timeout, "ack_timeout", defaults.ack_timeout)?,
        tos: narrow(rdma.tos, "tos", defaults.tos)?,
        max_connections: spec.max_connections.unwrap_or(defaults.max_connections),
        accept_rate_per_s: match spec.accept_rate_per_s {
            None | Some(0) => 1_000_000,
            Some(rate) => rate,
        },
        kas: narrow(spec.kas, "kas", defaults.kas)?,
        min_kato_ms: spec.min_kato.unwrap_or(defaults.min_kato_ms),
        iobuf_small_cache_size: spec.iobuf_small_cache_size,
        iobuf_large_cache_size: spec.iobuf_large_cache_size,
        half_open_timeout_ms: spec
            .connect_timeout_ms
            .unwrap_or(defaults.half_open_timeout_ms),
        ..defaults
    })
}

fn tcp_options(spec: &TransportSpec) -> Result<TcpOptions, RuntimeError> {
    let defaults = TcpOptions::default();
    let tcp = match &spec.options {
        Some(transport_spec::Options::Tcp(tcp)) => *tcp,
        _ => api::v1::TcpOptions::default(),
    };
    Ok(TcpOptions {
        max_queue_depth: narrow(
            spec.max_queue_depth,
            "max_queue_depth",
            defaults.max_queue_depth,
        )?,
        max_io_qpairs_per_ctrlr: narrow(
            spec.max_io_qpairs_per_ctrlr,
            "max_io_qpairs_per_ctrlr",
            defaults.max_io_qpairs_per_ctrlr,
        )?,
        in_capsule_data_size: spec
            .in_capsule_data_size
            .unwrap_or(defaults.in_capsule_data_size),
        max_io_size: spec.max_io_size.unwrap_or(defaults.max_io_size),
        max_aq_depth: narrow(spec.max_aq_depth, "max_aq_depth", defaults.max_aq_depth)?,
        c2h_success: tcp.c2h_success.unwrap_or(defaults.c2h_success),
        sock_priority: narrow(tcp.sock_priority, "sock_priority", defaults.sock_priority)?,
        tos: narrow(tcp.tos, "tos", defaults.tos)?,
        backlog: narrow(tcp.acceptor_backlog, "acceptor_backlog", defaults.backlog)?,
        max_connections: spec.max_connections.unwrap_or(defaults.max_connections),
        accept_rate_per_s: match spec.accept_rate_per_s {
            None | Some(0) => 1_000_000,
            Some(rate) => rate,
        },
        zcopy: spec.zcopy.unwrap_or(defaults.zcopy),
        kas: narrow(spec.kas, "kas", defaults.kas)?,
        min_kato_ms: spec.min_kato.unwrap_or(defaults.min_kato_ms),
        iobuf_small_cache_size: spec.iobuf_small_cache_size,
        iobuf_large_cache_size: spec.iobuf_large_cache_size,
        header_digest: tcp.header_digest.unwrap_or(defaults.header_digest),
        data_digest: tcp.data_digest.unwrap_or(defaults.data_digest),
        half_open_timeout_ms: spec
            .connect_timeout_ms
            .unwrap_or(defaults.half_open_timeout_ms),
        ..defaults
    })
}

fn narrow<T: TryFrom<u32>>(
    value: Option<u32>,
    field: &'static str,
    default: T,
) -> Result<T, RuntimeError> {
    match value {
        None => Ok(default),
        Some(value) => {
            T::try_from(value).map_err(|_| wrong(format!("{field} {value} is too large")))
        }
    }
}
