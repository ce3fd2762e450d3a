//! Block devices from their specifications.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::v1::{BdevSpec, ErrorRule, ErrorType, IoType, QosLimits, bdev_spec::Kind};
use block::delay::{DelayLayer, Delays};
use block::error::{Effect, ErrorLayer, Rule};
use block::file::{File, FileOptions};
use block::malloc::{Malloc, MallocOptions};
use block::null::{Null, NullOptions};
use block::{BlockDevice, BlockError, IoError, OpKind, OpSet, Registry};

use super::{prepared_now, refused};
use crate::data_plane::DataPlane;
use crate::error::chain;
use crate::runtime::{Prepared, Preparing, RuntimeError};

/// Block size when the specification says none.
const BLOCK_SIZE_DEFAULT: u32 = 512;
/// How long a file may stay locked after a process that had it was killed: the kernel lets go of an
/// io_uring's files a little after the process has gone.
const LOCK_LINGERS: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// A device that is open, and the sentence about a fallback that was taken.
pub(super) struct Opened {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) notice: Option<String>,
}

/// Opens the device of a specification. What can take long runs on a thread of its own.
pub(super) fn prepare(spec: &BdevSpec, is_new: bool, registry: &Arc<Registry>) -> Preparing {
    match &spec.kind {
        // Layers are made over the device below when they are applied: it may come later.
        Some(Kind::Error(_) | Kind::Delay(_)) => prepared_now(Ok(Box::new(()))),
        Some(Kind::File(file)) if registry.get(&spec.name).is_ok() => {
            // The device is there and grows: the file is checked when it is resized.
            let _ = file;
            prepared_now(Ok(Box::new(())))
        }
        Some(kind) => {
            let kind = kind.clone();
            Box::pin(async move {
                tokio::task::spawn_blocking(move || open(&kind, is_new))
                    .await
                    .unwrap_or_else(|error| Err(RuntimeError::Refused(error.to_string())))
            })
        }
        None => prepared_now(Err(RuntimeError::Refused("the device has no kind".into()))),
    }
}

fn open(kind: &Kind, is_new: bool) -> Result<Prepared, RuntimeError> {
    let blocks = |size_bytes: u64, block_size: Option<u32>| {
        let block_size = block_size.unwrap_or(BLOCK_SIZE_DEFAULT).max(1);
        (block_size, size_bytes / u64::from(block_size))
    };
    let (device, notice): (Arc<dyn BlockDevice>, _) = match kind {
        Kind::Malloc(spec) => {
            let (block_size, block_count) = blocks(spec.size_bytes, spec.block_size);
            let device = Malloc::new(MallocOptions::new(block_size, block_count));
            (device.map_err(|error| refused(&error))?, None)
        }
        Kind::Null(spec) => {
            let (block_size, block_count) = blocks(spec.size_bytes, spec.block_size);
            let options = NullOptions {
                block_size,
                block_count,
            };
            (Null::new(options).map_err(|error| refused(&error))?, None)
        }
        Kind::File(spec) => {
            let opened = if is_new {
                open_file(spec).map_err(|error| of_open(&error))
            } else {
                reopen_file(spec)
            };
            let (device, notice) = opened?;
            (device, notice)
        }
        Kind::Error(_) | Kind::Delay(_) => {
            return Err(RuntimeError::Refused(
                "a layer is made over its device".into(),
            ));
        }
        Kind::Nvme(_) => {
            return Err(RuntimeError::Refused("a drive is opened otherwise".into()));
        }
    };
    Ok(Box::new(Opened { device, notice }))
}

/// A file that is too small grows to the size asked; it is never cut.
fn open_file(spec: &api::v1::FileBdev) -> Result<(Arc<File>, Option<String>), BlockError> {
    let is_there = std::fs::metadata(&spec.path).is_ok_and(|metadata| metadata.len() > 0);
    let options = FileOptions {
        size: spec.size_bytes.filter(|_| !is_there),
        block_size: spec.block_size.unwrap_or(BLOCK_SIZE_DEFAULT),
        direct: spec.direct.unwrap_or(true),
        create: spec.size_bytes.is_some(),
        read_only: spec.read_only.unwrap_or(false),
        ..FileOptions::new(&spec.path)
    };
    let (device, notice) = File::open(options)?;
    let geometry = device.geometry();
    if let Some(size_bytes) = spec.size_bytes
        && size_bytes > geometry.len_bytes()
    {
        device.resize(size_bytes / u64::from(geometry.block_size))?;
    }
    Ok((device, notice))
}

