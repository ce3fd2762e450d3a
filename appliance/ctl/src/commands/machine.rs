//! `aditctl machine`: this machine, or through a context another.

use std::path::Path;

use api::v1::system_service_client::SystemServiceClient;
use api::v1::{ApplyMachineRequest, GetFactsRequest, PlanMachineRequest};
use machine::{Facts, Plan, Root};

use super::{connect, node};
use crate::failure::{Failure, chain};
use crate::grammar::{Format, Global, MachineVerb};
use crate::output;

pub(crate) async fn run(global: &Global, verb: &MachineVerb) -> Result<(), Failure> {
    let (_, context) = super::server(global)?;
    if context.is_none() {
        return here(global.output, verb);
    }
    let context = connect(global).await?;
    let mut client =
        SystemServiceClient::with_interceptor(context.channel.clone(), context.code.clone());
    match verb {
        MachineVerb::Show => {
            let facts = client
                .get_facts(GetFactsRequest {})
                .await?
                .into_inner()
                .json;
            let facts: Facts = understood(&facts)?;
            show(context.format, &facts)
        }
        MachineVerb::Plan { file } => {
            let toml = file.as_deref().map(super::pki::read).transpose()?;
            let answer = client
                .plan_machine(PlanMachineRequest { toml })
                .await?
                .into_inner();
            let plan: Plan = understood(&answer.json)?;
            show_plan(context.format, &plan)
        }
        MachineVerb::Apply { file: Some(_), .. } => Err(Failure::Usage(
            "another machine is configured with `aditctl node config apply`".to_owned(),
        )),
        MachineVerb::Apply { yes: false, .. } => {
            let request = PlanMachineRequest { toml: None };
            let answer = client.plan_machine(request).await?.into_inner();
            show_plan(context.format, &understood(&answer.json)?)
        }
        MachineVerb::Apply { .. } => {
            let answer = client
                .apply_machine(ApplyMachineRequest {})
                .await?
                .into_inner();
            node::actions(context.format, &answer.actions)
        }
    }
}

fn understood<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, Failure> {
    serde_json::from_str(json).map_err(|error| Failure::Host {
        what: "reading the answer",
        reason: error.to_string(),
    })
}

fn here(format: Format, verb: &MachineVerb) -> Result<(), Failure> {
    let root = Root::new("/");
    let facts = Facts::read(&root).map_err(|error| failed("reading the machine", &error))?;
    let (file, is_apply) = match verb {
        MachineVerb::Show => return show(format, &facts),
        MachineVerb::Plan { file } => (file, false),
        MachineVerb::Apply { file, yes } => (file, *yes),
    };
    let wanted = match file {
        Some(path) => wanted(path)?,
        None => {
            let problem = "name the document with -f: without a context there is none in force";
            return Err(Failure::Usage(problem.to_owned()));
        }
    };
    let plan = machine::plan(&facts, &wanted);
    show_plan(format, &plan)?;
    if !is_apply {
        return Ok(());
    }
    for action in &plan.actions {
        let applied = machine::apply(action, &root);
        let applied = applied.map_err(|error| failed("applying the plan", &error))?;
        output::text(&format!("{action}: {applied:?}\n"))?;
    }
    Ok(())
}

fn failed(what: &'static str, error: &dyn std::error::Error) -> Failure {
    Failure::Host {
        what,
        reason: chain(error),
    }
}

/// The table `machine` of a node's document, or a document that is nothing else.
fn wanted(path: &Path) -> Result<machine::Config, Failure> {
    let wrong = |error: toml::de::Error| Failure::Document {
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    let document: toml::Table = super::pki::read(path)?.parse().map_err(wrong)?;
    let table = match document.get("machine") {
        Some(table) => table.clone(),
        None => toml::Value::Table(document),
    };
    table.try_into().map_err(wrong)
}

fn json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    let value = serde_json::to_value(value).map_err(|error| failed("writing JSON", &error))?;
    output::json(&value)
}

fn show(format: Format, facts: &Facts) -> Result<(), Failure> {
    if format == Format::Json {
        return json(facts);
    }
    let dash = || "-".to_owned();
    let mut pci =
        crate::table::Table::new(&["ADDRESS", "CLASS", "DRIVER", "GROUP", "NODE", "SERIAL"]);
    for function in &facts.pci {
        pci.row([
            function.address.to_string(),
            format!("{:06x}", function.class),
            function.driver.clone().unwrap_or_else(dash),
            function.group.map_or_else(dash, |group| group.to_string()),
            function.node.map_or_else(dash, |node| node.to_string()),
            function
                .nvme
                .as_ref()
                .map_or_else(dash, |nvme| nvme.serial.trim().to_owned()),
        ]);
    }
    let mut block = crate::table::Table::new(&["DISK", "SIZE", "USED BY"]);
    for disk in &facts.block {
        let users: Vec<String> = disk
            .holders
            .iter()
            .map(|user| format!("{user:?}"))
            .collect();
        block.row([
            disk.name.clone(),
            disk.bytes.map_or_else(dash, api::quantity::format_bytes),
            users.join(", "),
        ]);
    }
    let mut net = crate::table::Table::new(&["INTERFACE", "MAC", "STATE"]);
    for interface in &facts.net {
        net.row([
            interface.name.clone(),
            interface.mac.clone(),
            interface.state.clone(),
        ]);
    }
    output::text(&format!("{pci}\n{block}\n{net}"))
}

fn show_plan(format: Format, plan: &Plan) -> Result<(), Failure> {
    if format == Format::Json {
        return json(plan);
    }
    let mut text = String::new();
    for action in &plan.actions {
        text.push_str(&format!("do: {action}\n"));
    }
    for refusal in &plan.refusals {
        text.push_str(&format!("not done: {}\n", refusal.subject));
        for reason in &refusal.reasons {
            text.push_str(&format!("  because {reason}\n"));
        }
    }
    for note in &plan.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    if text.is_empty() {
        text.push_str("nothing is to be done\n");
    }
    output::text(&text)
}
