//! Reactors, threads, pollers, channels and buffers.

use api::v1::reactor_service_server::ReactorService;
use api::v1::{
    GetIobufRequest, Iobuf, ListChannelsRequest, ListChannelsResponse, ListPollersRequest,
    ListPollersResponse, ListReactorsRequest, ListReactorsResponse, ListThreadsRequest,
    ListThreadsResponse,
};
use tonic::{Request, Response};

use super::{Answer, Services, TICK_RATE};

#[tonic::async_trait]
impl ReactorService for Services {
    async fn list_reactors(&self, _: Request<ListReactorsRequest>) -> Answer<ListReactorsResponse> {
        Ok(Response::new(ListReactorsResponse {
            tick_rate: TICK_RATE,
            pid: std::process::id(),
            reactors: self.control.runtime().reactors(),
        }))
    }

    async fn list_threads(&self, _: Request<ListThreadsRequest>) -> Answer<ListThreadsResponse> {
        let threads = self.control.runtime().threads();
        Ok(Response::new(ListThreadsResponse {
            tick_rate: TICK_RATE,
            threads,
        }))
    }

    async fn list_pollers(
        &self,
        request: Request<ListPollersRequest>,
    ) -> Answer<ListPollersResponse> {
        let only = request.into_inner().thread;
        let mut threads = self.control.runtime().pollers();
        threads.retain(|thread| only.is_empty() || thread.name == only);
        Ok(Response::new(ListPollersResponse {
            tick_rate: TICK_RATE,
            threads,
        }))
    }

    async fn list_channels(
        &self,
        request: Request<ListChannelsRequest>,
    ) -> Answer<ListChannelsResponse> {
        let only = request.into_inner().thread;
        let mut threads = self.control.runtime().channels();
        threads.retain(|thread| only.is_empty() || thread.name == only);
        Ok(Response::new(ListChannelsResponse {
            tick_rate: TICK_RATE,
            threads,
        }))
    }

    async fn get_iobuf(&self, _: Request<GetIobufRequest>) -> Answer<Iobuf> {
        Ok(Response::new(self.control.runtime().iobuf()))
    }
}
