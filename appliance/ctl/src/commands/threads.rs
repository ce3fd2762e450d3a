//! What is read only: reactors, threads, pollers, channels, buffers, controllers, queue pairs.

use api::quantity::format_bytes;
use api::v1::controller_service_client::ControllerServiceClient;
use api::v1::reactor_service_client::ReactorServiceClient;
use api::v1::{
    Controller, DisconnectControllerRequest, GetIobufRequest, Iobuf, ListChannelsRequest,
    ListControllersRequest, ListPollGroupsRequest, ListPollersRequest, ListQpairsRequest,
    ListReactorsRequest, ListThreadsRequest, PollGroup, Qpair, Reactor, Thread, ThreadChannels,
    ThreadPollers,
};

use super::{Context, PAGE_SIZE, address, pages, percent, time_ns};
use crate::failure::Failure;
use crate::grammar::{ControllerVerb, ListOnly, QpairVerb};
use crate::output;
use crate::table::Table;

pub(crate) async fn reactors(context: &Context) -> Result<(), Failure> {
    let mut client = ReactorServiceClient::new(context.channel.clone());
    let answer = client
        .list_reactors(ListReactorsRequest {})
        .await?
        .into_inner();
    output::list(context.format, "reactors", &answer.reactors, reactor_table)
}

pub(crate) async fn threads(context: &Context) -> Result<(), Failure> {
    let mut client = ReactorServiceClient::new(context.channel.clone());
    let answer = client
        .list_threads(ListThreadsRequest {})
        .await?
        .into_inner();
    output::list(context.format, "threads", &answer.threads, thread_table)
}

pub(crate) async fn pollers(context: &Context, list: ListOnly) -> Result<(), Failure> {
    let ListOnly::List { thread } = list;
    let mut client = ReactorServiceClient::new(context.channel.clone());
    let request = ListPollersRequest {
        thread: thread.unwrap_or_default(),
    };
    let answer = client.list_pollers(request).await?.into_inner();
    output::list(context.format, "threads", &answer.threads, poller_table)
}

pub(crate) async fn channels(context: &Context, list: ListOnly) -> Result<(), Failure> {
    let ListOnly::List { thread } = list;
    let mut client = ReactorServiceClient::new(context.channel.clone());
    let request = ListChannelsRequest {
        thread: thread.unwrap_or_default(),
    };
    let answer = client.list_channels(request).await?.into_inner();
    output::list(context.format, "threads", &answer.threads, channel_table)
}

pub(crate) async fn poll_groups(context: &Context) -> Result<(), Failure> {
    let mut client = ControllerServiceClient::new(context.channel.clone());
    let answer = client
        .list_poll_groups(ListPollGroupsRequest {})
        .await?
        .into_inner();
    output::list(
        context.format,
        "poll_groups",
        &answer.poll_groups,
        poll_group_table,
    )
}

pub(crate) async fn iobuf(context: &Context) -> Result<(), Failure> {
    let mut client = ReactorServiceClient::new(context.channel.clone());
    let answer = client.get_iobuf(GetIobufRequest {}).await?.into_inner();
    output::object(context.format, &answer, iobuf_table)
}

pub(crate) async fn controllers(context: &Context, verb: ControllerVerb) -> Result<(), Failure> {
    let client = ControllerServiceClient::new(context.channel.clone());
    match verb {
        ControllerVerb::Disconnect { nqn, cntlid } => {
            let request = DisconnectControllerRequest { nqn, cntlid };
            client.clone().disconnect_controller(request).await?;
            Ok(())
        }
        ControllerVerb::List { nqn } => {
            let all = pages(|page_token| {
                let (mut client, nqn) = (client.clone(), nqn.clone().unwrap_or_default());
                async move {
                    let request = ListControllersRequest {
                        nqn,
                        page_size: PAGE_SIZE,
                        page_token,
                    };
                    let page = client.list_controllers(request).await?.into_inner();
                    Ok((page.controllers, page.next_page_token))
                }
            })
            .await?;
            output::list(context.format, "controllers", &all, controller_table)
        }
    }
}

