//! Who is who: messages, instances, incarnations, fences, references.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::UnixMillis;

/// The name of one message for its whole life.
///
/// A **door-issued** id is a UUIDv8 of 48 bits of time, 32 bits of door incarnation and 42 bits of
/// sequence, so that an id that nobody holds still tells who issued it and when. A **derived** id is a
/// UUIDv5 of the source's identity (a mailbox entry, an idempotence key): the same source gives the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(transparent)]
pub struct MessageId(pub Uuid);

/// For people and programs as it is shown everywhere, without hyphens; in frames as its bytes.
impl Serialize for MessageId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(self)
        } else {
            self.0.serialize(to)
        }
    }
}

/// What a door-issued id says about its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issue {
    /// When the door issued it.
    pub at: UnixMillis,
    /// Which incarnation of which door ([`DoorSequence`]).
    pub door: u32,
    /// The door's running number, from 1.
    pub sequence: u64,
}

const SEQUENCE_BITS: u32 = 42;
const NAMESPACE: Uuid = Uuid::from_u128(0x706f_6d62_6f00_5000_8000_6465_7269_7665);

impl MessageId {
    /// Packs a door's issue into an id. `sequence` keeps its low 42 bits.
    pub fn issued(issue: Issue) -> Self {
        let sequence = issue.sequence & ((1 << SEQUENCE_BITS) - 1);
        let value = (u128::from(issue.at.0 & 0xffff_ffff_ffff) << 80)
            | (u128::from(issue.door >> 20) << 64)
            | (u128::from(issue.door & 0xf_ffff) << SEQUENCE_BITS)
            | u128::from(sequence);
        Self(Uuid::new_v8(value.to_be_bytes()))
    }

    /// The id of something that has an identity of its own. `scope` keeps kinds of sources apart.
    pub fn derived(scope: &str, identity: &[u8]) -> Self {
        Self(Uuid::new_v5(
            &Uuid::new_v5(&NAMESPACE, scope.as_bytes()),
            identity,
        ))
    }

    /// Whether the id was derived from its source (and so may legitimately arrive twice).
    pub fn is_derived(self) -> bool {
        self.0.get_version_num() != 8
    }

    /// What a door-issued id says; `None` for a derived one.
    pub fn issue(self) -> Option<Issue> {
        if self.is_derived() {
            return None;
        }
        let value = self.0.as_u128();
        let door_high = (value >> 64) & 0xfff;
        let door_low = (value >> SEQUENCE_BITS) & 0xf_ffff;
        Some(Issue {
            at: UnixMillis((value >> 80) as u64),
            door: ((door_high << 20) | door_low) as u32,
            sequence: (value & ((1 << SEQUENCE_BITS) - 1)) as u64,
        })
    }

    /// The store's partition: the day of issue, or 0 for derived ids.
    pub fn part(self) -> u32 {
        self.issue().map_or(0, |issue| issue.at.day())
    }
}

/// Issues ids in order. One per life of a door: the number is drawn anew at each start, so that a
/// restarted door never repeats an id whatever the clock does.
#[derive(Debug)]
pub struct DoorSequence {
    door: u32,
    next: u64,
}

impl Default for DoorSequence {
    fn default() -> Self {
        Self {
            door: fastrand::u32(..),
            next: 1,
        }
    }
}

impl DoorSequence {
    /// The door incarnation that its ids carry.
    pub fn door(&self) -> u32 {
        self.door
    }

    /// The next id, issued at `now`.
    pub fn issue(&mut self, now: UnixMillis) -> MessageId {
        let sequence = self.next;
        self.next += 1;
        MessageId::issued(Issue {
            at: now,
            door: self.door,
            sequence,
        })
    }
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

impl std::fmt::Debug for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MessageId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new one, unlike any other.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.as_simple().fmt(f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}

uuid_id! {
    /// One run of a process, from start to exit. The attempts that an agent keeps belong to it.
    Instance
}
uuid_id! {
    /// One life of a process's link to the broker; a new one after every reconnect. Inboxes are named after it.
    Incarnation
}

impl Incarnation {
    /// Addressed to whoever reads it: hellos and first questions on a fanout.
    pub const EVERYONE: Self = Self(Uuid::nil());
}

/// Who may decide about a message: every claim raises it, and a lower one is refused everywhere.
/// 0 is the first delivery of a door-issued id, which runs without touching the store.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Fence(pub u32);

/// A transport's own name for a message in process. Dead after EndMessage, and then free for reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reference(pub u64);

impl Reference {
    /// What a submission's reference reads until the transport has assigned it.
    pub const UNASSIGNED_OUTBOUND: Self = Self(0);
    /// What a reception's reference reads until the transport has assigned it.
    pub const UNASSIGNED_INBOUND: Self = Self(1);
    /// The first value that a transport may assign.
    pub const FIRST: Self = Self(2);
}

/// Pairs an answer with its question within one session and one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Correlation(pub u64);

/// A recipient's place in its message's list; results come per index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecipientIndex(pub u32);

impl RecipientIndex {
    /// As an index into the recipients.
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_id_tells_its_origin() {
        fastrand::seed(7);
        for _ in 0..10_000 {
            let issue = Issue {
                at: UnixMillis(fastrand::u64(..1 << 48)),
                door: fastrand::u32(..),
                sequence: fastrand::u64(..1 << SEQUENCE_BITS),
            };
            let id = MessageId::issued(issue);
            assert_eq!(id.issue(), Some(issue));
            assert_eq!(id.part(), issue.at.day());
            assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
        }
    }

    #[test]
    fn a_derived_id_depends_on_scope_and_identity_alone() {
        let id = MessageId::derived("maildir", b"1");
        assert_eq!(id, MessageId::derived("maildir", b"1"));
        assert_ne!(id, MessageId::derived("key", b"1"));
        assert!(id.is_derived());
        assert_eq!((id.issue(), id.part()), (None, 0));
    }

    #[test]
    fn a_door_never_repeats_itself() {
        let mut door = DoorSequence::default();
        let now = UnixMillis(1);
        assert_ne!(door.issue(now), door.issue(now));
    }
}
