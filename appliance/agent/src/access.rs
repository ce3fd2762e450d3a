//! The one table that says which method which role may call. What is not in it is denied.

use pki::Role;

/// Who answers a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// This program.
    Agent,
    /// `aditd`, behind it.
    Aditd,
}

/// What a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Who answers it.
    pub server: Server,
    /// The least role that may call it.
    pub role: Role,
    /// Whether the one-time code of an unconfigured node opens it too.
    pub in_maintenance: bool,
}

/// The rule for a method by its path, `/adit.v1.NodeService/GetNode`. `None`: nobody may call it.
#[must_use]
pub fn rule(path: &str) -> Option<Rule> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let of_service = TABLE.iter().find(|entry| entry.service == service)?;
    let listed = |methods: &[&str]| methods.contains(&method);
    let role = if listed(of_service.reader) {
        Role::Reader
    } else if listed(of_service.operator) {
        Role::Operator
    } else if listed(of_service.admin) {
        Role::Admin
    } else {
        return None;
    };
    Some(Rule {
        server: of_service.server,
        role,
        in_maintenance: listed(of_service.maintenance),
    })
}

/// The methods of one service, by the least role that may call them.
#[derive(Debug)]
struct Entry {
    service: &'static str,
    server: Server,
    reader: &'static [&'static str],
    operator: &'static [&'static str],
    admin: &'static [&'static str],
    /// Those that the one-time code opens as well.
    maintenance: &'static [&'static str],
}

/// A service of `aditd`: nothing of it is open in maintenance.
const fn aditd(
    service: &'static str,
    reader: &'static [&'static str],
    operator: &'static [&'static str],
    admin: &'static [&'static str],
) -> Entry {
    Entry {
        service,
        server: Server::Aditd,
        reader,
        operator,
        admin,
        maintenance: &[],
    }
}

