//! The thread that writes.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::database::Database;
use crate::{
    Batch, CommitError, Contents, KEY_BYTES_MAX, OpenError, QUEUE_MAX, RecordChange,
    VALUE_BYTES_MAX,
};

/// Batches in one transaction. More would only make the first of them wait.
const GROUP_MAX: usize = 256;

type Done = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

struct Job {
    batch: Batch,
    done: Done,
}

/// A store of records; see the crate's documentation.
#[derive(Debug)]
pub struct StateStore {
    queue: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl StateStore {
    pub(crate) fn start(database: Database) -> Result<(StateStore, Contents), OpenError> {
        let contents = database.contents()?;
        let path = database.path();
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || run(database, &jobs))
            .map_err(|source| OpenError::Thread { path, source })?;
        Ok((
            StateStore {
                queue: Some(queue),
                thread: Some(thread),
            },
            contents,
        ))
    }

    /// Queues a batch and returns. `done` is called on the metadata thread when the batch is durable or
    /// has failed, in the order of the calls; it must not block. Batches whose callback has not been
    /// called may or may not be there after a crash, wholly.
    ///
    /// # Errors
    /// When the queue is full, the batch breaks a bound, or the thread is gone; `done` is then never
    /// called.
    pub fn commit(
        &self,
        batch: Batch,
        done: impl FnOnce(Result<(), CommitError>) + Send + 'static,
    ) -> Result<(), CommitError> {
        check(&batch)?;
        let queue = self.queue.as_ref().ok_or(CommitError::Closed)?;
        queue
            .try_send(Job {
                batch,
                done: Box::new(done),
            })
            .map_err(|error| match error {
                TrySendError::Full(_) => CommitError::QueueFull,
                TrySendError::Disconnected(_) => CommitError::Closed,
            })
    }

    /// Waits until everything queued has been written, then closes the file.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // An error means that a callback panicked: what was acknowledged is durable all the same.
            let _ = thread.join();
        }
    }
}

impl Drop for StateStore {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(mut database: Database, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut batches = vec![first.batch];
        let mut callbacks = vec![first.done];
        while batches.len() < GROUP_MAX
            && let Ok(job) = jobs.try_recv()
        {
            batches.push(job.batch);
            callbacks.push(job.done);
        }
        let results = database.write(&batches);
        for (done, result) in callbacks.into_iter().zip(results) {
            done(result);
        }
    }
}

fn check(batch: &Batch) -> Result<(), CommitError> {
    let bound = |what, len: usize, max| {
        if len > max {
            Err(CommitError::TooLong { what, len, max })
        } else {
            Ok(())
        }
    };
    for change in &batch.changes {
        let (kind, name, value) = match change {
            RecordChange::Put { kind, name, value } => (kind, name, value.as_slice()),
            RecordChange::Delete { kind, name } => (kind, name, [].as_slice()),
        };
        bound("a kind", kind.len(), KEY_BYTES_MAX)?;
        bound("a name", name.len(), KEY_BYTES_MAX)?;
        bound("a value", value.len(), VALUE_BYTES_MAX)?;
    }
    Ok(())
}
