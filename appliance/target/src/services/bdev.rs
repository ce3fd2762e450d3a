//! Block devices.

use std::time::Instant;

use api::v1::bdev_service_server::BdevService;
use api::v1::bdev_spec::Kind;
use api::v1::{
    Bdev, CreateBdevRequest, DeleteBdevRequest, DeleteBdevResponse, FormatDriveRequest,
    GetBdevRequest, ListBdevStatsRequest, ListBdevStatsResponse, ListBdevsRequest,
    ListBdevsResponse, ResetBdevRequest, ResizeBdevRequest, UpdateBdevRequest,
};
use tonic::{Request, Response};

use super::page::page;
use super::{Answer, Services, TICK_RATE, done, paths, required};
use crate::error::ControlError;
use crate::runtime::RuntimeError;

fn not_found(name: String) -> ControlError {
    ControlError::NotFound { kind: "bdev", name }
}

#[tonic::async_trait]
impl BdevService for Services {
    async fn create_bdev(&self, request: Request<CreateBdevRequest>) -> Answer<Bdev> {
        let spec = required(request.into_inner().bdev, "bdev")?;
        if let Some(base) = crate::model::base_of(&spec) {
            self.check_is_volume(base).await?;
        }
        let stored = self
            .control
            .change_with_bdevs(|edit| edit.create_bdev(spec.clone()))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.bdev(&stored)),
        ))
    }

    async fn get_bdev(&self, request: Request<GetBdevRequest>) -> Answer<Bdev> {
        let name = request.into_inner().name;
        let found = self.describe(|describe| {
            let model = describe.view.model;
            let found = model.find_bdev(&name);
            found
                .map(|stored| describe.bdev(stored))
                .or_else(|| describe.namespace_of_drive(&name))
        });
        let volume = match found {
            Some(found) => return Ok(Response::new(found)),
            None => self.volume_of_bdev(&name).await?,
        };
        let volume = volume.ok_or_else(|| not_found(name))?;
        Ok(Response::new(
            self.describe(|describe| describe.volume(&volume)),
        ))
    }

    async fn list_bdevs(&self, request: Request<ListBdevsRequest>) -> Answer<ListBdevsResponse> {
        let ListBdevsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let page = self.describe(|describe| {
            let all = describe.view.model.bdevs().iter();
            let all = all.map(|(name, stored)| (name.clone(), stored));
            page(all, page_size, &page_token, |stored| describe.bdev(stored))
        })?;
        Ok(Response::new(ListBdevsResponse {
            bdevs: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn update_bdev(&self, request: Request<UpdateBdevRequest>) -> Answer<Bdev> {
        let request = request.into_inner();
        let spec = required(request.bdev, "bdev")?;
        let paths = paths(request.update_mask);
        let expected = request.expected_generation;
        if let Some(volume) = self.volume_of_bdev(&spec.name).await? {
            let name = volume.name;
            if expected.is_some() {
                let problem = "a volume has no generation";
                let what = format!("volume {name:?}");
                return Err(ControlError::field(what, "expected_generation", problem).into());
            }
            let work = self.clone().limit_volume(name, spec.qos, paths);
            let volume = self.complete(work).await?;
            return Ok(Response::new(
                self.describe(|describe| describe.volume(&volume)),
            ));
        }
        let stored = self
            .control
            .change(|edit| edit.update_bdev(&spec, &paths, expected))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.bdev(&stored)),
        ))
    }

    async fn resize_bdev(&self, request: Request<ResizeBdevRequest>) -> Answer<Bdev> {
        let ResizeBdevRequest {
            name,
            size_bytes,
            expected_generation,
        } = request.into_inner();
        let stored = self
            .control
            .change(|edit| edit.resize_bdev(&name, size_bytes, expected_generation))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.bdev(&stored)),
        ))
    }

    async fn delete_bdev(&self, request: Request<DeleteBdevRequest>) -> Answer<DeleteBdevResponse> {
        let DeleteBdevRequest {
            name,
            expected_generation,
            allow_missing,
        } = request.into_inner();
        self.control
            .change(|edit| edit.delete_bdev(&name, expected_generation, allow_missing))
            .await?;
        done()
    }

    async fn reset_bdev(&self, request: Request<ResetBdevRequest>) -> Answer<Bdev> {
        let name = request.into_inner().name;
        self.control.check_serving()?;
        let found = self.describe(|describe| {
            let found = describe.view.model.find_bdev(&name);
            found.map(|stored| (stored.spec.name.clone(), describe.bdev(stored)))
        });
        let (name, bdev) = found.ok_or_else(|| not_found(name))?;
        if !self.control.runtime().reset_bdev(&name) {
            let error = ControlError::Precondition {
                subject: name,
                problem: "only a drive that is in place can be reset".to_owned(),
            };
            return Err(error.into());
        }
        Ok(Response::new(bdev))
    }

    async fn format_drive(&self, request: Request<FormatDriveRequest>) -> Answer<Bdev> {
        let request = request.into_inner();
        self.control.check_serving()?;
        // Checked and begun without a pause in between: no call can begin to use it meanwhile.
        self.may_format(&request)?;
        let what = format!("a format of namespace {} of {}", request.nsid, request.name);
        let failed = |error: RuntimeError| ControlError::Failed {
            what: what.clone(),
            reason: error.to_string(),
        };
        let begun = self.control.runtime().format_drive(&request);
        let formatting = begun.map_err(|error| ControlError::Precondition {
            subject: request.name.clone(),
            problem: format!("{what} is refused: {error}"),
        })?;
        formatting.await.map_err(failed)?;
        let name = request.name;
        let found = self.describe(|describe| {
            let found = describe.view.model.find_bdev(&name);
            found.map(|stored| describe.bdev(stored))
        });
        Ok(Response::new(found.ok_or_else(|| not_found(name))?))
    }

    async fn list_bdev_stats(
        &self,
        request: Request<ListBdevStatsRequest>,
    ) -> Answer<ListBdevStatsResponse> {
        let ListBdevStatsRequest {
            name,
            per_thread,
            histograms,
            page_size,
            page_token,
        } = request.into_inner();
        let names: Vec<String> = self.describe(|describe| {
            let model = describe.view.model;
            if name.is_empty() {
                // Volumes, and namespaces of drives too.
                let mut names = describe.runtime.bdevs();
                names.sort();
                return Ok(names);
            }
            match model.find_bdev(&name) {
                Some(found) => Ok(vec![found.spec.name.clone()]),
                // A volume counts like any block device.
                None if model.key_of_bdev(&name).is_some() => Ok(vec![name]),
                None => Err(not_found(name)),
            }
        })?;
        let all = names.into_iter().map(|name| (name.clone(), name));
        let runtime = self.control.runtime();
        let page = page(all, page_size, &page_token, |name: String| {
            runtime.bdev_stats(&name, per_thread, histograms)
        })?;
        Ok(Response::new(ListBdevStatsResponse {
            tick_rate: TICK_RATE,
            ticks: ticks(self.control.about.started),
            // One that is pending has counted nothing.
            bdevs: page.items.into_iter().flatten().collect(),
            next_page_token: page.next_page_token,
        }))
    }
}

