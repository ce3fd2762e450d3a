//! Images in and out, shallow copies and scrubs of a pool that is in place: what they need of names, claims and
//! volumes. The work is done by [`crate::copy`].
//!
//! An import makes its volume, and holds it alone until it has ended; if it does not end well the volume is
//! deleted. The pool learns of the operation first: after a crash in between, an import whose volume is not
//! there has failed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Bdev, Claim, ClaimKind};
use image_file::Format;
use lvol::{Operation, OperationKind};

use super::pools::OpenPool;
use crate::copy::{Detail, Task, Undo};
use crate::error::{ControlError, chain};
use crate::pool::{Job, Labels, VolumeSettings};

/// An operation, and who is to be told of it.
struct Begun {
    id: u64,
    pool: lvol::Pool,
}

impl OpenPool {
    /// Begins a job. The number of its operation.
    pub(super) async fn begin(self: Arc<Self>, job: Job) -> Result<u64, ControlError> {
        match job {
            Job::Import {
                name,
                file,
                format,
                thick,
                labels,
            } => self.import(name, file, format, (thick, labels)).await,
            Job::Export { name, file, format } => self.export(name, file, format).await,
            Job::Copy {
                snapshot,
                bdev_name,
            } => self.copy_snapshot(snapshot, bdev_name).await,
            Job::Scrub { bytes_per_sec } => self.scrub(bytes_per_sec).await,
        }
    }

    /// Goes on with what was under way when the pool was closed, or the node stopped.
    pub(super) fn resume(self: &Arc<Self>, operations: Vec<Operation>) {
        let Some(pool) = self.engine.library() else {
            return;
        };
        for operation in operations {
            let (id, subject) = (operation.id, operation.subject.clone());
            let begun = Begun {
                id,
                pool: pool.clone(),
            };
            match Detail::decode(&operation.detail) {
                Ok(detail) => {
                    let (kind, done) = (operation.kind, operation.done);
                    let mut task = self.task(begun, kind, subject, detail);
                    task.done = done;
                    tracing::info!(pool = self.name, id, "an operation goes on");
                    if let Err(reason) = self.copier.drive(task) {
                        tracing::error!(pool = self.name, id, reason, "it cannot go on");
                    }
                }
                // Its own program made it: nobody can go on with it here.
                Err(reason) => drop(pool.end(id, Err(reason))),
            }
        }
    }

    async fn import(
        self: Arc<Self>,
        name: String,
        file: PathBuf,
        format: Option<Format>,
        (thick, labels): (bool, Labels),
    ) -> Result<u64, ControlError> {
        let what = format!("importing {}", self.full_name(&name));
        let place = self.place(&what)?;
        let found = self.copier.inspect(file.clone(), format).await;
        let found = found.map_err(|reason| failed(&what, reason))?;
        if found.len_bytes == 0 {
            return Err(failed(&what, format!("{} is empty", file.display())));
        }
        let _names = self.lock_names(&[&name]).await;
        if self.engine.volume(&name).await?.is_some() {
            return Err(ControlError::Exists {
                kind: "volume",
                name: self.full_name(&name),
                differences: Vec::new(),
            });
        }
        let detail = Detail::import(file, found.format, found.identity);
        let kind = OperationKind::Import;
        let begun = self
            .keep(&what, kind, &name, found.len_bytes, &detail)
            .await?;
        // A part of a block at the end of the image is filled up with zeroes.
        let block_size = self.engine.reading().await?.block_size.max(512);
        let size_bytes = found.len_bytes.next_multiple_of(u64::from(block_size));
        let made = async {
            let settings = VolumeSettings { labels, qos: None };
            let made = self
                .engine
                .create_volume(&name, size_bytes, thick, settings);
            made.await?;
            self.register_new(std::slice::from_ref(&name)).await
        };
        if let Err(error) = made.await {
            // The caller is told; what was kept of it says the same.
            drop(begun.pool.end(begun.id, Err(chain(&error))).await);
            return Err(error);
        }
        let mut task = self.task(begun, kind, name, detail);
        task.place = Some(place);
        self.drive(&what, task).await
    }

