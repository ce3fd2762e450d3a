//! The node's clock: SNTP (RFC 4330) to the configured servers, and a person's word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use init::control::Request;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use tokio::net::UdpSocket;

use crate::config;
use crate::error::{AgentError, chain};
use crate::node::Node;

/// Seconds from 1900, where NTP begins, to 1970.
const NTP_TO_UNIX_S: u64 = 2_208_988_800;
const PACKET_BYTES: usize = 48;
/// A clock that is off by less is left alone: a step is worse.
const STEP_MIN_MS: i64 = 50;
const INTERVAL: Duration = Duration::from_secs(1024);
const RETRY: Duration = Duration::from_secs(16);

/// What is known of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeStatus {
    /// Who set it or was asked last; else why nobody has.
    pub source: String,
    /// By how many milliseconds it was off then.
    pub offset_ms: i64,
}

impl Default for TimeStatus {
    fn default() -> TimeStatus {
        TimeStatus {
            source: "the system's clock".to_owned(),
            offset_ms: 0,
        }
    }
}

/// Sets the clock.
///
/// # Errors
/// When the system does not allow it.
pub fn step_to(time: SystemTime) -> Result<(), AgentError> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since)).map_err(|errno| {
        AgentError::Time {
            server: "the system's clock".to_owned(),
            problem: errno.desc().to_owned(),
        }
    })
}

/// Somebody who knows has set the clock, or found it right.
pub async fn trusted(node: &Node, by: &str, offset_ms: i64) {
    node.clock.trust();
    node.time.send_replace(TimeStatus {
        source: by.to_owned(),
        offset_ms,
    });
    if node.init.is_there() {
        let request = Request::TimeSynced { by: by.to_owned() };
        if let Err(error) = node.init.call(&request).await {
            tracing::warn!(error = chain(&error), "init was not told of the time");
        }
    }
}

