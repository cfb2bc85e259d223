//! What is due, in order, past what is excluded and what others are claiming.
//!
//! A claim walks the index by priority and due time, steps over rows of excluded lanes (a lane is one transport and
//! destination) and over rows that another process has locked, and locks what it takes: nobody waits for anybody. The walk
//! looks at no more than [`STEPPED_OVER_MAX`] rows of a priority beyond what was asked for. Where that was not enough, a
//! quarter of the claim, and whatever else is still free, is filled lane by lane: from one to the next by the index (transport,
//! destination, priority, due), one look-up per lane whatever it holds, at most [`LANES_MAX`] of them, going on next time where
//! this time ended. Half of that goes to rows whose time to wake has come, by an index of their own. Each look-up asks every
//! part: some microseconds per day of history.
//!
//! Three round trips: choose and lock; take (which tells us ids and fences); commit. Only after the last may anybody see a claim,
//! and if its answer is lost, what was to be committed is kept as [`Limbo`] until it is known not to have been, or given back.

use std::{collections::HashSet, sync::LazyLock};

use pombo_proto::{
    ids::{Fence, Incarnation, MessageId},
    time::UnixMillis,
};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    super::{
        ClaimRequest, Claimed,
        stored::{CLAIMED_MAX, LANES_MAX, STEPPED_OVER_MAX, mark_from, stored_time, time_from},
    },
    Memory, Result,
    commit::key,
    session::Session,
};

/// Whom nobody lists nobody would end: its claims would never be found again. Locked, so that whoever ends it waits for us.
const LISTED: &str = "SELECT 1 FROM members WHERE incarnation = $1 FOR KEY SHARE";

const EXCLUDED: &str =
    "(t = ANY($3::text[]) OR (t, d) IN (SELECT * FROM unnest($4::text[], $5::text[])))";
const LANE: &str = "coalesce(transport, '') AS t, coalesce(destination, '') AS d";

/// `$1` now, `$2` rows, `$3` to `$5` what is excluded, `$6` rows to look at per priority.
static IN_ORDER: LazyLock<String> = LazyLock::new(|| {
    let walk = |priority: u8, rows: &str| {
        format!(
            "found_{priority} AS MATERIALIZED (
                SELECT m.part, m.id, c.due, c.wake FROM (
                    SELECT part, id, due, wake, {LANE} FROM messages
                    WHERE state = 1 AND priority = {priority} AND due <= $1::int8 ORDER BY due, id LIMIT $6::int8) c
                JOIN messages m ON m.part = c.part AND m.id = c.id
                WHERE m.state = 1 AND (c.wake <= $1 OR NOT {EXCLUDED})
                ORDER BY c.due, c.id LIMIT {rows} FOR UPDATE OF m SKIP LOCKED)"
        )
    };
    let found = |priority: u8| format!("(SELECT count(*) FROM found_{priority})");
    let rows = [
        "$2::int8".to_owned(),
        format!("$2 - {}", found(0)),
        format!("$2 - {} - {}", found(0), found(1)),
    ];
    let walks: Vec<String> = (0..3).map(|p| walk(p, &rows[usize::from(p)])).collect();
    let results: Vec<String> = (0..3)
        .map(|priority| {
            let rows = &rows[usize::from(priority)];
            format!(
                "SELECT part, id, due, wake, {priority} AS priority, NULL::bool AS gave_up FROM found_{priority}
                 UNION ALL SELECT NULL, NULL, NULL, NULL, {priority},
                    CASE WHEN {found} >= {rows} THEN false ELSE $6 <= (SELECT count(*) FROM (SELECT 1 FROM messages
                        WHERE state = 1 AND priority = {priority} AND due <= $1 LIMIT $6) looked_at) END",
                found = found(priority)
            )
        })
        .collect();
    format!("WITH {} {}", walks.join(", "), results.join(" UNION ALL "))
});

const WOKEN: &str = "
SELECT m.part, m.id, c.due, c.wake FROM (
    SELECT part, id, due, wake FROM messages
    WHERE state = 1 AND wake IS NOT NULL AND wake <= $1 AND due <= $1 ORDER BY wake LIMIT $2::int8) c
