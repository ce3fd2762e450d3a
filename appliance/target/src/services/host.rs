//! Hosts that may connect.

use std::time::Duration;

use api::v1::host_service_server::HostService;
use api::v1::{
    CreateHostRequest, DeleteHostRequest, DeleteHostResponse, GetHostRequest, Host,
    ListHostsRequest, ListHostsResponse,
};
use tonic::{Request, Response};

use super::page::page;
use super::{Answer, Services, done, required};
use crate::error::ControlError;

/// How long I/O of a host that must go may take, unless the caller says.
const TIMEOUT_MS_DEFAULT: u64 = 5000;
const TIMEOUT_MS_MAX: u64 = 600_000;

#[tonic::async_trait]
impl HostService for Services {
    async fn create_host(&self, request: Request<CreateHostRequest>) -> Answer<Host> {
        let CreateHostRequest {
            subsystem_nqn,
            host,
        } = request.into_inner();
        let spec = required(host, "host")?;
        let stored = self
            .control
            .change(|edit| edit.create_host(&subsystem_nqn, spec))
            .await?;
        Ok(Response::new(self.describe(|describe| {
            describe.host(&subsystem_nqn, &stored)
        })))
    }

    async fn get_host(&self, request: Request<GetHostRequest>) -> Answer<Host> {
        let GetHostRequest {
            subsystem_nqn: nqn,
            host_nqn,
        } = request.into_inner();
        let found = self.describe(|describe| {
            let stored = describe
                .view
                .model
                .subsystems()
                .get(&nqn)?
                .hosts
                .get(&host_nqn)?;
            Some(describe.host(&nqn, stored))
        });
        let name = || format!("{nqn}/{host_nqn}");
        let found = found.ok_or_else(|| ControlError::NotFound {
            kind: "host",
            name: name(),
        })?;
        Ok(Response::new(found))
    }

    async fn list_hosts(&self, request: Request<ListHostsRequest>) -> Answer<ListHostsResponse> {
        let ListHostsRequest {
            subsystem_nqn,
            page_size,
            page_token,
        } = request.into_inner();
        let page = self.describe(|describe| {
            let entries = describe.of_subsystem(&subsystem_nqn)?;
            let all = entries.flat_map(|(nqn, entry)| {
                let hosts = entry.hosts.iter();
                hosts.map(move |(host, stored)| (format!("{nqn}\n{host}"), (nqn, stored)))
            });
            page(all, page_size, &page_token, |(nqn, stored)| {
                describe.host(nqn, stored)
            })
        })?;
        Ok(Response::new(ListHostsResponse {
            hosts: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn delete_host(&self, request: Request<DeleteHostRequest>) -> Answer<DeleteHostResponse> {
        let request = request.into_inner();
        let timeout_ms = request.timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT);
        if timeout_ms > TIMEOUT_MS_MAX {
            let problem = format!("{timeout_ms} must be at most {TIMEOUT_MS_MAX}");
            return Err(ControlError::field("the request", "timeout_ms", problem).into());
        }
        let DeleteHostRequest {
            subsystem_nqn,
            host_nqn,
            expected_generation,
            ..
        } = request;
        let deadline = Duration::from_millis(timeout_ms);
        let runtime = self.control.runtime().clone();
        self.control
            .change(|edit| {
                runtime.set_host_deadline(deadline);
                edit.delete_host(
                    &subsystem_nqn,
                    &host_nqn,
                    expected_generation,
                    request.allow_missing,
                )
            })
            .await?;
        done()
    }
}
