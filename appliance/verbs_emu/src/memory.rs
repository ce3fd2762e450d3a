//! Registered memory and windows into it: who may reach what.

use std::sync::Arc;

use dma::BusView;
use verbs::{Access, Sge, SgeList};

use crate::world::World;

/// A registration.
#[derive(Debug)]
pub(crate) struct MrRec {
    pub(crate) pd: u32,
    pub(crate) bus: Arc<BusView>,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) access: Access,
}

/// A bound window.
#[derive(Debug)]
pub(crate) struct MwRec {
    pub(crate) pd: u32,
    pub(crate) mr_key: u32,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) is_writable: bool,
}

fn holds(start: u64, len: u64, addr: u64, wanted: u64) -> bool {
    addr >= start && addr - start <= len && wanted <= len - (addr - start)
}

impl World {
    /// The memory of a local key.
    fn local(&self, pd: u32, sge: &Sge, is_write: bool) -> Option<Arc<BusView>> {
        let mr = self.mrs.get(&sge.lkey)?;
        let is_right = mr.pd == pd
            && holds(mr.addr, mr.len, sge.addr, sge.len.into())
            && (mr.access.local_write || !is_write);
        is_right.then(|| Arc::clone(&mr.bus))
    }

    /// The memory of a remote key.
    fn remote(
        &self,
        pd: u32,
        rkey: u32,
        at: u64,
        len: u64,
        is_write: bool,
    ) -> Option<Arc<BusView>> {
        if let Some(mw) = self.mws.get(&rkey) {
            let is_right =
                mw.pd == pd && holds(mw.addr, mw.len, at, len) && (mw.is_writable || !is_write);
            let mr = self.mrs.get(&mw.mr_key).filter(|_| is_right)?;
            return Some(Arc::clone(&mr.bus));
        }
        let mr = self.mrs.get(&rkey)?;
        let may = if is_write {
            mr.access.remote_write
        } else {
            mr.access.remote_read
        };
        let is_right = mr.pd == pd && may && holds(mr.addr, mr.len, at, len);
        is_right.then(|| Arc::clone(&mr.bus))
    }

    /// Reads local memory; `None` if a key does not allow it.
    pub(crate) fn gather(&self, pd: u32, sges: &SgeList, into: &mut Vec<u8>) -> Option<()> {
        into.clear();
        for sge in sges.iter() {
            let bus = self.local(pd, sge, false)?;
            let from = into.len();
            into.resize(from + sge.len as usize, 0);
            bus.read(sge.addr, &mut into[from..]).ok()?;
        }
        Some(())
    }

    /// Writes local memory; `None` if a key does not allow it or there is too little.
    pub(crate) fn scatter(&self, pd: u32, sges: &SgeList, mut from: &[u8]) -> Option<()> {
        for sge in sges.iter() {
            let bus = self.local(pd, sge, true)?;
            let (now, rest) = from.split_at(from.len().min(sge.len as usize));
            bus.write(sge.addr, now).ok()?;
            from = rest;
        }
        from.is_empty().then_some(())
    }

    pub(crate) fn remote_read(&self, pd: u32, rkey: u32, at: u64, into: &mut [u8]) -> Option<()> {
        let bus = self.remote(pd, rkey, at, into.len() as u64, false)?;
        bus.read(at, into).ok()
    }

    pub(crate) fn remote_write(&self, pd: u32, rkey: u32, at: u64, from: &[u8]) -> Option<()> {
        let bus = self.remote(pd, rkey, at, from.len() as u64, true)?;
        bus.write(at, from).ok()
    }
}
