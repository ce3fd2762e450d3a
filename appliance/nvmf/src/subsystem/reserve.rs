//! A subsystem's part in reservations: one place for each namespace, and who hears of changes.

use super::*;

impl Subsystem {
    /// Who is registered with a namespace and who holds it.
    pub fn reservations(&self, nsid: Nsid) -> Option<ReservationRecord> {
        let reservations = self.reservations_of(nsid)?;
        Some(reservations.view().record.clone())
    }

    pub(crate) fn reservations_of(&self, nsid: Nsid) -> Option<Arc<Reservations>> {
        self.lock().reservations.get(&nsid).cloned()
    }

    pub(crate) fn reservation_store(&self) -> Option<Arc<dyn ReservationStore>> {
        self.target.upgrade()?.reservation_store()
    }

    pub(crate) fn reservation_key(&self, nsid: Nsid) -> ReservationKey {
        let namespace = self.lock().config.namespaces.get(&nsid).cloned();
        ReservationKey {
            nqn: self.nqn.clone(),
            nsid,
            uuid: namespace.map_or_else(Default::default, |namespace| namespace.uuid),
        }
    }

    /// Puts a change of reservations in force in every poll group.
    pub(crate) fn tell_reservation(
        &self,
        reservations: &Arc<Reservations>,
        view: Arc<View>,
        aborted: Vec<HostId>,
        drains: bool,
    ) -> Ticket {
        let (ticket, part) = Ticket::new();
        let change = ReservationChange {
            reservations: Arc::clone(reservations),
            view,
            aborted: aborted.into(),
            drains,
        };
        for group in &self.lock().groups {
            group.send(Message::Reservation(
                self.uid,
                change.clone(),
                Arc::clone(&part),
            ));
        }
        ticket
    }

    /// Tells the controllers of hosts what has become of their registrations.
    pub(crate) fn notify_reservation(&self, nsid: Nsid, notices: &[(HostId, u8)]) {
        if notices.is_empty() {
            return;
        }
        for controller in self.controllers() {
            let of_host = notices
                .iter()
                .filter(|(host, _)| host == controller.host_id());
            of_host.for_each(|(_, kind)| controller.reservation_notice(nsid, *kind));
        }
    }
}

impl Inner {
    /// A namespace that has come has reservations, one that has gone has none.
    pub(super) fn keep_reservations(
        &mut self,
        config: &SubsystemConfig,
        changes: &Changes,
        record: ReservationRecord,
    ) {
        for nsid in &changes.namespaces {
            let is_there = config.namespaces.contains_key(nsid);
            let was_there = self.config.namespaces.contains_key(nsid);
            if is_there && !was_there {
                let reservations = Reservations::new(*nsid, record.clone());
                self.reservations.insert(*nsid, reservations);
            } else if !is_there {
                self.reservations.remove(nsid);
            }
        }
    }
}
