//! A transport in memory, all on one thread. The test is the host: it puts capsules into a
//! [`Wire`], decides when data arrives and when responses leave, and takes what came back.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use dma::Payload;
use fabric_wire::TransportAddress;
use fabric_wire::fabrics::ConnectCommand;
use nvme_spec::{Cid, Cqe, Sqe};
use nvmf::transport::Digests;
use nvmf::transport::{
    Acceptor, CloseReason, ConnectionId, GroupContext, NewConnection, Peer, QpairId, Response,
    SlotId, Step, Transport, TransportGroup, TransportId, TransportLimits,
};
use nvmf::{Core, OpenQpair};

/// An answer, with the data that came along.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) cqe: Cqe,
    pub(crate) data: Vec<u8>,
}

/// One connection as the test sees it.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Commands on their way to the target, with the host's data.
    pub(crate) capsules: VecDeque<(Sqe, Vec<u8>)>,
    pub(crate) replies: VecDeque<Reply>,
    /// The host is gone.
    pub(crate) is_cut: bool,
    /// Why the target closed the connection.
    pub(crate) closed: Option<CloseReason>,
    /// Data outside of capsules does not arrive until this is cleared.
    pub(crate) holds_data: bool,
    /// Commands whose data arrives damaged.
    pub(crate) damaged: Vec<Cid>,
    /// Responses do not leave until this is cleared.
    pub(crate) holds_replies: bool,
    /// Commands that wait for their data.
    pub(crate) awaited: Vec<Cid>,
    /// Commands that the target has taken and not answered.
    pub(crate) outstanding: Vec<Sqe>,
    /// Never lend memory to this connection.
    pub(crate) copies: bool,
}

/// The test's end of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct End(Arc<Mutex<Wire>>);

impl End {
    /// Nobody else has the connection.
    pub(crate) fn is_dropped(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    pub(crate) fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }
}

type Dialled = Arc<Mutex<Vec<(Arc<TransportAddress>, End)>>>;

#[derive(Debug)]
pub(crate) struct Loopback {
    limits: TransportLimits,
    dialled: Dialled,
}

impl Loopback {
    pub(crate) fn new(limits: TransportLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            dialled: Dialled::default(),
        })
    }

    /// Opens a connection; it is there after the next poll of the accepting group.
    pub(crate) fn dial(&self, address: &TransportAddress) -> End {
        let end = End::default();
        self.dialled
            .lock()
            .unwrap()
            .push((Arc::new(address.clone()), end.clone()));
        end
    }
}

