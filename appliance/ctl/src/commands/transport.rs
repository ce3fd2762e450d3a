//! `aditctl transport`.

use api::quantity::format_bytes;
use api::v1::transport_service_client::TransportServiceClient;
use api::v1::{
    CreateTransportRequest, DeleteTransportRequest, GetTransportRequest, ListTransportsRequest,
    RdmaOptions, TcpOptions, Transport, TransportSpec, UpdateTransportRequest, transport_spec,
};
use prost_types::FieldMask;

use super::{Context, PAGE_SIZE, pages, properties, state};
use crate::failure::Failure;
use crate::grammar::{RdmaTransport, TcpTransport, TransportKind, TransportVerb};
use crate::output;
use crate::table::Table;

pub(crate) async fn run(context: &Context, verb: TransportVerb) -> Result<(), Failure> {
    let mut client = TransportServiceClient::new(context.channel.clone());
    let transport = match verb {
        TransportVerb::Create { kind } => {
            let request = CreateTransportRequest {
                transport: Some(spec(&kind)),
            };
            client.create_transport(request).await?.into_inner()
        }
        TransportVerb::Set { kind } => {
            let transport = spec(&kind);
            let request = UpdateTransportRequest {
                update_mask: Some(FieldMask {
                    paths: given(&transport),
                }),
                transport: Some(transport),
                expected_generation: None,
            };
            client.update_transport(request).await?.into_inner()
        }
        TransportVerb::Show { trtype } => client
            .get_transport(GetTransportRequest { trtype })
            .await?
            .into_inner(),
        TransportVerb::Delete { trtype, expected } => {
            let expected_generation = expected.expected_generation;
            let request = DeleteTransportRequest {
                trtype,
                expected_generation,
                allow_missing: false,
            };
            client.delete_transport(request).await?;
            return Ok(());
        }
        TransportVerb::List => {
            let all = pages(|page_token| {
                let mut client = client.clone();
                async move {
                    let request = ListTransportsRequest {
                        page_size: PAGE_SIZE,
                        page_token,
                    };
                    let page = client.list_transports(request).await?.into_inner();
                    Ok((page.transports, page.next_page_token))
                }
            })
            .await?;
            return output::list(context.format, "transports", &all, list);
        }
    };
    output::object(context.format, &transport, show)
}

fn spec(kind: &TransportKind) -> TransportSpec {
    match kind {
        TransportKind::Tcp(options) => tcp_spec(options),
        TransportKind::Rdma(options) => rdma_spec(options),
    }
}

/// The options of a type, none of them set.
fn no_options(trtype: &str) -> transport_spec::Options {
    if trtype == "rdma" {
        transport_spec::Options::Rdma(RdmaOptions::default())
    } else {
        transport_spec::Options::Tcp(TcpOptions::default())
    }
}

fn rdma_spec(options: &RdmaTransport) -> TransportSpec {
    let rdma = RdmaOptions {
        max_srq_depth: options.max_srq_depth,
        no_srq: options.no_srq,
        num_cqe: options.num_cqe,
        acceptor_backlog: options.acceptor_backlog,
        no_wr_batching: options.no_wr_batching,
        data_wr_pool_size: None,
        ack_timeout: options.ack_timeout,
        tos: options.tos,
    };
    TransportSpec {
        trtype: "rdma".to_owned(),
        max_queue_depth: options.max_queue_depth,
        max_io_qpairs_per_ctrlr: options.max_io_qpairs_per_ctrlr,
        in_capsule_data_size: options.in_capsule_data_size,
        max_io_size: options.max_io_size,
        max_aq_depth: options.max_aq_depth,
        iobuf_small_cache_size: options.iobuf_small_cache_size,
        iobuf_large_cache_size: options.iobuf_large_cache_size,
        kas: options.kas,
        min_kato: options.min_kato,
        max_connections: options.max_connections,
        accept_rate_per_s: options.accept_rate,
        connect_timeout_ms: options.connect_timeout,
        options: (rdma != RdmaOptions::default()).then_some(transport_spec::Options::Rdma(rdma)),
        ..TransportSpec::default()
    }
}

