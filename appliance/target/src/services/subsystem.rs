//! Subsystems.

use api::v1::subsystem_service_server::SubsystemService;
use api::v1::{
    CreateSubsystemRequest, DeleteSubsystemRequest, DeleteSubsystemResponse, GetSubsystemRequest,
    ListSubsystemsRequest, ListSubsystemsResponse, Subsystem, UpdateSubsystemRequest,
};
use tonic::{Request, Response};

use super::page::page;
use super::{Answer, Services, done, paths, required};
use crate::error::ControlError;

impl Services {
    fn subsystem(&self, nqn: String) -> Result<Subsystem, ControlError> {
        self.describe(|describe| {
            let entry = describe.view.model.subsystems().get(&nqn);
            entry.map(|entry| describe.subsystem(entry))
        })
        .ok_or(ControlError::NotFound {
            kind: "subsystem",
            name: nqn,
        })
    }
}

#[tonic::async_trait]
impl SubsystemService for Services {
    async fn create_subsystem(
        &self,
        request: Request<CreateSubsystemRequest>,
    ) -> Answer<Subsystem> {
        let spec = required(request.into_inner().subsystem, "subsystem")?;
        let stored = self
            .control
            .change(|edit| edit.create_subsystem(spec))
            .await?;
        Ok(Response::new(self.subsystem(stored.spec.nqn.clone())?))
    }

    async fn get_subsystem(&self, request: Request<GetSubsystemRequest>) -> Answer<Subsystem> {
        Ok(Response::new(self.subsystem(request.into_inner().nqn)?))
    }

    async fn list_subsystems(
        &self,
        request: Request<ListSubsystemsRequest>,
    ) -> Answer<ListSubsystemsResponse> {
        let ListSubsystemsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let page = self.describe(|describe| {
            let all = describe.view.model.subsystems().iter();
            let all = all.map(|(nqn, entry)| (nqn.clone(), entry));
            page(all, page_size, &page_token, |entry| {
                describe.subsystem(entry)
            })
        })?;
        Ok(Response::new(ListSubsystemsResponse {
            subsystems: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn update_subsystem(
        &self,
        request: Request<UpdateSubsystemRequest>,
    ) -> Answer<Subsystem> {
        let request = request.into_inner();
        let spec = required(request.subsystem, "subsystem")?;
        let paths = paths(request.update_mask);
        let expected = request.expected_generation;
        self.control
            .change(|edit| edit.update_subsystem(&spec, &paths, expected))
            .await?;
        Ok(Response::new(self.subsystem(spec.nqn)?))
    }

    async fn delete_subsystem(
        &self,
        request: Request<DeleteSubsystemRequest>,
    ) -> Answer<DeleteSubsystemResponse> {
        let DeleteSubsystemRequest {
            nqn,
            expected_generation,
            allow_missing,
        } = request.into_inner();
        self.control
            .change(|edit| edit.delete_subsystem(&nqn, expected_generation, allow_missing))
            .await?;
        done()
    }
}
