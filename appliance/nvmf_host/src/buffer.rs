//! The data of a command.

use std::rc::Rc;

use dma::Payload;
use dma::sg::Segment;

/// The data of a command. It stays with the queue until the command is done, and comes back with
/// its completion.
#[derive(Debug, Default)]
pub enum Buffer {
    /// None.
    #[default]
    None,
    /// Ordinary memory. The bytes that a read may fill are those that it has, not its capacity.
    Vec(Vec<u8>),
    /// A buffer of an iobuf pool, or a device's memory lent for a write.
    Payload(Payload),
    /// Data of several writes at a time. No read can use it.
    Shared(Rc<[u8]>),
    /// Data of a read that nobody wants: counted and checked, not kept. For load generators.
    Discard {
        /// Its length in bytes.
        len: u32,
    },
}

impl Buffer {
    /// Bytes that it holds or can take.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Vec(bytes) => bytes.len(),
            Self::Payload(payload) => payload.len(),
            Self::Shared(bytes) => bytes.len(),
            Self::Discard { len } => *len as usize,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes; `None` when they are lent, discarded or none.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        match self {
            Self::Vec(bytes) => Some(bytes),
            Self::Payload(Payload::Buf(buf)) => Some(buf.as_slice()),
            Self::Shared(bytes) => Some(bytes),
            Self::None | Self::Payload(_) | Self::Discard { .. } => None,
        }
    }

    /// The vector, if it is one; otherwise an empty one.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Vec(bytes) => bytes,
            _ => Vec::new(),
        }
    }

    /// Bytes that a read can fill; `None` where it cannot fill any.
    pub(crate) fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::Vec(bytes) => Some(bytes),
            Self::Payload(Payload::Buf(buf)) => buf.try_as_mut_slice(),
            _ => None,
        }
    }

    /// Whether a read can fill it.
    pub(crate) fn can_receive(&mut self) -> bool {
        matches!(self, Self::Discard { .. }) || self.as_mut_slice().is_some()
    }

    /// Makes lent memory one's own: it could change between its digest and its sending.
    pub(crate) fn own(&mut self) {
        if let Self::Payload(Payload::Lent(lent)) = self {
            let mut bytes = vec![0; lent.len()];
            lent.copy_to(&mut bytes);
            *self = Self::Vec(bytes);
        }
    }

    /// A range to send. `None` if there are no such bytes, which submitting has ruled out.
    pub(crate) fn segment(&self, from: usize, len: usize) -> Option<Segment<'_>> {
        match self {
            Self::Payload(Payload::Lent(lent)) => Some(Segment::of_lent(lent, from..from + len)),
            other => other.as_slice()?.get(from..from + len).map(Segment::new),
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Vec(bytes)
    }
}

impl From<dma::IoBuf> for Buffer {
    fn from(buf: dma::IoBuf) -> Self {
        Self::Payload(Payload::Buf(buf))
    }
}

impl From<Payload> for Buffer {
    fn from(payload: Payload) -> Self {
        Self::Payload(payload)
    }
}

impl From<Rc<[u8]>> for Buffer {
    fn from(bytes: Rc<[u8]>) -> Self {
        Self::Shared(bytes)
    }
}
