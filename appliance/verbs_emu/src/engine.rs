//! What a network card does with work requests, one step at a time.

use verbs::{AsyncEventKind, SendOp, SendWr, WcOpcode, WcStatus, WorkCompletion};

use crate::memory::MwRec;
use crate::world::{QpState, Stage, Work, World};

/// A message for which there is no receive is tried so often for each retry that was agreed on.
const RNR_TRIES: u32 = 8;

/// What a queue pair can do next.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// Carries out the send work request at this index.
    Execute(usize),
    /// Fetches the data of the read at this index.
    FetchData(usize),
    /// Completes the first send work request.
    Complete,
    FlushReceive,
    TellLastWqe,
}

impl World {
    /// One step; `false` if nothing can happen.
    pub(crate) fn step(&mut self) -> bool {
        let channels: Vec<u32> = self
            .cm_channels
            .iter()
            .filter(|(_, channel)| !channel.pending.is_empty())
            .map(|(number, _)| *number)
            .collect();
        if !channels.is_empty() {
            let is_turn = self.is_eager || self.random.below(2) == 0;
            if is_turn || self.active.is_empty() {
                let channel = channels[self.random.below(channels.len())];
                self.deliver_cm(channel);
                return true;
            }
        }
        while !self.active.is_empty() {
            let at = if self.is_eager {
                0
            } else {
                self.random.below(self.active.len())
            };
            let qp_num = self.active[at];
            if self.step_qp(qp_num) {
                return true;
            }
            self.active.swap_remove(at);
        }
        if let Some(channel) = channels.first() {
            self.deliver_cm(*channel);
            return true;
        }
        false
    }

    fn deliver_cm(&mut self, channel: u32) {
        let Some(channel) = self.cm_channels.get_mut(&channel) else {
            return;
        };
        if let Some(event) = channel.pending.pop_front() {
            channel.arrived.push_back(event);
            channel.signal.set();
        }
    }

    fn step_qp(&mut self, qp_num: u32) -> bool {
        let mut actions = [Action::Complete; 4];
        let mut count = 0;
        let mut add = |action| {
            actions[count] = action;
            count += 1;
        };
        let Some(qp) = self.qps.get(&qp_num) else {
            return false;
        };
        let device = &self.devices[qp.device];
        let is_held = device.is_blocked && !device.is_removed;
        if qp.state == QpState::Error {
            if !qp.sq.is_empty() {
                add(Action::Complete);
            }
            if qp.srq.is_none() && !qp.rq.is_empty() {
                add(Action::FlushReceive);
            }
            if qp.srq.is_some() && qp.sq.is_empty() && !qp.has_told_last_wqe {
                add(Action::TellLastWqe);
            }
        } else if qp.state == QpState::Rts && !is_held {
            if let Some(first) = qp.sq.front()
                && matches!(first.stage, Stage::Ended(_))
            {
                add(Action::Complete);
            }
            let is_reading = |posted: &crate::world::Posted| posted.stage == Stage::Reading;
            let reads = qp.sq.iter().filter(|posted| is_reading(posted)).count();
            if let Some(at) = qp.sq.iter().position(is_reading) {
                add(Action::FetchData(at));
            }
            let next = qp
                .sq
                .iter()
                .position(|posted| posted.stage == Stage::Posted);
            if let Some(at) = next {
                let may = match &qp.sq[at].work {
                    Work::Send(wr) => {
                        let is_read = matches!(wr.op, SendOp::Read { .. });
                        !(wr.is_fenced && reads > 0 || is_read && reads >= qp.max_reads)
                    }
                    Work::Bind { .. } => true,
                };
                if may && self.can_try(qp_num, at) {
                    add(Action::Execute(at));
                }
            }
        }
        if count == 0 {
            return false;
        }
        let chosen = if self.is_eager {
            0
        } else {
            self.random.below(count)
        };
        match actions[chosen] {
            Action::Execute(at) => self.execute(qp_num, at),
            Action::FetchData(at) => self.fetch(qp_num, at),
            Action::Complete => self.complete_send(qp_num),
            Action::FlushReceive => self.flush_receive(qp_num),
            Action::TellLastWqe => {
                if let Some(qp) = self.qps.get_mut(&qp_num) {
                    qp.has_told_last_wqe = true;
                }
                self.async_event_of_qp(qp_num, AsyncEventKind::QpLastWqeReached { qp_num });
            }
        }
        true
    }

    /// Whether trying can change anything: a message without a receive waits for ever where that
    /// was agreed on.
    fn can_try(&self, qp_num: u32, at: usize) -> bool {
        let qp = &self.qps[&qp_num];
        let Work::Send(wr) = &qp.sq[at].work else {
            return true;
        };
        let is_send = matches!(wr.op, SendOp::Send | SendOp::SendWithInv { .. });
        if !is_send || qp.rnr_retry_count < 7 || !self.is_reachable(qp_num) {
            return true;
        }
        qp.peer.is_some_and(|peer| self.has_receive(peer))
    }

