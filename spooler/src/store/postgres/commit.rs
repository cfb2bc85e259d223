//! Conditional writes: who wins, who loses.
//!
//! All writes of a commit are one statement over arrays, and that is its own transaction: one round trip. Within it each id
//! stands once; writes that name an id again go into another statement, after it, in the same transaction then (it happens
//! where a holder repeats itself). Ids are sorted, so that two processes lock rows in one order.
//!
//! Whoever loses may be repeating itself; that is asked for afterwards, when the other side's row can be seen. By then somebody
//! else may have recorded, and the repetition is `Lost`: as good.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use pombo_proto::{
    control::QueueState,
    ids::{Fence, Incarnation, MessageId},
    ledger::{Account, DoorNumber, Outcomes},
    time::UnixMillis,
    verbs::Tenancy,
};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    super::{
        RowData, Write, Written,
        stored::{recorded_state, stored, stored_priority, stored_time},
        tally::{stored_account, stored_count},
    },
    Memory, Result, parts,
    rows::storable,
    session::Session,
};

/// What a line of the arrays is.
const INSERT: i16 = 0;
const UPDATE: i16 = 1;
const REPORT: i16 = 2;
const NOTE: i16 = 3;

const LINES: &str = "
SELECT * FROM unnest($2::int2[], $3::int4[], $4::uuid[], $5::uuid[], $6::int8[], $7::uuid[], $8::int2[], $9::int2[], $10::bool[],
    $11::int8[], $12::int8[], $13::int2[], $14::text[], $15::text[], $16::text[], $17::bytea[], $18::bytea[],
    $19::int4[], $20::int4[], $21::bytea[], $22::int8[])
AS w(kind, part, id, owner, fence, holder, state, recorded_state, doubt, due, wake, priority, reason, transport, destination,
    progress, message, in_doubt, deaths, note, unsure_since)";

/// A new row at fence 0. Recorded, if a holder says so; else moved, or a report.
const NEW_ROW: &str = "
INSERT INTO messages (part, id, state, fence, recorded_fence, recorded_by, recorded_state, cancel, hold, doubt, changed, since, due,
    wake, priority, reason, transport, destination, progress, message, in_doubt, deaths, unsure_since)
SELECT part, id, state, 0, CASE WHEN holder IS NOT NULL THEN 0 END, holder, recorded_state, 0, false, doubt, $1::int8, $1, due,
    wake, priority, reason, transport, destination, progress, message, in_doubt, deaths, unsure_since
FROM w";

/// What the ledger learns of each line: nothing of notes, nor of claims that go back to wait. Beside the messages, so that these are
/// not copied for it.
const LEDGER_LINES: &str = "
SELECT account, count(*) FILTER (WHERE kind <> 1) AS rows, count(*) FILTER (WHERE outcome = 0) AS delivered,
    count(*) FILTER (WHERE outcome = 1) AS failed, count(*) FILTER (WHERE outcome = 2) AS expired,
    count(*) FILTER (WHERE outcome = 3) AS cancelled, sum(to_delivered) AS to_delivered, sum(to_failed) AS to_failed,
    sum(to_expired) AS to_expired, sum(to_cancelled) AS to_cancelled, $1 AS changed,
    coalesce(array_agg(number) FILTER (WHERE kind <> 1 AND number > 0), '{}') AS numbers
FROM unnest($2::int2[], $4::uuid[], $23::int8[], $24::int8[], $25::int2[], $26::int4[], $27::int4[], $28::int4[], $29::int4[])
AS l(kind, id, account, number, outcome, to_delivered, to_failed, to_expired, to_cancelled)";

const TALLIED: &str = "
INSERT INTO tallies SELECT * FROM (
    SELECT count(*) FILTER (WHERE state = 1) AS waiting, -count(*) FILTER (WHERE was = 2) AS claimed,
        count(*) FILTER (WHERE state = 3) AS held, count(*) FILTER (WHERE state = 4) AS dead
    FROM moved
) t WHERE waiting <> 0 OR claimed <> 0 OR held <> 0 OR dead <> 0";

