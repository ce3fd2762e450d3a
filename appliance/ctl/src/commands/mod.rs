//! What each noun and verb does.

mod bdev;
mod check;
mod config;
mod context;
mod firmware;
mod follow;
mod machine;
mod node;
mod node_config;
mod perf;
mod pki;
mod pool;
mod rdma;
mod subsystem;
mod threads;
mod top;
mod transport;
mod volume;

use std::future::Future;
use std::time::{Duration, Instant};

use api::v1::{self, ObjectState};
use clap::CommandFactory as _;
use tonic::transport::Channel;

use crate::connection::{Pem, Server};
use crate::contexts::Contexts;
use crate::failure::Failure;
use crate::grammar::{Arguments, Format, Global, Noun};
use crate::output;

/// Objects asked for at once.
const PAGE_SIZE: u32 = 1000;

/// What every command needs.
pub(crate) struct Context {
    pub(crate) channel: Channel,
    pub(crate) format: Format,
    /// What an unconfigured node asks for in place of a certificate.
    pub(crate) code: Code,
    /// The context that is used, if one is.
    pub(crate) context: Option<String>,
    wait_ms: Option<u64>,
}

/// Runs one command line.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match &arguments.noun {
        Noun::Completion { shell } => {
            let mut script = Vec::new();
            let mut command = Arguments::command();
            clap_complete::generate(*shell, &mut command, "aditctl", &mut script);
            return output::text(&String::from_utf8_lossy(&script));
        }
        Noun::Man { directory } => {
            return clap_mangen::generate_to(Arguments::command(), directory).map_err(|source| {
                Failure::File {
                    path: directory.display().to_string(),
                    source,
                }
            });
        }
        Noun::Context(verb) => return context::run(&arguments.global, verb).await,
        Noun::Pki(verb) => return pki::run(verb),
        Noun::Machine(verb) => return machine::run(&arguments.global, verb).await,
        Noun::Perf(perf) => return perf::run(arguments.global.output, perf),
        // Read before connecting: a wrong document needs no server to be told.
        Noun::Apply {
            file,
            dry_run,
            keep_others,
            expected_revision,
        } => {
            let request = v1::ApplyRequest {
                document: Some(crate::document::read(file)?),
                dry_run: *dry_run,
                keep_others: *keep_others,
                expected_revision: *expected_revision,
            };
            return config::apply(&connect(&arguments.global).await?, request).await;
        }
        _ => {}
    }
    if let Noun::Firmware(verb) = arguments.noun {
        // Much of it needs no server.
        return firmware::run(&arguments.global, verb).await;
    }
    let context = connect(&arguments.global).await?;
    match arguments.noun {
        Noun::Node(verb) => node::run(&context, verb).await,
        Noun::Transport(verb) => transport::run(&context, verb).await,
        Noun::Rdma(_) => rdma::run(&context).await,
        Noun::Bdev(verb) => bdev::run(&context, verb).await,
        Noun::Pool(verb) => pool::run(&context, verb).await,
        Noun::Volume(verb) => volume::run(&context, verb).await,
        Noun::Snapshot(verb) => volume::snapshot(&context, verb).await,
        Noun::Operation(verb) => pool::operation(&context, verb).await,
        Noun::Subsystem(verb) => subsystem::run(&context, verb).await,
        Noun::Namespace(verb) => subsystem::namespace(&context, verb).await,
        Noun::Listener(verb) => subsystem::listener(&context, verb).await,
        Noun::Host(verb) => subsystem::host(&context, verb).await,
        Noun::Ana(verb) => subsystem::ana(&context, verb).await,
        Noun::Reactor(_) => threads::reactors(&context).await,
        Noun::Thread(_) => threads::threads(&context).await,
        Noun::Poller(list) => threads::pollers(&context, list).await,
        Noun::Channel(list) => threads::channels(&context, list).await,
        Noun::PollGroup(_) => threads::poll_groups(&context).await,
        Noun::Iobuf(_) => threads::iobuf(&context).await,
        Noun::Controller(verb) => threads::controllers(&context, verb).await,
        Noun::Qpair(verb) => threads::qpairs(&context, verb).await,
        Noun::Check { nqn, host } => check::run(&context, nqn, host).await,
        Noun::Export => config::export(&context).await,
        Noun::Watch { kind, after } => config::watch(&context, kind, after).await,
        Noun::Top { interval, count } => {
            top::run(&context, Duration::from_millis(interval), count).await
        }
        Noun::Apply { .. }
        | Noun::Completion { .. }
        | Noun::Context(_)
        | Noun::Firmware(_)
        | Noun::Machine(_)
        | Noun::Man { .. }
        | Noun::Perf(_)
        | Noun::Pki(_) => Ok(()),
    }
}

/// Where no server and no context is named.
const DEFAULT_SERVER: &str = "unix:/run/adit/aditd.sock";

