//! Devices: which go to vfio-pci, which go back.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Plan, Reason, Refusal, Subject, select};
use crate::{
    Config, Facts, Former, NicMode, PciAddress, PciDevice, RdmaDevice, Selector, VFIO_DRIVER,
};

/// How the node is reached.
struct Management {
    /// The functions, each with its interface.
    functions: Vec<(PciAddress, String)>,
    is_known: bool,
}

/// What the configuration asks for.
#[derive(Default)]
struct Wishes {
    nvme: BTreeSet<PciAddress>,
    /// Controllers that were taken by class, not by name.
    by_class: BTreeSet<PciAddress>,
    ports: BTreeMap<PciAddress, NicMode>,
    /// Ports that get a soft-RoCE device where they have no other.
    soft_roce: BTreeSet<PciAddress>,
}

impl Wishes {
    fn vfio(&self) -> BTreeSet<PciAddress> {
        let ports = self
            .ports
            .iter()
            .filter(|(_, mode)| **mode == NicMode::Vfio);
        self.nvme
            .iter()
            .chain(ports.map(|(address, _)| address))
            .copied()
            .collect()
    }
}

pub(super) fn plan(facts: &Facts, config: &Config, plan: &mut Plan) {
    let management = management(facts, config, plan);
    let mut wishes = Wishes::default();
    nvme_wishes(facts, config, &mut wishes, plan);
    port_wishes(facts, config, &mut wishes, plan);
    give_back(facts, config, &wishes, plan);
    check_ports(facts, &wishes, plan);
    bind(facts, config, &wishes, &management, plan);
}

fn management(facts: &Facts, config: &Config, plan: &mut Plan) -> Management {
    let mut functions = facts.management();
    let mut is_known = facts.net.iter().any(|each| !each.default_routes.is_empty());
    if let Some(selector) = &config.management {
        match select::ports(facts, config, selector) {
            Ok(found) => {
                is_known = true;
                functions.extend(found.into_iter().map(|at| (at, selector.to_string())));
            }
            Err(reason) => {
                plan.refuse(Subject::Management(selector.to_string()), vec![reason]);
            }
        }
    }
    Management {
        functions,
        is_known,
    }
}

fn nvme_wishes(facts: &Facts, config: &Config, wishes: &mut Wishes, plan: &mut Plan) {
    for selector in &config.vfio {
        match select::controllers(facts, config, selector) {
            Ok(found) if matches!(selector, Selector::Class(_)) => wishes.by_class.extend(found),
            Ok(found) => wishes.nvme.extend(found),
            Err(reason) => {
                let subject = Subject::Selector("vfio".to_owned(), selector.to_string());
                plan.refuse(subject, vec![reason]);
            }
        }
    }
    let named = wishes.nvme.clone();
    wishes.by_class.retain(|address| !named.contains(address));
    wishes.nvme.extend(wishes.by_class.iter().copied());
    for selector in &config.except {
        match select::controllers(facts, config, selector) {
            Ok(found) => wishes.nvme.retain(|address| !found.contains(address)),
            // A drive that is not there needs no exception.
            Err(Reason::NotFound) => {
                plan.notes
                    .push(format!("except: {selector} names nothing here"));
            }
            Err(Reason::SerialNotShown(_)) => except_unclear(facts, config, selector, wishes, plan),
            Err(reason) => {
                // What was to be spared is not known: nothing is taken by class.
                let subject = Subject::Selector("except".to_owned(), selector.to_string());
                plan.refuse(subject, vec![reason]);
                wishes
                    .nvme
                    .retain(|address| !wishes.by_class.contains(address));
            }
        }
    }
}

/// A controller that does not show its serial may be the one to be spared.
fn except_unclear(
    facts: &Facts,
    config: &Config,
    selector: &Selector,
    wishes: &mut Wishes,
    plan: &mut Plan,
) {
    let silent = |address: &PciAddress| {
        facts
            .device(*address)
            .is_some_and(|device| select::serial(config, device).is_none())
    };
    let unclear: Vec<PciAddress> = wishes
        .nvme
        .intersection(&wishes.by_class)
        .copied()
        .filter(silent)
        .collect();
    for address in unclear {
        wishes.nvme.remove(&address);
        let reason = Reason::ExceptUnclear(selector.to_string());
        add(plan, Subject::Bind(address), reason);
    }
}

