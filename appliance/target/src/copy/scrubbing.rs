//! Everything that is mapped, read once; what cannot change is compared with its checksums.

use std::sync::Arc;
use std::time::Duration;

use block::Bdev;
use dma::Payload;
use logging::civil;
use lvol::{MapCursor, MappedRun, MappedRuns, PieceSums};
use tokio::time::Instant;

use super::Detail;
use super::device::Device;
use super::job::{Differing, PLACES_MAX, cursor};
use super::worker::{Driven, Stop};
use crate::events::now_unix_ms;

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
    differing: Differing,
    /// Bytes compared with checksums since it began or went on.
    compared: u64,
    /// Records of checksums that could not be read since then.
    damaged: u64,
}

/// Reads at its rate.
struct Reader<'a> {
    driven: &'a Driven,
    base: &'a Device,
    bytes_per_sec: u64,
    start: Instant,
    bytes: u64,
}

pub(super) async fn run(driven: &Driven, base: &Arc<Bdev>) -> Result<String, Stop> {
    let Detail::Scrub {
        bytes_per_sec,
        layer,
        piece,
        unreadable_bytes,
        unreadable,
        places,
        differing,
    } = driven.task.detail.clone()
    else {
        return Err(Stop::Failed("is no scrub".to_owned()));
    };
    let mut found = Found {
        unreadable,
        bytes: unreadable_bytes,
        places,
        last: None,
        differing,
        compared: 0,
        damaged: 0,
    };
    let from = cursor(layer, piece);
    let base = driven.open(base).await?;
    let mut reader = Reader {
        driven,
        base: &base,
        bytes_per_sec,
        start: Instant::now(),
        bytes: 0,
    };
    tokio::select! {
        () = base.drive() => unreachable!("it never ends"),
        result = reader.read_all(from, &mut found) => result?,
    }
    found.tell(&driven.task.pool_name, reader.bytes)
}

