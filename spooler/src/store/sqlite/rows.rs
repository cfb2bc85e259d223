//! Rows as people see and change them.

use bytes::Bytes;
use pombo_proto::{
    control::{QueueFilter, QueueState},
    frame,
    ids::{Fence, Incarnation, MessageId},
    message::{Envelope, Priority},
    time::UnixMillis,
    verbs::Tenancy,
};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::{
    super::{Change, Counts, Row, RowData},
    commit::{CANCEL_FRESH, CANCEL_KNOWN, DROP, Standing, find, stored, stored_time},
    parts::{CLAIMED, DEAD, FINISHED, HELD, Scope, Sql, WAITING},
};

/// Rows in a list, if the filter says nothing.
const LISTED_DEFAULT: usize = 1_000;
/// Rows in a list, whatever the filter says.
const LISTED_MAX: usize = 10_000;
/// Bytes of heads and progress in a list: a message with 10,000 recipients has a megabyte of each.
const LISTED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Finished rows that a list looks at: history has hundreds of millions.
const FINISHED_SEEN_MAX: usize = 100_000;
/// A head is usually this short; a longer one is read once more.
const HEAD_FIRST: usize = 2_048;

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
    let Some(after) = changed(&standing, change) else {
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
    Ok(true)
}

struct After {
    state: i64,
    cancel: i64,
    hold: bool,
}

/// The table of what people may do; `None` where it does not apply.
fn changed(standing: &Standing, change: Change) -> Option<After> {
    let to = |state, cancel, hold| {
        Some(After {
            state,
            cancel,
            hold,
        })
    };
    let cancel = standing.cancel;
    match (change, standing.state) {
        (Change::Retry, WAITING) | (Change::Release, HELD) | (Change::Requeue, DEAD) => {
            to(WAITING, cancel, false)
        }
        (Change::Hold, WAITING) => to(HELD, cancel, false),
        (Change::Hold, CLAIMED) => to(CLAIMED, cancel, true),
        (Change::Release, CLAIMED) if standing.hold => to(CLAIMED, cancel, false),
        (Change::Cancel, WAITING | HELD | DEAD) => to(WAITING, CANCEL_KNOWN, false),
        (Change::Drop, DEAD) => to(WAITING, DROP, false),
        (Change::Cancel, CLAIMED) if cancel == CANCEL_KNOWN || cancel == DROP => {
            to(CLAIMED, cancel, standing.hold)
        }
        (Change::Cancel, CLAIMED) => to(CLAIMED, CANCEL_FRESH, standing.hold),
        _ => None,
    }
}

pub(super) fn list(scope: &mut Scope<'_>, filter: &QueueFilter) -> rusqlite::Result<Vec<Row>> {
    let limit = match filter.limit as usize {
        0 => LISTED_DEFAULT,
        limit => limit.min(LISTED_MAX),
    };
    let mut listed = Listed {
        filter,
        limit,
        bytes: 0,
        rows: Vec::new(),
    };
    if filter.state == Some(QueueState::Finished) {
        finished(scope, &mut listed)?;
    } else {
        unfinished(scope, &mut listed)?;
    }
    Ok(listed.rows)
}

/// By the queue, which knows all but sender and recipients.
fn unfinished(scope: &mut Scope<'_>, listed: &mut Listed<'_>) -> rusqlite::Result<()> {
    let filter = listed.filter;
    let state = filter.state.map(|state| match state {
        QueueState::Moving => CLAIMED,
        other => stored(other),
    });
    let transaction = scope.transaction;
    let mut queue = transaction.prepare_cached(
        "SELECT part, row FROM queue INDEXED BY queue_since WHERE since >= 0
         AND (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR transport = ?2) AND (?3 IS NULL OR destination = ?3)
         ORDER BY since",
    )?;
    let mut places = queue.query(params![state, filter.transport, filter.destination])?;
    while !listed.is_full()
        && let Some(place) = places.next()?
    {
        let (part, number): (u32, i64) = (place.get(0)?, place.get(1)?);
        let Some(sql) = scope.part(part) else {
            continue;
        };
        let message = head_of(scope, &sql, number)?;
        if !listed.wants(&message) {
            continue;
        }
        let (_, mut row) = transaction
            .prepare_cached(&sql.row_by_number)?
            .query_row([number], read)?;
        row.data.message = message;
        listed.push(row);
    }
    Ok(())
}

