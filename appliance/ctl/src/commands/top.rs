//! `aditctl top`: reactors, devices and connections, live.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use api::quantity::format_bytes;
use api::v1::bdev_service_client::BdevServiceClient;
use api::v1::controller_service_client::ControllerServiceClient;
use api::v1::reactor_service_client::ReactorServiceClient;
use api::v1::{BdevStats, IoStats, IoType, ListQpairsRequest, ListReactorsRequest, Qpair, Reactor};

use super::{Context, PAGE_SIZE, address, bdev, pages, percent, time_ns};
use crate::failure::Failure;
use crate::grammar::Format;
use crate::output;
use crate::table::Table;

/// Rows of a section: a screen shows the busiest.
const ROWS_MAX: usize = 15;

struct Sample {
    at: Instant,
    reactors: Vec<Reactor>,
    bdevs: Vec<BdevStats>,
    qpairs: Vec<Qpair>,
}

pub(crate) async fn run(context: &Context, interval: Duration, count: u64) -> Result<(), Failure> {
    if context.format == Format::Json {
        return Err(Failure::Usage(
            "top has no JSON form; use bdev stat and reactor list".into(),
        ));
    }
    let mut before = sample(context).await?;
    let mut shown = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let now = sample(context).await?;
        // Home, then clear to the end: less flicker than clearing first.
        output::text(&format!("\x1b[H\x1b[2J{}", screen(&before, &now)))?;
        before = now;
        shown += 1;
        if shown == count {
            return Ok(());
        }
    }
}

async fn sample(context: &Context) -> Result<Sample, Failure> {
    let mut reactors = ReactorServiceClient::new(context.channel.clone());
    let controllers = ControllerServiceClient::new(context.channel.clone());
    let bdevs = BdevServiceClient::new(context.channel.clone());
    let at = Instant::now();
    Ok(Sample {
        at,
        reactors: reactors
            .list_reactors(ListReactorsRequest {})
            .await?
            .into_inner()
            .reactors,
        bdevs: bdev::stats(&bdevs, String::new(), false, false).await?,
        qpairs: pages(|page_token| {
            let mut client = controllers.clone();
            async move {
                let request = ListQpairsRequest {
                    nqn: String::new(),
                    page_size: PAGE_SIZE,
                    page_token,
                };
                let page = client.list_qpairs(request).await?.into_inner();
                Ok((page.qpairs, page.next_page_token))
            }
        })
        .await?,
    })
}

fn screen(before: &Sample, now: &Sample) -> String {
    let seconds = (now.at - before.at).as_secs_f64().max(0.001);
    format!(
        "{}\n{}\n{}",
        reactors(before, now),
        devices(before, now, seconds),
        connections(before, now, seconds)
    )
}

fn reactors(before: &Sample, now: &Sample) -> String {
    let mut table = Table::new(&["REACTOR", "BUSY", "STATE", "SLEEPS"]);
    let earlier: HashMap<_, _> = before.reactors.iter().map(|r| (r.lcore, r)).collect();
    for reactor in &now.reactors {
        let (busy, idle, sleeps) = earlier
            .get(&reactor.lcore)
            .map_or((0, 0, 0), |r| (r.busy, r.idle, r.sleeps));
        let busy = reactor.busy.saturating_sub(busy);
        let idle = reactor.idle.saturating_sub(idle);
        table.row([
            reactor.lcore.to_string(),
            percent(busy, busy.saturating_add(idle)),
            if reactor.in_interrupt {
                "asleep"
            } else {
                "polling"
            }
            .to_owned(),
            reactor.sleeps.saturating_sub(sleeps).to_string(),
        ]);
    }
    table.to_string()
}

/// Operations, bytes and latency of one type of I/O between two samples.
fn change(before: Option<&BdevStats>, now: &BdevStats, io: IoType) -> (u64, u64, u64) {
    let find = |stats: &BdevStats| stats.io.iter().find(|s| s.io_type() == io).cloned();
    let now = find(now).unwrap_or_default();
    let before: IoStats = before.and_then(find).unwrap_or_default();
    (
        now.num_ops.saturating_sub(before.num_ops),
        now.bytes.saturating_sub(before.bytes),
        now.latency_ns_total.saturating_sub(before.latency_ns_total),
    )
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate on a screen; the value is positive and far below 2^53"
)]
fn rate(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds) as u64
}

