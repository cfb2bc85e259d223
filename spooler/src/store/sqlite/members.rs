//! Incarnations that live while their counter moves, and the agents that may have been submitted to.

use pombo_proto::{
    ids::{Incarnation, Instance},
    time::UnixMillis,
};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::{
    super::{
        ListedInstance, Member, Suspect,
        stored::{DAY_MS, TAKEN_OVER, stored_time, time_from},
    },
    commit::after_its_holder,
    parts::{Scope, older_than},
};

pub(super) fn renew(
    scope: &mut Scope<'_>,
    incarnation: Incarnation,
    name: &str,
    first: bool,
    answered: &[ListedInstance],
) -> rusqlite::Result<bool> {
    let held = renew_member(scope, incarnation, name, first)?;
    if held {
        for instance in answered {
            list_instance(scope, instance)?;
        }
    }
    Ok(held)
}

fn renew_member(
    scope: &Scope<'_>,
    incarnation: Incarnation,
    name: &str,
    first: bool,
) -> rusqlite::Result<bool> {
    let key = incarnation.0.as_bytes();
    let mut renew = scope
        .transaction
        .prepare_cached("UPDATE members SET counter = counter + 1 WHERE incarnation = ?1")?;
    if renew.execute([key])? == 1 {
        return Ok(true);
    }
    if first {
        scope.transaction.execute(
            "INSERT INTO members (incarnation, name, counter) VALUES (?1, ?2, 1)",
            params![key, name],
        )?;
    }
    Ok(first)
}

pub(super) fn is_listed(scope: &Scope<'_>, incarnation: Incarnation) -> rusqlite::Result<bool> {
    scope
        .transaction
        .prepare_cached("SELECT 1 FROM members WHERE incarnation = ?1")?
        .exists([incarnation.0.as_bytes()])
}

pub(super) fn members(scope: &mut Scope<'_>) -> rusqlite::Result<Vec<Member>> {
    scope
        .transaction
        .prepare_cached("SELECT incarnation, name, counter FROM members ORDER BY incarnation")?
        .query_map([], |row| {
            Ok(Member {
                incarnation: Incarnation(Uuid::from_bytes(row.get(0)?)),
                name: row.get(1)?,
                counter: row.get::<_, i64>(2)?.unsigned_abs(),
            })
        })?
        .collect()
}

/// Strikes the incarnation off and gives its claims back, in one transaction.
pub(super) fn end(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    who: Incarnation,
    counter: Option<u64>,
) -> rusqlite::Result<bool> {
    let key = who.0.as_bytes();
    let standing: Option<i64> = scope
        .transaction
        .prepare_cached("SELECT counter FROM members WHERE incarnation = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    let seen = counter.map(|counter| i64::try_from(counter).unwrap_or(i64::MAX));
    if seen.is_some() && seen != standing {
        return Ok(false);
    }
    scope
        .transaction
        .execute("DELETE FROM members WHERE incarnation = ?1", [key])?;
    let claims = scope
        .transaction
        .prepare_cached(
            "SELECT part, row FROM queue INDEXED BY queue_holder WHERE state = 2 AND holder = ?1",
        )?
        .query_map([key], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(u32, i64)>>>()?;
    for &(part, number) in &claims {
        give_back(scope, now, part, number, counter.is_some())?;
    }
    tracing::info!(incarnation = %who, claims = claims.len(), "store: an incarnation is ended");
    Ok(standing.is_some())
}

fn give_back(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    part: u32,
    number: i64,
    died: bool,
) -> rusqlite::Result<()> {
    let Some(sql) = scope.part(part) else {
        return Ok(());
    };
    let (cancel, hold) = scope
        .transaction
        .prepare_cached(&sql.marks)?
        .query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (state, due) = after_its_holder(cancel, hold, now);
    scope
        .transaction
        .prepare_cached(&sql.give_back)?
        .execute(params![
            number,
            state,
            due,
            stored_time(now),
            TAKEN_OVER,
            died
        ])?;
    Ok(())
}

pub(super) fn list_instance(
    scope: &mut Scope<'_>,
    instance: &ListedInstance,
) -> rusqlite::Result<()> {
    scope
        .transaction
        .prepare_cached(
            "INSERT INTO instances (instance, transport, host, counter) VALUES (?1, ?2, ?3, 1)
             ON CONFLICT (instance) DO UPDATE
             SET transport = excluded.transport, host = excluded.host, counter = counter + 1, struck = NULL",
        )?
        .execute(params![
            instance.instance.0.as_bytes(),
            instance.transport,
            instance.host
        ])?;
    Ok(())
}

pub(super) fn strike_instance(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    instance: Instance,
    counter: Option<u64>,
) -> rusqlite::Result<bool> {
    let key = instance.0.as_bytes();
    let Some(seen) = counter else {
        let mut forget = scope
            .transaction
            .prepare_cached("DELETE FROM instances WHERE instance = ?1")?;
        forget.execute([key])?;
        return Ok(true);
    };
    let seen = i64::try_from(seen).unwrap_or(i64::MAX);
    scope
        .transaction
        .prepare_cached(
            "UPDATE instances SET struck = ?3 WHERE instance = ?1 AND counter = ?2 AND struck IS NULL",
        )?
        .execute(params![key, seen, stored_time(now)])?;
    let listed = scope
        .transaction
        .prepare_cached("SELECT 1 FROM instances WHERE instance = ?1 AND struck IS NULL")?
        .exists([key])?;
    Ok(!listed)
}

pub(super) fn instances(scope: &mut Scope<'_>) -> rusqlite::Result<Vec<ListedInstance>> {
    scope
        .transaction
        .prepare_cached(
            "SELECT instance, transport, host, counter FROM instances WHERE struck IS NULL ORDER BY instance",
        )?
        .query_map([], listed)?
        .collect()
}

pub(super) fn suspects(
    scope: &mut Scope<'_>,
    struck_since: UnixMillis,
) -> rusqlite::Result<Vec<Suspect>> {
    scope
        .transaction
        .prepare_cached(
            "SELECT instance, transport, host, counter, struck FROM instances \
             WHERE struck IS NULL OR struck >= ?1 ORDER BY instance",
        )?
        .query_map([stored_time(struck_since)], |row| {
            Ok(Suspect {
                instance: listed(row)?,
                struck: row.get::<_, Option<i64>>(4)?.map(time_from),
            })
        })?
        .collect()
}

fn listed(row: &rusqlite::Row<'_>) -> rusqlite::Result<ListedInstance> {
    Ok(ListedInstance {
        instance: Instance(Uuid::from_bytes(row.get(0)?)),
        transport: row.get(1)?,
        host: row.get(2)?,
        counter: row.get::<_, i64>(3)?.unsigned_abs(),
    })
}

/// Forgets who was struck off before that day, unless something still waits that they could have had: it lies in a part of
/// such a day, or had come into the store by then.
pub(super) fn forget_struck(scope: &mut Scope<'_>, before: u32) -> rusqlite::Result<u32> {
    let mut until = i64::from(before) * DAY_MS;
    if let Some(oldest) = older_than(scope, before)?.first() {
        until = until.min(i64::from(*oldest) * DAY_MS);
    }
    let waits: Option<i64> = scope
        .transaction
        .prepare_cached("SELECT min(since) FROM queue INDEXED BY queue_since")?
        .query_row([], |row| row.get(0))?;
    until = until.min(waits.unwrap_or(i64::MAX));
    let forgotten = scope
        .transaction
        .prepare_cached("DELETE FROM instances WHERE struck < ?1")?
        .execute([until])?;
    Ok(u32::try_from(forgotten).unwrap_or(u32::MAX))
}
