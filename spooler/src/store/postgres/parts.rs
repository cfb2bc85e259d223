//! Parts: one partition per day of issue, and one for derived ids (number 0).
//!
//! A part is made by the first write that needs it and dropped whole once nothing in it is unfinished and nothing finished
//! of late; where something has, the rest goes by its last change. Any process may do either. A process
//! remembers which parts it has seen: a write into one that has been dropped since fails as a whole, and is done again with the
//! part made anew.
//!
//! Making one locks nobody out (a table is attached). Dropping one needs the whole of `messages` for some milliseconds: it
//! waits a second for that at most, because everybody else waits behind it, and else leaves it for the next time.

use tokio_postgres::error::SqlState;

use super::{
    super::stored::{DAY_MS, FINISHED, PRUNED_MAX, PartStep, UNDATED},
    Failure, Memory, Result,
    schema::LOCK,
    session::Session,
};

/// Those that are there, oldest first; derived ids before all.
pub(super) async fn all(session: &mut Session) -> Result<Vec<u32>> {
    let sql = "SELECT substring(c.relname FROM '^messages_([0-9]+)$')::int8 FROM pg_inherits i \
               JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'messages'::regclass ORDER BY 1";
    let statement = session.prepared(sql).await?;
    let rows = session.client.query(&statement, &[]).await?;
    let parts = rows.iter().filter_map(|row| row.get::<_, Option<i64>>(0));
    Ok(parts.filter_map(|part| u32::try_from(part).ok()).collect())
}

/// Makes those of these that are not there.
pub(super) async fn ensure(
    session: &mut Session,
    memory: &mut Memory,
    wanted: impl Iterator<Item = u32> + Clone,
) -> Result<()> {
    let is_known = |memory: &Memory| wanted.clone().all(|part| memory.parts.contains(&part));
    if is_known(memory) {
        return Ok(());
    }
    memory.parts = all(session).await?.into_iter().collect();
    for part in wanted.clone() {
        if !memory.parts.contains(&part) {
            create(session, part).await?;
            memory.parts.insert(part);
        }
    }
    Ok(())
}

async fn create(session: &mut Session, part: u32) -> Result<()> {
    session.begin().await?;
    session.client.batch_execute(LOCK).await?;
    let table = format!("messages_{part}");
    let row = session
        .client
        .query_one("SELECT to_regclass($1::text) IS NULL", &[&table])
        .await?;
    if row.get(0) {
        let sql = format!(
            "CREATE TABLE {table} (LIKE messages INCLUDING STORAGE INCLUDING INDEXES); \
             ALTER TABLE messages ATTACH PARTITION {table} FOR VALUES IN ({part})"
        );
        session.client.batch_execute(&sql).await?;
        tracing::info!(part, "store: a part begins");
    }
    session.commit().await
}

/// Dated parts from before that day.
pub(super) async fn older_than(session: &mut Session, before: u32) -> Result<Vec<u32>> {
    let mut parts = all(session).await?;
    parts.retain(|part| *part != UNDATED && *part < before);
    Ok(parts)
}

/// Drops a part unless something in it is unfinished, another process was quicker, or somebody uses the table for long. Where
/// something in it had its last change on that day or later, some of the rest goes.
pub(super) async fn prune(
    session: &mut Session,
    memory: &mut Memory,
    part: u32,
    before: u32,
) -> Result<PartStep> {
    match try_prune(session, part, before).await {
        Ok(step) => {
            if step == PartStep::Dropped {
                memory.parts.remove(&part);
                tracing::info!(part, "store: a part is dropped");
            }
            Ok(step)
        }
        Err(Failure::Postgres(error)) if is_elsewhere(error.code()) => {
            tracing::info!(part, "store: a part is in use, and is dropped another time");
            session.roll_back().await?;
            Ok(PartStep::Stays)
        }
        Err(error) => Err(error),
    }
}

/// Somebody held the table for too long, or has dropped it.
fn is_elsewhere(state: Option<&SqlState>) -> bool {
    let states = [SqlState::LOCK_NOT_AVAILABLE, SqlState::UNDEFINED_TABLE];
    state.is_some_and(|state| states.contains(state))
}

async fn try_prune(session: &mut Session, part: u32, before: u32) -> Result<PartStep> {
    let table = format!("messages_{part}");
    let unfinished = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE state < {FINISHED})");
    // In the words of the index: `before` is a later day than the part's, and so what is not in it is older.
    let late = format!(
        "SELECT EXISTS (SELECT 1 FROM {table} WHERE state = {FINISHED} AND part > 0 \
         AND changed >= (part::int8 + 1) * {DAY_MS} AND changed >= $1)"
    );
    let before = i64::from(before) * DAY_MS;
    session.begin().await?;
    // Asked twice: a part that is stuck is not to lock everybody out every hour.
    if session.client.query_one(&unfinished, &[]).await?.get(0) {
        session.roll_back().await?;
        return Ok(PartStep::Stays);
    }
    if session.client.query_one(&late, &[&before]).await?.get(0) {
        let sql = format!(
            "DELETE FROM {table} WHERE part = {part} AND state = {FINISHED} AND id IN \
             (SELECT id FROM {table} WHERE part = {part} AND state = {FINISHED} AND changed < $1 \
             ORDER BY id LIMIT {PRUNED_MAX})"
        );
        let deleted = session.client.execute(&sql, &[&before]).await?;
        session.commit().await?;
        return Ok(if deleted == 0 {
            PartStep::Stays
        } else {
            PartStep::Shrunk
        });
    }
    let lock = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '60s'; \
                LOCK TABLE ONLY messages IN ACCESS EXCLUSIVE MODE";
    session.client.batch_execute(lock).await?;
    if session.client.query_one(&unfinished, &[]).await?.get(0)
        || session.client.query_one(&late, &[&before]).await?.get(0)
    {
        session.roll_back().await?;
        return Ok(PartStep::Stays);
    }
    let sql = format!("DROP TABLE {table}");
    session.client.batch_execute(&sql).await?;
    session.commit().await?;
    Ok(PartStep::Dropped)
}

/// Deletes what has finished under derived ids before that day: how many, and whether there is more.
pub(super) async fn prune_derived(session: &mut Session, before: u32) -> Result<(u32, bool)> {
    let sql = "DELETE FROM messages_0 WHERE id IN (SELECT id FROM messages_0 \
               WHERE state = 5 AND changed < $1 ORDER BY changed, id LIMIT $2) AND state = 5 AND part = 0";
    let statement = session.prepared(sql).await?;
    let limit = PRUNED_MAX as i64;
    let before = i64::from(before) * DAY_MS;
    let deleted = session
        .client
        .execute(&statement, &[&before, &limit])
        .await?;
    Ok((
        u32::try_from(deleted).unwrap_or(u32::MAX),
        deleted == PRUNED_MAX as u64,
    ))
}
