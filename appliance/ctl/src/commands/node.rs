//! `aditctl node`.

use api::quantity::format_bytes;
use api::v1::node_service_client::NodeServiceClient;
use api::v1::{DrainNodeRequest, GetNodeRequest, Node};

use super::{Context, properties, short};
use crate::failure::Failure;
use crate::grammar::NodeVerb;
use crate::output;

pub(crate) async fn run(context: &Context, verb: NodeVerb) -> Result<(), Failure> {
    let mut client = NodeServiceClient::new(context.channel.clone());
    let node = match verb {
        NodeVerb::Show => client.get_node(GetNodeRequest {}).await?,
        NodeVerb::Drain { timeout } => {
            client
                .drain_node(DrainNodeRequest {
                    timeout_ms: Some(timeout),
                    shutdown: false,
                })
                .await?
        }
        NodeVerb::Shutdown { timeout } => {
            client
                .drain_node(DrainNodeRequest {
                    timeout_ms: Some(timeout),
                    shutdown: true,
                })
                .await?
        }
    };
    output::object(context.format, &node.into_inner(), show)
}

fn show(node: &Node) -> String {
    let memory = node.memory.clone().unwrap_or_default();
    let counts = node.objects.unwrap_or_default();
    let capabilities = node.capabilities.clone().unwrap_or_default();
    let mut text = properties(&[
        ("node", node.node_id.clone()),
        ("version", node.version.clone()),
        ("state", short(node.state().as_str_name(), "NODE_STATE_")),
        ("process", node.pid.to_string()),
        ("state directory", node.state_dir.clone()),
        ("revision", node.revision.to_string()),
        ("transports", capabilities.transports.join(", ")),
        ("device kinds", capabilities.bdev_kinds.join(", ")),
        (
            "memory",
            format!(
                "{} ({})",
                format_bytes(memory.reserved_bytes),
                memory.backing
            ),
        ),
        (
            "objects",
            format!(
                "{} bdevs, {} subsystems, {} namespaces, {} listeners, {} hosts",
                counts.bdevs, counts.subsystems, counts.namespaces, counts.listeners, counts.hosts
            ),
        ),
        (
            "connected",
            format!(
                "{} controllers, {} queue pairs",
                counts.controllers, counts.qpairs
            ),
        ),
    ]);
    for notice in &node.notices {
        text.push_str(&format!("note: {notice}\n"));
    }
    for object in &node.pending_objects {
        text.push_str(&format!(
            "pending: {} {}: {}\n",
            object.kind, object.name, object.reason
        ));
    }
    text
}
