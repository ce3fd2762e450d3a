//! `aditctl bdev`.

use api::quantity::format_bytes;
use api::v1::bdev_service_client::BdevServiceClient;
use api::v1::{
    Bdev, BdevSpec, BdevStats, CreateBdevRequest, DelayBdev, DeleteBdevRequest, ErrorBdev,
    FileBdev, GetBdevRequest, IoStats, ListBdevStatsRequest, ListBdevsRequest, MallocBdev,
    NullBdev, NvmeBdev, NvmeDrive, QosLimits, ResetBdevRequest, ResizeBdevRequest,
    UpdateBdevRequest, bdev_spec::Kind,
};
use prost_types::FieldMask;
use tonic::transport::Channel;

use super::{Context, PAGE_SIZE, pages, properties, short, state, time_ns};
use crate::failure::Failure;
use crate::grammar::{BdevKind, BdevOptions, BdevVerb, Expected, Latency, Limits};
use crate::output;
use crate::table::Table;

pub(super) type Client = BdevServiceClient<Channel>;

/// The service of block devices.
pub(super) fn client(context: &Context) -> Client {
    Client::new(context.channel.clone())
}

pub(crate) async fn run(context: &Context, verb: BdevVerb) -> Result<(), Failure> {
    let mut client = Client::new(context.channel.clone());
    let bdev = match verb {
        BdevVerb::Create(kind) => {
            let request = CreateBdevRequest {
                bdev: Some(spec(kind)),
            };
            client.create_bdev(request).await?.into_inner()
        }
        BdevVerb::Show { name } => client.get_bdev(GetBdevRequest { name }).await?.into_inner(),
        BdevVerb::Resize {
            name,
            size,
            expected,
        } => {
            let expected_generation = expected.expected_generation;
            let request = ResizeBdevRequest {
                name,
                size_bytes: size,
                expected_generation,
            };
            client.resize_bdev(request).await?.into_inner()
        }
        BdevVerb::Reset { name } => {
            let request = ResetBdevRequest { name };
            client.reset_bdev(request).await?.into_inner()
        }
        BdevVerb::Qos {
            name,
            limits,
            expected,
        } => qos(&mut client, name, &limits, expected).await?,
        BdevVerb::Error {
            name,
            rules,
            expected,
        } => {
            let kind = Kind::Error(ErrorBdev {
                base_bdev: String::new(),
                rules,
            });
            let bdev = BdevSpec {
                name,
                kind: Some(kind),
                ..BdevSpec::default()
            };
            update(&mut client, bdev, vec!["error.rules".to_owned()], expected).await?
        }
        BdevVerb::Delay {
            name,
            latency,
            expected,
        } => {
            let (delay, paths) = delay(String::new(), &latency);
            let bdev = BdevSpec {
                name,
                kind: Some(Kind::Delay(delay)),
                ..BdevSpec::default()
            };
            update(&mut client, bdev, paths, expected).await?
        }
        BdevVerb::Delete { name, expected } => {
            let expected_generation = expected.expected_generation;
            let request = DeleteBdevRequest {
                name,
                expected_generation,
                allow_missing: false,
            };
            client.delete_bdev(request).await?;
            return Ok(());
        }
        BdevVerb::List => {
            let bdevs = all(&client).await?;
            return output::list(context.format, "bdevs", &bdevs, list);
        }
        BdevVerb::Stat { name, per_thread } => {
            let stats = stats(&client, name.unwrap_or_default(), per_thread, true).await?;
            return output::list(context.format, "bdevs", &stats, stat);
        }
    };
    let name = bdev
        .spec
        .as_ref()
        .map(|spec| spec.name.clone())
        .unwrap_or_default();
    let what = format!("block device {name:?}");
    let bdev = context
        .settle(&what, bdev, || {
            let (mut client, name) = (client.clone(), name.clone());
            async move { client.get_bdev(GetBdevRequest { name }).await }
        })
        .await?;
    output::object(context.format, &bdev, show)
}

/// Every block device.
pub(crate) async fn all(client: &Client) -> Result<Vec<Bdev>, Failure> {
    pages(|page_token| {
        let mut client = client.clone();
        async move {
            let request = ListBdevsRequest {
                page_size: PAGE_SIZE,
                page_token,
            };
            let page = client.list_bdevs(request).await?.into_inner();
            Ok((page.bdevs, page.next_page_token))
        }
    })
    .await
}

