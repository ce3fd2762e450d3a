//! The node as a machine.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, UNIX_EPOCH};

use api::v1::node_service_client::NodeServiceClient;
use api::v1::system_service_server::SystemService;
use api::v1::*;
use pki::Role;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{Answer, Services, invalid};
use crate::bundle::{self, BUNDLE_BYTES_MAX, ChunkWriter};
use crate::clock::unix_ms;
use crate::config;
use crate::error::chain;
use crate::health;
use crate::kernel_log::{self, KernelLog};
use crate::listener::PeerInfo;
use crate::node::Node;
use crate::wipe::{Wipe, WipeError};

/// Lines that wait for a slow reader; then its stream stands still, and what init's or the kernel's
/// ring loses meanwhile is counted in the next line.
const LINES_WAITING: usize = 64;
/// Lines that are asked of init at once.
pub(super) const LINES_AT_ONCE: usize = 500;
/// How often init is asked for new lines.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// Most lines of a log that are held at once.
pub(super) const LINES_MAX: usize = 20_000;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SystemService for Services {
    type ReadLogsStream = Streamed<LogEntry>;
    type ReadKernelLogStream = Streamed<LogEntry>;
    type GetSupportBundleStream = Streamed<Chunk>;
    type WipeDriveStream = Streamed<WipeProgress>;

    async fn get_system(&self, _: Request<GetSystemRequest>) -> Answer<System> {
        Ok(Response::new(system(&self.node).await))
    }

    async fn get_facts(&self, _: Request<GetFactsRequest>) -> Answer<GetFactsResponse> {
        let facts = facts(&self.node).await?;
        let json = serde_json::to_string_pretty(&facts).map_err(internal)?;
        let identity = identity(&self.node).await;
        Ok(Response::new(GetFactsResponse {
            json,
            image_version: identity.image_version,
            slot: identity.slot,
        }))
    }

    async fn read_firmware(
        &self,
        request: Request<ReadFirmwareRequest>,
    ) -> Answer<ReadFirmwareResponse> {
        let ports = request.into_inner().ports;
        let tree = firmware::Tree::new(&self.node.paths.root);
        let read = move || {
            // Drives of `aditd` are asked of it by who asks this.
            let mut node = firmware::Node::local(tree, Ok(Vec::new()));
            node.set_ports((!ports.is_empty()).then_some(ports));
            serde_json::to_string(&firmware::Readings::of(&node))
        };
        let json = blocking(read).await?.map_err(internal)?;
        Ok(Response::new(ReadFirmwareResponse { json }))
    }

    async fn plan_machine(&self, request: Request<PlanMachineRequest>) -> Answer<MachinePlan> {
        let text = match request.into_inner().toml {
            Some(text) => text,
            None => self.node.current().document.clone(),
        };
        let document = config::parse(&text).map_err(|v| invalid("the document is wrong", &[v]))?;
        let wanted: machine::Config = match document.get("machine") {
            None => machine::Config::default(),
            Some(table) => table.clone().try_into().map_err(|error: toml::de::Error| {
                let violation = config::Violation::new("machine", error.to_string().trim_end());
                invalid("the document is wrong", &[violation])
            })?,
        };
        let plan = machine::plan(&facts(&self.node).await?, &wanted);
        Ok(Response::new(plan_message(&plan)?))
    }

    async fn apply_machine(&self, _: Request<ApplyMachineRequest>) -> Answer<ListActionsResponse> {
        self.node
            .init
            .call(&init::control::Request::Prepare)
            .await?;
        self.list_actions(Request::new(ListActionsRequest {})).await
    }

    async fn list_actions(&self, _: Request<ListActionsRequest>) -> Answer<ListActionsResponse> {
        let groups = self.node.init.status().await?;
        let statuses = groups.into_iter().flat_map(|(group, items)| {
            items.into_iter().map(move |item| ActionStatus {
                name: format!("{group}: {}", item.name),
                state: item.state.to_string(),
                reason: item.text,
            })
        });
        Ok(Response::new(ListActionsResponse {
            actions: statuses.collect(),
        }))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Answer<ListServicesResponse> {
        let services = self.node.init.services().await?;
        let services = services.into_iter().map(|service| Service {
            name: service.name,
            state: service.state.to_string(),
            reason: service.text,
            pid: service.pid.and_then(|pid| pid.try_into().ok()).unwrap_or(0),
            restarts: service
                .starts
                .saturating_sub(1)
                .try_into()
                .unwrap_or(u32::MAX),
        });
        Ok(Response::new(ListServicesResponse {
            services: services.collect(),
        }))
    }

    async fn restart_service(
        &self,
        request: Request<RestartServiceRequest>,
    ) -> Answer<RestartServiceResponse> {
        let service = request.into_inner().name;
        let request = init::control::Request::Restart { service };
        self.node.init.call(&request).await?;
        Ok(Response::new(RestartServiceResponse {}))
    }

    async fn read_logs(&self, request: Request<ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        let request = request.into_inner();
        let services = if request.service.is_empty() {
            let services = self.node.init.services().await?;
            services.into_iter().map(|service| service.name).collect()
        } else {
            // A name that init does not know is told at once.
            self.node.init.logs(&request.service, 0, 1).await?;
            vec![request.service.clone()]
        };
        let (lines, receiver) = mpsc::channel(LINES_WAITING);
        let node = self.node.clone();
        tokio::spawn(async move {
            if let Err(status) = service_logs(&node, &services, &request, &lines).await {
                let _ = lines.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn read_kernel_log(
        &self,
        request: Request<ReadKernelLogRequest>,
    ) -> Answer<Self::ReadKernelLogStream> {
        let request = request.into_inner();
        let log = KernelLog::open(&self.node.paths.root, self.node.clock.now())
            .map_err(|error| Status::unavailable(format!("/dev/kmsg cannot be read: {error}")))?;
        let (lines, receiver) = mpsc::channel(LINES_WAITING);
        tokio::spawn(async move {
            if let Err(status) = kernel_lines(log, &request, &lines).await {
                let _ = lines.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_support_bundle(
        &self,
        request: Request<GetSupportBundleRequest>,
    ) -> Answer<Self::GetSupportBundleStream> {
        let peer = request.extensions().get::<PeerInfo>();
        let role = peer.and_then(|peer| Some(peer.client.as_ref()?.role));
        let with_cores = request.into_inner().cores;
        if with_cores && role != Some(Role::Admin) {
            return Err(Status::permission_denied(format!(
                "the memory of programs that crashed holds keys: it needs the role {}",
                Role::Admin
            )));
        }
        let parts = super::bundle::parts(&self.node, with_cores).await;
        let now = self.node.clock.now();
        let unix_s = unix_ms(now) / 1000;
        let folder = self.node.current().server_name.replace('/', "_");
        let (chunks, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let written = bundle::write(
                ChunkWriter::new(chunks),
                &folder,
                unix_s,
                parts,
                BUNDLE_BYTES_MAX,
            )
            .and_then(|mut writer| std::io::Write::flush(&mut writer));
            if let Err(error) = written {
                tracing::info!(%error, "a support bundle was not taken whole");
            }
        });
        let stream = ReceiverStream::new(receiver);
        let stream = stream.map(|data| {
            Ok(Chunk {
                data: data.to_vec(),
            })
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_time(&self, _: Request<GetTimeRequest>) -> Answer<Time> {
        Ok(Response::new(time(&self.node)))
    }

    async fn set_time(&self, request: Request<SetTimeRequest>) -> Answer<Time> {
        let (source, offset_ms) = match request.into_inner().unix_ms {
            Some(unix_ms) => {
                crate::time::step_to(UNIX_EPOCH + Duration::from_millis(unix_ms))
                    .map_err(|error| Status::failed_precondition(chain(&error)))?;
                ("set by a person".to_owned(), 0)
            }
            None => crate::time::synchronise(&self.node)
                .await
                .map_err(|error| Status::unavailable(chain(&error)))?,
        };
        crate::time::trusted(&self.node, &source, offset_ms).await;
        Ok(Response::new(time(&self.node)))
    }

    async fn get_network(&self, _: Request<GetNetworkRequest>) -> Answer<Network> {
        Ok(Response::new(network(&self.node)))
    }

    async fn wipe_drive(
        &self,
        request: Request<WipeDriveRequest>,
    ) -> Answer<Self::WipeDriveStream> {
        let request = request.into_inner();
        let root = machine::Root::new(&self.node.paths.root);
        let drive = request.drive.clone();
        let loans = self.node.loans.clone();
        let begin = move || Wipe::begin(&root, &loans, &request.drive, &request.serial);
        let wipe = blocking(begin).await?;
        let mut wipe = wipe.map_err(wipe_status)?;
        tracing::warn!(drive, "a drive is being wiped");
        let (progress, receiver) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            while !wipe.is_done() {
                let step = wipe.step();
                let failed = step.is_err();
                let message = step.map_err(wipe_status).map(|done_bytes| WipeProgress {
                    done_bytes,
                    total_bytes: wipe.bytes(),
                });
                // Nobody waits for it any more: the rest of the drive stays as it is.
                if progress.blocking_send(message).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn reboot(&self, _: Request<RebootRequest>) -> Answer<RebootResponse> {
        self.node.init.call(&init::control::Request::Reboot).await?;
        Ok(Response::new(RebootResponse {}))
    }

    async fn power_off(&self, _: Request<PowerOffRequest>) -> Answer<PowerOffResponse> {
        self.node
            .init
            .call(&init::control::Request::Poweroff)
            .await?;
        Ok(Response::new(PowerOffResponse {}))
    }
}

/// What the node is, for [`SystemService::get_system`] and the bundle.
pub(super) async fn system(node: &Node) -> System {
    let current = node.current();
    let identity = identity(node).await;
    let mode = if current.is_configured {
        SystemMode::Configured
    } else {
        SystemMode::Maintenance
    };
    let network = node.network.borrow().clone();
    let boot = node.boot.borrow().clone();
    System {
        name: current.server_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mode: mode.into(),
        fingerprint: current.identity.fingerprint.clone(),
        image_version: identity.image_version,
        slot: identity.slot,
        boot_is_good: boot.is_good,
        boot_reason: boot.reason,
        alerts: health::alerts(node).await,
        addresses: network.addresses,
        kernel: std::fs::read_to_string(node.paths.root.join("proc/sys/kernel/osrelease"))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default(),
        uptime_ms: kernel_log::uptime(&node.paths.root)
            .and_then(|time| time.as_millis().try_into().ok())
            .unwrap_or(0),
        aditd_serving: aditd_serves(node).await,
        server_name: current.server_name.clone(),
    }
}

/// Who init says that this is; nobody where there is no init.
async fn identity(node: &Node) -> init::identity::Identity {
    if node.init.is_there() {
        node.init.identity().await.unwrap_or_default()
    } else {
        init::identity::Identity::default()
    }
}

/// Whether `aditd` answers within a second.
pub(crate) async fn aditd_serves(node: &Node) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut client = NodeServiceClient::new(node.forward.channel());
    let asked = tokio::time::timeout(PATIENCE, client.get_node(GetNodeRequest {}));
    matches!(asked.await, Ok(Ok(_)))
}

pub(super) async fn facts(node: &Node) -> Result<machine::Facts, Status> {
    let root = machine::Root::new(&node.paths.root);
    blocking(move || machine::Facts::read(&root))
        .await?
        .map_err(|error| Status::internal(chain(&error)))
}

/// Runs what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(internal)
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn wipe_status(error: WipeError) -> Status {
    let text = chain(&error);
    match error {
        WipeError::NotFound(_) => Status::not_found(text),
        WipeError::Serial { .. } | WipeError::SerialWanted { .. } => Status::invalid_argument(text),
        WipeError::Unfit { .. } | WipeError::InUse { .. } | WipeError::Lend { .. } => {
            Status::failed_precondition(text)
        }
        _ => Status::internal(text),
    }
}

fn plan_message(plan: &machine::Plan) -> Result<MachinePlan, Status> {
    Ok(MachinePlan {
        actions: plan.actions.iter().map(ToString::to_string).collect(),
        refusals: plan
            .refusals
            .iter()
            .map(|refusal| MachineRefusal {
                subject: refusal.subject.to_string(),
                reasons: refusal.reasons.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        notes: plan.notes.clone(),
        json: serde_json::to_string_pretty(plan).map_err(internal)?,
    })
}

pub(super) fn network(node: &Node) -> Network {
    let status = node.network.borrow().clone();
    Network {
        interface: status.interface,
        mode: status.mode,
        addresses: status.addresses,
        gateways: status.gateways,
        dns: status.dns,
        state: status.state,
        lease_end_unix_ms: status.lease_end_unix_ms,
    }
}

pub(super) fn time(node: &Node) -> Time {
    let status = node.time.borrow().clone();
    Time {
        unix_ms: unix_ms(node.clock.now()),
        synced: node.clock.is_trusted(),
        source: status.source,
        offset_ms: status.offset_ms,
    }
}

type Lines = mpsc::Sender<Result<LogEntry, Status>>;

async fn service_logs(
    node: &Node,
    services: &[String],
    request: &ReadLogsRequest,
    lines: &Lines,
) -> Result<(), Status> {
    let mut after: HashMap<&str, u64> = HashMap::new();
    let mut is_first = true;
    loop {
        for service in services {
            let mut found = Vec::new();
            loop {
                let known = after.get(service.as_str()).copied().unwrap_or(0);
                let (batch, lost) = node.init.logs(service, known, LINES_AT_ONCE).await?;
                let Some(last) = batch.last() else { break };
                after.insert(service, last.seq);
                // What was gone before anybody asked is not lost on the way.
                let lost = if known == 0 { 0 } else { lost };
                found.extend(entries(service, batch, lost));
                if !is_first || found.len() >= LINES_MAX {
                    break;
                }
            }
            let skip = match request.tail.filter(|_| is_first) {
                Some(tail) => found.len().saturating_sub(tail as usize),
                None => 0,
            };
            for entry in found.into_iter().skip(skip) {
                if entry.time_unix_ms < request.since_unix_ms.unwrap_or(0) {
                    continue;
                }
                if lines.send(Ok(entry)).await.is_err() {
                    return Ok(());
                }
            }
        }
        is_first = false;
        if !request.follow {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
            () = lines.closed() => return Ok(()),
        }
    }
}

fn entries(
    service: &str,
    batch: Vec<init::ring::Line>,
    lost: u64,
) -> impl Iterator<Item = LogEntry> {
    batch
        .into_iter()
        .enumerate()
        .map(move |(index, line)| LogEntry {
            time_unix_ms: line.unix_ms.try_into().unwrap_or(0),
            source: service.to_owned(),
            line: line.text,
            priority: 6,
            lost: if index == 0 { lost } else { 0 },
        })
}

async fn kernel_lines(
    mut log: KernelLog,
    request: &ReadKernelLogRequest,
    lines: &Lines,
) -> Result<(), Status> {
    let since = request.since_unix_ms.unwrap_or(0);
    let failed = |error| Status::unavailable(format!("/dev/kmsg cannot be read: {error}"));
    if let Some(tail) = request.tail {
        let tail = (tail as usize).min(LINES_MAX);
        let mut kept = std::collections::VecDeque::new();
        while let Some(entry) = log.next(false).await.map_err(failed)? {
            kept.push_back(entry);
            if kept.len() > tail {
                kept.pop_front();
            }
        }
        for entry in kept.into_iter().filter(|entry| entry.time_unix_ms >= since) {
            if lines.send(Ok(entry)).await.is_err() {
                return Ok(());
            }
        }
    }
    loop {
        let next = tokio::select! {
            next = log.next(request.follow) => next.map_err(failed)?,
            () = lines.closed() => return Ok(()),
        };
        let Some(entry) = next else { return Ok(()) };
        if entry.time_unix_ms >= since && lines.send(Ok(entry)).await.is_err() {
            return Ok(());
        }
    }
}
