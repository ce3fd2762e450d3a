//! The program as a whole: `aditd` as a child, the management API over its socket.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use api::v1;
use api::v1::agent_state_service_client::AgentStateServiceClient;
use api::v1::bdev_service_client::BdevServiceClient;
use api::v1::config_service_client::ConfigServiceClient;
use api::v1::listener_service_client::ListenerServiceClient;
use api::v1::namespace_service_client::NamespaceServiceClient;
use api::v1::node_service_client::NodeServiceClient;
use api::v1::pool_service_client::PoolServiceClient;
use api::v1::subsystem_service_client::SubsystemServiceClient;
use api::v1::transport_service_client::TransportServiceClient;
use api::v1::volume_service_client::VolumeServiceClient;
use api::v1::watch_service_client::WatchServiceClient;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// How long the program may take to answer on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);

struct Aditd {
    child: Child,
    socket: PathBuf,
}

impl Aditd {
    fn start(directory: &Path) -> Aditd {
        Aditd::start_with(directory, &[])
    }

    fn start_with(directory: &Path, arguments: &[String]) -> Aditd {
        let socket = directory.join("aditd.sock");
        let config = directory.join("aditd.toml");
        // Small pools of ordinary memory: the test needs no rights and little room.
        let text =
            "[memory]\nbacking = \"plain-4k\"\nsmall_pool_count = 1024\nlarge_pool_count = 64\n";
        std::fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_aditd"))
            .arg("--state-dir")
            .arg(directory.join("state"))
            .arg("--config")
            .arg(config)
            .arg("--grpc")
            .arg(format!("unix:{}", socket.display()))
            .args(["--reactors", "1", "--log", "warn"])
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Aditd { child, socket }
    }

    async fn channel(&mut self) -> Channel {
        let uri = format!("unix:{}", self.socket.display());
        let deadline = Instant::now() + START_WITHIN;
        loop {
            if let Ok(channel) = Endpoint::from_shared(uri.clone()).unwrap().connect().await {
                return channel;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "aditd has ended");
            assert!(Instant::now() < deadline, "aditd does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// CPU time that the process has taken: unlike the clock's, it does not depend on who else runs.
    fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the name in parentheses: utime and stime are fields 14 and 15, in ticks of 10 ms.
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11..=12]
            .iter()
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap()
    }
}

impl Drop for Aditd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nqn(number: u32) -> String {
    format!("nqn.2026-11.io.adit:s{number}")
}

/// A port that nobody uses now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A subsystem with a namespace and a listener: four calls.
async fn create(channel: Channel, number: u32, port: u16) {
    let kind = v1::bdev_spec::Kind::Null(v1::NullBdev {
        size_bytes: 1 << 30,
        block_size: None,
    });
    let bdev = v1::BdevSpec {
        name: format!("n{number}"),
        kind: Some(kind),
        ..Default::default()
    };
    let request = v1::CreateBdevRequest { bdev: Some(bdev) };
    BdevServiceClient::new(channel.clone())
        .create_bdev(request)
        .await
        .unwrap();
    let subsystem = v1::SubsystemSpec {
        nqn: nqn(number),
        allow_any_host: Some(true),
        ..Default::default()
    };
    let request = v1::CreateSubsystemRequest {
        subsystem: Some(subsystem),
    };
    SubsystemServiceClient::new(channel.clone())
        .create_subsystem(request)
        .await
        .unwrap();
    let namespace = v1::NamespaceSpec {
        bdev_name: format!("n{number}"),
        ..Default::default()
    };
    let request = v1::CreateNamespaceRequest {
        nqn: nqn(number),
        namespace: Some(namespace),
    };
    NamespaceServiceClient::new(channel.clone())
        .create_namespace(request)
        .await
        .unwrap();
    let address = v1::Address::from_uri(&format!("tcp://127.0.0.1:{port}")).unwrap();
    let listener = v1::ListenerSpec {
        address: Some(address),
        ..Default::default()
    };
    let request = v1::CreateListenerRequest {
        nqn: nqn(number),
        listener: Some(listener),
    };
    ListenerServiceClient::new(channel)
        .create_listener(request)
        .await
        .unwrap();
}

async fn create_all(channel: &Channel, count: u32, tasks: u32) -> Duration {
    let port = free_port();
    let started = Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let channel = channel.clone();
        set.spawn(async move {
            for number in (task..count).step_by(tasks as usize) {
                create(channel.clone(), number, port).await;
            }
        });
    }
    while let Some(result) = set.join_next().await {
        result.unwrap();
    }
    started.elapsed()
}

