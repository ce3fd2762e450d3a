//! What the agent has this node keep. Not part of [`Services::routes`]: see [`Services::agent_state`].

use api::v1::agent_state_service_server::{AgentStateService, AgentStateServiceServer};
use api::v1::{AgentState, GetAgentStateRequest, PutAgentStateRequest, PutAgentStateResponse};
use tonic::{Request, Response};

use super::{Answer, REQUEST_BYTES_MAX, Services};
use crate::error::ControlError;
use crate::model;

/// Longest state. The store takes 1 MiB, and a document may be 256 KiB, escaped.
const STATE_BYTES_MAX: usize = 768 << 10;

impl Services {
    /// The service of the agent's state: for a socket that only root and this program's user reach, for it
    /// gives away keys. `None` where there is no way to a system pool: who has a disk keeps it there.
    #[must_use]
    pub fn agent_state(&self) -> Option<AgentStateServiceServer<Services>> {
        self.control.keeper()?;
        let server = AgentStateServiceServer::new(self.clone());
        Some(server.max_decoding_message_size(REQUEST_BYTES_MAX))
    }
}

#[tonic::async_trait]
impl AgentStateService for Services {
    async fn get_agent_state(&self, _: Request<GetAgentStateRequest>) -> Answer<AgentState> {
        let model::AgentState(state) = self.control.agent_state();
        Ok(Response::new(AgentState { state }))
    }

    async fn put_agent_state(
        &self,
        request: Request<PutAgentStateRequest>,
    ) -> Answer<PutAgentStateResponse> {
        let PutAgentStateRequest { state } = request.into_inner();
        if state.len() > STATE_BYTES_MAX {
            let problem = format!(
                "{} bytes; it must be at most {STATE_BYTES_MAX}",
                state.len()
            );
            return Err(ControlError::field("the request", "state", problem).into());
        }
        let state = model::AgentState(state);
        self.control.keep_agent_state(state).await?;
        let keeper = self.control.keeper();
        Ok(Response::new(PutAgentStateResponse {
            system_pool: keeper.and_then(|keeper| keeper.pool()).unwrap_or_default(),
            notice: keeper
                .and_then(|keeper| keeper.notice())
                .unwrap_or_default(),
        }))
    }
}
