//! What a node tells of itself to who looks from elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::nvme::{self, HostDrive};
use super::{Node, unreadable_node};
use crate::catalogue::{Found, Reading, SETTINGS, Setting};
use crate::drives::Known;

/// All that the files of a node show, for a [`Node::told`] elsewhere. Names of fields never change: the two sides may
/// be of different versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// Every setting by its name, but for those of drives.
    settings: BTreeMap<String, Vec<Found>>,
    /// Drives, whoever has them.
    pub(super) drives: Known<Vec<HostDrive>>,
    /// The product and the version of its firmware.
    pub(super) system_firmware: Known<(String, Reading)>,
}

/// Whether a setting is one of drives: those are put together with what `aditd` tells.
pub(super) fn is_of_drives(setting: &Setting) -> bool {
    setting.section == "nvme"
}

impl Readings {
    /// What a node shows; of its ports those that were named to it.
    #[must_use]
    pub fn of(node: &Node) -> Readings {
        let own = SETTINGS.iter().filter(|setting| !is_of_drives(setting));
        Readings {
            settings: own
                .map(|setting| (setting.name(), node.found(setting)))
                .collect(),
            drives: nvme::all_of_host(node),
            system_firmware: node.system_firmware(),
        }
    }

    pub(super) fn found(&self, setting: &Setting) -> Vec<Found> {
        let known = self.settings.get(&setting.name()).cloned();
        known
            .unwrap_or_else(|| unreadable_node("the agent of that node does not know this setting"))
    }
}