pub(crate) async fn qpairs(context: &Context, verb: QpairVerb) -> Result<(), Failure> {
    let QpairVerb::List { nqn } = verb;
    let client = ControllerServiceClient::new(context.channel.clone());
    let all = pages(|page_token| {
        let (mut client, nqn) = (client.clone(), nqn.clone().unwrap_or_default());
        async move {
            let request = ListQpairsRequest {
                nqn,
                page_size: PAGE_SIZE,
                page_token,
            };
            let page = client.list_qpairs(request).await?.into_inner();
            Ok((page.qpairs, page.next_page_token))
        }
    })
    .await?;
    output::list(context.format, "qpairs", &all, qpair_table)
}

fn reactor_table(reactors: &[Reactor]) -> String {
    let mut table = Table::new(&[
        "CPU", "NUMA", "TID", "BUSY", "STATE", "SLEEPS", "TURNS", "THREADS",
    ]);
    for reactor in reactors {
        let names: Vec<_> = reactor
            .lw_threads
            .iter()
            .map(|thread| thread.name.as_str())
            .collect();
        table.row([
            reactor.lcore.to_string(),
            reactor
                .numa_id
                .map_or_else(|| "-".to_owned(), |numa| numa.to_string()),
            reactor.tid.to_string(),
            percent(reactor.busy, reactor.busy.saturating_add(reactor.idle)),
            if reactor.in_interrupt {
                "asleep"
            } else {
                "polling"
            }
            .to_owned(),
            reactor.sleeps.to_string(),
            reactor.turns.to_string(),
            names.join(", "),
        ]);
    }
    table.to_string()
}

fn thread_table(threads: &[Thread]) -> String {
    let mut table = Table::new(&[
        "NAME", "ID", "CPU", "CPU MASK", "BUSY", "ACTIVE", "TIMED", "PAUSED", "MAILBOX",
    ]);
    for thread in threads {
        table.row([
            thread.name.clone(),
            thread.id.to_string(),
            thread.lcore.to_string(),
            thread.cpumask.clone(),
            percent(thread.busy, thread.busy.saturating_add(thread.idle)),
            thread.active_pollers_count.to_string(),
            thread.timed_pollers_count.to_string(),
            thread.paused_pollers_count.to_string(),
            thread.mailbox_depth.to_string(),
        ]);
    }
    table.to_string()
}

fn poller_table(threads: &[ThreadPollers]) -> String {
    let mut table = Table::new(&[
        "THREAD", "POLLER", "KIND", "STATE", "RUNS", "BUSY", "PERIOD",
    ]);
    for thread in threads {
        let kinds = [
            ("active", &thread.active_pollers),
            ("timed", &thread.timed_pollers),
            ("paused", &thread.paused_pollers),
        ];
        for (kind, pollers) in kinds {
            for poller in pollers {
                let period = match poller.period_ticks {
                    0 => String::new(),
                    ns => time_ns(ns),
                };
                table.row([
                    thread.name.clone(),
                    poller.name.clone(),
                    kind.to_owned(),
                    poller.state.clone(),
                    poller.run_count.to_string(),
                    poller.busy_count.to_string(),
                    period,
                ]);
            }
        }
    }
    table.to_string()
}

fn channel_table(threads: &[ThreadChannels]) -> String {
    let mut table = Table::new(&["THREAD", "CHANNEL", "USERS", "IN FLIGHT"]);
    for thread in threads {
        for channel in &thread.io_channels {
            table.row([
                thread.name.clone(),
                channel.name.clone(),
                channel.r#ref.to_string(),
                channel.in_flight.to_string(),
            ]);
        }
    }
    table.to_string()
}

