//! Setting drives as a profile wants them.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use api::v1::bdev_spec::Kind;
use api::v1::{Bdev, BdevSpec, FormatDriveRequest, GetBdevRequest, NvmeBdev, UpdateBdevRequest};
use firmware::{Change, DriveState, Node, Plan, Value, changes, check};
use serde_json::json;

use super::super::bdev::{self, Client};
use super::super::{Context, connect};
use super::{drives, verdict};
use crate::failure::Failure;
use crate::grammar::{FirmwareApply, Format, Global};
use crate::output;

/// A change and what became of it.
struct Done {
    change: Change,
    /// `None`: it was done. `Some`: why it was not.
    problem: Option<String>,
}

pub(super) async fn run(global: &Global, apply: &FirmwareApply) -> Result<(), Failure> {
    let mut profile = super::profile(&apply.profile)?;
    // The rest is not applied, and so does not count.
    profile
        .wanted
        .retain(|wanted| wanted.setting.section == "nvme");
    profile.drive_firmware.clear();
    profile.system_firmware.clear();
    let context = connect(global).await?;
    let mut client = bdev::client(&context);
    let states = states(&client, &apply.drive).await?;
    let plan = changes(&profile, &states);
    let mut done = Vec::new();
    for change in plan.changes.clone() {
        let problem = if apply.yes {
            make(&mut client, &change, &apply.serial).await.err()
        } else {
            Some("not done: give --yes".to_owned())
        };
        done.push(Done { change, problem });
    }
    show(&context, apply.yes, &plan, &done)?;
    if done.iter().any(|done| done.problem.is_some()) || !plan.refused.is_empty() {
        let open = done.iter().filter(|done| done.problem.is_some()).count();
        return Err(Failure::FirmwareDiffers {
            profile: profile.name,
            differs: open + plan.refused.len(),
        });
    }
    // What the drives say now is what counts.
    let bdevs = bdev::all(&client).await?;
    let is_meant = |bdev: &&Bdev| is_meant(bdev, &apply.drive);
    let drives = bdevs
        .iter()
        .filter(is_meant)
        .filter_map(drives::drive)
        .collect();
    verdict(
        &check(&profile, &Node::remote(drives, "not looked at")),
        false,
    )
}

fn is_meant(bdev: &Bdev, names: &[String]) -> bool {
    let name = bdev.spec.as_ref().map(|spec| &spec.name);
    names.is_empty() || name.is_some_and(|name| names.contains(name))
}

/// The drives, with who uses their namespaces.
async fn states(client: &Client, names: &[String]) -> Result<Vec<DriveState>, Failure> {
    let bdevs = bdev::all(client).await?;
    let meant = bdevs.iter().filter(|bdev| is_meant(bdev, names));
    let mut states: Vec<DriveState> = meant.filter_map(drives::state).collect();
    if let Some(missing) = names
        .iter()
        .find(|name| !states.iter().any(|s| s.name == **name))
    {
        return Err(Failure::Usage(format!("there is no drive {missing:?}")));
    }
    for namespace in states.iter_mut().flat_map(|state| &mut state.namespaces) {
        let name = namespace.name.clone();
        // One without a block device has no users.
        if let Ok(found) = client.clone().get_bdev(GetBdevRequest { name }).await {
            let found = found.into_inner();
            let kind = &found.claim_type;
            let users = found.claimed_by.iter().map(|user| format!("{kind} {user}"));
            namespace.users = users.collect();
        }
    }
    Ok(states)
}

/// Makes one change. `Err`: why not, for people.
async fn make(client: &mut Client, change: &Change, serials: &[String]) -> Result<(), String> {
    match change {
        Change::Feature {
            drive, feature, to, ..
        } => set(client, drive, feature, to).await,
        Change::Format {
            drive,
            serial,
            nsid,
            bdev,
            to: (data, metadata),
            ..
        } => {
            if !serials.contains(serial) {
                ask(bdev, serial)?;
            }
            let request = FormatDriveRequest {
                name: drive.clone(),
                serial_number: serial.clone(),
                nsid: *nsid,
                data_size: u32::try_from(*data).unwrap_or(u32::MAX),
                metadata_size: u32::try_from(*metadata).unwrap_or(u32::MAX),
            };
            let formatted = client.format_drive(request).await;
            formatted
                .map(drop)
                .map_err(|status| status.message().to_owned())
        }
    }
}

