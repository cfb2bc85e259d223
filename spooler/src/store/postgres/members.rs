//! Incarnations that live while their counter moves, and the agents that may have been submitted to.

use std::collections::BTreeMap;

use pombo_proto::{
    ids::{Incarnation, Instance},
    time::UnixMillis,
};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    super::{
        ListedInstance, Member, Suspect,
        stored::{DAY_MS, TAKEN_OVER, stored_time, time_from},
    },
    Result, parts,
    rows::storable,
    session::Session,
};

/// Claims go back to where the marks lead; what their holder may have submitted is unknown. `$4`: how many deaths of each
/// this is.
const GIVE_BACK: &str = "
WITH back AS (
    UPDATE messages SET
        state = CASE WHEN hold AND cancel <> 2 THEN 3 ELSE 1 END,
        due = CASE WHEN hold AND cancel <> 2 THEN NULL ELSE $2::int8 END,
        wake = CASE WHEN hold AND cancel <> 2 THEN NULL ELSE $2::int8 END,
        cancel = CASE WHEN cancel = 2 THEN 1 ELSE cancel END,
        hold = false, holder = NULL, doubt = true, deaths = deaths + $4::int4, changed = $2::int8,
        reason = $3
    WHERE state = 2 AND holder = $1
    RETURNING state
), tallied AS (
    INSERT INTO tallies
    SELECT count(*) FILTER (WHERE state = 1), -count(*), count(*) FILTER (WHERE state = 3), 0
    FROM back HAVING count(*) > 0
)
SELECT count(*) FROM back";

/// `$1` who renews, `$2` to `$4` the agents that it answers, in order of their ids: two that answer the same ones lock them in
/// one order.
macro_rules! renew {
    ($held:literal) => {
        concat!(
            "WITH held AS (",
            $held,
            " RETURNING 1), listed AS (
                INSERT INTO instances (instance, transport, host, counter)
                SELECT instance, transport, host, 1
                FROM unnest($2::uuid[], $3::text[], $4::text[]) AS a(instance, transport, host)
                WHERE EXISTS (SELECT 1 FROM held) ORDER BY instance
                ON CONFLICT (instance) DO UPDATE
                SET transport = excluded.transport, host = excluded.host, counter = instances.counter + 1,
                    struck = NULL
            )
            SELECT count(*) FROM held"
        )
    };
}
const RENEW: &str = renew!("UPDATE members SET counter = counter + 1 WHERE incarnation = $1");
const BEGIN: &str = renew!(
    "INSERT INTO members (incarnation, name, counter) VALUES ($1, $5, 1) \
     ON CONFLICT (incarnation) DO UPDATE SET counter = members.counter + 1"
);

pub(super) async fn renew(
    session: &mut Session,
    incarnation: Incarnation,
    name: &str,
    first: bool,
    answered: &[ListedInstance],
) -> Result<bool> {
    // One statement writes a row once.
    let agents: BTreeMap<Uuid, &ListedInstance> =
        answered.iter().map(|it| (it.instance.0, it)).collect();
    let ids: Vec<Uuid> = agents.keys().copied().collect();
    let transports: Vec<_> = agents.values().map(|it| storable(&it.transport)).collect();
    let hosts: Vec<_> = agents.values().map(|it| storable(&it.host)).collect();
    let name = storable(name);
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&incarnation.0, &ids, &transports, &hosts];
    if first {
        values.push(&name);
    }
    let statement = session.prepared(if first { BEGIN } else { RENEW }).await?;
    let row = session.client.query_one(&statement, &values).await?;
    Ok(row.get::<_, i64>(0) == 1)
}

pub(super) async fn members(session: &mut Session) -> Result<Vec<Member>> {
    let sql = "SELECT incarnation, name, counter FROM members ORDER BY incarnation";
    let statement = session.prepared(sql).await?;
    let rows = session.client.query(&statement, &[]).await?;
    let member = |row: &tokio_postgres::Row| Member {
        incarnation: Incarnation(row.get(0)),
        name: row.get(1),
        counter: row.get::<_, i64>(2).unsigned_abs(),
    };
    Ok(rows.iter().map(member).collect())
}