/// What most commits are: messages that finish, or wait, for the first time.
static NEW_ROWS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH w AS ({LINES}), inserted AS ({NEW_ROW} ON CONFLICT (part, id) DO NOTHING RETURNING id, state), \
         moved AS (SELECT state, 0 AS was FROM inserted), tallied AS ({TALLIED}), \
         booked AS (INSERT INTO entries {LEDGER_LINES} WHERE (id IN (SELECT id FROM inserted)) IS TRUE GROUP BY account) \
         SELECT id FROM inserted"
    )
});

/// The row is left with the doubt that it was claimed with.
const GIVEN_BACK: &str = "w.doubt AND m.doubt AND m.unsure_since = w.unsure_since";

/// Claims' verdicts, notes and reports, too. What people asked for while a row was claimed takes effect when its holder lets it go
/// unfinished: a fresh cancel (2) makes it due now, for whoever claims it next to record; else a hold takes it off the road.
/// A message that is as it was is not written again.
static MIXED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH w AS ({LINES}), \
         inserted AS ({NEW_ROW} WHERE kind = 0 ON CONFLICT (part, id) DO NOTHING RETURNING id, state), \
         updated AS (
            UPDATE messages m SET
                state = CASE WHEN w.state = 5 THEN 5 WHEN m.cancel = 2 THEN 1 WHEN w.state = 1 AND m.hold THEN 3
                    ELSE w.state END,
                due = CASE WHEN w.state = 5 THEN w.due WHEN m.cancel = 2 THEN $1 WHEN w.state = 1 AND m.hold THEN NULL
                    ELSE w.due END,
                wake = CASE WHEN w.state = 5 THEN w.wake WHEN m.cancel = 2 THEN $1 WHEN w.state = 1 AND m.hold THEN NULL
                    ELSE w.wake END,
                cancel = CASE WHEN w.state <> 5 AND m.cancel = 2 THEN 1 ELSE m.cancel END,
                holder = NULL, hold = false,
                recorded_fence = CASE WHEN {GIVEN_BACK} THEN m.recorded_fence ELSE m.fence END,
                recorded_by = CASE WHEN {GIVEN_BACK} THEN m.recorded_by ELSE w.holder END,
                recorded_state = CASE WHEN {GIVEN_BACK} THEN m.recorded_state ELSE w.recorded_state END,
                doubt = w.doubt, changed = $1, priority = w.priority,
                reason = w.reason, transport = w.transport, destination = w.destination, progress = w.progress,
                in_doubt = w.in_doubt, deaths = w.deaths, note = CASE WHEN w.doubt THEN m.note END,
                unsure_since = w.unsure_since, asks = CASE WHEN w.doubt THEN m.asks ELSE '' END,
                message = CASE WHEN m.message = w.message THEN m.message ELSE w.message END
            FROM w WHERE w.kind = 1 AND m.part = w.part AND m.id = w.id
                AND m.state = 2 AND m.fence = w.fence AND m.holder = w.holder
            RETURNING m.id, m.state), \
         noted AS (
            UPDATE messages m SET note = w.note FROM w WHERE w.kind = 3 AND m.part = w.part AND m.id = w.id
                AND m.state = 2 AND m.fence = w.fence AND m.holder = w.holder
            RETURNING m.id), \
         reported AS ({NEW_ROW} WHERE kind = 2
                AND (owner IN (SELECT id FROM inserted) OR owner IN (SELECT id FROM updated))
            ON CONFLICT (part, id) DO NOTHING RETURNING id, state), \
         moved AS (SELECT state, 0 AS was FROM inserted UNION ALL SELECT state, 2 FROM updated
            UNION ALL SELECT state, 0 FROM reported), \
         tallied AS ({TALLIED}), \
         booked AS (INSERT INTO entries {LEDGER_LINES} WHERE kind = 0 AND (id IN (SELECT id FROM inserted)) IS TRUE \
                OR kind = 1 AND outcome >= 0 AND (id IN (SELECT id FROM updated)) IS TRUE \
                OR kind = 2 AND (id IN (SELECT id FROM reported)) IS TRUE GROUP BY account) \
         SELECT id FROM inserted UNION ALL SELECT id FROM updated \
         UNION ALL SELECT id FROM noted"
    )
});

