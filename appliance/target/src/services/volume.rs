//! Volumes and their snapshots.

use std::collections::HashMap;
use std::sync::Arc;

use api::fields::Difference;
use api::v1::snapshot_service_server::SnapshotService;
use api::v1::volume_service_server::VolumeService;
use api::v1::{
    CloneVolumeRequest, CopySnapshotRequest, CreateSnapshotsRequest, CreateSnapshotsResponse,
    CreateVolumeRequest, DecoupleVolumeRequest, DeleteSnapshotRequest, DeleteSnapshotResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, DiffSnapshotsRequest, DiffSnapshotsResponse,
    EventType, ExportVolumeRequest, GetSnapshotRequest, GetVolumeRequest, ImportVolumeRequest,
    InflateVolumeRequest, ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest,
    ListVolumesResponse, Operation, RenameVolumeRequest, ResizeVolumeRequest,
    RollbackVolumeRequest, SetVolumeParentRequest, ShareVolumeRequest, ShareVolumeResponse,
    UpdateVolumeRequest, Volume,
};
use tonic::{Request, Response};

use super::labels::{changes, differing, owners};
use super::limits::new_limits;
use super::page::{SIZE_DEFAULT, SIZE_MAX};
use super::{Answer, Services, paths, required};
use crate::error::ControlError;
use crate::model::{Key, check_volume_name, normal_limits, split_volume};
use crate::pool::{Pool, VolumeChange, VolumeQuery, VolumeSettings};

/// Snapshots of one call.
const SNAPSHOTS_MAX: usize = 256;
const EXTENTS_DEFAULT: usize = 1000;
const EXTENTS_MAX: usize = 10_000;

/// Open pools in the order of their names.
type NamedPools = Vec<(String, Arc<dyn Pool>)>;

pub(super) fn not_found(kind: &'static str, name: &str) -> ControlError {
    ControlError::NotFound {
        kind,
        name: name.to_owned(),
    }
}

pub(super) fn exists(kind: &'static str, name: &str, differences: Vec<Difference>) -> ControlError {
    ControlError::Exists {
        kind,
        name: name.to_owned(),
        differences,
    }
}

