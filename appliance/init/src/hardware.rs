//! The hardware made as the configuration wants it: huge pages, then drives and ports. The work of
//! the crate `machine`; here is what it leaves to its caller: claims that are remembered before a
//! device is taken, waiting for what comes late, and telling.
//!
//! A child of process 1 does this (`adit-init machine`): the kernel may take seconds for each step.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use machine::{
    Action, Applied, Claim, Config, Facts, Host, PciDevice, Plan, Reason, Refusal, Root,
    Verification, apply, claim_of, plan, verify,
};

use crate::status::{State, Status, write_whole};

/// What the child is told: a `machine::Config` as JSON.
pub(crate) const CONFIG_FILE: &str = "/run/adit/machine.json";
/// What is remembered of devices that were taken. A reboot forgets it, as it forgets bindings.
pub(crate) const CLAIMS_FILE: &str = "/run/adit/claims.json";
/// What the child tells.
pub(crate) const STATUS_FILE: &str = "/run/adit/status/machine.json";
/// How long an effect may take, such as `/dev/vfio/N`.
const EFFECT_WAIT: Duration = Duration::from_secs(5);
/// How long the kernel's driver may take until it shows the serial number of a drive that was just
/// plugged in. A drive that takes longer is looked at with the next event.
const SERIAL_WAIT: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The kernel's driver for drives.
const NVME_DRIVER: &str = "nvme";
/// A device that is busy at first is tried again; after these it is told.
const TRIES: usize = 3;

/// The child: prepares this machine, tells on standard output and in [`STATUS_FILE`].
pub(crate) fn run() -> Result<(), String> {
    let config = match fs::read(CONFIG_FILE) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| format!("{CONFIG_FILE} is damaged: {error}"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Config::default(),
        Err(error) => return Err(format!("{CONFIG_FILE} cannot be read: {error}")),
    };
    let claims: Vec<Claim> = fs::read(CLAIMS_FILE)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let mut save = |claims: &[Claim]| {
        let bytes = serde_json::to_vec_pretty(claims)?;
        write_whole(Path::new(CLAIMS_FILE), &bytes)
    };
    let start = Instant::now();
    let mut wait = |since: Duration, limit: Duration| {
        std::thread::sleep(LOOK_AGAIN);
        start.elapsed().saturating_sub(since) < limit
    };
    let mut clock = || start.elapsed();
    let mut patience = Patience {
        now: &mut clock,
        wait: &mut wait,
    };
    let done = prepare(&Root::new("/"), config, claims, &mut save, &mut patience)?;
    for status in &done {
        println!("{}: {}", status.name, status.text);
    }
    let bytes = serde_json::to_vec_pretty(&done).map_err(|error| error.to_string())?;
    write_whole(Path::new(STATUS_FILE), &bytes)
        .map_err(|error| format!("{STATUS_FILE} cannot be written: {error}"))
}

/// How long to ask again: `wait` sleeps a little and says whether there is time left since a moment
/// of `now`, out of a limit.
pub(crate) struct Patience<'a> {
    pub(crate) now: &'a mut dyn FnMut() -> Duration,
    pub(crate) wait: &'a mut dyn FnMut(Duration, Duration) -> bool,
}

type Save<'a> = &'a mut dyn FnMut(&[Claim]) -> io::Result<()>;

/// Reads the host, plans, and carries the plan out.
pub(crate) fn prepare(
    host: &dyn Host,
    mut config: Config,
    claims: Vec<Claim>,
    save: Save<'_>,
    patience: &mut Patience<'_>,
) -> Result<Vec<Status>, String> {
    config.claims = claims;
    let mut done = Vec::new();
    let mut facts = read(host)?;
    let since = (patience.now)();
    while waits_for_a_serial(&facts, &config) && (patience.wait)(since, SERIAL_WAIT) {
        facts = read(host)?;
    }
    done.extend(forget_the_gone(&facts, &mut config.claims, save));
    let Plan {
        actions,
        refusals,
        notes,
    } = plan(&facts, &config);
    for action in &actions {
        done.push(carry_out(host, action, &mut config.claims, save, patience));
    }
    done.extend(refusals.iter().map(refused));
    let notes = notes.into_iter().enumerate();
    done.extend(notes.map(|(at, note)| Status::new(format!("note {}", at + 1), State::Ok, note)));
    if done.is_empty() {
        let text = "the configuration asks for nothing that is not so";
        done.push(Status::new("machine", State::Ok, text));
    }
    Ok(done)
}