const STANDING: &str = "
SELECT w.id, m.recorded_fence, m.recorded_by, m.recorded_state
FROM unnest($1::int4[], $2::uuid[]) AS w(part, id) JOIN messages m ON m.part = w.part AND m.id = w.id
WHERE m.recorded_fence IS NOT NULL";

pub(super) async fn commit(
    session: &mut Session,
    memory: &mut Memory,
    now: UnixMillis,
    writes: &[Write],
) -> Result<Vec<Written>> {
    parts::ensure(session, memory, new_ids(writes).map(MessageId::part)).await?;
    let waves = waves(writes);
    let mut answers = vec![Written::Lost; writes.len()];
    if let [wave] = &waves[..] {
        apply(session, now, wave, &mut answers).await?;
        return Ok(answers);
    }
    session.begin().await?;
    for wave in &waves {
        apply(session, now, wave, &mut answers).await?;
    }
    session.commit().await?;
    Ok(answers)
}

/// The ids that may get a row: their parts must be there.
fn new_ids(writes: &[Write]) -> impl Iterator<Item = MessageId> + Clone {
    writes.iter().flat_map(|write| {
        let (own, reports) = match write {
            Write::Move { id, .. } => (Some(*id), &[][..]),
            Write::Note { .. } => (None, &[][..]),
            Write::Record {
                tenancy, reports, ..
            } => {
                let is_new = tenancy.fence == Fence(0);
                (is_new.then_some(tenancy.id), &reports[..])
            }
        };
        own.into_iter().chain(reports.iter().map(|(id, _)| *id))
    })
}

type Wave<'a> = Vec<(usize, &'a Write)>;

/// The writes in order, cut wherever an id comes again.
fn waves(writes: &[Write]) -> Vec<Wave<'_>> {
    let mut waves = vec![Wave::new()];
    let mut seen = HashSet::new();
    for (number, write) in writes.iter().enumerate() {
        let named: Vec<MessageId> = match write {
            Write::Move { id, .. } => vec![*id],
            Write::Note { tenancy, .. } => vec![tenancy.id],
            Write::Record {
                tenancy, reports, ..
            } => reports
                .iter()
                .map(|(id, _)| *id)
                .chain([tenancy.id])
                .collect(),
        };
        if named.iter().any(|id| seen.contains(id)) {
            seen.clear();
            waves.push(Wave::new());
        }
        seen.extend(named);
        if let Some(wave) = waves.last_mut() {
            wave.push((number, write));
        }
    }
    waves
}

/// One statement, and the question after what lost.
async fn apply(
    session: &mut Session,
    now: UnixMillis,
    wave: &Wave<'_>,
    answers: &mut [Written],
) -> Result<()> {
    let mut lines: Vec<Line<'_>> = wave.iter().flat_map(|(_, write)| lines(write)).collect();
    lines.sort_unstable_by_key(|line| line.id);
    let is_new = lines.iter().all(|line| line.kind == INSERT);
    let sql: &'static str = if is_new { &NEW_ROWS } else { &MIXED };
    let applied = send(session, sql, now, &lines).await?;
    let mut losers: Vec<(usize, Tenancy, (i64, Uuid, i16))> = Vec::new();
    for (number, write) in wave {
        match write {
            Write::Move { id, .. } if applied.contains(&id.0) => answers[*number] = Written::Won,
            Write::Move { .. } => {}
            Write::Record { tenancy, .. } | Write::Note { tenancy, .. }
                if applied.contains(&tenancy.id.0) =>
            {
                answers[*number] = Written::Won;
            }
            // A note that is repeated is written again: whoever may write it still holds the row.
            Write::Note { .. } => {}
            Write::Record {
                tenancy,
                holder,
                row,
                ..
            } => {
                let this = (
                    i64::from(tenancy.fence.0),
                    holder.0,
                    recorded_state(row) as i16,
                );
                losers.push((*number, *tenancy, this));
            }
        }
    }
    if losers.is_empty() {
        return Ok(());
    }
    let ids = losers.iter().map(|(_, tenancy, _)| tenancy.id);
    let recorded = standing(session, ids).await?;
    for (number, tenancy, this) in losers {
        // The same write, committed before: its reports went in with it.
        if recorded.get(&tenancy.id.0) == Some(&this) {
            answers[number] = Written::Won;
        }
    }
    Ok(())
}