    async fn export(
        self: Arc<Self>,
        name: String,
        file: PathBuf,
        format: Option<Format>,
    ) -> Result<u64, ControlError> {
        let what = format!("exporting {}", self.full_name(&name));
        let place = self.place(&what)?;
        check_destination(&what, &file)?;
        let format = format.unwrap_or_else(|| Format::of_path(&file));
        let _names = self.lock_names(&[&name]).await;
        let size_bytes = self.size_of(&name).await?;
        let detail = Detail::export(file, format);
        let kind = OperationKind::Export;
        // Before anything is kept: who uses it is told now.
        drop(self.claim(kind, &name, "export").map_err(in_use)?);
        let begun = self.keep(&what, kind, &name, size_bytes, &detail).await?;
        let mut task = self.task(begun, kind, name, detail);
        task.place = Some(place);
        self.drive(&what, task).await
    }

    async fn copy_snapshot(
        self: Arc<Self>,
        name: String,
        bdev_name: String,
    ) -> Result<u64, ControlError> {
        let what = format!("copying {}", self.full_name(&name));
        let place = self.place(&what)?;
        let to = self.plane.registry().get(&bdev_name);
        let to = to.map_err(|error| failed(&what, chain(&error)))?;
        let _names = self.lock_names(&[&name]).await;
        let size_bytes = self.size_of(&name).await?;
        let len = to.geometry().len_bytes();
        if len < size_bytes {
            let reason =
                format!("block device {bdev_name} has {len} bytes, {size_bytes} are needed");
            return Err(failed(&what, reason));
        }
        let kind = OperationKind::Copy;
        drop(self.claim(kind, &name, "copy").map_err(in_use)?);
        drop(to.claim(&what, ClaimKind::Exclusive).map_err(|error| {
            let problem = chain(&error);
            in_use((bdev_name.clone(), problem))
        })?);
        let detail = Detail::Copy {
            bdev: to.name().to_owned(),
        };
        let begun = self.keep(&what, kind, &name, size_bytes, &detail).await?;
        let mut task = self.task(begun, kind, name, detail);
        task.place = Some(place);
        self.drive(&what, task).await
    }

    async fn scrub(self: Arc<Self>, bytes_per_sec: u64) -> Result<u64, ControlError> {
        let what = format!("scrubbing {}", self.name);
        let place = self.place(&what)?;
        let pool = self.library(&what)?;
        let info = pool.info().await;
        let clusters = info
            .map_err(|error| failed(&what, chain(&error)))?
            .used_clusters;
        let detail = Detail::scrub(bytes_per_sec);
        let kind = OperationKind::Scrub;
        let begun = self.keep(&what, kind, "", clusters, &detail).await?;
        let mut task = self.task(begun, kind, String::new(), detail);
        task.place = Some(place);
        self.drive(&what, task).await
    }

    fn place(&self, what: &str) -> Result<crate::copy::Place, ControlError> {
        self.copier.place().map_err(|reason| ControlError::Busy {
            what: what.to_owned(),
            reason,
        })
    }

    fn library(&self, what: &str) -> Result<lvol::Pool, ControlError> {
        self.engine
            .library()
            .ok_or_else(|| ControlError::Unimplemented {
                what: what.to_owned(),
            })
    }

    async fn size_of(&self, name: &str) -> Result<u64, ControlError> {
        match self.engine.volume(name).await? {
            Some(volume) => Ok(volume.size_bytes),
            None => Err(ControlError::NotFound {
                kind: if name.contains('@') {
                    "snapshot"
                } else {
                    "volume"
                },
                name: self.full_name(name),
            }),
        }
    }

    async fn keep(
        &self,
        what: &str,
        kind: OperationKind,
        subject: &str,
        total: u64,
        detail: &Detail,
    ) -> Result<Begun, ControlError> {
        let pool = self.library(what)?;
        let begun = pool.begin(kind, subject, total, detail.encode()).await;
        match begun {
            Ok(id) => Ok(Begun { id, pool }),
            Err(error @ lvol::LvolError::Refused { .. }) => Err(ControlError::Busy {
                what: what.to_owned(),
                reason: chain(&error),
            }),
            Err(error) => Err(failed(what, chain(&error))),
        }
    }

