//! Thousands of random steps by several processes, against the contract written as simply as possible.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pombo_proto::{
    control::QueueState,
    ids::{DoorSequence, Fence, Incarnation, MessageId},
    message::Priority,
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::store::{
    Change, ClaimRequest, Claimed, Counts, Mark, RowData, Sqlite, Store, Write, Written,
};

use crate::support::*;

#[derive(Clone, Debug)]
struct Expected {
    data: RowData,
    fence: u32,
    holder: Option<Incarnation>,
    /// By whom, where to, and whether in doubt.
    recorded: Option<(u32, Incarnation, QueueState, bool)>,
    cancelled: bool,
    /// The cancel came while the row was claimed.
    cancel_unseen: bool,
    hold: bool,
    changed: UnixMillis,
}

impl Expected {
    fn new(now: UnixMillis, data: &RowData, by: Option<Incarnation>) -> Self {
        Self {
            data: data.clone(),
            fence: 0,
            holder: None,
            recorded: by.map(|by| (0, by, data.state, data.doubt)),
            cancelled: false,
            cancel_unseen: false,
            hold: false,
            changed: now,
        }
    }
}

#[derive(Default)]
struct Model {
    rows: BTreeMap<MessageId, Expected>,
    members: HashMap<Incarnation, u64>,
    seen: Seen,
}

/// How often what matters has happened: a model that meets nothing proves nothing.
#[derive(Debug, Default)]
struct Seen {
    claimed: u32,
    recorded: u32,
    repeated: u32,
    lost: u32,
    held_by_mark: u32,
    due_by_cancel: u32,
    taken_over: u32,
    pruned: u32,
}

