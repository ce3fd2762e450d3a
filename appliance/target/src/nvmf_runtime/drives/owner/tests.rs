use std::io::Write;

use nvme_driver::AdminRequest;
use nvme_emu::{EmuOptions, Fault, FaultKind};
use nvme_spec::Status;
use nvme_spec::opcode::admin;

use super::super::emulated::Function;
use super::*;

const TURNS_MAX: usize = 20_000;

/// An owner without its thread, turn by turn.
struct Rig {
    function: Arc<Function>,
    controller: Controller,
    owner: Owner,
    now: Instant,
    /// How often the error log was read.
    reads: usize,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let (function, controller) = Function::attach(EmuOptions::default(), now);
        let handle = Arc::new(Handle {
            address: controller.address().to_owned(),
            group: 0,
            bell: Bell::new().unwrap(),
            shared: Mutex::default(),
            ended: watch::Sender::new(false),
        });
        let owner = Owner {
            handle,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
            ready: None,
            leaving: None,
            reason: None,
            next_health: None,
            commands: Commands::default(),
            errors: ErrorLog::default(),
        };
        Self {
            function,
            controller,
            owner,
            now,
            reads: 0,
        }
    }

    fn until_reads(&mut self, reads: usize) {
        for _ in 0..TURNS_MAX {
            if self.reads >= reads {
                return;
            }
            self.now += HEALTH_INTERVAL / 100;
            self.function.emu().step();
            let mut events = Vec::new();
            self.controller.poll(self.now, &mut events);
            for event in events {
                self.reads += usize::from(matches!(event, Event::ErrorLog(_)));
                self.owner.note(&mut self.controller, event, self.now);
            }
            self.owner.watch_health(&mut self.controller, self.now);
        }
        panic!("the error log is not read");
    }
}

/// Lines of the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_entry_of_the_error_log_is_told_once_and_stays_in_the_report() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone());
    let mut rig = Rig::new();
    tracing::subscriber::with_default(log.finish(), || {
        rig.until_reads(1);
        assert!(rig.owner.handle.report().errors.is_empty());
        let status = FaultKind::Status(Status::INTERNAL_ERROR);
        let fault = Fault::admin(admin::GET_FEATURES, status);
        rig.function.emu().inject(fault);
        let request = AdminRequest::get_features(1);
        rig.controller.admin(&request, rig.now).unwrap();
        rig.until_reads(4);
    });
    let errors = rig.owner.handle.report().errors;
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].error_count, 1);
    assert_eq!(errors[0].submission_queue_id, Some(0));
    assert_eq!(errors[0].status, "internal error (0h/06h)");
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let told: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("error log"))
        .collect();
    assert_eq!(told.len(), 1, "{text}");
    let expected = "error_count=1 status=\"internal error (0h/06h)\" sqid=0";
    assert!(told[0].contains(expected), "{text}");
}