impl Reader<'_> {
    async fn read_all(&mut self, from: MapCursor, found: &mut Found) -> Result<(), Stop> {
        let pool = &self.driven.task.pool;
        let mut done = self.driven.task.done;
        let mut next = Some(from);
        while let Some(from) = next {
            let part = pool.mapped(from, PIECES).await?;
            let read = self.read_part(from, &part, found).await?;
            if !read.is_empty() {
                let compared = pool.compare_sums(read, now_unix_ms() / 1000).await?;
                found.compared += compared.compared_bytes;
                found.damaged += compared.damaged;
                for differing in compared.differing {
                    found.add_differing(&differing);
                }
            }
            next = part.next;
            done += part.clusters;
            let at = next.unwrap_or(from);
            let detail = Detail::Scrub {
                bytes_per_sec: self.bytes_per_sec,
                layer: at.layer,
                piece: at.piece,
                unreadable_bytes: found.bytes,
                unreadable: found.unreadable,
                places: found.places.clone(),
                differing: found.differing.clone(),
            };
            self.driven.advance_with(done, &detail).await;
        }
        Ok(())
    }

    /// What was read of the pieces that cannot change.
    async fn read_part(
        &mut self,
        from: MapCursor,
        part: &MappedRuns,
        found: &mut Found,
    ) -> Result<Vec<PieceSums>, Stop> {
        let mut read = Vec::with_capacity(part.frozen.len());
        let mut frozen = part.frozen.iter();
        let mut piece = frozen.next();
        let mut sums = None;
        for (index, run) in part.runs.iter().enumerate() {
            if let Some(begun) = piece.filter(|piece| piece.runs.start == index) {
                sums = Some(PieceSums::new(begun.clone()));
            }
            self.read_run(from, run, sums.as_mut(), found).await?;
            if piece.is_some_and(|piece| piece.runs.end == index + 1) {
                read.extend(sums.take());
                piece = frozen.next();
            }
        }
        Ok(read)
    }

    async fn read_run(
        &mut self,
        from: MapCursor,
        run: &MappedRun,
        mut sums: Option<&mut PieceSums>,
        found: &mut Found,
    ) -> Result<(), Stop> {
        let mut at = 0;
        while at < run.len {
            let len = self.base.burst_bytes().min(run.len - at);
            let take = |device_offset: u64, payload: &Payload, len: usize| {
                if let Some(sums) = &mut sums {
                    add(
                        sums,
                        run.offset + (device_offset - run.device_offset),
                        payload,
                        len,
                    );
                }
            };
            let begin = run.device_offset + at;
            let parts = self.base.read_parts(begin, len as usize, take).await;
            for (offset, len, result) in parts {
                if result.is_err() {
                    self.look_closer(from, run, offset, len, found).await?;
                }
            }
            at += len;
            self.bytes += len;
            if self.bytes_per_sec > 0 {
                let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_sec as f64);
                tokio::time::sleep_until(self.start + due).await;
            }
        }
        Ok(())
    }

    /// Finds out what of a range cannot be read.
    async fn look_closer(
        &self,
        from: MapCursor,
        run: &MappedRun,
        offset: u64,
        len: usize,
        found: &mut Found,
    ) -> Result<(), Stop> {
        let pool = &self.driven.task.pool;
        if self.base.is_going() || pool.has_stopped() {
            return Err(Stop::Closed);
        }
        // It may have been given back, and the failure says nothing about the volume.
        let now = pool.mapped(from, PIECES).await?;
        let is_mapped = |at: u64| {
            let mut runs = now.runs.iter();
            runs.any(|run| run.device_offset <= at && at < run.device_offset + run.len)
        };
        let mut at = offset;
        while at < offset + len as u64 {
            let part = FINE_BYTES.min((offset + len as u64 - at) as usize);
            let parts = self.base.probe(at, part).await;
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
}

fn add(sums: &mut PieceSums, offset: u64, payload: &Payload, len: usize) {
    match payload.as_buf() {
        Some(buffer) => sums.add(offset, &buffer.as_slice()[..len]),
        None => {
            // The device's own memory.
            let mut bytes = vec![0; len];
            payload.copy_range_to(0, &mut bytes);
            sums.add(offset, &bytes);
        }
    }
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

    fn add_differing(&mut self, found: &lvol::Differing) {
        let differing = &mut self.differing;
        differing.count += 1;
        differing.bytes += found.len;
        if differing.places.len() < PLACES_MAX {
            let (year, month, day) = civil(found.recorded_unix_s / 86_400);
            let (owner, offset) = (&found.owner, found.offset);
            let place = format!("{owner} at {offset} (checksum of {year:04}-{month:02}-{day:02})");
            differing.places.push(place);
        }
    }

    fn tell(&self, pool: &str, read: u64) -> Result<String, Stop> {
        let mut wrong = Vec::new();
        let bytes = self.bytes;
        if self.unreadable > 0 {
            let places = list(pool, &self.places, self.unreadable);
            let count = self.unreadable;
            wrong.push(format!(
                "{count} places, {bytes} bytes, cannot be read: {places}"
            ));
        }
        let Differing {
            count,
            bytes,
            places,
        } = &self.differing;
        if *count > 0 {
            let places = list(pool, places, *count);
            wrong.push(format!(
                "{count} clusters, {bytes} bytes in them, differ from their checksums: {places}"
            ));
        }
        if !wrong.is_empty() {
            return Err(Stop::Failed(wrong.join("; ")));
        }
        let mut text = format!("{read} bytes read");
        if self.compared > 0 {
            let compared = self.compared;
            text.push_str(&format!(", {compared} compared with checksums"));
        }
        if self.damaged > 0 {
            let damaged = self.damaged;
            text.push_str(&format!(
                ", {damaged} damaged records of checksums made anew"
            ));
        }
        text.push_str("; all is well");
        Ok(text)
    }
}

fn list(pool: &str, places: &[String], count: u64) -> String {
    let named = places.iter().map(|place| format!("{pool}/{place}"));
    let mut text = named.collect::<Vec<_>>().join(", ");
    if places.len() < count as usize {
        text.push_str(", ...");
    }
    text
}