/// The file of a device that was there before: whole, or the device waits for it. Blocks while the
/// file is locked, but not for long: hosts come back at once after a restart, and must find it.
fn reopen_file(spec: &api::v1::FileBdev) -> Result<(Arc<File>, Option<String>), RuntimeError> {
    let options = FileOptions {
        block_size: spec.block_size.unwrap_or(BLOCK_SIZE_DEFAULT),
        direct: spec.direct.unwrap_or(true),
        read_only: spec.read_only.unwrap_or(false),
        ..FileOptions::new(&spec.path)
    };
    let start = Instant::now();
    let opened = loop {
        match File::open(options.clone()) {
            Err(BlockError::FileInUse { .. }) if start.elapsed() < LOCK_LINGERS => {
                std::thread::sleep(LOCK_RETRY);
            }
            opened => break opened,
        }
    };
    let (device, notice) = opened.map_err(|error| of_open(&error))?;
    let (wanted, there) = (spec.size_bytes.unwrap_or(0), device.geometry().len_bytes());
    if there < wanted {
        return Err(RuntimeError::Pending(format!(
            "{} holds {there} bytes where {wanted} belong; put the whole file back, or delete the \
             device",
            spec.path
        )));
    }
    Ok((device, notice))
}

/// A file that is not there may come, and one that is held may be let go of.
fn of_open(error: &BlockError) -> RuntimeError {
    let may_come = match error {
        BlockError::FileMissing { .. } | BlockError::FileInUse { .. } => true,
        BlockError::OpenFile { source, .. } => matches!(
            source.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
        ),
        _ => false,
    };
    if may_come {
        RuntimeError::Pending(chain(error))
    } else {
        RuntimeError::Refused(chain(error))
    }
}

/// Makes a layer over the device below.
pub(super) fn layer(
    spec: &BdevSpec,
    base: &Arc<dyn BlockDevice>,
) -> Result<Arc<dyn BlockDevice>, RuntimeError> {
    match &spec.kind {
        Some(Kind::Error(error)) => {
            // The seed makes a run repeatable: the same device fails the same I/Os.
            let seed = spec.name.bytes().fold(1, |seed, byte| {
                u64::wrapping_add(u64::wrapping_mul(seed, 31), u64::from(byte))
            });
            let layer = ErrorLayer::new(Arc::clone(base), seed);
            set_rules(&layer, &error.rules)?;
            Ok(layer)
        }
        Some(Kind::Delay(delay)) => Ok(DelayLayer::new(Arc::clone(base), delays(delay))),
        _ => Err(RuntimeError::Refused("the device is not a layer".into())),
    }
}

pub(super) fn delays(spec: &api::v1::DelayBdev) -> Delays {
    Delays {
        avg_read: Duration::from_micros(spec.avg_read_latency_us),
        p99_read: Duration::from_micros(spec.p99_read_latency_us),
        avg_write: Duration::from_micros(spec.avg_write_latency_us),
        p99_write: Duration::from_micros(spec.p99_write_latency_us),
    }
}

pub(super) fn set_rules(layer: &ErrorLayer, rules: &[ErrorRule]) -> Result<(), RuntimeError> {
    let rules = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    layer.set_rules(&rules).map_err(|error| refused(&error))
}

