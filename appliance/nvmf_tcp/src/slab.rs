//! The connections of a group, by number.

use nvmf::transport::ConnectionId;

use crate::connection::Connection;

/// Connections that a group can number: 20 bits of a [`ConnectionId`]. The other 12 bits count the
/// reuses of a number, so that what was meant for a connection that is gone finds nobody.
pub(crate) const CONNECTIONS_MAX: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 20;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;

#[derive(Default)]
struct Entry {
    /// The identifier of the connection that is here, or of the next one.
    id: u32,
    connection: Option<Box<Connection>>,
}

#[derive(Default)]
pub(crate) struct Slab {
    entries: Vec<Entry>,
    free: Vec<u32>,
    len: usize,
}

impl Slab {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds what `make` makes; `None` when all numbers are taken.
    pub(crate) fn insert(
        &mut self,
        make: impl FnOnce(ConnectionId) -> Box<Connection>,
    ) -> Option<ConnectionId> {
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None if self.entries.len() == CONNECTIONS_MAX => return None,
            None => {
                self.entries.push(Entry {
                    id: self.entries.len() as u32,
                    connection: None,
                });
                self.entries.len() - 1
            }
        };
        let entry = &mut self.entries[index];
        let id = ConnectionId(entry.id);
        entry.connection = Some(make(id));
        self.len += 1;
        Some(id)
    }

    /// The connections that are there now.
    pub(crate) fn ids(&self) -> Vec<ConnectionId> {
        let entries = self.entries.iter();
        entries
            .filter(|entry| entry.connection.is_some())
            .map(|entry| ConnectionId(entry.id))
            .collect()
    }

    pub(crate) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let entry = self.entries.get((id.0 & INDEX_MASK) as usize)?;
        entry.connection.as_deref().filter(|_| entry.id == id.0)
    }

    pub(crate) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let entry = self.entries.get_mut((id.0 & INDEX_MASK) as usize)?;
        entry.connection.as_deref_mut().filter(|_| entry.id == id.0)
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Box<Connection>> {
        let index = id.0 & INDEX_MASK;
        let entry = self
            .entries
            .get_mut(index as usize)
            .filter(|entry| entry.id == id.0)?;
        let connection = entry.connection.take()?;
        entry.id = entry.id.wrapping_add(1 << INDEX_BITS);
        self.free.push(index);
        self.len -= 1;
        Some(connection)
    }
}
