//! Work that one spooler does at a time, and what that work asks.

use std::{collections::HashSet, time::Duration};

use pombo_proto::{
    ids::{Incarnation, MessageId},
    time::UnixMillis,
};
use uuid::Uuid;

use super::{super::stored::stored_time, Result, commit::key, session::Session};

/// One statement decides: who comes second waits for the row, and then sees its holder.
const BEGIN: &str = "
INSERT INTO chores AS c (name, holder, ended) SELECT $1, $2::uuid, 0 WHERE EXISTS (SELECT 1 FROM members WHERE incarnation = $2)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder
WHERE c.holder = excluded.holder
    OR (c.holder IS NULL OR NOT EXISTS (SELECT 1 FROM members WHERE incarnation = c.holder)) AND c.ended + $4::int8 <= $3::int8
RETURNING 1";

pub(super) async fn begin(
    session: &mut Session,
    now: UnixMillis,
    name: &str,
    who: Incarnation,
    every: Duration,
) -> Result<bool> {
    let statement = session.prepared(BEGIN).await?;
    let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX / 2);
    let begun = session
        .client
        .query_opt(&statement, &[&name, &who.0, &stored_time(now), &every])
        .await?;
    Ok(begun.is_some())
}

pub(super) async fn end(
    session: &mut Session,
    now: UnixMillis,
    name: &str,
    who: Incarnation,
) -> Result<()> {
    let sql = "UPDATE chores SET holder = NULL, ended = $3 WHERE name = $1 AND holder = $2";
    let statement = session.prepared(sql).await?;
    session
        .client
        .execute(&statement, &[&name, &who.0, &stored_time(now)])
        .await?;
    Ok(())
}

pub(super) async fn unfinished(session: &mut Session, ids: &[MessageId]) -> Result<Vec<MessageId>> {
    let sql = "SELECT m.id FROM unnest($1::int4[], $2::uuid[]) AS w(part, id) \
               JOIN messages m ON m.part = w.part AND m.id = w.id WHERE m.state < 5";
    let statement = session.prepared(sql).await?;
    let (parts, keys): (Vec<i32>, Vec<Uuid>) = ids.iter().copied().map(key).unzip();
    let rows = session.client.query(&statement, &[&parts, &keys]).await?;
    let found: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    Ok(ids
        .iter()
        .filter(|id| found.contains(&id.0))
        .copied()
        .collect())
}
