//! The thread: takes operations in, gives each its turn, ends them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block::{Bdev, IoError};
use dma::IobufPool;
use image_file::{ImageError, ImageReader, ImageWriter};
use lvol::OperationState;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::device::Device;
use super::{
    Detail, Inspected, LOOK_INTERVAL, Message, RUNNING_MAX, Task, copying, exporting, importing,
    scrubbing,
};
use crate::error::chain;

/// At most so much time passes between two flushes of what an operation has written.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// How long I/O in flight may take when an operation stops.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// Why an operation stops before it is done.
#[derive(Debug)]
pub(super) enum Stop {
    /// It cannot go on, or somebody cancelled it.
    Failed(String),
    /// The pool is being closed: it goes on when that is open again.
    Closed,
}

impl Stop {
    /// An I/O failed. What the device says when it is taken away says nothing about the operation.
    pub(super) fn io(what: &str, offset: u64, device: &Device, error: IoError) -> Stop {
        if device.is_going() || error == IoError::Removed {
            return Stop::Closed;
        }
        Stop::Failed(format!("cannot {what} at byte {offset}: {error}"))
    }
}

impl From<ImageError> for Stop {
    fn from(error: ImageError) -> Stop {
        Stop::Failed(chain(&error))
    }
}

impl From<lvol::LvolError> for Stop {
    fn from(error: lvol::LvolError) -> Stop {
        match error {
            lvol::LvolError::Closed | lvol::LvolError::Faulted { .. } => Stop::Closed,
            error => Stop::Failed(chain(&error)),
        }
    }
}

/// How far an operation is: told to the pool by [`Driven::look`].
pub(super) struct Driven {
    pub(super) task: Task,
    buffers: Arc<IobufPool>,
    devices: RefCell<Vec<Rc<Device>>>,
    done: Cell<u64>,
    detail: RefCell<Option<String>>,
}

impl Driven {
    /// Opens a device. It is kept until its I/O has ended, however the operation ends: the pool gives nobody
    /// else a cluster that a lost channel may still write to.
    pub(super) async fn open(&self, bdev: &Arc<Bdev>) -> Result<Rc<Device>, Stop> {
        let device = Rc::new(Device::open(bdev, &self.buffers).await?);
        self.devices.borrow_mut().push(Rc::clone(&device));
        Ok(device)
    }

    /// What was done up to here is durable. Told before more is written: the next flush makes it durable too.
    pub(super) async fn advance(&self, done: u64) {
        self.done.set(done);
        // If it is to stop, `look` sees that too.
        drop(self.tell().await);
    }

    /// The same, and what is needed to go on from here.
    pub(super) async fn advance_with(&self, done: u64, detail: &Detail) {
        *self.detail.borrow_mut() = Some(detail.encode());
        self.advance(done).await;
    }