impl Model {
    fn write(&mut self, now: UnixMillis, write: &Write) -> Written {
        match write {
            Write::Move { id, row } => self.insert(now, *id, row, None),
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
                        self.insert(now, *id, report, None);
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

    fn insert(
        &mut self,
        now: UnixMillis,
        id: MessageId,
        row: &RowData,
        by: Option<Incarnation>,
    ) -> Written {
        if self.rows.contains_key(&id) {
            return Written::Lost;
        }
        self.rows.insert(id, Expected::new(now, row, by));
        Written::Won
    }

    /// `None`: it does not apply.
    fn record(
        &mut self,
        now: UnixMillis,
        tenancy: Tenancy,
        holder: Incarnation,
        row: &RowData,
    ) -> Option<Written> {
        if tenancy.fence == Fence(0) {
            let written = self.insert(now, tenancy.id, row, Some(holder));
            return (written == Written::Won).then_some(written);
        }
        let standing = self.rows.get_mut(&tenancy.id)?;
        if standing.holder != Some(holder) || standing.fence != tenancy.fence.0 {
            return None;
        }
        standing.holder = None;
        standing.recorded = Some((tenancy.fence.0, holder, row.state, row.doubt));
        standing.data = row.clone();
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

    fn claim(&mut self, request: &ClaimRequest, claims: &[Claimed]) {
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
            assert_eq!(claim.fence.0, row.fence);
            assert_eq!(
                (claim.doubt, claim.mark != Mark::None),
                (row.data.doubt, row.cancelled)
            );
            assert_eq!(claim.message, row.data.message);
            assert_eq!(claim.progress, row.data.progress);
        }
    }

    fn change(&mut self, now: UnixMillis, id: MessageId, change: Change) -> bool {
        use QueueState::{Dead, Held, Moving, Waiting};
        let Some(row) = self.rows.get_mut(&id) else {
            return false;
        };
        let state = row.data.state;
        let applies = match change {
            Change::Retry => state == Waiting,
            Change::Hold => state == Waiting || state == Moving,
            Change::Release => state == Held || (state == Moving && row.hold),
            Change::Requeue | Change::Drop => state == Dead,
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
        let held = change == Change::Hold;
        row.data.state = if held { Held } else { Waiting };
        row.data.due = (!held).then_some(now);
        row.data.wake = row.data.due;
        true
    }

    fn end(&mut self, now: UnixMillis, who: Incarnation) {
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
            row.holder = None;
            row.hold = false;
            row.cancel_unseen = false;
            row.changed = now;
            self.seen.taken_over += 1;
        }
    }

    fn prune(&mut self, before: u32) {
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
            part => part >= before || unfinished.contains(&part),
        });
        self.seen.pruned += (before_pruning - self.rows.len()) as u32;
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for row in self.rows.values() {
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

const IDS: usize = 24;

/// Few ids, days, lanes and incarnations, so that everything meets everything.
struct World {
    random: fastrand::Rng,
    stores: Vec<Sqlite>,
    model: Model,
    ids: Vec<MessageId>,
    door: DoorSequence,
    incarnations: Vec<Incarnation>,
    claims: Vec<(Tenancy, Incarnation)>,
    last: Option<Write>,
    now: UnixMillis,
    serial: u64,
}

impl World {
    fn new(file: &File, seed: u64) -> Self {
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
    fn id(&mut self) -> MessageId {
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

    fn data(&mut self) -> RowData {
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
            message: vec![self.random.u8(..); self.random.usize(..9_000)].into(),
            progress: self.serial.to_be_bytes().to_vec(),
        }
    }

    fn a_write(&mut self) -> Write {
        let row = self.data();
        match self.random.u32(..10) {
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

    fn step(&mut self) {
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
            _ => {
                let before = now.day() + 1 - self.random.u32(..4);
                self.stores[process].prune(before).unwrap();
                self.model.prune(before);
            }
        }
    }

    fn renew(&mut self, process: usize) {
        let (who, first) = (self.incarnation(), self.random.u8(..8) > 0);
        let listed = self.model.members.contains_key(&who);
        let lives = self.stores[process].renew(who, "test", first).unwrap();
        assert_eq!(lives, first || listed);
        if lives {
            *self.model.members.entry(who).or_default() += 1;
        }
    }

    fn end(&mut self, process: usize) {
        let who = self.incarnation();
        let standing = self.model.members.get(&who).copied();
        let seen = self.random.bool().then(|| self.random.u64(1..6));
        let ended = self.stores[process]
            .end_member(self.now, who, seen)
            .unwrap();
        let expected = standing.is_some() && (seen.is_none() || seen == standing);
        assert_eq!(ended, expected);
        if ended {
            self.model.end(self.now, who);
        }
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
    fn check(&mut self) {
        let process = self.random.usize(..self.stores.len());
        let store = &mut self.stores[process];
        assert_eq!(store.counts().unwrap(), self.model.counts());
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

fn run(seed: u64) -> Seen {
    const STEPS: usize = 4_000;
    let file = File::new();
    let mut world = World::new(&file, seed);
    for step in 0..STEPS {
        // In the output of a failure: the seed and the step to look at.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.step();
            if step % 8 == 0 || step + 1 == STEPS {
                world.check();
            }
        }));
        assert!(result.is_ok(), "seed {seed}, step {step}");
    }
    let trouble: String = file
        .raw()
        .pragma_query_value(None, "integrity_check", |row| row.get(0))
        .unwrap();
    assert_eq!(trouble, "ok");
    world.model.seen
}

#[test]
fn the_store_does_what_the_model_does() {
    for seed in 1..=3 {
        let seen = run(seed);
        let Seen {
            claimed,
            recorded,
            repeated,
            lost,
            held_by_mark,
            due_by_cancel,
            taken_over,
            pruned,
        } = seen;
        let common = [claimed, recorded, lost];
        let rare = [repeated, held_by_mark, due_by_cancel, taken_over, pruned];
        assert!(common.iter().all(|n| *n >= 200), "seed {seed}: {seen:?}");
        assert!(rare.iter().all(|n| *n >= 5), "seed {seed}: {seen:?}");
    }
}
