//! The ledger: one row per account, and pages of bits for the numbers of doors.
//!
//! A commit gathers what its writes mean for it and enters that once per account: one upsert, and a read and a write for each page
//! touched, whether it holds one message or five hundred.

use pombo_proto::{
    ids::MessageId,
    ledger::{Balance, DoorNumber},
    time::UnixMillis,
};
use rusqlite::{OptionalExtension, params};

use super::{
    super::{
        DoorReport,
        pages::{self, NUMBERS, Page},
        stored::{FINISHED, stored_time, time_from},
        tally::{
            Entry, Tallies, account_from, before_history, by_door, stored_count, void_numbers,
        },
    },
    parts::Scope,
    rows::head_of,
};

/// Enters them; within the transaction of the writes that they stand for.
pub(super) fn enter(scope: &Scope<'_>, now: UnixMillis, tallies: Tallies) -> rusqlite::Result<()> {
    for (account, entry) in tallies.0 {
        let complete = upsert(scope, account, &entry, now)?;
        account_for(scope, account, complete, entry.numbers)?;
    }
    Ok(())
}

/// In a store from before the ledger: what is there is entered, finished or not, a part at a time. A door whose older messages
/// have been pruned began before them.
pub(super) fn begin(scope: &mut Scope<'_>, now: UnixMillis) -> rusqlite::Result<()> {
    for part in scope.parts().to_vec() {
        let Some(sql) = scope.part(part) else {
            continue;
        };
        let mut tallies = Tallies::default();
        let mut statement = scope.transaction.prepare(&format!(
            "SELECT row, id, state, progress, head FROM part_{part}"
        ))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id = MessageId(uuid::Uuid::from_bytes(row.get(1)?));
            let is_finished = row.get::<_, i64>(2)? == FINISHED;
            let head = match row.get::<_, Option<Vec<u8>>>(4)? {
                Some(head) => head.into(),
                None if id.is_derived() => head_of(scope, &sql, row.get(0)?)?,
                None => bytes::Bytes::new(),
            };
            tallies.found(id, is_finished, &head, row.get_ref(3)?.as_blob()?);
        }
        drop(rows);
        drop(statement);
        for (account, entry) in &tallies.0 {
            if let Some(oldest) = entry.numbers.iter().min() {
                begin_door(scope, *account, *oldest, now)?;
            }
        }
        enter(scope, now, tallies)?;
    }
    Ok(())
}

fn begin_door(
    scope: &Scope<'_>,
    account: i64,
    oldest: u64,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    if standing(scope, account)?.is_some() {
        return Ok(());
    }
    upsert(scope, account, &Entry::default(), now)?;
    let (complete, rest) = before_history(oldest);
    scope.transaction.execute(
        "UPDATE accounts SET complete = ?2, voided = ?3 WHERE account = ?1",
        params![
            account,
            stored_count(complete),
            stored_count(complete * NUMBERS)
        ],
    )?;
    void(scope, account, complete, rest.collect())?;
    Ok(())
}

/// Adds to an account; how many of its pages are complete.
fn upsert(
    scope: &Scope<'_>,
    account: i64,
    tally: &Entry,
    now: UnixMillis,
) -> rusqlite::Result<u64> {
    let (messages, recipients) = (tally.messages.as_array(), tally.recipients.as_array());
    let complete: i64 = scope
        .transaction
        .prepare_cached(
            "INSERT INTO accounts (account, name, confirmed, voided, complete, rows, delivered, failed, expired, \
             cancelled, to_delivered, to_failed, to_expired, to_cancelled, changed) \
             VALUES (?1, '', 0, 0, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
             ON CONFLICT (account) DO UPDATE SET rows = rows + ?2, delivered = delivered + ?3, failed = failed + ?4, \
             expired = expired + ?5, cancelled = cancelled + ?6, to_delivered = to_delivered + ?7, \
             to_failed = to_failed + ?8, to_expired = to_expired + ?9, to_cancelled = to_cancelled + ?10, \
             changed = max(changed, ?11) RETURNING complete",
        )?
        .query_row(
            params![
                account,
                stored_count(tally.rows),
                stored_count(messages[0]),
                stored_count(messages[1]),
                stored_count(messages[2]),
                stored_count(messages[3]),
                stored_count(recipients[0]),
                stored_count(recipients[1]),
                stored_count(recipients[2]),
                stored_count(recipients[3]),
                stored_time(now),
            ],
            |row| row.get(0),
        )?;
    Ok(complete.unsigned_abs())
}