async fn set(
    client: &mut Client,
    drive: &str,
    feature: &'static str,
    to: &Value,
) -> Result<(), String> {
    let mut nvme = NvmeBdev::default();
    match (feature, to) {
        ("power_state", Value::Number(state)) => nvme.power_state = u32::try_from(*state).ok(),
        ("arbitration_burst", Value::Number(burst)) => {
            nvme.arbitration_burst = u32::try_from(*burst).ok();
        }
        ("write_cache", Value::Bool(on)) => nvme.write_cache = Some(*on),
        _ => return Err(format!("{feature} cannot be set to {to}")),
    }
    let request = UpdateBdevRequest {
        bdev: Some(BdevSpec {
            name: drive.to_owned(),
            kind: Some(Kind::Nvme(nvme)),
            ..BdevSpec::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![format!("nvme.{feature}")],
        }),
        expected_generation: None,
    };
    let updated = client.update_bdev(request).await;
    let bdev = updated
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let features = bdev
        .nvme
        .and_then(|drive| drive.features)
        .unwrap_or_default();
    let problem = features
        .problem
        .split("; ")
        .find(|problem| problem.starts_with(feature));
    problem.map_or(Ok(()), |problem| Err(problem.to_owned()))
}

/// Lets the serial number be typed, where a person sits.
fn ask(bdev: &str, serial: &str) -> Result<(), String> {
    if !std::io::stdin().is_terminal() {
        return Err(format!("its data would be lost: give --serial {serial}"));
    }
    let mut errors = std::io::stderr().lock();
    let asked = write!(
        errors,
        "{bdev} is going to be formatted: all that it holds is lost.\n\
         Type the serial number of the drive, {serial}, to go on: "
    );
    asked
        .and_then(|()| errors.flush())
        .map_err(|error| error.to_string())?;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| error.to_string())?;
    if line.trim() == serial {
        Ok(())
    } else {
        Err("another serial number was typed".to_owned())
    }
}

fn told(change: &Change) -> String {
    match change {
        Change::Feature {
            drive,
            feature,
            from,
            to,
        } => {
            let from = from
                .as_ref()
                .map_or("unknown".to_owned(), ToString::to_string);
            format!("drive {drive}: {feature} from {from} to {to}")
        }
        Change::Format {
            drive,
            serial,
            bdev,
            from,
            to,
            ..
        } => {
            let text = |(data, metadata): (u64, u64)| format!("{data}+{metadata}");
            let from = from.map_or("unknown".to_owned(), text);
            format!(
                "drive {drive}, serial {serial}: FORMAT {bdev} from {from} to {} bytes, all its \
                 data is lost",
                text(*to)
            )
        }
    }
}

fn show(context: &Context, yes: bool, plan: &Plan, done: &[Done]) -> Result<(), Failure> {
    if context.format == Format::Json {
        let changes: Vec<_> = done
            .iter()
            .map(|done| {
                json!({
                    "change": done.change,
                    "done": done.problem.is_none(),
                    "problem": done.problem.clone().unwrap_or_default(),
                })
            })
            .collect();
        let refused = &plan.refused;
        return output::json(&json!({ "dry_run": !yes, "changes": changes, "refused": refused }));
    }
    let mut text = String::new();
    for Done { change, problem } in done {
        let change = told(change);
        let line = match problem {
            None => format!("done: {change}\n"),
            Some(problem) if yes => format!("not done: {change}: {problem}\n"),
            Some(_) => format!("would be done: {change}\n"),
        };
        text.push_str(&line);
    }
    for refused in &plan.refused {
        text.push_str(&format!("cannot be done: {refused}\n"));
    }
    if text.is_empty() {
        text.push_str("nothing to do\n");
    }
    output::text(&text)
}
