//! Prometheus text over HTTP.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::v1::{self, NodeState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::control::Control;

/// Scrapers at a time; further ones wait in the backlog.
const CONNECTIONS_MAX: usize = 8;
/// Longest request head.
const REQUEST_BYTES_MAX: usize = 8192;
/// How long a scraper may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Serves metrics until the future is dropped.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, control: Control) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving Prometheus text");
    accept(listener, control).await;
    Ok(())
}

async fn accept(listener: TcpListener, control: Control) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = control.clone();
                tokio::spawn(async move {
                    // A scraper that is slow or gone is its own problem.
                    let _ = tokio::time::timeout(TIMEOUT, answer(stream, &control)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a scraper");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, control: &Control) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if head.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, body) = match line {
        line if line.starts_with(b"GET /metrics ") || line.starts_with(b"GET / ") => {
            ("200 OK", text(control).await)
        }
        line if line.starts_with(b"GET ") => {
            ("404 Not Found", "metrics are at /metrics\n".to_owned())
        }
        _ => ("405 Method Not Allowed", "only GET is served\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Families of metrics under way.
#[derive(Default)]
struct Families(String);

impl Families {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP adit_{name} {help}\n# TYPE adit_{name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let _ = write!(self.0, "adit_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// Everything, as text. Of volumes, which may be many, those that counted something.
pub async fn text(control: &Control) -> String {
    let mut out = Families::default();
    node(&mut out, control);
    reactors(&mut out, control);
    iobuf(&mut out, &control.runtime().iobuf());
    bdevs(&mut out, control);
    pools(&mut out, control).await;
    out.0
}

fn node(out: &mut Families, control: &Control) {
    let facts = control.runtime().facts();
    let pending = control.read(|view| view.pending.len());
    let (revision, counts) = control.read(|view| {
        let (model, under) = (view.model, view.model.counts());
        let counts = [
            ("transport", model.transports().len()),
            ("bdev", model.bdevs().len()),
            ("pool", model.pools().len()),
            ("subsystem", model.subsystems().len()),
            ("namespace", under.namespaces),
            ("listener", under.listeners),
            ("host", under.hosts),
        ];
        (model.revision(), counts)
    });
    let is_serving = matches!(control.state(), NodeState::Serving | NodeState::Degraded);
    out.one(
        "up",
        "gauge",
        "1 while connections are taken.",
        is_serving.into(),
    );
    out.one(
        "revision",
        "counter",
        "Changes of the desired state.",
        revision,
    );
    out.one(
        "pending_objects",
        "gauge",
        "Objects that are not in place yet.",
        pending as u64,
    );
    out.one(
        "controllers",
        "gauge",
        "Connected controllers.",
        facts.controllers.into(),
    );
    out.one(
        "qpairs",
        "gauge",
        "Connected queue pairs.",
        facts.qpairs.into(),
    );
    out.family("objects", "gauge", "Objects by kind.");
    for (kind, count) in counts {
        out.sample("objects", &[("kind", kind)], count as u64);
    }
}

fn reactors(out: &mut Families, control: &Control) {
    let reactors = control.runtime().reactors();
    out.family(
        "reactor_nanoseconds_total",
        "counter",
        "Time of reactors with and without work.",
    );
    for reactor in &reactors {
        let cpu = reactor.lcore.to_string();
        for (state, value) in [("busy", reactor.busy), ("idle", reactor.idle)] {
            out.sample(
                "reactor_nanoseconds_total",
                &[("cpu", &cpu), ("state", state)],
                value,
            );
        }
    }
    out.family(
        "reactor_sleeps_total",
        "counter",
        "How often a reactor went to sleep.",
    );
    for reactor in &reactors {
        let cpu = reactor.lcore.to_string();
        out.sample("reactor_sleeps_total", &[("cpu", &cpu)], reactor.sleeps);
    }
}

fn iobuf(out: &mut Families, iobuf: &v1::Iobuf) {
    let pools = [
        ("small", iobuf.small.unwrap_or_default()),
        ("large", iobuf.large.unwrap_or_default()),
    ];
    out.family(
        "iobuf_buffers",
        "gauge",
        "Buffers of a pool by where they are.",
    );
    for (pool, stats) in pools {
        for (place, value) in [
            ("all", stats.count),
            ("free", stats.free),
            ("cached", stats.cached),
            ("reserve", stats.reserve),
        ] {
            out.sample("iobuf_buffers", &[("pool", pool), ("place", place)], value);
        }
    }
    out.family("iobuf_waiting", "gauge", "Requests that wait for a buffer.");
    for (pool, stats) in pools {
        out.sample("iobuf_waiting", &[("pool", pool)], stats.waiting);
    }
    out.family(
        "iobuf_taken_total",
        "counter",
        "Buffers taken from cache or pool; retry: waits.",
    );
    for module in &iobuf.modules {
        for (pool, counters) in [("small", module.small_pool), ("large", module.large_pool)] {
            let counters = counters.unwrap_or_default();
            for (from, value) in [
                ("cache", counters.cache),
                ("main", counters.main),
                ("retry", counters.retry),
            ] {
                let labels = [
                    ("module", module.module.as_str()),
                    ("thread", module.thread.as_str()),
                    ("pool", pool),
                    ("from", from),
                ];
                out.sample("iobuf_taken_total", &labels, value);
            }
        }
    }
}

fn bdevs(out: &mut Families, control: &Control) {
    let runtime = control.runtime();
    let mut names = runtime.bdevs();
    names.sort_unstable();
    let mut stats: Vec<_> = names
        .iter()
        .filter_map(|name| runtime.bdev_stats(name, false, false))
        .collect();
    stats.retain(|bdev| {
        let has_counted = bdev.io.iter().any(|io| io.num_ops + io.num_errors != 0);
        has_counted || !bdev.name.contains('/')
    });
    type Read = fn(&v1::IoStats) -> u64;
    let families: [(&str, &str, Read); 4] = [
        ("bdev_ops_total", "I/Os that ended.", |io| io.num_ops),
        ("bdev_bytes_total", "Bytes moved.", |io| io.bytes),
        ("bdev_errors_total", "I/Os that failed.", |io| io.num_errors),
        (
            "bdev_latency_nanoseconds_total",
            "Sum of latencies.",
            |io| io.latency_ns_total,
        ),
    ];
    for (name, help, read) in families {
        out.family(name, "counter", help);
        for bdev in &stats {
            for io in &bdev.io {
                let kind = io.io_type().as_str_name().to_ascii_lowercase();
                let kind = kind.strip_prefix("io_type_").unwrap_or(&kind);
                out.sample(name, &[("bdev", &bdev.name), ("io", kind)], read(io));
            }
        }
    }
    out.family("bdev_queue_depth", "gauge", "I/Os in flight.");
    for bdev in &stats {
        out.sample(
            "bdev_queue_depth",
            &[("bdev", &bdev.name)],
            bdev.queue_depth,
        );
    }
}

async fn pools(out: &mut Families, control: &Control) {
    let names: Vec<String> = control.read(|view| view.model.pools().keys().cloned().collect());
    let mut pools = Vec::new();
    for name in names {
        let Some(pool) = control.runtime().pool(&name) else {
            continue;
        };
        // One that is being closed tells nothing any more.
        if let Ok(reading) = pool.reading().await {
            pools.push((name, reading));
        }
    }
    out.family("pool_bytes", "gauge", "Clusters of a pool by their use.");
    for (name, pool) in &pools {
        for (what, bytes) in [
            ("all", pool.size_bytes),
            ("free", pool.free_bytes),
            ("data", pool.data_bytes),
            ("metadata", pool.metadata_bytes),
            ("reserved", pool.reserved_bytes),
            ("provisioned", pool.provisioned_bytes),
        ] {
            out.sample("pool_bytes", &[("pool", name), ("use", what)], bytes);
        }
    }
    type Read = fn(&v1::Pool) -> u64;
    let families: [(&str, &str, Read); 4] = [
        ("pool_volumes", "Volumes.", |pool| pool.volumes.into()),
        ("pool_snapshots", "Snapshots.", |pool| pool.snapshots.into()),
        ("pool_operations", "Operations that go on.", |pool| {
            pool.operations.into()
        }),
        (
            "pool_faulted",
            "1 when the pool takes no changes any more.",
            |pool| (!pool.fault.is_empty()).into(),
        ),
    ];
    for (family, help, read) in families {
        out.family(family, "gauge", help);
        for (name, pool) in &pools {
            out.sample(family, &[("pool", name)], read(pool));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut out = Families::default();
        out.sample("x", &[("a", "q\"b\\s\nn"), ("b", "")], 5);
        assert_eq!(out.0, "adit_x{a=\"q\\\"b\\\\s\\nn\",b=\"\"} 5\n");
    }
}