/// Counters of one block device, or of all.
pub(crate) async fn stats(
    client: &Client,
    name: String,
    per_thread: bool,
    histograms: bool,
) -> Result<Vec<BdevStats>, Failure> {
    pages(|page_token| {
        let (mut client, name) = (client.clone(), name.clone());
        async move {
            let page_size = PAGE_SIZE;
            let request = ListBdevStatsRequest {
                name,
                per_thread,
                histograms,
                page_size,
                page_token,
            };
            let page = client.list_bdev_stats(request).await?.into_inner();
            Ok((page.bdevs, page.next_page_token))
        }
    })
    .await
}

fn spec(kind: BdevKind) -> BdevSpec {
    let make = |name, options: Option<BdevOptions>, kind| BdevSpec {
        name,
        uuid: options.and_then(|options| options.uuid),
        qos: None,
        kind: Some(kind),
    };
    match kind {
        BdevKind::Malloc {
            name,
            size,
            options,
        } => {
            let kind = Kind::Malloc(MallocBdev {
                size_bytes: size,
                block_size: options.block_size,
            });
            make(name, Some(options), kind)
        }
        BdevKind::Null {
            name,
            size,
            options,
        } => {
            let kind = Kind::Null(NullBdev {
                size_bytes: size,
                block_size: options.block_size,
            });
            make(name, Some(options), kind)
        }
        BdevKind::File {
            name,
            path,
            size,
            direct,
            read_only,
            options,
        } => {
            let kind = Kind::File(FileBdev {
                path: path.to_string_lossy().into_owned(),
                size_bytes: size,
                block_size: options.block_size,
                direct,
                read_only: read_only.then_some(true),
            });
            make(name, Some(options), kind)
        }
        BdevKind::Nvme {
            name,
            address,
            serial,
            io_queues,
        } => {
            let kind = Kind::Nvme(NvmeBdev {
                pci_address: address.unwrap_or_default(),
                serial_number: serial.unwrap_or_default(),
                io_queues,
                ..NvmeBdev::default()
            });
            make(name, None, kind)
        }
        BdevKind::Error { name, base, rules } => make(
            name,
            None,
            Kind::Error(ErrorBdev {
                base_bdev: base,
                rules,
            }),
        ),
        BdevKind::Delay {
            name,
            base,
            latency,
        } => make(name, None, Kind::Delay(delay(base, &latency).0)),
    }
}

fn delay(base_bdev: String, latency: &Latency) -> (DelayBdev, Vec<String>) {
    let delay = DelayBdev {
        base_bdev,
        avg_read_latency_us: latency.avg_read.unwrap_or(0),
        // Not given: no slower than the rest.
        p99_read_latency_us: latency.p99_read.or(latency.avg_read).unwrap_or(0),
        avg_write_latency_us: latency.avg_write.unwrap_or(0),
        p99_write_latency_us: latency.p99_write.or(latency.avg_write).unwrap_or(0),
    };
    let mut paths = Vec::new();
    let mut path = |given: bool, name: &str| {
        if given {
            paths.push(format!("delay.{name}"));
        }
    };
    path(latency.avg_read.is_some(), "avg_read_latency_us");
    path(latency.p99_read.is_some(), "p99_read_latency_us");
    path(latency.avg_write.is_some(), "avg_write_latency_us");
    path(latency.p99_write.is_some(), "p99_write_latency_us");
    (delay, paths)
}

async fn qos(
    client: &mut Client,
    name: String,
    limits: &Limits,
    expected: Expected,
) -> Result<Bdev, Failure> {
    let (qos, paths) = changed_limits(limits)?;
    let bdev = BdevSpec {
        name,
        qos: Some(qos),
        ..BdevSpec::default()
    };
    update(client, bdev, paths, expected).await
}

/// Limits that are given.
pub(super) fn given_limits(limits: &Limits) -> QosLimits {
    QosLimits {
        rw_ios_per_sec: limits.iops.unwrap_or(0),
        rw_bytes_per_sec: limits.bandwidth.unwrap_or(0),
        r_bytes_per_sec: limits.read_bandwidth.unwrap_or(0),
        w_bytes_per_sec: limits.write_bandwidth.unwrap_or(0),
        burst_ms: limits.burst,
    }
}

