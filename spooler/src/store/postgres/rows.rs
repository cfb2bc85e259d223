//! Rows as people see and change them.

use std::borrow::Cow;

use pombo_proto::{
    frame,
    ids::{Fence, Incarnation, MessageId},
    time::UnixMillis,
    verbs::Tenancy,
};
use uuid::Uuid;

use crate::progress::Progress;

use super::{
    super::{
        Change, Counts, Row, RowData, Tally,
        stored::{WAITING, changed, priority_from, state_from, stored_time, time_from},
    },
    Result,
    commit::key,
    session::Session,
};

/// What a row is read by; in the order that [`read`] expects. The message comes last, whole or its beginning.
macro_rules! columns {
    ($message:literal) => {
        concat!(
            "SELECT id, state, fence, holder, cancel, changed, due, wake, priority, doubt, reason, transport, destination, \
             progress, ",
            $message,
            ", since, in_doubt, deaths, unsure_since FROM messages "
        )
    };
}
pub(super) use columns;

/// Lines of tallies before somebody adds them up.
const TALLIES_MAX: i64 = 256;

/// PostgreSQL's texts hold no NUL; a reply that had one (no server should) is shown with the sign for what cannot be shown.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}").into()
    } else {
        text.into()
    }
}

pub(super) async fn get(session: &mut Session, id: MessageId) -> Result<Option<Row>> {
    let sql = concat!(columns!("message"), "WHERE part = $1 AND id = $2");
    let statement = session.prepared(sql).await?;
    let (part, key) = key(id);
    let found = session.client.query_opt(&statement, &[&part, &key]).await?;
    Ok(found.map(|row| read(&row)))
}

/// A finished row, or one recorded at that fence (unless in doubt) or a higher one. 16 is added to the state of what was
/// recorded in doubt.
const RECORDED: &str = "
SELECT w.n FROM unnest($1::int4[], $2::uuid[], $3::int8[]) WITH ORDINALITY AS w(part, id, fence, n)
JOIN messages m ON m.part = w.part AND m.id = w.id
WHERE m.state = 5 OR m.recorded_fence > w.fence OR m.recorded_fence = w.fence AND m.recorded_state < 16";

pub(super) async fn recorded(session: &mut Session, tenancies: &[Tenancy]) -> Result<Vec<Tenancy>> {
    let statement = session.prepared(RECORDED).await?;
    let (parts, ids): (Vec<i32>, Vec<Uuid>) = tenancies.iter().map(|it| key(it.id)).unzip();
    let fences: Vec<i64> = tenancies.iter().map(|it| i64::from(it.fence.0)).collect();
    let rows = session
        .client
        .query(&statement, &[&parts, &ids, &fences])
        .await?;
    let mut numbers: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    numbers.sort_unstable();
    let at = |number: i64| tenancies.get(usize::try_from(number - 1).ok()?).copied();
    Ok(numbers.into_iter().filter_map(at).collect())
}

/// Added up, so that it does not grow. Two at once each take the lines that they see; none is lost or taken twice.
const ADD_UP: &str = "
WITH old AS (DELETE FROM tallies RETURNING waiting, claimed, held, dead)
INSERT INTO tallies SELECT coalesce(sum(waiting), 0), coalesce(sum(claimed), 0), coalesce(sum(held), 0), coalesce(sum(dead), 0)
FROM old";

pub(super) async fn counts(session: &mut Session) -> Result<Counts> {
    let sql = "SELECT coalesce(sum(waiting), 0)::int8, coalesce(sum(claimed), 0)::int8, coalesce(sum(held), 0)::int8, \
               coalesce(sum(dead), 0)::int8, count(*), \
               (SELECT count(*) FROM messages WHERE state < 5 AND in_doubt > 0) FROM tallies";
    let statement = session.prepared(sql).await?;
    let row = session.client.query_one(&statement, &[]).await?;
    if row.get::<_, i64>(4) > TALLIES_MAX {
        let statement = session.prepared(ADD_UP).await?;
        session.client.execute(&statement, &[]).await?;
    }
    let n = |column: usize| u64::try_from(row.get::<_, i64>(column)).unwrap_or_default();
    Ok(Counts {
        waiting: n(0),
        claimed: n(1),
        held: n(2),
        dead: n(3),
        in_doubt: n(5),
    })
}

const FIND: &str =
    "SELECT state, cancel, hold, progress FROM messages WHERE part = $1 AND id = $2 FOR UPDATE";