fn add(plan: &mut Plan, subject: Subject, reason: Reason) {
    match plan
        .refusals
        .iter_mut()
        .find(|refusal| refusal.subject == subject)
    {
        Some(Refusal { reasons, .. }) if reasons.contains(&reason) => {}
        Some(Refusal { reasons, .. }) => reasons.push(reason),
        None => plan.refuse(subject, vec![reason]),
    }
}

fn port_wishes(facts: &Facts, config: &Config, wishes: &mut Wishes, plan: &mut Plan) {
    let mut doubles = BTreeSet::new();
    for rule in &config.nic {
        match select::port(facts, config, &rule.port) {
            Ok(address) => {
                let before = wishes.ports.insert(address, rule.mode);
                if before.is_some_and(|mode| mode != rule.mode) {
                    doubles.insert(address);
                }
                if rule.soft_roce && rule.mode != NicMode::Verbs {
                    add(plan, Subject::Port(address), Reason::SoftRoceWithoutVerbs);
                } else if rule.soft_roce {
                    wishes.soft_roce.insert(address);
                }
            }
            Err(reason) => {
                let subject = Subject::Selector("nic".to_owned(), rule.port.to_string());
                plan.refuse(subject, vec![reason]);
            }
        }
    }
    for address in doubles {
        wishes.ports.remove(&address);
        add(plan, Subject::Port(address), Reason::TwoModes);
    }
}

/// What is on vfio-pci and should not be: what the configuration gives to the kernel, and claims
/// that nothing asks for any more.
fn give_back(facts: &Facts, config: &Config, wishes: &Wishes, plan: &mut Plan) {
    let vfio = wishes.vfio();
    let mut back: BTreeSet<PciAddress> = config
        .claims
        .iter()
        .map(|claim| claim.address)
        .filter(|at| !vfio.contains(at))
        .collect();
    back.extend(
        wishes
            .ports
            .keys()
            .filter(|address| !vfio.contains(address)),
    );
    // A wish that could not be understood is not a wish to give a device back.
    let refused = |address: &PciAddress| {
        let of = [Subject::Bind(*address), Subject::Port(*address)];
        plan.refusals
            .iter()
            .any(|refusal| of.contains(&refusal.subject))
    };
    let unclear = plan
        .refusals
        .iter()
        .any(|each| matches!(each.subject, Subject::Selector(..)));
    back.retain(|address| wishes.ports.contains_key(address) || !(unclear || refused(address)));
    for address in back {
        let Some(device) = facts.device(address) else {
            continue;
        };
        let on_vfio = device.driver.as_deref() == Some(VFIO_DRIVER);
        let half_way = device.driver.is_none() && is_overridden(device);
        if !on_vfio && !half_way {
            continue;
        }
        let users = users(facts, device);
        if users.is_empty() {
            plan.actions.push(Action::GiveBack {
                address,
                to: former(config, device),
            });
        } else {
            // The kernel would wait for them, and whoever asked would wait with it.
            plan.refuse(Subject::GiveBack(address), vec![Reason::InUse(users)]);
        }
    }
}

/// Processes that drive a function from user space.
pub(crate) fn users(facts: &Facts, device: &PciDevice) -> Vec<String> {
    let group = device.group.and_then(|number| facts.group(number));
    let mut users: Vec<String> = group.map(|group| group.users.clone()).unwrap_or_default();
    users.extend(device.vfio_users.iter().cloned());
    users
}

/// Why a function may not be taken, as the host is now, whatever was planned.
pub(crate) fn why_not(facts: &Facts, device: &PciDevice) -> Vec<Reason> {
    let management = Management {
        functions: facts.management(),
        is_known: true,
    };
    reasons(facts, device, device.is_nic(), &management)
}

pub(super) fn is_overridden(device: &PciDevice) -> bool {
    device.driver_override.as_deref() == Some(VFIO_DRIVER)
}

