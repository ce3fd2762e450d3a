//! `aditctl subsystem`, `namespace`, `listener`, `host` and `ana`.

use api::quantity::format_bytes;
use api::v1::bdev_service_client::BdevServiceClient;
use api::v1::host_service_client::HostServiceClient;
use api::v1::listener_service_client::ListenerServiceClient;
use api::v1::namespace_service_client::NamespaceServiceClient;
use api::v1::subsystem_service_client::SubsystemServiceClient;
use api::v1::volume_service_client::VolumeServiceClient;
use api::v1::{
    Address, AnaState, CreateHostRequest, CreateListenerRequest, CreateNamespaceRequest,
    CreateSubsystemRequest, DeleteHostRequest, DeleteListenerRequest, DeleteNamespaceRequest,
    DeleteSubsystemRequest, GetListenerRequest, GetNamespaceRequest, GetSubsystemRequest, Host,
    HostSpec, ListHostsRequest, ListListenersRequest, ListNamespacesRequest, ListSubsystemsRequest,
    Listener, ListenerSpec, Namespace, NamespaceSpec, ReservationType, ResizeBdevRequest,
    ResizeVolumeRequest, SetAnaStateRequest, Subsystem, SubsystemSpec, UpdateNamespaceRequest,
    UpdateSubsystemRequest,
};
use prost_types::FieldMask;

use super::{Context, PAGE_SIZE, address, pages, properties, short, state};
use crate::failure::Failure;
use crate::grammar::{AnaVerb, HostVerb, ListenerVerb, NamespaceVerb, SubsystemVerb};
use crate::output;
use crate::table::Table;

pub(crate) async fn run(context: &Context, verb: SubsystemVerb) -> Result<(), Failure> {
    let mut client = SubsystemServiceClient::new(context.channel.clone());
    let subsystem = match verb {
        SubsystemVerb::Create {
            nqn,
            allow_any_host,
            serial,
            model,
            label,
            max_namespaces,
            ana_reporting,
            min_cntlid,
            max_cntlid,
        } => {
            let subsystem = SubsystemSpec {
                nqn,
                serial_number: serial,
                model_number: model,
                admin_label: label,
                max_namespaces,
                allow_any_host: allow_any_host.then_some(true),
                ana_reporting,
                min_cntlid,
                max_cntlid,
                ..SubsystemSpec::default()
            };
            let request = CreateSubsystemRequest {
                subsystem: Some(subsystem),
            };
            client.create_subsystem(request).await?.into_inner()
        }
        SubsystemVerb::Set {
            nqn,
            allow_any_host,
            label,
            max_namespaces,
            expected,
        } => {
            let paths = given(&[
                ("allow_any_host", allow_any_host.is_some()),
                ("admin_label", label.is_some()),
                ("max_namespaces", max_namespaces.is_some()),
            ]);
            let subsystem = SubsystemSpec {
                nqn,
                allow_any_host,
                admin_label: label,
                max_namespaces,
                ..SubsystemSpec::default()
            };
            let request = UpdateSubsystemRequest {
                subsystem: Some(subsystem),
                update_mask: Some(FieldMask { paths }),
                expected_generation: expected.expected_generation,
            };
            client.update_subsystem(request).await?.into_inner()
        }
        SubsystemVerb::Show { nqn } => client
            .get_subsystem(GetSubsystemRequest { nqn })
            .await?
            .into_inner(),
        SubsystemVerb::Delete { nqn, expected } => {
            let expected_generation = expected.expected_generation;
            let request = DeleteSubsystemRequest {
                nqn,
                expected_generation,
                allow_missing: false,
            };
            client.delete_subsystem(request).await?;
            return Ok(());
        }
        SubsystemVerb::List => {
            let all = pages(|page_token| {
                let mut client = client.clone();
                async move {
                    let request = ListSubsystemsRequest {
                        page_size: PAGE_SIZE,
                        page_token,
                    };
                    let page = client.list_subsystems(request).await?.into_inner();
                    Ok((page.subsystems, page.next_page_token))
                }
            })
            .await?;
            return output::list(context.format, "subsystems", &all, list);
        }
    };
    let nqn = subsystem
        .spec
        .as_ref()
        .map(|spec| spec.nqn.clone())
        .unwrap_or_default();
    let subsystem = context
        .settle(&format!("subsystem {nqn}"), subsystem, || {
            let (mut client, nqn) = (client.clone(), nqn.clone());
            async move { client.get_subsystem(GetSubsystemRequest { nqn }).await }
        })
        .await?;
    output::object(context.format, &subsystem, show)
}

