//! The long way from a connection to a controller that can be used, and back.

use std::time::Duration;

use fabric_wire::fabrics::PropertySize;
use nvme_spec::feature::{self, HostBehaviorSupport, fid};
use nvme_spec::identify::{IdentifyController, cntrltype, oaes};
use nvme_spec::registers::{self, Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Vs};
use nvme_spec::{Cid, Qid, Sqe};
use zerocopy::IntoBytes;

use crate::admin::Admin;
use crate::command::Command;
use crate::controller::{ControllerInfo, Kind, cap_timeout};
use crate::error::{HostError, ms};
use crate::io_queue::{IoQueue, IoQueueConnector};
use crate::options::HostOptions;
use crate::queue::HostContext;

/// How often a register is read again that has not changed yet.
const REGISTER_POLL: Duration = Duration::from_millis(5);
/// Length of a submission queue entry in bytes.
const SQE_LEN: u32 = 64;

/// What it has come to.
pub(crate) struct BringUp {
    pub(crate) info: ControllerInfo,
    pub(crate) connector: IoQueueConnector,
    pub(crate) io_queues: Vec<IoQueue>,
}

/// Connects and enables a controller.
pub(crate) async fn bring_up(
    admin: Admin,
    mut connector: IoQueueConnector,
    kind: Kind,
    options: HostOptions,
    context: HostContext,
) -> Result<BringUp, HostError> {
    let association = &admin.association;
    association.step.set("connecting the admin queue");
    association.wait_link().await?;

    association.step.set("connect command");
    let command = connector.command(Qid::ADMIN, options.kato_ms(), options.connect_timeout);
    let completion = association.run(command).await?;
    if association.queue.borrow().failure().is_some() {
        return Err(association.failure());
    }
    connector.cntlid = connector.result(Qid::ADMIN, &completion.cqe)?;
    connector.config.cntlid = connector.cntlid;
    association.is_connected.set(true);

    association.step.set("reading properties");
    let cap = Cap(admin
        .get_property(registers::CAP, PropertySize::Eight)
        .await?);
    let version = Vs(low(admin
        .get_property(registers::VS, PropertySize::Four)
        .await?));
    enable(&admin, cap).await?;

    association.step.set("identify controller");
    let identify = admin.get_identify_controller().await?;
    check_identify(&identify, kind)?;
    let mut info = ControllerInfo {
        cntlid: connector.cntlid,
        cap,
        version,
        io_queues: 0,
        io_queue_depth: options.io_queue_depth.min(cap.mqes()).max(1),
        in_capsule_data_size: in_capsule_size(&identify),
        max_transfer_bytes: max_transfer_bytes(cap, &identify),
        async_events: options.async_events.min(identify.aerl.saturating_add(1)),
        identify,
    };
    accept_retry_delays(&admin, &info.identify).await?;
    configure_events(&admin, &mut info).await?;
    connector.config.depth = info.io_queue_depth;
    connector.config.command_timeout = options.io_timeout;
    connector.max_in_capsule = info.in_capsule_data_size;

    let mut io_queues = Vec::new();
    if kind == Kind::Io && options.io_queues > 0 {
        association.step.set("number of queues");
        let asked = feature::number_of_queues(options.io_queues, options.io_queues);
        let sqe = Sqe::set_features(Cid(0), fid::NUMBER_OF_QUEUES, asked);
        let command = Command::new(sqe, 0);
        let (granted, _) = association.execute("set number of queues", command).await?;
        let (submission, completion) = feature::parse_number_of_queues(low(granted));
        let granted = u16::try_from(submission.min(completion)).unwrap_or(u16::MAX);
        info.io_queues = granted.min(options.io_queues);
        association.step.set("connecting I/O queues");
        io_queues = connect_io_queues(&admin, &connector, info.io_queues, &context).await?;
    }
    association.step.set("ready");
    Ok(BringUp {
        info,
        connector,
        io_queues,
    })
}

