//! A look at all drives, before any has a name: whose state is on them.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use block::{Bdev, BdevOptions};
use vfio::Bound;

use super::device::DriveDevice;
use super::{CLASS_NVME, Drives, PreparedDrive};
use crate::lvol_driver::look_for_node;
use crate::system_pool::boot::Looked;

/// How long the look takes at most: the node is not served meanwhile.
const LOOK_WITHIN: Duration = Duration::from_secs(20);
/// How long a drive may take to shut down after it; a little more than what RTD3E of most drives says.
const LEAVE_WITHIN: Duration = Duration::from_secs(12);
/// How often that is looked at.
const LEAVE_INTERVAL: Duration = Duration::from_millis(2);

impl Drives {
    /// Brings every drive up, looks at its namespaces and lets go of it. All side by side; in the order of the
    /// addresses. One that takes too long goes on by itself, and is told of.
    pub(in crate::nvmf_runtime) fn look_at_all(self: &Arc<Self>) -> Vec<Looked> {
        let bound = match vfio::bound_functions() {
            Ok(bound) => bound,
            Err(error) => {
                tracing::warn!(%error, "which drives vfio-pci has cannot be read");
                return Vec::new();
            }
        };
        let mut bound: Vec<Bound> = bound
            .into_iter()
            .filter(|bound| bound.class == CLASS_NVME)
            .collect();
        bound.sort_unstable_by(|one, other| one.address.cmp(&other.address));
        tracing::info!(drives = bound.len(), "looking for the system pool");
        let until = Instant::now() + LOOK_WITHIN;
        let (tell, told) = channel();
        let mut failed = Vec::new();
        for bound in &bound {
            let address = &bound.address;
            let (drives, own, tell) = (Arc::clone(self), bound.clone(), tell.clone());
            let started = std::thread::Builder::new()
                .name(format!("look_{address}"))
                .spawn(move || drives.look_at(&own, &tell));
            if let Err(error) = started {
                failed.push((address.clone(), vec![not_seen(address, error.to_string())]));
            }
        }
        drop(tell);
        let mut seen = failed;
        while seen.len() < bound.len()
            && let Ok(one) = told.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            seen.push(one);
        }
        // Each sender goes when its drive has been let go of: they are opened again soon.
        let until = Instant::now() + LEAVE_WITHIN;
        while told
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .is_ok()
        {}
        let addresses = bound.iter().map(|bound| &bound.address);
        let all = addresses.flat_map(|address| {
            let found = seen.iter().find(|(seen, _)| seen == address);
            found.map_or_else(
                || {
                    let within = LOOK_WITHIN.as_secs();
                    vec![not_seen(
                        address,
                        format!("the drive did not answer within {within} s"),
                    )]
                },
                |(_, looked)| looked.clone(),
            )
        });
        all.collect()
    }

    fn look_at(&self, bound: &Bound, tell: &Sender<(String, Vec<Looked>)>) {
        let address = bound.address.as_str();
        let brought = self.bring_up(address, Some(1), LOOK_WITHIN);
        let (looked, prepared) = match brought {
            Ok(prepared) => {
                // Whoever looks for it by its serial number soon need not ask the others.
                self.remember(bound, &prepared);
                (self.look_at_namespaces(address, &prepared), Some(prepared))
            }
            Err(down) => (vec![not_seen(address, down.told(address))], None),
        };
        // Nobody waits any more for what comes late.
        let _ = tell.send((address.to_owned(), looked));
        if let Some(prepared) = prepared {
            let_go(prepared);
        }
    }

    fn look_at_namespaces(&self, address: &str, prepared: &PreparedDrive) -> Vec<Looked> {
        let namespaces = prepared.0.as_ref().map(|handle| handle.namespaces());
        let namespaces = namespaces.unwrap_or_default().into_iter();
        let looked = namespaces.map(|(nsid, namespace)| {
            let name = format!("{address}n{nsid}");
            let device = DriveDevice::new(&name, &namespace);
            let bdev = Bdev::new(BdevOptions::named(&name), device, Instant::now());
            let found = bdev.map_err(|error| error.to_string());
            let found = found.and_then(|bdev| look_for_node(&bdev, self.plane.iobuf_pool()));
            Looked { at: name, found }
        });
        looked.collect()
    }
}

fn not_seen(address: &str, why: String) -> Looked {
    Looked {
        at: address.to_owned(),
        found: Err(why),
    }
}

/// Shuts the drive down and waits for that: it is to be opened again soon.
fn let_go(mut prepared: PreparedDrive) {
    let Some(handle) = prepared.0.take() else {
        return;
    };
    handle.shut_down();
    let until = Instant::now() + LEAVE_WITHIN;
    while !handle.is_ended() && Instant::now() < until {
        std::thread::sleep(LEAVE_INTERVAL);
    }
}
