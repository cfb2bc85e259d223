//! Work that one spooler does at a time, and what that work asks.

use std::time::Duration;

use pombo_proto::{
    ids::{Incarnation, MessageId},
    time::UnixMillis,
};
use rusqlite::{OptionalExtension, params};

use super::{
    super::stored::{FINISHED, stored_time, time_from},
    commit::find,
    members,
    parts::Scope,
};

pub(super) fn begin(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    name: &str,
    who: Incarnation,
    every: Duration,
) -> rusqlite::Result<bool> {
    if !members::is_listed(scope, who)? {
        return Ok(false);
    }
    let standing: Option<(Option<[u8; 16]>, i64)> = scope
        .transaction
        .prepare_cached("SELECT holder, ended FROM chores WHERE name = ?1")?
        .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((holder, ended)) = standing {
        let holder = holder.map(|it| Incarnation(uuid::Uuid::from_bytes(it)));
        if holder == Some(who) {
            return Ok(true);
        }
        if let Some(holder) = holder
            && members::is_listed(scope, holder)?
        {
            return Ok(false);
        }
        if time_from(ended).after(every) > now {
            return Ok(false);
        }
    }
    scope
        .transaction
        .prepare_cached(
            "INSERT INTO chores (name, holder, ended) VALUES (?1, ?2, 0) \
             ON CONFLICT (name) DO UPDATE SET holder = ?2",
        )?
        .execute(params![name, who.0.as_bytes()])?;
    Ok(true)
}

pub(super) fn end(
    scope: &mut Scope<'_>,
    now: UnixMillis,
    name: &str,
    who: Incarnation,
) -> rusqlite::Result<()> {
    scope
        .transaction
        .prepare_cached(
            "UPDATE chores SET holder = NULL, ended = ?3 WHERE name = ?1 AND holder = ?2",
        )?
        .execute(params![name, who.0.as_bytes(), stored_time(now)])?;
    Ok(())
}

pub(super) fn unfinished(
    scope: &mut Scope<'_>,
    ids: &[MessageId],
) -> rusqlite::Result<Vec<MessageId>> {
    let mut found = Vec::new();
    for id in ids {
        let Some(sql) = scope.part(id.part()) else {
            continue;
        };
        let standing = find(scope, &sql, *id)?;
        if standing.is_some_and(|standing| standing.state != FINISHED) {
            found.push(*id);
        }
    }
    Ok(found)
}