/// Sets the numbers' bits; how many were not set before. Pages that are complete up to the first that is not are dropped.
fn account_for(
    scope: &Scope<'_>,
    account: i64,
    complete: u64,
    mut numbers: Vec<u64>,
) -> rusqlite::Result<u64> {
    numbers.sort_unstable();
    let (mut fresh, mut filled) = (0, false);
    for numbers in numbers.chunk_by(|a, b| pages::place(*a).0 == pages::place(*b).0) {
        let (page, _) = pages::place(numbers[0]);
        if page < complete {
            continue;
        }
        let mut bits = page_of(scope, account, page)?.unwrap_or_default();
        let before = fresh;
        for sequence in numbers {
            fresh += u64::from(bits.set(pages::place(*sequence).1));
        }
        if fresh > before {
            scope
                .transaction
                .prepare_cached(
                    "INSERT INTO pages (account, page, bits) VALUES (?1, ?2, ?3) \
                     ON CONFLICT (account, page) DO UPDATE SET bits = ?3",
                )?
                .execute(params![account, stored_count(page), bits.to_bytes()])?;
            filled |= bits.is_full();
        }
    }
    if filled {
        drop_complete(scope, account, complete)?;
    }
    Ok(fresh)
}

fn drop_complete(scope: &Scope<'_>, account: i64, complete: u64) -> rusqlite::Result<()> {
    let mut next = complete;
    while page_of(scope, account, next)?.is_some_and(|page| page.is_full()) {
        scope
            .transaction
            .prepare_cached("DELETE FROM pages WHERE account = ?1 AND page = ?2")?
            .execute(params![account, stored_count(next)])?;
        next += 1;
    }
    if next > complete {
        scope
            .transaction
            .prepare_cached("UPDATE accounts SET complete = ?2 WHERE account = ?1")?
            .execute(params![account, stored_count(next)])?;
    }
    Ok(())
}

fn page_of(scope: &Scope<'_>, account: i64, page: u64) -> rusqlite::Result<Option<Page>> {
    scope
        .transaction
        .prepare_cached("SELECT bits FROM pages WHERE account = ?1 AND page = ?2")?
        .query_row(params![account, stored_count(page)], |row| {
            Ok(Page::from_bytes(row.get_ref(0)?.as_blob()?))
        })
        .optional()
}

pub(super) fn record_doors(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    reports: &[DoorReport],
) -> rusqlite::Result<()> {
    for report in reports {
        let account = i64::from(report.door);
        let complete = upsert(scope, account, &Entry::default(), now)?;
        scope
            .transaction
            .prepare_cached(
                "UPDATE accounts SET name = ?2, confirmed = max(confirmed, ?3) WHERE account = ?1",
            )?
            .execute(params![
                account,
                report.name,
                stored_count(report.confirmed)
            ])?;
        void(scope, account, complete, void_numbers(report))?;
    }
    Ok(())
}

fn void(
    scope: &Scope<'_>,
    account: i64,
    complete: u64,
    numbers: Vec<u64>,
) -> rusqlite::Result<u64> {
    if numbers.is_empty() {
        return Ok(0);
    }
    let fresh = account_for(scope, account, complete, numbers)?;
    scope
        .transaction
        .prepare_cached("UPDATE accounts SET voided = voided + ?2 WHERE account = ?1")?
        .execute(params![account, stored_count(fresh)])?;
    Ok(fresh)
}

