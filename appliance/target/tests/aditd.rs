//! The program as a whole: `aditd` as a child, the management API over its socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use api::v1;
use api::v1::bdev_service_client::BdevServiceClient;
use api::v1::config_service_client::ConfigServiceClient;
use api::v1::listener_service_client::ListenerServiceClient;
use api::v1::namespace_service_client::NamespaceServiceClient;
use api::v1::node_service_client::NodeServiceClient;
use api::v1::subsystem_service_client::SubsystemServiceClient;
use api::v1::watch_service_client::WatchServiceClient;
use tonic::transport::{Channel, Endpoint};

/// How long the program may take to answer on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);

struct Aditd {
    child: Child,
    socket: PathBuf,
}

impl Aditd {
    fn start(directory: &Path) -> Aditd {
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
    println!("1000 subsystems, 4 durable calls each, 16 in flight: {took:?}");
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
