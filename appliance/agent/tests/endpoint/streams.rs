//! Streams to a reader that is slow, and to one that is gone.

use std::time::Duration;

use agent::listener::Limits;
use agent::node::Wanted;
use api::v1::system_service_client::SystemServiceClient;
use api::v1::{GetSupportBundleRequest, LogEntry, ReadLogsRequest};
use pki::{Role, Validity};
use tonic::{Code, Status};

use crate::rig::{FakeInit, RING_LINES, Running, Site, YEARS, now, site, start};

fn number(entry: &LogEntry) -> u64 {
    let word = entry.line.split(' ').next().unwrap();
    word.parse().unwrap()
}

#[tokio::test]
async fn a_slow_reader_is_waited_for_and_told_what_it_lost() {
    const ROUNDS: usize = 20;
    let running = start(Limits::default()).await;
    let site = site();
    running.configure(&site).await;
    let client = site
        .authority
        .issue_client("c", Role::Reader, Validity::days(now(), 1));
    let channel = running
        .connect(&site, Some(&client.unwrap()))
        .await
        .unwrap();
    let init = FakeInit::serve(&running.folder.path().join("init.sock"));
    init.print(RING_LINES);
    let request = ReadLogsRequest {
        service: "aditd".to_owned(),
        follow: true,
        ..ReadLogsRequest::default()
    };
    let mut client = SystemServiceClient::new(channel);
    let mut lines = client.read_logs(request).await.unwrap().into_inner();
    // The service prints on, and nobody reads. From here on the clock jumps when nothing is to do.
    tokio::time::pause();
    for _ in 0..ROUNDS {
        tokio::time::sleep(Duration::from_secs(1)).await;
        init.print(RING_LINES);
    }
    // The first look was for the name of the service.
    let held = init.handed_out() - 1;
    assert!(
        held <= 2 * RING_LINES,
        "{held} lines are held for one reader"
    );
    tokio::time::resume();

    let printed = (RING_LINES * (ROUNDS + 1)) as u64;
    let (mut last, mut lost) = (0, 0);
    while last < printed {
        let entry = lines.message().await.unwrap().unwrap();
        assert_eq!(
            number(&entry),
            last + entry.lost + 1,
            "what is missing is counted"
        );
        last = number(&entry);
        lost += entry.lost;
    }
    assert!(
        lost >= printed - 3 * RING_LINES as u64,
        "{lost} of {printed}"
    );
}

#[tokio::test]
async fn a_stream_whose_reader_is_gone_ends() {
    let running = start(Limits::default()).await;
    let site = site();
    running.configure(&site).await;
    let client = site
        .authority
        .issue_client("c", Role::Reader, Validity::days(now(), 1));
    let channel = running
        .connect(&site, Some(&client.unwrap()))
        .await
        .unwrap();
    let init = FakeInit::serve(&running.folder.path().join("init.sock"));
    let request = ReadLogsRequest {
        service: "aditd".to_owned(),
        follow: true,
        ..ReadLogsRequest::default()
    };
    let mut client = SystemServiceClient::new(channel);
    let lines = client.read_logs(request).await.unwrap().into_inner();
    drop(lines);
    drop(client);
    tokio::time::pause();
    // The server hears of it, and its stream looks no more.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    init.print(1);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(init.handed_out(), 0);
}

/// A bundle as somebody of this role gets it, unpacked but for the archive.
async fn bundle(
    running: &Running,
    site: &Site,
    role: Role,
    cores: bool,
) -> Result<Vec<u8>, Status> {
    let client = site
        .authority
        .issue_client("c", role, Validity::days(now(), YEARS))
        .unwrap();
    let channel = running.connect(site, Some(&client)).await.unwrap();
    let mut client = SystemServiceClient::new(channel);
    let chunks = client.get_support_bundle(GetSupportBundleRequest { cores });
    let mut chunks = chunks.await?.into_inner();
    let mut archive = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        archive.extend(chunk.data);
    }
    Ok(zstd::decode_all(&archive[..]).unwrap())
}

#[tokio::test]
async fn a_bundle_holds_what_a_service_printed_last_and_says_what_is_gone() {
    let running = start(Limits::default()).await;
    let site = site();
    running.configure(&site).await;
    let lines = 3 * RING_LINES;
    let init = FakeInit::with_ring(&running.folder.path().join("init.sock"), lines);
    init.print(lines + 7);
    let bytes = bundle(&running, &site, Role::Operator, false).await;
    let bytes = bytes.unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let has = |number: usize| text.contains(&format!("1 {number} xxx"));
    assert!(has(lines + 7), "the last line is missing");
    assert!(has(8) && !has(7), "what the ring has is there");
    let left_out = "7 lines, older than these or no longer in init's ring";
    assert!(
        text.contains(left_out),
        "the manifest does not say what is gone"
    );
}

#[tokio::test]
async fn only_an_administrator_gets_the_memory_of_programs() {
    let running = start(Limits::default()).await;
    let site = site();
    running.configure(&site).await;
    let crashes = running.folder.path().join("run/adit/crash");
    std::fs::create_dir_all(&crashes).unwrap();
    std::fs::write(crashes.join("000000000001-aditd-7-11.core"), "a key").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let without = text(
        bundle(&running, &site, Role::Operator, false)
            .await
            .unwrap(),
    );
    assert!(without.contains("aditd-7-11.core") && !without.contains("a key"));
    let refused = bundle(&running, &site, Role::Operator, true)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let with = text(bundle(&running, &site, Role::Admin, true).await.unwrap());
    assert!(with.contains("a key"));
}

#[tokio::test]
async fn a_bundle_holds_no_key() {
    let running = start(Limits::default()).await;
    let site = site();
    let key = pki::generate_key().unwrap();
    let names = ["localhost".to_owned()];
    let request = pki::signing_request(&key, &names).unwrap();
    let validity = Validity::days(now(), YEARS);
    let certificate = site.authority.sign_node(&request, &names, validity);
    let certificate = certificate.unwrap();
    let api = format!(
        "ca = '''{}'''\ncertificate = '''{certificate}'''",
        site.ca_pem
    );
    let wanted = Wanted {
        document: format!("[agent.api]\n{api}\nkey = '''{key}'''\n"),
        ..Wanted::default()
    };
    running.node.configure(&wanted, false).await.unwrap();
    let bytes = bundle(&running, &site, Role::Operator, false).await;
    let bytes = bytes.unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for held in [
        "config.toml",
        "BEGIN CERTIFICATE",
        "manifest.json",
        "\"missing\"",
    ] {
        assert!(text.contains(held), "{held}");
    }
    let secret = key.lines().nth(1).unwrap();
    assert!(!text.contains("PRIVATE KEY") && !text.contains(secret));
}