pub(crate) async fn namespace(context: &Context, verb: NamespaceVerb) -> Result<(), Failure> {
    let mut client = NamespaceServiceClient::new(context.channel.clone());
    let namespace = match verb {
        NamespaceVerb::Add {
            nqn,
            bdev,
            nsid,
            nguid,
            eui64,
            uuid,
            anagrpid,
            visible_to,
            no_auto_visible,
            write_protect,
        } => {
            let namespace = NamespaceSpec {
                nsid: nsid.unwrap_or(0),
                bdev_name: bdev,
                nguid,
                eui64,
                uuid,
                anagrpid,
                no_auto_visible: (no_auto_visible || !visible_to.is_empty()).then_some(true),
                visible_to,
                write_protect: write_protect.then_some(true),
            };
            let request = CreateNamespaceRequest {
                nqn,
                namespace: Some(namespace),
            };
            client.create_namespace(request).await?.into_inner()
        }
        NamespaceVerb::Set {
            nqn,
            nsid,
            anagrpid,
            write_protect,
            no_auto_visible,
            visible_to,
            expected,
        } => {
            let paths = given(&[
                ("anagrpid", anagrpid.is_some()),
                ("write_protect", write_protect.is_some()),
                ("no_auto_visible", no_auto_visible.is_some()),
                ("visible_to", !visible_to.is_empty()),
            ]);
            let namespace = NamespaceSpec {
                nsid,
                anagrpid,
                write_protect,
                no_auto_visible,
                visible_to,
                ..NamespaceSpec::default()
            };
            let request = UpdateNamespaceRequest {
                nqn,
                namespace: Some(namespace),
                update_mask: Some(FieldMask { paths }),
                expected_generation: expected.expected_generation,
            };
            client.update_namespace(request).await?.into_inner()
        }
        NamespaceVerb::Show { nqn, nsid } => client
            .get_namespace(GetNamespaceRequest { nqn, nsid })
            .await?
            .into_inner(),
        NamespaceVerb::Resize { nqn, nsid, size } => {
            let found = client
                .get_namespace(GetNamespaceRequest {
                    nqn: nqn.clone(),
                    nsid,
                })
                .await?
                .into_inner();
            let name = found.spec.unwrap_or_default().bdev_name;
            resize_device(context, name, size).await?;
            client
                .get_namespace(GetNamespaceRequest { nqn, nsid })
                .await?
                .into_inner()
        }
        NamespaceVerb::Remove {
            nqn,
            nsid,
            expected,
        } => {
            let expected_generation = expected.expected_generation;
            let request = DeleteNamespaceRequest {
                nqn,
                nsid,
                expected_generation,
                allow_missing: false,
            };
            client.delete_namespace(request).await?;
            return Ok(());
        }
        NamespaceVerb::List { nqn } => {
            let all = pages(|page_token| {
                let (mut client, nqn) = (client.clone(), nqn.clone().unwrap_or_default());
                async move {
                    let request = ListNamespacesRequest {
                        nqn,
                        page_size: PAGE_SIZE,
                        page_token,
                    };
                    let page = client.list_namespaces(request).await?.into_inner();
                    Ok((page.namespaces, page.next_page_token))
                }
            })
            .await?;
            return output::list(context.format, "namespaces", &all, namespaces);
        }
    };
    let (nqn, nsid) = (
        namespace.nqn.clone(),
        namespace.spec.as_ref().map_or(0, |spec| spec.nsid),
    );
    let namespace = context
        .settle(&format!("namespace {nsid} of {nqn}"), namespace, || {
            let (mut client, nqn) = (client.clone(), nqn.clone());
            async move {
                client
                    .get_namespace(GetNamespaceRequest { nqn, nsid })
                    .await
            }
        })
        .await?;
    output::object(context.format, &namespace, |namespace| {
        let table = namespaces(std::slice::from_ref(namespace));
        format!("{table}{}", reservation(namespace))
    })
}

