//! Counters and lists; reading them pauses nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::v1;
use block::stats::{KindReading, Reading};
use block::{OpKind, histogram};
use dma::{Backing, CacheStats, ClassStats};
use nvmf::{Controller, GroupHandle, QpairCounters};
use reactor::{PollerState, ReactorState};
use uuid::Uuid;

use super::NvmfRuntime;
use super::describe::address;
use super::devices::io_type;
use crate::runtime::Facts;

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn narrow(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

impl NvmfRuntime {
    pub(super) fn facts_now(&self) -> Facts {
        let pool = self.plane.iobuf_pool();
        let mut notices = pool.notices();
        for reactor in self.plane.reactors().reactors() {
            notices.extend(reactor.stats().notices);
        }
        let groups = self.plane.target().poll_groups();
        let sum = |counter: fn(&GroupHandle) -> &std::sync::atomic::AtomicU64| {
            groups
                .iter()
                .map(|group| counter(group).load(Ordering::Relaxed))
                .sum::<u64>()
        };
        let admin = sum(|group| &group.counters.current_admin_qpairs);
        let io = sum(|group| &group.counters.current_io_qpairs);
        Facts {
            memory: v1::Memory {
                backing: self.backing().to_owned(),
                reserved_bytes: pool
                    .regions()
                    .iter()
                    .map(|region| region.len() as u64)
                    .sum(),
                notice: pool.notices().into_iter().next().unwrap_or_default(),
            },
            notices,
            connections_max: self.connections_max,
            controllers: narrow(admin),
            qpairs: narrow(admin + io),
        }
    }

    fn backing(&self) -> &'static str {
        let regions = self.plane.iobuf_pool().regions();
        match regions.first().map(|region| region.backing()) {
            Some(Backing::Hugetlb2M) => "hugetlb-2m",
            Some(Backing::Hugetlb1G) => "hugetlb-1g",
            Some(Backing::HugepageRs) => "hugepage-rs",
            Some(Backing::Locked4K) => "locked-4k",
            Some(Backing::Plain4K) => "plain-4k",
            None => "none",
        }
    }

    pub(super) fn read_bdev_stats(
        &self,
        name: &str,
        per_thread: bool,
        histograms: bool,
    ) -> Option<v1::BdevStats> {
        let bdev = self.plane.registry().get(name).ok()?;
        let reading = bdev.statistics();
        let threads = if per_thread {
            let of_channel = |channel: block::stats::ChannelReading| v1::ThreadIoStats {
                thread: channel.thread.to_string(),
                io: io_stats(&channel.reading, histograms),
                queue_depth: channel.reading.queue_depth,
            };
            bdev.channel_statistics()
                .into_iter()
                .map(of_channel)
                .collect()
        } else {
            Vec::new()
        };
        Some(v1::BdevStats {
            name: bdev.name().to_owned(),
            io: io_stats(&reading, histograms),
            queue_depth: reading.queue_depth,
            queue_depth_max: reading.queue_depth_max,
            threads,
            ..v1::BdevStats::default()
        })
    }

    pub(super) fn read_reactors(&self) -> Vec<v1::Reactor> {
        let reactors = self.plane.reactors().reactors().iter();
        reactors
            .map(|reactor| {
                let stats = reactor.stats();
                let cpu = reactor.cpu_time().unwrap_or_default();
                v1::Reactor {
                    lcore: narrow(stats.core.unwrap_or(0)),
                    tid: u32::try_from(stats.tid).unwrap_or(0),
                    busy: ns(stats.busy),
                    idle: ns(stats.idle),
                    in_interrupt: stats.state == ReactorState::Sleeping,
                    sys: ns(cpu.system),
                    usr: ns(cpu.user),
                    lw_threads: reactor
                        .threads()
                        .iter()
                        .map(|thread| thread.stats())
                        .map(|thread| v1::LightThread {
                            name: thread.name,
                            id: thread.id.get(),
                            cpumask: thread.cpu_mask.to_string(),
                            elapsed: ns(thread.elapsed),
                        })
                        .collect(),
                    sleeps: stats.sleeps,
                    mailbox_wakes: stats.woken_by_message,
                    turns: stats.turns,
                    ..v1::Reactor::default()
                }
            })
            .collect()
    }

    pub(super) fn read_threads(&self) -> Vec<v1::Thread> {
        let reactors = self.plane.reactors();
        let of_thread = |thread: reactor::Thread| {
            let stats = thread.stats();
            let reactor = thread.reactor().stats();
            v1::Thread {
                name: stats.name,
                id: stats.id.get(),
                cpumask: stats.cpu_mask.to_string(),
                busy: ns(stats.busy),
                idle: ns(stats.idle),
                active_pollers_count: narrow(stats.active_pollers),
                timed_pollers_count: narrow(stats.timed_pollers),
                paused_pollers_count: narrow(stats.paused_pollers),
                in_interrupt: reactor.state == ReactorState::Sleeping,
                lcore: narrow(reactor.core.unwrap_or(0)),
                mailbox_depth: narrow(stats.mailbox_len),
                mailbox_full: stats.mailbox_full,
            }
        };
        reactors.threads().into_iter().map(of_thread).collect()
    }

    pub(super) fn read_pollers(&self) -> Vec<v1::ThreadPollers> {
        let of_thread = |thread: reactor::Thread| {
            let mut message = v1::ThreadPollers {
                name: thread.name().to_owned(),
                id: thread.id().get(),
                ..v1::ThreadPollers::default()
            };
            for poller in thread.pollers() {
                let is_paused = poller.state == PollerState::Paused;
                let list = match poller.period {
                    _ if is_paused => &mut message.paused_pollers,
                    Some(_) => &mut message.timed_pollers,
                    None => &mut message.active_pollers,
                };
                list.push(v1::Poller {
                    name: poller.name,
                    id: poller.id.get(),
                    state: if is_paused { "paused" } else { "waiting" }.to_owned(),
                    run_count: poller.run_count,
                    busy_count: poller.busy_count,
                    period_ticks: poller.period.map_or(0, ns),
                });
            }
            message
        };
        self.plane
            .reactors()
            .threads()
            .into_iter()
            .map(of_thread)
            .collect()
    }

    /// The open channels to devices, by the thread that opened them.
    pub(super) fn read_channels(&self) -> Vec<v1::ThreadChannels> {
        let mut threads: Vec<v1::ThreadChannels> = Vec::new();
        for bdev in self.plane.registry().list() {
            for channel in bdev.channel_statistics() {
                let io_channel = v1::IoChannel {
                    name: bdev.name().to_owned(),
                    r#ref: 1,
                    in_flight: narrow(channel.reading.queue_depth),
                };
                match threads
                    .iter_mut()
                    .find(|thread| *thread.name == *channel.thread)
                {
                    Some(thread) => thread.io_channels.push(io_channel),
                    None => threads.push(v1::ThreadChannels {
                        name: channel.thread.to_string(),
                        io_channels: vec![io_channel],
                    }),
                }
            }
        }
        threads
    }

    pub(super) fn read_iobuf(&self) -> v1::Iobuf {
        let stats = self.plane.iobuf_pool().stats();
        let pool = |class: &ClassStats, reserve: u64| v1::IobufPool {
            bufsize: class.bufsize,
            count: class.total,
            free: class.free,
            cached: class.cached,
            waiting: class.waiting,
            reserve,
            free_min: class.free_min,
        };
        let counters = |cache: &CacheStats| v1::IobufCounters {
            cache: cache.cache,
            main: cache.main,
            retry: cache.retry,
            cache_size: cache.cache_size,
        };
        let modules = stats.modules.iter().map(|module| v1::IobufModule {
            module: module.module.clone(),
            thread: String::new(),
            small_pool: Some(counters(&module.small)),
            large_pool: Some(counters(&module.large)),
        });
        v1::Iobuf {
            small: Some(pool(&stats.small, stats.reserve_free)),
            large: Some(pool(&stats.large, 0)),
            modules: modules.collect(),
            backing: self.backing().to_owned(),
            notice: self
                .plane
                .iobuf_pool()
                .notices()
                .into_iter()
                .next()
                .unwrap_or_default(),
        }
    }

    /// Controllers with the name of what they serve, ordered by it and by identifier.
    fn all_controllers(&self) -> Vec<Arc<Controller>> {
        let target = self.plane.target();
        let mut list: Vec<_> = self
            .all_subsystems()
            .iter()
            .flat_map(|subsystem| subsystem.controllers())
            .collect();
        list.extend(target.discovery_controllers());
        list.sort_by(|a, b| (a.subsystem_nqn(), a.cntlid()).cmp(&(b.subsystem_nqn(), b.cntlid())));
        list
    }

    pub(super) fn read_controllers(&self) -> Vec<v1::Controller> {
        let now = Instant::now();
        let of_controller = |controller: Arc<Controller>| {
            let sum = controller.io_counters();
            let io_qpairs = controller
                .qpairs()
                .iter()
                .filter(|qpair| qpair.qid.0 > 0)
                .count();
            v1::Controller {
                nqn: controller.subsystem_nqn().to_string(),
                cntlid: controller.cntlid().0.into(),
                cntrltype: if controller.is_discovery() {
                    "discovery"
                } else {
                    "io"
                }
                .to_owned(),
                hostnqn: controller.host_nqn().to_string(),
                hostid: Uuid::from_bytes(*controller.host_id()).to_string(),
                num_io_qpairs: narrow(io_qpairs),
                state: controller.state_name().to_owned(),
                listen_address: address(&controller.peer().listener.to_string()),
                peer_address: address(&controller.peer().remote),
                kato_ms: controller.kato_ms().into(),
                age_ms: ms(now.saturating_duration_since(controller.made_at())),
                read_commands: sum.reads,
                write_commands: sum.writes,
                read_bytes: sum.read_bytes,
                write_bytes: sum.write_bytes,
                error_count: controller.error_count(),
                ..v1::Controller::default()
            }
        };
        self.all_controllers()
            .into_iter()
            .map(of_controller)
            .collect()
    }

    pub(super) fn read_qpairs(&self) -> Vec<v1::Qpair> {
        let groups = self.plane.target().poll_groups();
        let mut list = Vec::new();
        for controller in self.all_controllers() {
            for qpair in controller.qpairs() {
                let group = groups.iter().find(|group| group.id == qpair.group);
                let load = |counter: fn(&QpairCounters) -> &std::sync::atomic::AtomicU64| {
                    counter(&qpair.counters).load(Ordering::Relaxed)
                };
                list.push(v1::Qpair {
                    nqn: controller.subsystem_nqn().to_string(),
                    cntlid: controller.cntlid().0.into(),
                    qid: qpair.qid.0.into(),
                    state: if qpair.state == "active" {
                        "enabled"
                    } else {
                        "deactivating"
                    }
                    .to_owned(),
                    thread: group.map(|group| group.name.clone()).unwrap_or_default(),
                    hostnqn: controller.host_nqn().to_string(),
                    listen_address: address(&qpair.peer.listener.to_string()),
                    peer_address: address(&qpair.peer.remote),
                    queue_depth: qpair.depth.into(),
                    in_flight: narrow(load(|counters| &counters.outstanding)),
                    header_digest: qpair.digests.header,
                    data_digest: qpair.digests.data,
                    commands: load(|counters| &counters.commands),
                    bytes_in: load(|counters| &counters.write_bytes),
                    bytes_out: load(|counters| &counters.read_bytes),
                    ..v1::Qpair::default()
                });
            }
        }
        list
    }

    pub(super) fn read_poll_groups(&self) -> Vec<v1::PollGroup> {
        let groups = self.plane.target().poll_groups();
        let transports = self.plane.target().transports();
        let of_group = |group: &Arc<GroupHandle>| {
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let counters = &group.counters;
            v1::PollGroup {
                name: group.name.clone(),
                admin_qpairs: load(&counters.admin_qpairs),
                io_qpairs: load(&counters.io_qpairs),
                current_admin_qpairs: narrow(load(&counters.current_admin_qpairs)),
                current_io_qpairs: narrow(load(&counters.current_io_qpairs)),
                current_unassociated_qpairs: narrow(load(&counters.current_unassociated_qpairs)),
                pending_bdev_io: load(&counters.pending_bdev_io),
                completed_nvme_io: load(&counters.completed_nvme_io),
                transports: transports
                    .iter()
                    .map(|transport| v1::PollGroupTransport {
                        trtype: transport.name().to_ascii_lowercase(),
                        qpairs: narrow(
                            load(&counters.current_admin_qpairs)
                                + load(&counters.current_io_qpairs),
                        ),
                        ..v1::PollGroupTransport::default()
                    })
                    .collect(),
            }
        };
        groups.iter().map(of_group).collect()
    }
}

fn io_stats(reading: &Reading, histograms: bool) -> Vec<v1::IoStats> {
    let kinds = OpKind::ALL
        .into_iter()
        .map(|kind| (kind, reading.kind(kind)));
    kinds
        .filter(|(_, reading)| reading.ops > 0)
        .map(|(kind, reading)| v1::IoStats {
            io_type: io_type(kind).into(),
            num_ops: reading.ops,
            bytes: reading.bytes,
            num_errors: reading.errors,
            latency_ns_total: reading.latency_total_ns,
            latency_ns_max: reading.latency_max_ns,
            latency_ns_min: reading.latency_min_ns.unwrap_or(0),
            latency: histograms.then(|| buckets(reading)),
        })
        .collect()
}

fn buckets(reading: &KindReading) -> v1::Histogram {
    let counts = reading.histogram.counts().iter().enumerate();
    let buckets = counts
        .filter(|(_, count)| **count > 0)
        .map(|(bucket, count)| {
            let (from_ns, to_ns) = histogram::bucket_bounds_ns(bucket);
            v1::HistogramBucket {
                from_ns,
                to_ns,
                count: *count,
            }
        });
    v1::Histogram {
        buckets: buckets.collect(),
    }
}