JOIN messages m ON m.part = c.part AND m.id = c.id
WHERE m.state = 1 ORDER BY c.wake LIMIT $2 FOR UPDATE OF m SKIP LOCKED";

/// `$6` and `$7` the lane after which it begins, if `$8`; `$9` lanes at most. The last line is the last lane that was looked into.
static BY_LANES: LazyLock<String> = LazyLock::new(|| {
    let of_lane = |priority: u8| {
        format!(
            "(SELECT part, id, due, wake FROM messages WHERE state = 1 AND coalesce(transport, '') = l.t
                AND coalesce(destination, '') = l.d AND priority = {priority} AND due <= $1::int8 ORDER BY due LIMIT $2::int8)"
        )
    };
    format!(
        "WITH RECURSIVE lanes(t, d, n) AS (
            SELECT $6::text COLLATE \"C\", $7::text COLLATE \"C\", CASE WHEN $8::bool THEN 0 ELSE -1 END
            UNION ALL
            SELECT x.t, x.d, greatest(l.n, 0) + 1 FROM lanes l CROSS JOIN LATERAL (
                (SELECT {LANE} FROM messages WHERE state = 1 AND l.n < 0
                    ORDER BY coalesce(transport, ''), coalesce(destination, '') LIMIT 1)
                UNION ALL
                (SELECT {LANE} FROM messages WHERE state = 1 AND l.n >= 0 AND coalesce(transport, '') = l.t
                    AND coalesce(destination, '') > l.d AND NOT l.t = ANY($3)
                    ORDER BY coalesce(destination, '') LIMIT 1)
                UNION ALL
                (SELECT {LANE} FROM messages WHERE state = 1 AND l.n >= 0 AND coalesce(transport, '') > l.t
                    ORDER BY coalesce(transport, ''), coalesce(destination, '') LIMIT 1)
                LIMIT 1) x
            WHERE l.n < $9::int4
        ), found AS MATERIALIZED (
            SELECT m.part, m.id, r.due, r.wake, l.n, l.t, l.d
            FROM (SELECT t, d, n FROM lanes WHERE n > 0 AND NOT {EXCLUDED}) l
            CROSS JOIN LATERAL (SELECT * FROM ({} UNION ALL {} UNION ALL {}) by_priority LIMIT $2) r
            JOIN messages m ON m.part = r.part AND m.id = r.id
            WHERE m.state = 1 LIMIT $2 FOR UPDATE OF m SKIP LOCKED
        )
        SELECT part, id, due, wake, n, t, d FROM found
        UNION ALL SELECT NULL, NULL, NULL, NULL, n, t, d FROM lanes WHERE n = (SELECT max(n) FROM lanes)",
        of_lane(0),
        of_lane(1),
        of_lane(2),
    )
});

/// Raises the fences and reads the messages, within the bytes asked for; at least one. A fresh cancel is known to whoever claims
/// the row next.
const TAKE: &str = "
WITH sized AS (
    SELECT w.n, m.part, m.id, sum(octet_length(m.message)) OVER (ORDER BY w.n) AS upto
    FROM unnest($1::int4[], $2::uuid[]) WITH ORDINALITY AS w(part, id, n)
    JOIN messages m ON m.part = w.part AND m.id = w.id
), taken AS (
    UPDATE messages m SET state = 2, fence = m.fence + 1, holder = $3,
        cancel = CASE WHEN m.cancel = 2 THEN 1 ELSE m.cancel END, changed = $4, due = NULL, wake = NULL,
        unsure_since = CASE WHEN m.doubt THEN m.unsure_since ELSE $4 END,
        asks = CASE WHEN m.doubt AND m.asks <> $6 THEN '' ELSE $6 END
    FROM sized s WHERE m.part = s.part AND m.id = s.id AND m.state = 1 AND (s.n = 1 OR s.upto <= $5::int8)
    RETURNING s.n, m.id, m.fence, m.doubt, m.cancel, m.message, m.progress, m.deaths, m.note, m.unsure_since,
        m.asks
), tallied AS (
    INSERT INTO tallies SELECT -count(*), count(*), 0, 0 FROM taken HAVING count(*) > 0
)
SELECT * FROM taken";