/// Fence, holder and state of what was recorded last.
async fn standing(
    session: &mut Session,
    ids: impl Iterator<Item = MessageId>,
) -> Result<HashMap<Uuid, (i64, Uuid, i16)>> {
    let (parts, ids): (Vec<i32>, Vec<Uuid>) = ids.map(key).unzip();
    let statement = session.prepared(STANDING).await?;
    let rows = session.client.query(&statement, &[&parts, &ids]).await?;
    let recorded = |row: &tokio_postgres::Row| (row.get(0), (row.get(1), row.get(2), row.get(3)));
    Ok(rows.iter().map(recorded).collect())
}

/// A message's key: part and id.
pub(super) fn key(id: MessageId) -> (i32, Uuid) {
    // Days since 1970 are far from two thousand million; what claims otherwise shares the last part.
    (i32::try_from(id.part()).unwrap_or(i32::MAX), id.0)
}

/// One line of the arrays.
struct Line<'a> {
    kind: i16,
    id: MessageId,
    /// Whose report it is.
    owner: Option<MessageId>,
    fence: i64,
    holder: Option<Incarnation>,
    is_report: bool,
    /// None of a note.
    row: Option<&'a RowData>,
    note: Option<&'a [u8]>,
}

impl Line<'_> {
    /// The recipients of a message that finishes by it.
    fn finished(&self) -> Option<Outcomes> {
        let row = self.row.filter(|row| row.state == QueueState::Finished);
        row.map(|row| row.tally.recipients)
    }
}

/// What a line means for the ledger that finishes nothing.
const NOT_FINISHED: i16 = -1;

/// As what a message counts: 0 to 3, in the order of [`Outcomes`].
fn outcome(recipients: Outcomes) -> i16 {
    let one = recipients.as_one_message().as_array();
    let place = one.iter().position(|count| *count > 0);
    place.map_or(NOT_FINISHED, |place| place as i16)
}

fn lines(write: &Write) -> Vec<Line<'_>> {
    let line = |kind, id, row| Line {
        kind,
        id,
        owner: None,
        fence: 0,
        holder: None,
        is_report: kind == REPORT,
        row: Some(row),
        note: None,
    };
    match write {
        Write::Move { id, row } => vec![line(INSERT, *id, row)],
        Write::Note {
            tenancy,
            holder,
            note,
        } => vec![Line {
            kind: NOTE,
            id: tenancy.id,
            owner: None,
            fence: i64::from(tenancy.fence.0),
            holder: Some(*holder),
            is_report: false,
            row: None,
            note: Some(note),
        }],
        Write::Record {
            tenancy,
            holder,
            row,
            reports,
        } => {
            let kind = if tenancy.fence == Fence(0) {
                INSERT
            } else {
                UPDATE
            };
            let own = Line {
                fence: i64::from(tenancy.fence.0),
                holder: Some(*holder),
                is_report: row.tally.is_report,
                ..line(kind, tenancy.id, row)
            };
            let report = |(id, row)| Line {
                owner: Some(tenancy.id),
                ..line(REPORT, id, row)
            };
            let reports = reports.iter().map(|(id, row)| report((*id, row)));
            std::iter::once(own).chain(reports).collect()
        }
    }
}

