//! `aditctl pool` and `operation`.

use std::time::{Duration, Instant};

use api::quantity::format_bytes;
use api::v1::operation_service_client::OperationServiceClient;
use api::v1::pool_service_client::PoolServiceClient;
use api::v1::{
    CancelOperationRequest, CheckPoolRequest, CheckPoolResponse, CreatePoolRequest,
    DeletePoolRequest, ExportPoolRequest, Finding, GetOperationRequest, GetPoolRequest,
    GrowPoolRequest, ImportPoolRequest, ListOperationsRequest, ListPoolsRequest, Operation,
    OperationState, Pool, PoolSpaceLevel, PoolSpec, RenamePoolRequest, RepairPoolRequest,
    ScrubPoolRequest, UpdatePoolRequest, WaitOperationRequest,
};

use super::volume::{label_changes, show_labels};
use super::{Context, PAGE_SIZE, pages, percent, properties, short, state};
use crate::failure::Failure;
use crate::grammar::{OperationVerb, PoolVerb};
use crate::output;
use crate::table::Table;

/// The longest that one call waits; it is repeated.
const WAIT_MS: u64 = 30_000;

pub(crate) async fn run(context: &Context, verb: PoolVerb) -> Result<(), Failure> {
    let mut client = PoolServiceClient::new(context.channel.clone());
    let pool = match verb {
        PoolVerb::Create {
            name,
            bdev,
            cluster_size,
            force,
            system,
            thresholds,
            labels,
        } => {
            let request = CreatePoolRequest {
                pool: Some(PoolSpec {
                    name,
                    bdev_name: bdev,
                    uuid: None,
                    system: system.then_some(true),
                }),
                cluster_size_bytes: cluster_size,
                force,
                labels: labels.map(),
                warning_percent: thresholds.warn_percent,
                critical_percent: thresholds.critical_percent,
            };
            client.create_pool(request).await?.into_inner()
        }
        PoolVerb::Import { bdev, name } => {
            let request = ImportPoolRequest {
                bdev_name: bdev,
                name: name.unwrap_or_default(),
            };
            client.import_pool(request).await?.into_inner()
        }
        PoolVerb::Show { name } => client.get_pool(GetPoolRequest { name }).await?.into_inner(),
        PoolVerb::Set {
            name,
            thresholds,
            system,
        } => {
            let (warning, critical) = (thresholds.warn_percent, thresholds.critical_percent);
            let system = system.wanted();
            if warning.is_none() && critical.is_none() && system.is_none() {
                let text = "give --warn-percent, --critical-percent, --system or --no-system";
                return Err(Failure::Usage(text.to_owned()));
            }
            let request = UpdatePoolRequest {
                name,
                warning_percent: warning,
                critical_percent: critical,
                system,
                ..UpdatePoolRequest::default()
            };
            client.update_pool(request).await?.into_inner()
        }
        PoolVerb::Label { name, labels } => {
            let (labels, remove_labels) = label_changes(labels)?;
            let request = UpdatePoolRequest {
                name,
                labels,
                remove_labels,
                ..UpdatePoolRequest::default()
            };
            client.update_pool(request).await?.into_inner()
        }
        PoolVerb::Rename {
            name,
            new_name,
            expected,
        } => {
            let request = RenamePoolRequest {
                name,
                new_name,
                expected_generation: expected.expected_generation,
            };
            client.rename_pool(request).await?.into_inner()
        }
        PoolVerb::Grow { name } => client
            .grow_pool(GrowPoolRequest { name })
            .await?
            .into_inner(),
        PoolVerb::Export { name, expected } => {
            let request = ExportPoolRequest {
                name,
                expected_generation: expected.expected_generation,
                allow_missing: false,
            };
            client.export_pool(request).await?;
            return Ok(());
        }
        PoolVerb::Delete { name, expected } => {
            let request = DeletePoolRequest {
                name,
                expected_generation: expected.expected_generation,
                allow_missing: false,
            };
            client.delete_pool(request).await?;
            return Ok(());
        }
        PoolVerb::Check { name } => {
            let answer = client.check_pool(CheckPoolRequest { name }).await?;
            let answer = answer.into_inner();
            output::object(context.format, &answer, findings)?;
            return match answer.findings.len() {
                0 => Ok(()),
                count => Err(Failure::Findings(count)),
            };
        }
        PoolVerb::Repair { name } => {
            let answer = client.repair_pool(RepairPoolRequest { name }).await?;
            return output::object(context.format, &answer.into_inner(), findings);
        }
        PoolVerb::Scrub { name, rate, detach } => {
            let request = ScrubPoolRequest {
                name,
                bytes_per_sec: rate.unwrap_or(0),
            };
            let operation = client.scrub_pool(request).await?.into_inner();
            return context.follow(operation, &detach).await;
        }
        PoolVerb::List => {
            let all = pages(|page_token| {
                let mut client = client.clone();
                async move {
                    let request = ListPoolsRequest {
                        page_size: PAGE_SIZE,
                        page_token,
                    };
                    let page = client.list_pools(request).await?.into_inner();
                    Ok((page.pools, page.next_page_token))
                }
            })
            .await?;
            return output::list(context.format, "pools", &all, list);
        }
    };
    let name = pool.spec.clone().unwrap_or_default().name;
    let pool = context
        .settle(&format!("pool {name}"), pool, || {
            let (mut client, name) = (client.clone(), name.clone());
            async move { client.get_pool(GetPoolRequest { name }).await }
        })
        .await?;
    output::object(context.format, &pool, show)
}