/// The lane at which the last claim by lanes ended. Lost with the process, which costs nothing but a turn.
#[derive(Debug, Default)]
pub(super) struct LaneCursor(Option<(String, String)>);

/// Claims whose commit got no answer.
#[derive(Debug, Default)]
pub(super) struct Limbo(Vec<Lost>);

/// A row as it was to be claimed, and as it was.
#[derive(Debug)]
struct Lost {
    id: MessageId,
    fence: Fence,
    holder: Incarnation,
    due: Option<i64>,
    wake: Option<i64>,
}

/// A row that is locked for us.
#[derive(Clone, Copy, Debug)]
struct Place {
    part: i32,
    id: Uuid,
    due: Option<i64>,
    wake: Option<i64>,
}

impl Place {
    fn read(row: &tokio_postgres::Row) -> Option<Self> {
        Some(Self {
            part: row.get::<_, Option<i32>>(0)?,
            id: row.get(1),
            due: row.get(2),
            wake: row.get(3),
        })
    }
}

pub(super) async fn claim(
    session: &mut Session,
    memory: &mut Memory,
    request: &ClaimRequest,
) -> Result<Vec<Claimed>> {
    settle(session, &mut memory.limbo, request.now).await?;
    let limit = request.limit.min(CLAIMED_MAX);
    if limit == 0 {
        return Ok(Vec::new());
    }
    let excluded = Excluded::new(&request.excluded);
    let places = choose(session, &mut memory.lanes, request, limit, &excluded).await?;
    let Some(places) = places.filter(|places| !places.is_empty()) else {
        session.roll_back().await?;
        return Ok(Vec::new());
    };
    let claimed = take(session, request, &places).await?;
    memory.limbo.0 = claimed
        .iter()
        .filter_map(|claim| {
            let place = places.iter().find(|place| place.id == claim.id.0)?;
            Some(Lost {
                id: claim.id,
                fence: claim.fence,
                holder: request.holder,
                due: place.due,
                wake: place.wake,
            })
        })
        .collect();
    session.commit().await?;
    memory.limbo.0.clear();
    Ok(claimed)
}

/// Opens the transaction, and locks what is to be taken, in order; `None`: the holder is not listed.
async fn choose(
    session: &mut Session,
    cursor: &mut LaneCursor,
    request: &ClaimRequest,
    limit: usize,
    excluded: &Excluded<'_>,
) -> Result<Option<Vec<Place>>> {
    let listed = session.prepared(LISTED).await?;
    let walk = session.prepared(&IN_ORDER).await?;
    let (now, rows) = (stored_time(request.now), limit as i64);
    let looked_at = rows + STEPPED_OVER_MAX as i64;
    let walked: [&(dyn ToSql + Sync); 6] = [
        &now,
        &rows,
        &excluded.transports,
        &excluded.lanes.0,
        &excluded.lanes.1,
        &looked_at,
    ];
    let holder: [&(dyn ToSql + Sync); 1] = [&request.holder.0];
    session.in_transaction = true;
    // One round trip: the requests go out one behind the other.
    let (begun, listed, walked) = tokio::join!(
        session.client.batch_execute("BEGIN"),
        session.client.query_opt(&listed, &holder),
        session.client.query(&walk, &walked),
    );
    begun?;
    let (listed, walked) = (listed?.is_some(), walked?);
    if !listed {
        return Ok(None);
    }
    let gave_up = walked
        .iter()
        .any(|row| row.get::<_, Option<bool>>(5) == Some(true));
    let mut found: Vec<(i32, Place)> = walked
        .iter()
        .filter_map(|row| Some((row.get(4), Place::read(row)?)))
        .collect();
    found.sort_by_key(|(priority, place)| (*priority, place.due, place.id));
    let mut places: Vec<Place> = found.into_iter().map(|(_, place)| place).collect();
    if gave_up {
        let reserved = (limit / 4).max(limit - places.len()).max(1);
        let mut others = woken(session, now, reserved.div_ceil(2)).await?;
        if others.len() < reserved {
            let rest = reserved - others.len();
            others.extend(by_lanes(session, cursor, now, rest, excluded).await?);
        }
        let mut known: HashSet<Uuid> = places.iter().map(|place| place.id).collect();
        others.retain(|place| known.insert(place.id));
        places.truncate(limit - others.len().min(limit));
        places.extend(others);
    }
    Ok(Some(places))
}