async fn document(channel: &Channel) -> v1::GetDocumentResponse {
    let mut client = ConfigServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    client
        .get_document(v1::GetDocumentRequest {})
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn a_thousand_subsystems_by_sixteen_callers_survive_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    let mut aditd = Aditd::start(directory.path());
    let channel = aditd.channel().await;
    let took = create_all(&channel, 1000, 16).await;
    let cpu = aditd.cpu_time();
    println!("1000 subsystems, 4 durable calls each, 16 in flight: {took:?}, {cpu:?} of CPU");
    let before = document(&channel).await;
    assert_eq!(before.document.as_ref().unwrap().subsystems.len(), 1000);
    aditd.kill();
    let mut aditd = Aditd::start(directory.path());
    let started = Instant::now();
    let channel = aditd.channel().await;
    assert_eq!(document(&channel).await, before);
    println!("restored in {:?}", started.elapsed());
    let node = NodeServiceClient::new(channel)
        .get_node(v1::GetNodeRequest {})
        .await
        .unwrap();
    let node = node.into_inner();
    assert_eq!(
        node.state(),
        v1::NodeState::Serving,
        "{:?}",
        node.pending_objects
    );
    assert!(aditd.terminate().success());
}

#[tokio::test]
async fn a_missing_file_is_pending_and_found_later() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    let mut aditd = Aditd::start(directory.path());
    let channel = aditd.channel().await;
    let mut client = BdevServiceClient::new(channel.clone());
    let watch = WatchServiceClient::new(channel)
        .watch(v1::WatchRequest::default())
        .await;
    let mut events = watch.unwrap().into_inner();
    let kind = v1::bdev_spec::Kind::File(v1::FileBdev {
        path: file.display().to_string(),
        ..Default::default()
    });
    let bdev = v1::BdevSpec {
        name: "f0".into(),
        kind: Some(kind),
        ..Default::default()
    };
    let request = v1::CreateBdevRequest { bdev: Some(bdev) };
    let made = client.create_bdev(request).await.unwrap().into_inner();
    assert_eq!(made.status.unwrap().state(), v1::ObjectState::Pending);
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    loop {
        let event = events.message().await.unwrap().unwrap();
        if event.r#type() == v1::EventType::Status && event.text == "in place" {
            break;
        }
    }
    let request = v1::GetBdevRequest { name: "f0".into() };
    let found = client.get_bdev(request).await.unwrap().into_inner();
    assert_eq!((found.block_size, found.num_blocks), (512, 2048));
    assert!(aditd.terminate().success());
}

/// A pool `p` on a file of 1 GiB, and volumes by 16 callers.
#[tokio::test]
async fn an_rdma_transport_is_there_or_says_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let mut aditd = Aditd::start(directory.path());
    let mut client = TransportServiceClient::new(aditd.channel().await);
    let request = v1::CreateTransportRequest {
        transport: Some(v1::TransportSpec {
            trtype: "rdma".into(),
            ..v1::TransportSpec::default()
        }),
    };
    let made = client.create_transport(request).await.unwrap().into_inner();
    let status = made.status.unwrap();
    if status.state() == v1::ObjectState::Pending {
        let reason = &status.reason;
        assert!(reason.contains("rdma is not available"), "{reason}");
        assert!(reason.contains("install libibverbs1"), "{reason}");
    } else {
        assert_eq!(status.state(), v1::ObjectState::Ready);
    }
    assert!(aditd.terminate().success());
}