    fn has_receive(&self, qp_num: u32) -> bool {
        let qp = &self.qps[&qp_num];
        match qp.srq {
            None => !qp.rq.is_empty(),
            Some(srq) => self
                .srqs
                .get(&srq)
                .is_some_and(|srq| !srq.receives.is_empty()),
        }
    }

    /// Whether the peer of a queue pair answers.
    fn is_reachable(&self, qp_num: u32) -> bool {
        let qp = &self.qps[&qp_num];
        let Some(peer) = qp.peer.and_then(|peer| self.qps.get(&peer)) else {
            return false;
        };
        let (near, far) = (&self.devices[qp.device], &self.devices[peer.device]);
        peer.state == QpState::Rts && near.is_port_up && far.is_port_up
    }

    fn end(&mut self, qp_num: u32, at: usize, status: WcStatus) {
        let Some(qp) = self.qps.get_mut(&qp_num) else {
            return;
        };
        qp.sq[at].stage = Stage::Ended(status);
        if status != WcStatus::Success {
            qp.state = QpState::Error;
        }
    }

    fn execute(&mut self, qp_num: u32, at: usize) {
        let work = self.qps[&qp_num].sq[at].work;
        let wr = match work {
            Work::Send(wr) => wr,
            Work::Bind {
                rkey,
                mr_key,
                addr,
                len,
                is_writable,
                ..
            } => {
                let pd = self.qps[&qp_num].pd;
                self.mws.insert(
                    rkey,
                    MwRec {
                        pd,
                        mr_key,
                        addr,
                        len,
                        is_writable,
                    },
                );
                return self.end(qp_num, at, WcStatus::Success);
            }
        };
        if let SendOp::LocalInv { rkey } = wr.op {
            let status = match self.mws.remove(&rkey) {
                Some(_) => WcStatus::Success,
                None => WcStatus::LocalQpOperation,
            };
            return self.end(qp_num, at, status);
        }
        if !self.is_reachable(qp_num) {
            return self.end(qp_num, at, WcStatus::RetryExceeded);
        }
        match wr.op {
            SendOp::Read { .. } => {
                self.stats.reads += 1;
                let qp = self.qps.get_mut(&qp_num).expect("it was there above");
                qp.sq[at].stage = Stage::Reading;
            }
            SendOp::Write { remote_addr, rkey } => {
                let status = self.write(qp_num, &wr, remote_addr, rkey);
                self.end(qp_num, at, status);
            }
            _ => self.send(qp_num, at, &wr),
        }
    }

    fn write(&mut self, qp_num: u32, wr: &SendWr, remote_addr: u64, rkey: u32) -> WcStatus {
        let (pd, peer) = (self.qps[&qp_num].pd, self.qps[&qp_num].peer);
        let mut data = std::mem::take(&mut self.scratch);
        let status = if self.gather(pd, &wr.sges, &mut data).is_none() {
            WcStatus::LocalProtection
        } else {
            let peer = peer.expect("a queue pair that reaches its peer has one");
            let remote_pd = self.qps[&peer].pd;
            match self.remote_write(remote_pd, rkey, remote_addr, &data) {
                Some(()) => WcStatus::Success,
                None => {
                    self.fail_qp(peer);
                    WcStatus::RemoteAccess
                }
            }
        };
        self.stats.writes += 1;
        self.scratch = data;
        status
    }

    fn fetch(&mut self, qp_num: u32, at: usize) {
        let Work::Send(wr) = self.qps[&qp_num].sq[at].work else {
            return;
        };
        let SendOp::Read { remote_addr, rkey } = wr.op else {
            return;
        };
        if !self.is_reachable(qp_num) {
            return self.end(qp_num, at, WcStatus::RetryExceeded);
        }
        let (pd, peer) = (self.qps[&qp_num].pd, self.qps[&qp_num].peer);
        let peer = peer.expect("a queue pair that reaches its peer has one");
        let remote_pd = self.qps[&peer].pd;
        let mut data = std::mem::take(&mut self.scratch);
        data.clear();
        data.resize(wr.sges.byte_len() as usize, 0);
        let status = if self
            .remote_read(remote_pd, rkey, remote_addr, &mut data)
            .is_none()
        {
            self.fail_qp(peer);
            WcStatus::RemoteAccess
        } else if self.scatter(pd, &wr.sges, &data).is_none() {
            WcStatus::LocalProtection
        } else {
            WcStatus::Success
        };
        self.scratch = data;
        self.end(qp_num, at, status);
    }