/// The server that the options, else the context in use, name; and the context.
pub(crate) fn server(global: &Global) -> Result<(Server, Option<String>), Failure> {
    let contexts = if global.context.is_none() && global.server.is_some() {
        None
    } else {
        Some(Contexts::read()?)
    };
    let chosen = match &contexts {
        Some(contexts) => contexts.chosen(global.context.as_deref())?,
        None => None,
    };
    if let Some((name, context)) = chosen {
        return Ok((Server::of_context(context), Some(name)));
    }
    let server = Server {
        uri: global
            .server
            .clone()
            .unwrap_or_else(|| DEFAULT_SERVER.to_owned()),
        ca: global.ca.clone().map(Pem::File),
        cert: global.cert.clone().map(Pem::File),
        key: global.key.clone().map(Pem::File),
        server_name: global.server_name.clone(),
        fingerprint: None,
        code: None,
    };
    Ok((server, None))
}

pub(crate) async fn connect(global: &Global) -> Result<Context, Failure> {
    let (server, context) = server(global)?;
    let channel = server.connect().await?;
    Ok(Context {
        channel,
        format: global.output,
        code: Code(server.code.clone()),
        context,
        wait_ms: global.wait,
    })
}

/// Adds the code of an unconfigured node to each call.
#[derive(Debug, Clone)]
pub(crate) struct Code(pub(crate) Option<String>);

impl tonic::service::Interceptor for Code {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(code) = &self.0 {
            let value = format!("Code {code}").parse();
            let value = value.map_err(|_| tonic::Status::invalid_argument("this is no code"))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// A channel that carries the code.
pub(crate) type NodeChannel = tonic::service::interceptor::InterceptedService<Channel, Code>;

/// A page of a list: its items and the token of the next.
pub(crate) type Page<T> = (Vec<T>, String);

/// Gathers every page.
pub(crate) async fn pages<T, F>(mut page: impl FnMut(String) -> F) -> Result<Vec<T>, Failure>
where
    F: Future<Output = Result<Page<T>, tonic::Status>>,
{
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (items, next) = page(token).await?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

/// Something that may be pending.
pub(crate) trait Placed {
    fn status(&self) -> Option<&v1::Status>;
}

macro_rules! placed {
    ($($message:ident),*) => {
        $(impl Placed for v1::$message {
            fn status(&self) -> Option<&v1::Status> {
                self.status.as_ref()
            }
        })*
    };
}
placed!(Transport, Bdev, Pool, Subsystem, Namespace, Listener);

impl Context {
    /// After a mutation: with `--wait`, reads the object until it is in place; without, says when it
    /// is not.
    pub(crate) async fn settle<T, F>(
        &self,
        what: &str,
        mut object: T,
        mut read: impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        T: Placed,
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        const INTERVAL: Duration = Duration::from_millis(100);
        let deadline = Instant::now() + Duration::from_millis(self.wait_ms.unwrap_or(0));
        loop {
            let Some(status) = object
                .status()
                .filter(|s| s.state() == ObjectState::Pending)
            else {
                return Ok(object);
            };
            let reason = status.reason.clone();
            if self.wait_ms.is_none() {
                eprintln!("note: {what} is kept, but not in place yet: {reason}");
                return Ok(object);
            }
            if Instant::now() >= deadline {
                return Err(Failure::Pending {
                    what: what.to_owned(),
                    reason,
                });
            }
            tokio::time::sleep(INTERVAL).await;
            object = read().await?.into_inner();
        }
    }
}

/// `ready`, or `pending: REASON`.
pub(crate) fn state(status: Option<&v1::Status>) -> String {
    match status {
        Some(status) if status.state() == ObjectState::Pending => {
            format!("pending: {}", status.reason)
        }
        _ => "ready".to_owned(),
    }
}

/// The last part of an enumeration's name: `NODE_STATE_SERVING` -> `serving`.
pub(crate) fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_ascii_lowercase()
        .replace('_', "-")
}

/// Lines `name: value`, the values in one column.
pub(crate) fn properties(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        if !value.is_empty() {
            text.push_str(&format!(
                "{:width$}  {value}\n",
                format!("{name}:"),
                width = width + 1
            ));
        }
    }
    text
}

/// A count of nanoseconds for people.
pub(crate) fn time_ns(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{}.{} us", ns / 1_000, ns % 1_000 / 100),
        1_000_000..1_000_000_000 => format!("{}.{:02} ms", ns / 1_000_000, ns % 1_000_000 / 10_000),
        _ => format!(
            "{}.{:02} s",
            ns / 1_000_000_000,
            ns % 1_000_000_000 / 10_000_000
        ),
    }
}

/// A share in percent, with one digit after the point.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

pub(crate) fn address(address: Option<&v1::Address>) -> String {
    address.map_or_else(|| "-".to_owned(), v1::Address::uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_written_for_people() {
        assert_eq!(time_ns(999), "999 ns");
        assert_eq!(time_ns(13_600), "13.6 us");
        assert_eq!(time_ns(2_050_000), "2.05 ms");
        assert_eq!(time_ns(61_000_000_000), "61.00 s");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(
            short("SUBSYSTEM_STATE_ACTIVE", "SUBSYSTEM_STATE_"),
            "active"
        );
    }
}
