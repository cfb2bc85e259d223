//! Incarnations that live while their counter moves, and the agents that may have been submitted to.

use pombo_proto::{
    ids::{Incarnation, Instance},
    time::UnixMillis,
};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::{
    super::{ListedInstance, Member},
    commit::{after_its_holder, stored_time},
    parts::Scope,
};

/// What a row says after its holder ended.
const TAKEN_OVER: &str = "taken over: the spooler that held it has ended";

pub(super) fn renew(
    scope: &mut Scope<'_>,
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
        give_back(scope, now, part, number)?;
    }
    tracing::info!(incarnation = %who, claims = claims.len(), "store: an incarnation is ended");
    Ok(standing.is_some())
}

fn give_back(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    part: u32,
    number: i64,
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
        .execute(params![number, state, due, stored_time(now), TAKEN_OVER])?;
    Ok(())
}

pub(super) fn list_instance(
    scope: &mut Scope<'_>,
    instance: &ListedInstance,
) -> rusqlite::Result<()> {
    scope.transaction.execute(
        "INSERT INTO instances (instance, transport, host) VALUES (?1, ?2, ?3)
         ON CONFLICT (instance) DO UPDATE SET transport = excluded.transport, host = excluded.host",
        params![
            instance.instance.0.as_bytes(),
            instance.transport,
            instance.host
        ],
    )?;
    Ok(())
}

pub(super) fn strike_instance(scope: &mut Scope<'_>, instance: Instance) -> rusqlite::Result<()> {
    scope.transaction.execute(
        "DELETE FROM instances WHERE instance = ?1",
        [instance.0.as_bytes()],
    )?;
    Ok(())
}

pub(super) fn instances(scope: &mut Scope<'_>) -> rusqlite::Result<Vec<ListedInstance>> {
    scope
        .transaction
        .prepare_cached("SELECT instance, transport, host FROM instances ORDER BY instance")?
        .query_map([], |row| {
            Ok(ListedInstance {
                instance: Instance(Uuid::from_bytes(row.get(0)?)),
                transport: row.get(1)?,
                host: row.get(2)?,
            })
        })?
        .collect()
}
