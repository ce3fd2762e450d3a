//! What goes wrong, and when.

use nvme_spec::Status;

/// Which queues a fault looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFilter {
    /// The admin queue.
    Admin,
    /// All I/O queues.
    Io,
    /// All queues.
    Any,
}

impl QueueFilter {
    fn matches(self, qid: u16) -> bool {
        match self {
            Self::Admin => qid == 0,
            Self::Io => qid != 0,
            Self::Any => true,
        }
    }
}

/// What goes wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It is done, and its completion comes this many steps late.
    Late(u64),
    /// It is done this many steps late: until then its memory is the controller's.
    Slow(u64),
    /// It is done, and no completion comes.
    Lost,
    /// It is fetched and nothing more happens to it.
    Stall,
    /// Its completion comes twice.
    Duplicate,
    /// Its completion has the phase of an entry that is already known, so it cannot be seen.
    WrongPhase,
    /// Its completion names another command.
    WrongCid(u16),
    /// Dword 0 of its completion is another.
    Result(u32),
    /// Its data to the host has these bytes at this offset, as far as it reaches.
    Garbled(usize, [u8; 8]),
    /// It is not done, and ends with this status.
    Status(Status),
    /// The controller stops with CSTS.CFS, before the command is done.
    Fatal,
    /// The drive is pulled, before the command is done.
    Remove,
}

/// A rule of the fault plan: after `skip` matching commands, the next `count` meet `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Queues looked at.
    pub queue: QueueFilter,
    /// Opcode looked at; `None`: all.
    pub opcode: Option<u8>,
    /// Matching commands that pass unharmed first.
    pub skip: u32,
    /// Commands that are hit afterwards.
    pub count: u32,
    /// What happens.
    pub kind: FaultKind,
}

impl Fault {
    /// The next I/O command of this opcode meets `kind`.
    #[must_use]
    pub fn io(opcode: u8, kind: FaultKind) -> Self {
        Self {
            queue: QueueFilter::Io,
            opcode: Some(opcode),
            skip: 0,
            count: 1,
            kind,
        }
    }

    /// The next admin command of this opcode meets `kind`.
    #[must_use]
    pub fn admin(opcode: u8, kind: FaultKind) -> Self {
        Self {
            queue: QueueFilter::Admin,
            ..Self::io(opcode, kind)
        }
    }

    /// With another number of commands that pass first.
    #[must_use]
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// With another number of commands that are hit.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.count = count;
        self
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct FaultPlan {
    rules: Vec<Fault>,
}

impl FaultPlan {
    pub(crate) fn push(&mut self, fault: Fault) {
        self.rules.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// What this command meets. The first rule that matches counts it.
    pub(crate) fn meet(&mut self, qid: u16, opcode: u8) -> Option<FaultKind> {
        let matches = |rule: &Fault| {
            rule.queue.matches(qid) && rule.opcode.is_none_or(|wanted| wanted == opcode)
        };
        let index = self.rules.iter().position(matches)?;
        let rule = &mut self.rules[index];
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        let kind = rule.kind;
        rule.count = rule.count.saturating_sub(1);
        if rule.count == 0 {
            self.rules.remove(index);
        }
        Some(kind)
    }
}
