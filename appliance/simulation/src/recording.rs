//! [`Recording`]: everything that reached a device, to be cut at each step.

use crate::Image;
use crate::medium::{Event, Medium};

/// What reached a device since [`crate::SimDevice::start_recording`].
#[derive(Clone, Debug)]
pub struct Recording {
    pub(crate) start: Medium,
    pub(crate) events: Vec<Event>,
}

/// What a step of a replay was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// A change of content (write, zeroes, unmap) was submitted.
    Start,
    /// One completed, or failed.
    End,
    /// A flush completed.
    Flush,
    /// The device got another length.
    Resize,
    /// The test called [`crate::SimDevice::mark`].
    Mark(u64),
}

impl Recording {
    /// Steps recorded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Begins at the first step.
    #[must_use]
    pub fn replay(&self) -> Replay<'_> {
        Replay {
            medium: self.start.clone(),
            events: self.events.iter(),
        }
    }
}

/// A replay: its iterator does a step, [`Replay::cut`] cuts the power behind it.
#[derive(Debug)]
pub struct Replay<'a> {
    medium: Medium,
    events: std::slice::Iter<'a, Event>,
}

impl Replay<'_> {
    /// What a power cut could leave here; seeds as in [`crate::SimDevice::cut`].
    #[must_use]
    pub fn cut(&self, seed: u64) -> Image {
        self.medium.cut(seed)
    }

    /// What the end of the program alone could leave here, as [`crate::SimDevice::killed`].
    #[must_use]
    pub fn killed(&self, seed: u64) -> Image {
        self.medium.killed(seed)
    }

    /// Completed changes that no flush covers yet.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.medium.unflushed()
    }
}

impl Iterator for Replay<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let event = self.events.next()?;
        self.medium.apply(event.clone());
        Some(match event {
            Event::Start { .. } => Step::Start,
            Event::End { .. } | Event::Failed { .. } => Step::End,
            Event::Flush { .. } => Step::Flush,
            Event::Resize { .. } => Step::Resize,
            Event::Mark(mark) => Step::Mark(*mark),
        })
    }
}
