//! How many data buffers one host may hold.
//!
//! A buffer that waits for a host comes back when that host pleases: it may withhold the data
//! that it was asked for, or not read the data that it asked for. So each buffer that a command
//! takes is charged to the command's host until the command has been answered, and **a host may
//! take one more only while it holds less than half as many as are free**. One greedy host ends up
//! with a third of the buffers, two with a quarter each; whoever comes next always finds some. A
//! host alone is never told to stop before it holds a third of all, which is more than a fast one
//! needs. A command that must not wait, lest it hold up the data of others on its connection,
//! takes its buffer all the same: one at a time for a connection that has others in charge.
//!
//! Each poll group keeps its own ledger over its part of the pool, so nothing here is shared
//! between threads. A command that must wait does so in its host's queue, without a buffer, and
//! takes no place in the pool's queue. A transport bounds the time for which a host may keep what
//! it holds.
//!
//! Until a connection has said who it is, its address stands in for its host.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};

use dma::IobufPool;
use fabric_wire::Nqn;

use crate::transport::{QpairId, SlotId};

/// What a buffer counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A small buffer.
    Small,
    /// A large buffer.
    Large,
    /// A small buffer of an admin or fabrics command: these have a reserve of their own.
    Reserve,
}

const CLASSES: usize = 3;

/// Buffers that a class is taken to have at least, however small the pool's part is.
const TOTAL_MIN: u32 = 2;

/// Who is charged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// An address from which a connection came that has not sent Connect.
    Address(String),
    /// A host.
    Host(Nqn),
}

impl Holder {
    /// The holder of a connection from `remote`, as `192.0.2.1:4420`: all ports are one.
    pub(crate) fn of_remote(remote: &str) -> Self {
        let address = remote.rsplit_once(':').map_or(remote, |(host, _)| host);
        Self::Address(address.into())
    }
}

/// A poll group's account of the buffers that hosts hold.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    totals: [Cell<u32>; CLASSES],
    held: [Cell<u32>; CLASSES],
    /// Bytes of a small buffer.
    small_bufsize: Cell<u32>,
    shares: RefCell<HashMap<Holder, Weak<Share>>>,
    /// Shares that commands wait for, in the order of their turns.
    blocked: RefCell<VecDeque<Rc<Share>>>,
    /// Whether `blocked` has any: asked whenever a charge is given back.
    is_blocked: Cell<bool>,
    /// Something was given back while commands waited.
    has_news: Cell<bool>,
}

/// What one host holds of a poll group's buffers.
#[derive(Debug)]
pub(crate) struct Share {
    holder: Holder,
    ledger: Rc<Ledger>,
    held: [Cell<u32>; CLASSES],
    waiting: RefCell<VecDeque<(Class, QpairId, SlotId)>>,
    is_listed: Cell<bool>,
}

/// One buffer's charge; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    share: Rc<Share>,
    class: Class,
}

impl Ledger {
    /// Takes the pool's size anew: a part of it for each of `groups` poll groups.
    pub(crate) fn measure(&self, pool: &IobufPool, groups: usize) {
        let pools = pool.plan_pools();
        self.small_bufsize.set(pool.options().small_bufsize);
        let groups = u32::try_from(groups.max(1)).unwrap_or(u32::MAX);
        let counts = [
            pools.small_pool_count.saturating_sub(pools.reserve_small),
            pools.large_pool_count,
            pools.reserve_small,
        ];
        for (total, count) in self.totals.iter().zip(counts) {
            total.set((count / groups).max(TOTAL_MIN));
        }
    }

    /// The share of a holder; there while a queue pair or a charge is.
    pub(crate) fn share(self: &Rc<Self>, holder: Holder) -> Rc<Share> {
        let known = self.shares.borrow().get(&holder).and_then(Weak::upgrade);
        if let Some(share) = known {
            return share;
        }
        let share = Rc::new(Share {
            holder: holder.clone(),
            ledger: Rc::clone(self),
            held: Default::default(),
            waiting: RefCell::default(),
            is_listed: Cell::new(false),
        });
        self.shares
            .borrow_mut()
            .insert(holder, Rc::downgrade(&share));
        share
    }

    /// Whether [`Ledger::next`] may have something.
    pub(crate) fn has_news(&self) -> bool {
        self.has_news.get()
    }

    /// The next command that may go on, with its charge. Hosts take turns. `None` once nobody may.
    pub(crate) fn next(&self) -> Option<(QpairId, SlotId, Charge)> {
        if !self.has_news.get() {
            return None;
        }
        let count = self.blocked.borrow().len();
        for _ in 0..count {
            let share = self.blocked.borrow_mut().pop_front()?;
            let next = share.next();
            if share.waiting.borrow().is_empty() {
                share.is_listed.set(false);
            } else {
                self.blocked.borrow_mut().push_back(share);
            }
            if next.is_some() {
                return next;
            }
        }
        self.is_blocked.set(!self.blocked.borrow().is_empty());
        self.has_news.set(false);
        None
    }
}

impl Share {
    /// What a buffer of `len` bytes counts as: `small`, unless it must be a large one.
    #[inline]
    pub(crate) fn class(&self, len: u32, small: Class) -> Class {
        if len > self.ledger.small_bufsize.get() {
            Class::Large
        } else {
            small
        }
    }

    #[inline]
    fn may_take(&self, class: Class) -> bool {
        let index = class as usize;
        let (total, held) = (&self.ledger.totals[index], &self.ledger.held[index]);
        2 * self.held[index].get() < total.get().saturating_sub(held.get())
    }

