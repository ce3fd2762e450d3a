//! The data plane: reactors, each with a thread that drives one poll group of the target.
//!
//! This is where the passive libraries meet the threads. A poll group's thread polls it in every
//! turn of its reactor and passes the time in; when the group is idle its descriptor, its waker
//! and its next deadline say when the reactor must wake up.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use block::Registry;
use dma::{IobufOptions, IobufPool, planner};
use nvmf::{PollGroup, Target, TargetError, TargetOptions};
use reactor::{CpuMask, PollOutcome, PollerSpec, ReactorSet, SleepPolicy, ThreadContext};

/// How long the start waits for a poll group. It does not block: this only bounds a reactor that
/// never gets to run.
const START_WITHIN: Duration = Duration::from_secs(60);

/// Which cores the reactors run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// One reactor less than there are cores, at least one.
    #[default]
    Default,
    /// So many reactors.
    Count(usize),
    /// One on each core of the mask.
    Mask(CpuMask),
}

/// Options of the data plane.
#[derive(Clone, Debug)]
pub struct DataPlaneOptions {
    /// Where the reactors run.
    pub cores: Cores,
    /// Whether idle reactors sleep.
    pub sleep_policy: SleepPolicy,
    /// The data buffers.
    pub iobuf: IobufOptions,
    /// The target.
    pub target: TargetOptions,
}

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataPlaneError {
    /// The buffers that the poll groups' caches take are not there.
    #[error("the data buffers do not suffice")]
    Plan(#[source] planner::Refusal),
    /// No memory for the data buffers.
    #[error("cannot make the data buffers")]
    Iobuf(#[source] dma::DmaError),
    /// A reactor did not start.
    #[error("cannot start the reactors")]
    Reactors(#[source] reactor::ReactorError),
    /// A poll group was not made.
    #[error("cannot make the poll group of {reactor}")]
    PollGroup {
        /// The reactor.
        reactor: String,
        /// Why.
        #[source]
        source: Box<TargetError>,
    },
    /// A poll group's descriptor cannot be watched.
    #[error("cannot watch the poll group of {reactor}")]
    Watch {
        /// The reactor.
        reactor: String,
        /// Why.
        #[source]
        source: reactor::ReactorError,
    },
    /// A reactor does not answer.
    #[error("{reactor} has not made its poll group within {} s", START_WITHIN.as_secs())]
    Silent {
        /// The reactor.
        reactor: String,
    },
}

/// Reactors, buffers, block devices and the target over them.
#[derive(Debug)]
pub struct DataPlane {
    reactors: ReactorSet,
    iobuf_pool: Arc<IobufPool>,
    registry: Arc<Registry>,
    target: Arc<Target>,
}

impl DataPlane {
    /// Starts reactors with a poll group each. The target has no transports yet.
    ///
    /// # Errors
    /// What is missing: memory, a core, a descriptor.
    pub fn start(options: DataPlaneOptions) -> Result<Self, DataPlaneError> {
        let iobuf_pool = IobufPool::new(options.iobuf).map_err(DataPlaneError::Iobuf)?;
        let builder = ReactorSet::builder().sleep_policy(options.sleep_policy);
        let builder = match options.cores {
            Cores::Default => builder,
            Cores::Count(count) => builder.count(count),
            Cores::Mask(mask) => builder.cores(mask),
        };
        let reactors = builder.start().map_err(DataPlaneError::Reactors)?;
        check_plan(&iobuf_pool, &options.target, reactors.reactors().len())?;
        let plane = Self {
            reactors,
            iobuf_pool,
            registry: Arc::default(),
            target: Target::new(options.target),
        };
        for reactor in plane.reactors.reactors() {
            plane.start_poll_group(reactor)?;
        }
        Ok(plane)
    }

    fn start_poll_group(&self, reactor: &reactor::Reactor) -> Result<(), DataPlaneError> {
        let (target, iobuf_pool) = (Arc::clone(&self.target), Arc::clone(&self.iobuf_pool));
        let name = format!("nvmf_tgt_poll_group_{:03}", reactor.index());
        let (tell, told) = mpsc::channel();
        let of_reactor = reactor.name().to_owned();
        let make = move |context: &mut ThreadContext<'_>| {
            let made = make_poll_group(context, &target, &iobuf_pool, of_reactor);
            // The receiver is gone only if the start was given up.
            tell.send(made).ok();
        };
        reactor
            .spawn_thread(name, reactor_mask(reactor), make)
            .map_err(DataPlaneError::Reactors)?;
        told.recv_timeout(START_WITHIN)
            .map_err(|_| DataPlaneError::Silent {
                reactor: reactor.name().to_owned(),
            })?
    }

    /// The reactors.
    pub fn reactors(&self) -> &ReactorSet {
        &self.reactors
    }

    /// The data buffers.
    pub fn iobuf_pool(&self) -> &Arc<IobufPool> {
        &self.iobuf_pool
    }

    /// The block devices.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The target.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Stops the reactors. Close the target's connections first ([`Target::shut_down`]) if hosts
    /// shall get their answers.
    ///
    /// # Errors
    /// A reactor has not ended in time, or had failed.
    pub fn stop(&self, within: Duration) -> Result<(), reactor::ReactorError> {
        self.reactors.stop(within)
    }
}

/// The reactor's core, or every core when it could not be pinned.
fn reactor_mask(reactor: &reactor::Reactor) -> CpuMask {
    reactor.core().map_or_else(CpuMask::all, CpuMask::of)
}

/// Refuses before start what the first connection would be refused for later.
fn check_plan(
    pool: &IobufPool,
    options: &TargetOptions,
    threads: usize,
) -> Result<(), DataPlaneError> {
    let tcp = planner::Taker {
        name: "nvmf_TCP".into(),
        small_cache: options.iobuf_small_cache_size,
        large_cache: options.iobuf_large_cache_size,
        channels: None,
    };
    let input = planner::PlanInput {
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        transports: vec![tcp],
        devices: Vec::new(),
        pools: pool.plan_pools(),
    };
    planner::plan(&input)
        .map(drop)
        .map_err(DataPlaneError::Plan)
}

fn make_poll_group(
    context: &mut ThreadContext<'_>,
    target: &Arc<Target>,
    iobuf_pool: &Arc<IobufPool>,
    reactor: String,
) -> Result<(), DataPlaneError> {
    let group = target
        .poll_group(context.waker().clone(), iobuf_pool, None, context.now())
        .map_err(|source| DataPlaneError::PollGroup {
            reactor: reactor.clone(),
            source: Box::new(source),
        })?;
    let watched = context.register_wake_fd(group.wake_fd());
    watched.map_err(|source| DataPlaneError::Watch {
        reactor: reactor.clone(),
        source,
    })?;
    let mut group = group;
    context
        .register_poller(
            PollerSpec::active("nvmf_tgt_poll_group_poll"),
            move |context| poll(&mut group, context),
        )
        .map_err(|source| DataPlaneError::Watch { reactor, source })?;
    Ok(())
}

fn poll(group: &mut PollGroup, context: &mut reactor::PollContext<'_>) -> PollOutcome {
    let now: Instant = context.now();
    let work = group.poll(now).work;
    if work > 0 {
        // A reactor does not sleep after a turn with work: deadlines can wait for an idle one.
        return PollOutcome::Busy(work);
    }
    if let Some(deadline) = group.next_deadline() {
        context.wake_at(deadline);
    }
    if !group.may_sleep() {
        context.keep_awake();
    }
    PollOutcome::Idle
}
