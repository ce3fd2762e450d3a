//! `aditctl node`.

use api::quantity::format_bytes;
use api::v1::node_service_client::NodeServiceClient;
use api::v1::{DrainNodeRequest, GetNodeRequest, Node};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::v1::system_service_client::SystemServiceClient;
use api::v1::{self, ActionStatus, LogEntry};
use tokio::io::AsyncWriteExt as _;
use tonic::Streaming;

use super::{Context, NodeChannel, node_config, properties, short};
use crate::failure::Failure;
use crate::grammar::{Format, NodeVerb, TimeVerb};
use crate::output;
use crate::table::Table;

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
        NodeVerb::Config(verb) => return node_config::run(context, verb).await,
        other => return machine(context, other).await,
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
        ("system pool", node.system_pool.clone()),
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

/// What is asked of the agent.
async fn machine(context: &Context, verb: NodeVerb) -> Result<(), Failure> {
    let mut client =
        SystemServiceClient::with_interceptor(context.channel.clone(), context.code.clone());
    match verb {
        NodeVerb::System => {
            let system = client.get_system(v1::GetSystemRequest {}).await?;
            output::object(context.format, &system.into_inner(), show_system)
        }
        NodeVerb::Services => {
            let answer = client
                .list_services(v1::ListServicesRequest {})
                .await?
                .into_inner();
            output::list(context.format, "services", &answer.services, |services| {
                let mut table = Table::new(&["NAME", "STATE", "PID", "RESTARTS", "REASON"]);
                for each in services {
                    table.row([
                        each.name.clone(),
                        each.state.clone(),
                        each.pid.to_string(),
                        each.restarts.to_string(),
                        each.reason.clone(),
                    ]);
                }
                table.to_string()
            })
        }
        NodeVerb::Actions => {
            let answer = client
                .list_actions(v1::ListActionsRequest {})
                .await?
                .into_inner();
            actions(context.format, &answer.actions)
        }
        NodeVerb::Network => {
            let network = client.get_network(v1::GetNetworkRequest {}).await?;
            output::object(context.format, &network.into_inner(), show_network)
        }
        NodeVerb::Time(verb) => {
            let time = match verb {
                TimeVerb::Get => client.get_time(v1::GetTimeRequest {}).await?,
                TimeVerb::Set { sync } => {
                    let unix_ms = (!sync).then(now_ms);
                    client.set_time(v1::SetTimeRequest { unix_ms }).await?
                }
            };
            output::object(context.format, &time.into_inner(), |time| {
                let synced = if time.synced { "synced" } else { "not synced" };
                format!(
                    "{} ms since 1970, {synced}, {}\n",
                    time.unix_ms, time.source
                )
            })
        }
        NodeVerb::Restart { service } => {
            let request = v1::RestartServiceRequest { name: service };
            client.restart_service(request).await?;
            Ok(())
        }
        NodeVerb::Reboot => client
            .reboot(v1::RebootRequest {})
            .await
            .map(drop)
            .map_err(Into::into),
        NodeVerb::Poweroff => {
            client.power_off(v1::PowerOffRequest {}).await?;
            Ok(())
        }
        other => streams(context, &mut client, other).await,
    }
}

async fn streams(
    context: &Context,
    client: &mut SystemServiceClient<NodeChannel>,
    verb: NodeVerb,
) -> Result<(), Failure> {
    match verb {
        NodeVerb::Logs {
            service,
            follow,
            since,
            tail,
        } => {
            let request = v1::ReadLogsRequest {
                service: service.unwrap_or_default(),
                follow,
                since_unix_ms: since.map(|age| now_ms().saturating_sub(age)),
                tail,
            };
            lines(
                context.format,
                client.read_logs(request).await?.into_inner(),
            )
            .await
        }
        NodeVerb::Kmsg {
            follow,
            since,
            tail,
        } => {
            let request = v1::ReadKernelLogRequest {
                follow,
                since_unix_ms: since.map(|age| now_ms().saturating_sub(age)),
                tail,
            };
            lines(
                context.format,
                client.read_kernel_log(request).await?.into_inner(),
            )
            .await
        }
        NodeVerb::Bundle { file, cores } => {
            let failed = |source| Failure::File {
                path: file.display().to_string(),
                source,
            };
            let request = v1::GetSupportBundleRequest { cores };
            let mut chunks = client.get_support_bundle(request).await?.into_inner();
            let mut out = tokio::fs::File::create(&file).await.map_err(failed)?;
            while let Some(chunk) = chunks.message().await? {
                out.write_all(&chunk.data).await.map_err(failed)?;
            }
            out.sync_all().await.map_err(failed)
        }
        NodeVerb::Wipe { drive, serial } => {
            let request = v1::WipeDriveRequest { drive, serial };
            let mut progress = client.wipe_drive(request).await?.into_inner();
            while let Some(step) = progress.message().await? {
                if context.format == Format::Json {
                    output::json_line(&step)?;
                } else {
                    let done = super::percent(step.done_bytes, step.total_bytes);
                    output::text(&format!("{done} of {}\n", format_bytes(step.total_bytes)))?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn lines(format: Format, mut entries: Streaming<LogEntry>) -> Result<(), Failure> {
    while let Some(entry) = entries.message().await? {
        if format == Format::Json {
            output::json_line(&entry)?;
            continue;
        }
        if entry.lost > 0 {
            output::text(&format!("... {} lines were lost ...\n", entry.lost))?;
        }
        let (seconds, ms) = (entry.time_unix_ms / 1000, entry.time_unix_ms % 1000);
        output::text(&format!(
            "{seconds}.{ms:03} {}: {}\n",
            entry.source, entry.line
        ))?;
    }
    Ok(())
}

pub(crate) fn actions(format: Format, actions: &[ActionStatus]) -> Result<(), Failure> {
    output::list(format, "actions", actions, |actions| {
        let mut table = Table::new(&["ACTION", "STATE", "REASON"]);
        for each in actions {
            table.row([each.name.clone(), each.state.clone(), each.reason.clone()]);
        }
        table.to_string()
    })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn show_system(system: &v1::System) -> String {
    let aditd = if system.aditd_serving {
        "answers"
    } else {
        "does not answer"
    };
    let boot = if system.boot_is_good {
        "good".to_owned()
    } else {
        system.boot_reason.clone()
    };
    let mut text = properties(&[
        ("name", system.name.clone()),
        ("version", system.version.clone()),
        ("mode", short(system.mode().as_str_name(), "SYSTEM_MODE_")),
        ("fingerprint", system.fingerprint.clone()),
        ("image", system.image_version.clone()),
        ("slot", system.slot.clone()),
        ("boot", boot),
        ("addresses", system.addresses.join(", ")),
        ("kernel", system.kernel.clone()),
        (
            "up",
            format!("{:?}", Duration::from_secs(system.uptime_ms / 1000)),
        ),
        ("aditd", aditd.to_owned()),
    ]);
    for alert in &system.alerts {
        text.push_str(&format!("alert: {alert}\n"));
    }
    text
}

fn show_network(network: &v1::Network) -> String {
    properties(&[
        ("interface", network.interface.clone()),
        ("mode", network.mode.clone()),
        ("addresses", network.addresses.join(", ")),
        ("gateways", network.gateways.join(", ")),
        ("dns", network.dns.join(", ")),
        ("state", network.state.clone()),
    ])
}
