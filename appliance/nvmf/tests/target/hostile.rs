//! Random hosts, random timing, random changes of the configuration: nothing panics, every command
//! that was taken is answered once or its connection is closed, every buffer comes back, and every
//! change comes to its end.

use std::sync::Arc;
use std::time::Duration;

use block::{Bdev, IoError};
use fabric_wire::TransportAddress;
use nvme_spec::opcode::{admin, nvm};
use nvme_spec::registers::{Cc, ShutdownNotification};
use nvme_spec::{Cid, Cntlid, Fuse, Nsid, Qid, SglDescriptor, Sqe};
use nvmf::{AnaGroupId, AnaState, Subsystem, SubsystemOptions, Ticket, Visibility, WriteProtect};
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::device::TestDevice;
use crate::loopback::End;
use crate::rig::{
    Connect, HOST, NQN, Rig, RigOptions, address, bdev, enabled, namespace, nqn, property_set,
};

const OTHER_HOST: &str = "nqn.2026-11.io.adit:other-host";
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

#[derive(Clone, Debug)]
enum Action {
    Dial {
        group: usize,
    },
    Connect {
        end: usize,
        qid: u16,
        controller: usize,
        name: u8,
        other_host: bool,
    },
    Send {
        end: usize,
        sqe: Box<Sqe>,
        len: usize,
    },
    Enable {
        end: usize,
        en: bool,
        shuts_down: bool,
    },
    HoldData {
        end: usize,
        holds: bool,
    },
    Damage {
        end: usize,
        cid: u16,
    },
    HoldReplies {
        end: usize,
        holds: bool,
    },
    Cut {
        end: usize,
    },
    HoldDevice {
        holds: bool,
        can_abort: bool,
    },
    FailDevice,
    Pause {
        nsid: u32,
    },
    Resume {
        nsid: u32,
    },
    AddNamespace {
        nsid: u32,
    },
    RemoveNamespace {
        nsid: u32,
    },
    Resized,
    Protect {
        on: bool,
    },
    Hide {
        on: bool,
    },
    Ana {
        group: u32,
        state: AnaState,
    },
    AllowAnyHost {
        on: bool,
    },
    Restart,
    Recreate,
    Advance {
        ms: u64,
    },
    PollOne {
        group: usize,
    },
}

fn sgl() -> impl Strategy<Value = SglDescriptor> {
    let len = prop_oneof![Just(512_u32), Just(4096), Just(1024), Just(16), 0..5000_u32];
    (0..8_u8, len).prop_map(|(kind, len)| match kind {
        0..3 => SglDescriptor::transport_data(len),
        3..6 => SglDescriptor::in_capsule(0, len),
        6 => SglDescriptor::in_capsule(u64::from(len), len),
        _ => SglDescriptor::data_block(0, len),
    })
}

fn command() -> impl Strategy<Value = Sqe> {
    let opcode = prop_oneof![
        Just(nvm::READ),
        Just(nvm::WRITE),
        Just(nvm::FLUSH),
        Just(nvm::COMPARE),
        Just(nvm::WRITE_ZEROES),
        Just(nvm::DATASET_MANAGEMENT),
        Just(nvm::VERIFY),
        Just(nvm::COPY),
        Just(nvm::RESERVATION_REGISTER),
        Just(nvm::RESERVATION_ACQUIRE),
        Just(nvm::RESERVATION_RELEASE),
        Just(nvm::RESERVATION_REPORT),
        Just(admin::IDENTIFY),
        Just(admin::GET_LOG_PAGE),
        Just(admin::GET_FEATURES),
        Just(admin::SET_FEATURES),
        Just(admin::ASYNC_EVENT_REQUEST),
        Just(admin::ABORT),
        Just(admin::KEEP_ALIVE),
        Just(0x7f_u8),
        any::<u8>(),
    ];
    let fuse = prop_oneof![
        4 => Just(Fuse::Normal),
        1 => Just(Fuse::First),
        1 => Just(Fuse::Second),
    ];
    let nsid = prop_oneof![6 => Just(1_u32), 2 => 0..4_u32, 1 => Just(0xffff_ffff)];
    let cdw = prop_oneof![8 => 0..9_u32, 1 => any::<u32>(), 2 => 0..0x4_0000_u32];
    (
        opcode,
        fuse,
        nsid,
        sgl(),
        0..12_u16,
        [cdw.clone(), cdw.clone(), cdw],
        0..8_u32,
    )
        .prop_map(
            |(opcode, fuse, nsid, sgl, cid, [cdw10, cdw11, cdw12], blocks)| {
                let sqe = Sqe::new(opcode, Cid(cid))
                    .with_nsid(Nsid(nsid))
                    .with_fuse(fuse);
                let is_block_command = opcode <= nvm::COPY && blocks > 0;
                let sqe = sqe.with_sgl(sgl).with_cdw10(cdw10);
                match is_block_command {
                    true => sqe.with_block_count(blocks),
                    false => sqe.with_cdw11(cdw11).with_cdw12(cdw12),
                }
            },
        )
}

