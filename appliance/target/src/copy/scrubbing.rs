//! Everything that is mapped, read once.

use std::sync::Arc;
use std::time::Duration;

use block::Bdev;
use lvol::{MapCursor, MappedRun};
use tokio::time::Instant;

use super::Detail;
use super::device::Device;
use super::job::{PLACES_MAX, cursor};
use super::worker::{Driven, Stop};

/// Pieces of maps asked for at once.
const PIECES: usize = 4;
/// What cannot be read is narrowed down to this many bytes.
const FINE_BYTES: usize = 4096;

/// What was found so far.
struct Found {
    unreadable: u64,
    bytes: u64,
    places: Vec<String>,
    /// End of the last place: what follows it at once belongs to it.
    last: Option<(String, u64)>,
}

pub(super) async fn run(driven: &Driven, base: &Arc<Bdev>) -> Result<String, Stop> {
    let Detail::Scrub {
        bytes_per_sec,
        layer,
        piece,
        unreadable_bytes,
        unreadable,
        places,
    } = driven.task.detail.clone()
    else {
        return Err(Stop::Failed("is no scrub".to_owned()));
    };
    let mut found = Found {
        unreadable,
        bytes: unreadable_bytes,
        places,
        last: None,
    };
    let from = cursor(layer, piece);
    let base = driven.open(base).await?;
    let read = tokio::select! {
        () = base.drive() => unreachable!("it never ends"),
        result = read(driven, &base, bytes_per_sec, from, &mut found) => result?,
    };
    match found.unreadable {
        0 => Ok(format!("{read} bytes read; all is well")),
        count => Err(Stop::Failed(found.tell(&driven.task.pool_name, count))),
    }
}

async fn read(
    driven: &Driven,
    base: &Device,
    bytes_per_sec: u64,
    from: MapCursor,
    found: &mut Found,
) -> Result<u64, Stop> {
    let pool = &driven.task.pool;
    let (mut done, mut bytes) = (driven.task.done, 0);
    let start = Instant::now();
    let mut next = Some(from);
    while let Some(from) = next {
        let part = pool.mapped(from, PIECES).await?;
        for run in &part.runs {
            let mut at = 0;
            while at < run.len {
                let len = base.burst_bytes().min(run.len - at);
                let parts = base.probe(run.device_offset + at, len as usize).await;
                for (offset, len, result) in parts {
                    if result.is_err() {
                        look_closer(driven, base, from, run, offset, len, found).await?;
                    }
                }
                at += len;
                bytes += len;
                if bytes_per_sec > 0 {
                    let due = Duration::from_secs_f64(bytes as f64 / bytes_per_sec as f64);
                    tokio::time::sleep_until(start + due).await;
                }
            }
        }
        next = part.next;
        done += part.clusters;
        let at = next.unwrap_or(from);
        let detail = Detail::Scrub {
            bytes_per_sec,
            layer: at.layer,
            piece: at.piece,
            unreadable_bytes: found.bytes,
            unreadable: found.unreadable,
            places: found.places.clone(),
        };
        driven.advance_with(done, &detail).await;
    }
    Ok(bytes)
}

/// Finds out what of a range cannot be read.
async fn look_closer(
    driven: &Driven,
    base: &Device,
    from: MapCursor,
    run: &MappedRun,
    offset: u64,
    len: usize,
    found: &mut Found,
) -> Result<(), Stop> {
    if base.is_going() || driven.task.pool.has_stopped() {
        return Err(Stop::Closed);
    }
    // It may have been given back, and the failure says nothing about the volume.
    let now = driven.task.pool.mapped(from, PIECES).await?;
    let is_mapped = |at: u64| {
        let mut runs = now.runs.iter();
        runs.any(|run| run.device_offset <= at && at < run.device_offset + run.len)
    };
    let mut at = offset;
    while at < offset + len as u64 {
        let part = FINE_BYTES.min((offset + len as u64 - at) as usize);
        let parts = base.probe(at, part).await;
        if parts.iter().any(|(_, _, result)| result.is_err()) && is_mapped(at) {
            found.add(
                &run.owner,
                run.offset + (at - run.device_offset),
                part as u64,
            );
        }
        at += part as u64;
    }
    Ok(())
}

impl Found {
    fn add(&mut self, owner: &str, offset: u64, len: u64) {
        self.bytes += len;
        let follows = self
            .last
            .as_ref()
            .is_some_and(|(name, end)| name == owner && *end == offset);
        self.last = Some((owner.to_owned(), offset + len));
        if follows {
            return;
        }
        self.unreadable += 1;
        if self.places.len() < PLACES_MAX {
            self.places.push(format!("{owner} at {offset}"));
        }
    }

    fn tell(&self, pool: &str, count: u64) -> String {
        let places = self.places.iter().map(|place| format!("{pool}/{place}"));
        let mut text = format!(
            "{count} places, {} bytes, cannot be read: {}",
            self.bytes,
            places.collect::<Vec<_>>().join(", ")
        );
        if self.places.len() < count as usize {
            text.push_str(", ...");
        }
        text
    }
}
