//! The block devices of the node, as pools find those that their volumes lie on.

use std::sync::Arc;

use block::{BlockError, Claim, ClaimKind, Registry};
use lvol::ExternalDevices;
use uuid::Uuid;

use crate::error::chain;

/// Finds devices by their UUID, and claims them so that nobody deletes them or writes to them.
#[derive(Debug)]
pub(super) struct NodeDevices(pub(super) Arc<Registry>);

impl ExternalDevices for NodeDevices {
    fn claim(&self, uuid: [u8; 16], name: &str, user: &str) -> Result<Claim, String> {
        let uuid = Uuid::from_bytes(uuid);
        let found = self.0.get_by_uuid(uuid);
        let bdev = found.map_err(|_| match self.0.get(name) {
            Ok(other) => format!(
                "block device {name:?} has another UUID, {}, and none has {uuid}",
                other.uuid()
            ),
            Err(_) => format!("block device {name:?} is not in place (UUID {uuid})"),
        })?;
        bdev.claim(user, ClaimKind::ReadOnly)
            .map_err(|error| match error {
                BlockError::Claimed { name, owner } => {
                    format!("block device {name:?} may change: {owner} has claimed it")
                }
                error => chain(&error),
            })
    }
}
