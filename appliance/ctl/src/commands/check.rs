//! `aditctl check NQN`: walks the ladder from the node to a connection, and says which rung fails.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use api::v1::node_service_client::NodeServiceClient;
use api::v1::subsystem_service_client::SubsystemServiceClient;
use api::v1::transport_service_client::TransportServiceClient;
use api::v1::{
    Address, GetNodeRequest, GetSubsystemRequest, GetTransportRequest, NodeState, ObjectState,
    Status, Subsystem, SubsystemState,
};
use fabric_wire::{Nqn, TransportAddress, TransportType};
use nvmf_host::{Controller, ControllerState, HostContext, HostOptions};
use serde_json::json;

use super::{Context, perf, short};
use crate::failure::{Failure, chain};
use crate::grammar::Format;
use crate::output;

/// How long a connection may take: longer than each of its steps may.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// One rung: what was found, or what is wrong and what to do.
type Rung = (&'static str, Result<String, String>);

pub(crate) async fn run(
    context: &Context,
    nqn: String,
    host: Option<String>,
) -> Result<(), Failure> {
    let mut rungs = Vec::new();
    let subsystem = climb(context, &nqn, host.as_deref(), &mut rungs).await?;
    if let Some(subsystem) = subsystem {
        connections(&subsystem, host.as_deref(), &mut rungs)?;
    }
    match context.format {
        Format::Table => output::text(&text(&rungs))?,
        Format::Json => output::json(&to_json(&nqn, &rungs))?,
    }
    match rungs.iter().find(|(_, result)| result.is_err()) {
        Some((rung, Err(reason))) => Err(Failure::Check {
            rung,
            nqn,
            reason: reason.clone(),
        }),
        _ => Ok(()),
    }
}

/// The rungs that the node itself knows of. `None` when one fails: those above it would only repeat
/// the same fault.
async fn climb(
    context: &Context,
    nqn: &str,
    host: Option<&str>,
    rungs: &mut Vec<Rung>,
) -> Result<Option<Subsystem>, Failure> {
    let node = NodeServiceClient::new(context.channel.clone())
        .get_node(GetNodeRequest {})
        .await?
        .into_inner();
    let state = short(node.state().as_str_name(), "NODE_STATE_");
    let serves = matches!(node.state(), NodeState::Serving | NodeState::Degraded);
    let told = format!("version {}, {state}", node.version);
    if !step(
        rungs,
        "node",
        if serves {
            Ok(told)
        } else {
            Err(format!("it is {state}"))
        },
    ) {
        return Ok(None);
    }

    let request = GetSubsystemRequest {
        nqn: nqn.to_owned(),
    };
    let found = SubsystemServiceClient::new(context.channel.clone())
        .get_subsystem(request)
        .await;
    let subsystem = match found {
        Ok(found) => found.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => {
            let told = format!("there is none; create it: aditctl subsystem create {nqn}");
            step(rungs, "subsystem", Err(told));
            return Ok(None);
        }
        Err(status) => return Err(status.into()),
    };
    if !step(rungs, "transport", transports(context, &subsystem).await?)
        || !step(rungs, "subsystem", subsystem_rung(&subsystem))
        || !step(rungs, "listener", listeners(nqn, &subsystem))
        || !step(rungs, "namespace", namespaces(nqn, &subsystem))
        || !step(rungs, "host", hosts(nqn, &subsystem, host))
    {
        return Ok(None);
    }
    Ok(Some(subsystem))
}

fn step(rungs: &mut Vec<Rung>, name: &'static str, result: Result<String, String>) -> bool {
    let is_ok = result.is_ok();
    rungs.push((name, result));
    is_ok
}

async fn transports(
    context: &Context,
    subsystem: &Subsystem,
) -> Result<Result<String, String>, Failure> {
    let mut client = TransportServiceClient::new(context.channel.clone());
    let addresses = subsystem
        .listeners
        .iter()
        .filter_map(|l| l.spec.as_ref()?.address.as_ref());
    let mut types: Vec<_> = addresses.map(|address| address.trtype.clone()).collect();
    types.sort();
    types.dedup();
    for trtype in &types {
        let request = GetTransportRequest {
            trtype: trtype.clone(),
        };
        let transport = client.get_transport(request).await?.into_inner();
        if let Err(reason) = in_place(transport.status.as_ref()) {
            return Ok(Err(format!("{trtype} is not in place: {reason}")));
        }
    }
    Ok(Ok(if types.is_empty() {
        "none needed yet".to_owned()
    } else {
        types.join(", ")
    }))
}

fn subsystem_rung(subsystem: &Subsystem) -> Result<String, String> {
    in_place(subsystem.status.as_ref())?;
    let state = short(subsystem.state().as_str_name(), "SUBSYSTEM_STATE_");
    match subsystem.state() {
        SubsystemState::Active => Ok(format!("{state}, {} controllers", subsystem.controllers)),
        _ => Err(format!("it is {state}; hosts can use it when it is active")),
    }
}

fn listeners(nqn: &str, subsystem: &Subsystem) -> Result<String, String> {
    if subsystem.listeners.is_empty() {
        return Err(format!(
            "there is none; add one: aditctl listener add {nqn} tcp://ADDRESS:4420"
        ));
    }
    let mut there = Vec::new();
    for listener in &subsystem.listeners {
        let uri = listener
            .spec
            .as_ref()
            .and_then(|spec| Some(spec.address.as_ref()?.uri()));
        let uri = uri.unwrap_or_default();
        in_place(listener.status.as_ref()).map_err(|reason| format!("{uri}: {reason}"))?;
        there.push(uri);
    }
    Ok(there.join(", "))
}

fn namespaces(nqn: &str, subsystem: &Subsystem) -> Result<String, String> {
    if subsystem.namespaces.is_empty() {
        return Err(format!(
            "there is none; add one: aditctl namespace add {nqn} BDEV"
        ));
    }
    for namespace in &subsystem.namespaces {
        let nsid = namespace.spec.as_ref().map_or(0, |spec| spec.nsid);
        in_place(namespace.status.as_ref()).map_err(|reason| format!("{nsid}: {reason}"))?;
    }
    Ok(format!("{} in place", subsystem.namespaces.len()))
}

fn hosts(nqn: &str, subsystem: &Subsystem, host: Option<&str>) -> Result<String, String> {
    if subsystem
        .spec
        .as_ref()
        .is_some_and(|spec| spec.allow_any_host())
    {
        return Ok("any host may connect".to_owned());
    }
    let names = || {
        subsystem
            .hosts
            .iter()
            .filter_map(|host| Some(&host.spec.as_ref()?.nqn))
    };
    match host {
        Some(host) if names().any(|name| name == host) => Ok(format!("{host} may connect")),
        Some(host) => Err(format!(
            "{host} may not connect; let it: aditctl host add {nqn} {host}"
        )),
        None if subsystem.hosts.is_empty() => Err(format!(
            "no host may connect; let one: aditctl host add {nqn} HOSTNQN (a Linux host's is in \
             /etc/nvme/hostnqn)"
        )),
        // As good as the host in question, as far as the node is concerned.
        None => Ok(format!("{} hosts may connect", subsystem.hosts.len())),
    }
}

fn in_place(status: Option<&Status>) -> Result<(), String> {
    match status {
        Some(status) if status.state() == ObjectState::Pending => Err(status.reason.clone()),
        _ => Ok(()),
    }
}

/// Connects to each listener as a host does, and reads what there is.
fn connections(
    subsystem: &Subsystem,
    host: Option<&str>,
    rungs: &mut Vec<Rung>,
) -> Result<(), Failure> {
    let spec = subsystem.spec.clone().unwrap_or_default();
    let nqn = Nqn::new(&spec.nqn).map_err(|error| Failure::Usage(error.to_string()))?;
    let first = subsystem
        .hosts
        .iter()
        .find_map(|host| Some(host.spec.as_ref()?.nqn.clone()));
    let as_host = host
        .map(str::to_owned)
        .or(first.filter(|_| !spec.allow_any_host()));
    for listener in &subsystem.listeners {
        let Some(address) = listener
            .spec
            .as_ref()
            .and_then(|spec| spec.address.as_ref())
        else {
            continue;
        };
        let identity = perf::identity(as_host.as_deref())?;
        let mut options = HostOptions::new(identity);
        let result = trtype_of(address)
            .and_then(|trtype| {
                perf::find_verbs(&mut options, trtype).map_err(|error| error.to_string())?;
                Ok(trtype)
            })
            .and_then(|trtype| connect(address, trtype, &nqn, options));
        let told = |text: String| format!("{}: {text}", address.uri());
        if !step(rungs, "connection", result.map(told).map_err(told)) {
            return Ok(());
        }
    }
    Ok(())
}

fn trtype_of(address: &Address) -> Result<TransportType, String> {
    let parsed: Result<TransportType, _> = address.trtype.parse();
    parsed.map_err(|error| error.to_string())
}

fn connect(
    address: &Address,
    trtype: TransportType,
    nqn: &Nqn,
    options: HostOptions,
) -> Result<String, String> {
    let mut socket = address.socket_addr().map_err(|error| error.to_string())?;
    // A listener on every address is reached through the loopback from here.
    match socket.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => socket.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => socket.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let address = TransportAddress::from_socket_addr(trtype, socket);
    let started = Instant::now();
    let mut controller = Controller::connect(&address, nqn, options, &HostContext::new(), started)
        .map_err(|error| chain(&error))?;
    drive(&mut controller, started, |controller| {
        controller.is_ready().then_some(())
    })?;
    let took = started.elapsed();
    let mut list = controller.admin().namespaces();
    let listed = drive(&mut controller, started, |_| list.poll())?;
    let listed = listed.map_err(|error| chain(&error))?;
    let cntlid = controller.info().map_or(0, |info| info.cntlid.0);
    let io_queues = controller.take_io_queues();
    controller.shut_down(io_queues, Instant::now());
    let is_over = |controller: &mut Controller| {
        matches!(controller.state(), ControllerState::ShutDown).then_some(())
    };
    drive(&mut controller, started, is_over)?;
    let count = listed.len();
    Ok(format!(
        "controller {cntlid} in {} ms, {count} namespaces seen",
        took.as_millis()
    ))
}

/// Polls until `done` gives something, the controller fails, or it takes too long.
fn drive<T>(
    controller: &mut Controller,
    started: Instant,
    mut done: impl FnMut(&mut Controller) -> Option<T>,
) -> Result<T, String> {
    loop {
        let worked = controller.poll(Instant::now());
        if let Some(result) = done(controller) {
            return Ok(result);
        }
        if let Some(failure) = controller.failure() {
            return Err(format!("{} failed: {}", controller.step(), chain(failure)));
        }
        if started.elapsed() > CONNECT_WITHIN {
            return Err(format!("{} takes too long", controller.step()));
        }
        if !worked {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn text(rungs: &[Rung]) -> String {
    let mut text = String::new();
    for (rung, result) in rungs {
        let (mark, told) = match result {
            Ok(told) => ("ok", told),
            Err(told) => ("FAILS", told),
        };
        text.push_str(&format!("{rung:<10}  {mark:<5}  {told}\n"));
    }
    text
}

fn to_json(nqn: &str, rungs: &[Rung]) -> serde_json::Value {
    let rungs: Vec<_> = rungs
        .iter()
        .map(|(rung, result)| {
            let (Ok(told) | Err(told)) = result;
            json!({ "rung": rung, "ok": result.is_ok(), "text": told })
        })
        .collect();
    json!({ "nqn": nqn, "rungs": rungs })
}

#[cfg(test)]
mod tests {
    use api::v1::{Host, HostSpec, SubsystemSpec};

    use super::*;

    const NQN: &str = "nqn.2026-11.io.adit:a";

    #[test]
    fn a_missing_rung_says_what_to_do() {
        let subsystem = Subsystem::default();
        assert!(
            listeners(NQN, &subsystem)
                .unwrap_err()
                .contains("aditctl listener add")
        );
        assert!(
            namespaces(NQN, &subsystem)
                .unwrap_err()
                .contains("aditctl namespace add")
        );
        assert!(
            hosts(NQN, &subsystem, None)
                .unwrap_err()
                .contains("/etc/nvme/hostnqn")
        );
        assert!(
            hosts(NQN, &subsystem, Some("x"))
                .unwrap_err()
                .contains("host add")
        );
        assert!(subsystem_rung(&subsystem).is_err());
    }

    #[test]
    fn hosts_are_looked_up() {
        let spec = Some(HostSpec {
            nqn: "nqn.2026-11.io.adit:h".into(),
        });
        let host = Host {
            spec,
            ..Host::default()
        };
        let mut subsystem = Subsystem {
            hosts: vec![host],
            ..Subsystem::default()
        };
        assert!(hosts(NQN, &subsystem, Some("nqn.2026-11.io.adit:h")).is_ok());
        assert!(hosts(NQN, &subsystem, Some("nqn.2026-11.io.adit:i")).is_err());
        subsystem.spec = Some(SubsystemSpec {
            allow_any_host: Some(true),
            ..SubsystemSpec::default()
        });
        assert!(hosts(NQN, &subsystem, Some("nqn.2026-11.io.adit:i")).is_ok());
    }

    #[test]
    fn the_ladder_is_printed_rung_by_rung() {
        let rungs = [
            ("node", Ok("serving".to_owned())),
            ("host", Err("none".to_owned())),
        ];
        assert_eq!(
            text(&rungs),
            "node        ok     serving\nhost        FAILS  none\n"
        );
    }
}