/// False when somebody made it meanwhile: the caller looks whether it is the same.
pub(super) fn is_made(made: Result<(), ControlError>) -> Result<bool, ControlError> {
    match made {
        Ok(()) => Ok(true),
        Err(ControlError::Exists { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn difference(
    field: &str,
    first: impl ToString,
    second: impl ToString,
    found: &mut Vec<Difference>,
) {
    let (first, second) = (first.to_string(), second.to_string());
    if first != second {
        found.push(Difference {
            field: field.to_owned(),
            first,
            second,
        });
    }
}

impl Services {
    /// The pool of this name, or all that are open when it is empty, in the order of their names.
    pub(super) fn open_pools(&self, name: &str) -> Result<NamedPools, ControlError> {
        if !name.is_empty() {
            return Ok(vec![(name.to_owned(), self.open_pool(name)?)]);
        }
        let names: Vec<String> = self
            .control
            .read(|view| view.model.pools().keys().cloned().collect());
        let open = names.into_iter().filter_map(|name| {
            let pool = self.open_pool(&name).ok()?;
            Some((name, pool))
        });
        Ok(open.collect())
    }

    pub(super) fn with_users(&self, mut volume: Volume) -> Volume {
        volume.status.get_or_insert_with(super::ready);
        volume.claimed_by = self
            .control
            .read(|view| view.model.bdev_users(&volume.name).map(Key::name).collect());
        volume
    }

    pub(super) async fn find_volume(
        &self,
        kind: &'static str,
        name: &str,
        field: &str,
    ) -> Result<Volume, ControlError> {
        let (pool, rest) = check_volume_name(name, kind == "snapshot", field)?;
        let found = self.open_pool(pool)?.volume(rest).await?;
        let found = found.ok_or_else(|| not_found(kind, name))?;
        Ok(self.with_users(found))
    }

    /// Refuses a name of a volume that its pool, when it is open, does not have.
    pub(super) async fn check_is_volume(&self, bdev_name: &str) -> Result<(), ControlError> {
        let key = self.control.read(|view| view.model.key_of_bdev(bdev_name));
        let (Some(Key::Pool(pool)), Some((_, rest))) = (key, split_volume(bdev_name)) else {
            return Ok(());
        };
        let Ok(pool) = self.open_pool(&pool) else {
            return Ok(());
        };
        match pool.volume(rest).await? {
            Some(_) => Ok(()),
            None => Err(not_found("volume", bdev_name)),
        }
    }

    fn check_free(&self, kind: &'static str, name: &str) -> Result<(), ControlError> {
        self.control
            .trial(|edit| edit.check_volume_free(kind, name))
    }

    /// One page of volumes or snapshots of the pools. A token is the last name of a page.
    async fn page_of_volumes(
        &self,
        pools: NamedPools,
        query: VolumeQuery,
        page_size: u32,
        token: &str,
    ) -> Result<(Vec<Volume>, String, u32), ControlError> {
        let size = match page_size as usize {
            0 => SIZE_DEFAULT,
            size => size.min(SIZE_MAX),
        };
        let after = match token {
            "" => None,
            token => Some(split_volume(token).ok_or_else(|| {
                let problem = "is not from a list of this server";
                ControlError::field("the request", "page_token", problem)
            })?),
        };
        let mut volumes = Vec::new();
        let mut total = 0;
        for (name, pool) in pools {
            let from = match after {
                Some((at, _)) if name.as_str() < at => None,
                Some((at, after)) if name == at => Some(after),
                _ => Some(""),
            };
            let mut query = query.clone();
            match from {
                // One more than fits tells whether there are more.
                Some(after) => {
                    query.limit = (size + 1).saturating_sub(volumes.len());
                    query.after = after.to_owned();
                }
                None => query.limit = 0,
            }
            let page = pool.volumes(query).await?;
            total += page.total;
            volumes.extend(page.volumes);
        }
        let mut next = String::new();
        if volumes.len() > size {
            volumes.truncate(size);
            next = volumes.last().map(|v| v.name.clone()).unwrap_or_default();
        }
        let volumes = volumes.into_iter().map(|v| self.with_users(v)).collect();
        Ok((volumes, next, u32::try_from(total).unwrap_or(u32::MAX)))
    }

    async fn make_volume(self, request: CreateVolumeRequest) -> Result<Volume, ControlError> {
        let spec = required(request.volume, "volume")?;
        let (pool, rest) = check_volume_name(&spec.name, false, "volume.name")?;
        let pool = self.pool_to_change(pool)?;
        if spec.size_bytes == 0 {
            let what = format!("volume {:?}", spec.name);
            return Err(ControlError::field(
                what,
                "volume.size_bytes",
                "must not be 0",
            ));
        }
        let labels = owners(
            &format!("volume {:?}", spec.name),
            "volume.labels",
            &spec.labels,
        )?;
        let qos = normal_limits(&spec.name, "volume", spec.qos)?;
        let is_there = pool.volume(rest).await?.is_some();
        let made = || {
            let settings = VolumeSettings { labels, qos };
            pool.create_volume(rest, spec.size_bytes, spec.thick, settings)
        };
        let is_new = !is_there && is_made(made().await)?;
        let there = self
            .find_volume("volume", &spec.name, "volume.name")
            .await?;
        let mut differences = Vec::new();
        difference(
            "size_bytes",
            there.size_bytes,
            spec.size_bytes,
            &mut differences,
        );
        difference("thick", there.thick, spec.thick, &mut differences);
        differing(&there.labels, &spec.labels, &mut differences);
        if spec.qos.is_some() {
            let limits = |qos| Volume {
                qos,
                ..Volume::default()
            };
            differences.extend(api::fields::differences(&limits(there.qos), &limits(qos)));
        }
        if !differences.is_empty() {
            return Err(exists("volume", &spec.name, differences));
        }
        if is_new {
            self.tell(EventType::Created, "volume", &spec.name);
        }
        Ok(there)
    }

    async fn change_size(self, request: ResizeVolumeRequest) -> Result<Volume, ControlError> {
        let ResizeVolumeRequest {
            name,
            size_bytes,
            allow_shrink,
        } = request;
        let there = self.find_volume("volume", &name, "name").await?;
        if there.size_bytes == size_bytes {
            return Ok(there);
        }
        let what = format!("volume {name:?}");
        if size_bytes == 0 {
            return Err(ControlError::field(what, "size_bytes", "must not be 0"));
        }
        if size_bytes < there.size_bytes && !allow_shrink {
            let problem = format!(
                "{size_bytes} is less than the {} bytes it has: what lies beyond would be gone; say \
                 allow_shrink if that is meant",
                there.size_bytes
            );
            return Err(ControlError::field(what, "size_bytes", problem));
        }
        let (pool, rest) = check_volume_name(&name, false, "name")?;
        let pool = self.pool_to_change(pool)?;
        pool.resize_volume(rest, size_bytes).await?;
        self.tell(EventType::Updated, "volume", &name);
        self.find_volume("volume", &name, "name").await
    }

    pub(super) async fn update(self, request: UpdateVolumeRequest) -> Result<Volume, ControlError> {
        let UpdateVolumeRequest {
            name,
            labels,
            remove_labels,
            read_only,
            qos,
            update_mask,
        } = request;
        let is_snapshot = name.contains('@');
        let kind = if is_snapshot { "snapshot" } else { "volume" };
        let (pool, rest) = check_volume_name(&name, is_snapshot, "name")?;
        let pool = self.pool_to_change(pool)?;
        let paths = paths(update_mask);
        let changes_limits = qos.is_some() || !paths.is_empty();
        // Labels need no turn: they share commits.
        let _gate = match changes_limits {
            true => Some(self.limits_gate.lock().await),
            false => None,
        };
        let Some(there) = pool.volume(rest).await? else {
            return Err(not_found(kind, &name));
        };
        let what = format!("{kind} {name:?}");
        let limits = match changes_limits {
            true => Some(new_limits(&there, qos, &paths)?),
            false => None,
        };
        let change = VolumeChange {
            labels: changes(&what, labels, remove_labels)?,
            read_only,
            qos: limits,
        };
        pool.change_volume(rest, change).await?;
        self.tell(EventType::Updated, kind, &name);
        self.find_volume(kind, &name, "name").await
    }

    async fn change_name(self, request: RenameVolumeRequest) -> Result<Volume, ControlError> {
        let RenameVolumeRequest { name, new_name } = request;
        let (pool, old) = check_volume_name(&name, false, "name")?;
        let (new_pool, new) = check_volume_name(&new_name, false, "new_name")?;
        let what = format!("volume {name:?}");
        if pool != new_pool {
            let problem = format!("must be in the same pool, {pool:?}");
            return Err(ControlError::field(what, "new_name", problem));
        }
        let pool = self.pool_to_change(pool)?;
        let (is_old, is_new) = (
            pool.volume(old).await?.is_some(),
            pool.volume(new).await?.is_some(),
        );
        match (is_old, is_new) {
            (true, true) if old != new => {
                let differences = vec![Difference {
                    field: "new_name".to_owned(),
                    first: "another volume".to_owned(),
                    second: name,
                }];
                return Err(exists("volume", &new_name, differences));
            }
            (true, false) => {
                self.check_free("volume", &name)?;
                // They are named after it.
                for snapshot in self.control.read(|view| view.model.snapshots_in_use(&name)) {
                    self.check_free("snapshot", &snapshot)?;
                }
                pool.rename_volume(old, new).await?;
                self.tell(EventType::Deleted, "volume", &name);
                self.tell(EventType::Created, "volume", &new_name);
            }
            (false, false) => return Err(not_found("volume", &name)),
            // The same request again.
            _ => {}
        }
        self.find_volume("volume", &new_name, "new_name").await
    }

    /// Deletes a volume or a snapshot. The name of the operation that gives its space back.
    async fn drop_volume(
        self,
        kind: &'static str,
        name: String,
        allow_missing: bool,
    ) -> Result<String, ControlError> {
        let (pool_name, rest) = check_volume_name(&name, kind == "snapshot", "name")?;
        let pool = self.pool_to_change(pool_name)?;
        if pool.volume(rest).await?.is_none() {
            return if allow_missing {
                Ok(String::new())
            } else {
                Err(not_found(kind, &name))
            };
        }
        self.check_free(kind, &name)?;
        let operation = pool.delete_volume(rest).await?;
        self.tell(EventType::Deleted, kind, &name);
        let name = operation.map(|id| format!("{pool_name}/{id}"));
        Ok(name.unwrap_or_default())
    }

    async fn take_snapshots(
        self,
        names: Vec<String>,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Volume>, ControlError> {
        let new_labels = owners("the snapshots", "labels", &labels)?;
        let (pool_name, pairs) = snapshot_names(&names)?;
        let pool = self.pool_to_change(&pool_name)?;
        let mut there = Vec::new();
        for (name, (volume, snapshot)) in names.iter().zip(&pairs) {
            if pool
                .volume(&format!("{volume}@{snapshot}"))
                .await?
                .is_some()
            {
                there.push(name);
            } else if pool.volume(volume).await?.is_none() {
                return Err(not_found("volume", &format!("{pool_name}/{volume}")));
            }
        }
        if there.is_empty() {
            pool.create_snapshots(&pairs, new_labels).await?;
            for name in &names {
                self.tell(EventType::Created, "snapshot", name);
            }
        } else if there.len() < names.len() {
            // Some at another moment than the others: that is not what was asked for.
            let differences = vec![Difference {
                field: "names".to_owned(),
                first: format!("{} of {} taken", there.len(), names.len()),
                second: "all at one moment".to_owned(),
            }];
            return Err(exists("snapshot", there[0], differences));
        }
        let mut snapshots = Vec::with_capacity(names.len());
        for name in &names {
            let snapshot = self.find_volume("snapshot", name, "names").await?;
            let mut differences = Vec::new();
            differing(&snapshot.labels, &labels, &mut differences);
            if !differences.is_empty() {
                return Err(exists("snapshot", name, differences));
            }
            snapshots.push(snapshot);
        }
        Ok(snapshots)
    }

    pub(super) fn tell(&self, event_type: EventType, kind: &str, name: &str) {
        self.control
            .tell(event_type, kind, name.to_owned(), String::new());
    }
}

/// The pool of snapshots to be taken, and pairs of volume and snapshot.
fn snapshot_names(names: &[String]) -> Result<(String, Vec<(String, String)>), ControlError> {
    let wrong = |problem: String| ControlError::field("the snapshots", "names", problem);
    if names.is_empty() || names.len() > SNAPSHOTS_MAX {
        return Err(wrong(format!("1 to {SNAPSHOTS_MAX} names are possible")));
    }
    let mut pool = None;
    let mut pairs: Vec<(String, String)> = Vec::with_capacity(names.len());
    for name in names {
        let (of, rest) = check_volume_name(name, true, "names")?;
        if *pool.get_or_insert(of) != of {
            return Err(wrong(
                "must all be in one pool to be taken at one moment".to_owned(),
            ));
        }
        let (volume, snapshot) = rest.split_once('@').unwrap_or((rest, ""));
        if pairs.iter().any(|(other, _)| other == volume) {
            return Err(wrong(format!("{of}/{volume} is named twice")));
        }
        pairs.push((volume.to_owned(), snapshot.to_owned()));
    }
    Ok((pool.unwrap_or_default().to_owned(), pairs))
}

#[tonic::async_trait]
impl VolumeService for Services {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<Volume> {
        let work = self.clone().make_volume(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn clone_volume(&self, request: Request<CloneVolumeRequest>) -> Answer<Volume> {
        let work = self.clone().make_clone(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Answer<Volume> {
        let name = request.into_inner().name;
        Ok(Response::new(
            self.find_volume("volume", &name, "name").await?,
        ))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Answer<ListVolumesResponse> {
        let request = request.into_inner();
        let pools = self.open_pools(&request.pool)?;
        let (volumes, next_page_token, total_size) = self
            .page_of_volumes(
                pools,
                VolumeQuery {
                    labels: request.labels.into_iter().collect(),
                    ..VolumeQuery::default()
                },
                request.page_size,
                &request.page_token,
            )
            .await?;
        Ok(Response::new(ListVolumesResponse {
            volumes,
            next_page_token,
            total_size,
        }))
    }

    async fn resize_volume(&self, request: Request<ResizeVolumeRequest>) -> Answer<Volume> {
        let work = self.clone().change_size(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn update_volume(&self, request: Request<UpdateVolumeRequest>) -> Answer<Volume> {
        let work = self.clone().update(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn rename_volume(&self, request: Request<RenameVolumeRequest>) -> Answer<Volume> {
        let work = self.clone().change_name(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Answer<DeleteVolumeResponse> {
        let DeleteVolumeRequest {
            name,
            allow_missing,
        } = request.into_inner();
        let work = self.clone().drop_volume("volume", name, allow_missing);
        let operation = self.complete(work).await?;
        Ok(Response::new(DeleteVolumeResponse { operation }))
    }

    async fn inflate_volume(&self, request: Request<InflateVolumeRequest>) -> Answer<Operation> {
        let work = self.clone().detach_volume(request.into_inner().name, true);
        Ok(Response::new(self.complete(work).await?))
    }

    async fn decouple_volume(&self, request: Request<DecoupleVolumeRequest>) -> Answer<Operation> {
        let work = self.clone().detach_volume(request.into_inner().name, false);
        Ok(Response::new(self.complete(work).await?))
    }

    async fn rollback_volume(&self, request: Request<RollbackVolumeRequest>) -> Answer<Volume> {
        let work = self.clone().roll_back(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn set_volume_parent(&self, request: Request<SetVolumeParentRequest>) -> Answer<Volume> {
        let work = self.clone().change_parent(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn diff_snapshots(
        &self,
        request: Request<DiffSnapshotsRequest>,
    ) -> Answer<DiffSnapshotsResponse> {
        let request = request.into_inner();
        let (pool_name, to) = check_volume_name(&request.to, true, "to")?;
        let from = match request.from.as_str() {
            "" => "",
            from => {
                let (pool_of_from, from) = check_volume_name(from, true, "from")?;
                if pool_of_from != pool_name {
                    let problem = format!("must be in the pool of the other, {pool_name:?}");
                    return Err(ControlError::field("the request", "from", problem).into());
                }
                from
            }
        };
        let pool = self.open_pool(pool_name)?;
        for (name, rest) in [(&request.from, from), (&request.to, to)] {
            if !rest.is_empty() && pool.volume(rest).await?.is_none() {
                return Err(not_found("snapshot", name).into());
            }
        }
        let limit = match request.page_size as usize {
            0 => EXTENTS_DEFAULT,
            size => size.min(EXTENTS_MAX),
        };
        let offset = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| {
                let problem = "is not from a list of this server";
                ControlError::field("the request", "page_token", problem)
            })?,
        };
        let extents = pool.diff(from, to, offset, limit).await?;
        let last = extents.last().filter(|_| extents.len() >= limit);
        let next_page_token = last.map(|e| (e.offset_bytes + e.length_bytes).to_string());
        Ok(Response::new(DiffSnapshotsResponse {
            next_page_token: next_page_token.unwrap_or_default(),
            extents,
        }))
    }

    async fn import_volume(&self, request: Request<ImportVolumeRequest>) -> Answer<Operation> {
        let work = self.clone().import(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn export_volume(&self, request: Request<ExportVolumeRequest>) -> Answer<Operation> {
        let work = self.clone().export(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }

    async fn share_volume(
        &self,
        request: Request<ShareVolumeRequest>,
    ) -> Answer<ShareVolumeResponse> {
        let request = request.into_inner();
        let is_snapshot = request.name.contains('@');
        let (pool, rest) = check_volume_name(&request.name, is_snapshot, "name")?;
        // A colon cannot be part of a pool's name: no two volumes share a name here.
        let default = || format!("nqn.2026-11.io.adit:{pool}:{}", rest.replace('@', ":"));
        let nqn = request.nqn.clone().unwrap_or_else(default);
        let kind = if is_snapshot { "snapshot" } else { "volume" };
        self.find_volume(kind, &request.name, "name").await?;
        let changes = self
            .control
            .change(|edit| {
                edit.share(&nqn, &request.name, request.address, request.host_nqns)?;
                Ok(edit.changes())
            })
            .await?;
        let subsystem = self.describe(|describe| {
            let entry = describe.view.model.subsystems().get(&nqn)?;
            Some(describe.subsystem(entry))
        });
        let created = changes
            .into_iter()
            .map(|change| format!("{} {}", change.kind, change.name));
        Ok(Response::new(ShareVolumeResponse {
            subsystem,
            created: created.collect(),
        }))
    }
}

#[tonic::async_trait]
impl SnapshotService for Services {
    async fn create_snapshots(
        &self,
        request: Request<CreateSnapshotsRequest>,
    ) -> Answer<CreateSnapshotsResponse> {
        let CreateSnapshotsRequest { names, labels } = request.into_inner();
        let work = self.clone().take_snapshots(names, labels);
        let snapshots = self.complete(work).await?;
        Ok(Response::new(CreateSnapshotsResponse { snapshots }))
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Answer<Volume> {
        let name = request.into_inner().name;
        Ok(Response::new(
            self.find_volume("snapshot", &name, "name").await?,
        ))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Answer<ListSnapshotsResponse> {
        let request = request.into_inner();
        let (pool, prefix) = match split_volume(&request.parent) {
            Some((pool, volume)) => (pool, format!("{volume}@")),
            None => (request.parent.as_str(), String::new()),
        };
        let query = VolumeQuery {
            snapshots: true,
            prefix,
            labels: request.labels.into_iter().collect(),
            ..VolumeQuery::default()
        };
        let pools = self.open_pools(pool)?;
        let (snapshots, next_page_token, total_size) = self
            .page_of_volumes(pools, query, request.page_size, &request.page_token)
            .await?;
        Ok(Response::new(ListSnapshotsResponse {
            snapshots,
            next_page_token,
            total_size,
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        let DeleteSnapshotRequest {
            name,
            allow_missing,
        } = request.into_inner();
        let work = self.clone().drop_volume("snapshot", name, allow_missing);
        let operation = self.complete(work).await?;
        Ok(Response::new(DeleteSnapshotResponse { operation }))
    }

    async fn copy_snapshot(&self, request: Request<CopySnapshotRequest>) -> Answer<Operation> {
        let work = self.clone().copy(request.into_inner());
        Ok(Response::new(self.complete(work).await?))
    }
}
