use std::sync::Arc;

use block::BlockDevice as _;
use nvme_driver::Event;
use nvme_emu::EmuOptions;

use super::super::emulated::Function;
use super::*;

const TURNS_MAX: usize = 20_000;

/// What the owner's thread does, turn by turn.
struct Owner {
    function: Arc<Function>,
    controller: Controller,
    commands: Commands,
    now: Instant,
}

impl Owner {
    fn new(options: EmuOptions) -> Self {
        let now = Instant::now();
        let (function, controller) = Function::attach(options, now);
        let mut owner = Self {
            function,
            controller,
            commands: Commands::default(),
            now,
        };
        owner.until("features", |owner| owner.commands.features.clone());
        owner
    }

    fn turn(&mut self) {
        self.now += Duration::from_millis(1);
        self.function.emu().step();
        let mut events = Vec::new();
        self.controller.poll(self.now, &mut events);
        for event in events {
            match event {
                Event::State(ControllerState::Running) => self.commands.running(),
                Event::NamespaceAdded(there) => self.commands.returned(there.nsid().0),
                Event::AdminDone { id, result } => {
                    let controller = &mut self.controller;
                    self.commands.done(controller, id, result, self.now);
                }
                _ => {}
            }
        }
        self.commands.poll(&mut self.controller, self.now);
    }

    fn until<T>(&mut self, what: &str, mut seen: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..TURNS_MAX {
            self.turn();
            if let Some(seen) = seen(self) {
                return seen;
            }
        }
        panic!("not seen: {what}");
    }

    fn want(&mut self, wanted: Wanted) -> NvmeDriveFeatures {
        let (done, mut tried) = oneshot::channel();
        self.commands.want(wanted, done);
        self.until("the features to be tried", |owner| {
            let waits = oneshot::error::TryRecvError::Empty;
            let is_tried = tried.try_recv() != Err(waits);
            owner.commands.features.clone().filter(|_| is_tried)
        })
    }

    fn format(&mut self, nsid: u32, data_bytes: u32) -> Result<(), String> {
        let (done, mut ended) = oneshot::channel();
        self.commands.format(Format {
            nsid,
            data_bytes,
            metadata_bytes: 0,
            done,
        });
        self.until("the end of the format", |_| ended.try_recv().ok())
    }

    fn block_size(&self) -> u32 {
        let namespace = self.controller.namespaces().next().unwrap();
        assert!(!namespace.is_gone());
        namespace.geometry().block_size
    }
}

fn wanted() -> Wanted {
    Wanted {
        power_state: Some(1),
        write_cache: Some(false),
        arbitration_burst: Some(7),
    }
}

#[test]
fn features_are_read_set_and_set_again_after_a_reset() {
    let mut owner = Owner::new(EmuOptions::default());
    let features = owner.commands.features.clone().unwrap();
    assert_eq!(features.power_state, Some(0));
    assert_eq!(features.power_state_max, 2);
    assert_eq!(features.write_cache, Some(true));
    assert!(features.can_format && !features.formats_all_namespaces);
    let as_wanted = |features: &NvmeDriveFeatures| {
        features.problem.is_empty()
            && features.power_state == Some(1)
            && features.write_cache == Some(false)
            && features.arbitration_burst == Some(7)
    };
    let features = owner.want(wanted());
    assert!(as_wanted(&features), "{features:?}");
    owner.controller.reset();
    owner.until("the reset", |owner| {
        (owner.controller.state() != ControllerState::Running).then_some(())
    });
    owner.commands.features = None;
    let features = owner.until("features", |owner| owner.commands.features.clone());
    assert!(as_wanted(&features), "{features:?}");
}

#[test]
fn what_cannot_be_set_is_told_with_the_drive() {
    let mut owner = Owner::new(EmuOptions {
        volatile_write_cache: false,
        ..EmuOptions::default()
    });
    let features = owner.want(Wanted {
        power_state: Some(9),
        ..wanted()
    });
    assert_eq!(features.power_state, Some(0));
    assert_eq!(features.write_cache, None);
    for problem in [
        "power_state: admin command 0x09",
        "write_cache: the drive has no volatile write cache",
    ] {
        assert!(features.problem.contains(problem), "{features:?}");
    }
}

#[test]
fn a_namespace_is_formatted_once() {
    let mut owner = Owner::new(EmuOptions::default());
    assert_eq!(owner.block_size(), 512);
    owner.format(1, 4096).unwrap();
    assert_eq!(owner.block_size(), 4096);
    let there = Arc::clone(owner.controller.namespaces().next().unwrap());
    owner.format(1, 4096).unwrap();
    // It has that format: nothing was done.
    assert!(!there.is_gone());
    let error = owner.format(1, 8192).unwrap_err();
    assert!(error.contains("it has 512+0, 4096+0"), "{error}");
    assert!(!there.is_gone());
    owner.format(7, 4096).unwrap_err();
}

#[test]
fn bits_of_something_else_stay_as_they_are() {
    let wanted = Wanted {
        power_state: Some(3),
        write_cache: Some(true),
        arbitration_burst: Some(5),
    };
    // WH, the workload hint, is in bits 7:5.
    assert_eq!(wanted.value(fid::POWER_MANAGEMENT, 0x41), Some(0x43));
    // The weights of the priorities are above the burst.
    assert_eq!(
        wanted.value(fid::ARBITRATION, 0x0102_0307),
        Some(0x0102_0305)
    );
    assert_eq!(wanted.value(fid::VOLATILE_WRITE_CACHE, 0), Some(1));
    assert_eq!(Wanted::default().value(fid::POWER_MANAGEMENT, 1), None);
}

#[test]
fn what_the_drive_cannot_do_is_refused() {
    let features = NvmeDriveFeatures {
        power_state_max: 4,
        ..NvmeDriveFeatures::default()
    };
    let check = |power_state, write_cache| {
        let wanted = Wanted {
            power_state,
            write_cache,
            arbitration_burst: None,
        };
        check(&wanted, &features, 1 << 3 | 1 << 4)
    };
    assert_eq!(check(Some(2), None), Ok(()));
    assert!(
        check(Some(3), None)
            .unwrap_err()
            .contains("not operational")
    );
    assert!(check(Some(5), None).unwrap_err().contains("its last is 4"));
    assert!(
        check(None, Some(false))
            .unwrap_err()
            .contains("no volatile")
    );
}