/// Limits to change, and the fields that are given.
pub(super) fn changed_limits(limits: &Limits) -> Result<(QosLimits, Vec<String>), Failure> {
    let mut paths = Vec::new();
    let mut path = |given: bool, name: &str| {
        if given {
            paths.push(format!("qos.{name}"));
        }
    };
    path(limits.iops.is_some(), "rw_ios_per_sec");
    path(limits.bandwidth.is_some(), "rw_bytes_per_sec");
    path(limits.read_bandwidth.is_some(), "r_bytes_per_sec");
    path(limits.write_bandwidth.is_some(), "w_bytes_per_sec");
    path(limits.burst.is_some(), "burst_ms");
    if paths.is_empty() {
        return Err(Failure::Usage(
            "give a limit: --iops, --bandwidth, --read-bandwidth, --write-bandwidth or --burst"
                .into(),
        ));
    }
    Ok((given_limits(limits), paths))
}

async fn update(
    client: &mut Client,
    bdev: BdevSpec,
    paths: Vec<String>,
    expected: Expected,
) -> Result<Bdev, Failure> {
    let request = UpdateBdevRequest {
        bdev: Some(bdev),
        update_mask: Some(FieldMask { paths }),
        expected_generation: expected.expected_generation,
    };
    Ok(client.update_bdev(request).await?.into_inner())
}

fn kind_name(spec: &BdevSpec) -> &'static str {
    match spec.kind {
        Some(Kind::Malloc(_)) => "malloc",
        Some(Kind::Null(_)) => "null",
        Some(Kind::File(_)) => "file",
        Some(Kind::Error(_)) => "error",
        Some(Kind::Delay(_)) => "delay",
        Some(Kind::Nvme(_)) => "nvme",
        None => "volume",
    }
}

fn list(bdevs: &[Bdev]) -> String {
    let mut table = Table::new(&["NAME", "KIND", "SIZE", "BLOCK", "USED BY", "STATE"]);
    for bdev in bdevs {
        let spec = bdev.spec.clone().unwrap_or_default();
        // A drive is no block device itself.
        let has_size = bdev.block_size > 0 || bdev.nvme.is_none();
        let size = bdev.num_blocks.saturating_mul(bdev.block_size.into());
        let shown = |text: String| if has_size { text } else { String::new() };
        table.row([
            spec.name.clone(),
            kind_name(&spec).to_owned(),
            shown(format_bytes(size)),
            shown(bdev.block_size.to_string()),
            bdev.claimed_by.join(", "),
            state(bdev.status.as_ref()),
        ]);
    }
    table.to_string()
}

fn show(bdev: &Bdev) -> String {
    let spec = bdev.spec.clone().unwrap_or_default();
    if let (Some(Kind::Nvme(nvme)), 0) = (&spec.kind, bdev.block_size) {
        return show_drive(bdev, &spec, nvme);
    }
    let mut below = String::new();
    let mut path = String::new();
    let mut rules = String::new();
    match &spec.kind {
        Some(Kind::File(file)) => path = file.path.clone(),
        Some(Kind::Error(layer)) => {
            below = layer.base_bdev.clone();
            rules = format!("{} rules", layer.rules.len());
        }
        Some(Kind::Delay(layer)) => {
            below = layer.base_bdev.clone();
            rules = format!(
                "reads {} (p99 {}), writes {} (p99 {})",
                time_ns(layer.avg_read_latency_us.saturating_mul(1000)),
                time_ns(layer.p99_read_latency_us.saturating_mul(1000)),
                time_ns(layer.avg_write_latency_us.saturating_mul(1000)),
                time_ns(layer.p99_write_latency_us.saturating_mul(1000)),
            );
        }
        _ => {}
    }
    let size = bdev.num_blocks.saturating_mul(bdev.block_size.into());
    let io_types: Vec<_> = bdev
        .supported_io_types()
        .map(|io| short(io.as_str_name(), "IO_TYPE_"))
        .collect();
    properties(&[
        ("name", spec.name.clone()),
        (
            "kind",
            format!("{} ({})", kind_name(&spec), bdev.product_name),
        ),
        ("uuid", spec.uuid().to_owned()),
        ("path", path),
        ("lies on", below),
        ("does", rules),
        (
            "size",
            format!(
                "{} ({} x {} B)",
                format_bytes(size),
                bdev.num_blocks,
                bdev.block_size
            ),
        ),
        ("limits", limits(spec.qos.as_ref())),
        (
            "write cache",
            if bdev.volatile_write_cache {
                "volatile"
            } else {
                "none"
            }
            .to_owned(),
        ),
        ("I/O types", io_types.join(", ")),
        ("used by", bdev.claimed_by.join(", ")),
        ("generation", bdev.generation.to_string()),
        ("state", state(bdev.status.as_ref())),
        ("note", bdev.notice.clone()),
    ])
}

