//! `aditctl volume` and `snapshot`.

use std::collections::HashMap;

use api::quantity::format_bytes;
use api::v1::snapshot_service_client::SnapshotServiceClient;
use api::v1::subsystem_service_client::SubsystemServiceClient;
use api::v1::volume_service_client::VolumeServiceClient;
use api::v1::{
    Address, CloneVolumeRequest, CopySnapshotRequest, CreateSnapshotsRequest, CreateVolumeRequest,
    DecoupleVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, DiffSnapshotsRequest,
    ExportVolumeRequest, Extent, GetSnapshotRequest, GetSubsystemRequest, GetVolumeRequest,
    ImportVolumeRequest, InflateVolumeRequest, ListSnapshotsRequest, ListVolumesRequest, QosLimits,
    RenameVolumeRequest, ResizeVolumeRequest, RollbackVolumeRequest, SetVolumeParentRequest,
    ShareVolumeRequest, ShareVolumeResponse, UpdateVolumeRequest, Volume, VolumeSpec,
};
use prost_types::FieldMask;
use tonic::transport::Channel;

use super::bdev::{changed_limits, given_limits, limits};
use super::{Context, PAGE_SIZE, pages, properties, state};
use crate::failure::Failure;
use crate::grammar::{ImageFormat, Labels, SnapshotVerb, VolumeVerb};
use crate::output;
use crate::table::Table;

/// Extents asked for at once.
const EXTENTS: u32 = 10_000;

type Client = VolumeServiceClient<Channel>;

pub(crate) async fn run(context: &Context, verb: VolumeVerb) -> Result<(), Failure> {
    let mut client = Client::new(context.channel.clone());
    let volume = match verb {
        VolumeVerb::Create {
            name,
            size,
            thick,
            limits,
            labels,
        } => {
            let qos = given_limits(&limits.limits());
            let volume = VolumeSpec {
                name,
                size_bytes: size,
                thick,
                labels: labels.map(),
                qos: (qos != QosLimits::default()).then_some(qos),
            };
            let request = CreateVolumeRequest {
                volume: Some(volume),
            };
            client.create_volume(request).await?.into_inner()
        }
        VolumeVerb::Clone {
            snapshot,
            name,
            from_bdev,
            labels,
        } => {
            let request = CloneVolumeRequest {
                snapshot: snapshot.unwrap_or_default(),
                name,
                bdev: from_bdev.unwrap_or_default(),
                labels: labels.map(),
            };
            client.clone_volume(request).await?.into_inner()
        }
        VolumeVerb::Show { name } if name.contains('@') => {
            let snapshots = SnapshotServiceClient::new(context.channel.clone());
            return show_snapshot(context, snapshots, name).await;
        }
        VolumeVerb::Show { name } => client
            .get_volume(GetVolumeRequest { name })
            .await?
            .into_inner(),
        VolumeVerb::Resize {
            name,
            size,
            allow_shrink,
        } => {
            let request = ResizeVolumeRequest {
                name,
                size_bytes: size,
                allow_shrink,
            };
            client.resize_volume(request).await?.into_inner()
        }
        VolumeVerb::Label { name, labels } => {
            let (labels, remove_labels) = label_changes(labels)?;
            let request = UpdateVolumeRequest {
                name,
                labels,
                remove_labels,
                ..UpdateVolumeRequest::default()
            };
            client.update_volume(request).await?.into_inner()
        }
        VolumeVerb::Qos { name, limits } => {
            let (qos, paths) = changed_limits(&limits)?;
            let request = UpdateVolumeRequest {
                name,
                qos: Some(qos),
                update_mask: Some(FieldMask { paths }),
                ..UpdateVolumeRequest::default()
            };
            client.update_volume(request).await?.into_inner()
        }
        VolumeVerb::Update { name, read_only } => {
            let request = UpdateVolumeRequest {
                name,
                read_only: Some(read_only == "on"),
                ..UpdateVolumeRequest::default()
            };
            client.update_volume(request).await?.into_inner()
        }
        VolumeVerb::Rename { name, new_name } => client
            .rename_volume(RenameVolumeRequest { name, new_name })
            .await?
            .into_inner(),
        VolumeVerb::Rollback { name, snapshot } => client
            .rollback_volume(RollbackVolumeRequest { name, snapshot })
            .await?
            .into_inner(),
        VolumeVerb::SetParent {
            name,
            snapshot,
            bdev,
        } => {
            let request = SetVolumeParentRequest {
                name,
                snapshot: snapshot.unwrap_or_default(),
                bdev: bdev.unwrap_or_default(),
            };
            client.set_volume_parent(request).await?.into_inner()
        }
        VolumeVerb::Delete { name } => {
            let request = DeleteVolumeRequest {
                name,
                allow_missing: false,
            };
            let deleted = client.delete_volume(request).await?.into_inner();
            return context.behind(deleted.operation).await;
        }
        VolumeVerb::Inflate { name } => {
            let begun = client.inflate_volume(InflateVolumeRequest { name }).await?;
            return context.begun(begun.into_inner()).await;
        }
        VolumeVerb::Decouple { name } => {
            let request = DecoupleVolumeRequest { name };
            let begun = client.decouple_volume(request).await?;
            return context.begun(begun.into_inner()).await;
        }
        VolumeVerb::Import {
            name,
            file,
            thick,
            format,
            labels,
            detach,
        } => {
            let request = ImportVolumeRequest {
                name,
                file,
                format: ImageFormat::name(format),
                thick,
                labels: labels.map(),
            };
            let begun = client.import_volume(request).await?;
            return context.follow(begun.into_inner(), &detach).await;
        }
        VolumeVerb::Export {
            name,
            file,
            format,
            detach,
        } => {
            let request = ExportVolumeRequest {
                name,
                file,
                format: ImageFormat::name(format),
            };
            let begun = client.export_volume(request).await?;
            return context.follow(begun.into_inner(), &detach).await;
        }
        VolumeVerb::Diff { from, to } => {
            let all = diff(&client, from, to).await?;
            return output::list(context.format, "extents", &all, extents);
        }
        VolumeVerb::Share {
            name,
            listen,
            nqn,
            hosts,
        } => return share(context, client, name, &listen, nqn, hosts).await,
        VolumeVerb::List { pool, labels } => {
            let all = pages(|page_token| {
                let (mut client, pool) = (client.clone(), pool.clone().unwrap_or_default());
                let labels = labels.map();
                async move {
                    let request = ListVolumesRequest {
                        pool,
                        page_size: PAGE_SIZE,
                        page_token,
                        labels,
                    };
                    let page = client.list_volumes(request).await?.into_inner();
                    Ok((page.volumes, page.next_page_token))
                }
            })
            .await?;
            return output::list(context.format, "volumes", &all, list);
        }
    };
    output::object(context.format, &volume, show)
}

