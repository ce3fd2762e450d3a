//! The half of a thread that stays on its reactor's OS thread.

use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::event_loop::{Core, TimerToken};
use crate::poller::{PollFn, PollerShared, PollerSlot};
use crate::reactor::lock;
use crate::stats::{PollerState, ThreadState};
use crate::thread::{PollContext, ThreadContext, ThreadShared, WakeFd};
use crate::{Message, PollerId, PollerSpec, ReactorError, Thread};

/// Pollers that one thread can have.
pub const MAX_POLLERS_PER_THREAD: usize = 4096;

/// Messages that a thread runs before its pollers get their turn.
const MESSAGES_PER_TURN: usize = 64;

pub(crate) struct LocalThread {
    /// Position in the event loop's table.
    index: usize,
    pub(crate) shared: Arc<ThreadShared>,
    pub(crate) handle: Thread,
    slots: Vec<Option<PollerSlot>>,
    free_slots: Vec<usize>,
    /// Slots of unregistered pollers; free once no list names them.
    dead_slots: Vec<usize>,
    active: Vec<usize>,
    /// `active` or `dead_slots` want tidying.
    untidy: bool,
    serial: u32,
    wake_fds: Vec<Option<(u32, OwnedFd)>>,
    pub(crate) exiting: bool,
}

impl LocalThread {
    pub(crate) fn new(index: usize, shared: Arc<ThreadShared>) -> LocalThread {
        LocalThread {
            index,
            handle: Thread {
                shared: Arc::clone(&shared),
            },
            shared,
            slots: Vec::new(),
            free_slots: Vec::new(),
            dead_slots: Vec::new(),
            active: Vec::new(),
            untidy: false,
            serial: 0,
            wake_fds: Vec::new(),
            exiting: false,
        }
    }

    pub(crate) fn run_message(&mut self, core: &mut Core, message: Message) {
        core.running_poller = None;
        message(&mut ThreadContext { core, thread: self });
    }

    /// One turn: messages, then active pollers. Whether there was work.
    #[inline]
    pub(crate) fn turn(&mut self, core: &mut Core) -> bool {
        let mut busy = false;
        if !self.shared.mailbox.is_empty() {
            busy = self.run_messages(core);
        }
        let mut position = 0;
        // The list can grow meanwhile: what is registered in a turn runs in it.
        while let Some(&slot) = self.active.get(position) {
            if self.exiting {
                break;
            }
            busy |= self.run_poller(core, slot);
            position += 1;
        }
        self.tidy();
        busy
    }

    fn run_messages(&mut self, core: &mut Core) -> bool {
        let mut count = 0;
        while count < MESSAGES_PER_TURN && !self.exiting {
            let Some(message) = self.shared.mailbox.pop() else {
                break;
            };
            self.run_message(core, message);
            self.shared.messages.add(1);
            count += 1;
        }
        count > 0
    }

    /// Runs a timed poller whose time has come. Whether there was work.
    pub(crate) fn run_timed(&mut self, core: &mut Core, poller: PollerId) -> bool {
        let Some(slot) = self.find(poller) else {
            return false;
        };
        slot.timer = None;
        if self.exiting {
            return false;
        }
        let busy = self.run_poller(core, poller.slot());
        self.tidy();
        busy
    }

    #[inline]
    fn run_poller(&mut self, core: &mut Core, index: usize) -> bool {
        let Some(Some(slot)) = self.slots.get_mut(index) else {
            return false;
        };
        if slot.shared.state() != PollerState::Waiting {
            return false;
        }
        let Some(mut poll) = slot.poll.take() else {
            return false;
        };
        let poller = slot.shared.id;
        core.running_poller = Some(index);
        let mut context = PollContext {
            context: ThreadContext { core, thread: self },
            poller,
            wake_at_ns: u64::MAX,
        };
        let outcome = poll(&mut context);
        let wake_at_ns = context.wake_at_ns;
        let Some(Some(slot)) = self.slots.get_mut(index) else {
            return false;
        };
        let busy = slot.shared.count(outcome);
        slot.wake_at_ns = wake_at_ns;
        if slot.shared.state() == PollerState::Unregistered {
            drop(ManuallyDrop::into_inner(poll));
            return busy;
        }
        slot.poll = Some(poll);
        if slot.shared.is_timed() {
            self.arm(core, index);
        }
        busy
    }

    /// Sets the timer of a timed poller that waits and has none.
    fn arm(&mut self, core: &mut Core, index: usize) {
        let Some(Some(slot)) = self.slots.get_mut(index) else {
            return;
        };
        let Some(period_ns) = slot.shared.period_ns() else {
            return;
        };
        if slot.timer.is_some() || slot.shared.state() != PollerState::Waiting {
            return;
        }
        let at_ns = core.now_ns.saturating_add(period_ns).min(slot.wake_at_ns);
        let token = TimerToken {
            thread: self.index,
            id: self.shared.id,
            poller: slot.shared.id,
        };
        slot.timer = Some(core.wheel.insert(at_ns, token));
    }

