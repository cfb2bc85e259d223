//! The ledger: one row per account, pages of bits for the numbers of doors, and the lines that commits leave.
//!
//! A commit writes what it means for the ledger as lines of its own into `entries`, one per account, in the statement that
//! writes its messages: no row that another spooler changes, so nobody waits for anybody. Whoever asks the ledger, or changes it,
//! first adds the lines up and deletes them, under a lock that only those who do so take: every few seconds, some
//! milliseconds.

use std::collections::{BTreeMap, HashMap};

use pombo_proto::{
    ids::MessageId,
    ledger::{Balance, DoorNumber},
    time::UnixMillis,
};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{
        DoorReport,
        pages::{self, NUMBERS, Page},
        stored::{FINISHED, HEAD_FIRST, stored_time, time_from},
        tally::{
            Entry, Tallies, account_from, before_history, by_door, stored_count, void_numbers,
        },
    },
    Result,
    rows::storable,
    session::Session,
};

/// Those who add up stand in line here; the number is "Pomc".
const LOCK: &str = "SELECT pg_advisory_xact_lock(1349479779, hashtext(current_schema()))";
/// Pages looked at in one go for those that are full.
const FULL_LOOKED_AT: i64 = 256;
/// Rows from before the ledger that are read at a time.
const FOUND: i64 = 5_000;

/// Opens the transaction in which everything here happens, with all lines added up that are there.
async fn open(session: &mut Session) -> Result<()> {
    session.begin().await?;
    session.client.batch_execute(LOCK).await?;
    let sql = "DELETE FROM entries RETURNING account, rows, delivered, failed, expired, cancelled, to_delivered, to_failed, \
               to_expired, to_cancelled, changed, numbers";
    let statement = session.prepared(sql).await?;
    let lines = session.client.query(&statement, &[]).await?;
    let mut tallies = Tallies::default();
    let mut changed: BTreeMap<i64, i64> = BTreeMap::new();
    for line in &lines {
        let account: i64 = line.get(0);
        let entry = tallies.0.entry(account).or_default();
        entry.rows += count(line, 1);
        entry.messages += four(line, 2).into();
        entry.recipients += four(line, 6).into();
        let numbers: Vec<i64> = line.get(11);
        entry
            .numbers
            .extend(numbers.into_iter().map(i64::unsigned_abs));
        let at = changed.entry(account).or_default();
        *at = (*at).max(line.get(10));
    }
    for (account, entry) in tallies.0 {
        let at = changed.get(&account).copied().unwrap_or_default();
        let complete = upsert(session, account, &entry, at).await?;
        account_for(session, account, complete, entry.numbers).await?;
    }
    Ok(())
}

fn count(row: &Row, column: usize) -> u64 {
    row.get::<_, i64>(column).unsigned_abs()
}

fn four(row: &Row, at: usize) -> [u64; 4] {
    std::array::from_fn(|n| count(row, at + n))
}

/// Adds to an account; how many of its pages are complete.
async fn upsert(session: &mut Session, account: i64, entry: &Entry, changed: i64) -> Result<u64> {
    let sql = "INSERT INTO accounts AS a (account, name, confirmed, voided, complete, rows, delivered, failed, expired, \
               cancelled, to_delivered, to_failed, to_expired, to_cancelled, changed) \
               VALUES ($1, '', 0, 0, 0, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
               ON CONFLICT (account) DO UPDATE SET rows = a.rows + $2, delivered = a.delivered + $3, \
               failed = a.failed + $4, expired = a.expired + $5, cancelled = a.cancelled + $6, \
               to_delivered = a.to_delivered + $7, to_failed = a.to_failed + $8, to_expired = a.to_expired + $9, \
               to_cancelled = a.to_cancelled + $10, changed = greatest(a.changed, $11) RETURNING complete";
    let statement = session.prepared(sql).await?;
    let messages = entry.messages.as_array().map(stored_count);
    let recipients = entry.recipients.as_array().map(stored_count);
    let row = session
        .client
        .query_one(
            &statement,
            &[
                &account,
                &stored_count(entry.rows),
                &messages[0],
                &messages[1],
                &messages[2],
                &messages[3],
                &recipients[0],
                &recipients[1],
                &recipients[2],
                &recipients[3],
                &changed,
            ],
        )
        .await?;
    Ok(count(&row, 0))
}