    /// Takes a charge for a buffer that the caller cannot wait for, whatever is held.
    #[inline]
    pub(crate) fn must_take(self: &Rc<Self>, class: Class) -> Charge {
        let index = class as usize;
        self.held[index].set(self.held[index].get() + 1);
        let held = &self.ledger.held[index];
        held.set(held.get() + 1);
        Charge {
            share: Rc::clone(self),
            class,
        }
    }

    #[inline]
    fn is_waited_for(&self, class: Class) -> bool {
        // Most of the time the share is not listed: nobody waits.
        self.is_listed.get() && self.waiting.borrow().iter().any(|(of, ..)| *of == class)
    }

    /// Takes a charge, if that may be and no command of the host waits for the same.
    #[inline]
    pub(crate) fn take(self: &Rc<Self>, class: Class) -> Option<Charge> {
        if !self.may_take(class) || self.is_waited_for(class) {
            return None;
        }
        Some(self.must_take(class))
    }

    /// Has a command wait for its charge, which [`Ledger::next`] gives it.
    pub(crate) fn wait(self: &Rc<Self>, class: Class, qpair: QpairId, slot: SlotId) {
        self.waiting.borrow_mut().push_back((class, qpair, slot));
        if !self.is_listed.replace(true) {
            self.ledger.blocked.borrow_mut().push_back(Rc::clone(self));
            self.ledger.is_blocked.set(true);
        }
    }

    /// A command waits no longer.
    pub(crate) fn forget(&self, qpair: QpairId, slot: SlotId) {
        let before = self.waiting.borrow().len();
        self.waiting
            .borrow_mut()
            .retain(|(_, q, s)| (*q, *s) != (qpair, slot));
        if self.waiting.borrow().len() < before {
            // The one behind it may be of a class that has room.
            self.ledger.has_news.set(true);
        }
    }

    /// The first of each class has its turn: one that waits for a large buffer holds up no
    /// command that wants a small one.
    fn next(self: &Rc<Self>) -> Option<(QpairId, SlotId, Charge)> {
        let mut waiting = self.waiting.borrow_mut();
        let index = waiting
            .iter()
            .position(|(class, ..)| self.may_take(*class))?;
        let (class, qpair, slot) = waiting.remove(index)?;
        drop(waiting);
        Some((qpair, slot, self.must_take(class)))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.ledger.shares.borrow_mut().remove(&self.holder);
    }
}

impl Drop for Charge {
    #[inline]
    fn drop(&mut self) {
        let index = self.class as usize;
        let ledger = &self.share.ledger;
        self.share.held[index].set(self.share.held[index].get() - 1);
        ledger.held[index].set(ledger.held[index].get() - 1);
        if ledger.is_blocked.get() {
            ledger.has_news.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(total: u32) -> Rc<Ledger> {
        let ledger = Rc::<Ledger>::default();
        ledger.totals.iter().for_each(|cell| cell.set(total));
        ledger
    }

    fn hog(ledger: &Rc<Ledger>, name: &str) -> (Rc<Share>, Vec<Charge>) {
        let share = ledger.share(Holder::of_remote(name));
        let charges = std::iter::from_fn(|| share.take(Class::Large)).collect();
        (share, charges)
    }

    #[test]
    fn greedy_hosts_always_leave_some_for_the_next() {
        let ledger = ledger(64);
        let hogs: Vec<_> = ["a:1", "b:1", "c:1"]
            .map(|name| hog(&ledger, name))
            .into_iter()
            .collect();
        let counts: Vec<_> = hogs.iter().map(|(_, charges)| charges.len()).collect();
        assert_eq!(counts, [22, 14, 10]);
        let late = ledger.share(Holder::of_remote("d:1"));
        assert!(late.take(Class::Large).is_some());
    }

    #[test]
    fn all_connections_of_a_holder_are_one_share() {
        let ledger = ledger(8);
        let (_first, held) = hog(&ledger, "[2001:db8::1]:5");
        let (_second, none) = hog(&ledger, "[2001:db8::1]:6");
        assert_eq!((held.len(), none.len()), (3, 0));
    }

    #[test]
    fn who_waits_goes_on_in_turn_and_classes_do_not_hold_each_other_up() {
        let ledger = ledger(4);
        let (share, mut held) = hog(&ledger, "a:1");
        assert_eq!(held.len(), 2);
        share.wait(Class::Large, QpairId(1), SlotId(0));
        assert!(ledger.next().is_none());
        let small: Vec<_> = std::iter::from_fn(|| share.take(Class::Small)).collect();
        assert_eq!(small.len(), 2);
        share.wait(Class::Large, QpairId(1), SlotId(1));
        share.wait(Class::Small, QpairId(1), SlotId(2));
        drop(small);
        assert!(ledger.has_news());
        let (_, slot, charge) = ledger.next().unwrap();
        assert_eq!(slot, SlotId(2), "nobody before it wants a small one");
        drop(charge);
        assert!(ledger.next().is_none());
        held.pop();
        assert!(share.take(Class::Large).is_none(), "others wait already");
        let (_, slot, charge) = ledger.next().unwrap();
        assert_eq!(slot, SlotId(0));
        held.push(charge);
        assert!(ledger.next().is_none());
        share.forget(QpairId(1), SlotId(1));
        assert!(ledger.next().is_none());
        assert!(ledger.blocked.borrow().is_empty());
        drop((share, held));
        assert!(ledger.shares.borrow().is_empty());
        assert!(ledger.held.iter().all(|held| held.get() == 0));
    }
}