/// Gives the block device or the volume of a namespace another size.
async fn resize_device(context: &Context, name: String, size_bytes: u64) -> Result<(), Failure> {
    let request = ResizeBdevRequest {
        name: name.clone(),
        size_bytes,
        expected_generation: None,
    };
    let mut bdevs = BdevServiceClient::new(context.channel.clone());
    let resized = bdevs.resize_bdev(request).await.map(drop);
    let is_volume =
        |status: &tonic::Status| status.code() == tonic::Code::NotFound && name.contains('/');
    match resized {
        Err(status) if is_volume(&status) => {
            let request = ResizeVolumeRequest {
                name,
                size_bytes,
                allow_shrink: false,
            };
            let mut volumes = VolumeServiceClient::new(context.channel.clone());
            volumes.resize_volume(request).await?;
            Ok(())
        }
        resized => Ok(resized?),
    }
}

pub(crate) async fn listener(context: &Context, verb: ListenerVerb) -> Result<(), Failure> {
    let mut client = ListenerServiceClient::new(context.channel.clone());
    match verb {
        ListenerVerb::Add {
            nqn,
            address,
            ana_state,
        } => {
            let address = parse(&address)?;
            let listener = ListenerSpec {
                address: Some(address.clone()),
                ana_state: ana_state.unwrap_or_default().into(),
                ..ListenerSpec::default()
            };
            let request = CreateListenerRequest {
                nqn: nqn.clone(),
                listener: Some(listener),
            };
            let listener = client.create_listener(request).await?.into_inner();
            let listener = context
                .settle(&format!("listener {}", address.uri()), listener, || {
                    let (mut client, nqn) = (client.clone(), nqn.clone());
                    let address = Some(address.clone());
                    async move {
                        client
                            .get_listener(GetListenerRequest { nqn, address })
                            .await
                    }
                })
                .await?;
            output::object(context.format, &listener, |listener| {
                listeners(std::slice::from_ref(listener))
            })
        }
        ListenerVerb::Remove {
            nqn,
            address,
            expected,
        } => {
            let request = DeleteListenerRequest {
                nqn,
                address: Some(parse(&address)?),
                expected_generation: expected.expected_generation,
                allow_missing: false,
            };
            client.delete_listener(request).await?;
            Ok(())
        }
        ListenerVerb::List { nqn } => {
            let all = all_listeners(context, nqn).await?;
            output::list(context.format, "listeners", &all, listeners)
        }
    }
}

pub(crate) async fn ana(context: &Context, verb: AnaVerb) -> Result<(), Failure> {
    match verb {
        AnaVerb::Set {
            nqn,
            address,
            state,
            group,
            expected,
        } => {
            let request = SetAnaStateRequest {
                nqn,
                address: Some(parse(&address)?),
                anagrpid: group.unwrap_or(0),
                ana_state: state.into(),
                expected_generation: expected.expected_generation,
            };
            let mut client = ListenerServiceClient::new(context.channel.clone());
            let listener = client.set_ana_state(request).await?.into_inner();
            output::object(context.format, &listener, |listener| {
                ana_states(std::slice::from_ref(listener))
            })
        }
        AnaVerb::List { nqn } => {
            let all = all_listeners(context, nqn).await?;
            output::list(context.format, "listeners", &all, ana_states)
        }
    }
}