fn rule(rule: &ErrorRule) -> Result<Rule, RuntimeError> {
    let ops = match op_kind(rule.io_type()) {
        Some(kind) => OpSet::of(&[kind]),
        None if rule.io_type() == IoType::Unspecified => OpSet::ALL,
        None => {
            let what = format!("no device does {}", rule.io_type().as_str_name());
            return Err(RuntimeError::Refused(what));
        }
    };
    let is_read = ops == OpSet::of(&[OpKind::Read]);
    let default_sc = if is_read { 0x81 } else { 0x80 };
    let byte =
        |value: Option<u32>, default| value.and_then(|v| u8::try_from(v).ok()).unwrap_or(default);
    let effect = match rule.error_type() {
        ErrorType::Failure => Effect::Fail(IoError::Injected {
            sct: byte(rule.sct, 2),
            sc: byte(rule.sc, default_sc),
            dnr: rule.dnr,
        }),
        ErrorType::CorruptData => Effect::Corrupt {
            offset_in_block: u32::try_from(rule.corrupt_offset).unwrap_or(u32::MAX),
            mask: byte(rule.corrupt_value, u8::MAX),
        },
        ErrorType::Pending => Effect::Hold,
        ErrorType::Unspecified => {
            let reason = "an error rule needs a type: failure, pending or corrupt_data";
            return Err(RuntimeError::Refused(reason.into()));
        }
    };
    Ok(Rule {
        ops,
        count: (rule.num > 0).then_some(rule.num),
        probability: f64::from(rule.probability_ppm.unwrap_or(1_000_000)) / 1e6,
        lba_first: rule.lba_first.unwrap_or(0),
        lba_last: rule.lba_last.unwrap_or(u64::MAX),
        effect,
    })
}

pub(super) fn op_kind(io_type: IoType) -> Option<OpKind> {
    match io_type {
        IoType::Read => Some(OpKind::Read),
        IoType::Write => Some(OpKind::Write),
        IoType::Flush => Some(OpKind::Flush),
        IoType::Unmap => Some(OpKind::Unmap),
        IoType::WriteZeroes => Some(OpKind::WriteZeroes),
        IoType::Compare => Some(OpKind::Compare),
        IoType::CompareAndWrite => Some(OpKind::CompareAndWrite),
        IoType::Verify => Some(OpKind::Verify),
        IoType::Reset => Some(OpKind::Reset),
        IoType::Copy | IoType::Unspecified => None,
    }
}

pub(super) fn io_type(kind: OpKind) -> IoType {
    match kind {
        OpKind::Read => IoType::Read,
        OpKind::Write => IoType::Write,
        OpKind::Flush => IoType::Flush,
        OpKind::Unmap => IoType::Unmap,
        OpKind::WriteZeroes => IoType::WriteZeroes,
        OpKind::Compare => IoType::Compare,
        OpKind::CompareAndWrite => IoType::CompareAndWrite,
        OpKind::Verify => IoType::Verify,
        OpKind::Reset => IoType::Reset,
    }
}

/// Limits of the API as those of a block device.
pub(crate) fn qos(limits: Option<&QosLimits>) -> block::QosLimits {
    let limits = limits.cloned().unwrap_or_default();
    block::QosLimits {
        rw_ios_per_sec: limits.rw_ios_per_sec,
        rw_bytes_per_sec: limits.rw_bytes_per_sec,
        r_bytes_per_sec: limits.r_bytes_per_sec,
        w_bytes_per_sec: limits.w_bytes_per_sec,
        burst_ms: limits.burst_ms.unwrap_or(1),
    }
}

/// Flushes every device that has a volatile cache; for the end of the program.
pub(super) fn flush_all(plane: &DataPlane) {
    for bdev in plane.registry().list() {
        // Volumes have been flushed by their pools.
        if !bdev.geometry().volatile_write_cache || bdev.is_removed() {
            continue;
        }
        if let Err(error) = flush(&bdev) {
            tracing::error!(bdev = bdev.name(), error, "cannot flush the block device");
        }
    }
}

/// Flushes one device through a channel of this thread.
fn flush(bdev: &Arc<block::Bdev>) -> Result<(), String> {
    let context = block::ChannelContext::new("drain", std::task::Waker::noop().clone());
    let mut channel = bdev.open(&context).map_err(|error| chain(&error))?;
    let io = block::Io {
        op: block::Op::Flush,
        lba: block::Lba(0),
        blocks: 0,
        payload: dma::Payload::None,
        tag: 0,
    };
    let mut done = Vec::new();
    if let block::Submit::Done(completion) = channel.submit(io, Instant::now()) {
        done.push(completion);
    }
    while done.is_empty() {
        channel.poll(Instant::now(), &mut done);
        std::thread::yield_now();
    }
    let failed = done
        .into_iter()
        .find_map(|completion| completion.result.err());
    failed.map_or(Ok(()), |error| Err(error.to_string()))
}