    pub(crate) fn register(
        &mut self,
        core: &mut Core,
        spec: PollerSpec,
        poll: PollFn,
    ) -> Result<PollerId, ReactorError> {
        let index = match self.free_slots.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_POLLERS_PER_THREAD => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => {
                return Err(ReactorError::TooManyPollers {
                    poller: spec.name,
                    thread: self.shared.name.clone(),
                    limit: MAX_POLLERS_PER_THREAD,
                });
            }
        };
        self.serial = self.serial.wrapping_add(1);
        let id = PollerId::new(index, self.serial);
        let shared = Arc::new(PollerShared::new(id, spec));
        lock(&self.shared.pollers).push(Arc::clone(&shared));
        self.slots[index] = Some(PollerSlot {
            shared,
            poll: Some(ManuallyDrop::new(poll)),
            listed: false,
            timer: None,
            wake_at_ns: u64::MAX,
        });
        self.start(core, index);
        Ok(id)
    }

    /// Lists an active poller that waits, or arms a timed one.
    fn start(&mut self, core: &mut Core, index: usize) {
        let Some(Some(slot)) = self.slots.get_mut(index) else {
            return;
        };
        if slot.shared.state() != PollerState::Waiting {
            return;
        }
        if slot.shared.is_timed() {
            // While it runs it is armed when it returns.
            if slot.poll.is_some() {
                slot.wake_at_ns = u64::MAX;
                self.arm(core, index);
            }
            return;
        }
        if !slot.listed {
            slot.listed = true;
            self.active.push(index);
        }
        // It has to run before the reactor may sleep.
        core.keep_awake = true;
    }

    pub(crate) fn pause(&mut self, core: &mut Core, poller: PollerId) -> bool {
        let Some(slot) = self.find(poller) else {
            return false;
        };
        slot.shared.set_state(PollerState::Paused);
        if let Some(timer) = slot.timer.take() {
            core.wheel.cancel(timer);
        }
        self.untidy = true;
        true
    }

    pub(crate) fn resume(&mut self, core: &mut Core, poller: PollerId) -> bool {
        let Some(slot) = self.find(poller) else {
            return false;
        };
        if slot.shared.state() == PollerState::Paused {
            slot.shared.set_state(PollerState::Waiting);
            self.start(core, poller.slot());
        }
        true
    }

    pub(crate) fn unregister(&mut self, core: &mut Core, poller: PollerId) -> bool {
        let Some(slot) = self.find(poller) else {
            return false;
        };
        slot.shared.set_state(PollerState::Unregistered);
        if let Some(timer) = slot.timer.take() {
            core.wheel.cancel(timer);
        }
        let poll = slot.poll.take();
        lock(&self.shared.pollers).retain(|other| other.id != poller);
        self.dead_slots.push(poller.slot());
        self.untidy = true;
        drop(poll.map(ManuallyDrop::into_inner));
        true
    }

    fn find(&mut self, poller: PollerId) -> Option<&mut PollerSlot> {
        self.slots.get_mut(poller.slot())?.as_mut().filter(|slot| {
            slot.shared.id == poller && slot.shared.state() != PollerState::Unregistered
        })
    }

    #[inline]
    fn tidy(&mut self) {
        if self.untidy {
            self.tidy_lists();
        }
    }

    #[cold]
    fn tidy_lists(&mut self) {
        self.untidy = false;
        let slots = &mut self.slots;
        self.active.retain(|&index| match &mut slots[index] {
            Some(slot) => {
                slot.listed = slot.shared.state() == PollerState::Waiting;
                slot.listed
            }
            None => false,
        });
        for index in self.dead_slots.drain(..) {
            self.slots[index] = None;
            self.free_slots.push(index);
        }
    }

    /// The earliest time that an active poller asked for.
    pub(crate) fn earliest_wake_ns(&self) -> u64 {
        let asked = self
            .active
            .iter()
            .filter_map(|&index| self.slots[index].as_ref());
        asked.map(|slot| slot.wake_at_ns).min().unwrap_or(u64::MAX)
    }

    pub(crate) fn poller_name(&self, index: usize) -> Option<String> {
        let slot = self.slots.get(index)?.as_ref()?;
        Some(slot.shared.name().to_owned())
    }

    pub(crate) fn free_wake_fd_slot(&self, limit: usize) -> Option<usize> {
        let free = self.wake_fds.iter().position(Option::is_none);
        free.or(Some(self.wake_fds.len()).filter(|len| *len < limit))
    }

    pub(crate) fn set_wake_fd(&mut self, slot: usize, fd: OwnedFd) -> WakeFd {
        self.serial = self.serial.wrapping_add(1);
        if slot == self.wake_fds.len() {
            self.wake_fds.push(None);
        }
        self.wake_fds[slot] = Some((self.serial, fd));
        WakeFd {
            slot,
            serial: self.serial,
        }
    }

    pub(crate) fn unregister_wake_fd(&mut self, core: &mut Core, wake_fd: WakeFd) -> bool {
        let Some(entry) = self.wake_fds.get_mut(wake_fd.slot) else {
            return false;
        };
        match entry.take_if(|(serial, _)| *serial == wake_fd.serial) {
            Some((_, fd)) => {
                core.forget_fd(&fd);
                true
            }
            None => false,
        }
    }

    /// Ends the thread but for its mailbox. After a failure its pollers' state is leaked: see the
    /// crate's documentation.
    pub(crate) fn end(mut self, core: &mut Core, state: ThreadState) {
        for (_, fd) in self.wake_fds.drain(..).flatten() {
            core.forget_fd(&fd);
        }
        let mut pollers = Vec::new();
        for slot in self.slots.drain(..).flatten() {
            slot.shared.set_state(PollerState::Unregistered);
            if let Some(timer) = slot.timer {
                core.wheel.cancel(timer);
            }
            pollers.extend(slot.poll.map(|poll| (slot.shared.id.serial(), poll)));
        }
        lock(&self.shared.pollers).clear();
        lock(&self.shared.reactor.shared.threads).retain(|other| other.id != self.shared.id);
        if state != ThreadState::Failed {
            pollers.sort_unstable_by_key(|(serial, _)| *serial);
            for (_, poll) in pollers {
                drop(ManuallyDrop::into_inner(poll));
            }
        }
    }
}