pub(crate) async fn host(context: &Context, verb: HostVerb) -> Result<(), Failure> {
    let mut client = HostServiceClient::new(context.channel.clone());
    match verb {
        HostVerb::Add { nqn, host } => {
            let request = CreateHostRequest {
                subsystem_nqn: nqn,
                host: Some(HostSpec { nqn: host }),
            };
            let host = client.create_host(request).await?.into_inner();
            output::object(context.format, &host, |host| {
                hosts(std::slice::from_ref(host))
            })
        }
        HostVerb::Remove {
            nqn,
            host,
            timeout,
            expected,
        } => {
            let request = DeleteHostRequest {
                subsystem_nqn: nqn,
                host_nqn: host,
                timeout_ms: Some(timeout),
                expected_generation: expected.expected_generation,
                allow_missing: false,
            };
            client.delete_host(request).await?;
            Ok(())
        }
        HostVerb::List { nqn } => {
            let all = pages(|page_token| {
                let (mut client, subsystem_nqn) = (client.clone(), nqn.clone().unwrap_or_default());
                async move {
                    let page_size = PAGE_SIZE;
                    let request = ListHostsRequest {
                        subsystem_nqn,
                        page_size,
                        page_token,
                    };
                    let page = client.list_hosts(request).await?.into_inner();
                    Ok((page.hosts, page.next_page_token))
                }
            })
            .await?;
            output::list(context.format, "hosts", &all, hosts)
        }
    }
}

async fn all_listeners(context: &Context, nqn: Option<String>) -> Result<Vec<Listener>, Failure> {
    let client = ListenerServiceClient::new(context.channel.clone());
    pages(|page_token| {
        let (mut client, nqn) = (client.clone(), nqn.clone().unwrap_or_default());
        async move {
            let request = ListListenersRequest {
                nqn,
                page_size: PAGE_SIZE,
                page_token,
            };
            let page = client.list_listeners(request).await?.into_inner();
            Ok((page.listeners, page.next_page_token))
        }
    })
    .await
}

fn parse(uri: &str) -> Result<Address, Failure> {
    Address::from_uri(uri).map_err(|error| Failure::Usage(error.to_string()))
}

fn given(fields: &[(&str, bool)]) -> Vec<String> {
    fields
        .iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| (*name).to_owned())
        .collect()
}

fn list(subsystems: &[Subsystem]) -> String {
    let mut table = Table::new(&[
        "NQN",
        "STATE",
        "NAMESPACES",
        "LISTENERS",
        "HOSTS",
        "CONTROLLERS",
        "QPAIRS",
        "IN PLACE",
    ]);
    for subsystem in subsystems {
        let spec = subsystem.spec.clone().unwrap_or_default();
        let hosts = if spec.allow_any_host() {
            "any".to_owned()
        } else {
            subsystem.hosts.len().to_string()
        };
        table.row([
            spec.nqn,
            short(subsystem.state().as_str_name(), "SUBSYSTEM_STATE_"),
            subsystem.namespaces.len().to_string(),
            subsystem.listeners.len().to_string(),
            hosts,
            subsystem.controllers.to_string(),
            (subsystem.admin_qpairs + subsystem.io_qpairs).to_string(),
            state(subsystem.status.as_ref()),
        ]);
    }
    table.to_string()
}

fn show(subsystem: &Subsystem) -> String {
    let spec = subsystem.spec.clone().unwrap_or_default();
    let mut text = properties(&[
        ("nqn", spec.nqn.clone()),
        (
            "state",
            short(subsystem.state().as_str_name(), "SUBSYSTEM_STATE_"),
        ),
        ("serial number", spec.serial_number().to_owned()),
        ("model number", spec.model_number().to_owned()),
        ("label", spec.admin_label().to_owned()),
        ("namespaces at most", spec.max_namespaces().to_string()),
        (
            "controller IDs",
            format!("{} to {}", spec.min_cntlid(), spec.max_cntlid()),
        ),
        (
            "path states",
            if spec.ana_reporting() {
                "reported"
            } else {
                "not reported"
            }
            .to_owned(),
        ),
        (
            "any host",
            if spec.allow_any_host() {
                "allowed"
            } else {
                "no"
            }
            .to_owned(),
        ),
        ("controllers", subsystem.controllers.to_string()),
        (
            "queue pairs",
            format!(
                "{} admin, {} I/O",
                subsystem.admin_qpairs, subsystem.io_qpairs
            ),
        ),
        (
            "connects",
            format!(
                "{}, {} refused",
                subsystem.connects, subsystem.connects_refused
            ),
        ),
        ("generation", subsystem.generation.to_string()),
        ("in place", state(subsystem.status.as_ref())),
    ]);
    if !subsystem.namespaces.is_empty() {
        text.push_str(&format!("\n{}", namespaces(&subsystem.namespaces)));
    }
    if !subsystem.listeners.is_empty() {
        text.push_str(&format!("\n{}", listeners(&subsystem.listeners)));
    }
    if !subsystem.hosts.is_empty() {
        text.push_str(&format!("\n{}", hosts(&subsystem.hosts)));
    }
    text
}