pub(crate) async fn operation(context: &Context, verb: OperationVerb) -> Result<(), Failure> {
    let mut client = OperationServiceClient::new(context.channel.clone());
    match verb {
        OperationVerb::List { pool } => {
            let all = pages(|page_token| {
                let (mut client, pool) = (client.clone(), pool.clone().unwrap_or_default());
                async move {
                    let request = ListOperationsRequest {
                        pool,
                        page_size: PAGE_SIZE,
                        page_token,
                    };
                    let page = client.list_operations(request).await?.into_inner();
                    Ok((page.operations, page.next_page_token))
                }
            })
            .await?;
            output::list(context.format, "operations", &all, operations)
        }
        OperationVerb::Show { name } => {
            let found = client.get_operation(GetOperationRequest { name }).await?;
            output::object(context.format, &found.into_inner(), show_operation)
        }
        OperationVerb::Cancel { name } => {
            let request = CancelOperationRequest { name };
            let found = client.cancel_operation(request).await?;
            output::object(context.format, &found.into_inner(), show_operation)
        }
        OperationVerb::Wait { name } => {
            let wait_ms = context.wait_ms.unwrap_or(u64::MAX);
            let ended = context.wait_for(name, wait_ms).await?;
            output::object(context.format, &ended, show_operation)?;
            well(&ended)
        }
    }
}

impl Context {
    /// Shows an operation that a command has begun; with `--wait`, when it has ended.
    pub(crate) async fn begun(&self, operation: Operation) -> Result<(), Failure> {
        let Some(wait_ms) = self.wait_ms else {
            return output::object(self.format, &operation, show_operation);
        };
        let ended = self.wait_for(operation.name, wait_ms).await?;
        output::object(self.format, &ended, show_operation)?;
        well(&ended)
    }

    /// With `--wait`, waits for an operation that goes on behind a finished command.
    pub(crate) async fn behind(&self, name: String) -> Result<(), Failure> {
        match self.wait_ms {
            Some(wait_ms) if !name.is_empty() => well(&self.wait_for(name, wait_ms).await?),
            _ => Ok(()),
        }
    }

    async fn wait_for(&self, name: String, wait_ms: u64) -> Result<Operation, Failure> {
        let mut client = OperationServiceClient::new(self.channel.clone());
        let start = Instant::now();
        loop {
            let passed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let left = wait_ms.saturating_sub(passed).min(WAIT_MS);
            let request = WaitOperationRequest {
                name: name.clone(),
                timeout_ms: Some(left),
            };
            let operation = client.wait_operation(request).await?.into_inner();
            let is_over = start.elapsed() >= Duration::from_millis(wait_ms);
            if operation.state() != OperationState::Running || is_over {
                return Ok(operation);
            }
        }
    }
}

/// Fails unless an operation has ended well.
pub(super) fn well(operation: &Operation) -> Result<(), Failure> {
    if operation.state() == OperationState::Done {
        return Ok(());
    }
    Err(Failure::Operation {
        name: operation.name.clone(),
        what: format!("{} {}", kind(operation), operation.object),
        state: match operation.state() {
            OperationState::Running => "goes on".to_owned(),
            _ => state_text(operation),
        },
    })
}

fn list(pools: &[Pool]) -> String {
    let mut table = Table::new(&[
        "NAME", "BDEV", "SIZE", "DATA", "FREE", "FULL", "VOLUMES", "SNAPS", "STATE",
    ]);
    for pool in pools {
        let spec = pool.spec.clone().unwrap_or_default();
        table.row([
            spec.name,
            spec.bdev_name,
            format_bytes(pool.size_bytes),
            format_bytes(pool.data_bytes),
            format_bytes(pool.free_bytes),
            full(pool),
            pool.volumes.to_string(),
            pool.snapshots.to_string(),
            pool_state(pool),
        ]);
    }
    table.to_string()
}

fn full(pool: &Pool) -> String {
    percent(
        pool.size_bytes.saturating_sub(pool.free_bytes),
        pool.size_bytes,
    )
}

fn pool_state(pool: &Pool) -> String {
    if !pool.fault.is_empty() {
        return format!("faulted: {}", pool.fault);
    }
    let state = state(pool.status.as_ref());
    match pool.space_level() {
        PoolSpaceLevel::Unspecified | PoolSpaceLevel::Ok => state,
        level => format!("{state}, space: {}", level_name(level)),
    }
}

