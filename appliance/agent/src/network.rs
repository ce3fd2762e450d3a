//! The management interface: DHCPv4 and IPv6 by router announcements, or as written.
//!
//! What is configured and cannot be done falls back to DHCP on the first interface with a link, with
//! an alert: a wrong configuration must not cut the node off.

pub mod dhcp;

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::clock::unix_ms;
use crate::config::{Cidr, NetworkConfig, NetworkMode};
use crate::error::{AgentError, chain};
use crate::node::{Node, is_shown};
use dhcp::{Answer, Lease, Say};

/// How long the first interface with a link is waited for.
const LINK: Duration = Duration::from_secs(10);
/// Between two looks at the interfaces.
const LOOK: Duration = Duration::from_secs(5);
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Longest pause between two DHCPDISCOVERs.
const PAUSE_MAX: Duration = Duration::from_secs(64);

/// What the management interface does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Its name; empty while there is none.
    pub interface: String,
    /// `dhcp`, `static` or `none`.
    pub mode: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Default gateways.
    pub gateways: Vec<String>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Time servers that DHCP brought.
    pub time_servers: Vec<String>,
    /// What it does or waits for.
    pub state: String,
    /// When the lease ends, ms since 1970; 0 without one.
    pub lease_end_unix_ms: u64,
}

/// Shows the addresses of the node, whoever set them, for as long as the program runs.
pub async fn watch_addresses(node: Arc<Node>) {
    loop {
        let addresses = addresses();
        node.network.send_if_modified(|status| {
            let is_new = status.addresses != addresses;
            status.addresses = addresses;
            is_new
        });
        tokio::time::sleep(LOOK).await;
    }
}

/// Keeps the management interface as configured for as long as the program runs.
pub async fn keep(node: Arc<Node>) {
    let mut changes = node.changes();
    loop {
        let config = changes.borrow_and_update().config.network.clone();
        tokio::select! {
            () = follow(&node, &config) => {}
            changed = async {
                // Only a change of the network begins it anew.
                loop {
                    if changes.changed().await.is_err() {
                        return false;
                    }
                    if changes.borrow_and_update().config.network != config {
                        return true;
                    }
                }
            } => if !changed { return },
        }
    }
}

async fn follow(node: &Node, config: &NetworkConfig) {
    let mut config = config.clone();
    let mut _alert = None;
    loop {
        let error = match run(node, &config).await {
            Ok(()) => return std::future::pending().await,
            Err(error) => error,
        };
        _alert = Some(node.raise(format!("{}; trying DHCP on any interface", chain(&error))));
        config = NetworkConfig::default();
        tokio::time::sleep(LOOK).await;
    }
}

async fn run(node: &Node, config: &NetworkConfig) -> Result<(), AgentError> {
    let mode = config.mode.unwrap_or(NetworkMode::Dhcp);
    if mode == NetworkMode::None {
        say(node, "", "none", "left as it is");
        return Ok(());
    }
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| failed("", &error))?;
    let connection = tokio::spawn(connection);
    let done = with_netlink(node, config, mode, &handle).await;
    connection.abort();
    done
}

async fn with_netlink(
    node: &Node,
    config: &NetworkConfig,
    mode: NetworkMode,
    handle: &Handle,
) -> Result<(), AgentError> {
    let link = find(node, config, handle).await?;
    if let Some(mtu) = config.mtu {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        let set = handle.link().set(message).execute().await;
        set.map_err(|error| failed(&link.name, &error))?;
    }
    // Addresses of an earlier configuration.
    clear(handle, &link).await?;
    if mode == NetworkMode::Static {
        for cidr in &config.addresses {
            add_address(handle, &link, *cidr).await?;
        }
        for gateway in [config.gateway, config.gateway6].into_iter().flatten() {
            add_gateway(handle, &link, gateway).await?;
        }
        resolver(node, &config.dns);
        node.network.send_modify(|status| {
            let gateways = [config.gateway, config.gateway6];
            status.gateways = gateways.iter().flatten().map(ToString::to_string).collect();
            status.dns = config.dns.iter().map(ToString::to_string).collect();
        });
        say(node, &link.name, "static", "set");
        return Ok(());
    }
    // IPv6 is the kernel's: it asks routers by itself once told so.
    let family = node
        .paths
        .root
        .join("proc/sys/net/ipv6/conf")
        .join(&link.name);
    for (file, value) in [("accept_ra", "2"), ("autoconf", "1")] {
        // A kernel without IPv6 has no such file.
        let _ = std::fs::write(family.join(file), value);
    }
    lend(node, config, handle, &link).await
}

