//! Conditional writes: who wins, who loses.

use pombo_proto::{
    control::QueueState,
    ids::{Fence, Incarnation, MessageId},
    time::UnixMillis,
    verbs::Tenancy,
};
use rusqlite::{OptionalExtension, params};

use super::{
    super::{
        RowData, Write, Written,
        stored::{
            CANCEL_FRESH, CANCEL_KNOWN, CLAIMED, FINISHED, HELD, IN_DOUBT, WAITING, recorded_state,
            stored, stored_priority, stored_time,
        },
        tally::Tallies,
    },
    ledger,
    parts::{Scope, Sql},
};

/// What decides about a row.
pub(super) struct Standing {
    pub row: i64,
    pub state: i64,
    pub cancel: i64,
    pub hold: bool,
    fence: i64,
    holder: Option<[u8; 16]>,
    recorded: Option<(i64, [u8; 16], i64)>,
}

pub(super) fn commit(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    writes: &[Write],
) -> rusqlite::Result<Vec<Written>> {
    let mut answers = Vec::with_capacity(writes.len());
    let mut tallies = Tallies::default();
    for write in writes {
        let won = match write {
            Write::Move { id, row } => {
                let is_new = insert(scope, now, *id, row, None)?;
                if is_new {
                    tallies.entered(*id, row, false);
                }
                is_new
            }
            Write::Note {
                tenancy,
                holder,
                note,
            } => take_note(scope, *tenancy, *holder, note)?,
            Write::Record {
                tenancy,
                holder,
                row,
                reports,
            } => {
                let decision = if tenancy.fence == Fence(0) {
                    record_lease(scope, now, *tenancy, *holder, row)?
                } else {
                    record_claim(scope, now, *tenancy, *holder, row)?
                };
                if decision == Decision::Now {
                    let is_new = tenancy.fence == Fence(0);
                    if is_new {
                        tallies.entered(tenancy.id, row, row.tally.is_report);
                    } else if row.state == QueueState::Finished {
                        tallies.finished(tenancy.id, row);
                    }
                    for (id, report) in reports {
                        if insert(scope, now, *id, report, None)? {
                            tallies.entered(*id, report, true);
                        }
                    }
                }
                decision != Decision::Other
            }
        };
        answers.push(if won { Written::Won } else { Written::Lost });
    }
    ledger::enter(scope, now, tallies)?;
    Ok(answers)
}

/// Who decided, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// This write.
    Now,
    /// The same write, committed before: its reports went in with it.
    Before,
    /// Somebody else.
    Other,
}

/// Fence 0: the row must be absent.
fn record_lease(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    tenancy: Tenancy,
    holder: Incarnation,
    row: &RowData,
) -> rusqlite::Result<Decision> {
    if insert(scope, now, tenancy.id, row, Some(holder))? {
        return Ok(Decision::Now);
    }
    let sql = scope.part_or_new(tenancy.id.part())?;
    let standing = find(scope, &sql, tenancy.id)?;
    Ok(repeated(standing.as_ref(), tenancy, holder, row))
}

/// A claim's fence: the row must be claimed under it by this holder.
fn record_claim(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    tenancy: Tenancy,
    holder: Incarnation,
    row: &RowData,
) -> rusqlite::Result<Decision> {
    let Some(sql) = scope.part(tenancy.id.part()) else {
        return Ok(Decision::Other);
    };
    let Some(standing) = find(scope, &sql, tenancy.id)? else {
        return Ok(Decision::Other);
    };
    if !standing.is_held(tenancy, holder) {
        return Ok(repeated(Some(&standing), tenancy, holder, row));
    }
    let asked = stored(row.state);
    let (state, (due, wake), cancel) = marked(&standing, asked, now, (row.due, row.wake));
    // The body first: on a full disk its pages are what the row's own growth needs.
    if state == FINISHED {
        scope
            .transaction
            .prepare_cached(&sql.delete_body)?
            .execute([standing.row])?;
    } else {
        scope
            .transaction
            .prepare_cached(&sql.replace_body)?
            .execute(params![standing.row, &row.message[..]])?;
    }
    scope
        .transaction
        .prepare_cached(&sql.record)?
        .execute(params![
            standing.row,
            state,
            holder.0.as_bytes(),
            recorded_state(row),
            cancel,
            row.doubt,
            stored_time(now),
            due.map(stored_time),
            stored_priority(row.priority),
            row.reason,
            row.transport,
            row.destination,
            row.progress,
            (state == FINISHED).then_some(&row.message[..]),
            wake.map(stored_time),
            row.in_doubt,
            row.deaths,
            stored_time(row.unsure_since),
        ])?;
    Ok(Decision::Now)
}