/// Sets the numbers' bits; how many were not set before. Pages that are complete up to the first that is not are dropped.
async fn account_for(
    session: &mut Session,
    account: i64,
    complete: u64,
    mut numbers: Vec<u64>,
) -> Result<u64> {
    numbers.retain(|number| pages::place(*number).0 >= complete);
    if numbers.is_empty() {
        return Ok(0);
    }
    numbers.sort_unstable();
    let mut wanted: Vec<i64> = numbers
        .iter()
        .map(|number| stored_count(pages::place(*number).0))
        .collect();
    wanted.dedup();
    let sql = "SELECT page, bits FROM pages WHERE account = $1 AND page = ANY($2)";
    let statement = session.prepared(sql).await?;
    let found = session
        .client
        .query(&statement, &[&account, &wanted])
        .await?;
    let mut known: HashMap<u64, Page> = found.iter().map(page).collect();
    let (mut fresh, mut filled) = (0, false);
    let (mut touched, mut bits): (Vec<i64>, Vec<Vec<u8>>) = Default::default();
    for numbers in numbers.chunk_by(|a, b| pages::place(*a).0 == pages::place(*b).0) {
        let (number, _) = pages::place(numbers[0]);
        let mut page = known.remove(&number).unwrap_or_default();
        let before = fresh;
        for sequence in numbers {
            fresh += u64::from(page.set(pages::place(*sequence).1));
        }
        if fresh > before {
            touched.push(stored_count(number));
            bits.push(page.to_bytes().to_vec());
            filled |= page.is_full();
        }
    }
    let sql = "INSERT INTO pages (account, page, bits) SELECT $1, * FROM unnest($2::int8[], $3::bytea[]) \
               ON CONFLICT (account, page) DO UPDATE SET bits = excluded.bits";
    let statement = session.prepared(sql).await?;
    session
        .client
        .execute(&statement, &[&account, &touched, &bits])
        .await?;
    if filled {
        drop_complete(session, account, complete).await?;
    }
    Ok(fresh)
}

async fn drop_complete(session: &mut Session, account: i64, complete: u64) -> Result<()> {
    let look =
        "SELECT page, bits FROM pages WHERE account = $1 AND page >= $2 ORDER BY page LIMIT $3";
    let look = session.prepared(look).await?;
    let mut next = complete;
    loop {
        let from = next;
        let found = session
            .client
            .query(&look, &[&account, &stored_count(next), &FULL_LOOKED_AT])
            .await?;
        for (number, bits) in found.iter().map(page) {
            if number != next || !bits.is_full() {
                break;
            }
            next += 1;
        }
        if next - from < FULL_LOOKED_AT.unsigned_abs() {
            break;
        }
    }
    if next == complete {
        return Ok(());
    }
    let next = stored_count(next);
    for sql in [
        "DELETE FROM pages WHERE account = $1 AND page < $2",
        "UPDATE accounts SET complete = $2 WHERE account = $1",
    ] {
        let statement = session.prepared(sql).await?;
        session
            .client
            .execute(&statement, &[&account, &next])
            .await?;
    }
    Ok(())
}

fn page(row: &Row) -> (u64, Page) {
    (count(row, 0), Page::from_bytes(row.get(1)))
}

pub(super) async fn record_doors(
    session: &mut Session,
    now: UnixMillis,
    reports: &[DoorReport],
) -> Result<()> {
    open(session).await?;
    let sql =
        "UPDATE accounts SET name = $2, confirmed = greatest(confirmed, $3) WHERE account = $1";
    let statement = session.prepared(sql).await?;
    for report in reports {
        let account = i64::from(report.door);
        let complete = upsert(session, account, &Entry::default(), stored_time(now)).await?;
        let (name, confirmed) = (storable(&report.name), stored_count(report.confirmed));
        session
            .client
            .execute(&statement, &[&account, &name, &confirmed])
            .await?;
        void(session, account, complete, void_numbers(report)).await?;
    }
    session.commit().await
}

async fn void(
    session: &mut Session,
    account: i64,
    complete: u64,
    numbers: Vec<u64>,
) -> Result<u64> {
    if numbers.is_empty() {
        return Ok(0);
    }
    let fresh = account_for(session, account, complete, numbers).await?;
    let sql = "UPDATE accounts SET voided = voided + $2 WHERE account = $1";
    let statement = session.prepared(sql).await?;
    session
        .client
        .execute(&statement, &[&account, &stored_count(fresh)])
        .await?;
    Ok(fresh)
}

pub(super) async fn write_off(session: &mut Session, numbers: &[DoorNumber]) -> Result<u64> {
    open(session).await?;
    let mut total = 0;
    for (door, numbers) in by_door(numbers) {
        let account = i64::from(door);
        if let Some((confirmed, complete)) = standing(session, account).await? {
            // What is beyond the door's word is not known to be missing.
            let known = numbers
                .into_iter()
                .filter(|it| (1..=confirmed).contains(it));
            total += void(session, account, complete, known.collect()).await?;
        }
    }
    session.commit().await?;
    Ok(total)
}

/// An account's confirmed number, and how many of its pages are complete.
async fn standing(session: &mut Session, account: i64) -> Result<Option<(u64, u64)>> {
    let sql = "SELECT confirmed, complete FROM accounts WHERE account = $1";
    let statement = session.prepared(sql).await?;
    let found = session.client.query_opt(&statement, &[&account]).await?;
    Ok(found.map(|row| (count(&row, 0), count(&row, 1))))
}

