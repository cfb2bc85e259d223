//! The right to decide about one message.

use crate::{
    ids::{Fence, Incarnation, MessageId},
    verbs::Tenancy,
};

/// How a tenure was obtained, and so what ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A delivery from the spool: acked after the first commit.
    Lease(LeaseTag),
    /// A claim on a row of the outbox.
    Claim,
}

/// A delivery that is not yet acked. It dies with the link's incarnation; the broker then delivers it to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseTag {
    /// The link's incarnation that received it.
    pub incarnation: Incarnation,
    /// Which queue's channel.
    pub class: crate::topology::SpoolClass,
    /// The broker's delivery tag.
    pub delivery: u64,
}

/// The right to decide about one message: obtained by a lease or a claim, consumed by recording the verdict. It cannot be
/// copied, so nothing is decided twice under one right; and only who holds one can submit.
#[derive(Debug, PartialEq, Eq)]
pub struct Tenure {
    id: MessageId,
    fence: Fence,
    holder: Incarnation,
    origin: Origin,
    since: Ordinal,
}

/// A place in the order of events within one process. Sessions and tenures draw from the same counter, so
/// that "opened before the lease was obtained" needs no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ordinal(pub u64);

impl Tenure {
    /// From the first delivery of a door-issued id. `None` for everything else: redelivered, derived or marked
    /// messages are moved into the outbox and claimed there.
    pub fn leased(
        id: MessageId,
        redelivered: bool,
        marked: bool,
        tag: LeaseTag,
        since: Ordinal,
    ) -> Option<Self> {
        let first = !redelivered && !marked && !id.is_derived();
        first.then_some(Self {
            id,
            fence: Fence(0),
            holder: tag.incarnation,
            origin: Origin::Lease(tag),
            since,
        })
    }

    /// From a claim that the store has committed under `fence`.
    pub fn claimed(id: MessageId, fence: Fence, holder: Incarnation, since: Ordinal) -> Self {
        Self {
            id,
            fence,
            holder,
            origin: Origin::Claim,
            since,
        }
    }

    /// Which message.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Under which fence.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// Who holds it.
    pub fn holder(&self) -> Incarnation {
        self.holder
    }

    /// How it was obtained.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// As named in frames.
    pub fn tenancy(&self) -> Tenancy {
        Tenancy {
            id: self.id,
            fence: self.fence,
        }
    }

    /// Submit only in a session opened before the tenure was obtained; else claim anew. So an agent that was started
    /// later cannot be used by a holder that others have given up.
    pub fn may_use_session(&self, opened: Ordinal) -> bool {
        opened < self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::DoorSequence, message::Priority, time::UnixMillis, topology::SpoolClass};

    fn tag() -> LeaseTag {
        LeaseTag {
            incarnation: Incarnation::random(),
            class: SpoolClass::Priority(Priority::Normal),
            delivery: 1,
        }
    }

    #[test]
    fn only_the_first_delivery_of_a_door_issued_id_runs_from_its_lease() {
        let issued = DoorSequence::default().issue(UnixMillis::now());
        let derived = MessageId::derived("key", b"1");
        let leased =
            |id, redelivered, marked| Tenure::leased(id, redelivered, marked, tag(), Ordinal(2));
        assert!(leased(issued, false, false).is_some());
        assert!(leased(issued, true, false).is_none());
        assert!(leased(issued, false, true).is_none());
        assert!(leased(derived, false, false).is_none());
    }

    #[test]
    fn a_session_opened_later_is_not_used() {
        let id = MessageId::derived("key", b"1");
        let tenure = Tenure::claimed(id, Fence(1), Incarnation::random(), Ordinal(5));
        assert!(tenure.may_use_session(Ordinal(4)));
        assert!(!tenure.may_use_session(Ordinal(6)));
    }
}