fn poll_group_table(groups: &[PollGroup]) -> String {
    let mut table = Table::new(&[
        "POLL GROUP",
        "ADMIN",
        "I/O",
        "UNASSOCIATED",
        "COMPLETED",
        "WAITING FOR DEVICE",
        "WAITING FOR BUFFER",
    ]);
    for group in groups {
        let waiting: u64 = group.transports.iter().map(|t| t.pending_data_buffer).sum();
        table.row([
            group.name.clone(),
            group.current_admin_qpairs.to_string(),
            group.current_io_qpairs.to_string(),
            group.current_unassociated_qpairs.to_string(),
            group.completed_nvme_io.to_string(),
            group.pending_bdev_io.to_string(),
            waiting.to_string(),
        ]);
    }
    table.to_string()
}

fn iobuf_table(iobuf: &Iobuf) -> String {
    let mut pools = Table::new(&[
        "POOL",
        "BUFFER",
        "COUNT",
        "FREE",
        "CACHED",
        "WAITING",
        "RESERVE",
        "LEAST FREE",
    ]);
    for (name, pool) in [("small", iobuf.small), ("large", iobuf.large)] {
        let pool = pool.unwrap_or_default();
        pools.row([
            name.to_owned(),
            format_bytes(pool.bufsize.into()),
            pool.count.to_string(),
            pool.free.to_string(),
            pool.cached.to_string(),
            pool.waiting.to_string(),
            pool.reserve.to_string(),
            pool.free_min.to_string(),
        ]);
    }
    let mut users = Table::new(&[
        "MODULE",
        "THREAD",
        "POOL",
        "CACHE",
        "MAIN",
        "RETRY",
        "CACHE SIZE",
    ]);
    for module in &iobuf.modules {
        for (name, counters) in [("small", module.small_pool), ("large", module.large_pool)] {
            let counters = counters.unwrap_or_default();
            users.row([
                module.module.clone(),
                module.thread.clone(),
                name.to_owned(),
                counters.cache.to_string(),
                counters.main.to_string(),
                counters.retry.to_string(),
                counters.cache_size.to_string(),
            ]);
        }
    }
    let mut text = format!("{pools}\n{users}\nmemory: {}\n", iobuf.backing);
    if !iobuf.notice.is_empty() {
        text.push_str(&format!("note: {}\n", iobuf.notice));
    }
    text
}

fn controller_table(controllers: &[Controller]) -> String {
    let mut table = Table::new(&[
        "NQN",
        "CNTLID",
        "TYPE",
        "HOST",
        "PEER",
        "I/O QPAIRS",
        "STATE",
        "KEEP ALIVE",
        "AGE",
    ]);
    for controller in controllers {
        table.row([
            controller.nqn.clone(),
            controller.cntlid.to_string(),
            controller.cntrltype.clone(),
            controller.hostnqn.clone(),
            address(controller.peer_address.as_ref()),
            controller.num_io_qpairs.to_string(),
            controller.state.clone(),
            match controller.kato_ms {
                0 => "off".to_owned(),
                ms => time_ns(ms.saturating_mul(1_000_000)),
            },
            time_ns(controller.age_ms.saturating_mul(1_000_000)),
        ]);
    }
    table.to_string()
}

fn qpair_table(qpairs: &[Qpair]) -> String {
    let mut table = Table::new(&[
        "NQN",
        "CNTLID",
        "QID",
        "STATE",
        "THREAD",
        "PEER",
        "DEPTH",
        "IN FLIGHT",
        "DIGESTS",
        "COMMANDS",
    ]);
    for qpair in qpairs {
        let digests = match (qpair.header_digest, qpair.data_digest) {
            (false, false) => "none",
            (true, false) => "header",
            (false, true) => "data",
            (true, true) => "both",
        };
        table.row([
            qpair.nqn.clone(),
            qpair.cntlid.to_string(),
            qpair.qid.to_string(),
            qpair.state.clone(),
            qpair.thread.clone(),
            address(qpair.peer_address.as_ref()),
            qpair.queue_depth.to_string(),
            qpair.in_flight.to_string(),
            digests.to_owned(),
            qpair.commands.to_string(),
        ]);
    }
    table.to_string()
}
