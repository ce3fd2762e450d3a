//! A volume or a snapshot into an image.

use std::sync::Arc;
use std::time::Instant;

use block::Bdev;
use image_file::{Format, ImageWriter};

use super::Detail;
use super::device::Device;
use super::disk_io::{GRANULE, data_runs};
use super::worker::{Driven, FLUSH_INTERVAL, Stop};

/// Extents asked for at once.
const EXTENTS: usize = 256;

pub(super) async fn run(driven: &Driven, volume: &Arc<Bdev>) -> Result<String, Stop> {
    let Detail::Export { file, format } = &driven.task.detail else {
        return Err(Stop::Failed("is no export".to_owned()));
    };
    let format = Format::from_name(format).unwrap_or(Format::Raw);
    let volume = driven.open(volume).await?;
    let len = volume.len_bytes();
    let mut image = ImageWriter::create(file, format, len, driven.task.done)?;
    driven.advance(image.position()).await;
    let written = tokio::select! {
        () = volume.drive() => unreachable!("it never ends"),
        result = copy(driven, &volume, &mut image, format) => result?,
    };
    image.finish().await?;
    driven.advance(len).await;
    Ok(format!("{written} bytes written to {}", file.display()))
}

async fn copy(
    driven: &Driven,
    volume: &Device,
    image: &mut ImageWriter,
    format: Format,
) -> Result<u64, Stop> {
    let (pool, name) = (&driven.task.pool, &driven.task.subject);
    let (len, granularity) = (volume.len_bytes(), image.granularity());
    let granule = granularity.max(GRANULE as u64) as usize;
    let (mut at, mut written) = (image.position(), 0);
    let mut next = Some(at);
    let mut synced = Instant::now();
    while let Some(from) = next {
        let part = pool.diff(None, name, from, EXTENTS).await?;
        next = part.next;
        for extent in part.extents {
            // Whole pieces of the image; two extents may share one.
            let start = (extent.offset - extent.offset % granule as u64).max(at);
            let end = (extent.offset + extent.len).next_multiple_of(granule as u64);
            at = start;
            while at < end.min(len) {
                let burst = volume.burst_bytes() - volume.burst_bytes() % granule as u64;
                let bytes = burst.max(granule as u64).min(end.min(len) - at) as usize;
                let mut buffer = vec![0; bytes];
                let read = volume.read(at, &mut buffer).await;
                read.map_err(|error| Stop::io("read the volume", at, volume, error))?;
                for run in data_runs(&buffer, granule) {
                    written += run.len() as u64;
                    image
                        .write(at + run.start as u64, buffer[run].to_vec())
                        .await?;
                }
                at += bytes as u64;
                if synced.elapsed() >= FLUSH_INTERVAL {
                    if format == Format::Raw {
                        image.skip(at).await?;
                    }
                    image.sync().await?;
                    driven.advance(at).await;
                    synced = Instant::now();
                }
            }
        }
        if let Some(from) = next {
            at = at.max(from - from % granule as u64);
        }
    }
    Ok(written)
}