    async fn drive(&self, what: &str, task: Task) -> Result<u64, ControlError> {
        let (id, pool) = (task.id, task.pool.clone());
        match self.copier.drive(task) {
            Ok(()) => Ok(id),
            Err(reason) => {
                drop(pool.end(id, Err(reason.clone())).await);
                Err(failed(what, reason))
            }
        }
    }

    /// The block device of a volume or a snapshot, and the right to use it; or whose it is, and why not.
    fn claim(
        &self,
        kind: OperationKind,
        name: &str,
        owner: &str,
    ) -> Result<(Arc<Bdev>, Claim), (String, String)> {
        let full_name = self.full_name(name);
        let told = |error: block::BlockError| (full_name.clone(), chain(&error));
        let bdev = self.plane.registry().get(&full_name).map_err(told)?;
        // A snapshot never changes: others may read it too.
        let is_shared = kind != OperationKind::Import && name.contains('@');
        let kind = if is_shared {
            ClaimKind::Shared
        } else {
            ClaimKind::Exclusive
        };
        let claim = bdev.claim(owner, kind).map_err(told)?;
        Ok((bdev, claim))
    }

    /// What the thread needs. What is missing makes it fail there, and be ended as any other.
    fn task(
        self: &Arc<Self>,
        begun: Begun,
        kind: OperationKind,
        subject: String,
        detail: Detail,
    ) -> Task {
        let Begun { id, pool } = begun;
        let owner = format!("operation {}/{id}", self.name);
        let mut claims = Vec::new();
        let device = if kind == OperationKind::Scrub {
            self.base()
                .ok_or_else(|| "the pool is being closed".to_owned())
        } else {
            let claimed = self.claim(kind, &subject, &owner);
            let device = claimed.map(|(bdev, claim)| {
                claims.push(claim);
                bdev
            });
            device.map_err(|(_, problem)| problem)
        };
        let mut to = None;
        if let Detail::Copy { bdev } = &detail
            && let Ok(bdev) = self.plane.registry().get(bdev)
            && let Ok(claim) = bdev.claim(&owner, ClaimKind::Exclusive)
        {
            claims.push(claim);
            to = Some(bdev);
        }
        let undo = (kind == OperationKind::Import).then(|| self.undo_import(&subject));
        Task {
            pool,
            pool_name: self.name.clone(),
            id,
            subject,
            done: 0,
            detail,
            device,
            to,
            claims,
            undo,
            place: None,
        }
    }

    /// Deletes the volume, if it is there.
    fn undo_import(self: &Arc<Self>, name: &str) -> Undo {
        let (pool, name) = (Arc::downgrade(self), name.to_owned());
        Box::new(move || {
            Box::pin(async move {
                let Some(pool) = pool.upgrade() else {
                    return Ok(());
                };
                let _names = pool.lock_names(&[&name]).await;
                if pool.engine.volume(&name).await?.is_none() {
                    return Ok(());
                }
                pool.delete_unlocked(&name).await.map(drop)
            })
        })
    }
}

fn check_destination(what: &str, file: &Path) -> Result<(), ControlError> {
    let reason = if !file.is_absolute() {
        format!("{} is not an absolute path on the node", file.display())
    } else if file.is_file() {
        let file = file.display();
        format!("{file} is there already; remove it or name another file")
    } else {
        return Ok(());
    };
    Err(failed(what, reason))
}

fn failed(what: &str, reason: String) -> ControlError {
    ControlError::Refused {
        what: what.to_owned(),
        reason,
    }
}

fn in_use((subject, problem): (String, String)) -> ControlError {
    ControlError::Precondition {
        subject,
        problem: format!("{problem}; of a volume that is in use, take a snapshot and name that"),
    }
}