fn namespaces(namespaces: &[Namespace]) -> String {
    let mut table = Table::new(&["NQN", "NSID", "BDEV", "SIZE", "ANA GROUP", "UUID", "STATE"]);
    for namespace in namespaces {
        let spec = namespace.spec.clone().unwrap_or_default();
        let mut words = vec![state(namespace.status.as_ref())];
        if spec.write_protect() {
            words.push("write protected".to_owned());
        }
        if spec.no_auto_visible() {
            words.push(format!("seen by {} hosts", spec.visible_to.len()));
        }
        table.row([
            namespace.nqn.clone(),
            spec.nsid.to_string(),
            spec.bdev_name.clone(),
            format_bytes(
                namespace
                    .num_blocks
                    .saturating_mul(namespace.block_size.into()),
            ),
            spec.anagrpid().to_string(),
            spec.uuid().to_owned(),
            words.join(", "),
        ]);
    }
    table.to_string()
}

/// Who is registered with a namespace; nothing when nobody is.
fn reservation(namespace: &Namespace) -> String {
    let Some(reservation) = &namespace.reservation else {
        return String::new();
    };
    let kind = match reservation.r#type() {
        ReservationType::Unspecified => "none".to_owned(),
        kind => short(kind.as_str_name(), "RESERVATION_TYPE_"),
    };
    let persists = if reservation.persists_through_power_loss {
        "stays"
    } else {
        "does not stay"
    };
    let mut table = Table::new(&["HOST ID", "KEY", "HOLDER", "CONNECTED AS"]);
    for registrant in &reservation.registrants {
        let holder = if registrant.holder { "yes" } else { "" };
        table.row([
            registrant.host_id.clone(),
            registrant.key.clone(),
            holder.to_owned(),
            registrant.host_nqns.join(", "),
        ]);
    }
    format!(
        "\nreservation: {kind}; it {persists} over a restart; generation {}\n{table}",
        reservation.generation
    )
}

fn listeners(listeners: &[Listener]) -> String {
    let mut table = Table::new(&["NQN", "ADDRESS", "ANA", "CONNECTIONS", "STATE"]);
    for listener in listeners {
        let spec = listener.spec.clone().unwrap_or_default();
        table.row([
            listener.nqn.clone(),
            address(spec.address.as_ref()),
            ana_name(spec.ana_state()),
            listener.connections.to_string(),
            state(listener.status.as_ref()),
        ]);
    }
    table.to_string()
}

fn ana_states(listeners: &[Listener]) -> String {
    let mut table = Table::new(&["NQN", "ADDRESS", "ANA GROUP", "ANA"]);
    for listener in listeners {
        let spec = listener.spec.clone().unwrap_or_default();
        let uri = address(spec.address.as_ref());
        let all = if spec.ana_groups.is_empty() {
            "all"
        } else {
            "others"
        };
        table.row([
            listener.nqn.clone(),
            uri.clone(),
            all.to_owned(),
            ana_name(spec.ana_state()),
        ]);
        for group in &spec.ana_groups {
            let state = ana_name(group.ana_state());
            table.row([
                listener.nqn.clone(),
                uri.clone(),
                group.anagrpid.to_string(),
                state,
            ]);
        }
    }
    table.to_string()
}

fn ana_name(state: AnaState) -> String {
    short(state.as_str_name(), "ANA_STATE_")
}

fn hosts(hosts: &[Host]) -> String {
    let mut table = Table::new(&["NQN", "HOST", "CONTROLLERS"]);
    for host in hosts {
        let nqn = host
            .spec
            .as_ref()
            .map(|spec| spec.nqn.clone())
            .unwrap_or_default();
        table.row([
            host.subsystem_nqn.clone(),
            nqn,
            host.controllers.to_string(),
        ]);
    }
    table.to_string()
}
