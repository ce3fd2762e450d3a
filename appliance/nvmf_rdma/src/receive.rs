//! Receives: where capsules arrive.

use dma::{IoBuf, IobufChannel, Payload};
use fabric_wire::rdma::CAPSULE_LEN;
use nvme_spec::{SglDescriptor, Sqe};
use verbs::{RecvWr, SgeList};
use zerocopy::FromBytes;

use crate::memory::{MemorySlot, PoolKeys, SlotError, SlotMemory};

/// Descriptors behind an entry are looked for in so many bytes.
const SEGMENT_MAX: usize = 512;
/// In its place where only the length of in-capsule data is looked at.
static NO_BYTES: [u8; 8192] = [0; 8192];

/// Where the data behind an entry lands.
#[derive(Debug)]
enum Data {
    /// There is none.
    None,
    /// In a buffer of the pool, which can change places with a command's.
    Buf(IoBuf),
    /// In memory beside the pool, from where it is copied.
    Slot(MemorySlot),
}

/// A capsule's place.
#[derive(Debug)]
struct Receive {
    capsule: MemorySlot,
    data: Data,
    /// Bytes that have come behind the entry.
    data_len: u32,
}

/// What receives need of their device.
#[derive(Debug)]
pub(crate) struct ReceiveMemory {
    pub(crate) capsules: SlotMemory,
    pub(crate) data: SlotMemory,
    pub(crate) keys: PoolKeys,
    /// Bytes of data behind an entry.
    pub(crate) data_size: u32,
}

/// The receives of a queue, shared or not.
#[derive(Debug, Default)]
pub(crate) struct ReceiveSet {
    receives: Vec<Receive>,
    /// Receives that the device has.
    pub(crate) posted: usize,
    /// Receives to be posted at the end of the poll.
    to_post: Vec<u32>,
}

impl ReceiveSet {
    /// Makes `count` of them, none of them posted. At most `buffers` have a buffer of the pool.
    pub(crate) fn new(
        count: u32,
        memory: &mut ReceiveMemory,
        iobuf: &IobufChannel,
        mut buffers: u64,
    ) -> Result<Self, SlotError> {
        let mut set = Self {
            receives: Vec::with_capacity(count as usize),
            posted: 0,
            to_post: Vec::with_capacity(count as usize),
        };
        for index in 0..count {
            let made = Self::make(memory, iobuf, &mut buffers);
            match made {
                Ok(receive) => set.receives.push(receive),
                Err(error) => {
                    set.release(memory);
                    return Err(error);
                }
            }
            set.to_post.push(index);
        }
        Ok(set)
    }

    fn make(
        memory: &mut ReceiveMemory,
        iobuf: &IobufChannel,
        buffers: &mut u64,
    ) -> Result<Receive, SlotError> {
        let size = memory.data_size;
        let buf = if size > 0 && *buffers > 0 {
            *buffers -= 1;
            iobuf.get(size as usize)
        } else {
            None
        };
        let capsule = memory.capsules.take()?;
        let data = match buf {
            Some(buf) => Data::Buf(buf),
            None if size == 0 => Data::None,
            None => match memory.data.take() {
                Ok(slot) => Data::Slot(slot),
                Err(error) => {
                    memory.capsules.give_back(capsule);
                    return Err(error);
                }
            },
        };
        Ok(Receive {
            capsule,
            data,
            data_len: 0,
        })
    }

    /// Gives the memory back. The device has none of it any more.
    pub(crate) fn release(&mut self, memory: &mut ReceiveMemory) {
        for receive in self.receives.drain(..) {
            memory.capsules.give_back(receive.capsule);
            if let Data::Slot(slot) = receive.data {
                memory.data.give_back(slot);
            }
        }
    }

    /// A capsule of `byte_len` bytes has come; `false` if it is too short to be one.
    pub(crate) fn arrived(&mut self, index: u32, byte_len: u32) -> bool {
        let data_len = byte_len.checked_sub(CAPSULE_LEN as u32);
        self.receives[index as usize].data_len = data_len.unwrap_or(0);
        data_len.is_some()
    }