fn level_name(level: PoolSpaceLevel) -> String {
    short(level.as_str_name(), "POOL_SPACE_LEVEL_")
}

fn map_cache(pool: &Pool) -> String {
    if pool.map_cache_pieces_max == 0 {
        return String::new();
    }
    format!(
        "{} pieces in memory, {} stay when unused",
        pool.map_cache_pieces, pool.map_cache_pieces_max
    )
}

fn space(pool: &Pool) -> String {
    if pool.space_level() == PoolSpaceLevel::Unspecified {
        return String::new();
    }
    format!(
        "{} (warning at {} %, critical at {} %)",
        level_name(pool.space_level()),
        pool.warning_percent,
        pool.critical_percent
    )
}

fn show(pool: &Pool) -> String {
    let spec = pool.spec.clone().unwrap_or_default();
    let system = if spec.system() {
        "keeps the node's own state"
    } else {
        ""
    };
    let bytes = |bytes: u64| format!("{} ({bytes} B)", format_bytes(bytes));
    properties(&[
        ("name", spec.name),
        ("on", spec.bdev_name),
        ("system pool", system.to_owned()),
        ("uuid", pool.uuid.clone()),
        ("cluster size", format_bytes(pool.cluster_size_bytes)),
        ("size", bytes(pool.size_bytes)),
        ("free", bytes(pool.free_bytes)),
        ("data", bytes(pool.data_bytes)),
        ("metadata", bytes(pool.metadata_bytes)),
        ("set aside", bytes(pool.reserved_bytes)),
        ("promised to hosts", bytes(pool.provisioned_bytes)),
        ("full", full(pool)),
        ("space", space(pool)),
        ("volumes", pool.volumes.to_string()),
        ("snapshots", pool.snapshots.to_string()),
        ("operations", pool.operations.to_string()),
        ("map cache", map_cache(pool)),
        ("labels", show_labels(&pool.labels)),
        ("generation", pool.generation.to_string()),
        ("state", pool_state(pool)),
    ])
}

fn findings(answer: &CheckPoolResponse) -> String {
    if answer.findings.is_empty() {
        return "nothing is wrong\n".to_owned();
    }
    let mut table = Table::new(&["OBJECT", "WHAT IS WRONG", "REPAIR"]);
    for Finding {
        object,
        problem,
        action,
    } in &answer.findings
    {
        table.row([object.clone(), problem.clone(), action.clone()]);
    }
    table.to_string()
}

pub(super) fn kind(operation: &Operation) -> String {
    short(operation.kind().as_str_name(), "OPERATION_KIND_")
}

fn state_text(operation: &Operation) -> String {
    let state = short(operation.state().as_str_name(), "OPERATION_STATE_");
    if operation.text.is_empty() {
        state
    } else {
        format!("{state}: {}", operation.text)
    }
}

fn operations(operations: &[Operation]) -> String {
    let mut table = Table::new(&["NAME", "KIND", "OBJECT", "DONE", "STATE"]);
    for operation in operations {
        table.row([
            operation.name.clone(),
            kind(operation),
            operation.object.clone(),
            percent(operation.done, operation.total),
            state_text(operation),
        ]);
    }
    table.to_string()
}

pub(super) fn show_operation(operation: &Operation) -> String {
    operations(std::slice::from_ref(operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: OperationState, text: &str) -> Operation {
        Operation {
            name: "p/1".into(),
            kind: api::v1::OperationKind::Inflate.into(),
            object: "p/v".into(),
            state: state.into(),
            done: 1,
            total: 4,
            text: text.into(),
        }
    }

    #[test]
    fn an_operation_that_did_not_end_well_is_a_failure() {
        well(&ended(OperationState::Done, "")).unwrap();
        for (state, text, told) in [
            (
                OperationState::Failed,
                "no space",
                "operation p/1 (inflate p/v) failed: no space",
            ),
            (
                OperationState::Cancelled,
                "",
                "operation p/1 (inflate p/v) cancelled",
            ),
            (
                OperationState::Running,
                "",
                "operation p/1 (inflate p/v) goes on",
            ),
        ] {
            let failure = well(&ended(state, text)).unwrap_err();
            assert_eq!(failure.to_string(), told);
        }
    }

    #[test]
    fn tables_show_progress_and_faults() {
        let text = show_operation(&ended(OperationState::Running, ""));
        assert!(text.contains("25.0 %"), "{text}");
        let pool = Pool {
            spec: Some(PoolSpec {
                name: "p".into(),
                bdev_name: "b".into(),
                uuid: None,
                system: None,
            }),
            size_bytes: 4 << 20,
            free_bytes: 1 << 20,
            fault: "its device cannot be written".into(),
            ..Pool::default()
        };
        let text = list(&[pool]);
        assert!(text.contains("75.0 %"), "{text}");
        assert!(text.contains("faulted: its device"), "{text}");
    }
}