async fn create_volumes(channel: &Channel, path: &Path, count: u32) -> Duration {
    let kind = v1::bdev_spec::Kind::File(v1::FileBdev {
        path: path.display().to_string(),
        size_bytes: Some(1 << 30),
        ..Default::default()
    });
    let bdev = v1::BdevSpec {
        name: "f0".into(),
        kind: Some(kind),
        ..Default::default()
    };
    let request = v1::CreateBdevRequest { bdev: Some(bdev) };
    BdevServiceClient::new(channel.clone())
        .create_bdev(request)
        .await
        .unwrap();
    let pool = v1::PoolSpec {
        name: "p".into(),
        bdev_name: "f0".into(),
        uuid: None,
        system: None,
    };
    let request = v1::CreatePoolRequest {
        pool: Some(pool),
        ..Default::default()
    };
    PoolServiceClient::new(channel.clone())
        .create_pool(request)
        .await
        .unwrap();
    let started = Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for task in 0..16 {
        let mut client = VolumeServiceClient::new(channel.clone());
        set.spawn(async move {
            for number in (task..count).step_by(16) {
                let volume = v1::VolumeSpec {
                    name: format!("p/v{number:04}"),
                    size_bytes: 1 << 40,
                    ..Default::default()
                };
                let request = v1::CreateVolumeRequest {
                    volume: Some(volume),
                };
                client.create_volume(request).await.unwrap();
            }
        });
    }
    while let Some(result) = set.join_next().await {
        result.unwrap();
    }
    started.elapsed()
}

async fn pool(channel: &Channel) -> v1::Pool {
    let request = v1::GetPoolRequest { name: "p".into() };
    let found = PoolServiceClient::new(channel.clone())
        .get_pool(request)
        .await;
    found.unwrap().into_inner()
}