    pub(crate) fn data_len(&self, index: u32) -> u32 {
        self.receives[index as usize].data_len
    }

    /// The entry of a capsule.
    #[inline]
    pub(crate) fn sqe(&self, index: u32, memory: &ReceiveMemory) -> Sqe {
        let mut bytes = [0; CAPSULE_LEN];
        memory
            .capsules
            .read(self.receives[index as usize].capsule, 0, &mut bytes);
        Sqe::read_from_bytes(&bytes).expect("an entry has 64 bytes")
    }

    /// Calls `f` with what came behind the entry, as far as the entry's SGL needs it: where that
    /// names no descriptors there, only the length is right.
    pub(crate) fn with_descriptors<R>(
        &self,
        index: u32,
        sqe: &Sqe,
        memory: &ReceiveMemory,
        f: impl FnOnce(&[u8]) -> R,
    ) -> R {
        let receive = &self.receives[index as usize];
        let len = receive.data_len as usize;
        if sqe.sgl().type_() != SglDescriptor::TYPE_LAST_SEGMENT {
            return f(&NO_BYTES[..len.min(NO_BYTES.len())]);
        }
        let mut bytes = [0; SEGMENT_MAX];
        let bytes = &mut bytes[..len.min(SEGMENT_MAX)];
        match &receive.data {
            Data::None => {}
            Data::Buf(buf) => bytes.copy_from_slice(&buf.as_slice()[..bytes.len()]),
            Data::Slot(slot) => memory.data.read(*slot, 0, bytes),
        }
        f(bytes)
    }

    /// Gives a command its in-capsule data: in the buffer that it came in, if `may_swap`, else
    /// copied into the command's. The bytes that were copied; `None` if there is no room for them.
    pub(crate) fn take_data(
        &mut self,
        index: u32,
        payload: &mut Payload,
        len: u32,
        may_swap: bool,
        memory: &ReceiveMemory,
    ) -> Option<u32> {
        let receive = &mut self.receives[index as usize];
        let buf = payload.as_buf_mut()?;
        let size = memory.data_size as usize;
        let wanted = len as usize;
        if let Data::Buf(own) = &mut receive.data {
            // The command's buffer is of the same size if it can be no longer than this one.
            let is_alike = buf.is_sole() && own.is_sole() && buf.capacity() == own.capacity();
            if may_swap && is_alike && buf.capacity() >= size {
                own.set_len(wanted);
                buf.set_len(size);
                std::mem::swap(own, buf);
                return Some(0);
            }
            let from = own.as_slice().get(..wanted)?;
            let to = buf.try_as_mut_slice()?.get_mut(..wanted)?;
            to.copy_from_slice(from);
            return Some(len);
        }
        let to = buf.try_as_mut_slice()?.get_mut(..wanted)?;
        match &receive.data {
            Data::Slot(slot) => memory.data.read(*slot, 0, to),
            _ if wanted > 0 => return None,
            _ => {}
        }
        Some(len)
    }

    /// The capsule has been read: its place is posted again at the end of the poll.
    #[inline]
    pub(crate) fn repost(&mut self, index: u32) {
        self.to_post.push(index);
    }

    pub(crate) fn has_to_post(&self) -> bool {
        !self.to_post.is_empty()
    }

    /// What is to be posted. It is, from now on.
    pub(crate) fn drain(
        &mut self,
        memory: &mut ReceiveMemory,
        wr_id: impl Fn(u32) -> u64,
        requests: &mut Vec<RecvWr>,
    ) {
        for index in self.to_post.drain(..) {
            let receive = &self.receives[index as usize];
            let capsule = memory.capsules.sge(receive.capsule, CAPSULE_LEN as u32);
            let size = memory.data_size;
            let data = match &receive.data {
                Data::None => None,
                Data::Buf(buf) => memory.keys.sge(buf, 0, size),
                Data::Slot(slot) => Some(memory.data.sge(*slot, size)),
            };
            let sges = match data {
                Some(data) => SgeList::two(capsule, data),
                None => SgeList::one(capsule),
            };
            requests.push(RecvWr {
                wr_id: wr_id(index),
                sges,
            });
        }
        self.posted += requests.len();
    }
}
