//! What a snapshot has itself, to another block device.

use std::sync::Arc;
use std::time::Instant;

use block::Bdev;

use super::device::Device;
use super::disk_io::{GRANULE, data_runs};
use super::worker::{Driven, FLUSH_INTERVAL, Stop};

/// Extents asked for at once.
const EXTENTS: usize = 256;

pub(super) async fn run(driven: &Driven, snapshot: &Arc<Bdev>) -> Result<String, Stop> {
    let Some(to) = &driven.task.to else {
        let problem = "the block device to copy to is not in place";
        return Err(Stop::Failed(problem.to_owned()));
    };
    let from = driven.open(snapshot).await?;
    let name = to.name();
    let to = driven.open(to).await?;
    if to.len_bytes() < from.len_bytes() {
        return Err(Stop::Failed(format!(
            "block device {name} has {} bytes, the snapshot {}",
            to.len_bytes(),
            from.len_bytes()
        )));
    }
    if to.block_size() > from.block_size() && !GRANULE.is_multiple_of(to.block_size() as usize) {
        let problem = format!("block device {name} has larger blocks");
        return Err(Stop::Failed(problem));
    }
    let copied = tokio::select! {
        () = from.drive() => unreachable!("it never ends"),
        () = to.drive() => unreachable!("it never ends"),
        result = copy(driven, &from, &to) => result?,
    };
    Ok(format!("{copied} bytes copied to {name}"))
}

async fn copy(driven: &Driven, from: &Device, to: &Device) -> Result<u64, Stop> {
    let (pool, name) = (&driven.task.pool, &driven.task.subject);
    // What its parent has is not its own. One without a name is being merged into it.
    let parent = pool.volume(name).await?.parent;
    let len = from.len_bytes();
    let (mut copied, mut next) = (0, Some(driven.task.done));
    let mut flushed = Instant::now();
    while let Some(begin) = next {
        let part = pool.diff(parent.as_deref(), name, begin, EXTENTS).await?;
        next = part.next;
        for extent in part.extents {
            let end = extent.offset + extent.len;
            let mut at = extent.offset;
            while at < end {
                let bytes = from.burst_bytes().min(end - at) as usize;
                let mut buffer = vec![0; bytes];
                let read = from.read(at, &mut buffer).await;
                read.map_err(|error| Stop::io("read the snapshot", at, from, error))?;
                put(to, at, &buffer).await?;
                copied += bytes as u64;
                at += bytes as u64;
                if flushed.elapsed() >= FLUSH_INTERVAL {
                    flush(to, at).await?;
                    driven.advance(at).await;
                    flushed = Instant::now();
                }
            }
        }
    }
    flush(to, len).await?;
    driven.advance(len).await;
    Ok(copied)
}

/// Writes what is data, and makes the rest zeroes: something else may be there.
async fn put(to: &Device, offset: u64, buffer: &[u8]) -> Result<(), Stop> {
    let failed = |at: u64| move |error| Stop::io("write the block device", at, to, error);
    let mut zero_from = 0;
    let mut runs = data_runs(buffer, GRANULE);
    // The last one is empty: what is left before it is zeroes.
    runs.push(buffer.len()..buffer.len());
    for run in runs {
        let at = offset + zero_from as u64;
        let zeroes = (run.start - zero_from) as u64;
        to.write_zeroes(at, zeroes).await.map_err(failed(at))?;
        let at = offset + run.start as u64;
        zero_from = run.end;
        to.write(at, &buffer[run]).await.map_err(failed(at))?;
    }
    Ok(())
}

async fn flush(to: &Device, at: u64) -> Result<(), Stop> {
    let flushed = to.flush().await;
    flushed.map_err(|error| Stop::io("flush the block device", at, to, error))
}