    /// Ends when it is to stop.
    async fn look(&self) -> Stop {
        loop {
            if let Some(stop) = self.tell().await {
                return stop;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn tell(&self) -> Option<Stop> {
        let (pool, id) = (&self.task.pool, self.task.id);
        let told = match self.detail.take() {
            Some(detail) => pool.progress_with(id, self.done.get(), detail),
            None => pool.progress(id, self.done.get()),
        };
        match told.await {
            Ok(OperationState::Running) => None,
            // Cancelled; or ended by somebody else, and then nothing is changed by ending it again.
            Ok(_) => Some(Stop::Failed(String::new())),
            Err(error) => Some(error.into()),
        }
    }
}

/// Starts the thread.
pub(super) fn start(buffers: Arc<IobufPool>) -> Result<mpsc::UnboundedSender<Message>, String> {
    let (sender, messages) = mpsc::unbounded_channel();
    let run = move || match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => runtime.block_on(serve(messages, buffers)),
        Err(error) => {
            // Who has sent something learns that nobody takes it.
            tracing::error!(%error, "no io_uring for the thread that copies");
        }
    };
    let thread = std::thread::Builder::new().name("copy".to_owned());
    thread
        .spawn(run)
        .map_err(|error| format!("no thread to copy on: {error}"))?;
    Ok(sender)
}

struct Running {
    pool: String,
    stop: watch::Sender<bool>,
    /// Closed when it has let go of everything.
    ended: oneshot::Receiver<()>,
}

struct Serving {
    buffers: Arc<IobufPool>,
    waiting: VecDeque<Task>,
    running: Vec<Running>,
    tasks: JoinSet<()>,
}

async fn serve(mut messages: mpsc::UnboundedReceiver<Message>, buffers: Arc<IobufPool>) {
    let mut serving = Serving {
        buffers,
        waiting: VecDeque::new(),
        running: Vec::new(),
        tasks: JoinSet::new(),
    };
    loop {
        serving.begin();
        let has_waiting = !serving.waiting.is_empty();
        tokio::select! {
            message = messages.recv() => match message {
                None => return,
                Some(message) => serving.take(message),
            },
            Some(_) = serving.tasks.join_next() => {
                serving.running.retain_mut(|one| one.ended.try_recv()
                    == Err(oneshot::error::TryRecvError::Empty));
            }
            () = tokio::time::sleep(LOOK_INTERVAL), if has_waiting => serving.look().await,
        }
    }
}

impl Serving {
    fn take(&mut self, message: Message) {
        match message {
            Message::Inspect {
                path,
                format,
                reply,
            } => {
                self.tasks.spawn_local(async move {
                    let found = ImageReader::open(&path, format).await;
                    let found = found.map(|image| Inspected {
                        format: image.format(),
                        len_bytes: image.len_bytes(),
                        identity: image.identity(),
                    });
                    // The caller may have gone.
                    let _ = reply.send(found.map_err(|error| chain(&error)));
                });
            }
            Message::Drive(task) => self.waiting.push_back(*task),
            Message::Release { pool, reply } => self.release(&pool, reply),
        }
    }

    fn release(&mut self, pool: &str, reply: oneshot::Sender<()>) {
        self.waiting.retain(|task| task.pool_name != pool);
        let mut ending = Vec::new();
        for index in (0..self.running.len()).rev() {
            if self.running[index].pool == pool {
                ending.push(self.running.swap_remove(index));
            }
        }
        self.tasks.spawn_local(async move {
            for one in ending {
                // Both fail when it has ended already.
                let _ = one.stop.send(true);
                let _ = one.ended.await;
            }
            let _ = reply.send(());
        });
    }

    fn begin(&mut self) {
        while self.running.len() < RUNNING_MAX
            && let Some(task) = self.waiting.pop_front()
        {
            let (stop, stopped) = watch::channel(false);
            let (end, ended) = oneshot::channel();
            self.running.push(Running {
                pool: task.pool_name.clone(),
                stop,
                ended,
            });
            let buffers = Arc::clone(&self.buffers);
            self.tasks.spawn_local(async move {
                drive(task, buffers, stopped).await;
                drop(end);
            });
        }
    }

    /// Ends those that were cancelled before they had their turn.
    async fn look(&mut self) {
        let mut asked = Vec::with_capacity(self.waiting.len());
        for task in &self.waiting {
            asked.push(task.pool.progress(task.id, task.done));
        }
        let mut kept = VecDeque::with_capacity(asked.len());
        for (task, asked) in std::mem::take(&mut self.waiting).into_iter().zip(asked) {
            match asked.await {
                Ok(OperationState::Running) => kept.push_back(task),
                Ok(_) => {
                    self.tasks.spawn_local(end(task, Err(String::new())));
                }
                // Its pool is closed.
                Err(_) => {}
            }
        }
        self.waiting = kept;
    }
}

async fn drive(task: Task, buffers: Arc<IobufPool>, mut stopped: watch::Receiver<bool>) {
    let (pool, id) = (task.pool_name.clone(), task.id);
    let driven = Driven {
        done: Cell::new(task.done),
        detail: RefCell::default(),
        devices: RefCell::default(),
        task,
        buffers,
    };
    let driven = Rc::new(driven);
    let result = tokio::select! {
        biased;
        _ = stopped.changed() => Err(Stop::Closed),
        stop = driven.look() => Err(stop),
        result = run(&driven) => result,
    };
    let devices = driven.devices.take();
    for device in &devices {
        if tokio::time::timeout(SETTLE_MAX, device.settle())
            .await
            .is_err()
        {
            tracing::warn!(
                pool,
                id,
                "the i/o of an operation does not end; it is left alone"
            );
        }
    }
    drop(devices);
    let result = match result {
        Ok(text) => Ok(text),
        Err(Stop::Failed(_)) if driven.task.pool.has_stopped() => return,
        Err(Stop::Failed(reason)) => Err(reason),
        Err(Stop::Closed) => {
            tracing::info!(
                pool,
                id,
                "an operation stops with its pool, and goes on with it"
            );
            return;
        }
    };
    match &result {
        Ok(text) => tracing::info!(pool, id, text, "an operation is done"),
        Err(reason) => tracing::warn!(pool, id, reason, "an operation has failed or was cancelled"),
    }
    if let Ok(driven) = Rc::try_unwrap(driven) {
        end(driven.task, result).await;
    }
}

async fn run(driven: &Driven) -> Result<String, Stop> {
    let device = driven.task.device.clone().map_err(Stop::Failed)?;
    match &driven.task.detail {
        Detail::Import { .. } => importing::run(driven, &device).await,
        Detail::Export { .. } => exporting::run(driven, &device).await,
        Detail::Copy { .. } => copying::run(driven, &device).await,
        Detail::Scrub { .. } => scrubbing::run(driven, &device).await,
    }
}

/// Lets go of everything, takes back what is not to stay, and tells the pool.
async fn end(task: Task, result: Result<String, String>) {
    let Task {
        pool,
        id,
        claims,
        detail,
        undo,
        ..
    } = task;
    drop(claims);
    let mut result = result;
    if let Err(reason) = &mut result {
        let mut left = Vec::new();
        if let Detail::Export { file, .. } = &detail
            && let Err(error) = ImageWriter::discard(file)
        {
            left.push(chain(&error));
        }
        if let Some(undo) = undo
            && let Err(error) = undo().await
        {
            left.push(chain(&error));
        }
        for left in left {
            if !reason.is_empty() {
                reason.push_str("; ");
            }
            reason.push_str(&left);
        }
    }
    if let Err(error) = pool.end(id, result).await {
        let reason = chain(&error);
        tracing::warn!(
            id,
            reason,
            "the end of an operation could not be kept; it goes on"
        );
    }
}