/// A service that tells about this program, for tools; no state of the node is in it.
const fn for_tools(service: &'static str, reader: &'static [&'static str]) -> Entry {
    Entry {
        service,
        server: Server::Agent,
        reader,
        operator: &[],
        admin: &[],
        maintenance: &[],
    }
}

/// Operators run the node: they make, change and delete what is served. What can destroy more than
/// the object it names, or changes who may do what, is an administrator's.
const TABLE: &[Entry] = &[
    Entry {
        service: "adit.v1.SystemService",
        server: Server::Agent,
        reader: &[
            "GetSystem",
            "GetFacts",
            "ReadFirmware",
            "PlanMachine",
            "ListActions",
            "ListServices",
            "ReadLogs",
            "ReadKernelLog",
            "GetTime",
            "GetNetwork",
        ],
        operator: &[
            "RestartService",
            // With cores it is an administrator's: the method itself looks.
            "GetSupportBundle",
            "SetTime",
            "Reboot",
            "PowerOff",
        ],
        admin: &["ApplyMachine", "WipeDrive"],
        maintenance: &[
            "GetSystem",
            "GetFacts",
            "ReadLogs",
            "ReadKernelLog",
            "WipeDrive",
            "Reboot",
        ],
    },
    Entry {
        service: "adit.v1.NodeConfigService",
        server: Server::Agent,
        reader: &["GetNodeConfig"],
        operator: &[],
        admin: &["ApplyNodeConfig", "GetSigningRequest"],
        maintenance: &["ApplyNodeConfig", "GetSigningRequest"],
    },
    aditd(
        "adit.v1.BdevService",
        &["GetBdev", "ListBdevs", "ListBdevStats"],
        &[
            "CreateBdev",
            "UpdateBdev",
            "ResizeBdev",
            "ResetBdev",
            "DeleteBdev",
        ],
        &["FormatDrive"],
    ),
    aditd("adit.v1.ConfigService", &["GetDocument"], &["Apply"], &[]),
    aditd("adit.v1.WatchService", &["Watch"], &[], &[]),
    aditd(
        "adit.v1.ControllerService",
        &["ListControllers", "ListQpairs", "ListPollGroups"],
        &["DisconnectController"],
        &[],
    ),
    aditd("adit.v1.NodeService", &["GetNode"], &["DrainNode"], &[]),
    aditd(
        "adit.v1.OperationService",
        &["GetOperation", "ListOperations", "WaitOperation"],
        &["CancelOperation"],
        &[],
    ),
    aditd(
        "adit.v1.PoolService",
        &["GetPool", "ListPools", "CheckPool"],
        &[
            "CreatePool",
            "UpdatePool",
            "RenamePool",
            "ImportPool",
            "GrowPool",
            "ExportPool",
            "ScrubPool",
        ],
        &["DeletePool", "RepairPool"],
    ),
    aditd(
        "adit.v1.ReactorService",
        &[
            "ListReactors",
            "ListThreads",
            "ListPollers",
            "ListChannels",
            "GetIobuf",
        ],
        &[],
        &[],
    ),
    aditd(
        "adit.v1.SubsystemService",
        &["GetSubsystem", "ListSubsystems"],
        &["CreateSubsystem", "UpdateSubsystem", "DeleteSubsystem"],
        &[],
    ),
    aditd(
        "adit.v1.NamespaceService",
        &["GetNamespace", "ListNamespaces"],
        &["CreateNamespace", "UpdateNamespace", "DeleteNamespace"],
        &[],
    ),
    aditd(
        "adit.v1.ListenerService",
        &["GetListener", "ListListeners"],
        &["CreateListener", "SetAnaState", "DeleteListener"],
        &[],
    ),
    aditd(
        "adit.v1.HostService",
        &["GetHost", "ListHosts"],
        &["CreateHost", "DeleteHost"],
        &[],
    ),
    aditd(
        "adit.v1.TransportService",
        &["GetTransport", "ListTransports", "ListRdmaDevices"],
        &["CreateTransport", "UpdateTransport", "DeleteTransport"],
        &[],
    ),
    aditd(
        "adit.v1.VolumeService",
        &["GetVolume", "ListVolumes", "DiffSnapshots"],
        &[
            "CreateVolume",
            "UpdateVolume",
            "ImportVolume",
            "ExportVolume",
            "CloneVolume",
            "ResizeVolume",
            "RenameVolume",
            "DeleteVolume",
            "InflateVolume",
            "DecoupleVolume",
            "RollbackVolume",
            "SetVolumeParent",
            "ShareVolume",
        ],
        &[],
    ),
    aditd(
        "adit.v1.SnapshotService",
        &["GetSnapshot", "ListSnapshots"],
        &["CreateSnapshots", "CopySnapshot", "DeleteSnapshot"],
        &[],
    ),
    for_tools("grpc.health.v1.Health", &["Check", "Watch"]),
    for_tools(
        "grpc.reflection.v1.ServerReflection",
        &["ServerReflectionInfo"],
    ),
    for_tools(
        "grpc.reflection.v1alpha.ServerReflection",
        &["ServerReflectionInfo"],
    ),
];

/// Every method of the table, by its path.
pub fn methods() -> impl Iterator<Item = String> {
    TABLE.iter().flat_map(|entry| {
        [entry.reader, entry.operator, entry.admin]
            .into_iter()
            .flatten()
            .map(|method| format!("/{}/{method}", entry.service))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::DescriptorPool;

    use super::*;

    /// Every method that the compiled definitions have.
    fn defined() -> BTreeSet<String> {
        let mut pool = DescriptorPool::new();
        for set in [
            api::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            pool.decode_file_descriptor_set(set).unwrap();
        }
        pool.services()
            .flat_map(|service| {
                let name = service.full_name().to_owned();
                let path = move |method: &str| format!("/{name}/{method}");
                let methods: Vec<_> = service.methods().map(|m| path(m.name())).collect();
                methods
            })
            .collect()
    }

    #[test]
    fn every_method_has_a_rule_and_every_rule_a_method() {
        // They give away the node's keys, to this program alone.
        let own = defined()
            .into_iter()
            .filter(|path| path.starts_with("/adit.v1.AgentStateService/"));
        let own: BTreeSet<String> = own.collect();
        assert!(own.len() == 2 && own.iter().all(|path| rule(path).is_none()));
        let listed: Vec<String> = methods().collect();
        let set: BTreeSet<String> = listed.iter().cloned().collect();
        assert_eq!(listed.len(), set.len(), "a method stands there twice");
        let defined: BTreeSet<_> = defined().difference(&own).cloned().collect();
        let missing: Vec<_> = defined.difference(&set).collect();
        assert!(missing.is_empty(), "without a rule: {missing:?}");
        let gone: Vec<_> = set.difference(&defined).collect();
        assert!(gone.is_empty(), "without a method: {gone:?}");
    }

    #[test]
    fn what_is_not_in_the_table_is_denied() {
        for path in [
            "",
            "/",
            "adit.v1.NodeService/GetNode",
            "/adit.v1.NodeService/",
            "/adit.v1.NodeService/GetNodes",
            "/adit.v1.NodeService/GetNode/",
            "/adit.v1.NodeService/getnode",
            "/adit.v1.Nobody/GetNode",
            "//adit.v1.NodeService/GetNode",
        ] {
            assert_eq!(rule(path), None, "{path}");
        }
    }

    #[test]
    fn methods_that_only_read_are_open_to_readers_and_no_other_is() {
        let reads = [
            "Get", "List", "Read", "Watch", "Check", "Plan", "Wait", "Diff", "Server",
        ];
        // A bundle holds more than a reader may see; a signing request is a step of configuring.
        let more = ["GetSupportBundle", "GetSigningRequest"];
        for path in methods() {
            let method = path.rsplit('/').next().unwrap();
            let is_read = reads.iter().any(|word| method.starts_with(word));
            let is_read = is_read && !more.contains(&method);
            let role = rule(&path).unwrap().role;
            assert_eq!(role == Role::Reader, is_read, "{path}: {role}");
        }
    }

    #[test]
    fn maintenance_opens_what_is_needed_to_configure_and_nothing_else() {
        let open: BTreeSet<String> = methods()
            .filter(|path| rule(path).unwrap().in_maintenance)
            .map(|path| path.rsplit('/').next().unwrap().to_owned())
            .collect();
        let expected = [
            "ApplyNodeConfig",
            "GetFacts",
            "GetSigningRequest",
            "GetSystem",
            "ReadKernelLog",
            "ReadLogs",
            "Reboot",
            "WipeDrive",
        ];
        assert!(open.iter().eq(expected), "{open:?}");
    }
}
