//! Images in and out, and shallow copies.

use std::path::PathBuf;

use api::v1::{
    CopySnapshotRequest, EventType, ExportVolumeRequest, ImportVolumeRequest, Operation,
};
use image_file::Format;

use super::Services;
use super::labels::owners;
use crate::error::ControlError;
use crate::model::check_volume_name;
use crate::pool::Job;

/// Longest path of a file, bytes: that of the system.
const PATH_BYTES_MAX: usize = 4095;

fn format(what: &str, name: &str) -> Result<Option<Format>, ControlError> {
    if name.is_empty() {
        return Ok(None);
    }
    let format = Format::from_name(name).map(Some);
    format.ok_or_else(|| {
        let problem = format!("{name:?} must be raw or qcow2");
        ControlError::field(what.to_owned(), "format", problem)
    })
}

fn file(what: &str, path: String) -> Result<PathBuf, ControlError> {
    let problem = if !path.starts_with('/') {
        format!("{path:?} must be an absolute path on the node")
    } else if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
        "must be a path without control characters, of at most 4095 bytes".to_owned()
    } else {
        return Ok(PathBuf::from(path));
    };
    Err(ControlError::field(what.to_owned(), "file", problem))
}

impl Services {
    pub(super) async fn import(
        self,
        request: ImportVolumeRequest,
    ) -> Result<Operation, ControlError> {
        let (pool, rest) = check_volume_name(&request.name, false, "name")?;
        let what = format!("the import of {:?}", request.name);
        let job = Job::Import {
            name: rest.to_owned(),
            file: file(&what, request.file)?,
            format: format(&what, &request.format)?,
            thick: request.thick,
            labels: owners(&what, "labels", &request.labels)?,
        };
        let operation = self.begin(pool, job).await?;
        self.control.tell(
            EventType::Created,
            "volume",
            request.name.clone(),
            String::new(),
        );
        Ok(operation)
    }

    pub(super) async fn export(
        self,
        request: ExportVolumeRequest,
    ) -> Result<Operation, ControlError> {
        let is_snapshot = request.name.contains('@');
        let (pool, rest) = check_volume_name(&request.name, is_snapshot, "name")?;
        let what = format!("the export of {:?}", request.name);
        let job = Job::Export {
            name: rest.to_owned(),
            file: file(&what, request.file)?,
            format: format(&what, &request.format)?,
        };
        self.begin(pool, job).await
    }

    pub(super) async fn copy(
        self,
        request: CopySnapshotRequest,
    ) -> Result<Operation, ControlError> {
        let (pool, rest) = check_volume_name(&request.name, true, "name")?;
        let job = Job::Copy {
            snapshot: rest.to_owned(),
            bdev_name: request.bdev_name,
        };
        self.begin(pool, job).await
    }

    async fn begin(&self, pool: &str, job: Job) -> Result<Operation, ControlError> {
        let id = self.pool_to_change(pool)?.begin(job).await?;
        self.operation(pool, id).await
    }
}