/// Strikes the incarnation off and gives its claims back, in one transaction. A claim that is under way for it holds its row:
/// it is waited for, and what it claims is seen by the second statement. One that begins later finds it struck off.
pub(super) async fn end(
    session: &mut Session,
    now: UnixMillis,
    who: Incarnation,
    counter: Option<u64>,
) -> Result<bool> {
    let seen = counter.map(|counter| i64::try_from(counter).unwrap_or(i64::MAX));
    let delete =
        "DELETE FROM members WHERE incarnation = $1 AND ($2::int8 IS NULL OR counter = $2)";
    let delete = session.prepared(delete).await?;
    let give_back = session.prepared(GIVE_BACK).await?;
    session.begin().await?;
    let listed = session.client.execute(&delete, &[&who.0, &seen]).await? == 1;
    if !listed && seen.is_some() {
        session.roll_back().await?;
        return Ok(false);
    }
    let deaths = i32::from(seen.is_some());
    let row = session
        .client
        .query_one(
            &give_back,
            &[&who.0, &stored_time(now), &TAKEN_OVER, &deaths],
        )
        .await?;
    session.commit().await?;
    let claims: i64 = row.get(0);
    tracing::info!(incarnation = %who, claims, "store: an incarnation is ended");
    Ok(listed)
}

pub(super) async fn list_instance(session: &mut Session, instance: &ListedInstance) -> Result<()> {
    let sql = "INSERT INTO instances (instance, transport, host, counter) VALUES ($1, $2, $3, 1) \
               ON CONFLICT (instance) DO UPDATE \
               SET transport = excluded.transport, host = excluded.host, counter = instances.counter + 1, \
               struck = NULL";
    let statement = session.prepared(sql).await?;
    let (transport, host) = (storable(&instance.transport), storable(&instance.host));
    session
        .client
        .execute(&statement, &[&instance.instance.0, &transport, &host])
        .await?;
    Ok(())
}

/// Who raises the counter meanwhile is waited for, and the counter compared again. What it says of the rest is asked
/// afterwards: somebody else may have struck it off, or listed it anew, and either is what it is now.
pub(super) async fn strike_instance(
    session: &mut Session,
    now: UnixMillis,
    instance: Instance,
    counter: Option<u64>,
) -> Result<bool> {
    let Some(seen) = counter else {
        let sql = "DELETE FROM instances WHERE instance = $1";
        let forget = session.prepared(sql).await?;
        session.client.execute(&forget, &[&instance.0]).await?;
        return Ok(true);
    };
    let seen = i64::try_from(seen).unwrap_or(i64::MAX);
    let strike =
        "UPDATE instances SET struck = $3 WHERE instance = $1 AND counter = $2 AND struck IS NULL";
    let strike = session.prepared(strike).await?;
    let listed = session
        .prepared("SELECT 1 FROM instances WHERE instance = $1 AND struck IS NULL")
        .await?;
    let client = &session.client;
    let struck = client
        .execute(&strike, &[&instance.0, &seen, &stored_time(now)])
        .await?;
    Ok(struck == 1 || client.query_opt(&listed, &[&instance.0]).await?.is_none())
}

pub(super) async fn instances(session: &mut Session) -> Result<Vec<ListedInstance>> {
    let sql = "SELECT instance, transport, host, counter FROM instances WHERE struck IS NULL ORDER BY instance";
    let statement = session.prepared(sql).await?;
    let rows = session.client.query(&statement, &[]).await?;
    Ok(rows.iter().map(listed).collect())
}

pub(super) async fn suspects(
    session: &mut Session,
    struck_since: UnixMillis,
) -> Result<Vec<Suspect>> {
    let sql = "SELECT instance, transport, host, counter, struck FROM instances \
               WHERE struck IS NULL OR struck >= $1 ORDER BY instance";
    let statement = session.prepared(sql).await?;
    let since = stored_time(struck_since);
    let rows = session.client.query(&statement, &[&since]).await?;
    let suspect = |row: &tokio_postgres::Row| Suspect {
        instance: listed(row),
        struck: row.get::<_, Option<i64>>(4).map(time_from),
    };
    Ok(rows.iter().map(suspect).collect())
}

fn listed(row: &tokio_postgres::Row) -> ListedInstance {
    ListedInstance {
        instance: Instance(row.get(0)),
        transport: row.get(1),
        host: row.get(2),
        counter: row.get::<_, i64>(3).unsigned_abs(),
    }
}

/// Forgets who was struck off before that day, unless something still waits that they could have had: it lies in a part of
/// such a day, or had come into the store by then.
pub(super) async fn forget_struck(session: &mut Session, before: u32) -> Result<u32> {
    let mut until = i64::from(before) * DAY_MS;
    if let Some(oldest) = parts::older_than(session, before).await?.iter().min() {
        until = until.min(i64::from(*oldest) * DAY_MS);
    }
    let sql = "DELETE FROM instances WHERE struck < \
               least($1::int8, (SELECT min(since) FROM messages WHERE state < 5))";
    let statement = session.prepared(sql).await?;
    let forgotten = session.client.execute(&statement, &[&until]).await?;
    Ok(u32::try_from(forgotten).unwrap_or(u32::MAX))
}