fn sqe() -> impl Strategy<Value = Sqe> {
    prop_oneof![
        12 => command(),
        1 => any::<[u8; 32]>().prop_map(|half| {
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(&half);
            bytes[32..].copy_from_slice(&half);
            Sqe::read_from_bytes(&bytes).unwrap()
        }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let end = 0..8_usize;
    let nsid = prop_oneof![Just(1_u32), Just(2), Just(0xffff_ffff)];
    let state = prop_oneof![
        Just(AnaState::Optimized),
        Just(AnaState::Inaccessible),
        Just(AnaState::Change),
    ];
    prop_oneof![
        3 => (0..2_usize).prop_map(|group| Action::Dial { group }),
        6 => (end.clone(), 0..4_u16, 0..3_usize, 0..8_u8, any::<bool>()).prop_map(
            |(end, qid, controller, name, other_host)| {
                Action::Connect { end, qid, controller, name, other_host }
            }
        ),
        40 => (end.clone(), sqe(), 0..5000_usize)
            .prop_map(|(end, sqe, len)| Action::Send { end, sqe: Box::new(sqe), len }),
        2 => (end.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(end, en, shuts_down)| Action::Enable { end, en, shuts_down }),
        2 => (end.clone(), any::<bool>()).prop_map(|(end, holds)| Action::HoldData { end, holds }),
        1 => (end.clone(), 0..12_u16).prop_map(|(end, cid)| Action::Damage { end, cid }),
        2 => (end.clone(), any::<bool>())
            .prop_map(|(end, holds)| Action::HoldReplies { end, holds }),
        2 => end.prop_map(|end| Action::Cut { end }),
        3 => (any::<bool>(), any::<bool>())
            .prop_map(|(holds, can_abort)| Action::HoldDevice { holds, can_abort }),
        1 => Just(Action::FailDevice),
        2 => nsid.clone().prop_map(|nsid| Action::Pause { nsid }),
        3 => nsid.clone().prop_map(|nsid| Action::Resume { nsid }),
        2 => (1..3_u32).prop_map(|nsid| Action::AddNamespace { nsid }),
        2 => (1..3_u32).prop_map(|nsid| Action::RemoveNamespace { nsid }),
        1 => Just(Action::Resized),
        1 => any::<bool>().prop_map(|on| Action::Protect { on }),
        1 => any::<bool>().prop_map(|on| Action::Hide { on }),
        1 => (1..3_u32, state).prop_map(|(group, state)| Action::Ana { group, state }),
        1 => any::<bool>().prop_map(|on| Action::AllowAnyHost { on }),
        1 => Just(Action::Restart),
        1 => Just(Action::Recreate),
        3 => (0..5000_u64).prop_map(|ms| Action::Advance { ms }),
        4 => (0..2_usize).prop_map(|group| Action::PollOne { group }),
    ]
}

struct World {
    rig: Rig,
    ends: Vec<End>,
    subsystem: Arc<Subsystem>,
    device: Arc<TestDevice>,
    bdev: Arc<Bdev>,
    tickets: Vec<Ticket>,
    pauses: Vec<(Arc<Subsystem>, Nsid)>,
    /// Every subsystem that there was.
    subsystems: Vec<Arc<Subsystem>>,
}

fn listener() -> TransportAddress {
    address(4420)
}

impl World {
    fn new() -> Self {
        let rig = Rig::with(RigOptions {
            groups: 2,
            iobuf: dma::IobufOptions {
                small_pool_count: 64 + 6,
                large_pool_count: 2,
                backing: dma::BackingPreference::Plain4K,
                ..dma::IobufOptions::default()
            },
            ..RigOptions::default()
        });
        let device = TestDevice::new(512, 64);
        let bdev = bdev(Arc::clone(&device) as _, rig.now);
        let subsystem = Self::subsystem(&rig);
        let subsystems = vec![Arc::clone(&subsystem)];
        let mut world = Self {
            rig,
            ends: Vec::new(),
            subsystem,
            device,
            bdev,
            tickets: Vec::new(),
            pauses: Vec::new(),
            subsystems,
        };
        world.run(Action::AddNamespace { nsid: 1 });
        for group in [0, 1] {
            world.run(Action::Dial { group });
        }
        for (end, qid) in [(0, 0), (1, 1)] {
            world.run(Action::Connect {
                end,
                qid,
                controller: 0,
                name: 7,
                other_host: false,
            });
            world.run(Action::Enable {
                end: 0,
                en: true,
                shuts_down: false,
            });
        }
        world
    }

    fn subsystem(rig: &Rig) -> Arc<Subsystem> {
        rig.subsystem_with(SubsystemOptions {
            allow_any_host: true,
            ana_reporting: true,
            max_cntlid: 6,
            ..SubsystemOptions::new(nqn(NQN))
        })
    }

    fn end(&self, index: usize) -> &End {
        &self.ends[index % self.ends.len()]
    }

    fn push(&mut self, end: usize, sqe: Sqe, data: Vec<u8>) {
        let end = self.end(end).clone();
        let is_full = end.wire().capsules.len() > 100;
        if !is_full && end.wire().closed.is_none() {
            end.wire().capsules.push_back((sqe, data));
        }
    }

    fn run(&mut self, action: Action) {
        self.act(action);
        self.rig.poll();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial { group } => {
                if self.ends.len() < 24 {
                    let end = self.rig.dial_in(group);
                    self.ends.push(end);
                }
            }
            Action::Connect {
                end,
                qid,
                controller,
                name,
                other_host,
            } => {
                let mut connect = Connect::admin(if name == 0 { DISCOVERY } else { NQN });
                connect.command.qid = Qid(qid);
                connect.command.kato_ms = 20_000;
                connect.hostnqn = if other_host { OTHER_HOST } else { HOST }.into();
                if qid > 0 {
                    let controllers = self.subsystem.controllers();
                    let id = controllers
                        .get(controller)
                        .map_or(Cntlid(1), |c| c.cntlid());
                    connect.cntlid = id;
                }
                let (sqe, data) = connect.capsule(Cid(50));
                self.push(end, sqe, data);
            }
            Action::Send { end, sqe, len } => {
                let sgl = sqe.sgl();
                let len = if sgl.is_in_capsule() {
                    sgl.len() as usize % 8193
                } else {
                    len
                };
                self.push(end, *sqe, vec![1; len]);
            }
            Action::Enable {
                end,
                en,
                shuts_down,
            } => {
                let mut cc = if en { enabled() } else { Cc::default() };
                if shuts_down {
                    cc = cc.with_shn(ShutdownNotification::Normal);
                }
                self.push(end, property_set(Cid(51), cc), Vec::new());
            }
            Action::HoldData { end, holds } => self.end(end).wire().holds_data = holds,
            Action::Damage { end, cid } => self.end(end).wire().damaged = vec![Cid(cid)],
            Action::HoldReplies { end, holds } => self.end(end).wire().holds_replies = holds,
            Action::Cut { end } => self.end(end).wire().is_cut = true,
            Action::HoldDevice { holds, can_abort } => {
                let mut device = self.device.state();
                device.holds = holds;
                device.can_abort = can_abort;
            }
            Action::FailDevice => {
                self.device.state().failures.push_back(IoError::MediaRead);
            }
            Action::Advance { ms } => self.rig.advance(Duration::from_millis(ms)),
            Action::PollOne { group } => {
                let now = self.rig.now;
                self.rig.groups[group].poll(now);
            }
            other => self.configure(other),
        }
    }

    fn configure(&mut self, action: Action) {
        let subsystem = Arc::clone(&self.subsystem);
        let ticket = match action {
            Action::Pause { nsid } => {
                let ticket = subsystem.pause(Nsid(nsid)).ok();
                if ticket.is_some() {
                    self.pauses.push((subsystem, Nsid(nsid)));
                }
                ticket
            }
            Action::Resume { nsid } => {
                let found = self.pauses.iter().position(|(_, paused)| paused.0 == nsid);
                if let Some((subsystem, nsid)) = found.map(|index| self.pauses.remove(index)) {
                    subsystem.resume(nsid).unwrap();
                }
                None
            }
            Action::AddNamespace { nsid } => subsystem
                .add_namespace(namespace(nsid, &self.bdev))
                .ok()
                .map(|(_, ticket)| ticket),
            Action::RemoveNamespace { nsid } => subsystem.remove_namespace(Nsid(nsid)).ok(),
            Action::Resized => subsystem.namespace_resized(Nsid(1)).ok(),
            Action::Protect { on } => {
                let protect = if on {
                    WriteProtect::WriteProtect
                } else {
                    WriteProtect::None
                };
                subsystem.set_write_protect(Nsid(1), protect).ok()
            }
            Action::Hide { on } => {
                let hosts = Visibility::Hosts([nqn(OTHER_HOST)].into());
                let visibility = if on { hosts } else { Visibility::AllHosts };
                subsystem.set_visibility(Nsid(1), visibility).ok()
            }
            Action::Ana { group, state } => subsystem
                .set_ana_state(&listener(), Some(AnaGroupId(group)), state)
                .ok(),
            Action::AllowAnyHost { on } => subsystem.set_allow_any_host(on).ok(),
            Action::Restart => {
                let ticket = subsystem.stop();
                subsystem.start();
                Some(ticket)
            }
            Action::Recreate => {
                let ticket = self.rig.target.delete_subsystem(subsystem.nqn()).unwrap();
                self.subsystem = Self::subsystem(&self.rig);
                self.subsystems.push(Arc::clone(&self.subsystem));
                Some(ticket)
            }
            _ => None,
        };
        self.tickets.extend(ticket);
    }

    /// Lets everything come to its end, and looks whether it has.
    fn finish(&mut self) {
        {
            let mut device = self.device.state();
            device.holds = false;
            device.failures.clear();
        }
        for (subsystem, nsid) in self.pauses.drain(..) {
            subsystem.resume(nsid).unwrap();
        }
        for end in &self.ends {
            let mut wire = end.wire();
            wire.holds_data = false;
            wire.holds_replies = false;
        }
        self.rig.poll();
        // Beyond the time that a Connect waits for an older queue, within the keep-alive timeout.
        for _ in 0..5 {
            self.rig.advance(Duration::from_secs(1));
        }
        for end in &self.ends {
            let wire = end.wire();
            if wire.closed.is_some() {
                continue;
            }
            for sqe in &wire.outstanding {
                let waits_for_ever =
                    sqe.opcode() == admin::ASYNC_EVENT_REQUEST || sqe.fuse() == Fuse::First;
                assert!(waits_for_ever, "never answered: {sqe:?}");
            }
        }
        for end in &self.ends {
            end.wire().is_cut = true;
        }
        self.rig.poll();
        for ticket in &self.tickets {
            assert!(ticket.is_done(), "a change never comes to its end");
        }
        for subsystem in &self.subsystems {
            assert!(subsystem.controllers().is_empty());
        }
        assert!(self.rig.target.discovery_controllers().is_empty());
        assert_eq!(self.bdev.open_channels(), 0);
        assert_eq!(self.device.state().held, 0);
        assert!(
            self.rig
                .groups
                .iter()
                .all(|group| group.connection_count() == 0)
        );
        self.rig.assert_all_buffers_back();
    }
}

/// PROPTEST_CASES asks for more.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(150),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_that_hosts_and_operators_do_breaks_the_target(
        actions in proptest::collection::vec((action(), any::<bool>()), 1..150),
    ) {
        let mut world = World::new();
        for (action, polls) in actions {
            if polls {
                world.run(action);
            } else {
                world.act(action);
            }
        }
        world.finish();
    }
}
