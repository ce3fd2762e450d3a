//! How `aditd` is, told to process 1 of the appliance.
//!
//! The control thread looks at the reactors every few seconds and says what it has seen, so a report also says that
//! the control thread lives. While a reactor stands still there is none: process 1 then ends the program and
//! starts it again. It costs a reactor nothing; what is looked at are counters that it keeps anyway.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use init::control::{Answer, Request};
use reactor::{Reactor, ReactorState};

use crate::data_plane::DataPlane;
use crate::error::chain;

/// How often the reactors are looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// A turn that takes longer is told of: the reactor has not turned since the last report.
const SLOW: Duration = INTERVAL;
/// While a turn takes longer nothing is reported.
const STUCK: Duration = Duration::from_secs(10);
/// How long process 1 may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Name of this service in the table of process 1.
const OWN_NAME: &str = "aditd";

/// What a look at the reactors says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    /// Every reactor turns or sleeps.
    Well,
    /// A reactor has not turned for a while; it may yet.
    Slow(String),
    /// A reactor will not turn any more.
    Stuck(String),
}

/// Reports to process 1 at its control socket for as long as the program runs; without one there is nobody to
/// report to.
pub(crate) async fn keep(socket: Option<PathBuf>, plane: Arc<DataPlane>) {
    let Some(socket) = socket else { return };
    let mut told = false;
    loop {
        let health = judge(plane.reactors().reactors());
        if let Health::Stuck(text) = &health {
            // Once: the next look is like this one.
            if !std::mem::replace(&mut told, true) {
                tracing::error!("{text}; no health is reported any more");
            }
        } else {
            told = false;
        }
        if let Some(request) = request(health) {
            report(socket.clone(), request).await;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn judge(reactors: &[Reactor]) -> Health {
    let seen = reactors.iter().map(|reactor| {
        let stats = reactor.stats();
        one(&stats.name, stats.state, stats.since_turn)
    });
    seen.max_by_key(|health| match health {
        Health::Well => 0,
        Health::Slow(_) => 1,
        Health::Stuck(_) => 2,
    })
    .unwrap_or(Health::Well)
}

fn one(name: &str, state: ReactorState, since_turn: Duration) -> Health {
    match state {
        ReactorState::Failed => Health::Stuck(format!("{name} has ended by a panic")),
        ReactorState::Polling if since_turn >= SLOW => {
            let text = format!("{name} has not turned for {} s", since_turn.as_secs());
            if since_turn >= STUCK {
                Health::Stuck(text)
            } else {
                Health::Slow(text)
            }
        }
        // One that sleeps waits in the kernel for the next message, descriptor or deadline; one that was stopped
        // has done its work.
        _ => Health::Well,
    }
}

fn request(health: Health) -> Option<Request> {
    let (ok, text) = match health {
        Health::Well => (true, "serving".to_owned()),
        Health::Slow(text) => (false, text),
        Health::Stuck(_) => return None,
    };
    let service = OWN_NAME.to_owned();
    Some(Request::Health { service, ok, text })
}

async fn report(socket: PathBuf, request: Request) {
    let call = move || init::control::call(&socket, &request, ANSWER);
    let failed = match tokio::task::spawn_blocking(call).await {
        Ok(Ok(Answer::Error { text })) => text,
        Ok(Ok(_)) => return,
        Ok(Err(error)) => chain(&error),
        Err(error) => error.to_string(),
    };
    tracing::warn!(failed, "init did not take the report of health");
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use reactor::{CpuMask, ReactorSet};

    use super::*;

    #[test]
    fn a_reactor_that_does_not_turn_is_named_and_then_nothing_is_reported() {
        let polling = |seconds| {
            one(
                "reactor_1",
                ReactorState::Polling,
                Duration::from_secs(seconds),
            )
        };
        assert_eq!(polling(4), Health::Well);
        let Some(Request::Health { service, ok, text }) = request(polling(5)) else {
            panic!()
        };
        assert_eq!((service.as_str(), ok), ("aditd", false));
        assert_eq!(text, "reactor_1 has not turned for 5 s");
        assert_eq!(request(polling(10)), None);
    }

    #[test]
    fn one_that_sleeps_is_well_and_one_that_has_failed_is_not() {
        let hour = Duration::from_secs(3600);
        assert_eq!(one("reactor_0", ReactorState::Sleeping, hour), Health::Well);
        let failed = one("reactor_0", ReactorState::Failed, Duration::ZERO);
        assert_eq!(request(failed), None);
    }

    /// The state of a reactor in a message that does not return is the one that is judged.
    #[test]
    fn a_reactor_in_a_message_that_does_not_return_is_polling() {
        let set = ReactorSet::builder().count(1).start().unwrap();
        let (entered, wait) = channel();
        let (go_on, held) = channel::<()>();
        let hold = move |_: &mut reactor::ThreadContext<'_>| {
            entered.send(()).unwrap();
            let _ = held.recv();
        };
        let _thread = set.spawn_thread("held", CpuMask::all(), hold).unwrap();
        wait.recv_timeout(Duration::from_secs(60)).unwrap();
        let stats = set.reactors()[0].stats();
        assert_eq!(stats.state, ReactorState::Polling);
        drop(go_on);
    }
    #[tokio::test]
    async fn a_report_is_a_line_at_the_socket_of_process_1() {
        use std::io::{BufRead as _, BufReader, Write as _};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let process_1 = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut line).unwrap();
            let answer = b"{\"answer\":\"done\",\"text\":\"heard\"}\n";
            stream.write_all(answer).unwrap();
            line
        });
        report(path, request(Health::Well).unwrap()).await;
        let line = process_1.join().unwrap();
        let expected = r#"{"call":"health","service":"aditd","ok":true,"text":"serving"}"#;
        assert_eq!(line.trim_end(), expected);
    }
}