pub(super) fn write_off(scope: &mut Scope<'_>, numbers: &[DoorNumber]) -> rusqlite::Result<u64> {
    let mut count = 0;
    for (door, numbers) in by_door(numbers) {
        let standing = standing(scope, i64::from(door))?;
        if let Some((confirmed, complete)) = standing {
            // What is beyond the door's word is not known to be missing.
            let known = numbers
                .into_iter()
                .filter(|it| (1..=confirmed).contains(it));
            count += void(scope, i64::from(door), complete, known.collect())?;
        }
    }
    Ok(count)
}

/// An account's confirmed number, and how many of its pages are complete.
fn standing(scope: &Scope<'_>, account: i64) -> rusqlite::Result<Option<(u64, u64)>> {
    scope
        .transaction
        .prepare_cached("SELECT confirmed, complete FROM accounts WHERE account = ?1")?
        .query_row([account], |row| {
            let (confirmed, complete): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok((confirmed.unsigned_abs(), complete.unsigned_abs()))
        })
        .optional()
}

fn pages_of(scope: &Scope<'_>, account: i64) -> rusqlite::Result<Vec<(u64, Page)>> {
    scope
        .transaction
        .prepare_cached("SELECT page, bits FROM pages WHERE account = ?1 ORDER BY page")?
        .query_map([account], |row| {
            let page: i64 = row.get(0)?;
            let bits = Page::from_bytes(row.get_ref(1)?.as_blob()?);
            Ok((page.unsigned_abs(), bits))
        })?
        .collect()
}

pub(super) fn ledger(scope: &mut Scope<'_>) -> rusqlite::Result<Vec<Balance>> {
    let mut statement = scope.transaction.prepare_cached(
        "SELECT account, name, confirmed, voided, complete, rows, delivered, failed, expired, cancelled, \
         to_delivered, to_failed, to_expired, to_cancelled, changed FROM accounts ORDER BY account",
    )?;
    let mut rows = statement.query([])?;
    let mut balances = Vec::new();
    while let Some(row) = rows.next()? {
        let account: i64 = row.get(0)?;
        let count =
            |place: usize| Ok::<_, rusqlite::Error>(row.get::<_, i64>(place)?.unsigned_abs());
        let four = |at| {
            Ok::<_, rusqlite::Error>([count(at)?, count(at + 1)?, count(at + 2)?, count(at + 3)?])
        };
        let confirmed = count(2)?;
        let sum = pages::add_up(confirmed, count(4)?, pages_of(scope, account)?);
        balances.push(Balance {
            account: account_from(account),
            name: row.get(1)?,
            confirmed,
            voided: count(3)?,
            beyond: sum.beyond,
            rows: count(5)?,
            holes: sum.holes,
            messages: four(6)?.into(),
            recipients: four(10)?.into(),
            changed: time_from(row.get(14)?),
        });
    }
    Ok(balances)
}

pub(super) fn holes(scope: &mut Scope<'_>, door: u32, limit: usize) -> rusqlite::Result<Vec<u64>> {
    let Some((confirmed, complete)) = standing(scope, i64::from(door))? else {
        return Ok(Vec::new());
    };
    let pages = pages_of(scope, i64::from(door))?;
    Ok(pages::holes(confirmed, complete, pages, limit))
}

/// Forgets doors that are gone: nothing was entered since, and nothing of them waits.
pub(super) fn forget(scope: &mut Scope<'_>, before: UnixMillis) -> rusqlite::Result<u32> {
    const GONE: &str =
        "account >= 0 AND changed < ?1 AND rows = delivered + failed + expired + cancelled";
    let before = stored_time(before);
    scope.transaction.execute(
        &format!("DELETE FROM pages WHERE account IN (SELECT account FROM accounts WHERE {GONE})"),
        [before],
    )?;
    let gone = scope
        .transaction
        .execute(&format!("DELETE FROM accounts WHERE {GONE}"), [before])?;
    Ok(u32::try_from(gone).unwrap_or(u32::MAX))
}
