//! Where a command's data lies: PRPs and SGLs (Base §4.3).

use dma::BusView;
use nvme_spec::{SglDescriptor, Sqe, Status};
use zerocopy::FromBytes;

use crate::controller::Emu;

/// Bytes of a memory page: CC.MPS is 0.
pub(crate) const PAGE: u64 = 4096;
/// Most bytes of one command, so that a hostile length does not take all memory.
pub(crate) const TRANSFER_MAX: usize = 16 << 20;
const SGL_DESCRIPTORS_MAX: usize = 4096;
const SGL_SEGMENTS_MAX: usize = 64;

/// The pieces of memory that `len` bytes of data of this command lie in.
pub(crate) fn pieces(bus: &BusView, sqe: &Sqe, len: usize) -> Result<Vec<(u64, usize)>, Status> {
    if len > TRANSFER_MAX {
        return Err(Status::INVALID_FIELD);
    }
    match sqe.psdt() {
        Sqe::PSDT_PRP => prp_pieces(bus, sqe.prp(), len),
        Sqe::PSDT_SGL | Sqe::PSDT_SGL_METADATA_SGL => sgl_pieces(bus, sqe.sgl(), len),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// The command's data, from the host.
pub(crate) fn read(bus: &BusView, sqe: &Sqe, len: usize) -> Result<Vec<u8>, Status> {
    let pieces = pieces(bus, sqe, len)?;
    let mut data = vec![0; len];
    let mut at = 0;
    for (address, piece) in pieces {
        bus.read(address, &mut data[at..at + piece])
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        at += piece;
    }
    Ok(data)
}

impl Emu {
    /// The command's data, to the host, garbled where the fault plan says so.
    pub(crate) fn send(&self, sqe: &Sqe, data: &[u8]) -> Result<(), Status> {
        let Some((offset, bytes)) = self.garbled else {
            return write(&self.bus, sqe, data);
        };
        let mut data = data.to_vec();
        for (place, byte) in data.iter_mut().skip(offset).zip(bytes) {
            *place = byte;
        }
        write(&self.bus, sqe, &data)
    }
}

/// The command's data, to the host.
fn write(bus: &BusView, sqe: &Sqe, data: &[u8]) -> Result<(), Status> {
    let mut at = 0;
    for (address, piece) in pieces(bus, sqe, data.len())? {
        bus.write(address, &data[at..at + piece])
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        at += piece;
    }
    Ok(())
}

fn prp_pieces(bus: &BusView, prp: (u64, u64), len: usize) -> Result<Vec<(u64, usize)>, Status> {
    let (first, second) = prp;
    if !first.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let mut pieces = Vec::new();
    let mut left = len;
    let mut take = |address: u64, room: u64, left: &mut usize| {
        let piece = (*left).min(room as usize);
        if piece > 0 {
            pieces.push((address, piece));
        }
        *left -= piece;
    };
    take(first, PAGE - first % PAGE, &mut left);
    if left == 0 {
        return Ok(pieces);
    }
    if left as u64 <= PAGE {
        if !second.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        take(second, PAGE, &mut left);
        return Ok(pieces);
    }
    let mut list = second;
    while left > 0 {
        if !list.is_multiple_of(8) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let mut entry = [0; 8];
        bus.read(list, &mut entry)
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let entry = u64::from_le_bytes(entry);
        if !entry.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let is_last_of_page = list % PAGE == PAGE - 8;
        if is_last_of_page && left as u64 > PAGE {
            list = entry;
            continue_or_fail(entry)?;
        } else {
            take(entry, PAGE, &mut left);
            list = list.checked_add(8).ok_or(Status::DATA_TRANSFER_ERROR)?;
        }
    }
    Ok(pieces)
}

/// A chain of lists must lead somewhere: the zero page is no list.
fn continue_or_fail(list: u64) -> Result<(), Status> {
    if list == 0 {
        return Err(Status::DATA_TRANSFER_ERROR);
    }
    Ok(())
}

fn sgl_pieces(
    bus: &BusView,
    first: SglDescriptor,
    len: usize,
) -> Result<Vec<(u64, usize)>, Status> {
    let mut pieces = Vec::new();
    let mut left = len;
    let mut segment = vec![first];
    for _ in 0..SGL_SEGMENTS_MAX {
        let mut next = None;
        let count = segment.len();
        for (index, descriptor) in segment.iter().enumerate() {
            match descriptor.type_() {
                SglDescriptor::TYPE_DATA_BLOCK => {
                    let piece = left.min(descriptor.len() as usize);
                    if piece > 0 {
                        pieces.push((descriptor.address(), piece));
                    }
                    left -= piece;
                }
                SglDescriptor::TYPE_SEGMENT | SglDescriptor::TYPE_LAST_SEGMENT
                    if index + 1 == count =>
                {
                    next = Some(*descriptor);
                }
                _ => return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID),
            }
        }
        let Some(next) = next else {
            break;
        };
        segment = read_segment(bus, next)?;
    }
    if left > 0 {
        return Err(Status::DATA_SGL_LENGTH_INVALID);
    }
    Ok(pieces)
}

fn read_segment(bus: &BusView, at: SglDescriptor) -> Result<Vec<SglDescriptor>, Status> {
    let len = at.len() as usize;
    if len == 0 || !len.is_multiple_of(16) || len / 16 > SGL_DESCRIPTORS_MAX {
        return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    }
    let mut bytes = vec![0; len];
    bus.read(at.address(), &mut bytes)
        .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
    Ok(bytes
        .chunks_exact(16)
        .filter_map(|chunk| SglDescriptor::read_from_bytes(chunk).ok())
        .collect())
}