pub(super) async fn ledger(session: &mut Session) -> Result<Vec<Balance>> {
    open(session).await?;
    let accounts = "SELECT account, name, confirmed, voided, complete, rows, delivered, failed, expired, cancelled, \
                    to_delivered, to_failed, to_expired, to_cancelled, changed FROM accounts ORDER BY account";
    let accounts = session.prepared(accounts).await?;
    let accounts = session.client.query(&accounts, &[]).await?;
    let all = "SELECT page, bits, account FROM pages ORDER BY account, page";
    let all = session.prepared(all).await?;
    let all = session.client.query(&all, &[]).await?;
    session.commit().await?;
    let mut kept: HashMap<i64, Vec<(u64, Page)>> = HashMap::new();
    for row in &all {
        kept.entry(row.get(2)).or_default().push(page(row));
    }
    let balance = |row: &Row| {
        let account: i64 = row.get(0);
        let confirmed = count(row, 2);
        let pages = kept.remove(&account).unwrap_or_default();
        let sum = pages::add_up(confirmed, count(row, 4), pages);
        Balance {
            account: account_from(account),
            name: row.get(1),
            confirmed,
            voided: count(row, 3),
            beyond: sum.beyond,
            rows: count(row, 5),
            holes: sum.holes,
            messages: four(row, 6).into(),
            recipients: four(row, 10).into(),
            changed: time_from(row.get(14)),
        }
    };
    Ok(accounts.iter().map(balance).collect())
}

pub(super) async fn holes(session: &mut Session, door: u32, limit: usize) -> Result<Vec<u64>> {
    open(session).await?;
    let account = i64::from(door);
    let standing = standing(session, account).await?;
    let sql = "SELECT page, bits FROM pages WHERE account = $1 ORDER BY page";
    let statement = session.prepared(sql).await?;
    let kept = session.client.query(&statement, &[&account]).await?;
    session.commit().await?;
    let Some((confirmed, complete)) = standing else {
        return Ok(Vec::new());
    };
    Ok(pages::holes(
        confirmed,
        complete,
        kept.iter().map(page),
        limit,
    ))
}

/// Forgets doors that are gone: nothing was entered since, and nothing of them waits.
pub(super) async fn forget(session: &mut Session, before: UnixMillis) -> Result<u32> {
    open(session).await?;
    let sql = "WITH gone AS (DELETE FROM accounts WHERE account >= 0 AND changed < $1 \
               AND rows = delivered + failed + expired + cancelled RETURNING account), \
               emptied AS (DELETE FROM pages WHERE account IN (SELECT account FROM gone)) \
               SELECT count(*) FROM gone";
    let statement = session.prepared(sql).await?;
    let row = session
        .client
        .query_one(&statement, &[&stored_time(before)])
        .await?;
    session.commit().await?;
    Ok(u32::try_from(count(&row, 0)).unwrap_or(u32::MAX))
}

/// In a store from before the ledger: what is there is entered, finished or not. A door whose older messages have been pruned
/// began before them. Within the transaction of the migration.
pub(super) async fn begin(session: &mut Session, now: UnixMillis) -> Result<()> {
    let sql = "SELECT part, id, state, progress, CASE WHEN part = 0 THEN substring(message FROM 1 FOR $4) END \
               FROM messages WHERE (part, id) > ($1, $2) ORDER BY part, id LIMIT $3";
    let statement = session.prepared(sql).await?;
    let mut after = (-1_i32, Uuid::nil());
    let mut tallies = Tallies::default();
    loop {
        let found = session
            .client
            .query(
                &statement,
                &[&after.0, &after.1, &FOUND, &(HEAD_FIRST as i32)],
            )
            .await?;
        for row in &found {
            after = (row.get(0), row.get(1));
            let is_finished = i64::from(row.get::<_, i16>(2)) == FINISHED;
            let head: Option<&[u8]> = row.get(4);
            let head = head.unwrap_or_default();
            tallies.found(MessageId(after.1), is_finished, head, row.get(3));
        }
        if (found.len() as i64) < FOUND {
            break;
        }
    }
    for (account, entry) in tallies.0 {
        let mut complete = upsert(session, account, &entry, stored_time(now)).await?;
        if let Some(oldest) = entry.numbers.iter().min() {
            let (pruned, rest) = before_history(*oldest);
            complete = pruned;
            let sql = "UPDATE accounts SET complete = $2, voided = $3 WHERE account = $1";
            let statement = session.prepared(sql).await?;
            let voided = stored_count(complete * NUMBERS);
            session
                .client
                .execute(&statement, &[&account, &stored_count(complete), &voided])
                .await?;
            void(session, account, complete, rest.collect()).await?;
        }
        account_for(session, account, complete, entry.numbers).await?;
    }
    Ok(())
}