/// A note is taken only of what is still this holder's to decide.
fn take_note(
    scope: &mut Scope<'_>,
    tenancy: Tenancy,
    holder: Incarnation,
    note: &[u8],
) -> rusqlite::Result<bool> {
    let Some(sql) = scope.part(tenancy.id.part()) else {
        return Ok(false);
    };
    let standing = find(scope, &sql, tenancy.id)?;
    let Some(standing) = standing.filter(|standing| standing.is_held(tenancy, holder)) else {
        return Ok(false);
    };
    scope
        .transaction
        .prepare_cached(&sql.note)?
        .execute(params![standing.row, note])?;
    Ok(true)
}

/// When a row is due, and when it wakes.
type Times = (Option<UnixMillis>, Option<UnixMillis>);

/// What people asked for while the row was claimed takes effect when its holder lets it go unfinished: a fresh cancel
/// makes it due now, for whoever claims it next to record; else a hold takes it off the road.
fn marked(standing: &Standing, asked: i64, now: UnixMillis, due: Times) -> (i64, Times, i64) {
    match asked {
        FINISHED => (FINISHED, due, standing.cancel),
        _ if standing.cancel == CANCEL_FRESH => (WAITING, (Some(now), Some(now)), CANCEL_KNOWN),
        WAITING if standing.hold => (HELD, (None, None), standing.cancel),
        other => (other, due, standing.cancel),
    }
}

/// Whether a write that does not apply had been committed before. Known until somebody else records.
fn repeated(
    standing: Option<&Standing>,
    tenancy: Tenancy,
    holder: Incarnation,
    row: &RowData,
) -> Decision {
    let this = (
        i64::from(tenancy.fence.0),
        *holder.0.as_bytes(),
        recorded_state(row),
    );
    if standing.and_then(|standing| standing.recorded) == Some(this) {
        Decision::Before
    } else {
        Decision::Other
    }
}

/// A new row at fence 0; false if the id exists.
fn insert(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    id: MessageId,
    row: &RowData,
    recorded_by: Option<Incarnation>,
) -> rusqlite::Result<bool> {
    let sql = scope.part_or_new(id.part())?;
    let state = stored(row.state);
    let inserted = scope
        .transaction
        .prepare_cached(&sql.insert)?
        .execute(params![
            id.0.as_bytes(),
            state,
            recorded_by.map(|_| 0_i64),
            recorded_by.map(|holder| *holder.0.as_bytes()),
            recorded_by.map(|_| recorded_state(row)),
            row.doubt,
            stored_time(now),
            row.due.map(stored_time),
            stored_priority(row.priority),
            row.reason,
            row.transport,
            row.destination,
            row.progress,
            (state == FINISHED).then_some(&row.message[..]),
            row.wake.map(stored_time),
            row.in_doubt,
            row.deaths,
            stored_time(row.unsure_since),
        ])?;
    if inserted == 1 && state != FINISHED {
        let number = scope.transaction.last_insert_rowid();
        scope
            .transaction
            .prepare_cached(&sql.insert_body)?
            .execute(params![number, &row.message[..]])?;
    }
    Ok(inserted == 1)
}

/// What decides about a row, if it exists.
pub(super) fn find(
    scope: &Scope<'_>,
    sql: &Sql,
    id: MessageId,
) -> rusqlite::Result<Option<Standing>> {
    scope
        .transaction
        .prepare_cached(&sql.find)?
        .query_row([id.0.as_bytes()], |row| {
            let recorded: (Option<i64>, Option<[u8; 16]>, Option<i64>) =
                (row.get(4)?, row.get(5)?, row.get(6)?);
            Ok(Standing {
                row: row.get(0)?,
                state: row.get(1)?,
                fence: row.get(2)?,
                holder: row.get(3)?,
                recorded: match recorded {
                    (Some(fence), Some(by), Some(state)) => Some((fence, by, state)),
                    _ => None,
                },
                cancel: row.get(7)?,
                hold: row.get(8)?,
            })
        })
        .optional()
}

impl Standing {
    /// Whether it is claimed under this fence by this holder.
    fn is_held(&self, tenancy: Tenancy, holder: Incarnation) -> bool {
        self.state == CLAIMED
            && self.fence == i64::from(tenancy.fence.0)
            && self.holder.as_ref() == Some(holder.0.as_bytes())
    }

    /// Whether somebody recorded what became of this fence: at it, unless in doubt, or at a higher one.
    pub fn is_recorded_at(&self, fence: Fence) -> bool {
        let fence = i64::from(fence.0);
        let known =
            |(at, _, state): (i64, [u8; 16], i64)| at > fence || at == fence && state < IN_DOUBT;
        self.state == FINISHED || self.recorded.is_some_and(known)
    }
}

/// Where a row goes when its holder has ended: the same marks count, and what it may have submitted is unknown.
pub(super) fn after_its_holder(cancel: i64, hold: bool, now: UnixMillis) -> (i64, Option<i64>) {
    if hold && cancel != CANCEL_FRESH {
        (HELD, None)
    } else {
        (WAITING, Some(stored_time(now)))
    }
}