/// What must be looked at although its lane may be excluded, longest overdue first.
async fn woken(session: &mut Session, now: i64, limit: usize) -> Result<Vec<Place>> {
    let statement = session.prepared(WOKEN).await?;
    let limit = limit as i64;
    let rows = session.client.query(&statement, &[&now, &limit]).await?;
    Ok(rows.iter().filter_map(Place::read).collect())
}

/// Lane by lane, from where the last such claim ended, and once round.
async fn by_lanes(
    session: &mut Session,
    cursor: &mut LaneCursor,
    now: i64,
    limit: usize,
    excluded: &Excluded<'_>,
) -> Result<Vec<Place>> {
    let statement = session.prepared(&BY_LANES).await?;
    let mut found: Vec<Place> = Vec::new();
    let mut lanes = LANES_MAX as i32;
    loop {
        let start = cursor.0.take();
        let free = (limit - found.len()) as i64;
        let (transport, destination) = start.clone().unwrap_or_default();
        let rows = session
            .client
            .query(
                &statement,
                &[
                    &now,
                    &free,
                    &excluded.transports,
                    &excluded.lanes.0,
                    &excluded.lanes.1,
                    &transport,
                    &destination,
                    &start.is_some(),
                    &lanes,
                ],
            )
            .await?;
        let lane = |row: &tokio_postgres::Row| (row.get(5), row.get(6));
        let (places, last): (Vec<_>, Vec<_>) = rows
            .iter()
            .partition(|row| row.get::<_, Option<i32>>(0).is_some());
        found.extend(places.iter().filter_map(|row| Place::read(row)));
        if places.len() as i64 == free {
            cursor.0 = places
                .iter()
                .max_by_key(|row| row.get::<_, i32>(4))
                .map(|row| lane(row));
            return Ok(found);
        }
        let looked_into = last.first().map_or(0, |row| row.get::<_, i32>(4)).max(0);
        lanes -= looked_into;
        if lanes <= 0 {
            cursor.0 = last.first().map(|row| lane(row));
            return Ok(found);
        }
        // The end: from the beginning, unless that is where it began.
        if start.is_none() {
            return Ok(found);
        }
    }
}

async fn take(
    session: &mut Session,
    request: &ClaimRequest,
    places: &[Place],
) -> Result<Vec<Claimed>> {
    let statement = session.prepared(TAKE).await?;
    let (parts, ids): (Vec<i32>, Vec<Uuid>) = places.iter().map(|it| (it.part, it.id)).unzip();
    let bytes = i64::try_from(request.bytes).unwrap_or(i64::MAX);
    let rows = session
        .client
        .query(
            &statement,
            &[
                &parts,
                &ids,
                &request.holder.0,
                &stored_time(request.now),
                &bytes,
                &request.asks,
            ],
        )
        .await?;
    let claimed = |row: &tokio_postgres::Row| {
        let claimed = Claimed {
            id: MessageId(row.get(1)),
            fence: Fence(u32::try_from(row.get::<_, i64>(2)).unwrap_or(u32::MAX)),
            doubt: row.get(3),
            unsure_since: time_from(row.get(9)),
            mark: mark_from(row.get::<_, i16>(4).into()),
            message: row.get::<_, Vec<u8>>(5).into(),
            progress: row.get(6),
            deaths: row.get::<_, i32>(7).unsigned_abs(),
            note: row.get(8),
            asks: row.get(10),
        };
        (row.get::<_, i64>(0), claimed)
    };
    let mut claims: Vec<(i64, Claimed)> = rows.iter().map(claimed).collect();
    claims.sort_by_key(|(number, _)| *number);
    Ok(claims.into_iter().map(|(_, claim)| claim).collect())
}

