//! What a commit, or a time from before the ledger, means for the accounts: gathered here, entered by each store in its own way.

use std::collections::{BTreeMap, BTreeSet};

use pombo_proto::{
    control::QueueState,
    frame,
    ids::MessageId,
    ledger::{Account, DoorNumber, Outcomes},
    time::UnixMillis,
};

use super::{DoorReport, RowData, pages::NUMBERS, stored::DAY_MS};
use crate::progress::Progress;

/// Accounts without numbers, where doors have theirs.
const DERIVED: i64 = -1;
const REPORTS: i64 = -2;
/// Void numbers taken from one report: a door would need a thousand refused publishes between two rows for more than a few.
const VOID_MAX: u64 = 1_000_000;

/// An account as it is stored.
pub(super) fn stored_account(account: Account) -> i64 {
    match account {
        Account::Door(door) => i64::from(door),
        Account::Derived => DERIVED,
        Account::Reports => REPORTS,
    }
}

/// Back from [`stored_account`].
pub(super) fn account_from(stored: i64) -> Account {
    match (stored, u32::try_from(stored)) {
        (_, Ok(door)) => Account::Door(door),
        (REPORTS, _) => Account::Reports,
        _ => Account::Derived,
    }
}

/// A count as it is stored.
pub(super) fn stored_count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What is to be entered, by stored account.
#[derive(Debug, Default)]
pub(super) struct Tallies(pub BTreeMap<i64, Entry>);

/// What is to be entered into one account.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Rows that have come into the store.
    pub rows: u64,
    /// Messages that have finished.
    pub messages: Outcomes,
    /// Their recipients.
    pub recipients: Outcomes,
    /// The numbers of the rows that have come in.
    pub numbers: Vec<u64>,
}

impl Entry {
    fn finished(&mut self, recipients: Outcomes) {
        self.messages += recipients.as_one_message();
        self.recipients += recipients;
    }
}

impl Tallies {
    /// A row that was inserted, waiting or finished.
    pub fn entered(&mut self, id: MessageId, row: &RowData, is_report: bool) {
        let recipients = (row.state == QueueState::Finished).then_some(row.tally.recipients);
        self.new_row(id, is_report, recipients);
    }

    /// A row that was there has finished.
    pub fn finished(&mut self, id: MessageId, row: &RowData) {
        self.entry(id, row.tally.is_report)
            .finished(row.tally.recipients);
    }

    /// A row from before there was a ledger, by its head and its progress.
    pub fn found(&mut self, id: MessageId, is_finished: bool, head: &[u8], progress: &[u8]) {
        let is_report = id.is_derived()
            && frame::decode_head(head).is_ok_and(|envelope| envelope.class.is_report());
        let recipients = is_finished.then(|| {
            frame::decode_all::<Progress>(progress)
                .map(|progress| progress.outcomes())
                .unwrap_or_default()
        });
        self.new_row(id, is_report, recipients);
    }

    fn new_row(&mut self, id: MessageId, is_report: bool, finished: Option<Outcomes>) {
        let entry = self.entry(id, is_report);
        entry.rows += 1;
        entry
            .numbers
            .extend(DoorNumber::of(id).map(|it| it.sequence));
        if let Some(recipients) = finished {
            entry.finished(recipients);
        }
    }

    fn entry(&mut self, id: MessageId, is_report: bool) -> &mut Entry {
        let account = Account::of(id, is_report);
        self.0.entry(stored_account(account)).or_default()
    }
}

/// A report's void numbers that count: up to its confirmed one.
pub(super) fn void_numbers(report: &DoorReport) -> Vec<u64> {
    let (mut numbers, mut room) = (Vec::new(), VOID_MAX);
    for (first, last) in &report.voided {
        let (first, last) = ((*first).max(1), (*last).min(report.confirmed));
        let last = last.min(first.saturating_add(room).saturating_sub(1));
        room -= (last + 1).saturating_sub(first).min(room);
        numbers.extend(first..=last);
    }
    numbers
}

/// What one door's numbers were before the ledger: its history may have been pruned, so what is below its oldest row counts as
/// void. How many pages are complete by that, and which numbers of the next one are void, too.
pub(super) fn before_history(oldest: u64) -> (u64, std::ops::Range<u64>) {
    let complete = oldest.saturating_sub(1) / NUMBERS;
    (complete, complete * NUMBERS + 1..oldest)
}

/// Doors into whose accounts nothing was entered since then are forgotten where history before that day is: one that is alive
/// reports more often.
pub(super) fn forgotten_before(day: u32) -> UnixMillis {
    const DAYS: u32 = 2;
    UnixMillis(u64::from(day.saturating_sub(DAYS)) * DAY_MS.unsigned_abs())
}

/// Numbers that a person gives up, by door.
pub(super) fn by_door(numbers: &[DoorNumber]) -> BTreeMap<u32, BTreeSet<u64>> {
    let mut by_door: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    for number in numbers {
        by_door
            .entry(number.door)
            .or_default()
            .insert(number.sequence);
    }
    by_door
}
