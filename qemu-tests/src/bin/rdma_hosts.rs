//! Hosts that no sound host is like, for tests in a guest.
//!
//! `rdma_hosts restless rdma://ADDRESS:PORT/NQN COUNT`: connects, reads a block and goes, so often.
//! `rdma_hosts crowd rdma://ADDRESS:PORT/NQN QUEUES`: reads through so many I/O queues at once.
//! `rdma_hosts steady rdma://ADDRESS:PORT/NQN FILE`: reads a block again and again until there is a
//! file.
//! `rdma_hosts hostile rdma://ADDRESS:PORT/NQN`: sends private data that is wrong, opens connections
//! and says nothing, and asks for more at once than anybody answers.

#![expect(clippy::print_stdout, reason = "what a test reads")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_wire::rdma::ConnectRequest;
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::{Cntlid, Lba, Nsid, Qid};
use nvmf_host::{
    Controller, ControllerState, HostContext, HostIdentity, HostOptions, IoOp, IoQueue, IoRequest,
};
use verbs::{CmChannel, CmEventKind, CmId, ConnParam, Cq, Pd, Provider, Qp, QpOptions, RdmaCore};

const USAGE: &str = "rdma_hosts restless|crowd|steady|hostile rdma://ADDRESS:PORT/NQN [COUNT|FILE]";
/// Emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections that are left half-open.
const SILENT: usize = 24;
/// Requests to connect that nobody waits for an answer to.
const FLOOD: usize = 200;
const PARAM: ConnParam = ConnParam {
    responder_resources: 4,
    initiator_depth: 4,
    retry_count: 7,
    rnr_retry_count: 7,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, uri, rest @ ..] = arguments.as_slice() else {
        return Err(USAGE.into());
    };
    let (address, nqn) = TransportAddress::parse_with_nqn(uri)?;
    let nqn = nqn.ok_or(USAGE)?;
    let rest = rest.first().map_or("1", String::as_str);
    let verbs: Arc<dyn Provider> = RdmaCore::load()?;
    match kind.as_str() {
        "restless" => restless(&address, &nqn, &verbs, rest.parse()?),
        "crowd" => crowd(&address, &nqn, &verbs, rest.parse()?),
        "steady" => steady(&address, &nqn, &verbs, Path::new(rest)),
        "hostile" => hostile(&address, &verbs),
        _ => Err(USAGE.into()),
    }
}

/// A controller with its I/O queues.
struct Host {
    controller: Controller,
    queues: Vec<IoQueue>,
}

