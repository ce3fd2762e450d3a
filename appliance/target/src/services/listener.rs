//! Listeners and the path states that hosts see through them.

use api::v1::listener_service_server::ListenerService;
use api::v1::{
    Address, CreateListenerRequest, DeleteListenerRequest, DeleteListenerResponse,
    GetListenerRequest, ListListenersRequest, ListListenersResponse, Listener, SetAnaStateRequest,
};
use tonic::{Request, Response};

use super::page::page;
use super::{Answer, Services, done, required};
use crate::error::ControlError;

#[tonic::async_trait]
impl ListenerService for Services {
    async fn create_listener(&self, request: Request<CreateListenerRequest>) -> Answer<Listener> {
        let CreateListenerRequest { nqn, listener } = request.into_inner();
        let spec = required(listener, "listener")?;
        let stored = self
            .control
            .change(|edit| edit.create_listener(&nqn, spec))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.listener(&nqn, &stored)),
        ))
    }

    async fn get_listener(&self, request: Request<GetListenerRequest>) -> Answer<Listener> {
        let GetListenerRequest { nqn, address } = request.into_inner();
        let address = required(address, "address")?;
        let uri = match address.socket_addr() {
            Ok(socket) => Address::from_socket(&address.trtype.to_ascii_lowercase(), socket).uri(),
            Err(error) => {
                let field = format!("address.{}", error.field());
                let error = ControlError::field("the address", field, error.to_string());
                return Err(error.into());
            }
        };
        let found = self.describe(|describe| {
            let stored = describe
                .view
                .model
                .subsystems()
                .get(&nqn)?
                .listeners
                .get(&uri)?;
            Some(describe.listener(&nqn, stored))
        });
        let name = || format!("{nqn}/{uri}");
        let found = found.ok_or_else(|| ControlError::NotFound {
            kind: "listener",
            name: name(),
        })?;
        Ok(Response::new(found))
    }

    async fn list_listeners(
        &self,
        request: Request<ListListenersRequest>,
    ) -> Answer<ListListenersResponse> {
        let ListListenersRequest {
            nqn,
            page_size,
            page_token,
        } = request.into_inner();
        let page = self.describe(|describe| {
            let entries = describe.of_subsystem(&nqn)?;
            let all = entries.flat_map(|(nqn, entry)| {
                let listeners = entry.listeners.iter();
                listeners.map(move |(uri, stored)| (format!("{nqn}\n{uri}"), (nqn, stored)))
            });
            page(all, page_size, &page_token, |(nqn, stored)| {
                describe.listener(nqn, stored)
            })
        })?;
        Ok(Response::new(ListListenersResponse {
            listeners: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn set_ana_state(&self, request: Request<SetAnaStateRequest>) -> Answer<Listener> {
        let request = request.into_inner();
        let state = request.ana_state();
        let SetAnaStateRequest {
            nqn,
            address,
            anagrpid,
            expected_generation,
            ..
        } = request;
        let stored = self
            .control
            .change(|edit| edit.set_ana_state(&nqn, address, anagrpid, state, expected_generation))
            .await?;
        Ok(Response::new(
            self.describe(|describe| describe.listener(&nqn, &stored)),
        ))
    }

    async fn delete_listener(
        &self,
        request: Request<DeleteListenerRequest>,
    ) -> Answer<DeleteListenerResponse> {
        let DeleteListenerRequest {
            nqn,
            address,
            expected_generation,
            allow_missing,
        } = request.into_inner();
        self.control
            .change(|edit| edit.delete_listener(&nqn, address, expected_generation, allow_missing))
            .await?;
        done()
    }
}