#[derive(Debug, Clone)]
struct Link {
    name: String,
    index: u32,
    mac: [u8; 6],
}

/// The interface that is named, else the first with a link. All that could be it are brought up.
async fn find(node: &Node, config: &NetworkConfig, handle: &Handle) -> Result<Link, AgentError> {
    say(node, "", "", "waiting for an interface with a link");
    let start = Instant::now();
    loop {
        let links = links(&node.paths.root, config);
        for link in &links {
            let message = LinkUnspec::new_with_index(link.index).up().build();
            let set = handle.link().set(message).execute().await;
            set.map_err(|error| failed(&link.name, &error))?;
        }
        let has_carrier = |link: &&Link| {
            let path = node
                .paths
                .root
                .join("sys/class/net")
                .join(&link.name)
                .join("carrier");
            std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
        };
        let is_named = config.interface.is_some() || config.mac.is_some();
        let found = links
            .iter()
            .find(has_carrier)
            .or(links.first().filter(|_| is_named));
        if let Some(link) = found {
            return Ok(link.clone());
        }
        if is_named && start.elapsed() > LINK {
            let name = config.interface.as_ref().or(config.mac.as_ref());
            let name = name.cloned().unwrap_or_default();
            return Err(AgentError::Network {
                interface: name,
                problem: "there is no such interface".to_owned(),
            });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Ethernet interfaces that have hardware, or the one that is named.
fn links(root: &Path, config: &NetworkConfig) -> Vec<Link> {
    let folder = root.join("sys/class/net");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    let link = |name: String| {
        let text = |file: &str| std::fs::read_to_string(folder.join(&name).join(file)).ok();
        let is_ethernet = text("type")?.trim() == "1";
        let address = text("address")?.trim().to_ascii_lowercase();
        let is_wanted = match (&config.interface, &config.mac) {
            (Some(wanted), _) => *wanted == name,
            (None, Some(mac)) => mac.to_ascii_lowercase() == address,
            (None, None) => folder.join(&name).join("device").exists(),
        };
        let bytes: Vec<u8> = address
            .split(':')
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        let index = nix::net::if_::if_nametoindex(name.as_str()).ok()?;
        (is_ethernet && is_wanted).then_some(Link {
            index,
            mac: bytes.try_into().ok()?,
            name,
        })
    };
    names.into_iter().filter_map(link).collect()
}

/// Gets a lease and keeps it; comes back only with an error.
async fn lend(
    node: &Node,
    config: &NetworkConfig,
    handle: &Handle,
    link: &Link,
) -> Result<(), AgentError> {
    let socket = dhcp_socket(link)?;
    let mut ended = None;
    loop {
        say(node, &link.name, "dhcp", "asking for an address");
        let mut lease = acquire(node, &socket, link).await;
        drop(ended.take());
        let cidr = |lease: &Lease| Cidr {
            address: IpAddr::V4(lease.address),
            prefix: lease.prefix,
        };
        add_address(handle, link, cidr(&lease)).await?;
        loop {
            if let Some(gateway) = lease.gateway {
                add_gateway(handle, link, IpAddr::V4(gateway)).await?;
            }
            leased(node, config, link, &lease);
            let start = Instant::now();
            let Some(next) = renew(node, &socket, link, &lease, start).await else {
                break;
            };
            if next.address != lease.address || next.prefix != lease.prefix {
                clear(handle, link).await?;
                add_address(handle, link, cidr(&next)).await?;
            }
            lease = next;
        }
        clear(handle, link).await?;
        ended = Some(node.raise(format!("the lease of {} has ended", link.name)));
    }
}

fn dhcp_socket(link: &Link) -> Result<UdpSocket, AgentError> {
    let failed = |errno: nix::Error| failed(&link.name, &errno);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None).map_err(failed)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed)?;
    setsockopt(&fd, sockopt::Broadcast, &true).map_err(failed)?;
    setsockopt(&fd, sockopt::BindToDevice, &link.name.as_str().into()).map_err(failed)?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, CLIENT_PORT)).map_err(failed)?;
    UdpSocket::from_std(fd.into()).map_err(|error| self::failed(&link.name, &error))
}

