//! Rows as people see and change them.

use bytes::Bytes;
use pombo_proto::{
    control::QueueState,
    frame,
    ids::{Fence, Incarnation, MessageId},
    time::UnixMillis,
    verbs::Tenancy,
};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use crate::progress::Progress;

use super::{
    super::{
        Change, Counts, Row, RowData, Tally,
        stored::{
            CLAIMED, DEAD, HEAD_FIRST, HELD, WAITING, changed, priority_from, state_from,
            stored_time, time_from,
        },
    },
    commit::find,
    parts::{Scope, Sql},
};

pub(super) fn get(scope: &mut Scope<'_>, id: MessageId) -> rusqlite::Result<Option<Row>> {
    let Some(sql) = scope.part(id.part()) else {
        return Ok(None);
    };
    let found = scope
        .transaction
        .prepare_cached(&sql.row_by_id)?
        .query_row([id.0.as_bytes()], read)
        .optional()?;
    let Some((number, mut row)) = found else {
        return Ok(None);
    };
    if row.data.state != QueueState::Finished {
        let message: Vec<u8> = scope
            .transaction
            .prepare_cached(&sql.read_body)?
            .query_row([number], |row| row.get(0))?;
        row.data.message = message.into();
    }
    Ok(Some(row))
}

pub(super) fn recorded(
    scope: &mut Scope<'_>,
    tenancies: &[Tenancy],
) -> rusqlite::Result<Vec<Tenancy>> {
    let mut settled = Vec::new();
    for tenancy in tenancies {
        let Some(sql) = scope.part(tenancy.id.part()) else {
            continue;
        };
        let standing = find(scope, &sql, tenancy.id)?;
        if standing.is_some_and(|standing| standing.is_recorded_at(tenancy.fence)) {
            settled.push(*tenancy);
        }
    }
    Ok(settled)
}

pub(super) fn counts(scope: &mut Scope<'_>) -> rusqlite::Result<Counts> {
    let mut statement = scope
        .transaction
        .prepare_cached("SELECT state, sum(n) FROM counts GROUP BY state")?;
    let mut rows = statement.query([])?;
    let mut counts = Counts::default();
    while let Some(row) = rows.next()? {
        let n = row.get::<_, i64>(1)?.unsigned_abs();
        match row.get::<_, i64>(0)? {
            WAITING => counts.waiting = n,
            CLAIMED => counts.claimed = n,
            HELD => counts.held = n,
            DEAD => counts.dead = n,
            _ => {}
        }
    }
    counts.in_doubt = scope
        .transaction
        .prepare_cached("SELECT count(*) FROM queue INDEXED BY queue_in_doubt WHERE in_doubt > 0")?
        .query_row([], |row| row.get::<_, i64>(0))?
        .unsigned_abs();
    Ok(counts)
}

pub(super) fn change(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    id: MessageId,
    change: Change,
) -> rusqlite::Result<bool> {
    let Some(sql) = scope.part(id.part()) else {
        return Ok(false);
    };
    let Some(standing) = find(scope, &sql, id)? else {
        return Ok(false);
    };
    let Some(after) = changed(standing.state, standing.cancel, standing.hold, change) else {
        return Ok(false);
    };
    // Where nothing but a mark changes, the row stays as it is; else it is due at once or not at all.
    let due = (after.state == WAITING).then_some(stored_time(now));
    scope
        .transaction
        .prepare_cached(&sql.mark)?
        .execute(params![
            standing.row,
            after.state,
            due,
            after.cancel,
            after.hold,
            stored_time(now)
        ])?;
    if change == Change::Requeue {
        scope
            .transaction
            .prepare_cached(&sql.forget_deaths)?
            .execute([standing.row])?;
    }
    if after.state == WAITING && after.cancel == 0 {
        make_recipients_due(scope, &sql, standing.row, now)?;
    }
    Ok(true)
}

/// The row alone is not enough: its recipients have times of their own, and would send it back to wait.
fn make_recipients_due(
    scope: &Scope<'_>,
    sql: &Sql,
    row: i64,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    let encoded: Vec<u8> = scope
        .transaction
        .prepare_cached(&sql.progress)?
        .query_row([row], |row| row.get(0))?;
    // What cannot be read here is dead as soon as it is claimed.
    if let Ok(mut progress) = frame::decode_all::<Progress>(&encoded) {
        progress.make_due(now);
        scope
            .transaction
            .prepare_cached(&sql.set_progress)?
            .execute(params![row, frame::encode(&progress)])?;
    }
    Ok(())
}

/// The head of a waiting message, without reading its body; what is no message is given as far as it was read.
pub(super) fn head_of(scope: &Scope<'_>, sql: &Sql, number: i64) -> rusqlite::Result<Bytes> {
    let body =
        scope
            .transaction
            .blob_open("main", sql.body_table.as_str(), "message", number, true)?;
    let mut start = vec![0; body.len().min(HEAD_FIRST)];
    let got = body.read_at(&mut start, 0)?;
    start.truncate(got);
    let Ok(length) = frame::head_length(&start) else {
        return Ok(start.into());
    };
    if length <= start.len() {
        start.truncate(length);
        return Ok(start.into());
    }
    let mut head = vec![0; length.min(body.len())];
    let got = body.read_at(&mut head, 0)?;
    head.truncate(got);
    Ok(head.into())
}

/// A row by its columns, with its number; the message of an unfinished one is still empty.
pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, Row)> {
    let id: [u8; 16] = row.get(1)?;
    let holder: Option<[u8; 16]> = row.get(4)?;
    let (due, wake): (Option<i64>, Option<i64>) = (row.get(7)?, row.get(15)?);
    let head: Option<Vec<u8>> = row.get(14)?;
    let data = RowData {
        state: state_from(row.get(2)?),
        due: due.map(time_from),
        wake: wake.map(time_from),
        reason: row.get(10)?,
        transport: row.get(11)?,
        destination: row.get(12)?,
        priority: priority_from(row.get(8)?),
        doubt: row.get(9)?,
        unsure_since: time_from(row.get(18)?),
        in_doubt: row.get(16)?,
        deaths: row.get(17)?,
        message: head.unwrap_or_default().into(),
        progress: row.get(13)?,
        tally: Tally::default(),
    };
    let read = Row {
        id: MessageId(Uuid::from_bytes(id)),
        fence: Fence(row.get(3)?),
        holder: holder.map(|holder| Incarnation(Uuid::from_bytes(holder))),
        cancelled: row.get::<_, i64>(5)? != 0,
        changed: time_from(row.get(6)?),
        data,
    };
    Ok((row.get(0)?, read))
}