pub(crate) async fn snapshot(context: &Context, verb: SnapshotVerb) -> Result<(), Failure> {
    let mut client = SnapshotServiceClient::new(context.channel.clone());
    match verb {
        SnapshotVerb::Create { names, labels } => {
            let labels = labels.map();
            let request = CreateSnapshotsRequest { names, labels };
            let taken = client.create_snapshots(request).await?.into_inner();
            output::list(context.format, "snapshots", &taken.snapshots, list)
        }
        SnapshotVerb::Show { name } => show_snapshot(context, client, name).await,
        SnapshotVerb::Delete { name } => {
            let request = DeleteSnapshotRequest {
                name,
                allow_missing: false,
            };
            let deleted = client.delete_snapshot(request).await?.into_inner();
            context.behind(deleted.operation).await
        }
        SnapshotVerb::Copy { name, bdev, detach } => {
            let request = CopySnapshotRequest {
                name,
                bdev_name: bdev,
            };
            let begun = client.copy_snapshot(request).await?;
            context.follow(begun.into_inner(), &detach).await
        }
        SnapshotVerb::List { of, labels } => {
            let all = pages(|page_token| {
                let (mut client, parent) = (client.clone(), of.clone().unwrap_or_default());
                let labels = labels.map();
                async move {
                    let request = ListSnapshotsRequest {
                        parent,
                        page_size: PAGE_SIZE,
                        page_token,
                        labels,
                    };
                    let page = client.list_snapshots(request).await?.into_inner();
                    Ok((page.snapshots, page.next_page_token))
                }
            })
            .await?;
            output::list(context.format, "snapshots", &all, list)
        }
    }
}

async fn show_snapshot(
    context: &Context,
    mut client: SnapshotServiceClient<Channel>,
    name: String,
) -> Result<(), Failure> {
    let found = client.get_snapshot(GetSnapshotRequest { name }).await?;
    output::object(context.format, &found.into_inner(), show)
}

async fn diff(client: &Client, from: String, to: String) -> Result<Vec<Extent>, Failure> {
    pages(|page_token| {
        let (mut client, from, to) = (client.clone(), from.clone(), to.clone());
        async move {
            let request = DiffSnapshotsRequest {
                from,
                to,
                page_size: EXTENTS,
                page_token,
            };
            let page = client.diff_snapshots(request).await?.into_inner();
            Ok((page.extents, page.next_page_token))
        }
    })
    .await
}

async fn share(
    context: &Context,
    mut client: Client,
    name: String,
    listen: &str,
    nqn: Option<String>,
    host_nqns: Vec<String>,
) -> Result<(), Failure> {
    let address = Address::from_uri(listen).map_err(|error| Failure::Usage(error.to_string()))?;
    let request = ShareVolumeRequest {
        name: name.clone(),
        address: Some(address),
        nqn,
        host_nqns,
    };
    let mut answer = client.share_volume(request).await?.into_inner();
    if let Some(mut subsystem) = answer.subsystem.take() {
        let nqn = subsystem.spec.clone().unwrap_or_default().nqn;
        // All of it has to be in place: the worst of its parts tells.
        worst(&mut subsystem);
        let subsystem = context
            .settle(&format!("{name} as {nqn}"), subsystem, || {
                let mut client = SubsystemServiceClient::new(context.channel.clone());
                let nqn = nqn.clone();
                async move {
                    let mut found = client.get_subsystem(GetSubsystemRequest { nqn }).await?;
                    worst(found.get_mut());
                    Ok(found)
                }
            })
            .await?;
        answer.subsystem = Some(subsystem);
    }
    output::object(context.format, &answer, shared)
}

