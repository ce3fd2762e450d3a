//! Firmware and drives beside what they should be.

mod apply;
mod drives;

use std::path::Path;

use api::v1::ReadFirmwareRequest;
use api::v1::system_service_client::SystemServiceClient;
use firmware::{BUILT_IN, Drive, Item, Known, Node, Profile, Report, Tree, Verdict, check};
use serde_json::json;

use super::{bdev, connect};
use crate::failure::Failure;
use crate::grammar::{FirmwareLook, FirmwareVerb, Format, Global};
use crate::output;
use crate::table::Table;

/// Longest profile that is read.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

pub(super) async fn run(global: &Global, verb: FirmwareVerb) -> Result<(), Failure> {
    match verb {
        FirmwareVerb::Check(look) => {
            let report = report(global, &look).await?;
            show(global.output, &report, check_table)?;
            verdict(&report, look.allow_unreadable)
        }
        FirmwareVerb::Diff(look) => {
            let mut report = report(global, &look).await?;
            let matters =
                |item: &Item| matches!(item.verdict, Verdict::Differs | Verdict::Unreadable);
            report.items.retain(matters);
            show(global.output, &report, differences)?;
            verdict(&report, look.allow_unreadable)
        }
        FirmwareVerb::Apply(apply) => apply::run(global, &apply).await,
        FirmwareVerb::Profiles => profiles(global.output),
    }
}

/// A profile that comes with the program, or a file.
fn profile(name: &str) -> Result<Profile, Failure> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(each, _)| *each == name) {
        return parsed(name, text);
    }
    let file = |source| Failure::File {
        path: name.to_owned(),
        source,
    };
    let path = Path::new(name);
    let is_name = !name.contains(['/', '.']);
    if is_name && !path.exists() {
        let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
        return Err(Failure::Usage(format!(
            "there is neither a profile nor a file {name:?}; the profiles are {}",
            names.join(", ")
        )));
    }
    let metadata = std::fs::metadata(path).map_err(file)?;
    if metadata.len() > PROFILE_BYTES_MAX {
        return Err(file(std::io::Error::other("too long for a profile")));
    }
    parsed(name, &std::fs::read_to_string(path).map_err(file)?)
}

fn parsed(name: &str, text: &str) -> Result<Profile, Failure> {
    Profile::parse(name, text).map_err(|error| Failure::Profile(error.to_string()))
}

/// The drives of `aditd`, or why it cannot be asked.
async fn drives(global: &Global) -> Result<Known<Vec<Drive>>, Failure> {
    let context = match connect(global).await {
        Ok(context) => context,
        Err(Failure::Unreachable { server, reason }) => {
            return Ok(Err(format!("aditd at {server} cannot be asked: {reason}")));
        }
        Err(other) => return Err(other),
    };
    let client = bdev::client(&context);
    Ok(match bdev::all(&client).await {
        Ok(bdevs) => Ok(bdevs.iter().filter_map(drives::drive).collect()),
        Err(failure) => Err(format!("aditd cannot be asked: {failure}")),
    })
}

/// A node over the network: what its agent tells of it, and the drives of `aditd`. Where there is no agent, or an
/// older one, those drives alone.
async fn far(
    global: &Global,
    server: String,
    drives: Known<Vec<Drive>>,
    profile: &Profile,
) -> Result<Node, Failure> {
    // Readings of a large node are longer than an answer is by default.
    const READINGS_BYTES_MAX: usize = 32 << 20;
    let context = connect(global).await?;
    let channel = context.channel.clone();
    let mut client = SystemServiceClient::with_interceptor(channel, context.code.clone())
        .max_decoding_message_size(READINGS_BYTES_MAX);
    let ports = profile.ports.clone().unwrap_or_default();
    let why = match client.read_firmware(ReadFirmwareRequest { ports }).await {
        Ok(answer) => {
            let readings = serde_json::from_str(&answer.into_inner().json);
            return match readings {
                Ok(readings) => Ok(Node::told(readings, drives)),
                Err(error) => Err(Failure::Unreachable {
                    server,
                    reason: format!("its agent tells what is not understood: {error}"),
                }),
            };
        }
        Err(status) => status.message().to_owned(),
    };
    match drives {
        Ok(drives) => {
            let why =
                format!("aditctl does not run on that node, and it tells nothing of itself: {why}");
            Ok(Node::remote(drives, &why))
        }
        Err(reason) => Err(Failure::Unreachable { server, reason }),
    }
}