impl Host {
    fn connect(
        address: &TransportAddress,
        nqn: &Nqn,
        verbs: &Arc<dyn Provider>,
        io_queues: u16,
    ) -> Outcome<Self> {
        let mut options = HostOptions::new(HostIdentity::from_uuid_bytes(*b"adit-rdma-hosts-"));
        options.verbs = Some(Arc::clone(verbs));
        options.io_queues = io_queues;
        options.io_queue_depth = 7;
        options.connect_timeout = PATIENCE;
        options.admin_timeout = PATIENCE;
        options.keep_alive = PATIENCE;
        let context = HostContext::new();
        let mut controller = Controller::connect(address, nqn, options, &context, Instant::now())?;
        let start = Instant::now();
        while !controller.is_ready() {
            controller.poll(Instant::now());
            if let Some(error) = controller.failure() {
                return Err(error.describe().into());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("stuck at {}", controller.step()).into());
            }
            std::thread::yield_now();
        }
        let queues = controller.take_io_queues();
        Ok(Self { controller, queues })
    }

    /// Reads a block through each queue, all at once.
    fn read(&mut self) -> Outcome<()> {
        let start = Instant::now();
        for queue in &mut self.queues {
            let op = IoOp::Read {
                lba: Lba(0),
                blocks: 1,
            };
            let request = IoRequest::new(Nsid(1), op, 1).with_buffer(vec![0; 4096]);
            if !queue.submit(request, start).is_accepted() {
                return Err("a queue takes no command".into());
            }
            queue.flush(&mut Vec::new());
        }
        for queue in &mut self.queues {
            let mut done = Vec::new();
            while done.is_empty() {
                queue.poll(Instant::now(), &mut done);
                if start.elapsed() > PATIENCE {
                    return Err("a read does not end".into());
                }
                std::thread::yield_now();
            }
            let result = done.pop().map(|completion| completion.result);
            if !matches!(result, Some(Ok(_))) {
                return Err(format!("a read failed: {result:?}").into());
            }
        }
        Ok(())
    }

    fn go(mut self) -> Outcome<()> {
        self.controller.shut_down(self.queues, Instant::now());
        let start = Instant::now();
        while matches!(self.controller.state(), ControllerState::ShuttingDown) {
            self.controller.poll(Instant::now());
            if start.elapsed() > PATIENCE {
                return Err("shutting down does not end".into());
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

fn restless(
    address: &TransportAddress,
    nqn: &Nqn,
    verbs: &Arc<dyn Provider>,
    count: u16,
) -> Outcome<()> {
    for round in 1..=count {
        let mut host = Host::connect(address, nqn, verbs, 1)?;
        host.read()?;
        if round % 2 == 0 {
            host.go()?;
        } // else it goes without a word
    }
    println!("{count} times");
    Ok(())
}

fn steady(
    address: &TransportAddress,
    nqn: &Nqn,
    verbs: &Arc<dyn Provider>,
    file: &Path,
) -> Outcome<()> {
    let mut host = Host::connect(address, nqn, verbs, 1)?;
    println!("it begins");
    let (mut reads, mut longest) = (0, Duration::ZERO);
    while !file.try_exists()? {
        let start = Instant::now();
        host.controller.poll(start);
        host.read()?;
        longest = longest.max(start.elapsed());
        reads += 1;
        // It is others' turn.
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("{reads} reads, the longest took {} ms", longest.as_millis());
    host.go()
}

fn crowd(
    address: &TransportAddress,
    nqn: &Nqn,
    verbs: &Arc<dyn Provider>,
    queues: u16,
) -> Outcome<()> {
    let mut host = Host::connect(address, nqn, verbs, queues)?;
    for _ in 0..4 {
        host.read()?;
    }
    println!("{} queues", host.queues.len());
    host.go()
}

/// One request to connect.
struct Asking {
    // Before what they report to and are made of.
    _qp: Box<dyn Qp>,
    id: Box<dyn CmId>,
    channel: Box<dyn CmChannel>,
    _parts: (Arc<dyn Cq>, Arc<dyn Pd>),
}

impl Asking {
    fn begin(
        address: &TransportAddress,
        verbs: &Arc<dyn Provider>,
        private_data: &[u8],
    ) -> Outcome<Self> {
        let mut channel = verbs.cm_channel()?;
        let mut id = channel.resolve(0, None, address.socket_addr()?, 5000)?;
        expect(&mut *channel, |kind| {
            matches!(kind, CmEventKind::AddrResolved)
        })?;
        id.resolve_route(5000)?;
        expect(&mut *channel, |kind| {
            matches!(kind, CmEventKind::RouteResolved)
        })?;
        let device = id.device().ok_or("no device")?;
        let pd = device.alloc_pd()?;
        let cq = device.create_cq(16, None, 0)?;
        let qp = id.create_qp(&QpOptions {
            pd: &pd,
            send_cq: &cq,
            recv_cq: &cq,
            srq: None,
            max_send_wr: 4,
            max_recv_wr: 4,
            max_inline_data: 0,
        })?;
        id.connect(&PARAM, private_data)?;
        Ok(Self {
            _qp: qp,
            id,
            channel,
            _parts: (cq, pd),
        })
    }
}

/// Waits for the next event, which must be of this kind.
fn expect(channel: &mut dyn CmChannel, is_it: impl Fn(&CmEventKind) -> bool) -> Outcome<()> {
    let start = Instant::now();
    loop {
        match channel.poll()? {
            Some(event) if is_it(&event.kind) => return Ok(()),
            Some(event) => return Err(format!("{event:?}").into()),
            None if start.elapsed() > PATIENCE => return Err("no event comes".into()),
            None => std::thread::yield_now(),
        }
    }
}

fn hostile(address: &TransportAddress, verbs: &Arc<dyn Provider>) -> Outcome<()> {
    let right = ConnectRequest {
        qid: Qid(0),
        hrqsize: 32,
        hsqsize: 31,
        cntlid: Cntlid(0xffff),
    };
    let mut rejected = 0;
    for wrong in wrong_requests(&right) {
        let mut asking = Asking::begin(address, verbs, &wrong)?;
        expect(&mut *asking.channel, |kind| {
            matches!(kind, CmEventKind::Rejected)
        })?;
        rejected += 1;
    }
    println!("{rejected} rejected");

    let mut silent = Vec::new();
    for _ in 0..SILENT {
        let mut asking = Asking::begin(address, verbs, &right.to_bytes())?;
        expect(&mut *asking.channel, |kind| {
            matches!(kind, CmEventKind::Established { .. })
        })?;
        silent.push(asking);
    }
    // The target ends them: nothing is said in them.
    for asking in &mut silent {
        expect(&mut *asking.channel, |kind| {
            matches!(kind, CmEventKind::Disconnected)
        })?;
        // What it answers is nobody's concern.
        let _ = asking.id.disconnect();
    }
    println!("{} half-open ended", silent.len());
    drop(silent);

    for _ in 0..FLOOD {
        // Dropped at once, whatever the answer.
        drop(Asking::begin(address, verbs, &right.to_bytes())?);
    }
    println!("{FLOOD} asked");
    Ok(())
}

/// Requests of the wrong length, form, queue and size.
fn wrong_requests(right: &ConnectRequest) -> Vec<Vec<u8>> {
    let mut other_form = right.to_bytes().to_vec();
    other_form[0] = 9;
    let with = |change: fn(&mut ConnectRequest)| {
        let mut wrong = *right;
        change(&mut wrong);
        wrong.to_bytes().to_vec()
    };
    vec![
        vec![1; 7],
        vec![0; 31],
        vec![0xff; 56],
        other_form,
        with(|request| request.qid = Qid(60_000)),
        with(|request| request.hsqsize = 0),
        with(|request| request.hrqsize = 0),
    ]
}