#[tokio::test]
async fn a_thousand_volumes_survive_sigkill_and_wait_for_their_device() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool.img");
    let mut aditd = Aditd::start(directory.path());
    let channel = aditd.channel().await;
    let took = create_volumes(&channel, &path, 1000).await;
    println!("1000 volumes, each durable, 16 in flight: {took:?}");
    let before = pool(&channel).await;
    assert_eq!(before.volumes, 1000);
    let request = v1::ShareVolumeRequest {
        name: "p/v0007".into(),
        address: Some(v1::Address::from_uri(&format!("tcp://127.0.0.1:{}", free_port())).unwrap()),
        nqn: Some(nqn(7)),
        host_nqns: Vec::new(),
    };
    VolumeServiceClient::new(channel)
        .share_volume(request)
        .await
        .unwrap();
    aditd.kill();

    // The device is away: the pool and the namespace wait.
    let away = directory.path().join("away.img");
    std::fs::rename(&path, &away).unwrap();
    let mut aditd = Aditd::start(directory.path());
    let channel = aditd.channel().await;
    let status = pool(&channel).await.status.unwrap();
    assert_eq!(status.state(), v1::ObjectState::Pending);
    assert!(status.reason.contains("f0"), "{}", status.reason);
    std::fs::rename(&away, &path).unwrap();
    let deadline = Instant::now() + START_WITHIN;
    let mut node = NodeServiceClient::new(channel.clone());
    loop {
        let state = node.get_node(v1::GetNodeRequest {}).await.unwrap();
        if state.into_inner().state() == v1::NodeState::Serving {
            break;
        }
        assert!(Instant::now() < deadline, "the pool does not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = pool(&channel).await;
    assert_eq!((after.volumes, after.uuid), (1000, before.uuid));
    assert!(aditd.terminate().success());
}

async fn create_file_bdev(channel: &Channel, path: &Path) {
    let kind = v1::bdev_spec::Kind::File(v1::FileBdev {
        path: path.display().to_string(),
        size_bytes: Some(1 << 30),
        ..Default::default()
    });
    let bdev = v1::BdevSpec {
        name: "f0".into(),
        kind: Some(kind),
        ..Default::default()
    };
    let request = v1::CreateBdevRequest { bdev: Some(bdev) };
    let mut client = BdevServiceClient::new(channel.clone());
    let mut made = client.create_bdev(request).await.unwrap().into_inner();
    while made.status.unwrap_or_default().state() != v1::ObjectState::Ready {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let request = v1::GetBdevRequest { name: "f0".into() };
        made = client.get_bdev(request).await.unwrap().into_inner();
    }
}

async fn node(channel: &Channel) -> v1::Node {
    let mut client = NodeServiceClient::new(channel.clone());
    let answer = client.get_node(v1::GetNodeRequest {}).await;
    answer.unwrap().into_inner()
}

/// The state is in the pool when calls are answered. Another node does not write over it unasked.
#[tokio::test]
async fn a_system_pool_keeps_the_state_of_its_node_until_somebody_says_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool.img");
    let by_pool = ["--system-pool".to_owned()];
    let mut aditd = Aditd::start_with(directory.path(), &by_pool);
    let channel = aditd.channel().await;
    let notices = node(&channel).await.notices;
    let is_told = |notices: &[String], text: &str| notices.iter().any(|n| n.contains(text));
    assert!(
        is_told(&notices, "no pool is the system pool"),
        "{notices:?}"
    );
    create_file_bdev(&channel, &path).await;
    let request = v1::CreatePoolRequest {
        pool: Some(v1::PoolSpec {
            name: "p".into(),
            bdev_name: "f0".into(),
            uuid: None,
            system: Some(true),
        }),
        ..Default::default()
    };
    let mut pools = PoolServiceClient::new(channel.clone());
    pools.create_pool(request).await.unwrap();
    create_all(&channel, 20, 4).await;
    let agent = |channel: &Channel| AgentStateServiceClient::new(channel.clone());
    let state = b"keys".to_vec();
    let request = v1::PutAgentStateRequest {
        state: state.clone(),
    };
    let kept = agent(&channel).put_agent_state(request).await.unwrap();
    let kept = kept.into_inner();
    assert_eq!((kept.system_pool.as_str(), kept.notice.as_str()), ("p", ""));
    let request = v1::PutAgentStateRequest {
        state: vec![0; (768 << 10) + 1],
    };
    let refused = agent(&channel).put_agent_state(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let before = node(&channel).await;
    assert_eq!(before.system_pool, "p");
    assert!(!is_told(&before.notices, "memory only"), "{before:?}");
    aditd.kill();
    // The file of the state directory counts, and the pool has the same.
    let mut aditd = Aditd::start_with(directory.path(), &by_pool);
    let channel = aditd.channel().await;
    let after = node(&channel).await;
    assert_eq!(
        (&after.node_id, after.revision),
        (&before.node_id, before.revision)
    );
    assert_eq!(after.objects, before.objects);
    let get = v1::GetAgentStateRequest {};
    let kept = agent(&channel).get_agent_state(get).await.unwrap();
    assert_eq!(kept.into_inner().state, state);
    aditd.kill();

    let other = tempfile::tempdir().unwrap();
    let mut aditd = Aditd::start_with(other.path(), &by_pool);
    let channel = aditd.channel().await;
    create_file_bdev(&channel, &path).await;
    let mut pools = PoolServiceClient::new(channel.clone());
    let request = v1::ImportPoolRequest {
        bdev_name: "f0".into(),
        name: String::new(),
    };
    pools.import_pool(request).await.unwrap();
    let shown = node(&channel).await;
    assert_eq!(
        (shown.state(), shown.system_pool.as_str()),
        (v1::NodeState::Degraded, "")
    );
    let whose = format!("{} of change {}", before.node_id, before.revision);
    assert!(is_told(&shown.notices, &whose), "{:?}", shown.notices);
    let system = |system: bool| v1::UpdatePoolRequest {
        name: "p".into(),
        system: Some(system),
        ..Default::default()
    };
    pools.update_pool(system(true)).await.unwrap();
    let shown = node(&channel).await;
    assert_eq!(
        (shown.state(), shown.system_pool.as_str()),
        (v1::NodeState::Serving, "p")
    );
    // It is not let go of by mistake.
    let export = v1::ExportPoolRequest {
        name: "p".into(),
        ..Default::default()
    };
    let refused = pools.export_pool(export.clone()).await.unwrap_err();
    assert!(refused.message().contains("--no-system"), "{refused}");
    pools.update_pool(system(false)).await.unwrap();
    assert_eq!(node(&channel).await.system_pool, "");
    pools.export_pool(export).await.unwrap();
    assert!(aditd.terminate().success());

    // Where there is a disk there is no system pool.
    let mut aditd = Aditd::start(other.path());
    let channel = aditd.channel().await;
    let mut pools = PoolServiceClient::new(channel.clone());
    let request = v1::ImportPoolRequest {
        bdev_name: "f0".into(),
        name: String::new(),
    };
    pools.import_pool(request).await.unwrap();
    let refused = pools.update_pool(system(true)).await.unwrap_err();
    assert!(refused.message().contains("--system-pool"), "{refused}");
    let nobody = agent(&channel).get_agent_state(get).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unimplemented, "{nobody}");
}