impl Services {
    /// Refuses a format of another drive than was meant, of one that is not in place, and of a
    /// namespace that something uses.
    fn may_format(&self, request: &FormatDriveRequest) -> Result<(), ControlError> {
        let name = &request.name;
        let what = format!("bdev {name:?}");
        if request.nsid == 0 || request.nsid == u32::MAX {
            let problem = "must be the number of one namespace, from 1";
            return Err(ControlError::field(what, "nsid", problem));
        }
        if !matches!(request.data_size, 512..=65_536) || !request.data_size.is_power_of_two() {
            let problem = "must be a power of two from 512 to 65536";
            return Err(ControlError::field(what, "data_size", problem));
        }
        self.describe(|describe| {
            let model = describe.view.model;
            let Some(stored) = model.find_bdev(name) else {
                return Err(not_found(name.clone()));
            };
            let bdev = describe.bdev(stored);
            let is_drive = matches!(stored.spec.kind, Some(Kind::Nvme(_)));
            let Some(drive) = bdev.nvme.filter(|_| is_drive) else {
                return Err(ControlError::Precondition {
                    subject: name.clone(),
                    problem: "only a drive that is in place can be formatted".to_owned(),
                });
            };
            if drive.serial_number != request.serial_number {
                let problem = "is not the serial number of this drive";
                return Err(ControlError::field(what, "serial_number", problem));
            }
            let formats_all = drive.features.is_some_and(|f| f.formats_all_namespaces);
            let namespace = format!("{name}n{}", request.nsid);
            let mut users: Vec<String> = model
                .users_of_drive(name)
                .filter(|(used, _)| formats_all || *used == namespace)
                .map(|(used, key)| format!("{} {} ({used})", key.kind(), key.name()))
                .collect();
            users.sort();
            if users.is_empty() {
                return Ok(());
            }
            Err(ControlError::InUse {
                kind: "bdev",
                name: namespace,
                users,
            })
        })
    }
}

fn ticks(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