/// A drive: itself, its health, and a table of its namespaces.
fn show_drive(bdev: &Bdev, spec: &BdevSpec, nvme: &NvmeBdev) -> String {
    let drive = bdev.nvme.clone().unwrap_or_default();
    let wanted = match (nvme.pci_address.as_str(), nvme.serial_number.as_str()) {
        ("", serial) => format!("the drive with serial number {serial}"),
        (address, _) => format!("the drive at {address}"),
    };
    let mut lines = vec![
        ("name", spec.name.clone()),
        ("kind", format!("nvme ({wanted})")),
        ("pci address", drive.pci_address.clone()),
        ("model", drive.model_number.clone()),
        ("serial", drive.serial_number.clone()),
        ("firmware", drive.firmware_revision.clone()),
        ("controller", drive.state.clone()),
    ];
    if bdev.nvme.is_some() {
        lines.push(("iommu group", drive.iommu_group.to_string()));
        lines.push(("resets", resets(&drive)));
    }
    if let Some(health) = &drive.health {
        let warning = match health.critical_warning {
            0 => "none".to_owned(),
            bits => format!("{bits:#04x}"),
        };
        lines.extend([
            ("critical warning", warning),
            ("temperature", format!("{} C", health.temperature_celsius)),
            ("percentage used", format!("{} %", health.percentage_used)),
            ("spare", format!("{} %", health.available_spare_percent)),
            ("unsafe shutdowns", health.unsafe_shutdowns.to_string()),
            ("power cycles", health.power_cycles.to_string()),
            ("media errors", health.media_errors.to_string()),
        ]);
    }
    lines.extend([
        ("generation", bdev.generation.to_string()),
        ("state", state(bdev.status.as_ref())),
        ("note", bdev.notice.clone()),
    ]);
    let mut text = properties(&lines);
    if !drive.namespaces.is_empty() {
        text.push_str(&namespaces(&drive));
    }
    if !drive.errors.is_empty() {
        text.push_str(&errors(&drive));
    }
    text
}

fn resets(drive: &NvmeDrive) -> String {
    let why = match drive.last_reset_reason.as_str() {
        "" => String::new(),
        reason => format!(", the last: {reason}"),
    };
    format!(
        "{}{why}; {} commands late, {} aborts, {} I/Os sent again, {} copied",
        drive.resets, drive.timeouts, drive.aborts, drive.retries, drive.bounced
    )
}

fn namespaces(drive: &NvmeDrive) -> String {
    let mut table = Table::new(&["NSID", "BDEV", "SIZE", "BLOCK", "LBA FORMATS", "STATE"]);
    for namespace in &drive.namespaces {
        let formats: Vec<String> = namespace
            .lba_formats
            .iter()
            .map(|format| {
                let mark = if format.in_use { "*" } else { "" };
                let (data, metadata) = (format.data_size, format.metadata_size);
                format!("{}:{data}+{metadata}{mark}", format.index)
            })
            .collect();
        let size = namespace
            .num_blocks
            .saturating_mul(namespace.block_size.into());
        let state = match namespace.problem.as_str() {
            "" if namespace.removed => "removed",
            "" => "ready",
            problem => problem,
        };
        table.row([
            namespace.nsid.to_string(),
            namespace.bdev_name.clone(),
            format_bytes(size),
            namespace.block_size.to_string(),
            formats.join(" "),
            state.to_owned(),
        ]);
    }
    table.to_string()
}

/// The newest entries of the drive's error log.
fn errors(drive: &NvmeDrive) -> String {
    let mut table = Table::new(&["ERROR", "STATUS", "QUEUE", "CID", "NSID", "LBA", "WRONG AT"]);
    let or_none = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    for entry in &drive.errors {
        let wrong_at = match (entry.parameter_byte, entry.parameter_bit) {
            (Some(byte), Some(bit)) => format!("byte {byte} bit {bit}"),
            _ => "-".to_owned(),
        };
        table.row([
            entry.error_count.to_string(),
            entry.status.clone(),
            or_none(entry.submission_queue_id),
            or_none(entry.command_id),
            entry.nsid.to_string(),
            entry.lba.to_string(),
            wrong_at,
        ]);
    }
    table.to_string()
}