impl Transport for Loopback {
    fn name(&self) -> &'static str {
        "TCP"
    }

    fn limits(&self) -> &TransportLimits {
        &self.limits
    }

    fn listen(
        &self,
        id: TransportId,
        address: &Arc<TransportAddress>,
    ) -> std::io::Result<Box<dyn Acceptor>> {
        let dialled = Arc::clone(&self.dialled);
        Ok(Box::new(LoopbackAcceptor {
            id,
            address: Arc::clone(address),
            dialled,
        }))
    }

    fn group(&self, context: &GroupContext<'_>) -> std::io::Result<Box<dyn TransportGroup>> {
        Ok(Box::new(LoopbackGroup {
            transport: context.transport,
            limits: self.limits.clone(),
            connections: Vec::new(),
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct LoopbackAcceptor {
    id: TransportId,
    address: Arc<TransportAddress>,
    dialled: Dialled,
}

impl Acceptor for LoopbackAcceptor {
    fn poll(&mut self, _now: Instant, accepted: &mut dyn FnMut(NewConnection)) -> usize {
        let mut dialled = self.dialled.lock().unwrap();
        let mine: Vec<_> = dialled
            .extract_if(.., |(to, _)| **to == *self.address)
            .collect();
        drop(dialled);
        let count = mine.len();
        for (_, end) in mine {
            accepted(NewConnection {
                transport: self.id,
                peer: Peer {
                    listener: Arc::clone(&self.address),
                    local: self.address.to_string(),
                    remote: "tcp://127.0.0.1:50000".into(),
                },
                numa_node: None,
                io: Box::new(end),
            });
        }
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn local_address(&self) -> String {
        self.address.to_string()
    }
}

/// A command that the target has taken.
struct Taken {
    sqe: Sqe,
    data: Vec<u8>,
    /// The buffer, while the data does not arrive.
    buffer: Option<(Payload, u32)>,
}

struct Connection {
    end: End,
    peer: Peer,
    qpair: Option<QpairId>,
    taken: HashMap<SlotId, Taken>,
    responses: VecDeque<(SlotId, Reply)>,
    close_when_sent: Option<CloseReason>,
    /// A command that has not taken the data in its capsule: nothing behind it is read.
    blocked: Option<SlotId>,
}

struct LoopbackGroup {
    transport: TransportId,
    limits: TransportLimits,
    connections: Vec<Option<Connection>>,
}

impl Connection {
    fn advance(&mut self, core: &mut Core, slot: SlotId, mut step: Step) {
        let Some(qpair) = self.qpair else { return };
        loop {
            match step {
                Step::Pending => return,
                Step::Forget => {
                    self.taken.remove(&slot).expect("a command is there");
                    core.forgotten(qpair, slot);
                    return;
                }
                Step::Receive => {
                    let (payload, len) = core.take_receive(qpair, slot);
                    let taken = self.taken.get_mut(&slot).expect("a command is there");
                    taken.buffer = Some((payload, len));
                    match self.deliver(core, slot) {
                        Some(next) => step = next,
                        None => return,
                    }
                }
                Step::Respond => {
                    let response = core
                        .take_response(qpair, slot)
                        .expect("a response is there");
                    self.taken
                        .remove(&slot)
                        .expect("one response for each command");
                    let Response {
                        cqe,
                        payload,
                        data_len,
                    } = response;
                    let mut data = vec![0; data_len as usize];
                    payload.copy_range_to(0, &mut data);
                    self.responses.push_back((slot, Reply { cqe, data }));
                    return;
                }
            }
        }
    }

    /// Fills a command's buffer with its data, if that arrives now.
    fn deliver(&mut self, core: &mut Core, slot: SlotId) -> Option<Step> {
        let qpair = self.qpair?;
        let mut wire = self.end.wire();
        let taken = self.taken.get_mut(&slot)?;
        let cid = taken.sqe.cid();
        wire.awaited.retain(|awaited| *awaited != cid);
        if wire.holds_data {
            wire.awaited.push(cid);
            return None;
        }
        let (mut payload, len) = taken.buffer.take()?;
        if wire.damaged.contains(&cid) {
            payload = Payload::None;
        } else {
            let buffer = payload.as_buf_mut().expect("data is received into buffers");
            let bytes = buffer.try_as_mut_slice().expect("of nobody else");
            let count = taken.data.len().min(len as usize);
            bytes[..count].copy_from_slice(&taken.data[..count]);
            bytes[count..].fill(0);
        }
        drop(wire);
        Some(core.data_received(qpair, slot, payload))
    }

    /// Work done, and whether the connection goes on.
    fn poll(
        &mut self,
        core: &mut Core,
        id: ConnectionId,
        group: &(TransportId, TransportLimits),
    ) -> (usize, bool) {
        let mut work = 0;
        let waiting: Vec<SlotId> = self
            .taken
            .iter()
            .filter(|(_, taken)| taken.buffer.is_some())
            .map(|(slot, _)| *slot)
            .collect();
        for slot in waiting {
            if let Some(step) = self.deliver(core, slot) {
                work += 1;
                self.advance(core, slot, step);
            }
        }
        while self.blocked.is_none() {
            let next = self.end.wire().capsules.pop_front();
            let Some((sqe, data)) = next else {
                return (work, true);
            };
            work += 1;
            let in_capsule = if sqe.sgl().is_in_capsule() {
                data.len() as u32
            } else {
                0
            };
            let qpair = match self.qpair {
                Some(qpair) => qpair,
                None => self.open(core, id, group, &sqe),
            };
            match core.command(qpair, sqe, in_capsule) {
                Ok((slot, step)) => {
                    let taken = Taken {
                        sqe,
                        data,
                        buffer: None,
                    };
                    let before = self.taken.insert(slot, taken);
                    assert!(before.is_none(), "the slot is busy");
                    if in_capsule > 0 && step == Step::Pending {
                        self.blocked = Some(slot);
                    }
                    self.advance(core, slot, step);
                }
                Err(_) => return (work, false),
            }
        }
        (work, true)
    }

    fn open(
        &mut self,
        core: &mut Core,
        id: ConnectionId,
        (transport, limits): &(TransportId, TransportLimits),
        sqe: &Sqe,
    ) -> QpairId {
        let (is_admin, entries) =
            ConnectCommand::parse(sqe).map_or((true, 1), |c| (c.qid.is_admin(), c.entries()));
        let max = if is_admin {
            limits.max_aq_depth
        } else {
            limits.max_queue_depth
        };
        let qpair = core
            .open(OpenQpair {
                transport: *transport,
                connection: id,
                peer: self.peer.clone(),
                depth: entries.clamp(1, u32::from(max)) as u16,
                may_borrow_data: !self.end.wire().copies,
                digests: Digests::default(),
            })
            .unwrap();
        self.qpair = Some(qpair);
        qpair
    }
}

impl LoopbackGroup {
    fn drop_connection(&mut self, core: &mut Core, index: usize, reason: CloseReason) {
        let Some(connection) = self.connections[index].take() else {
            return;
        };
        connection.end.wire().closed = Some(reason);
        if let Some(qpair) = connection.qpair {
            core.closed(qpair);
        }
    }
}

impl TransportGroup for LoopbackGroup {
    fn adopt(&mut self, _core: &mut Core, connection: NewConnection, _now: Instant) {
        let end = *connection.io.downcast::<End>().expect("of this transport");
        let connection = Connection {
            end,
            peer: connection.peer,
            qpair: None,
            taken: HashMap::new(),
            responses: VecDeque::new(),
            close_when_sent: None,
            blocked: None,
        };
        // The index is reused at once: the hardest case for who remembers an old connection.
        match self.connections.iter().position(Option::is_none) {
            Some(index) => self.connections[index] = Some(connection),
            None => self.connections.push(Some(connection)),
        }
    }

    fn poll(&mut self, core: &mut Core, _now: Instant) -> usize {
        let mut work = 0;
        let group = (self.transport, self.limits.clone());
        for index in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[index] else {
                continue;
            };
            if connection.end.wire().is_cut {
                self.drop_connection(core, index, CloseReason::Peer);
                work += 1;
                continue;
            }
            let (done, goes_on) = connection.poll(core, ConnectionId(index as u32), &group);
            work += done;
            if !goes_on {
                self.drop_connection(core, index, CloseReason::ProtocolError);
            }
        }
        work
    }

    fn step(&mut self, core: &mut Core, connection: ConnectionId, slot: SlotId, step: Step) {
        if let Some(connection) = &mut self.connections[connection.0 as usize] {
            connection.blocked.take_if(|blocked| *blocked == slot);
            connection.advance(core, slot, step);
        }
    }

    fn flush(&mut self, core: &mut Core, _now: Instant) -> usize {
        let mut work = 0;
        let mut closing = Vec::new();
        for (index, slot) in self.connections.iter_mut().enumerate() {
            let Some(connection) = slot else { continue };
            let outstanding = connection.taken.values().map(|taken| taken.sqe).collect();
            connection.end.wire().outstanding = outstanding;
            if connection.end.wire().holds_replies {
                continue;
            }
            while let Some((slot, reply)) = connection.responses.pop_front() {
                work += 1;
                connection.end.wire().replies.push_back(reply);
                if let Some(qpair) = connection.qpair {
                    core.response_sent(qpair, slot);
                }
            }
            closing.extend(
                connection
                    .close_when_sent
                    .take()
                    .map(|reason| (index, reason)),
            );
        }
        for (index, reason) in closing {
            self.drop_connection(core, index, reason);
        }
        work
    }

    fn close(&mut self, core: &mut Core, connection: ConnectionId, reason: CloseReason) {
        self.drop_connection(core, connection.0 as usize, reason);
    }

    fn close_all(&mut self, core: &mut Core, reason: CloseReason) {
        for index in 0..self.connections.len() {
            self.drop_connection(core, index, reason);
        }
    }

    fn close_after_flush(&mut self, connection: ConnectionId, reason: CloseReason) {
        if let Some(connection) = &mut self.connections[connection.0 as usize] {
            connection.close_when_sent = Some(reason);
        }
    }

    fn connection_count(&self) -> usize {
        self.connections.iter().flatten().count()
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
