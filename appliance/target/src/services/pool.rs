//! Pools.

use std::sync::Arc;

use api::v1::pool_service_server::PoolService;
use api::v1::{
    self, CheckPoolRequest, CheckPoolResponse, CreatePoolRequest, DeletePoolRequest,
    DeletePoolResponse, EventType, ExportPoolRequest, ExportPoolResponse, GetPoolRequest,
    GrowPoolRequest, ImportPoolRequest, ListPoolsRequest, ListPoolsResponse, ObjectState,
    Operation, PoolSpec, RenamePoolRequest, RepairPoolRequest, ScrubPoolRequest, UpdatePoolRequest,
};
use tonic::{Request, Response};

use super::labels::{changes, differing};
use super::page::page;
use super::{Answer, Services, done, required};
use crate::error::ControlError;
use crate::lvol_driver::{CRITICAL_PERCENT_DEFAULT, WARNING_PERCENT_DEFAULT};
use crate::model::{Key, Stored, Transaction};
use crate::pool::{Attach, Job, Pool, PoolChange};

const CLUSTER_SIZE_MIN: u64 = 64 << 10;
const CLUSTER_SIZE_MAX: u64 = 32 << 20;

fn not_found(name: &str) -> ControlError {
    ControlError::NotFound {
        kind: "pool",
        name: name.to_owned(),
    }
}