/// Who has the function, or had it before it was taken.
fn former(config: &Config, device: &PciDevice) -> Former {
    let claim = config
        .claims
        .iter()
        .find(|claim| claim.address == device.address);
    match (device.driver.as_deref(), claim) {
        (Some(VFIO_DRIVER) | None, Some(claim)) => claim.former.clone(),
        (Some(VFIO_DRIVER), None) => Former::Unknown,
        // Somebody stopped half-way.
        (None, None) if is_overridden(device) => Former::Unknown,
        (None, None) => Former::Nobody,
        (Some(driver), _) => Former::Driver(driver.to_owned()),
    }
}

/// Ports that are to be the kernel's have a driver, and for verbs an RDMA device.
fn check_ports(facts: &Facts, wishes: &Wishes, plan: &mut Plan) {
    for (address, mode) in &wishes.ports {
        let Some(device) = facts.device(*address) else {
            continue;
        };
        if !device.is_nic() {
            add(plan, Subject::Port(*address), Reason::NotNic(device.class));
        } else if *mode != NicMode::Vfio && device.driver.is_none() && !is_overridden(device) {
            add(plan, Subject::Port(*address), Reason::NoDriver);
        } else if *mode == NicMode::Verbs
            && device.rdma.is_empty()
            && device.driver.as_deref() != Some(VFIO_DRIVER)
        {
            match (
                wishes.soft_roce.contains(address),
                interface_of(facts, device),
            ) {
                (false, _) => add(plan, Subject::Port(*address), Reason::NoRdma),
                (true, None) => add(plan, Subject::Port(*address), Reason::NoInterface),
                (true, Some(interface)) => plan.actions.push(Action::AddSoftRoce {
                    name: soft_roce_name(interface),
                    interface: interface.to_owned(),
                }),
            }
        } else if *mode == NicMode::Kernel {
            // Those that a person made stay: only the names that are given here are taken away.
            let made_here = |each: &&RdmaDevice| {
                let interface = each.interface.as_deref();
                interface.is_some_and(|interface| each.name == soft_roce_name(interface))
            };
            for each in device.rdma.iter().filter(made_here) {
                let name = each.name.clone();
                plan.actions.push(Action::RemoveSoftRoce { name });
            }
        }
    }
}

/// The first interface of a port.
fn interface_of<'a>(facts: &'a Facts, device: &PciDevice) -> Option<&'a str> {
    let mut of_port = facts
        .net
        .iter()
        .filter(|each| each.pci == Some(device.address));
    of_port.next().map(|each| each.name.as_str())
}

fn soft_roce_name(interface: &str) -> String {
    format!("rxe_{interface}")
}

fn bind(facts: &Facts, config: &Config, wishes: &Wishes, management: &Management, plan: &mut Plan) {
    let mut taken: BTreeSet<PciAddress> = BTreeSet::new();
    for address in wishes.vfio() {
        let Some(device) = facts.device(address) else {
            continue;
        };
        let is_port = wishes.ports.get(&address) == Some(&NicMode::Vfio);
        let reasons = reasons(facts, device, is_port, management);
        if reasons.is_empty() {
            taken.insert(address);
        }
        for reason in reasons {
            add(plan, Subject::Bind(address), reason);
        }
    }
    // A function that is refused may be the reason why another of its group is: until nothing
    // changes. Those that were refused already hear of their group, too.
    loop {
        let before = taken.len();
        for address in wishes.vfio() {
            let Some(device) = facts.device(address) else {
                continue;
            };
            let foreign = foreign_members(facts, device, &taken);
            if !foreign.is_empty() {
                taken.remove(&address);
            }
            for reason in foreign {
                add(plan, Subject::Bind(address), reason);
            }
        }
        if taken.len() == before {
            break;
        }
    }
    for address in taken {
        let Some(device) = facts.device(address) else {
            continue;
        };
        note_link(device, plan);
        if device.driver.as_deref() == Some(VFIO_DRIVER) {
            plan.notes
                .push(format!("{address}: is bound to {VFIO_DRIVER}"));
        } else if let Some(group) = device.group {
            plan.actions.push(Action::Bind {
                address,
                group,
                former: former(config, device),
                known_as: select::known_as(facts, config, device),
            });
        }
    }
}