/// The ids of those that applied, reports apart.
async fn send<'a>(
    session: &mut Session,
    sql: &'static str,
    now: UnixMillis,
    lines: &[Line<'a>],
) -> Result<HashSet<Uuid>> {
    let statement = session.prepared(sql).await?;
    let row = |column: &dyn Fn(&RowData) -> i64| -> Vec<i16> {
        let numbers = lines.iter().map(|it| it.row.map_or(0, column) as i16);
        numbers.collect()
    };
    let count = |column: &dyn Fn(&RowData) -> u32| -> Vec<i32> {
        let counts = lines.iter().map(|it| it.row.map_or(0, column));
        counts
            .map(|n| i32::try_from(n).unwrap_or(i32::MAX))
            .collect()
    };
    let time = |column: &dyn Fn(&RowData) -> Option<UnixMillis>| -> Vec<Option<i64>> {
        let times = lines.iter().map(|it| it.row.and_then(column));
        times.map(|at| at.map(stored_time)).collect()
    };
    let bytes = |column: &dyn Fn(&Line<'a>) -> Option<&'a [u8]>| -> Vec<&'a [u8]> {
        let bytes = lines.iter().map(|line| column(line).unwrap_or_default());
        bytes.collect()
    };
    let text = |column: &dyn Fn(&'a RowData) -> Option<&'a str>| -> Vec<Option<Cow<'a, str>>> {
        let texts = lines.iter().map(|it| it.row.and_then(column));
        texts.map(|text| text.map(storable)).collect()
    };
    let now = stored_time(now);
    let kinds: Vec<i16> = lines.iter().map(|line| line.kind).collect();
    let (parts, ids): (Vec<i32>, Vec<Uuid>) = lines.iter().map(|line| key(line.id)).unzip();
    let owners: Vec<Option<Uuid>> = lines.iter().map(|it| it.owner.map(|id| id.0)).collect();
    let fences: Vec<i64> = lines.iter().map(|line| line.fence).collect();
    let holders: Vec<Option<Uuid>> = lines.iter().map(|it| it.holder.map(|by| by.0)).collect();
    let recorded: Vec<Option<i16>> = lines
        .iter()
        .map(|it| it.holder.and(it.row).map(|row| recorded_state(row) as i16))
        .collect();
    let doubts: Vec<bool> = lines
        .iter()
        .map(|it| it.row.is_some_and(|row| row.doubt))
        .collect();
    let (states, priorities) = (
        row(&|row| stored(row.state)),
        row(&|row| stored_priority(row.priority)),
    );
    let (dues, wakes) = (time(&|row| row.due), time(&|row| row.wake));
    let reasons = text(&|row| Some(&row.reason));
    let transports = text(&|row| row.transport.as_deref());
    let destinations = text(&|row| row.destination.as_deref());
    let progresses = bytes(&|it| it.row.map(|row| &row.progress[..]));
    let messages = bytes(&|it| it.row.map(|row| &row.message[..]));
    let (in_doubt, deaths) = (count(&|row| row.in_doubt), count(&|row| row.deaths));
    let notes: Vec<Option<&[u8]>> = lines.iter().map(|line| line.note).collect();
    let since: Vec<i64> = lines
        .iter()
        .map(|it| it.row.map_or(0, |row| stored_time(row.unsure_since)))
        .collect();
    let accounts: Vec<i64> = lines
        .iter()
        .map(|line| stored_account(Account::of(line.id, line.is_report)))
        .collect();
    let numbers: Vec<i64> = lines
        .iter()
        .map(|line| DoorNumber::of(line.id).map_or(0, |it| stored_count(it.sequence)))
        .collect();
    let finished: Vec<Option<Outcomes>> = lines.iter().map(Line::finished).collect();
    let outcomes: Vec<i16> = finished
        .iter()
        .map(|it| it.map_or(NOT_FINISHED, outcome))
        .collect();
    let [delivered, failed, expired, cancelled] = std::array::from_fn(|n| {
        let counts = finished
            .iter()
            .map(|it| it.unwrap_or_default().as_array()[n]);
        let counts = counts.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
        counts.collect::<Vec<i32>>()
    });
    let values: [&(dyn ToSql + Sync); 29] = [
        &now,
        &kinds,
        &parts,
        &ids,
        &owners,
        &fences,
        &holders,
        &states,
        &recorded,
        &doubts,
        &dues,
        &wakes,
        &priorities,
        &reasons,
        &transports,
        &destinations,
        &progresses,
        &messages,
        &in_doubt,
        &deaths,
        &notes,
        &since,
        &accounts,
        &numbers,
        &outcomes,
        &delivered,
        &failed,
        &expired,
        &cancelled,
    ];
    let rows = session.client.query(&statement, &values).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
