//! Who is connected.

use api::v1::controller_service_server::ControllerService;
use api::v1::{
    DisconnectControllerRequest, DisconnectControllerResponse, ListControllersRequest,
    ListControllersResponse, ListPollGroupsRequest, ListPollGroupsResponse, ListQpairsRequest,
    ListQpairsResponse,
};
use tonic::{Request, Response};

use super::page::page;
use super::{Answer, Services, TICK_RATE, done};
use crate::error::ControlError;

#[tonic::async_trait]
impl ControllerService for Services {
    async fn list_controllers(
        &self,
        request: Request<ListControllersRequest>,
    ) -> Answer<ListControllersResponse> {
        let ListControllersRequest {
            nqn,
            page_size,
            page_token,
        } = request.into_inner();
        let mut all = self.control.runtime().controllers();
        all.retain(|controller| nqn.is_empty() || controller.nqn == nqn);
        let keyed = all
            .into_iter()
            .map(|c| (format!("{}\n{:05}", c.nqn, c.cntlid), c));
        let page = page(keyed, page_size, &page_token, |controller| controller)?;
        Ok(Response::new(ListControllersResponse {
            controllers: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn disconnect_controller(
        &self,
        request: Request<DisconnectControllerRequest>,
    ) -> Answer<DisconnectControllerResponse> {
        let DisconnectControllerRequest { nqn, cntlid } = request.into_inner();
        if !self.control.runtime().disconnect(&nqn, cntlid) {
            let name = format!("{nqn}/{cntlid}");
            return Err(ControlError::NotFound {
                kind: "controller",
                name,
            }
            .into());
        }
        done()
    }

    async fn list_qpairs(&self, request: Request<ListQpairsRequest>) -> Answer<ListQpairsResponse> {
        let ListQpairsRequest {
            nqn,
            page_size,
            page_token,
        } = request.into_inner();
        let mut all = self.control.runtime().qpairs();
        all.retain(|qpair| nqn.is_empty() || qpair.nqn == nqn);
        let keyed = all
            .into_iter()
            .map(|q| (format!("{}\n{:05}\n{:05}", q.nqn, q.cntlid, q.qid), q));
        let page = page(keyed, page_size, &page_token, |qpair| qpair)?;
        Ok(Response::new(ListQpairsResponse {
            qpairs: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn list_poll_groups(
        &self,
        _: Request<ListPollGroupsRequest>,
    ) -> Answer<ListPollGroupsResponse> {
        let poll_groups = self.control.runtime().poll_groups();
        Ok(Response::new(ListPollGroupsResponse {
            tick_rate: TICK_RATE,
            poll_groups,
        }))
    }
}
