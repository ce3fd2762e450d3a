//! Queues of lines, and the threads that write what is in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use tracing::field::Field;
use tracing::{Level, Metadata};

/// Lines that may wait to be written.
const QUEUE_MAX: usize = 4096;
/// A place that is not there is tried again after this.
const RETRY: Duration = Duration::from_millis(250);
/// A place that takes no line for longer is told of in the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is written.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) time: SystemTime,
    pub(crate) level: Level,
    pub(crate) target: &'static str,
    /// The message, and its fields as `name=value`.
    pub(crate) text: String,
    /// Where in the source it comes from; `None` for lines of the log itself.
    pub(crate) metadata: Option<&'static Metadata<'static>>,
    /// The fields by themselves.
    pub(crate) fields: Vec<(Field, String)>,
}

#[derive(Debug)]
pub(crate) enum Message {
    Line(Arc<Line>),
    Flush(SyncSender<()>),
}

/// Where lines are written.
pub(crate) trait Place: Send {
    /// As it is named in a sentence.
    fn name(&self) -> &'static str;

    /// Writes a line; may block. False: the place is not there, and the line is to be written again.
    fn write(&mut self, line: &Line) -> bool;
}

/// The way to a place. Never blocks.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    messages: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

impl Queue {
    pub(crate) fn new(lines_max: usize) -> (Queue, Receiver<Message>) {
        let (messages, received) = sync_channel(lines_max);
        let lost = Arc::default();
        (Queue { messages, lost }, received)
    }

    pub(crate) fn push(&self, line: Arc<Line>) {
        if self.messages.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is received from when everything before is written; `None` when there is no room to ask.
    pub(crate) fn ask_flush(&self) -> Option<Receiver<()>> {
        let (done, wait) = sync_channel(1);
        let asked = self.messages.try_send(Message::Flush(done));
        asked.is_ok().then_some(wait)
    }

    /// Lines that had no room since this was asked last.
    #[cfg(test)]
    pub(crate) fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

/// Writes what is in one queue.
pub(crate) struct Writer {
    place: Box<dyn Place>,
    messages: Receiver<Message>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    pub(crate) fn new(place: Box<dyn Place>) -> (Queue, Writer) {
        let (queue, messages) = Queue::new(QUEUE_MAX);
        let lost = queue.lost.clone();
        let writer = Writer {
            place,
            messages,
            lost,
        };
        (queue, writer)
    }

    /// Until everybody who may log is gone. What is wrong with this place is told in it and in the `others`.
    pub(crate) fn run(mut self, others: &[Queue]) {
        while let Ok(message) = self.messages.recv() {
            match message {
                Message::Line(line) => self.write(&line, others),
                Message::Flush(done) => {
                    let _ = done.try_send(());
                }
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let name = self.place.name();
                let text =
                    format!("{lost} lines are not in {name}: it did not take them fast enough");
                let line = own_line(text);
                tell(others, &line);
                self.write(&line, others);
            }
        }
    }

    /// Writes a line, however long that takes.
    fn write(&mut self, line: &Line, others: &[Queue]) {
        let began = Instant::now();
        let mut told = false;
        let name = self.place.name();
        while !self.place.write(line) {
            if !told && began.elapsed() >= PATIENCE {
                told = true;
                let text = format!("{name} is not there: {QUEUE_MAX} lines wait for it at most");
                tell(others, &own_line(text));
            }
            std::thread::sleep(RETRY);
        }
        let waited = began.elapsed();
        if waited >= PATIENCE {
            let text = format!("{name} took no lines for {} s", waited.as_secs());
            tell(others, &own_line(text));
        }
    }
}

/// A line of the log about itself.
fn own_line(text: String) -> Arc<Line> {
    Arc::new(Line {
        time: SystemTime::now(),
        level: Level::WARN,
        target: "log",
        text,
        metadata: None,
        fields: Vec::new(),
    })
}

fn tell(queues: &[Queue], line: &Arc<Line>) {
    for queue in queues {
        queue.push(line.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// A place that takes a line when the test gives it leave, and says whether it is there.
    struct Gate {
        leave: Receiver<bool>,
        written: Sender<String>,
    }

    impl Place for Gate {
        fn name(&self) -> &'static str {
            "the gate"
        }

        fn write(&mut self, line: &Line) -> bool {
            let is_there = self.leave.recv().unwrap_or(true);
            if is_there {
                self.written.send(line.text.clone()).unwrap();
            }
            is_there
        }
    }

    fn line(number: usize) -> Arc<Line> {
        own_line(format!("line {number}"))
    }

    /// A writer at a gate; what it says to the other place is received too.
    fn gate() -> (Queue, Sender<bool>, Receiver<String>, Receiver<Message>) {
        let (give_leave, leave) = channel();
        let (tell_written, written) = channel();
        let place = Gate {
            leave,
            written: tell_written,
        };
        let (queue, writer) = Writer::new(Box::new(place));
        let (other, told) = Queue::new(8);
        std::thread::spawn(move || writer.run(&[other]));
        (queue, give_leave, written, told)
    }

    #[test]
    fn a_place_that_stands_still_loses_what_has_no_room_and_both_places_say_so() {
        let (queue, leave, written, told) = gate();
        let mut pushed = 0;
        // One is in the writer's hands; it takes that out of the queue when it gets to run.
        while queue.lost.load(Ordering::Relaxed) < 3 {
            queue.push(line(pushed));
            pushed += 1;
        }
        assert!(queue.ask_flush().is_none());
        drop(leave);
        let expected = "3 lines are not in the gate: it did not take them fast enough";
        let texts: Vec<String> = (0..pushed - 3 + 1)
            .map(|_| written.recv().unwrap())
            .collect();
        assert!(texts.contains(&expected.to_owned()), "{texts:?}");
        // What was let in comes in order.
        let lines: Vec<_> = texts.iter().filter(|text| *text != expected).collect();
        assert_eq!(lines[0], "line 0");
        assert_eq!(lines.len(), pushed - 3);
        let Message::Line(line) = told.recv().unwrap() else {
            panic!()
        };
        assert_eq!(line.text, expected);
    }

    #[test]
    fn a_place_that_comes_later_gets_every_line_once() {
        let (queue, leave, written, _told) = gate();
        for number in 0..3 {
            queue.push(line(number));
        }
        let flushed = queue.ask_flush().unwrap();
        leave.send(false).unwrap();
        leave.send(false).unwrap();
        drop(leave);
        flushed.recv().unwrap();
        let texts: Vec<String> = written.try_iter().collect();
        assert_eq!(texts, ["line 0", "line 1", "line 2"]);
    }
}