/// Asks until somebody lends an address.
async fn acquire(node: &Node, socket: &UdpSocket, link: &Link) -> Lease {
    let mut pause = Duration::from_secs(4);
    loop {
        let xid = random();
        let offer = exchange(node, socket, link, &Say::Discover, xid, None, pause).await;
        if let Some(Answer::Offer(offer)) = offer {
            let request = Say::Request(offer);
            let ack = exchange(node, socket, link, &request, xid, None, pause).await;
            if let Some(Answer::Ack(lease)) = ack {
                return lease;
            }
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Waits for T1 and asks for more time; `None` when the lease has ended.
async fn renew(
    node: &Node,
    socket: &UdpSocket,
    link: &Link,
    lease: &Lease,
    start: Instant,
) -> Option<Lease> {
    const TRY: Duration = Duration::from_secs(15);
    tokio::time::sleep_until(start + lease.renew).await;
    while start.elapsed() < lease.end {
        let server = (start.elapsed() < lease.rebind).then_some(lease.server);
        let say = Say::Renew(lease.clone());
        let begun = Instant::now();
        match exchange(node, socket, link, &say, random(), server, TRY).await {
            Some(Answer::Ack(lease)) => return Some(lease),
            Some(Answer::Nak) => return None,
            _ => tokio::time::sleep_until(begun + TRY).await,
        }
    }
    None
}

/// Says something and waits for the answer to it.
async fn exchange(
    node: &Node,
    socket: &UdpSocket,
    link: &Link,
    say: &Say,
    xid: u32,
    server: Option<Ipv4Addr>,
    patience: Duration,
) -> Option<Answer> {
    let name = node.current().server_name.clone();
    let bytes = dhcp::message(say, xid, link.mac, &name);
    let to = SocketAddrV4::new(server.unwrap_or(Ipv4Addr::BROADCAST), SERVER_PORT);
    let deadline = Instant::now() + patience;
    if let Err(error) = socket.send_to(&bytes, to).await {
        tracing::debug!(%error, "DHCP: a message was not sent");
        tokio::time::sleep_until(deadline).await;
        return None;
    }
    let mut buffer = [0; 1500];
    loop {
        let received = tokio::time::timeout_at(deadline, socket.recv(&mut buffer))
            .await
            .ok()?;
        let count = received.ok()?;
        let answer = dhcp::answer(&buffer[..count], xid, link.mac);
        let is_offer = matches!(answer, Some(Answer::Offer(_)));
        if answer.is_some() && is_offer == (*say == Say::Discover) {
            return answer;
        }
    }
}

fn random() -> u32 {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 4];
    // Without random numbers it is a number that another client may have: its answers are not ours
    // by their hardware address.
    let _ = ring::rand::SystemRandom::new().fill(&mut bytes);
    u32::from_be_bytes(bytes)
}

async fn add_address(handle: &Handle, link: &Link, cidr: Cidr) -> Result<(), AgentError> {
    let add = handle
        .address()
        .add(link.index, cidr.address, cidr.prefix)
        .replace();
    add.execute()
        .await
        .map_err(|error| failed(&link.name, &error))
}

async fn add_gateway(handle: &Handle, link: &Link, gateway: IpAddr) -> Result<(), AgentError> {
    let route = match gateway {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(address)
            .output_interface(link.index)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .gateway(address)
            .output_interface(link.index)
            .build(),
    };
    let add = handle.route().add(route).replace();
    add.execute()
        .await
        .map_err(|error| failed(&link.name, &error))
}

/// Takes the addresses of an interface away that it was given, in IPv6 not those that the kernel made
/// by router announcements; routes go with them.
async fn clear(handle: &Handle, link: &Link) -> Result<(), AgentError> {
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::address::{AddressHeader, AddressHeaderFlags, AddressScope};
    let failed = |error: rtnetlink::Error| failed(&link.name, &error);
    let all = handle
        .address()
        .get()
        .set_link_index_filter(link.index)
        .execute();
    let all: Vec<_> = all.try_collect().await.map_err(failed)?;
    let was_given = |header: &AddressHeader| match header.family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => {
            header.scope == AddressScope::Universe
                && header.flags.contains(AddressHeaderFlags::Permanent)
        }
        _ => false,
    };
    for address in all.into_iter().filter(|each| was_given(&each.header)) {
        handle
            .address()
            .del(address)
            .execute()
            .await
            .map_err(failed)?;
    }
    Ok(())
}

fn leased(node: &Node, config: &NetworkConfig, link: &Link, lease: &Lease) {
    let mut dns = config.dns.clone();
    dns.extend(lease.dns.iter().map(|address| IpAddr::V4(*address)));
    resolver(node, &dns);
    let end = unix_ms(node.clock.now() + lease.end);
    node.network.send_modify(|status| {
        status.gateways = lease.gateway.iter().map(ToString::to_string).collect();
        status.dns = dns.iter().map(ToString::to_string).collect();
        status.time_servers = lease.time_servers.iter().map(ToString::to_string).collect();
        status.lease_end_unix_ms = end;
    });
    say(
        node,
        &link.name,
        "dhcp",
        &format!("lent by {}", lease.server),
    );
}

fn say(node: &Node, interface: &str, mode: &str, state: &str) {
    tracing::info!(interface, mode, "network: {state}");
    let addresses = addresses();
    node.network.send_modify(|status| {
        status.interface = interface.to_owned();
        status.mode = mode.to_owned();
        status.state = state.to_owned();
        status.addresses = addresses;
    });
}

fn resolver(node: &Node, dns: &[IpAddr]) {
    if dns.is_empty() {
        return;
    }
    let text: String = dns
        .iter()
        .map(|address| format!("nameserver {address}\n"))
        .collect();
    let path = node.paths.root.join("etc/resolv.conf");
    if let Err(error) = std::fs::write(&path, text) {
        node.alert(format!("{} cannot be written: {error}", path.display()));
    }
}

/// Every address by which the node may be reached, with its prefix.
fn addresses() -> Vec<String> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut found: Vec<String> = all
        .filter_map(|each| {
            let (address, mask) = (each.address?, each.netmask?);
            if let (Some(address), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
                let prefix = mask.ip().to_bits().count_ones();
                return Some((IpAddr::V4(address.ip()), prefix));
            }
            let (address, mask) = (address.as_sockaddr_in6()?, mask.as_sockaddr_in6()?);
            Some((IpAddr::V6(address.ip()), mask.ip().to_bits().count_ones()))
        })
        .filter(|(address, _)| is_shown(*address))
        .map(|(address, prefix)| format!("{address}/{prefix}"))
        .collect();
    found.dedup();
    found.truncate(16);
    found
}

fn failed(interface: &str, error: &dyn std::error::Error) -> AgentError {
    AgentError::Network {
        interface: interface.to_owned(),
        problem: chain(error),
    }
}