async fn report(global: &Global, look: &FirmwareLook) -> Result<Report, Failure> {
    let mut profile = profile(&look.profile)?;
    if !look.only.is_empty() {
        let is_meant = |name: &str| look.only.iter().any(|prefix| name.starts_with(prefix));
        profile
            .wanted
            .retain(|wanted| is_meant(&wanted.setting.name()));
        if !is_meant("nvme.firmware") {
            profile.drive_firmware.clear();
        }
        if !is_meant("system.firmware") {
            profile.system_firmware.clear();
        }
    }
    let mut node = match &look.root {
        Some(root) => {
            let not_asked = "aditd was not asked, as --root was given";
            Node::local(Tree::new(root), Err(not_asked.to_owned()))
        }
        None => {
            let (server, _) = super::server(global)?;
            let drives = drives(global).await?;
            if server.uri.starts_with("tcp:") {
                far(global, server.uri, drives, &profile).await?
            } else {
                Node::local(Tree::new("/"), drives)
            }
        }
    };
    node.set_ports(profile.ports.clone());
    Ok(check(&profile, &node))
}

/// Whether all is as wanted, as an exit code.
fn verdict(report: &Report, allow_unreadable: bool) -> Result<(), Failure> {
    let totals = report.totals;
    if totals.differs > 0 {
        return Err(Failure::FirmwareDiffers {
            profile: report.profile.clone(),
            differs: totals.differs,
        });
    }
    if totals.unreadable > 0 && !allow_unreadable {
        return Err(Failure::FirmwareUnreadable {
            profile: report.profile.clone(),
            unreadable: totals.unreadable,
        });
    }
    Ok(())
}

fn show(
    format: Format,
    report: &Report,
    people: impl FnOnce(&Report) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => output::text(&people(report)),
        Format::Json => output::json(&json!(report)),
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn check_table(report: &Report) -> String {
    let mut table = Table::new(&["SETTING", "OF", "WANTED", "CURRENT", "STATE", "READ FROM"]);
    for item in &report.items {
        let source = item
            .current
            .as_ref()
            .map_or("-", |current| current.source());
        table.row([
            item.setting.clone(),
            dash(&item.object),
            item.wanted_text(),
            item.current_text(),
            item.verdict.name().to_owned(),
            source.to_owned(),
        ]);
    }
    format!("{table}{}", totals(report))
}

fn totals(report: &Report) -> String {
    let totals = report.totals;
    format!(
        "{}: {} as wanted, {} not, {} not readable, {} that nothing here has\n",
        report.profile, totals.ok, totals.differs, totals.unreadable, totals.not_applicable
    )
}

fn differences(report: &Report) -> String {
    let mut text = String::new();
    for item in &report.items {
        let of = match item.object.as_str() {
            "" => String::new(),
            object => format!(" of {object}"),
        };
        let source = item
            .current
            .as_ref()
            .map_or("-", |current| current.source());
        let current = match item.verdict {
            Verdict::Unreadable => format!("not readable: {}", item.current_text()),
            _ => item.current_text(),
        };
        text.push_str(&format!(
            "{}{of}\n  wanted:   {}\n  current:  {current}\n  read from: {source}\n  why:      {}\n  \
             changed by: {}\n",
            item.setting,
            item.wanted_text(),
            item.why,
            item.change.name(),
        ));
    }
    text + &totals(report)
}

fn profiles(format: Format) -> Result<(), Failure> {
    let mut all = Vec::new();
    for (name, text) in BUILT_IN {
        all.push(parsed(name, text)?);
    }
    match format {
        Format::Table => {
            let mut table = Table::new(&["NAME", "FOR"]);
            for profile in all {
                table.row([profile.name, profile.summary]);
            }
            output::text(&table.to_string())
        }
        Format::Json => {
            let all: Vec<_> = all
                .iter()
                .map(|profile| json!({ "name": profile.name, "summary": profile.summary }))
                .collect();
            output::json(&json!({ "profiles": all }))
        }
    }
}
