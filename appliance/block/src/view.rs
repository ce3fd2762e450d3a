//! Parts of a payload, handed to a device one by one and put together again.

use dma::Payload;

/// A payload that is given out in parts, front to back.
///
/// A buffer with a single view is cut with `split_to`, so each part can be written; at the end it is
/// restored. A buffer with other views is shared, so parts can only be read.
#[derive(Debug)]
pub(crate) struct Parts {
    payload: Payload,
    /// Address and length of the whole, for putting it together.
    start: usize,
    len: usize,
    taken: usize,
    cut: bool,
}

impl Parts {
    pub(crate) fn new(payload: Payload) -> Self {
        let (start, cut) = match &payload {
            Payload::Buf(buf) => (buf.addr(), buf.is_sole()),
            _ => (0, false),
        };
        Self {
            len: payload.len(),
            taken: 0,
            start,
            cut,
            payload,
        }
    }

    /// Whether parts can be read into.
    pub(crate) fn writable(&self) -> bool {
        self.cut || matches!(self.payload, Payload::None)
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Payload {
        let from = self.taken;
        self.taken += len;
        match &mut self.payload {
            Payload::None => Payload::None,
            Payload::Buf(buf) if self.cut => Payload::Buf(buf.split_to(len)),
            Payload::Buf(buf) => Payload::Buf(buf.share(from..from + len)),
            Payload::Lent(lent) => Payload::Lent(lent.slice(from, len)),
        }
    }

    /// The whole payload again. All parts must have been dropped.
    pub(crate) fn finish(self) -> Payload {
        let Payload::Buf(mut buf) = self.payload else {
            return self.payload;
        };
        if self.cut {
            let restored = buf.restore(0);
            assert!(restored, "a part of the payload is still in use");
            let offset = self.start - buf.addr();
            buf.set_len(offset + self.len);
            if offset > 0 {
                drop(buf.split_to(offset));
            }
        }
        Payload::Buf(buf)
    }
}