#[test]
fn a_wrong_configuration_names_the_line_and_ends_with_2() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("aditd.toml");
    std::fs::write(&config, "[memory]\nbacking = \"paper\"\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_aditd"))
        .arg("--state-dir")
        .arg(directory.path().join("state"))
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("line 2") && text.contains("paper"), "{text}");
}

#[tokio::test]
async fn a_second_process_on_the_same_state_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Aditd::start(directory.path());
    let _ = first.channel().await;
    let output = Command::new(env!("CARGO_BIN_EXE_aditd"))
        .arg("--state-dir")
        .arg(directory.path().join("state"))
        .arg("--grpc")
        .arg(format!(
            "unix:{}",
            directory.path().join("other.sock").display()
        ))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("in use by another process"), "{text}");
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let mut aditd = Aditd::start(directory.path());
    let channel = aditd.channel().await;
    let mut health = HealthClient::new(channel.clone());
    let answer = health
        .check(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await;
    let answer = answers.unwrap().into_inner().message().await.unwrap();
    let Some(ServerReflectionResponse {
        message_response: Some(MessageResponse::ListServicesResponse(list)),
        ..
    }) = answer
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for service in [
        "adit.v1.SubsystemService",
        "adit.v1.WatchService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.iter().any(|name| name == service), "{names:?}");
    }
    assert!(aditd.terminate().success());
}

/// Makes a key and a certificate of `name` that `ca`, or itself, has signed.
fn certificate(directory: &Path, name: &str, ca: Option<&str>) -> bool {
    let file = |name: &str, what: &str| directory.join(format!("{name}.{what}"));
    let mut command = Command::new("openssl");
    command
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")])
        .arg("-keyout")
        .arg(file(name, "key"))
        .arg("-out")
        .arg(file(name, "pem"))
        .stderr(Stdio::null());
    match ca {
        Some(ca) => command
            .arg("-CA")
            .arg(file(ca, "pem"))
            .arg("-CAkey")
            .arg(file(ca, "key"))
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"]),
        None => command.args(["-addext", "basicConstraints=critical,CA:TRUE"]),
    };
    command.status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn over_tcp_only_clients_with_a_certificate_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    if !certificate(directory.path(), "ca", None)
        || !certificate(directory.path(), "server", Some("ca"))
        || !certificate(directory.path(), "client", Some("ca"))
        || !certificate(directory.path(), "stranger", None)
    {
        println!("skipped: openssl is missing, or too old for req -CA");
        return;
    }
    let port = free_port();
    let arguments = [
        "--system-pool".to_owned(),
        "--grpc".to_owned(),
        format!("tcp:127.0.0.1:{port}"),
        "--ca".to_owned(),
        path("ca.pem").display().to_string(),
        "--cert".to_owned(),
        path("server.pem").display().to_string(),
        "--key".to_owned(),
        path("server.key").display().to_string(),
    ];
    let mut aditd = Aditd::start_with(directory.path(), &arguments);
    // Both sockets are bound before either is served.
    let own = aditd.channel().await;
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    let connect = |identity: Option<&'static str>| {
        let ca = Certificate::from_pem(read("ca.pem"));
        let mut tls = ClientTlsConfig::new().ca_certificate(ca);
        if let Some(name) = identity {
            let (pem, key) = (read(&format!("{name}.pem")), read(&format!("{name}.key")));
            tls = tls.identity(Identity::from_pem(pem, key));
        }
        let uri = format!("https://127.0.0.1:{port}");
        let endpoint = Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap();
        async move {
            let channel = endpoint.connect().await;
            channel.map_err(|error| error.to_string())
        }
    };
    let get = |identity: Option<&'static str>| {
        let connecting = connect(identity);
        async move {
            let node = NodeServiceClient::new(connecting.await?)
                .get_node(v1::GetNodeRequest {})
                .await;
            node.map_err(|status| status.to_string())
        }
    };
    get(Some("client")).await.unwrap();
    assert!(get(None).await.is_err());
    assert!(get(Some("stranger")).await.is_err());
    // What the agent keeps holds keys: its own socket gives it, and no certificate does.
    let keys = |channel| async move {
        let mut client = AgentStateServiceClient::new(channel);
        client.get_agent_state(v1::GetAgentStateRequest {}).await
    };
    keys(own).await.unwrap();
    let refused = keys(connect(Some("client")).await.unwrap()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    assert!(aditd.terminate().success());
}
