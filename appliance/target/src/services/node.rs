//! The node itself.

use std::time::Duration;

use api::v1::node_service_server::NodeService;
use api::v1::{
    Capabilities, DrainNodeRequest, GetNodeRequest, Limits, Node, ObjectCounts, PendingObject,
};
use tonic::{Request, Response};

use super::{Answer, Services};
use crate::error::ControlError;
use crate::model;

/// Pending objects in an answer.
const PENDING_MAX: usize = 100;
const TIMEOUT_MS_DEFAULT: u64 = 10_000;
const TIMEOUT_MS_MAX: u64 = 600_000;

impl Services {
    fn node(&self) -> Node {
        let mut facts = self.control.runtime().facts();
        let keeper = self.control.keeper();
        facts
            .notices
            .extend(keeper.and_then(|keeper| keeper.notice()));
        let system_pool = keeper.and_then(|keeper| keeper.pool()).unwrap_or_default();
        let about = &self.control.about;
        let pending = self.control.all_pending(PENDING_MAX);
        let (revision, objects, limits) = self.control.read(|view| {
            let model = view.model;
            let counts = model.counts();
            let objects = ObjectCounts {
                transports: count(model.transports().len()),
                bdevs: count(model.bdevs().len()),
                subsystems: count(model.subsystems().len()),
                namespaces: count(counts.namespaces),
                listeners: count(counts.listeners),
                hosts: count(counts.hosts),
                controllers: facts.controllers,
                qpairs: facts.qpairs,
                pools: count(model.pools().len()),
            };
            (model.revision(), objects, model.limits())
        });
        Node {
            node_id: about.node_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.control.state().into(),
            capabilities: Some(Capabilities {
                transports: model::BUILT_IN
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect(),
                bdev_kinds: model::KINDS.iter().map(|name| (*name).to_owned()).collect(),
                nvme_version: "2.0".to_owned(),
            }),
            pid: std::process::id(),
            start_time_unix_ms: about.start_time_unix_ms,
            revision,
            state_dir: about.state_dir.display().to_string(),
            memory: Some(facts.memory),
            objects: Some(objects),
            pending_objects: pending
                .into_iter()
                .map(|(key, pending)| PendingObject {
                    kind: key.kind().to_owned(),
                    name: key.name(),
                    reason: pending.reason,
                    attempts: pending.attempts,
                })
                .collect(),
            notices: facts.notices,
            system_pool,
            limits: Some(Limits {
                subsystems_max: count(limits.subsystems_max),
                namespaces_per_subsystem_max: limits.namespaces_per_subsystem_max,
                listeners_per_subsystem_max: count(limits.listeners_per_subsystem_max),
                hosts_per_subsystem_max: count(limits.hosts_per_subsystem_max),
                bdevs_max: count(limits.bdevs_max),
                connections_max: facts.connections_max,
                pools_max: count(limits.pools_max),
            }),
        }
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[tonic::async_trait]
impl NodeService for Services {
    async fn get_node(&self, _: Request<GetNodeRequest>) -> Answer<Node> {
        Ok(Response::new(self.node()))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Answer<Node> {
        let DrainNodeRequest {
            timeout_ms,
            shutdown,
        } = request.into_inner();
        let timeout_ms = timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT);
        if timeout_ms > TIMEOUT_MS_MAX {
            let problem = format!("{timeout_ms} must be at most {TIMEOUT_MS_MAX}");
            return Err(ControlError::field("the request", "timeout_ms", problem).into());
        }
        self.control.drain(Duration::from_millis(timeout_ms)).await;
        let node = self.node();
        if shutdown {
            // Full means that somebody has asked already.
            let _ = self.shutdown.try_send(());
        }
        Ok(Response::new(node))
    }
}