fn read(host: &dyn Host) -> Result<Facts, String> {
    Facts::read(host).map_err(|error| with_source(&error))
}

/// Whether a rule for a serial number cannot be followed yet, and the kernel's driver is about to
/// show one. No event tells of that moment, and a look at every event of that driver would follow
/// each failed try to take a drive from it with another one, for ever.
fn waits_for_a_serial(facts: &Facts, config: &Config) -> bool {
    let comes_up = |device: &PciDevice| {
        let shown = device.nvme.as_ref().map(|nvme| nvme.serial.as_str());
        device.driver.as_deref() == Some(NVME_DRIVER) && shown.unwrap_or_default().is_empty()
    };
    let is_unclear =
        |reason: &Reason| matches!(reason, Reason::SerialNotShown(_) | Reason::ExceptUnclear(_));
    facts.pci.iter().any(comes_up) && {
        let mut refusals = plan(facts, config).refusals.into_iter();
        refusals.any(|refusal| refusal.reasons.iter().any(is_unclear))
    }
}

/// Claims on functions that were pulled out: what is plugged in there later is another one.
fn forget_the_gone(facts: &Facts, claims: &mut Vec<Claim>, save: Save<'_>) -> Option<Status> {
    if facts.pci.is_empty() {
        // The bus could not be read; that says nothing of what is on it.
        return None;
    }
    let before = claims.len();
    claims.retain(|claim| facts.device(claim.address).is_some());
    if claims.len() == before {
        return None;
    }
    let error = save(claims).err()?;
    let text = format!("{CLAIMS_FILE} names devices that are gone, and cannot be written: {error}");
    Some(Status::new("claims", State::Degraded, text))
}

fn refused(refusal: &Refusal) -> Status {
    let reasons: Vec<String> = refusal.reasons.iter().map(ToString::to_string).collect();
    Status::new(
        refusal.subject.to_string(),
        State::Failed,
        reasons.join("; "),
    )
}

fn carry_out(
    host: &dyn Host,
    action: &Action,
    claims: &mut Vec<Claim>,
    save: Save<'_>,
    patience: &mut Patience<'_>,
) -> Status {
    let name = action.to_string();
    // Remembered first: a device that was taken and forgotten could never be given back.
    // A claim that is there already may be that of another drive, which was in this place before.
    if let Some(claim) = claim_of(action)
        && !claims.contains(&claim)
    {
        let before = claims.clone();
        claims.retain(|each| each.address != claim.address);
        claims.push(claim);
        if let Err(error) = save(claims) {
            *claims = before;
            let text = format!("it is not taken: {CLAIMS_FILE} cannot be written: {error}");
            return Status::new(name, State::Failed, text);
        }
    }
    let mut result = apply(action, host);
    for _ in 1..TRIES {
        if result.is_ok() || !matches!(action, Action::Bind { .. }) {
            break;
        }
        (patience.wait)((patience.now)(), EFFECT_WAIT);
        result = apply(action, host);
    }
    let status = match result {
        Ok(Applied::Done) => Status::new(name, State::Ok, "done"),
        Ok(Applied::AlreadySo) => Status::new(name, State::Ok, "was so already"),
        Ok(Applied::Partly(text)) => return Status::new(name, State::Degraded, text),
        Ok(_) => Status::new(name, State::Waiting, "done"),
        Err(error) => return Status::new(name, State::Failed, with_source(&error)),
    };
    let since = (patience.now)();
    loop {
        match verify(action, host) {
            Verification::Verified => break,
            Verification::Failed(text) => return Status::new(status.name, State::Failed, text),
            Verification::NotYet(text) => {
                if !(patience.wait)(since, EFFECT_WAIT) {
                    return Status::new(status.name, State::Failed, text);
                }
            }
        }
    }
    if let Action::GiveBack { address, .. } = action {
        claims.retain(|claim| claim.address != *address);
        if let Err(error) = save(claims) {
            let text = format!("done; {CLAIMS_FILE} cannot be written: {error}");
            return Status::new(status.name, State::Degraded, text);
        }
    }
    Status {
        state: State::Ok,
        ..status
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