/// Gives a subsystem the status of a part that is pending.
fn worst(subsystem: &mut api::v1::Subsystem) {
    let is_pending = |status: &&api::v1::Status| status.state() == api::v1::ObjectState::Pending;
    let namespaces = subsystem.namespaces.iter().flat_map(|n| &n.status);
    let listeners = subsystem.listeners.iter().flat_map(|l| &l.status);
    if let Some(status) = namespaces.chain(listeners).find(is_pending) {
        subsystem.status = Some(status.clone());
    }
}

fn shared(answer: &ShareVolumeResponse) -> String {
    let mut text = String::new();
    for what in &answer.created {
        text.push_str(&format!("created {what}\n"));
    }
    let subsystem = answer.subsystem.clone().unwrap_or_default();
    let nqn = subsystem.spec.unwrap_or_default().nqn;
    for listener in &subsystem.listeners {
        let address = super::address(listener.spec.as_ref().and_then(|s| s.address.as_ref()));
        text.push_str(&format!("{address}/{nqn}\n"));
    }
    text
}

fn list(volumes: &[Volume]) -> String {
    let mut table = Table::new(&[
        "NAME", "SIZE", "KIND", "OWN DATA", "PARENT", "USED BY", "STATE",
    ]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            format_bytes(volume.size_bytes),
            kind(volume),
            format_bytes(volume.exclusive_bytes),
            volume.parent.clone(),
            volume.claimed_by.join(", "),
            state(volume.status.as_ref()),
        ]);
    }
    table.to_string()
}

fn kind(volume: &Volume) -> String {
    let mut words = vec![match (volume.snapshot, volume.thick) {
        (true, _) => "snapshot",
        (false, true) => "thick",
        (false, false) => "thin",
    }];
    if volume.read_only && !volume.snapshot {
        words.push("read-only");
    }
    words.join(", ")
}

fn show(volume: &Volume) -> String {
    properties(&[
        ("name", volume.name.clone()),
        ("uuid", volume.uuid.clone()),
        ("nguid", volume.nguid.clone()),
        (
            "size",
            format!(
                "{} ({} B)",
                format_bytes(volume.size_bytes),
                volume.size_bytes
            ),
        ),
        ("block size", volume.block_size.to_string()),
        ("kind", kind(volume)),
        ("parent", volume.parent.clone()),
        ("own data", format_bytes(volume.exclusive_bytes)),
        ("children", volume.children.to_string()),
        ("used by", volume.claimed_by.join(", ")),
        ("limits", limits(volume.qos.as_ref())),
        ("labels", show_labels(&volume.labels)),
        ("state", state(volume.status.as_ref())),
    ])
}

pub(super) fn show_labels(labels: &HashMap<String, String>) -> String {
    let mut labels: Vec<_> = labels.iter().collect();
    labels.sort_unstable();
    let words = labels
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"));
    words.collect::<Vec<_>>().join(", ")
}

/// Labels to set and to take away, of words KEY=VALUE and KEY-.
pub(super) fn label_changes(
    words: Vec<String>,
) -> Result<(HashMap<String, String>, Vec<String>), Failure> {
    let (mut set, mut gone) = (HashMap::new(), Vec::new());
    for word in words {
        if let Some((key, value)) = word.split_once('=') {
            set.insert(key.to_owned(), value.to_owned());
        } else if let Some(key) = word.strip_suffix('-') {
            gone.push(key.to_owned());
        } else {
            let text = format!("{word:?} is neither KEY=VALUE nor KEY-");
            return Err(Failure::Usage(text));
        }
    }
    Ok((set, gone))
}

impl Labels {
    pub(super) fn map(&self) -> HashMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}

fn extents(extents: &[Extent]) -> String {
    let mut table = Table::new(&["OFFSET", "LENGTH"]);
    for extent in extents {
        table.row([
            extent.offset_bytes.to_string(),
            extent.length_bytes.to_string(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_says_what_people_ask_for() {
        let mut volume = Volume::default();
        assert_eq!(kind(&volume), "thin");
        volume.thick = true;
        volume.read_only = true;
        assert_eq!(kind(&volume), "thick, read-only");
        volume.snapshot = true;
        assert_eq!(kind(&volume), "snapshot");
    }

    #[test]
    fn a_share_is_as_pending_as_its_parts() {
        let status = |state: api::v1::ObjectState| {
            Some(api::v1::Status {
                state: state.into(),
                reason: "why".into(),
            })
        };
        let mut subsystem = api::v1::Subsystem {
            status: status(api::v1::ObjectState::Ready),
            listeners: vec![api::v1::Listener {
                status: status(api::v1::ObjectState::Pending),
                ..Default::default()
            }],
            ..Default::default()
        };
        worst(&mut subsystem);
        assert_eq!(subsystem.status, status(api::v1::ObjectState::Pending));
    }
}
