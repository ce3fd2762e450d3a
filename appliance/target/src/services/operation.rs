//! Operations on pools and volumes.

use std::time::{Duration, Instant};

use api::v1::operation_service_server::OperationService;
use api::v1::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse,
    Operation, OperationState, WaitOperationRequest,
};
use tonic::{Request, Response};

use super::page::page;
use super::{Answer, Services};
use crate::error::ControlError;

const WAIT_MS_DEFAULT: u64 = 30_000;
const WAIT_MS_MAX: u64 = 600_000;
/// Time between two looks at an operation that somebody waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

fn not_found(name: String) -> ControlError {
    let kind = "operation";
    ControlError::NotFound { kind, name }
}

/// The pool and the ID in `POOL/ID`.
fn parts(name: &str) -> Result<(&str, u64), ControlError> {
    let found = name.split_once('/');
    found
        .and_then(|(pool, id)| Some((pool, id.parse().ok()?)))
        .ok_or_else(|| {
            let problem = "must be POOL/ID, as operation list shows it";
            ControlError::field(format!("operation {name:?}"), "name", problem)
        })
}

impl Services {
    /// One operation of an open pool.
    pub(super) async fn operation(&self, pool: &str, id: u64) -> Result<Operation, ControlError> {
        let name = format!("{pool}/{id}");
        let all = self.open_pool(pool)?.operations().await?;
        let found = all.into_iter().find(|operation| operation.name == name);
        found.ok_or_else(|| not_found(name))
    }
}

#[tonic::async_trait]
impl OperationService for Services {
    async fn get_operation(&self, request: Request<GetOperationRequest>) -> Answer<Operation> {
        let name = request.into_inner().name;
        let (pool, id) = parts(&name)?;
        Ok(Response::new(self.operation(pool, id).await?))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Answer<ListOperationsResponse> {
        let ListOperationsRequest {
            pool,
            page_size,
            page_token,
        } = request.into_inner();
        let mut all = Vec::new();
        for (name, pool) in self.open_pools(&pool)? {
            for operation in pool.operations().await? {
                let id = operation.name.rsplit('/').next().unwrap_or_default();
                // As many digits as the largest ID has: in the order of their numbers.
                all.push((format!("{name}\n{id:0>20}"), operation));
            }
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let page = page(all.into_iter(), page_size, &page_token, |operation| {
            operation
        })?;
        Ok(Response::new(ListOperationsResponse {
            operations: page.items,
            next_page_token: page.next_page_token,
            total_size: page.total_size,
        }))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Answer<Operation> {
        let name = request.into_inner().name;
        let (pool, id) = parts(&name)?;
        let operation = self.operation(pool, id).await?;
        if operation.state() != OperationState::Running {
            return Ok(Response::new(operation));
        }
        let open = self.pool_to_change(pool)?;
        self.complete(open.cancel(id)).await?;
        Ok(Response::new(self.operation(pool, id).await?))
    }

    async fn wait_operation(&self, request: Request<WaitOperationRequest>) -> Answer<Operation> {
        let WaitOperationRequest { name, timeout_ms } = request.into_inner();
        let (pool, id) = parts(&name)?;
        let timeout_ms = timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
        if timeout_ms > WAIT_MS_MAX {
            let problem = format!("{timeout_ms} must be at most {WAIT_MS_MAX}");
            return Err(ControlError::field("the request", "timeout_ms", problem).into());
        }
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        loop {
            let operation = self.operation(pool, id).await?;
            if operation.state() != OperationState::Running || Instant::now() >= deadline {
                return Ok(Response::new(operation));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