    fn send(&mut self, qp_num: u32, at: usize, wr: &SendWr) {
        let peer = self.qps[&qp_num].peer;
        let peer = peer.expect("a queue pair that reaches its peer has one");
        if !self.has_receive(peer) {
            self.stats.receiver_not_ready += 1;
            let qp = self.qps.get_mut(&qp_num).expect("it was there above");
            qp.sq[at].tries += 1;
            let limit = (u32::from(qp.rnr_retry_count) + 1) * RNR_TRIES;
            if qp.rnr_retry_count < 7 && qp.sq[at].tries > limit {
                self.end(qp_num, at, WcStatus::RnrRetryExceeded);
            }
            return;
        }
        let pd = self.qps[&qp_num].pd;
        let mut data = std::mem::take(&mut self.scratch);
        let is_gathered = match wr.inline {
            Some(bytes) => {
                data.clear();
                data.extend_from_slice(&bytes);
                Some(())
            }
            None => self.gather(pd, &wr.sges, &mut data),
        };
        let status = match is_gathered {
            None => WcStatus::LocalProtection,
            Some(()) => self.arrive(peer, wr, &data),
        };
        self.stats.sends += 1;
        self.scratch = data;
        self.end(qp_num, at, status);
    }

    /// A message arrives at a queue pair that has a receive; what the sender is told.
    fn arrive(&mut self, qp_num: u32, wr: &SendWr, data: &[u8]) -> WcStatus {
        let qp = self.qps.get_mut(&qp_num).expect("the sender reached it");
        let (pd, recv_cq) = (qp.pd, qp.recv_cq);
        let receive = match qp.srq {
            None => qp.rq.pop_front(),
            Some(srq) => self
                .srqs
                .get_mut(&srq)
                .and_then(|srq| srq.receives.pop_front()),
        };
        let receive = receive.expect("the sender saw one");
        let mut completion = WorkCompletion {
            wr_id: receive.wr_id,
            opcode: WcOpcode::Recv,
            byte_len: data.len() as u32,
            qp_num,
            ..WorkCompletion::default()
        };
        let mut told = WcStatus::Success;
        if data.len() as u64 > receive.sges.byte_len() {
            completion.status = WcStatus::LocalLength;
            told = WcStatus::RemoteInvalidRequest;
        } else if self.scatter(pd, &receive.sges, data).is_none() {
            completion.status = WcStatus::LocalProtection;
            told = WcStatus::RemoteOperation;
        } else if let SendOp::SendWithInv { rkey } = wr.op {
            let is_ours = self.mws.get(&rkey).is_some_and(|mw| mw.pd == pd);
            if is_ours {
                self.mws.remove(&rkey);
                completion.invalidated_rkey = Some(rkey);
                self.stats.remote_invalidations += 1;
            } else {
                completion.status = WcStatus::LocalAccess;
                told = WcStatus::RemoteAccess;
            }
        }
        if completion.status != WcStatus::Success {
            self.fail_qp(qp_num);
        }
        self.complete(recv_cq, completion);
        told
    }

    fn complete_send(&mut self, qp_num: u32) {
        let Some(qp) = self.qps.get_mut(&qp_num) else {
            return;
        };
        let Some(first) = qp.sq.pop_front() else {
            return;
        };
        let status = match first.stage {
            Stage::Ended(status) => status,
            Stage::Posted | Stage::Reading => WcStatus::Flushed,
        };
        let opcode = match first.work {
            Work::Bind { .. } => WcOpcode::BindMw,
            Work::Send(wr) => match wr.op {
                SendOp::Send | SendOp::SendWithInv { .. } => WcOpcode::Send,
                SendOp::Write { .. } => WcOpcode::Write,
                SendOp::Read { .. } => WcOpcode::Read,
                SendOp::LocalInv { .. } => WcOpcode::LocalInv,
            },
        };
        let send_cq = qp.send_cq;
        if first.work.is_signaled() || status != WcStatus::Success {
            self.complete(
                send_cq,
                WorkCompletion {
                    wr_id: first.work.wr_id(),
                    status,
                    opcode,
                    qp_num,
                    ..WorkCompletion::default()
                },
            );
        }
    }

    fn flush_receive(&mut self, qp_num: u32) {
        let Some(qp) = self.qps.get_mut(&qp_num) else {
            return;
        };
        let (Some(receive), recv_cq) = (qp.rq.pop_front(), qp.recv_cq) else {
            return;
        };
        self.complete(
            recv_cq,
            WorkCompletion {
                wr_id: receive.wr_id,
                status: WcStatus::Flushed,
                opcode: WcOpcode::Recv,
                qp_num,
                ..WorkCompletion::default()
            },
        );
    }
}
