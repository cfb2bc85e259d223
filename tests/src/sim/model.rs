//! The store's contract, written as simply as possible, and its rules broken on purpose.

use std::{collections::BTreeMap, time::Duration};

use pombo_proto::{
    control::{QueueFilter, QueueState},
    frame,
    ids::{Fence, Incarnation, Instance, MessageId},
    ledger::{Balance, DoorNumber},
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::{
    progress::Progress,
    store::{
        Change, ClaimRequest, Claimed, Counts, DoorReport, Error, ListedInstance, Mark, Member,
        Place, Pruned, Row, RowData, Slice, Store, Suspect, Write, Written,
    },
};

use super::options::Sabotage;

#[derive(Clone, Debug)]
struct Standing {
    data: RowData,
    fence: Fence,
    holder: Option<Incarnation>,
    /// Under which fence, by whom, where to, and whether in doubt.
    recorded: Option<(Fence, Incarnation, QueueState, bool)>,
    cancelled: bool,
    dropped: bool,
    /// The cancel came while the row was claimed.
    cancel_unseen: bool,
    note: Option<Vec<u8>>,
    asks: String,
    changed: UnixMillis,
}

/// The model.
#[derive(Debug, Default)]
pub struct Model {
    rows: BTreeMap<MessageId, Standing>,
    /// What has finished, where two arbiters know nothing of each other.
    finished: BTreeMap<MessageId, Standing>,
    members: BTreeMap<Incarnation, Member>,
    instances: BTreeMap<Instance, ListedInstance>,
    /// Not listed any more, and since when.
    struck: BTreeMap<Instance, (ListedInstance, UnixMillis)>,
    broken: Option<Sabotage>,
}

impl Model {
    /// Empty.
    pub fn new(broken: Option<Sabotage>) -> Self {
        Self {
            broken,
            ..Self::default()
        }
    }

    fn broken(&self, sabotage: Sabotage) -> bool {
        self.broken == Some(sabotage)
    }

    fn insert(
        &mut self,
        now: UnixMillis,
        id: MessageId,
        row: &RowData,
        by: Option<Incarnation>,
    ) -> bool {
        let finishes = row.state == QueueState::Finished;
        let table = if finishes && self.broken(Sabotage::TwoArbiters) {
            &mut self.finished
        } else {
            &mut self.rows
        };
        if table.contains_key(&id) {
            return false;
        }
        let standing = Standing {
            data: row.clone(),
            fence: Fence(0),
            holder: None,
            recorded: by.map(|by| (Fence(0), by, row.state, row.doubt)),
            cancelled: false,
            dropped: false,
            cancel_unseen: false,
            note: None,
            asks: String::new(),
            changed: now,
        };
        table.insert(id, standing);
        true
    }

    fn record(
        &mut self,
        now: UnixMillis,
        tenancy: Tenancy,
        holder: Incarnation,
        row: &RowData,
    ) -> bool {
        let Tenancy { id, fence } = tenancy;
        let careless = self.broken(Sabotage::NoFenceCheck);
        let settles = self.broken(Sabotage::GivenBackIsRecorded);
        if fence == Fence(0) && self.insert(now, id, row, Some(holder)) {
            return true;
        }
        let Some(standing) = self.rows.get_mut(&id) else {
            return false;
        };
        let held = fence > Fence(0) && standing.holder == Some(holder) && standing.fence == fence;
        if !held && !careless {
            return false;
        }
        standing.holder = None;
        let before = &standing.data;
        let given_back = row.doubt && before.doubt && row.unsure_since == before.unsure_since;
        if !given_back || settles {
            standing.recorded = Some((fence, holder, row.state, row.doubt));
        }
        standing.data = row.clone();
        standing.changed = now;
        if !row.doubt {
            standing.note = None;
        }
        if row.state != QueueState::Finished && standing.cancel_unseen {
            standing.data.state = QueueState::Waiting;
            (standing.data.due, standing.data.wake) = (Some(now), Some(now));
        }
        standing.cancel_unseen = false;
        true
    }

    fn write(&mut self, now: UnixMillis, write: &Write) -> Written {
        let won = match write {
            Write::Move { id, row } => self.insert(now, *id, row, None),
            Write::Note {
                tenancy,
                holder,
                note,
            } => match self.rows.get_mut(&tenancy.id) {
                Some(it) if it.holder == Some(*holder) && it.fence == tenancy.fence => {
                    it.note = Some(note.clone());
                    true
                }
                _ => false,
            },
            Write::Record {
                tenancy,
                holder,
                row,
                reports,
            } => {
                let again = (tenancy.fence, *holder, row.state, row.doubt);
                let won = self.record(now, *tenancy, *holder, row);
                if won {
                    for (id, report) in reports {
                        self.insert(now, *id, report, None);
                    }
                }
                let before = |it: &Standing| it.recorded == Some(again);
                won || self.rows.get(&tenancy.id).is_some_and(before)
                    || self.finished.get(&tenancy.id).is_some_and(before)
            }
        };
        if won { Written::Won } else { Written::Lost }
    }

    fn is_recorded(&self, tenancy: &Tenancy) -> bool {
        let Some(standing) = self.rows.get(&tenancy.id) else {
            return self.finished.contains_key(&tenancy.id);
        };
        let finished = standing.data.state == QueueState::Finished;
        if finished && self.broken(Sabotage::FinishedNeverSettled) {
            return false;
        }
        finished
            || standing.recorded.is_some_and(|(fence, _, _, doubt)| {
                fence > tenancy.fence || fence == tenancy.fence && !doubt
            })
    }

    fn row(&self, id: MessageId) -> Option<Row> {
        let standing = self.finished.get(&id).or_else(|| self.rows.get(&id))?;
        Some(Row {
            id,
            fence: standing.fence,
            holder: standing.holder,
            cancelled: standing.cancelled,
            changed: standing.changed,
            data: standing.data.clone(),
        })
    }
}

fn is_excluded(request: &ClaimRequest, row: &RowData) -> bool {
    request.excluded.iter().any(|(transport, destination)| {
        row.transport.as_ref() == Some(transport)
            && (destination.is_none() || row.destination == *destination)
    })
}

impl Store for Model {
    fn commit(&mut self, now: UnixMillis, writes: &[Write]) -> Result<Vec<Written>, Error> {
        Ok(writes.iter().map(|write| self.write(now, write)).collect())
    }

    fn claim(&mut self, request: &ClaimRequest) -> Result<Vec<Claimed>, Error> {
        if !self.members.contains_key(&request.holder) {
            return Ok(Vec::new());
        }
        let due = |row: &&Standing| {
            let woken = row.data.wake.is_some_and(|wake| wake <= request.now);
            row.data.state == QueueState::Waiting
                && row.data.due.is_some_and(|due| due <= request.now)
                && (woken || !is_excluded(request, &row.data))
        };
        let mut order: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| due(row))
            .map(|(id, row)| (row.data.priority, row.data.due, *id))
            .collect();
        order.sort_unstable();
        order.truncate(request.limit);
        let mut claims = Vec::new();
        for (_, _, id) in order {
            let Some(row) = self.rows.get_mut(&id) else {
                continue;
            };
            row.fence = Fence(row.fence.0 + 1);
            row.holder = Some(request.holder);
            if !row.data.doubt {
                row.data.unsure_since = request.now;
                row.asks.clone_from(&request.asks);
            } else if row.asks != request.asks {
                row.asks.clear();
            }
            row.data.state = QueueState::Moving;
            (row.data.due, row.data.wake) = (None, None);
            claims.push(Claimed {
                id,
                fence: row.fence,
                doubt: row.data.doubt,
                unsure_since: row.data.unsure_since,
                deaths: row.data.deaths,
                note: row.note.clone(),
                asks: row.asks.clone(),
                mark: if row.dropped {
                    Mark::Drop
                } else if row.cancelled {
                    Mark::Cancel
                } else {
                    Mark::None
                },
                message: row.data.message.clone(),
                progress: row.data.progress.clone(),
            });
        }
        Ok(claims)
    }

    fn next_due(&mut self) -> Result<Option<UnixMillis>, Error> {
        let waiting = |row: &&Standing| row.data.state == QueueState::Waiting;
        let rows = self.rows.values().filter(waiting);
        Ok(rows.filter_map(|row| row.data.due).min())
    }

    fn get(&mut self, id: MessageId) -> Result<Option<Row>, Error> {
        Ok(self.row(id))
    }

    fn recorded(&mut self, tenancies: &[Tenancy]) -> Result<Vec<Tenancy>, Error> {
        let recorded = tenancies.iter().filter(|it| self.is_recorded(it));
        Ok(recorded.copied().collect())
    }

    fn list(
        &mut self,
        filter: &QueueFilter,
        limit: usize,
        after: Option<&Place>,
    ) -> Result<Slice, Error> {
        assert!(after.is_none(), "there is one slice");
        let wanted = |row: &Row| match filter.state {
            Some(state) => row.data.state == state,
            None => row.data.state != QueueState::Finished,
        };
        let rows = self.rows.keys().filter_map(|id| self.row(*id));
        Ok(Slice {
            rows: rows.filter(wanted).take(limit).collect(),
            next: None,
        })
    }

    /// Nobody in this world asks for more than a cancel, a retry or a drop.
    fn change(&mut self, now: UnixMillis, id: MessageId, change: Change) -> Result<bool, Error> {
        let Some(row) = self.rows.get_mut(&id) else {
            return Ok(false);
        };
        let applies = match (change, row.data.state) {
            (Change::Cancel, QueueState::Moving) => {
                row.cancel_unseen = true;
                true
            }
            (Change::Cancel | Change::Retry, QueueState::Waiting) => {
                (row.data.due, row.data.wake) = (Some(now), Some(now));
                if change == Change::Retry
                    && let Ok(mut progress) = frame::decode_all::<Progress>(&row.data.progress)
                {
                    progress.make_due(now);
                    row.data.progress = frame::encode(&progress);
                }
                true
            }
            (Change::Drop, QueueState::Held | QueueState::Dead) => {
                row.data.state = QueueState::Waiting;
                (row.data.due, row.data.wake) = (Some(now), Some(now));
                row.dropped = true;
                true
            }
            _ => false,
        };
        row.cancelled |= applies && change == Change::Cancel;
        Ok(applies)
    }

    fn change_all(
        &mut self,
        now: UnixMillis,
        ids: &[MessageId],
        change: Change,
    ) -> Result<u64, Error> {
        ids.iter().try_fold(0, |count, id| {
            Ok(count + u64::from(self.change(now, *id, change)?))
        })
    }

    fn counts(&mut self) -> Result<Counts, Error> {
        let of = |state| {
            let rows = self.rows.values();
            rows.filter(|row| row.data.state == state).count() as u64
        };
        Ok(Counts {
            waiting: of(QueueState::Waiting),
            claimed: of(QueueState::Moving),
            held: of(QueueState::Held),
            dead: of(QueueState::Dead),
            in_doubt: self
                .rows
                .values()
                .filter(|row| row.data.in_doubt > 0)
                .count() as u64,
        })
    }

    fn renew(
        &mut self,
        incarnation: Incarnation,
        name: &str,
        first: bool,
        answered: &[ListedInstance],
    ) -> Result<bool, Error> {
        if first {
            let member = Member {
                incarnation,
                name: name.to_owned(),
                counter: 1,
            };
            self.members.entry(incarnation).or_insert(member);
            return Ok(true);
        }
        let member = self.members.get_mut(&incarnation);
        let lives = member.map(|member| member.counter += 1).is_some();
        for instance in answered.iter().filter(|_| lives) {
            self.list_instance(instance)?;
        }
        Ok(lives)
    }

    fn members(&mut self) -> Result<Vec<Member>, Error> {
        Ok(self.members.values().cloned().collect())
    }

    fn end_member(
        &mut self,
        now: UnixMillis,
        who: Incarnation,
        counter: Option<u64>,
    ) -> Result<bool, Error> {
        let standing = self.members.get(&who).map(|member| member.counter);
        if counter.is_some() && counter != standing {
            return Ok(false);
        }
        self.members.remove(&who);
        if self.broken(Sabotage::DeadHoldersClaim) {
            return Ok(standing.is_some());
        }
        for row in self.rows.values_mut() {
            if row.holder == Some(who) && row.data.state == QueueState::Moving {
                row.holder = None;
                row.data.state = QueueState::Waiting;
                row.data.doubt = true;
                row.data.deaths += u32::from(counter.is_some());
                (row.data.due, row.data.wake) = (Some(now), Some(now));
            }
        }
        Ok(standing.is_some())
    }

    fn list_instance(&mut self, instance: &ListedInstance) -> Result<(), Error> {
        let struck = self.struck.remove(&instance.instance);
        let known = self.instances.get(&instance.instance);
        let known = known.or(struck.as_ref().map(|(it, _)| it));
        let counter = known.map_or(0, |it| it.counter) + 1;
        let listed = ListedInstance {
            counter,
            ..instance.clone()
        };
        self.instances.insert(instance.instance, listed);
        Ok(())
    }

    fn strike_instance(
        &mut self,
        now: UnixMillis,
        instance: Instance,
        counter: Option<u64>,
    ) -> Result<bool, Error> {
        let Some(counter) = counter else {
            self.struck.remove(&instance);
            self.instances.remove(&instance);
            return Ok(true);
        };
        let stands = |it: &ListedInstance| it.counter == counter;
        if self.instances.get(&instance).is_some_and(stands)
            && let Some(struck) = self.instances.remove(&instance)
        {
            self.struck.insert(instance, (struck, now));
        }
        Ok(!self.instances.contains_key(&instance))
    }

    fn instances(&mut self) -> Result<Vec<ListedInstance>, Error> {
        Ok(self.instances.values().cloned().collect())
    }

    fn suspects(&mut self, struck_since: UnixMillis) -> Result<Vec<Suspect>, Error> {
        let listed = self.instances.values().map(|it| Suspect {
            instance: it.clone(),
            struck: None,
        });
        let forgotten = self.broken(Sabotage::ForgetTheStruck);
        let struck = self.struck.values();
        let struck = struck.filter(|(_, at)| *at >= struck_since && !forgotten);
        let struck = struck.map(|(it, at)| Suspect {
            instance: it.clone(),
            struck: Some(*at),
        });
        Ok(listed.chain(struck).collect())
    }

    /// A simulated hour is not long enough for anything to be dropped.
    fn prune(&mut self, _: u32) -> Result<Pruned, Error> {
        Ok(Pruned::default())
    }

    // The simulation looks at every message itself, so it keeps no books: these are never asked.

    fn record_doors(&mut self, _: UnixMillis, _: &[DoorReport]) -> Result<(), Error> {
        Ok(())
    }

    fn ledger(&mut self) -> Result<Vec<Balance>, Error> {
        Ok(Vec::new())
    }

    fn holes(&mut self, _: u32, _: usize) -> Result<Vec<u64>, Error> {
        Ok(Vec::new())
    }

    fn write_off(&mut self, _: UnixMillis, _: &[DoorNumber]) -> Result<u64, Error> {
        Ok(0)
    }

    fn begin_chore(
        &mut self,
        _: UnixMillis,
        _: &str,
        _: Incarnation,
        _: Duration,
    ) -> Result<bool, Error> {
        Ok(false)
    }

    fn end_chore(&mut self, _: UnixMillis, _: &str, _: Incarnation) -> Result<(), Error> {
        Ok(())
    }

    fn unfinished(&mut self, ids: &[MessageId]) -> Result<Vec<MessageId>, Error> {
        let waits = |id: &&MessageId| {
            let row = self.rows.get(id);
            row.is_some_and(|row| row.data.state != QueueState::Finished)
        };
        Ok(ids.iter().filter(waits).copied().collect())
    }
}
