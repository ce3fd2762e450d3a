//! Volumes as block devices, and limits of their I/O.

use api::v1::{QosLimits, UpdateVolumeRequest, Volume};

use super::Services;
use crate::error::ControlError;
use crate::model::{Key, normal_limits, split_volume};

impl Services {
    /// Changes limits of a volume as those of its block device.
    pub(super) async fn limit_volume(
        self,
        name: String,
        qos: Option<QosLimits>,
        paths: Vec<String>,
    ) -> Result<Volume, ControlError> {
        let request = UpdateVolumeRequest {
            name,
            qos,
            update_mask: Some(prost_types::FieldMask { paths }),
            ..UpdateVolumeRequest::default()
        };
        self.update(request).await
    }

    /// A volume or a snapshot that is a block device; `None` when its pool has none of this name.
    pub(super) async fn volume_of_bdev(&self, name: &str) -> Result<Option<Volume>, ControlError> {
        let key = self.control.read(|view| view.model.key_of_bdev(name));
        let (Some(Key::Pool(pool)), Some((_, rest))) = (key, split_volume(name)) else {
            return Ok(None);
        };
        let found = self.open_pool(&pool)?.volume(rest).await?;
        Ok(found.map(|volume| self.with_users(volume)))
    }
}

/// The limits of a volume after a change.
pub(super) fn new_limits(
    there: &Volume,
    qos: Option<QosLimits>,
    paths: &[String],
) -> Result<QosLimits, ControlError> {
    let what = || format!("volume {:?}", there.name);
    if there.snapshot {
        let problem = "a snapshot has no limits; set those of a volume";
        return Err(ControlError::field(what(), "qos", problem));
    }
    let asked = Volume {
        qos,
        ..Volume::default()
    };
    let new = api::fields::update(there, &asked, paths, &["qos"]);
    let new = new.map_err(|error| ControlError::field(what(), "update_mask", error.to_string()))?;
    let limits = normal_limits(&there.name, "the request", new.qos)?;
    Ok(limits.unwrap_or_default())
}