/// Sets CC.EN and waits for CSTS.RDY.
async fn enable(admin: &Admin, cap: Cap) -> Result<(), HostError> {
    const ENTRY_SIZES: (u8, u8) = (6, 4); // 64 and 16 bytes
    let css = if cap.css() & Cap::CSS_NVM != 0 || cap.css() == 0 {
        Cc::CSS_NVM
    } else if cap.css() & Cap::CSS_IOCS != 0 {
        Cc::CSS_IOCS
    } else {
        Cc::CSS_ADMIN_ONLY
    };
    admin.association.step.set("enabling the controller");
    let cc = Cc::default()
        .with_css(css)
        .with_iosqes(ENTRY_SIZES.0)
        .with_iocqes(ENTRY_SIZES.1);
    admin
        .set_property(registers::CC, cc.with_en(true).0)
        .await?;
    wait_ready(admin, true, cap_timeout(cap)).await
}

async fn wait_ready(admin: &Admin, ready: bool, timeout: Duration) -> Result<(), HostError> {
    let association = &admin.association;
    let begun = association.now.get();
    loop {
        let csts = Csts(low(admin
            .get_property(registers::CSTS, PropertySize::Four)
            .await?));
        if csts.cfs() {
            return Err(HostError::ControllerFatal);
        }
        if csts.rdy() == ready {
            return Ok(());
        }
        if association.now.get() - begun >= timeout {
            return Err(HostError::ReadyTimeout {
                ready,
                timeout_ms: ms(timeout),
            });
        }
        association.sleep(REGISTER_POLL).await;
    }
}

/// Clears CC.EN and waits for CSTS.RDY to go.
pub(crate) async fn disable(admin: Admin, timeout: Duration) -> Result<(), HostError> {
    admin.association.step.set("disabling the controller");
    let cc = Cc(low(admin
        .get_property(registers::CC, PropertySize::Four)
        .await?));
    admin
        .set_property(registers::CC, cc.with_en(false).0)
        .await?;
    wait_ready(&admin, false, timeout).await
}

/// Disconnects the I/O queues and shuts the controller down.
pub(crate) async fn shut_down(
    admin: Admin,
    mut io_queues: Vec<IoQueue>,
    can_disconnect: bool,
    timeout: Duration,
) -> Result<(), HostError> {
    let association = &admin.association;
    let begun = association.now.get();
    association.step.set("disconnecting I/O queues");
    let mut dropped = Vec::new();
    for queue in &mut io_queues {
        if can_disconnect {
            queue.disconnect(begun);
        } else {
            queue.close(&mut dropped);
        }
    }
    while io_queues.iter().any(|queue| !queue.is_disconnected()) {
        for queue in &mut io_queues {
            queue.poll(association.now.get(), &mut dropped);
            dropped.clear();
        }
        if association.now.get() - begun >= timeout {
            break;
        }
        yield_once().await;
    }
    drop(io_queues);

    association.step.set("shutting the controller down");
    let cc = Cc(low(admin
        .get_property(registers::CC, PropertySize::Four)
        .await?));
    let cc = cc.with_shn(ShutdownNotification::Normal);
    admin.set_property(registers::CC, cc.0).await?;
    loop {
        let csts = Csts(low(admin
            .get_property(registers::CSTS, PropertySize::Four)
            .await?));
        if csts.shst() == ShutdownStatus::Complete {
            return Ok(());
        }
        if csts.cfs() {
            return Err(HostError::ControllerFatal);
        }
        if association.now.get() - begun >= timeout {
            return Err(HostError::ShutdownTimeout {
                timeout_ms: ms(timeout),
            });
        }
        association.sleep(REGISTER_POLL).await;
    }
}

