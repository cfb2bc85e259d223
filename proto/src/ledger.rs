//! The ledger's words: accounts, what became of messages and recipients, and an account's balance.
//!
//! **Messages close the equation**: accepted = delivered + failed + expired + cancelled + waiting + moving, where a finished message
//! counts once, under the worst that happened to any of its recipients (failed before expired before cancelled before
//! delivered). **Recipients** are counted beside it: a message for a hundred of them, one refused, is one failed message, 99
//! delivered recipients and one failed.
//!
//! A door's account stands on its numbers: what is accepted follows from its confirmed sequence, what is in the store from the
//! rows, and the difference moves. Messages with derived ids have no number, so nothing says how many there should be: their
//! account counts rows as they come in, and so does that of reports, which are written into the store and never move
//! through the broker before.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ids::MessageId, time::UnixMillis};

/// Whose messages are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Account {
    /// One life of a door ([`crate::ids::DoorSequence`]).
    Door(u32),
    /// Ids that follow from their source.
    Derived,
    /// What the spoolers write about messages.
    Reports,
}

impl Account {
    /// Where a message belongs. Reports have derived ids too, so it must be said that it is one.
    pub fn of(id: MessageId, is_report: bool) -> Self {
        match id.issue() {
            Some(issue) => Self::Door(issue.door),
            None if is_report => Self::Reports,
            None => Self::Derived,
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Door(door) => write!(f, "{door:08x}"),
            Self::Derived => f.write_str("derived"),
            Self::Reports => f.write_str("reports"),
        }
    }
}

/// One number of one door: a message that can be named although nobody has it. Written `door:sequence`, the door in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DoorNumber {
    /// Which life of which door.
    pub door: u32,
    /// Its running number, from 1.
    pub sequence: u64,
}

impl DoorNumber {
    /// What a door-issued id says.
    pub fn of(id: MessageId) -> Option<Self> {
        id.issue().map(|issue| Self {
            door: issue.door,
            sequence: issue.sequence,
        })
    }
}

impl fmt::Display for DoorNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}:{}", self.door, self.sequence)
    }
}

impl std::str::FromStr for DoorNumber {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (door, sequence) = text.split_once(':')?;
            Some(Self {
                door: u32::from_str_radix(door, 16).ok()?,
                sequence: sequence.parse().ok().filter(|it| *it > 0)?,
            })
        };
        parse().ok_or("a door and a number, as in 8f3a21bc:1042")
    }
}

/// How many, by outcome: messages or recipients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// Sent, or delivered.
    pub delivered: u64,
    /// Never will be.
    pub failed: u64,
    /// Not in time.
    pub expired: u64,
    /// Before they were sent.
    pub cancelled: u64,
}

impl Outcomes {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.delivered + self.failed + self.expired + self.cancelled
    }

    /// One message with these recipients: the worst of them.
    pub fn as_one_message(&self) -> Self {
        let mut one = Self::default();
        *match (self.failed, self.expired, self.cancelled) {
            (1.., ..) => &mut one.failed,
            (_, 1.., _) => &mut one.expired,
            (_, _, 1..) => &mut one.cancelled,
            _ => &mut one.delivered,
        } = 1;
        one
    }

    /// In the order of their declaration; for the store.
    pub fn as_array(&self) -> [u64; 4] {
        [self.delivered, self.failed, self.expired, self.cancelled]
    }
}

impl From<[u64; 4]> for Outcomes {
    fn from([delivered, failed, expired, cancelled]: [u64; 4]) -> Self {
        Self {
            delivered,
            failed,
            expired,
            cancelled,
        }
    }
}

impl std::ops::AddAssign for Outcomes {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.failed += other.failed;
        self.expired += other.expired;
        self.cancelled += other.cancelled;
    }
}

/// One account as the store has it, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Whose.
    pub account: Account,
    /// The door's transport or spooler, for people; empty if nobody has said it yet.
    pub name: String,
    /// The highest number up to which the door has said that every one is confirmed or void. 0 without numbers.
    pub confirmed: u64,
    /// Numbers up to there that never became messages, as their door said, or that a person has written off.
    pub voided: u64,
    /// Messages in the store whose number is beyond `confirmed`: the door's word comes later than its messages, and if it
    /// was killed, never. What of its last second is not in the store is not known to have been accepted.
    pub beyond: u64,
    /// Messages that came into the store, whether they wait or have finished.
    pub rows: u64,
    /// Numbers up to `confirmed` that are neither void nor in the store.
    pub holes: u64,
    /// Finished messages.
    pub messages: Outcomes,
    /// Recipients of finished messages.
    pub recipients: Outcomes,
    /// When something was last entered into it.
    pub changed: UnixMillis,
}

impl Balance {
    /// What was accepted: known from the door's word alone, where it has given it.
    pub fn accepted(&self) -> u64 {
        match self.account {
            Account::Door(_) => (self.confirmed + self.beyond).saturating_sub(self.voided),
            Account::Derived | Account::Reports => self.rows,
        }
    }

    /// What waits in the store, in whatever state.
    pub fn waiting(&self) -> u64 {
        self.rows.saturating_sub(self.messages.sum())
    }

    /// What is accepted and has not come into the store: it must be in the broker, or with a spooler that has leased it.
    pub fn moving(&self) -> u64 {
        self.accepted().saturating_sub(self.rows)
    }

    /// Whether the books agree with themselves: counted by number and counted by row, as much is missing. Where they do not, a
    /// number that its door called void is in the store, or somebody has changed the store by hand.
    pub fn is_sound(&self) -> bool {
        let by_count = i128::from(self.confirmed) + i128::from(self.beyond)
            - i128::from(self.voided)
            - i128::from(self.rows);
        let has_numbers = matches!(self.account, Account::Door(_));
        self.messages.sum() <= self.rows && (!has_numbers || by_count == i128::from(self.holes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_under_the_worst_that_happened_to_it() {
        let message = |all: [u64; 4]| Outcomes::from(all).as_one_message().as_array();
        assert_eq!(message([99, 1, 0, 0]), [0, 1, 0, 0]);
        assert_eq!(message([1, 0, 2, 3]), [0, 0, 1, 0]);
        assert_eq!(message([1, 0, 0, 3]), [0, 0, 0, 1]);
        assert_eq!(message([3, 0, 0, 0]), [1, 0, 0, 0]);
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let number = DoorNumber {
            door: 0x8f,
            sequence: 1042,
        };
        assert_eq!(number.to_string(), "0000008f:1042");
        assert_eq!(number.to_string().parse(), Ok(number));
        for text in ["", "8f", "8f:", ":1", "8f:0", "xyz:1", "8f:1:2"] {
            assert!(text.parse::<DoorNumber>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_void_number_that_is_in_the_store_makes_the_books_unsound() {
        let mut balance = Balance {
            account: Account::Door(1),
            name: String::new(),
            confirmed: 10,
            voided: 2,
            beyond: 1,
            rows: 6,
            holes: 3,
            messages: [4, 0, 0, 0].into(),
            recipients: Outcomes::default(),
            changed: UnixMillis(0),
        };
        assert!(balance.is_sound());
        assert_eq!(
            (balance.accepted(), balance.waiting(), balance.moving()),
            (9, 2, 3)
        );
        balance.rows += 1;
        assert!(!balance.is_sound());
    }
}
