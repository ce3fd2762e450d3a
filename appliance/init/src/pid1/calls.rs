//! What the control socket asks for.

use super::Init;
use crate::clock;
use crate::config::{Effective, Source, merge, parse_document};
use crate::control::{Answer, LOG_LINES_MAX, Request};
use crate::modules;
use crate::service::MACHINE;
use crate::shutdown::Goal;
use crate::system::System;
use crate::tunables;

impl Init {
    pub(super) fn answer(&mut self, request: Request) -> Answer {
        let now_ms = self.now_ms();
        match request {
            Request::Status => Answer::Status {
                groups: self.board.groups().clone(),
            },
            Request::Identity => Answer::Identity {
                identity: self.identity.clone(),
            },
            Request::Services => Answer::Services {
                services: self.supervisor.reports(now_ms),
            },
            Request::Logs {
                service,
                after,
                max,
            } => self.with(&service, |init, at| {
                let max = max.min(LOG_LINES_MAX);
                let (lines, lost) = init.outputs[at].ring.after(after, max);
                Answer::Logs { lines, lost }
            }),
            Request::Restart { service } => self.with(&service, |init, at| {
                let orders = init.supervisor.restart(at, now_ms);
                init.carry_out(orders);
                done(format!("{service} is started again"))
            }),
            Request::Stop { service } => self.with(&service, |init, at| {
                let orders = init.supervisor.stop(at, now_ms);
                init.carry_out(orders);
                done(format!("{service} ends"))
            }),
            Request::Configuration => configuration(&self.effective, Vec::new()),
            Request::Configure { document, dry_run } => self.configure(&document, dry_run),
            Request::Prepare => {
                self.prepare_at_ms = Some(now_ms);
                done("the hardware is looked at".to_owned())
            }
            Request::DriveModule { loaded } => self.drive_module(loaded),
            Request::Health { service, ok, text } => self.with(&service, |init, at| {
                init.supervisor.report_health(at, ok, &text, now_ms);
                done("heard".to_owned())
            }),
            Request::TimeSynced { by } => {
                self.board.add("time", vec![clock::synced(&by)]);
                done("heard".to_owned())
            }
            Request::Poweroff => self.begin_end(Goal::Poweroff, "the control socket"),
            Request::Reboot => self.begin_end(Goal::Reboot, "the control socket"),
            Request::Halt => self.begin_end(Goal::Halt, "the control socket"),
        }
    }

    fn with(&mut self, name: &str, act: impl FnOnce(&mut Self, usize) -> Answer) -> Answer {
        match self.supervisor.find(name) {
            Some(at) => act(self, at),
            None => Answer::Error {
                text: format!("there is no service {name:?}"),
            },
        }
    }

    fn drive_module(&self, loaded: bool) -> Answer {
        let answer = if loaded {
            let line = self.system.text("/proc/cmdline").unwrap_or_default();
            let words = crate::config::words(&line);
            let config = &self.effective.document.modules;
            modules::load_for_drives(&self.system, &words, config)
        } else {
            modules::unload_for_drives(&self.system)
        };
        match answer {
            Ok(text) => done(text),
            Err(text) => Answer::Error { text },
        }
    }

    /// All of the agent's document or none of it: with a problem nothing changes.
    fn configure(&mut self, text: &str, dry_run: bool) -> Answer {
        let new = parse_document(Source::Agent, text.as_bytes());
        let mut given = self.given.clone();
        given.retain(|each| each.source != Source::Agent);
        given.push(new);
        let effective = merge(&given);
        let mut problems = effective.problems.iter();
        if problems.any(|problem| problem.source == Source::Agent) {
            let later = vec!["nothing was changed: the document has problems".to_owned()];
            return configuration(&effective, later);
        }
        let later = later(&self.effective, &effective);
        let answer = configuration(&effective, later);
        if dry_run {
            return answer;
        }
        let before = std::mem::replace(&mut self.effective, effective);
        self.given = given;
        self.show_configuration();
        let document = self.effective.document.clone();
        if let Some(name) = &document.hostname
            && before.document.hostname != document.hostname
            && self.system.set_hostname(name).is_ok()
        {
            self.identity.hostname.clone_from(name);
        }
        if before.document.sysctl != document.sysctl {
            let written = tunables::write_all(&self.system, &document.sysctl);
            self.board.set("sysctl", written);
        }
        if before.document.machine != document.machine {
            self.write_machine_config();
            self.prepare_at_ms = self.supervisor.find(MACHINE).map(|_| self.now_ms());
        }
        answer
    }
}

/// What another configuration changes only later.
fn later(before: &Effective, after: &Effective) -> Vec<String> {
    let (before, after) = (&before.document, &after.document);
    let mut later = Vec::new();
    let mut changed = |key: &str, is_so: bool, when: &str| {
        if is_so {
            later.push(format!("{key} takes effect {when}"));
        }
    };
    let reboot = "after a reboot that finds it in a source that is read at boot";
    changed("modules", before.modules != after.modules, reboot);
    changed("watchdog", before.watchdog != after.watchdog, reboot);
    changed("crash", before.crash != after.crash, reboot);
    changed("services", before.services != after.services, reboot);
    let cleared = before.hostname.is_some() && after.hostname.is_none();
    changed("hostname", cleared, reboot);
    later
}

fn configuration(effective: &Effective, later: Vec<String>) -> Answer {
    match toml::to_string(&effective.document) {
        Ok(document) => Answer::Configuration {
            document,
            values: effective.values.clone(),
            problems: effective.problems.clone(),
            later,
        },
        Err(error) => Answer::Error {
            text: format!("the configuration cannot be written down: {error}"),
        },
    }
}

fn done(text: String) -> Answer {
    Answer::Done { text }
}