fn tcp_spec(options: &TcpTransport) -> TransportSpec {
    let tcp = TcpOptions {
        c2h_success: options.c2h_success,
        sock_priority: options.sock_priority,
        tos: options.tos,
        acceptor_backlog: options.acceptor_backlog,
        header_digest: options.header_digest,
        data_digest: options.data_digest,
    };
    TransportSpec {
        trtype: "tcp".to_owned(),
        max_queue_depth: options.max_queue_depth,
        max_io_qpairs_per_ctrlr: options.max_io_qpairs_per_ctrlr,
        in_capsule_data_size: options.in_capsule_data_size,
        max_io_size: options.max_io_size,
        max_aq_depth: options.max_aq_depth,
        iobuf_small_cache_size: options.iobuf_small_cache_size,
        iobuf_large_cache_size: options.iobuf_large_cache_size,
        zcopy: options.zcopy,
        kas: options.kas,
        min_kato: options.min_kato,
        max_connections: options.max_connections,
        accept_rate_per_s: options.accept_rate,
        connect_timeout_ms: options.connect_timeout,
        options: (tcp != TcpOptions::default()).then_some(transport_spec::Options::Tcp(tcp)),
        ..TransportSpec::default()
    }
}

/// The paths of the fields that are set: what differs from nothing.
fn given(transport: &TransportSpec) -> Vec<String> {
    let nothing = TransportSpec {
        trtype: transport.trtype.clone(),
        options: Some(no_options(&transport.trtype)),
        ..TransportSpec::default()
    };
    let mut transport = transport.clone();
    let none = no_options(&transport.trtype);
    transport.options.get_or_insert(none);
    api::fields::differences(&nothing, &transport)
        .into_iter()
        .map(|d| d.field)
        .collect()
}

fn list(transports: &[Transport]) -> String {
    let mut table = Table::new(&[
        "TYPE",
        "QUEUE DEPTH",
        "MAX I/O",
        "LISTENERS",
        "CONNECTIONS",
        "STATE",
    ]);
    for transport in transports {
        let spec = transport.spec.clone().unwrap_or_default();
        table.row([
            spec.trtype.clone(),
            spec.max_queue_depth().to_string(),
            format_bytes(spec.max_io_size().into()),
            transport.listeners.to_string(),
            transport.connections.to_string(),
            state(transport.status.as_ref()),
        ]);
    }
    table.to_string()
}

fn show(transport: &Transport) -> String {
    let spec = transport.spec.clone().unwrap_or_default();
    // Every option by its own name: people look for SPDK's.
    let nothing = TransportSpec {
        options: Some(no_options(&spec.trtype)),
        ..TransportSpec::default()
    };
    let options = api::fields::differences(&nothing, &spec);
    let mut pairs: Vec<(&str, String)> = options
        .iter()
        .map(|option| (option.field.as_str(), option.second.clone()))
        .collect();
    pairs.push(("generation", transport.generation.to_string()));
    pairs.push(("listeners", transport.listeners.to_string()));
    pairs.push(("connections", transport.connections.to_string()));
    pairs.push((
        "connections_accepted",
        transport.connections_accepted.to_string(),
    ));
    pairs.push((
        "connections_refused",
        transport.connections_refused.to_string(),
    ));
    pairs.push(("state", state(transport.status.as_ref())));
    properties(&pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_names_only_what_was_given() {
        let mut transport = TransportSpec {
            trtype: "tcp".into(),
            kas: Some(0),
            ..TransportSpec::default()
        };
        assert_eq!(given(&transport), ["kas"]);
        let tcp = TcpOptions {
            tos: Some(8),
            ..TcpOptions::default()
        };
        transport.options = Some(transport_spec::Options::Tcp(tcp));
        assert_eq!(given(&transport), ["kas", "tcp.tos"]);
    }
}
