//! Transports.

use api::v1::transport_service_server::TransportService;
use api::v1::{
    CreateTransportRequest, DeleteTransportRequest, DeleteTransportResponse, GetTransportRequest,
    ListRdmaDevicesRequest, ListRdmaDevicesResponse, ListTransportsRequest, ListTransportsResponse,
    Transport, UpdateTransportRequest,
};
use tonic::{Request, Response, Status};

use super::page::page;
use super::{Answer, Services, done, paths, required};
use crate::error::ControlError;

#[tonic::async_trait]
impl TransportService for Services {
    async fn create_transport(
        &self,
        request: Request<CreateTransportRequest>,
    ) -> Answer<Transport> {
        let spec = required(request.into_inner().transport, "transport")?;
        let stored = self
            .control
            .change(|edit| edit.create_transport(spec))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.transport(&stored)),
        ))
    }

    async fn get_transport(&self, request: Request<GetTransportRequest>) -> Answer<Transport> {
        let trtype = request.into_inner().trtype.to_ascii_lowercase();
        let found = self.describe(|describe| {
            describe
                .view
                .model
                .transports()
                .get(&trtype)
                .map(|stored| describe.transport(stored))
        });
        let found = found.ok_or(ControlError::NotFound {
            kind: "transport",
            name: trtype,
        })?;
        Ok(Response::new(found))
    }

    async fn list_transports(
        &self,
        request: Request<ListTransportsRequest>,
    ) -> Answer<ListTransportsResponse> {
        let ListTransportsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let page = self.describe(|describe| {
            let all = describe.view.model.transports().iter();
            let all = all.map(|(trtype, stored)| (trtype.clone(), stored));
            page(all, page_size, &page_token, |stored| {
                describe.transport(stored)
            })
        })?;
        Ok(Response::new(ListTransportsResponse {
            transports: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn list_rdma_devices(
        &self,
        _request: Request<ListRdmaDevicesRequest>,
    ) -> Answer<ListRdmaDevicesResponse> {
        let listeners = self.describe(|describe| {
            let entries = describe.view.model.subsystems().iter();
            let of_entry = entries.flat_map(|(nqn, entry)| {
                let all = entry.listeners.values();
                all.filter_map(move |stored| {
                    let address = stored.spec.address.as_ref()?;
                    let is_rdma = address.trtype == "rdma";
                    let ip = address.socket_addr().ok().filter(|_| is_rdma)?.ip();
                    Some((ip, format!("{nqn} {}", address.uri())))
                })
            });
            of_entry.collect::<Vec<_>>()
        });
        let listing = tokio::task::spawn_blocking(move || {
            let provider = crate::rdma::provider();
            crate::rdma::list(&machine::Root::new("/"), &provider, &listeners)
        });
        let listed = listing.await;
        let listed = listed.map_err(|_| Status::internal("looking at RDMA devices broke off"))?;
        Ok(Response::new(listed))
    }

    async fn update_transport(
        &self,
        request: Request<UpdateTransportRequest>,
    ) -> Answer<Transport> {
        let request = request.into_inner();
        let spec = required(request.transport, "transport")?;
        let paths = paths(request.update_mask);
        let expected = request.expected_generation;
        let stored = self
            .control
            .change(|edit| edit.update_transport(&spec, &paths, expected))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.transport(&stored)),
        ))
    }

    async fn delete_transport(
        &self,
        request: Request<DeleteTransportRequest>,
    ) -> Answer<DeleteTransportResponse> {
        let DeleteTransportRequest {
            trtype,
            expected_generation,
            allow_missing,
        } = request.into_inner();
        self.control
            .change(|edit| edit.delete_transport(&trtype, expected_generation, allow_missing))
            .await?;
        done()
    }
}