fn devices(before: &Sample, now: &Sample, seconds: f64) -> String {
    let earlier: HashMap<_, _> = before.bdevs.iter().map(|b| (b.name.as_str(), b)).collect();
    let mut rows: Vec<_> = now
        .bdevs
        .iter()
        .map(|bdev| {
            let before = earlier.get(bdev.name.as_str()).copied();
            let read = change(before, bdev, IoType::Read);
            (bdev, read, change(before, bdev, IoType::Write))
        })
        .collect();
    rows.sort_by_key(|(_, read, write)| std::cmp::Reverse(read.0 + write.0));
    let mut table = Table::new(&[
        "DEVICE",
        "READ/S",
        "READ",
        "LATENCY",
        "WRITE/S",
        "WRITTEN",
        "LATENCY",
        "IN FLIGHT",
    ]);
    for (bdev, read, write) in rows.iter().take(ROWS_MAX) {
        let latency =
            |(ops, _, ns): &(u64, u64, u64)| ns.checked_div(*ops).map_or("-".into(), time_ns);
        table.row([
            bdev.name.clone(),
            rate(read.0, seconds).to_string(),
            format!("{}/s", format_bytes(rate(read.1, seconds))),
            latency(read),
            rate(write.0, seconds).to_string(),
            format!("{}/s", format_bytes(rate(write.1, seconds))),
            latency(write),
            bdev.queue_depth.to_string(),
        ]);
    }
    format!("{table}{}", rest(rows.len()))
}

fn connections(before: &Sample, now: &Sample, seconds: f64) -> String {
    let key = |qpair: &Qpair| (qpair.nqn.clone(), qpair.cntlid, qpair.qid);
    let earlier: HashMap<_, _> = before.qpairs.iter().map(|q| (key(q), q)).collect();
    let mut rows: Vec<_> = now
        .qpairs
        .iter()
        .map(|qpair| {
            let commands = earlier.get(&key(qpair)).map_or(0, |q| q.commands);
            (qpair, qpair.commands.saturating_sub(commands))
        })
        .collect();
    rows.sort_by_key(|(_, commands)| std::cmp::Reverse(*commands));
    let mut table = Table::new(&[
        "CONNECTION",
        "SUBSYSTEM",
        "CNTLID",
        "QID",
        "THREAD",
        "COMMANDS/S",
        "IN FLIGHT",
    ]);
    for (qpair, commands) in rows.iter().take(ROWS_MAX) {
        table.row([
            address(qpair.peer_address.as_ref()),
            qpair.nqn.clone(),
            qpair.cntlid.to_string(),
            qpair.qid.to_string(),
            qpair.thread.clone(),
            rate(*commands, seconds).to_string(),
            qpair.in_flight.to_string(),
        ]);
    }
    format!("{table}{}", rest(rows.len()))
}

fn rest(rows: usize) -> String {
    match rows.saturating_sub(ROWS_MAX) {
        0 => String::new(),
        more => format!("and {more} more\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let at = Instant::now();
        let stats = |ops, bytes, ns| BdevStats {
            name: "d".into(),
            io: vec![IoStats {
                io_type: IoType::Read.into(),
                num_ops: ops,
                bytes,
                latency_ns_total: ns,
                ..IoStats::default()
            }],
            ..BdevStats::default()
        };
        let make = |at, bdev| Sample {
            at,
            reactors: vec![],
            bdevs: vec![bdev],
            qpairs: vec![],
        };
        let before = make(at, stats(100, 0, 0));
        let now = make(at + Duration::from_secs(2), stats(300, 1 << 20, 200_000));
        let text = screen(&before, &now);
        let row: Vec<_> = text
            .lines()
            .find(|l| l.starts_with('d'))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(row[..6], ["d", "100", "512", "KiB/s", "1.0", "us"]);
    }
}