/// Where nothing but a mark changes, the row stays as it is; else it is due at once or not at all. `$10`: its deaths are
/// forgotten.
const MARK: &str = "
WITH marked AS (
    UPDATE messages SET state = $3::int2, due = $4, wake = $4, cancel = $5, hold = $6, changed = $7, progress = $8,
        deaths = CASE WHEN $10::bool THEN 0 ELSE deaths END, note = CASE WHEN $10 THEN NULL ELSE note END
    WHERE part = $1 AND id = $2 RETURNING 1
)
INSERT INTO tallies SELECT w, 0, h, d FROM (
    SELECT ($3 = 1)::int - ($9::int2 = 1)::int AS w, ($3 = 3)::int - ($9 = 3)::int AS h, ($3 = 4)::int - ($9 = 4)::int AS d
    FROM marked
) t WHERE w <> 0 OR h <> 0 OR d <> 0";

pub(super) async fn change_all(
    session: &mut Session,
    now: UnixMillis,
    ids: &[MessageId],
    change: Change,
) -> Result<u64> {
    let mut changed = 0;
    session.begin().await?;
    for id in ids {
        changed += u64::from(change_one(session, now, *id, change).await?);
    }
    session.commit().await?;
    Ok(changed)
}

/// Within a transaction.
async fn change_one(
    session: &mut Session,
    now: UnixMillis,
    id: MessageId,
    change: Change,
) -> Result<bool> {
    let find = session.prepared(FIND).await?;
    let mark = session.prepared(MARK).await?;
    let (part, id) = key(id);
    let Some(row) = session.client.query_opt(&find, &[&part, &id]).await? else {
        return Ok(false);
    };
    let (was, cancel, hold): (i16, i16, bool) = (row.get(0), row.get(1), row.get(2));
    let Some(after) = changed(was.into(), cancel.into(), hold, change) else {
        return Ok(false);
    };
    let mut progress: Vec<u8> = row.get(3);
    if after.state == WAITING && after.cancel == 0 {
        make_recipients_due(&mut progress, now);
    }
    let (state, cancel) = (after.state as i16, after.cancel as i16);
    let due = (after.state == WAITING).then_some(stored_time(now));
    session
        .client
        .execute(
            &mark,
            &[
                &part,
                &id,
                &state,
                &due,
                &cancel,
                &after.hold,
                &stored_time(now),
                &progress,
                &was,
                &(change == Change::Requeue),
            ],
        )
        .await?;
    Ok(true)
}

/// The row alone is not enough: its recipients have times of their own, and would send it back to wait.
fn make_recipients_due(encoded: &mut Vec<u8>, now: UnixMillis) {
    // What cannot be read here is dead as soon as it is claimed.
    if let Ok(mut progress) = frame::decode_all::<Progress>(encoded) {
        progress.make_due(now);
        *encoded = frame::encode(&progress);
    }
}

/// The head of a waiting message, whose beginning has been read; what is no message is given as far as that.
pub(super) async fn head_of(
    session: &mut Session,
    id: MessageId,
    mut start: bytes::Bytes,
) -> Result<bytes::Bytes> {
    let Ok(length) = frame::head_length(&start) else {
        return Ok(start);
    };
    if length <= start.len() {
        start.truncate(length);
        return Ok(start);
    }
    let sql = "SELECT substring(message FROM 1 FOR $3) FROM messages WHERE part = $1 AND id = $2";
    let statement = session.prepared(sql).await?;
    let (part, id) = key(id);
    let length = i32::try_from(length).unwrap_or(i32::MAX);
    let found = session
        .client
        .query_opt(&statement, &[&part, &id, &length])
        .await?;
    Ok(found.map_or(start, |row| row.get::<_, Vec<u8>>(0).into()))
}

/// A row by its columns.
pub(super) fn read(row: &tokio_postgres::Row) -> Row {
    let time = |column: usize| row.get::<_, Option<i64>>(column).map(time_from);
    let data = RowData {
        state: state_from(row.get::<_, i16>(1).into()),
        due: time(6),
        wake: time(7),
        reason: row.get(10),
        transport: row.get(11),
        destination: row.get(12),
        priority: priority_from(row.get::<_, i16>(8).into()),
        doubt: row.get(9),
        unsure_since: time_from(row.get(18)),
        in_doubt: row.get::<_, i32>(16).unsigned_abs(),
        deaths: row.get::<_, i32>(17).unsigned_abs(),
        message: row.get::<_, Vec<u8>>(14).into(),
        progress: row.get(13),
        tally: Tally::default(),
    };
    Row {
        id: MessageId(row.get(0)),
        fence: Fence(u32::try_from(row.get::<_, i64>(2)).unwrap_or(u32::MAX)),
        holder: row.get::<_, Option<Uuid>>(3).map(Incarnation),
        cancelled: row.get::<_, i16>(4) != 0,
        changed: time_from(row.get(5)),
        data,
    }
}
