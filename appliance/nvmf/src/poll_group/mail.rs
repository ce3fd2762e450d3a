//! What a poll group does with its messages.

use super::*;

impl PollGroup {
    pub(super) fn read_mail(&mut self) {
        self.core.shared.handle.receive(&mut self.mail);
        while let Some(message) = self.mail.pop_front() {
            self.core.busy += 1;
            self.handle_message(message);
        }
    }

    fn handle_message(&mut self, message: Message) {
        let shared = Rc::clone(&self.core.shared);
        match message {
            Message::Adopt(connection) => self.adopt(connection),
            Message::Accept(acceptor, address) => {
                if let Some(fd) = acceptor.wake_fd() {
                    shared.watch(fd);
                }
                self.acceptors.push((address, acceptor));
            }
            Message::StopAccepting(address, _part) => {
                self.acceptors
                    .retain(|(listening, _)| **listening != *address);
            }
            Message::Subsystem(uid, config, part) => {
                self.core.update_subsystem(uid, config, &part);
            }
            Message::Pauses(uid, pauses, part) => {
                let subsystem = shared.subsystems.borrow().get(&uid).cloned();
                if let Some(subsystem) = subsystem {
                    subsystem.set_pauses(pauses, part.as_ref(), &shared);
                }
            }
            Message::Reservation(uid, change, part) => {
                let subsystem = shared.subsystems.borrow().get(&uid).cloned();
                if let Some(subsystem) = subsystem {
                    // In force before anything is aborted: what is aborted does not begin anew.
                    let (of, view) = (&change.reservations, Arc::clone(&change.view));
                    subsystem.reserve(of, view, change.drains, &part);
                    self.core.preempt(uid, of.nsid, &change.aborted);
                }
            }
            Message::Close(qpair, uid, reason, part) => {
                self.core.close_qpair(qpair, uid, reason, part);
            }
            Message::Event(qpair, uid) => self.core.wake_event_waiters(qpair, uid),
            Message::Abort(qpair, uid, cid, result) => self.core.abort(qpair, uid, cid, &result),
            Message::CloseAll(reason, part) => {
                self.acceptors.clear();
                for index in 0..self.core.entries.len() {
                    if let Some(entry) = &self.core.entries[index] {
                        let (id, uid) = (entry.queue.id, entry.queue.uid);
                        self.core
                            .close_qpair(id, uid, reason, Some(Arc::clone(&part)));
                    }
                }
                for transport in self.transports.iter_mut().flatten() {
                    transport.close_all(&mut self.core, reason);
                }
            }
        }
    }

    fn adopt(&mut self, connection: NewConnection) {
        if self.core.shared.target.is_shut_down() {
            return;
        }
        let index = usize::from(connection.transport.0);
        if self.transports.len() <= index {
            self.transports.resize_with(index + 1, || None);
        }
        if self.transports[index].is_none() {
            match self.make_transport(connection.transport) {
                Ok(group) => self.transports[index] = Some(group),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        peer = connection.peer.remote,
                        "cannot take a connection"
                    );
                    add(&self.core.shared.handle.counters.refused_connections, 1);
                    return;
                }
            }
        }
        let now = self.core.shared.now.get();
        if let Some(transport) = &mut self.transports[index] {
            transport.adopt(&mut self.core, connection, now);
        }
    }

    fn make_transport(&mut self, id: TransportId) -> Result<Box<dyn TransportGroup>, TargetError> {
        self.core.iobuf(id)?;
        let shared = &self.core.shared;
        let transport = shared.target.transport(id)?;
        let context = GroupContext {
            transport: id,
            iobuf: &shared.iobuf_pool,
        };
        let group = transport
            .group(&context)
            .map_err(|source| TargetError::TransportGroup {
                transport: transport.name(),
                source,
            })?;
        if let Some(fd) = group.wake_fd() {
            shared.watch(fd);
        }
        Ok(group)
    }
}

impl Core {
    pub(super) fn close_qpair(
        &mut self,
        qpair: QpairId,
        uid: u64,
        reason: CloseReason,
        part: Option<Arc<Part>>,
    ) {
        let Some(entry) = self.entry(qpair) else {
            return;
        };
        if entry.queue.uid != uid {
            return;
        }
        entry.parts.extend(part);
        let (transport, connection) = (entry.queue.transport, entry.queue.connection);
        if !entry.queue.is_closed.get() {
            self.closing.push((transport, connection, reason));
        }
    }

    pub(super) fn wake_event_waiters(&mut self, qpair: QpairId, uid: u64) {
        let Some(entry) = self.entry(qpair) else {
            return;
        };
        if entry.queue.uid == uid {
            let waiters = entry.queue.event_waiters.borrow().clone();
            self.shared
                .ready
                .borrow_mut()
                .extend(waiters.into_iter().map(|slot| (qpair, slot)));
        }
    }

    /// Aborts a command of a queue of this group, as far as that is possible.
    pub(crate) fn abort(&mut self, qpair: QpairId, uid: u64, cid: u16, result: &AbortResult) {
        let aborted = self
            .entry(qpair)
            .filter(|entry| entry.queue.uid == uid)
            .is_some_and(|entry| {
                let queue = Rc::clone(&entry.queue);
                crate::exec::abort::abort_in_queue(&queue, nvme_spec::Cid(cid))
            });
        result.was_aborted.store(aborted, Ordering::Relaxed);
        result.is_done.store(true, Ordering::Release);
    }

    /// Aborts the I/O commands of preempted hosts on a namespace, as far as that is possible.
    fn preempt(&mut self, uid: SubsystemUid, nsid: Nsid, hosts: &[HostId]) {
        if hosts.is_empty() {
            return;
        }
        for entry in self.entries.iter().flatten() {
            let is_preempted = entry.queue.association().is_some_and(|association| {
                let subsystem = association.subsystem.as_ref();
                association.qid.0 != 0
                    && subsystem.is_some_and(|subsystem| subsystem.subsystem.uid() == uid)
                    && hosts.contains(association.controller.host_id())
            });
            if is_preempted && !entry.queue.is_closed.get() {
                crate::exec::abort::preempt_in_queue(&entry.queue, nsid);
            }
        }
    }

    fn update_subsystem(
        &mut self,
        uid: SubsystemUid,
        config: Arc<SubsystemConfig>,
        part: &Arc<Part>,
    ) {
        let subsystem = self.shared.subsystems.borrow().get(&uid).cloned();
        if let Some(subsystem) = subsystem {
            subsystem.update(config, part, &self.shared);
        }
    }
}
