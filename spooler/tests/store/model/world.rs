//! Several processes that do anything to one store, and look at it from anywhere.

use pombo_proto::{
    control::QueueState,
    ids::{DoorSequence, Incarnation, MessageId},
    ledger::{Account, Balance},
    message::Priority,
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::store::{
    Change, ClaimRequest, DoorReport, RowData, Store as _, Tally, Write, Written,
};

use super::{Opened, Shared, contract::Model};
use crate::support::*;

const IDS: usize = 24;

/// Few ids, days, lanes and incarnations, so that everything meets everything.
pub struct World {
    random: fastrand::Rng,
    stores: Vec<Opened>,
    pub model: Model,
    ids: Vec<MessageId>,
    door: DoorSequence,
    incarnations: Vec<Incarnation>,
    claims: Vec<(Tenancy, Incarnation)>,
    last: Option<Write>,
    now: UnixMillis,
    serial: u64,
}

impl World {
    pub fn new(file: &Shared, seed: u64) -> Self {
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            stores: (0..3).map(|_| file.open()).collect(),
            model: Model::default(),
            ids: Vec::new(),
            door: DoorSequence::default(),
            incarnations: (0..3).map(|_| Incarnation::random()).collect(),
            claims: Vec::new(),
            last: None,
            now: NOW,
            serial: 0,
        };
        world.ids = (0..IDS).map(|_| world.fresh_id()).collect();
        world
    }

    /// Derived, or issued today or on one of the days before.
    fn fresh_id(&mut self) -> MessageId {
        self.serial += 1;
        match self.random.u64(..4) {
            0 => MessageId::derived("test", &self.serial.to_be_bytes()),
            days => self.door.issue(UnixMillis(self.now.0 - days * DAY)),
        }
    }

    /// One of those in play. What has finished, and sometimes another, makes room for a new one.
    pub fn id(&mut self) -> MessageId {
        let place = self.random.usize(..IDS);
        let row = self.model.rows.get(&self.ids[place]);
        let finished = row.is_some_and(|row| row.data.state == QueueState::Finished);
        if self.random.u8(..16) < if finished { 8 } else { 1 } {
            self.ids[place] = self.fresh_id();
        }
        self.ids[place]
    }

    /// One that is claimed, or was.
    fn claimed_id(&mut self) -> Option<MessageId> {
        let place = self.random.usize(..self.claims.len().max(1));
        Some(self.claims.get(place)?.0.id)
    }

    fn incarnation(&mut self) -> Incarnation {
        self.incarnations[self.random.usize(..self.incarnations.len())]
    }

    fn lane(&mut self) -> (String, Option<String>) {
        let transport = ["smtp", "maildir"][self.random.usize(..2)].to_owned();
        let destination = ["a.example", "b.example"][self.random.usize(..2)].to_owned();
        (transport, self.random.bool().then_some(destination))
    }

    pub fn data(&mut self) -> RowData {
        use QueueState::{Dead, Finished, Held, Waiting};
        let state = [Waiting, Waiting, Waiting, Finished, Held, Dead][self.random.usize(..6)];
        let due = UnixMillis(self.now.0 + self.random.u64(..3_000))
            .before(std::time::Duration::from_millis(1_000));
        let (transport, destination) = self.lane();
        self.serial += 1;
        RowData {
            state,
            due: (state == Waiting).then_some(due),
            wake: (state == Waiting && self.random.bool())
                .then(|| due.after(std::time::Duration::from_millis(self.random.u64(..3_000)))),
            reason: self.serial.to_string(),
            transport: self.random.bool().then_some(transport),
            destination,
            priority: Priority::ALL[self.random.usize(..3)],
            doubt: self.random.bool(),
            unsure_since: UnixMillis(self.random.u64(..3)),
            in_doubt: self.random.u32(..3),
            deaths: self.random.u32(..3),
            message: vec![self.random.u8(..); self.random.usize(..9_000)].into(),
            progress: self.serial.to_be_bytes().to_vec(),
            tally: Tally {
                recipients: std::array::from_fn(|_| self.random.u64(..3)).into(),
                is_report: false,
            },
        }
    }

    fn a_write(&mut self) -> Write {
        let row = self.data();
        match self.random.u32(..11) {
            10 if !self.claims.is_empty() => {
                let claim = self.random.usize(..self.claims.len());
                let (tenancy, holder) = self.claims[claim];
                Write::Note {
                    tenancy,
                    holder,
                    note: row.progress,
                }
            }
            0..=2 => Write::Move {
                id: self.id(),
                row: RowData {
                    state: QueueState::Waiting,
                    ..row
                },
            },
            3 if self.last.is_some() => self.last.clone().unwrap(),
            4..=6 if !self.claims.is_empty() => {
                let claim = self.random.usize(..self.claims.len());
                let (tenancy, holder) = self.claims.swap_remove(claim);
                let report = self.data();
                let report = (self.id(), report);
                Write::Record {
                    tenancy,
                    holder,
                    row,
                    reports: if self.random.u8(..4) == 0 {
                        vec![report]
                    } else {
                        Vec::new()
                    },
                }
            }
            7 => record(self.id(), self.random.u32(1..4), self.incarnation(), row),
            _ => record(self.id(), 0, self.incarnation(), row),
        }
    }

    pub fn step(&mut self) {
        self.now = UnixMillis(self.now.0 + self.random.u64(..200));
        if self.random.u8(..100) == 0 {
            self.now = UnixMillis(self.now.0 + DAY / 2);
        }
        let now = self.now;
        let process = self.random.usize(..self.stores.len());
        match self.random.u32(..100) {
            0..=39 => {
                let writes: Vec<Write> = (0..self.random.usize(1..5))
                    .map(|_| self.a_write())
                    .collect();
                self.last = writes.last().cloned();
                let expected: Vec<Written> = writes
                    .iter()
                    .map(|write| self.model.write(now, write))
                    .collect();
                assert_eq!(self.stores[process].commit(now, &writes).unwrap(), expected);
            }
            40..=64 => {
                let request = ClaimRequest {
                    holder: self.incarnation(),
                    now,
                    limit: self.random.usize(1..6),
                    bytes: usize::MAX,
                    excluded: (0..self.random.usize(..3)).map(|_| self.lane()).collect(),
                    asks: String::new(),
                };
                let claims = self.stores[process].claim(&request).unwrap();
                self.model.claim(&request, &claims);
                let tenancies = claims.iter().map(|claim| tenancy(claim.id, claim.fence.0));
                self.claims
                    .extend(tenancies.map(|tenancy| (tenancy, request.holder)));
            }
            65..=84 => {
                use Change::{Cancel, Drop, Hold, Release, Requeue, Retry};
                let known = self.claimed_id().filter(|_| self.random.bool());
                let id = known.unwrap_or_else(|| self.id());
                let change = [Cancel, Drop, Hold, Release, Requeue, Retry][self.random.usize(..6)];
                let expected = self.model.change(now, id, change);
                assert_eq!(
                    self.stores[process].change(now, id, change).unwrap(),
                    expected
                );
            }
            85..=90 => self.renew(process),
            91..=93 => self.end(process),
            94..=95 => self.ask_recorded(process),
            96 => self.report_door(process),
            _ => {
                let before = now.day() + 1 - self.random.u32(..4);
                prune(&mut self.stores[process], before);
                self.model.prune(before);
            }
        }
    }

    fn renew(&mut self, process: usize) {
        let (who, first) = (self.incarnation(), self.random.u8(..8) > 0);
        let listed = self.model.members.contains_key(&who);
        let lives = self.stores[process].renew(who, "test", first, &[]).unwrap();
        assert_eq!(lives, first || listed);
        if lives {
            *self.model.members.entry(who).or_default() += 1;
        }
    }

    pub fn end(&mut self, process: usize) {
        let who = self.incarnation();
        let standing = self.model.members.get(&who).copied();
        let seen = self.random.bool().then(|| self.random.u64(1..6));
        let ended = self.stores[process]
            .end_member(self.now, who, seen)
            .unwrap();
        let expected = standing.is_some() && (seen.is_none() || seen == standing);
        assert_eq!(ended, expected);
        if ended {
            self.model.end(self.now, who, seen.is_some());
        }
    }

    /// Sometimes less than it has said before, and sometimes a lie: numbers void that are in the store.
    fn report_door(&mut self, process: usize) {
        let issued = self.serial;
        let confirmed = self.random.u64(..=issued);
        let first = self.random.u64(1..=issued.max(1));
        let voided = vec![(first, first + self.random.u64(..40))];
        let books = self
            .model
            .books
            .entry(Account::Door(self.door.door()))
            .or_default();
        for number in (first..=voided[0].1).filter(|number| *number <= confirmed) {
            if !books.entered.contains(&number) {
                books.void.insert(number);
            }
        }
        books.confirmed = books.confirmed.max(confirmed);
        books.changed = self.now;
        let report = DoorReport {
            door: self.door.door(),
            name: String::new(),
            confirmed,
            voided,
        };
        self.stores[process]
            .record_doors(self.now, &[report])
            .unwrap();
    }

    fn ask_recorded(&mut self, process: usize) {
        let asked: Vec<Tenancy> = (0..10)
            .map(|_| tenancy(self.id(), self.random.u32(..4)))
            .collect();
        let is_recorded = |asked: &&Tenancy| {
            self.model.rows.get(&asked.id).is_some_and(|row| {
                let recorded = row.recorded.is_some_and(|(at, .., doubt)| {
                    at > asked.fence.0 || at == asked.fence.0 && !doubt
                });
                recorded || row.data.state == QueueState::Finished
            })
        };
        let expected: Vec<Tenancy> = asked.iter().filter(is_recorded).copied().collect();
        assert_eq!(self.stores[process].recorded(&asked).unwrap(), expected);
    }

    /// Everything that can be seen, seen from any process.
    pub fn check(&mut self) {
        let process = self.random.usize(..self.stores.len());
        let store = &mut self.stores[process];
        assert_eq!(store.counts().unwrap(), self.model.counts());
        let books = self.model.books.iter();
        let mut books: Vec<Balance> = books.map(|(of, books)| books.balance(*of)).collect();
        let mut kept = store.ledger().unwrap();
        books.sort_by_key(|it| it.account);
        kept.sort_by_key(|it| it.account);
        assert_eq!(kept, books);
        let next = self.model.rows.values();
        let next = next
            .filter(|row| row.data.state == QueueState::Waiting)
            .filter_map(|row| row.data.due)
            .min();
        assert_eq!(store.next_due().unwrap(), next);
        for id in &self.ids {
            let row = store.get(*id).unwrap();
            let expected = self.model.rows.get(id);
            assert_eq!(row.is_some(), expected.is_some(), "{id}");
            let (Some(row), Some(expected)) = (row, expected) else {
                continue;
            };
            assert_eq!(row.data.state, expected.data.state);
            assert_eq!(row.data.due, expected.data.due);
            assert_eq!(row.data.wake, expected.data.wake);
            assert_eq!(row.data.doubt, expected.data.doubt);
            assert_eq!(row.data.unsure_since, expected.data.unsure_since);
            assert_eq!(row.data.in_doubt, expected.data.in_doubt);
            assert_eq!(row.data.deaths, expected.data.deaths);
            assert_eq!(row.data.transport, expected.data.transport);
            assert_eq!(row.data.destination, expected.data.destination);
            assert_eq!(row.data.message, expected.data.message);
            assert_eq!(row.data.progress, expected.data.progress);
            assert_eq!((row.fence.0, row.holder), (expected.fence, expected.holder));
            assert_eq!(row.cancelled, expected.cancelled);
            assert_eq!(row.changed, expected.changed);
        }
    }
}