/// Waits for a transaction that may still be under way: its rows are locked.
const AWAIT: &str = "
SELECT m.id FROM unnest($1::int4[], $2::uuid[]) AS w(part, id) JOIN messages m ON m.part = w.part AND m.id = w.id
ORDER BY m.id FOR UPDATE OF m";

/// As if it had not been claimed. What was asked for since counts.
const GIVE_BACK: &str = "
WITH back AS (
    UPDATE messages m SET
        state = CASE WHEN m.hold AND m.cancel <> 2 THEN 3 ELSE 1 END,
        due = CASE WHEN m.cancel = 2 THEN $7::int8 WHEN m.hold THEN NULL ELSE w.due END,
        wake = CASE WHEN m.cancel = 2 THEN $7 WHEN m.hold THEN NULL ELSE w.wake END,
        cancel = CASE WHEN m.cancel = 2 THEN 1 ELSE m.cancel END, hold = false, holder = NULL
    FROM unnest($1::int4[], $2::uuid[], $3::int8[], $4::uuid[], $5::int8[], $6::int8[])
        AS w(part, id, fence, holder, due, wake)
    WHERE m.part = w.part AND m.id = w.id AND m.state = 2 AND m.fence = w.fence AND m.holder = w.holder
    RETURNING m.state
), tallied AS (
    INSERT INTO tallies
    SELECT count(*) FILTER (WHERE state = 1), -count(*), count(*) FILTER (WHERE state = 3), 0
    FROM back HAVING count(*) > 0
)
SELECT count(*) FROM back";

/// Gives back what had been claimed after all, before anything else is claimed.
async fn settle(session: &mut Session, limbo: &mut Limbo, now: UnixMillis) -> Result<()> {
    if limbo.0.is_empty() {
        return Ok(());
    }
    let lost = &limbo.0;
    let (parts, ids): (Vec<i32>, Vec<Uuid>) = lost.iter().map(|it| key(it.id)).unzip();
    let fences: Vec<i64> = lost.iter().map(|it| i64::from(it.fence.0)).collect();
    let holders: Vec<Uuid> = lost.iter().map(|it| it.holder.0).collect();
    let dues: Vec<Option<i64>> = lost.iter().map(|it| it.due).collect();
    let wakes: Vec<Option<i64>> = lost.iter().map(|it| it.wake).collect();
    let wait = session.prepared(AWAIT).await?;
    let give_back = session.prepared(GIVE_BACK).await?;
    session.begin().await?;
    session.client.query(&wait, &[&parts, &ids]).await?;
    let row = session
        .client
        .query_one(
            &give_back,
            &[
                &parts,
                &ids,
                &fences,
                &holders,
                &dues,
                &wakes,
                &stored_time(now),
            ],
        )
        .await?;
    session.commit().await?;
    let claims: i64 = row.get(0);
    tracing::info!(
        claims,
        asked = lost.len(),
        "store: claims whose commit got no answer are given back"
    );
    limbo.0.clear();
    Ok(())
}

pub(super) async fn next_due(session: &mut Session) -> Result<Option<UnixMillis>> {
    let sql = "SELECT min(x.due) FROM generate_series(0, 2) p CROSS JOIN LATERAL (SELECT due FROM messages \
               WHERE state = 1 AND priority = p AND due IS NOT NULL ORDER BY due LIMIT 1) x";
    let statement = session.prepared(sql).await?;
    let row = session.client.query_one(&statement, &[]).await?;
    Ok(row.get::<_, Option<i64>>(0).map(time_from))
}

/// What is excluded, as arrays.
struct Excluded<'a> {
    transports: Vec<&'a str>,
    lanes: (Vec<&'a str>, Vec<&'a str>),
}

impl<'a> Excluded<'a> {
    fn new(pairs: &'a [(String, Option<String>)]) -> Self {
        let whole = pairs
            .iter()
            .filter(|(_, destination)| destination.is_none());
        let one = |(transport, destination): &'a (String, Option<String>)| {
            Some((transport.as_str(), destination.as_deref()?))
        };
        Self {
            transports: whole.map(|(transport, _)| transport.as_str()).collect(),
            lanes: pairs.iter().filter_map(one).unzip(),
        }
    }
}