impl Services {
    /// Runs work that touches a pool to its end, even when the caller goes away in between.
    pub(super) async fn complete<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ControlError>> + Send + 'static,
    ) -> Result<T, ControlError> {
        match tokio::spawn(work).await {
            Ok(result) => result,
            Err(error) => Err(ControlError::Failed {
                what: "the call".to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    /// An attached pool that is open.
    pub(super) fn open_pool(&self, name: &str) -> Result<Arc<dyn Pool>, ControlError> {
        let key = Key::Pool(name.to_owned());
        let pending = self.control.read(|view| {
            let reason = view.pending.get(&key).map(|p| p.reason.clone());
            view.model.pools().contains_key(name).then_some(reason)
        });
        let Some(pending) = pending else {
            return Err(not_found(name));
        };
        let open = self.control.runtime().pool(name);
        open.filter(|_| pending.is_none()).ok_or_else(|| {
            let reason = pending.unwrap_or_else(|| "it is being closed".to_owned());
            ControlError::Precondition {
                subject: name.to_owned(),
                problem: format!("pool {name:?} is not open: {reason}"),
            }
        })
    }

    /// A pool that may be changed.
    pub(super) fn pool_to_change(&self, name: &str) -> Result<Arc<dyn Pool>, ControlError> {
        self.control.check_serving()?;
        self.open_pool(name)
    }

    async fn pool_message(&self, stored: &Stored<PoolSpec>) -> v1::Pool {
        let name = &stored.spec.name;
        let mut status = super::ready();
        let reading = match self.open_pool(name) {
            Ok(pool) => pool.reading().await.unwrap_or_else(|error| v1::Pool {
                fault: error.to_string(),
                ..v1::Pool::default()
            }),
            Err(error) => {
                status.state = ObjectState::Pending.into();
                let key = Key::Pool(name.clone());
                let pending = |view: crate::control::View<'_>| {
                    view.pending.get(&key).map(|p| p.reason.clone())
                };
                status.reason = self
                    .control
                    .read(pending)
                    .unwrap_or_else(|| error.to_string());
                v1::Pool::default()
            }
        };
        v1::Pool {
            spec: Some(stored.spec.clone()),
            generation: stored.generation,
            status: Some(status),
            ..reading
        }
    }

    fn stored_pool(&self, name: &str) -> Result<Arc<Stored<PoolSpec>>, ControlError> {
        let found = self
            .control
            .read(|view| view.model.pools().get(name).cloned());
        found.ok_or_else(|| not_found(name))
    }

    /// Refuses a second create that differs in what the pool itself knows.
    async fn check_same_pool(
        &self,
        stored: &Stored<PoolSpec>,
        asked: &CreatePoolRequest,
    ) -> Result<(), ControlError> {
        let Ok(pool) = self.open_pool(&stored.spec.name) else {
            return Ok(());
        };
        let there = pool.reading().await?;
        let mut differences = Vec::new();
        let mut differ = |field: &str, first: u64, second: Option<u64>| {
            if let Some(second) = second.filter(|second| *second != first) {
                differences.push(api::fields::Difference {
                    field: field.to_owned(),
                    first: first.to_string(),
                    second: second.to_string(),
                });
            }
        };
        differ(
            "cluster_size_bytes",
            there.cluster_size_bytes,
            asked.cluster_size_bytes,
        );
        let (warning, critical) = (asked.warning_percent, asked.critical_percent);
        differ(
            "warning_percent",
            there.warning_percent.into(),
            warning.map(u64::from),
        );
        differ(
            "critical_percent",
            there.critical_percent.into(),
            critical.map(u64::from),
        );
        differing(&there.labels, &asked.labels, &mut differences);
        if differences.is_empty() {
            return Ok(());
        }
        Err(ControlError::Exists {
            kind: "pool",
            name: stored.spec.name.clone(),
            differences,
        })
    }

    async fn make_pool(
        self,
        spec: PoolSpec,
        request: CreatePoolRequest,
    ) -> Result<Arc<Stored<PoolSpec>>, ControlError> {
        let what = format!("pool {:?}", spec.name);
        if let Some(uuid) = &spec.uuid
            && self
                .control
                .read(|view| !view.model.pools().contains_key(&spec.name))
        {
            let problem = format!("{uuid}: a new pool gets one of its own; leave it out");
            return Err(ControlError::field(what, "pool.uuid", problem));
        }
        if spec.system() && self.control.keeper().is_none() {
            return Err(self.no_keeper(&spec.name));
        }
        let (warning, critical) = (request.warning_percent, request.critical_percent);
        let change = pool_change(&what, &v1::Pool::default(), (warning, critical))?;
        let change = PoolChange {
            labels: changes(&what, request.labels.clone(), Vec::new())?,
            ..change
        };
        let _gate = self.pool_gate.lock().await;
        let attach = Attach::Create {
            cluster_size: request.cluster_size_bytes,
            force: request.force,
            change,
        };
        let stored = self
            .control
            .change_with(attach, |edit| edit.attach_pool(spec.clone()))
            .await?;
        self.check_same_pool(&stored, &request).await?;
        Ok(stored)
    }

    async fn bring_pool(
        self,
        bdev_name: String,
        name: String,
    ) -> Result<Arc<Stored<PoolSpec>>, ControlError> {
        let _gate = self.pool_gate.lock().await;
        // The name of the device, and the pool that is attached from it.
        let found = self.control.read(|view| {
            let bdev = match view.model.find_bdev(&bdev_name) {
                Some(found) => found.spec.name.clone(),
                // A namespace of a drive is none of those that were created.
                None => view.model.drive_of(&bdev_name).map(|_| bdev_name.clone())?,
            };
            let attached = view.model.bdev_users(&bdev).find_map(|key| match key {
                Key::Pool(pool) => Some(pool.clone()),
                _ => None,
            });
            Some((bdev, attached))
        });
        let Some((bdev, attached)) = found else {
            let kind = "bdev";
            return Err(ControlError::NotFound {
                kind,
                name: bdev_name,
            });
        };
        let there = match attached {
            Some(attached) => Some(attached),
            None => self.control.runtime().probe_pool(&bdev).await?,
        };
        let problem = match there {
            Some(there) if name.is_empty() || name == there => {
                let spec = PoolSpec {
                    name: there,
                    bdev_name: bdev,
                    uuid: None,
                    system: None,
                };
                let stored = self
                    .control
                    .change_with(Attach::Open, |edit| edit.attach_pool(spec.clone()))
                    .await?;
                self.recognise_system_pool(&spec.name).await;
                return self.stored_pool(&spec.name).or(Ok(stored));
            }
            Some(there) => format!("block device {bdev:?} holds pool {there:?}, not {name:?}"),
            None => format!("block device {bdev:?} holds no pool; make one with pool create"),
        };
        Err(ControlError::Precondition {
            subject: bdev,
            problem,
        })
    }

    /// An imported pool may be the one that this node's state was kept in, or another node's was.
    async fn recognise_system_pool(&self, name: &str) {
        let (Some(_), Ok(pool)) = (self.control.keeper(), self.open_pool(name)) else {
            return;
        };
        let is_system = pool.is_system().await;
        if !is_system.is_ok_and(|is_system| is_system) {
            return;
        }
        let known = self
            .control
            .change(|edit| edit.set_system_pool(name, true))
            .await;
        if let Err(error) = known {
            let text = format!(
                "it is marked as a system pool, and is not used as one: {error}; or take the mark off \
                 it, else the next start finds two: pool set {name} --no-system"
            );
            tracing::warn!(pool = name, text, "imported");
            self.control
                .tell(EventType::Fault, "pool", name.to_owned(), text);
        }
    }

    /// Makes a pool the system pool, or not any more.
    async fn set_system_pool(&self, name: &str, system: bool) -> Result<(), ControlError> {
        let keeper = self.control.keeper();
        if system {
            let keeper = keeper.ok_or_else(|| self.no_keeper(name))?;
            self.control
                .change(|edit| edit.set_system_pool(name, true))
                .await?;
            let adopted = keeper.adopt().await;
            return adopted.map_err(|reason| ControlError::Failed {
                what: format!("keeping the state of the node in pool {name}"),
                reason,
            });
        }
        self.control
            .change(|edit| edit.set_system_pool(name, false))
            .await?;
        // One that is not there keeps its mark.
        let Ok(pool) = self.open_pool(name) else {
            return Ok(());
        };
        let change = PoolChange {
            system: Some(false),
            ..PoolChange::default()
        };
        pool.change(change).await
    }

    fn no_keeper(&self, name: &str) -> ControlError {
        ControlError::Precondition {
            subject: name.to_owned(),
            problem: format!(
                "this node keeps its state in {}; aditd has a system pool only when it is started \
                 with --system-pool",
                self.control.about.state_dir.display()
            ),
        }
    }

    async fn change_pool(self, request: UpdatePoolRequest) -> Result<(), ControlError> {
        let UpdatePoolRequest {
            name,
            labels,
            remove_labels,
            warning_percent,
            critical_percent,
            system,
        } = request;
        let what = format!("pool {name:?}");
        if let Some(system) = system {
            let _gate = self.pool_gate.lock().await;
            self.control.check_serving()?;
            self.set_system_pool(&name, system).await?;
            let is_all = labels.is_empty() && remove_labels.is_empty();
            if is_all && warning_percent.is_none() && critical_percent.is_none() {
                return Ok(());
            }
        }
        let pool = self.pool_to_change(&name)?;
        let _gate = self.limits_gate.lock().await;
        let there = pool.reading().await?;
        let change = pool_change(&what, &there, (warning_percent, critical_percent))?;
        let change = PoolChange {
            labels: changes(&what, labels, remove_labels)?,
            ..change
        };
        pool.change(change).await?;
        self.control
            .tell(EventType::Updated, "pool", name, String::new());
        Ok(())
    }

    /// Closes a pool and opens it under its new name.
    ///
    /// The node learns first which pool it is that has the old name, then the device gets the new one, then
    /// the node has it. Cut off in between, the pool is known by its UUID, and gets its old name again.
    async fn rename(
        self,
        request: RenamePoolRequest,
    ) -> Result<Arc<Stored<PoolSpec>>, ControlError> {
        let RenamePoolRequest {
            name,
            new_name,
            expected_generation: expected,
        } = request;
        let _gate = self.pool_gate.lock().await;
        self.control.check_serving()?;
        if let (Err(error), there) = (self.stored_pool(&name), self.stored_pool(&new_name)) {
            // The same request again, as far as one can know.
            return there.map_err(|_| error);
        }
        self.control
            .trial(|edit| edit.rename_pool(&name, &new_name, expected).map(drop))?;
        let uuid = self.open_pool(&name)?.reading().await?.uuid;
        self.control
            .change(|edit| edit.identify_pool(&name, &uuid))
            .await?;
        let renamed = async {
            self.control.runtime().close_pool(&name, false).await?;
            let renamed = |edit: &mut Transaction<'_>| edit.rename_pool(&name, &new_name, expected);
            self.control.change_with(Attach::Open, renamed).await
        };
        let renamed = renamed.await;
        if let Err(error) = &renamed
            && self.control.runtime().pool(&name).is_none()
        {
            // It is still wanted under the old name: open it again.
            self.control.lost(Key::Pool(name), error.to_string());
        }
        renamed
    }

    /// Closes or wipes a pool, then forgets it.
    async fn drop_pool(
        self,
        name: String,
        wipe: bool,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let _gate = self.pool_gate.lock().await;
        self.control.check_serving()?;
        self.control
            .trial(|edit| edit.detach_pool(&name, expected, allow_missing))?;
        let Ok(_) = self.stored_pool(&name) else {
            return Ok(());
        };
        if wipe && let Err(ControlError::Precondition { problem, .. }) = self.open_pool(&name) {
            return Err(ControlError::Precondition {
                subject: name,
                problem: format!(
                    "{problem}; what is on its device cannot be deleted. Export it to make this node \
                     forget it"
                ),
            });
        }
        let result = async {
            self.control.runtime().close_pool(&name, wipe).await?;
            self.control
                .change(|edit| edit.detach_pool(&name, expected, allow_missing))
                .await
        };
        let result = result.await;
        if let Err(error) = &result
            && self.control.runtime().pool(&name).is_none()
        {
            // It is still wanted: open it again.
            self.control.lost(Key::Pool(name), error.to_string());
        }
        result
    }
}

/// Thresholds to change, over those that are there: 0 is none.
fn pool_change(
    what: &str,
    there: &v1::Pool,
    (warning, critical): (Option<u32>, Option<u32>),
) -> Result<PoolChange, ControlError> {
    for (field, percent) in [("warning_percent", warning), ("critical_percent", critical)] {
        if let Some(percent) = percent.filter(|percent| !(1..=100).contains(percent)) {
            let problem = format!("{percent} must be 1 to 100");
            return Err(ControlError::field(what, field, problem));
        }
    }
    let known = |percent: u32, default| if percent == 0 { default } else { percent };
    let first = warning.unwrap_or(known(there.warning_percent, WARNING_PERCENT_DEFAULT));
    let second = critical.unwrap_or(known(there.critical_percent, CRITICAL_PERCENT_DEFAULT));
    if first > second {
        let problem = format!("{first} must be at most critical_percent, {second}");
        return Err(ControlError::field(what, "warning_percent", problem));
    }
    Ok(PoolChange {
        labels: Vec::new(),
        warning_percent: warning,
        critical_percent: critical,
        system: None,
    })
}

#[tonic::async_trait]
impl PoolService for Services {
    async fn create_pool(&self, request: Request<CreatePoolRequest>) -> Answer<v1::Pool> {
        let mut request = request.into_inner();
        let spec = required(request.pool.take(), "pool")?;
        if let Some(size) = request.cluster_size_bytes
            && !(size.is_power_of_two() && (CLUSTER_SIZE_MIN..=CLUSTER_SIZE_MAX).contains(&size))
        {
            let problem = format!("{size} must be a power of two from 64 KiB to 32 MiB");
            let what = format!("pool {:?}", spec.name);
            return Err(ControlError::field(what, "cluster_size_bytes", problem).into());
        }
        let work = self.clone().make_pool(spec, request);
        let stored = self.complete(work).await?;
        Ok(Response::new(self.pool_message(&stored).await))
    }

    async fn import_pool(&self, request: Request<ImportPoolRequest>) -> Answer<v1::Pool> {
        let ImportPoolRequest { bdev_name, name } = request.into_inner();
        let work = self.clone().bring_pool(bdev_name, name);
        let stored = self.complete(work).await?;
        Ok(Response::new(self.pool_message(&stored).await))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Answer<v1::Pool> {
        let stored = self.stored_pool(&request.into_inner().name)?;
        Ok(Response::new(self.pool_message(&stored).await))
    }

    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> Answer<ListPoolsResponse> {
        let ListPoolsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let page = self.control.read(|view| {
            let all = view.model.pools().iter();
            let all = all.map(|(name, stored)| (name.clone(), stored.clone()));
            page(all, page_size, &page_token, |stored| stored)
        })?;
        let mut pools = Vec::with_capacity(page.items.len());
        for stored in page.items {
            pools.push(self.pool_message(&stored).await);
        }
        Ok(Response::new(ListPoolsResponse {
            pools,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn update_pool(&self, request: Request<UpdatePoolRequest>) -> Answer<v1::Pool> {
        let request = request.into_inner();
        let name = request.name.clone();
        self.complete(self.clone().change_pool(request)).await?;
        let stored = self.stored_pool(&name)?;
        Ok(Response::new(self.pool_message(&stored).await))
    }

    async fn rename_pool(&self, request: Request<RenamePoolRequest>) -> Answer<v1::Pool> {
        let work = self.clone().rename(request.into_inner());
        let stored = self.complete(work).await?;
        Ok(Response::new(self.pool_message(&stored).await))
    }

    async fn grow_pool(&self, request: Request<GrowPoolRequest>) -> Answer<v1::Pool> {
        let name = request.into_inner().name;
        let pool = self.pool_to_change(&name)?;
        self.complete(pool.grow()).await?;
        let text = "grown".to_owned();
        self.control
            .tell(EventType::Updated, "pool", name.clone(), text);
        let stored = self.stored_pool(&name)?;
        Ok(Response::new(self.pool_message(&stored).await))
    }

    async fn export_pool(&self, request: Request<ExportPoolRequest>) -> Answer<ExportPoolResponse> {
        let ExportPoolRequest {
            name,
            expected_generation,
            allow_missing,
        } = request.into_inner();
        let work = self
            .clone()
            .drop_pool(name, false, expected_generation, allow_missing);
        self.complete(work).await?;
        done()
    }

    async fn delete_pool(&self, request: Request<DeletePoolRequest>) -> Answer<DeletePoolResponse> {
        let DeletePoolRequest {
            name,
            expected_generation,
            allow_missing,
        } = request.into_inner();
        let work = self
            .clone()
            .drop_pool(name, true, expected_generation, allow_missing);
        self.complete(work).await?;
        done()
    }

    async fn check_pool(&self, request: Request<CheckPoolRequest>) -> Answer<CheckPoolResponse> {
        let pool = self.open_pool(&request.into_inner().name)?;
        let findings = self.complete(pool.check(false)).await?;
        Ok(Response::new(CheckPoolResponse { findings }))
    }

    async fn repair_pool(&self, request: Request<RepairPoolRequest>) -> Answer<CheckPoolResponse> {
        let pool = self.pool_to_change(&request.into_inner().name)?;
        let findings = self.complete(pool.check(true)).await?;
        Ok(Response::new(CheckPoolResponse { findings }))
    }

    async fn scrub_pool(&self, request: Request<ScrubPoolRequest>) -> Answer<Operation> {
        let ScrubPoolRequest {
            name,
            bytes_per_sec,
        } = request.into_inner();
        let pool = self.pool_to_change(&name)?;
        let id = self
            .complete(pool.begin(Job::Scrub { bytes_per_sec }))
            .await?;
        Ok(Response::new(self.operation(&name, id).await?))
    }
}