/// Asks the time servers one after the other, and steps the clock by the first answer; which server
/// it was and by how many milliseconds the clock was off.
///
/// # Errors
/// When none gives an answer that is of use.
pub async fn synchronise(node: &Node) -> Result<(String, i64), AgentError> {
    let mut servers = node.current().config.time.servers.clone();
    if servers.is_empty() {
        servers = node.network.borrow().time_servers.clone();
    }
    let mut last = AgentError::Time {
        server: "none".to_owned(),
        problem: "none is configured (agent.time.servers), and DHCP brought none".to_owned(),
    };
    for server in servers {
        match ask(&server).await {
            Ok(offset_ms) => {
                if offset_ms.abs() >= STEP_MIN_MS {
                    let now = SystemTime::now();
                    let by = Duration::from_millis(offset_ms.unsigned_abs());
                    let target = if offset_ms > 0 {
                        now.checked_add(by)
                    } else {
                        now.checked_sub(by)
                    };
                    step_to(target.unwrap_or(now))?;
                }
                return Ok((format!("server {server}"), offset_ms));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Keeps the clock right for as long as the program runs.
pub async fn keep(node: Arc<Node>) {
    let mut changes = node.changes();
    loop {
        let servers = changes.borrow_and_update().config.time.clone();
        let pause = match synchronise(&node).await {
            Ok((source, offset_ms)) => {
                tracing::info!(source, offset_ms, "the clock was compared");
                trusted(&node, &source, offset_ms).await;
                INTERVAL
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "the clock was not compared");
                if !node.clock.is_trusted() {
                    node.time
                        .send_modify(|status| status.source = chain(&error));
                }
                RETRY
            }
        };
        // Other servers are asked at once.
        let others = changes.wait_for(|current| current.config.time != servers);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = others => {}
        }
    }
}

async fn ask(server: &str) -> Result<i64, AgentError> {
    let failed = |problem: String| AgentError::Time {
        server: server.to_owned(),
        problem,
    };
    let name = server.to_owned();
    let addresses = tokio::task::spawn_blocking(move || config::resolve(&name))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let address = addresses.first().copied();
    let address = address.ok_or_else(|| failed("it has no address".to_owned()))?;
    let answer = tokio::time::timeout(Duration::from_secs(5), exchange(address)).await;
    match answer {
        Ok(Ok(offset)) => Ok(offset),
        Ok(Err(problem)) => Err(failed(problem)),
        Err(_) => Err(failed("it did not answer in 5 s".to_owned())),
    }
}

async fn exchange(server: SocketAddr) -> Result<i64, String> {
    let local: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let text = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind(local).await.map_err(text)?;
    socket.connect(server).await.map_err(text)?;
    let sent = SystemTime::now();
    let request = request(sent);
    socket.send(&request).await.map_err(text)?;
    let mut answer = [0; PACKET_BYTES];
    let count = socket.recv(&mut answer).await.map_err(text)?;
    let received = SystemTime::now();
    offset_ms(&request, &answer[..count], sent, received)
}

fn request(now: SystemTime) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    packet[0] = 0x23; // version 4, client
    packet[40..48].copy_from_slice(&to_ntp(now).to_be_bytes());
    packet
}

/// By how many milliseconds the server's clock is ahead (RFC 4330, section 5).
fn offset_ms(
    request: &[u8; PACKET_BYTES],
    answer: &[u8],
    sent: SystemTime,
    received: SystemTime,
) -> Result<i64, String> {
    let answer: &[u8; PACKET_BYTES] = answer
        .get(..PACKET_BYTES)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or("its answer is too short")?;
    if answer[24..32] != request[40..48] {
        return Err("its answer is to another request".to_owned());
    }
    let (leap, mode, stratum) = (answer[0] >> 6, answer[0] & 7, answer[1]);
    if mode != 4 || leap == 3 || !(1..=15).contains(&stratum) {
        return Err("its own clock is not synchronised".to_owned());
    }
    let field = |at: usize| from_ntp(&answer[at..at + 8]);
    let (came, left) = (field(32), field(40));
    if left == 0 {
        return Err("it tells no time".to_owned());
    }
    let ms = |time: SystemTime| i128::from(crate::clock::unix_ms(time));
    let offset = ((came - ms(sent)) + (left - ms(received))) / 2;
    i64::try_from(offset).map_err(|_| "it is too far away".to_owned())
}

fn to_ntp(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    (since.as_secs().wrapping_add(NTP_TO_UNIX_S) << 32) | fraction
}

/// Milliseconds since 1970. Seconds below 2^31 are of the era that begins in 2036.
fn from_ntp(bytes: &[u8]) -> i128 {
    let value = bytes
        .iter()
        .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    if value == 0 {
        return 0;
    }
    let (seconds, fraction) = (value >> 32, value & 0xffff_ffff);
    let seconds = if seconds < 1 << 31 {
        seconds + (1 << 32)
    } else {
        seconds
    };
    let unix_s = i128::from(seconds) - i128::from(NTP_TO_UNIX_S);
    unix_s * 1000 + i128::from((fraction * 1000) >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(unix_ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(unix_ms)
    }

    fn answer(request: &[u8; PACKET_BYTES], came: SystemTime, left: SystemTime) -> [u8; 48] {
        let mut answer = [0; PACKET_BYTES];
        (answer[0], answer[1]) = (0x24, 2);
        answer[24..32].copy_from_slice(&request[40..48]);
        answer[32..40].copy_from_slice(&to_ntp(came).to_be_bytes());
        answer[40..48].copy_from_slice(&to_ntp(left).to_be_bytes());
        answer
    }

    #[test]
    fn an_offset_is_the_mean_of_both_ways() {
        // The node stands at 1970 and the server in 2026, and in 2040, after NTP's era has ended.
        for server_ms in [1_790_000_000_000, 2_208_988_800_000] {
            let (sent, received) = (at(1000), at(1100));
            let request = request(sent);
            let good = answer(&request, at(server_ms), at(server_ms + 10));
            let offset = offset_ms(&request, &good, sent, received).unwrap();
            assert!((offset - (server_ms as i64 - 1045)).abs() <= 1, "{offset}");
        }
    }

    #[test]
    fn an_answer_that_is_of_no_use_is_refused() {
        let request = request(at(5));
        let good = answer(&request, at(9), at(9));
        for end in 0..PACKET_BYTES {
            assert!(offset_ms(&request, &good[..end], at(5), at(6)).is_err());
        }
        for (index, value) in [(0, 0xe4), (0, 0x23), (1, 0), (1, 16), (31, good[31] ^ 1)] {
            let mut wrong = good;
            wrong[index] = value;
            assert!(
                offset_ms(&request, &wrong, at(5), at(6)).is_err(),
                "{index}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_offset_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = offset_ms(&request(at(5)), &bytes, at(5), at(6));
        }
    }
}
