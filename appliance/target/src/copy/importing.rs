//! An image into a volume.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use block::{Bdev, IoError};
use image_file::{Format, ImageReader};

use super::Detail;
use super::device::Device;
use super::disk_io::{GRANULE, data_runs};
use super::worker::{Driven, FLUSH_INTERVAL, Stop};

pub(super) async fn run(driven: &Driven, volume: &Arc<Bdev>) -> Result<String, Stop> {
    let Detail::Import {
        file,
        format,
        len_bytes,
        modified_ns,
    } = &driven.task.detail
    else {
        return Err(Stop::Failed("is no import".to_owned()));
    };
    let mut image = ImageReader::open(file, Format::from_name(format)).await?;
    let identity = image.identity();
    if (identity.len_bytes, identity.modified_ns) != (*len_bytes, *modified_ns) {
        let file = file.display();
        return Err(Stop::Failed(format!(
            "{file} was changed since the import began; import it again"
        )));
    }
    let volume = driven.open(volume).await?;
    tokio::select! {
        () = volume.drive() => unreachable!("it never ends"),
        result = copy(driven, file, &mut image, &volume) => result,
    }
}

async fn copy(
    driven: &Driven,
    file: &Path,
    image: &mut ImageReader,
    volume: &Device,
) -> Result<String, Stop> {
    let (block, len) = (volume.block_size(), image.len_bytes());
    let (mut at, mut written) = (driven.task.done, 0);
    let mut flushed = Instant::now();
    let failed = |at: u64, error| match error {
        IoError::NoSpace => Stop::Failed(format!(
            "the pool is full: no cluster is free for byte {at} of the volume; delete something or \
             grow the pool, and import again"
        )),
        error => Stop::io("write the volume", at, volume, error),
    };
    // What was read ahead: its place and bytes.
    let mut next = read(image, at, volume).await?;
    while let Some((offset, buffer)) = next {
        at = offset + buffer.len() as u64;
        // While it is written, what follows is read.
        let (after, result) = tokio::join!(read(image, at, volume), async {
            for run in data_runs(&buffer, GRANULE.max(block as usize)) {
                let place = offset + run.start as u64;
                let data = &buffer[run];
                volume
                    .write(place, data)
                    .await
                    .map_err(|error| failed(place, error))?;
                written += data.len() as u64;
            }
            Ok::<(), Stop>(())
        });
        result?;
        next = after?;
        if flushed.elapsed() >= FLUSH_INTERVAL {
            volume.flush().await.map_err(|error| failed(at, error))?;
            driven.advance(at.min(len)).await;
            flushed = Instant::now();
        }
    }
    volume.flush().await.map_err(|error| failed(at, error))?;
    driven.advance(len).await;
    Ok(format!("{written} bytes written from {}", file.display()))
}

/// The next data of the image from `at` on, in whole blocks; a part of a block at its end is filled up.
async fn read(
    image: &mut ImageReader,
    mut at: u64,
    volume: &Device,
) -> Result<Option<(u64, Vec<u8>)>, Stop> {
    let block = volume.block_size();
    while let Some(extent) = image.extent(at).await? {
        let end = extent.offset + extent.len;
        if !extent.is_data {
            // Down to a block: the data that follows may begin within it.
            let next = end - end % block;
            if next > at {
                at = next;
                continue;
            }
            if end >= image.len_bytes() {
                return Ok(None);
            }
        }
        let most = volume.burst_bytes().min(end.next_multiple_of(block) - at);
        let buffer = image.read(at, vec![0; most as usize]).await?;
        return Ok(Some((at, buffer)));
    }
    Ok(None)
}
