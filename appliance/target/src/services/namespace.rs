//! Namespaces.

use api::v1::namespace_service_server::NamespaceService;
use api::v1::{
    CreateNamespaceRequest, DeleteNamespaceRequest, DeleteNamespaceResponse, GetNamespaceRequest,
    ListNamespacesRequest, ListNamespacesResponse, Namespace, UpdateNamespaceRequest,
};
use tonic::{Request, Response};

use super::page::page;
use super::{Answer, Services, done, paths, required};
use crate::error::ControlError;

#[tonic::async_trait]
impl NamespaceService for Services {
    async fn create_namespace(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Answer<Namespace> {
        let CreateNamespaceRequest { nqn, namespace } = request.into_inner();
        let spec = required(namespace, "namespace")?;
        self.check_is_volume(&spec.bdev_name).await?;
        let stored = self
            .control
            .change(|edit| edit.create_namespace(&nqn, spec))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.namespace(&nqn, &stored)),
        ))
    }

    async fn get_namespace(&self, request: Request<GetNamespaceRequest>) -> Answer<Namespace> {
        let GetNamespaceRequest { nqn, nsid } = request.into_inner();
        let found = self.describe(|describe| {
            let stored = describe
                .view
                .model
                .subsystems()
                .get(&nqn)?
                .namespaces
                .get(&nsid)?;
            Some(describe.namespace(&nqn, stored))
        });
        let name = || format!("{nqn}/{nsid}");
        let found = found.ok_or_else(|| ControlError::NotFound {
            kind: "namespace",
            name: name(),
        })?;
        Ok(Response::new(found))
    }

    async fn list_namespaces(
        &self,
        request: Request<ListNamespacesRequest>,
    ) -> Answer<ListNamespacesResponse> {
        let ListNamespacesRequest {
            nqn,
            page_size,
            page_token,
        } = request.into_inner();
        let page = self.describe(|describe| {
            let entries = describe.of_subsystem(&nqn)?;
            let all = entries.flat_map(|(nqn, entry)| {
                let namespaces = entry.namespaces.iter();
                namespaces.map(move |(nsid, stored)| (format!("{nqn}\n{nsid:010}"), (nqn, stored)))
            });
            page(all, page_size, &page_token, |(nqn, stored)| {
                describe.namespace(nqn, stored)
            })
        })?;
        Ok(Response::new(ListNamespacesResponse {
            namespaces: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn update_namespace(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Answer<Namespace> {
        let request = request.into_inner();
        let nqn = request.nqn;
        let spec = required(request.namespace, "namespace")?;
        let paths = paths(request.update_mask);
        let expected = request.expected_generation;
        let stored = self
            .control
            .change(|edit| edit.update_namespace(&nqn, &spec, &paths, expected))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.namespace(&nqn, &stored)),
        ))
    }

    async fn delete_namespace(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Answer<DeleteNamespaceResponse> {
        let DeleteNamespaceRequest {
            nqn,
            nsid,
            expected_generation,
            allow_missing,
        } = request.into_inner();
        self.control
            .change(|edit| edit.delete_namespace(&nqn, nsid, expected_generation, allow_missing))
            .await?;
        done()
    }
}
