//! The contract, written as simply as possible: rows in a map, and what each call does to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pombo_proto::{
    control::QueueState,
    ids::{Fence, Incarnation, MessageId},
    ledger::{Account, Balance, Outcomes},
    message::Priority,
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::store::{Change, ClaimRequest, Claimed, Counts, Mark, RowData, Write, Written};

#[derive(Clone, Debug)]
pub struct Expected {
    pub data: RowData,
    pub fence: u32,
    pub holder: Option<Incarnation>,
    /// By whom, where to, and whether in doubt.
    pub recorded: Option<(u32, Incarnation, QueueState, bool)>,
    pub cancelled: bool,
    /// The cancel came while the row was claimed.
    pub cancel_unseen: bool,
    pub hold: bool,
    pub note: Option<Vec<u8>>,
    pub changed: UnixMillis,
}

impl Expected {
    pub fn new(now: UnixMillis, data: &RowData, by: Option<Incarnation>) -> Self {
        Self {
            data: data.clone(),
            fence: 0,
            holder: None,
            recorded: by.map(|by| (0, by, data.state, data.doubt)),
            cancelled: false,
            cancel_unseen: false,
            hold: false,
            note: None,
            changed: now,
        }
    }
}

/// An account, by sets of numbers.
#[derive(Default)]
pub struct Books {
    pub rows: u64,
    pub messages: Outcomes,
    pub recipients: Outcomes,
    pub entered: BTreeSet<u64>,
    pub void: BTreeSet<u64>,
    pub confirmed: u64,
    pub changed: UnixMillis,
}

impl Books {
    pub fn balance(&self, account: Account) -> Balance {
        let known = |number: &u64| self.entered.contains(number) || self.void.contains(number);
        let beyond = self.entered.range(self.confirmed + 1..);
        Balance {
            account,
            name: String::new(),
            confirmed: self.confirmed,
            voided: self.void.len() as u64,
            beyond: beyond.count() as u64,
            rows: self.rows,
            holes: (1..=self.confirmed).filter(|it| !known(it)).count() as u64,
            messages: self.messages,
            recipients: self.recipients,
            changed: self.changed,
        }
    }
}

#[derive(Default)]
pub struct Model {
    pub books: BTreeMap<Account, Books>,
    pub rows: BTreeMap<MessageId, Expected>,
    pub members: HashMap<Incarnation, u64>,
    pub seen: Seen,
}

/// How often what matters has happened: a model that meets nothing proves nothing.
#[derive(Debug, Default)]
pub struct Seen {
    pub claimed: u32,
    pub recorded: u32,
    /// Claims that left the doubt that they were claimed with.
    pub given_back: u32,
    pub repeated: u32,
    pub lost: u32,
    pub held_by_mark: u32,
    pub due_by_cancel: u32,
    pub taken_over: u32,
    pub noted: u32,
    pub notes_kept: u32,
    pub pruned: u32,
}

impl Model {
    pub fn write(&mut self, now: UnixMillis, write: &Write) -> Written {
        match write {
            Write::Move { id, row } => self.insert(now, *id, row, None, false),
            Write::Note {
                tenancy,
                holder,
                note,
            } => {
                let standing = self.rows.get_mut(&tenancy.id);
                let held =
                    |it: &&mut Expected| it.holder == Some(*holder) && it.fence == tenancy.fence.0;
                let Some(standing) = standing.filter(held) else {
                    return Written::Lost;
                };
                standing.note = Some(note.clone());
                self.seen.noted += 1;
                Written::Won
            }
            Write::Record {
                tenancy,
                holder,
                row,
                reports,
            } => {
                let written = self.record(now, *tenancy, *holder, row);
                if written == Some(Written::Won) {
                    self.seen.recorded += 1;
                    for (id, report) in reports {
                        self.insert(now, *id, report, None, true);
                    }
                }
                let again = (tenancy.fence.0, *holder, row.state, row.doubt);
                let before = self
                    .rows
                    .get(&tenancy.id)
                    .is_some_and(|standing| standing.recorded == Some(again));
                if written.is_none() {
                    self.seen.repeated += u32::from(before);
                    self.seen.lost += u32::from(!before);
                }
                written.unwrap_or(if before { Written::Won } else { Written::Lost })
            }
        }
    }