async fn connect_io_queues(
    admin: &Admin,
    connector: &IoQueueConnector,
    count: u16,
    context: &HostContext,
) -> Result<Vec<IoQueue>, HostError> {
    let association = &admin.association;
    let now = association.now.get();
    let mut queues: Vec<IoQueue> = (1..=count)
        .map(|qid| IoQueue::connect(connector, Qid(qid), context, now).of(association))
        .collect();
    let mut completions = Vec::new();
    loop {
        for queue in &mut queues {
            if !queue.is_ready() {
                queue.poll(association.now.get(), &mut completions);
            }
            if let Some(error) = queue.failure() {
                return Err(error.clone());
            }
        }
        if queues.iter().all(IoQueue::is_ready) {
            return Ok(queues);
        }
        if let Some(error) = association.queue.borrow().failure() {
            return Err(error.clone());
        }
        yield_once().await;
    }
}

/// Goes on with the next poll.
async fn yield_once() {
    let mut has_yielded = false;
    std::future::poll_fn(|_| {
        if std::mem::replace(&mut has_yielded, true) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

fn check_identify(identify: &IdentifyController, kind: Kind) -> Result<(), HostError> {
    let is_discovery = identify.cntrltype == cntrltype::DISCOVERY;
    let reason = match kind {
        // Controllers before 1.4 do not report their type.
        Kind::Discovery if !is_discovery && identify.cntrltype != cntrltype::NOT_REPORTED => {
            format!("controller type {} is not discovery", identify.cntrltype)
        }
        Kind::Io if is_discovery => "it is a discovery controller; it has no namespaces".to_owned(),
        Kind::Io if identify.ioccsz.get() < SQE_LEN / 16 => {
            format!("ioccsz {} is smaller than a command", identify.ioccsz.get())
        }
        _ => return Ok(()),
    };
    Err(HostError::Unusable { reason })
}

/// In-capsule data that an I/O queue takes. Data that does not follow the command at once (ICDOFF)
/// is not sent in capsules: no PDU can say where it is.
fn in_capsule_size(identify: &IdentifyController) -> u32 {
    if identify.icdoff.get() != 0 {
        return 0;
    }
    identify
        .ioccsz
        .get()
        .saturating_mul(16)
        .saturating_sub(SQE_LEN)
}

fn max_transfer_bytes(cap: Cap, identify: &IdentifyController) -> Option<u64> {
    const MPSMIN_BASE: u32 = 12; // 4 KiB
    match identify.mdts {
        0 => None,
        mdts => 1u64.checked_shl(u32::from(mdts) + u32::from(cap.mpsmin()) + MPSMIN_BASE),
    }
}

/// Tells the controller that this host understands retry delays, if it has any.
async fn accept_retry_delays(
    admin: &Admin,
    identify: &IdentifyController,
) -> Result<(), HostError> {
    let delays = [identify.crdt1, identify.crdt2, identify.crdt3];
    if delays.iter().all(|delay| delay.get() == 0) {
        return Ok(());
    }
    admin.association.step.set("host behavior support");
    let behavior = HostBehaviorSupport {
        acre: 1,
        ..Default::default()
    };
    let sqe = Sqe::set_features(Cid(0), fid::HOST_BEHAVIOR, 0);
    let command = Command::new(sqe, 0).sending(behavior.as_bytes().to_vec());
    // A controller without this feature sends no delays: nothing is lost.
    admin.association.run(command).await.map(|_| ())
}

/// Turns on the events that this library knows and the controller has.
async fn configure_events(admin: &Admin, info: &mut ControllerInfo) -> Result<(), HostError> {
    const WANTED: u32 = oaes::NAMESPACE_ATTRIBUTE
        | oaes::ANA_CHANGE
        | oaes::SUBSYSTEM_SHUTDOWN
        | oaes::DISCOVERY_LOG_CHANGE;
    let wanted = info.identify.oaes.get() & WANTED;
    if info.async_events == 0 || wanted == 0 {
        return Ok(());
    }
    admin.association.step.set("asynchronous events");
    let sqe = Sqe::set_features(Cid(0), fid::ASYNC_EVENT_CONFIG, wanted);
    let completion = admin.association.run(Command::new(sqe, 0)).await?;
    if completion.result.is_err() {
        // Without them, changes are noticed when something fails.
        info.async_events = 0;
    }
    Ok(())
}

fn low(value: u64) -> u32 {
    value as u32
}