/// Every reason of its own why a function may not go to vfio-pci.
fn reasons(
    facts: &Facts,
    device: &PciDevice,
    is_port: bool,
    management: &Management,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if is_port && !device.is_nic() {
        reasons.push(Reason::NotNic(device.class));
    }
    if !is_port && !device.is_nvme() {
        reasons.push(Reason::NotNvme(device.class));
    }
    if !facts.vfio_loaded {
        reasons.push(Reason::VfioNotLoaded);
    }
    let vmd = |parent: &&PciAddress| {
        facts
            .device(**parent)
            .is_some_and(|above| above.driver.as_deref() == Some("vmd"))
    };
    if let Some(parent) = device.parents.iter().find(vmd) {
        reasons.push(Reason::BehindVmd(*parent));
    } else if let Some(gap) = &facts.iommu.gap {
        reasons.push(Reason::NoIommu(gap.clone()));
    } else if device.group.is_none() {
        reasons.push(Reason::NoGroup);
    }
    if device.driver.as_deref() != Some(VFIO_DRIVER)
        && let Some(other) = device
            .driver_override
            .as_ref()
            .filter(|_| !is_overridden(device))
    {
        reasons.push(Reason::Overridden(other.clone()));
    }
    if device.virtual_functions > 0 {
        reasons.push(Reason::VirtualFunctions(device.virtual_functions));
    }
    for each in facts
        .block
        .iter()
        .filter(|each| each.pci.contains(&device.address))
    {
        reasons.extend(each.holders.iter().map(|holder| Reason::Held {
            device: each.name.clone(),
            holder: holder.clone(),
        }));
    }
    let on_it = management
        .functions
        .iter()
        .filter(|(address, _)| *address == device.address);
    reasons.extend(on_it.map(|(_, interface)| Reason::Management(interface.clone())));
    if is_port && !management.is_known && device.driver.as_deref() != Some(VFIO_DRIVER) {
        reasons.push(Reason::ManagementUnknown);
    }
    for each in facts
        .net
        .iter()
        .filter(|each| each.pci == Some(device.address))
    {
        reasons.extend(each.upper.iter().map(|upper| Reason::Enslaved {
            interface: each.name.clone(),
            upper: upper.clone(),
        }));
    }
    reasons
}

/// Members of the function's group that the kernel drives and that are not taken.
fn foreign_members(facts: &Facts, device: &PciDevice, taken: &BTreeSet<PciAddress>) -> Vec<Reason> {
    let Some(group) = device.group.and_then(|number| facts.group(number)) else {
        return Vec::new();
    };
    let foreign = |member: &String| {
        let other = member
            .parse()
            .ok()
            .and_then(|address| facts.device(address));
        let Some(other) = other else {
            return Some(Reason::ForeignMember {
                group: group.number,
                member: member.clone(),
                driver: None,
            });
        };
        let is_fine = other.address == device.address
            || taken.contains(&other.address)
            || other.is_bridge()
            // These two do no DMA on the kernel's behalf.
            || matches!(other.driver.as_deref(), None | Some(VFIO_DRIVER | "pci-stub"));
        (!is_fine).then(|| Reason::ForeignMember {
            group: group.number,
            member: member.clone(),
            driver: other.driver.clone(),
        })
    };
    group.members.iter().filter_map(foreign).collect()
}

fn note_link(device: &PciDevice, plan: &mut Plan) {
    let Some(link) = &device.link else { return };
    if link.speed_mts < link.speed_max_mts || link.width < link.width_max {
        let number = |each: Option<u32>| each.map_or("?".to_owned(), |each| each.to_string());
        plan.notes.push(format!(
            "{}: link at {} MT/s x{}, the device can do {} MT/s x{}",
            device.address,
            number(link.speed_mts),
            number(link.width),
            number(link.speed_max_mts),
            number(link.width_max),
        ));
    }
}