    pub fn insert(
        &mut self,
        now: UnixMillis,
        id: MessageId,
        row: &RowData,
        by: Option<Incarnation>,
        is_report: bool,
    ) -> Written {
        if self.rows.contains_key(&id) {
            return Written::Lost;
        }
        let books = self.books.entry(Account::of(id, is_report)).or_default();
        books.rows += 1;
        books.entered.extend(id.issue().map(|it| it.sequence));
        books.changed = now;
        if row.state == QueueState::Finished {
            self.finish(now, Account::of(id, is_report), row);
        }
        self.rows.insert(id, Expected::new(now, row, by));
        Written::Won
    }

    fn finish(&mut self, now: UnixMillis, account: Account, row: &RowData) {
        let books = self.books.entry(account).or_default();
        books.messages += row.tally.recipients.as_one_message();
        books.recipients += row.tally.recipients;
        books.changed = now;
    }

    /// `None`: it does not apply.
    pub fn record(
        &mut self,
        now: UnixMillis,
        tenancy: Tenancy,
        holder: Incarnation,
        row: &RowData,
    ) -> Option<Written> {
        if tenancy.fence == Fence(0) {
            let written = self.insert(now, tenancy.id, row, Some(holder), false);
            return (written == Written::Won).then_some(written);
        }
        let standing = self.rows.get_mut(&tenancy.id)?;
        if standing.holder != Some(holder) || standing.fence != tenancy.fence.0 {
            return None;
        }
        standing.holder = None;
        let before = &standing.data;
        let given_back = row.doubt && before.doubt && row.unsure_since == before.unsure_since;
        if !given_back {
            standing.recorded = Some((tenancy.fence.0, holder, row.state, row.doubt));
        }
        self.seen.given_back += u32::from(given_back);
        standing.data = row.clone();
        if !row.doubt {
            standing.note = None;
        }
        standing.changed = now;
        if row.state != QueueState::Finished {
            if standing.cancel_unseen {
                standing.data.state = QueueState::Waiting;
                standing.data.due = Some(now);
                standing.data.wake = Some(now);
                self.seen.due_by_cancel += 1;
            } else if standing.hold && row.state == QueueState::Waiting {
                standing.data.state = QueueState::Held;
                standing.data.due = None;
                standing.data.wake = None;
                self.seen.held_by_mark += 1;
            }
            standing.cancel_unseen = false;
        }
        standing.hold = false;
        if row.state == QueueState::Finished {
            self.finish(now, Account::of(tenancy.id, false), row);
        }
        Some(Written::Won)
    }

    fn claimable(&self, request: &ClaimRequest) -> BTreeSet<(Priority, UnixMillis, MessageId)> {
        let is_excluded = |row: &RowData| {
            request.excluded.iter().any(|(transport, destination)| {
                row.transport.as_ref() == Some(transport)
                    && (destination.is_none() || row.destination == *destination)
            })
        };
        self.rows
            .iter()
            .filter(|(_, row)| {
                let woken = row.data.wake.is_some_and(|wake| wake <= request.now);
                row.data.state == QueueState::Waiting && (woken || !is_excluded(&row.data))
            })
            .filter_map(|(id, row)| Some((row.data.priority, row.data.due?, *id)))
            .filter(|(_, due, _)| *due <= request.now)
            .collect()
    }

