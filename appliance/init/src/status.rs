//! What init did and how it went, as data: JSON files in `/run/adit/status`, one for each group.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the files are.
pub const STATUS_FOLDER: &str = "/run/adit/status";

/// Most items of a group; more are dropped, and the last item says so.
pub const ITEMS_MAX: usize = 512;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As wanted.
    Ok,
    /// Does not apply here: no such hardware, not asked for.
    Skipped,
    /// May yet come.
    Waiting,
    /// Less than wanted; the node works.
    Degraded,
    /// Not done.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Waiting => "waiting",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        })
    }
}

/// One thing that was wanted, how it is, and why it was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it is about: a mount point, a module, a PCI address.
    pub name: String,
    /// How it is.
    pub state: State,
    /// The same in a sentence, with what to do where something is wrong.
    pub text: String,
    /// Why it is wanted at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Status {
    /// A status without a reason.
    pub fn new(name: impl Into<String>, state: State, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state,
            text: text.into(),
            reason: None,
        }
    }

    /// The same, with the reason why the thing is wanted.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Whether a person should look at it.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        matches!(self.state, State::Degraded | State::Failed)
    }
}

/// All statuses, by group, and the folder where they are shown.
#[derive(Debug, Default)]
pub struct Board {
    groups: BTreeMap<String, Vec<Status>>,
    folder: Option<PathBuf>,
}

impl Board {
    /// A board that is not shown anywhere yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on each group is a file in `folder`, which is made.
    ///
    /// # Errors
    /// When the folder cannot be made or a file cannot be written.
    pub fn show_in(&mut self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        self.folder = Some(folder.to_owned());
        for (group, items) in &self.groups {
            write_whole(
                &folder.join(format!("{group}.json")),
                &serde_json::to_vec_pretty(items)?,
            )?;
        }
        Ok(())
    }

    /// Replaces a group.
    pub fn set(&mut self, group: &str, mut items: Vec<Status>) {
        if items.len() > ITEMS_MAX {
            let left = items.len() - ITEMS_MAX + 1;
            items.truncate(ITEMS_MAX - 1);
            let text = format!("{left} more are not shown");
            items.push(Status::new("more", State::Degraded, text));
        }
        if self.groups.get(group) == Some(&items) {
            return;
        }
        if let Some(folder) = &self.folder {
            // A full /run costs the file, not the node: the control socket still tells.
            let _ = serde_json::to_vec_pretty(&items)
                .map_err(io::Error::from)
                .and_then(|bytes| write_whole(&folder.join(format!("{group}.json")), &bytes));
        }
        self.groups.insert(group.to_owned(), items);
    }

    /// Adds to a group.
    pub fn add(&mut self, group: &str, items: Vec<Status>) {
        let mut all = self.groups.get(group).cloned().unwrap_or_default();
        all.retain(|old| items.iter().all(|new| new.name != old.name));
        all.extend(items);
        self.set(group, all);
    }

    /// Every group.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<String, Vec<Status>> {
        &self.groups
    }

    /// What a person should look at, with its group.
    pub fn wrong(&self) -> impl Iterator<Item = (&str, &Status)> {
        self.groups.iter().flat_map(|(group, items)| {
            let wrong = items.iter().filter(|item| item.is_wrong());
            wrong.map(move |item| (group.as_str(), item))
        })
    }
}

/// Writes a file so that a reader sees the old or the new one, never a part.
///
/// # Errors
/// As the system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    std::fs::write(&new, bytes)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_file_and_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = Board::new();
        board.set("early", vec![Status::new("a", State::Ok, "")]);
        board.show_in(folder.path()).unwrap();
        let many = (0..ITEMS_MAX + 5).map(|n| Status::new(n.to_string(), State::Failed, "x"));
        board.set("many", many.collect());
        for group in ["early", "many"] {
            let text = std::fs::read(folder.path().join(format!("{group}.json"))).unwrap();
            let items: Vec<Status> = serde_json::from_slice(&text).unwrap();
            assert_eq!(items, board.groups()[group]);
        }
        assert_eq!(board.groups()["many"].len(), ITEMS_MAX);
        assert_eq!(
            board.groups()["many"].last().unwrap().text,
            "6 more are not shown"
        );
    }

    #[test]
    fn what_is_added_again_replaces_what_was() {
        let mut board = Board::new();
        board.add("modules", vec![Status::new("vfio", State::Waiting, "")]);
        board.add("modules", vec![Status::new("vfio", State::Ok, "loaded")]);
        assert_eq!(board.groups()["modules"].len(), 1);
        assert_eq!(board.wrong().count(), 0);
    }
}