/// The newest ones, by part and row; then turned round, oldest first.
fn finished(scope: &mut Scope<'_>, listed: &mut Listed<'_>) -> rusqlite::Result<()> {
    let transaction = scope.transaction;
    let filter = listed.filter;
    let mut seen = 0;
    for part in scope.parts().to_vec().into_iter().rev() {
        let Some(sql) = scope.part(part) else {
            continue;
        };
        let mut statement = transaction.prepare_cached(&sql.newest_finished)?;
        let mut rows = statement.query([])?;
        while !listed.is_full()
            && seen < FINISHED_SEEN_MAX
            && let Some(found) = rows.next()?
        {
            seen += 1;
            let (_, row) = read(found)?;
            let there = |wanted: &Option<String>, is: &Option<String>| {
                wanted.is_none() || wanted.as_deref() == Some(is.as_deref().unwrap_or_default())
            };
            if there(&filter.transport, &row.data.transport)
                && there(&filter.destination, &row.data.destination)
                && listed.wants(&row.data.message)
            {
                listed.push(row);
            }
        }
    }
    listed.rows.reverse();
    Ok(())
}

struct Listed<'a> {
    filter: &'a QueueFilter,
    limit: usize,
    bytes: usize,
    rows: Vec<Row>,
}

impl Listed<'_> {
    fn is_full(&self) -> bool {
        self.rows.len() >= self.limit || self.bytes >= LISTED_BYTES_MAX
    }

    fn push(&mut self, row: Row) {
        self.bytes += row.data.message.len() + row.data.progress.len();
        self.rows.push(row);
    }

    /// By sender and recipients, which stand in the head alone.
    fn wants(&self, head: &Bytes) -> bool {
        if self.filter.sender.is_none() && self.filter.recipient.is_none() {
            return true;
        }
        frame::decode_head(head).is_ok_and(|envelope| self.matches(&envelope))
    }

    fn matches(&self, envelope: &Envelope) -> bool {
        let sender = match self.filter.sender.as_deref() {
            None => true,
            // The null reverse-path, as people write it.
            Some("" | "<>") => envelope.sender.is_empty(),
            Some(part) => contains(&envelope.sender, part),
        };
        let recipient = self.filter.recipient.as_deref().is_none_or(|part| {
            let mut recipients = envelope.recipients.iter();
            recipients.any(|recipient| contains(&recipient.address, part))
        });
        sender && recipient
    }
}

/// Whether `part` stands somewhere in `text`, in whatever case.
fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

/// The head of a waiting message, without reading its body; what is no message is given as far as it was read.
fn head_of(scope: &Scope<'_>, sql: &Sql, number: i64) -> rusqlite::Result<Bytes> {
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
fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, Row)> {
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
        message: head.unwrap_or_default().into(),
        progress: row.get(13)?,
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

fn state_from(stored: i64) -> QueueState {
    match stored {
        CLAIMED => QueueState::Moving,
        HELD => QueueState::Held,
        DEAD => QueueState::Dead,
        FINISHED => QueueState::Finished,
        _ => QueueState::Waiting,
    }
}

fn priority_from(stored: i64) -> Priority {
    match stored {
        0 => Priority::Urgent,
        1 => Priority::Normal,
        _ => Priority::Bulk,
    }
}

fn time_from(stored: i64) -> UnixMillis {
    UnixMillis(stored.unsigned_abs())
}