    pub fn claim(&mut self, request: &ClaimRequest, claims: &[Claimed]) {
        if !self.members.contains_key(&request.holder) {
            assert!(claims.is_empty());
            return;
        }
        let order = self.claimable(request);
        let keys = order.iter().take(request.limit).map(|key| (key.0, key.1));
        let key = |claim: &Claimed| {
            let row = &self.rows[&claim.id].data;
            (row.priority, row.due.unwrap())
        };
        assert!(keys.eq(claims.iter().map(key)));
        for claim in claims {
            let row = self.rows.get_mut(&claim.id).unwrap();
            assert_eq!(row.data.state, QueueState::Waiting);
            row.fence += 1;
            self.seen.claimed += 1;
            row.holder = Some(request.holder);
            row.data.state = QueueState::Moving;
            row.data.due = None;
            row.data.wake = None;
            row.changed = request.now;
            if !row.data.doubt {
                row.data.unsure_since = request.now;
            }
            assert_eq!(claim.unsure_since, row.data.unsure_since);
            assert_eq!(claim.fence.0, row.fence);
            assert_eq!(
                (claim.doubt, claim.mark != Mark::None),
                (row.data.doubt, row.cancelled)
            );
            assert_eq!(claim.deaths, row.data.deaths);
            assert_eq!(claim.note, row.note);
            self.seen.notes_kept += u32::from(row.note.is_some());
            assert_eq!(claim.message, row.data.message);
            assert_eq!(claim.progress, row.data.progress);
        }
    }

    pub fn change(&mut self, now: UnixMillis, id: MessageId, change: Change) -> bool {
        use QueueState::{Dead, Held, Moving, Waiting};
        let Some(row) = self.rows.get_mut(&id) else {
            return false;
        };
        let state = row.data.state;
        let applies = match change {
            Change::Retry => state == Waiting,
            Change::Hold => state == Waiting || state == Moving,
            Change::Release => state == Held || (state == Moving && row.hold),
            Change::Requeue => state == Dead,
            Change::Drop => state == Dead || state == Held,
            Change::Cancel => state != QueueState::Finished,
        };
        if !applies {
            return false;
        }
        row.changed = now;
        if state == Moving {
            match change {
                Change::Hold => row.hold = true,
                Change::Release => row.hold = false,
                _ => {
                    row.cancel_unseen |= !row.cancelled;
                    row.cancelled = true;
                }
            }
            return true;
        }
        row.cancelled |= matches!(change, Change::Cancel | Change::Drop);
        if change == Change::Requeue {
            row.data.deaths = 0;
            row.note = None;
        }
        let held = change == Change::Hold;
        row.data.state = if held { Held } else { Waiting };
        row.data.due = (!held).then_some(now);
        row.data.wake = row.data.due;
        true
    }

    pub fn end(&mut self, now: UnixMillis, who: Incarnation, died: bool) {
        self.members.remove(&who);
        for row in self.rows.values_mut().filter(|row| row.holder == Some(who)) {
            let held = row.hold && !row.cancel_unseen;
            row.data.state = if held {
                QueueState::Held
            } else {
                QueueState::Waiting
            };
            row.data.due = (!held).then_some(now);
            row.data.wake = row.data.due;
            row.data.doubt = true;
            row.data.deaths += u32::from(died);
            row.holder = None;
            row.hold = false;
            row.cancel_unseen = false;
            row.changed = now;
            self.seen.taken_over += 1;
        }
    }

    pub fn prune(&mut self, before: u32) {
        let is_finished = |row: &Expected| row.data.state == QueueState::Finished;
        let unfinished: BTreeSet<u32> = self
            .rows
            .iter()
            .filter(|(_, row)| !is_finished(row))
            .map(|(id, _)| id.part())
            .collect();
        let before_pruning = self.rows.len();
        self.rows.retain(|id, row| match id.part() {
            0 => !is_finished(row) || row.changed.day() >= before,
            part => part >= before || unfinished.contains(&part) || row.changed.day() >= before,
        });
        self.seen.pruned += (before_pruning - self.rows.len()) as u32;
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for row in self.rows.values() {
            let unfinished = row.data.state != QueueState::Finished;
            counts.in_doubt += u64::from(unfinished && row.data.in_doubt > 0);
            match row.data.state {
                QueueState::Waiting => counts.waiting += 1,
                QueueState::Moving => counts.claimed += 1,
                QueueState::Held => counts.held += 1,
                QueueState::Dead => counts.dead += 1,
                QueueState::Finished => {}
            }
        }
        counts
    }
}
