//! Who may call what, over TLS on loopback: every role against every method, certificates that are
//! wrong, connections that are hostile.

use std::time::Duration;

use agent::access;
use agent::listener::Limits;
use pki::{Role, Validity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::rig::{NOW_S, Site, now, site, start};

/// Messages as they are.
#[derive(Debug, Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; bytes::Buf::remaining(buffer)];
        bytes::Buf::copy_to_slice(buffer, &mut bytes);
        Ok(Some(bytes))
    }
}

/// Calls a method with an empty message and reads its first answer.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path: http::uri::PathAndQuery = path.parse().unwrap();
    let request = Request::new(tokio_stream::once(Vec::new()));
    let answer = client.streaming(request, path, Raw).await?;
    answer.into_inner().message().await.map(drop)
}

fn is_denied(answer: &Result<(), Status>) -> bool {
    matches!(answer, Err(status) if status.code() == Code::PermissionDenied)
}

#[tokio::test]
async fn every_role_calls_what_it_may_and_nothing_else() {
    let running = start(Limits::default()).await;
    let site = site();
    running.configure(&site).await;
    for role in Role::ALL {
        let client = site
            .authority
            .issue_client("c", role, Validity::days(now(), 1))
            .unwrap();
        let channel = running.connect(&site, Some(&client)).await.unwrap();
        for path in access::methods() {
            let answer = call(&channel, &path).await;
            let may = role >= access::rule(&path).unwrap().role;
            assert_eq!(is_denied(&answer), !may, "{role} {path}: {answer:?}");
            if may && access::rule(&path).unwrap().server == access::Server::Aditd {
                // It got as far as aditd, which is not there.
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{path}");
                assert!(
                    status.message().contains("aditd does not answer"),
                    "{status}"
                );
            }
        }
        for path in ["/adit.v1.NodeService/Nothing", "/adit.v2.X/Y", "/x"] {
            assert!(is_denied(&call(&channel, path).await), "{role} {path}");
        }
    }
}

#[tokio::test]
async fn the_code_opens_what_configures_and_nothing_else() {
    let running = start(Limits::default()).await;
    // What a client knows of an unconfigured node: its certificate, here taken from the node itself.
    let shown = running.node.current().identity.certificate_pem.clone();
    let own = Site {
        authority: site().authority,
        ca_pem: shown,
    };
    let channel = running.connect(&own, None).await.unwrap();
    let system = "/adit.v1.SystemService/GetSystem";
    let refused = call(&channel, system).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let code = running.node.gate.code().borrow().clone().unwrap();
    let with_code = |path: &'static str, code: String| {
        let channel = channel.clone();
        async move {
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.unwrap();
            let mut request = Request::new(tokio_stream::once(Vec::new()));
            let value = format!("Code {code}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
            client
                .streaming(request, path.parse().unwrap(), Raw)
                .await
                .map(drop)
        }
    };
    with_code(system, code.to_lowercase()).await.unwrap();
    for path in [
        "/adit.v1.SystemService/PowerOff",
        "/adit.v1.NodeService/GetNode",
    ] {
        let denied = with_code(path, code.clone()).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{path}: {denied}");
    }
    let wrong = with_code(system, "0000-0000-0000".to_owned())
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    // Once a configuration is there, neither the code nor the connection is worth anything.
    running.configure(&site()).await;
    let closed = with_code(system, code).await.unwrap_err();
    assert_eq!(closed.code(), Code::Unauthenticated, "{closed}");
}

#[tokio::test]
async fn wrong_certificates_do_not_come_in() {
    let running = start(Limits::default()).await;
    let (site, other) = (site(), site());
    running.configure(&site).await;
    let system = "/adit.v1.SystemService/GetSystem";
    let day = Validity::days(now(), 1);
    let issue = |site: &Site, validity| {
        site.authority
            .issue_client("c", Role::Admin, validity)
            .unwrap()
    };
    let good = issue(&site, day);
    let channel = running.connect(&site, Some(&good)).await.unwrap();
    call(&channel, system).await.unwrap();

    let expired = issue(
        &site,
        Validity {
            not_after: now() - Duration::from_secs(1),
            ..day
        },
    );
    let early = issue(
        &site,
        Validity {
            not_before: now() + Duration::from_secs(60),
            ..day
        },
    );
    let strange = issue(&other, day);
    for (what, client) in [
        ("none", None),
        ("of another authority", Some(&strange)),
        ("expired", Some(&expired)),
        ("not valid yet", Some(&early)),
    ] {
        // TLS 1.3 tells a client after its handshake that it was refused.
        let refused = match running.connect(&site, client).await {
            Err(_) => true,
            Ok(channel) => call(&channel, system).await.is_err(),
        };
        assert!(refused, "{what}");
    }
    // A connection that was made while the certificate held ends with it.
    running.clock.set(NOW_S + 2 * 24 * 3600);
    let late = call(&channel, system).await.unwrap_err();
    assert_eq!(late.code(), Code::Unauthenticated, "{late}");
}

#[tokio::test]
async fn half_open_connections_are_bounded_and_do_not_keep_others_out() {
    let limits = Limits {
        total: 100,
        per_address: 60,
        handshakes_per_address: 20,
        handshake: Duration::from_secs(600),
    };
    let running = start(limits).await;
    let site = site();
    running.configure(&site).await;
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", running.port))
            .await
            .unwrap();
        // The first bytes of a TLS record, and then nothing. It may be closed already.
        let _ = stream.write_all(&[0x16, 3, 1]).await;
        open.push(stream);
    }
    let mut closed = 0;
    for stream in &mut open {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut byte)).await;
        closed += usize::from(read.is_ok());
    }
    assert_eq!(closed, 80, "20 are kept");
    // From another address there is room.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket
        .connect(([127, 0, 0, 1], running.port).into())
        .await
        .unwrap();
    other.write_all(&[0x16, 3, 1]).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_millis(500), other.read(&mut byte)).await;
    assert!(read.is_err(), "it is kept");
    drop(open);
    let client = site
        .authority
        .issue_client("c", Role::Reader, Validity::days(now(), 1))
        .unwrap();
    let mut tries = 0;
    while running.connect(&site, Some(&client)).await.is_err() {
        tries += 1;
        assert!(
            tries < 1000,
            "the places of closed connections are free again"
        );
        tokio::task::yield_now().await;
    }
}