pub(super) fn limits(qos: Option<&QosLimits>) -> String {
    let Some(qos) = qos else {
        return "none".to_owned();
    };
    let mut words = Vec::new();
    if qos.rw_ios_per_sec > 0 {
        words.push(format!("{} I/Os per second", qos.rw_ios_per_sec));
    }
    for (limit, name) in [
        (qos.rw_bytes_per_sec, "in all"),
        (qos.r_bytes_per_sec, "read"),
        (qos.w_bytes_per_sec, "written"),
    ] {
        if limit > 0 {
            words.push(format!("{}/s {name}", format_bytes(limit)));
        }
    }
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

fn stat(stats: &[BdevStats]) -> String {
    let mut table = Table::new(&[
        "NAME", "THREAD", "I/O", "OPS", "BYTES", "ERRORS", "AVERAGE", "MIN", "P50", "P99", "P99.9",
        "MAX",
    ]);
    for bdev in stats {
        let mut add = |thread: &str, io: &IoStats| {
            if io.num_ops == 0 {
                return;
            }
            table.row([
                bdev.name.clone(),
                thread.to_owned(),
                short(io.io_type().as_str_name(), "IO_TYPE_"),
                io.num_ops.to_string(),
                format_bytes(io.bytes),
                io.num_errors.to_string(),
                time_ns(io.latency_ns_total / io.num_ops),
                time_ns(io.latency_ns_min),
                percentile(io, 500),
                percentile(io, 990),
                percentile(io, 999),
                time_ns(io.latency_ns_max),
            ]);
        };
        for io in &bdev.io {
            add("all", io);
        }
        for thread in &bdev.threads {
            for io in &thread.io {
                add(&thread.thread, io);
            }
        }
    }
    let mut text = table.to_string();
    for bdev in stats {
        text.push_str(&format!(
            "{}: {} in flight, {} at most, {} delayed by limits\n",
            bdev.name, bdev.queue_depth, bdev.queue_depth_max, bdev.qos_delayed
        ));
    }
    text
}

/// The upper end of the bucket in which the given thousandth lies.
fn percentile(io: &IoStats, per_mille: u64) -> String {
    let Some(histogram) = &io.latency else {
        return "-".to_owned();
    };
    let total: u64 = histogram.buckets.iter().map(|bucket| bucket.count).sum();
    let wanted = u128::from(total) * u128::from(per_mille);
    let mut below: u128 = 0;
    for bucket in &histogram.buckets {
        below += u128::from(bucket.count) * 1000;
        if below >= wanted && bucket.count > 0 {
            return time_ns(bucket.to_ns.min(io.latency_ns_max));
        }
    }
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use api::v1::{Histogram, HistogramBucket, NvmeErrorEntry};

    use super::*;

    #[test]
    fn a_drive_is_shown_with_its_errors() {
        let at = NvmeErrorEntry {
            error_count: 41,
            status: "invalid field in command (0h/02h, do not retry)".into(),
            submission_queue_id: Some(0),
            command_id: Some(773),
            parameter_byte: Some(44),
            parameter_bit: Some(2),
            ..NvmeErrorEntry::default()
        };
        let of_nothing = NvmeErrorEntry {
            error_count: 40,
            ..NvmeErrorEntry::default()
        };
        let show = |errors| {
            let bdev = Bdev {
                nvme: Some(NvmeDrive {
                    errors,
                    ..NvmeDrive::default()
                }),
                ..Bdev::default()
            };
            show_drive(&bdev, &BdevSpec::default(), &NvmeBdev::default())
        };
        assert!(!show(Vec::new()).contains("ERROR"));
        let text = show(vec![at, of_nothing]);
        let rows: Vec<String> = text
            .lines()
            .skip_while(|line| !line.starts_with("ERROR"))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            rows,
            [
                "ERROR STATUS QUEUE CID NSID LBA WRONG AT",
                "41 invalid field in command (0h/02h, do not retry) 0 773 0 0 byte 44 bit 2",
                "40 - - 0 0 -",
            ]
        );
    }

    #[test]
    fn percentiles_come_from_the_histogram() {
        let bucket = |from_ns, to_ns, count| HistogramBucket {
            from_ns,
            to_ns,
            count,
        };
        let io = IoStats {
            num_ops: 100,
            latency_ns_max: 5000,
            latency: Some(Histogram {
                buckets: vec![
                    bucket(0, 1000, 98),
                    bucket(1000, 2000, 1),
                    bucket(4000, 8000, 1),
                ],
            }),
            ..IoStats::default()
        };
        assert_eq!(percentile(&io, 500), "1.0 us");
        assert_eq!(percentile(&io, 990), "2.0 us");
        assert_eq!(percentile(&io, 999), "5.0 us");
        assert_eq!(percentile(&IoStats::default(), 500), "-");
    }
}
