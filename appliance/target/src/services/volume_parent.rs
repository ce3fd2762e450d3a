//! What volumes lie on: clones, rollbacks, other parents and none.

use std::collections::HashMap;

use api::v1::{
    CloneVolumeRequest, EventType, Operation, RollbackVolumeRequest, SetVolumeParentRequest, Volume,
};

use super::Services;
use super::labels::{differing, owners};
use super::volume::{difference, exists, is_made, not_found};
use crate::error::ControlError;
use crate::model::check_volume_name;
use crate::pool::VolumeSettings;

impl Services {
    pub(super) async fn make_clone(
        self,
        request: CloneVolumeRequest,
    ) -> Result<Volume, ControlError> {
        let CloneVolumeRequest {
            snapshot,
            name,
            bdev,
            labels,
        } = request;
        let settings = VolumeSettings {
            labels: owners(&format!("volume {name:?}"), "labels", &labels)?,
            qos: None,
        };
        if snapshot.is_empty() == bdev.is_empty() {
            let problem = "say one of snapshot and bdev: what the volume is to show";
            let what = format!("volume {name:?}");
            return Err(ControlError::field(what, "snapshot", problem));
        }
        if snapshot.is_empty() {
            return self.make_clone_of_bdev(bdev, name, labels, settings).await;
        }
        let (pool, of) = check_volume_name(&snapshot, true, "snapshot")?;
        let (pool_of_clone, rest) = check_volume_name(&name, false, "name")?;
        if pool != pool_of_clone {
            let problem = format!("must be in the pool of the snapshot, {pool:?}");
            return Err(ControlError::field(
                format!("volume {name:?}"),
                "name",
                problem,
            ));
        }
        let pool = self.pool_to_change(pool)?;
        if pool.volume(of).await?.is_none() {
            return Err(not_found("snapshot", &snapshot));
        }
        let is_there = pool.volume(rest).await?.is_some();
        let is_new = !is_there && is_made(pool.clone_volume(of, rest, settings).await)?;
        self.the_clone(&name, ("snapshot", &snapshot), &labels, is_new)
            .await
    }

    async fn make_clone_of_bdev(
        self,
        bdev: String,
        name: String,
        labels: HashMap<String, String>,
        settings: VolumeSettings,
    ) -> Result<Volume, ControlError> {
        let (pool, rest) = check_volume_name(&name, false, "name")?;
        let pool = self.pool_to_change(pool)?;
        let is_there = pool.volume(rest).await?.is_some();
        let is_new = !is_there && is_made(pool.clone_bdev(&bdev, rest, settings).await)?;
        self.the_clone(&name, ("bdev", &bdev), &labels, is_new)
            .await
    }

    /// The clone that is there now, if it is what was asked for.
    async fn the_clone(
        &self,
        name: &str,
        (field, parent): (&str, &str),
        labels: &HashMap<String, String>,
        is_new: bool,
    ) -> Result<Volume, ControlError> {
        let there = self.find_volume("volume", name, "name").await?;
        let mut differences = Vec::new();
        difference(field, &there.parent, parent, &mut differences);
        differing(&there.labels, labels, &mut differences);
        if !differences.is_empty() {
            return Err(exists("volume", name, differences));
        }
        if is_new {
            self.tell(EventType::Created, "volume", name);
        }
        Ok(there)
    }

    pub(super) async fn detach_volume(
        self,
        name: String,
        whole: bool,
    ) -> Result<Operation, ControlError> {
        let (pool_name, rest) = check_volume_name(&name, false, "name")?;
        let pool = self.pool_to_change(pool_name)?;
        if pool.volume(rest).await?.is_none() {
            return Err(not_found("volume", &name));
        }
        let id = pool.detach_from_parent(rest, whole).await?;
        self.operation(pool_name, id).await
    }

    pub(super) async fn roll_back(
        self,
        request: RollbackVolumeRequest,
    ) -> Result<Volume, ControlError> {
        let RollbackVolumeRequest { name, snapshot } = request;
        let (pool_name, rest) = check_volume_name(&name, false, "name")?;
        let (pool_of, of) = check_volume_name(&snapshot, true, "snapshot")?;
        if pool_name != pool_of {
            let problem = format!("must be in the pool of the volume, {pool_name:?}");
            let what = format!("volume {name:?}");
            return Err(ControlError::field(what, "snapshot", problem));
        }
        let pool = self.pool_to_change(pool_name)?;
        if pool.volume(rest).await?.is_none() {
            return Err(not_found("volume", &name));
        }
        if pool.volume(of).await?.is_none() {
            return Err(not_found("snapshot", &snapshot));
        }
        pool.rollback_volume(rest, of).await?;
        let text = format!("rolled back to {snapshot}");
        self.control
            .tell(EventType::Updated, "volume", name.clone(), text);
        self.find_volume("volume", &name, "name").await
    }

    pub(super) async fn change_parent(
        self,
        request: SetVolumeParentRequest,
    ) -> Result<Volume, ControlError> {
        let SetVolumeParentRequest {
            name,
            snapshot,
            bdev,
        } = request;
        let what = format!("volume {name:?}");
        if snapshot.is_empty() == bdev.is_empty() {
            let problem = "say one of snapshot and bdev: what the volume is to lie on";
            return Err(ControlError::field(what, "snapshot", problem));
        }
        let (pool_name, rest) = check_volume_name(&name, false, "name")?;
        let pool = self.pool_to_change(pool_name)?;
        if pool.volume(rest).await?.is_none() {
            return Err(not_found("volume", &name));
        }
        if snapshot.is_empty() {
            pool.set_parent_bdev(rest, &bdev).await?;
        } else {
            let (pool_of, of) = check_volume_name(&snapshot, true, "snapshot")?;
            if pool_name != pool_of {
                let problem = format!("must be in the pool of the volume, {pool_name:?}");
                return Err(ControlError::field(what, "snapshot", problem));
            }
            if pool.volume(of).await?.is_none() {
                return Err(not_found("snapshot", &snapshot));
            }
            pool.set_parent(rest, of).await?;
        }
        let text = format!("lies on {snapshot}{bdev} now");
        self.control
            .tell(EventType::Updated, "volume", name.clone(), text);
        self.find_volume("volume", &name, "name").await
    }
}
