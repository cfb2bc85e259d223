//! What is due, in order, past what is excluded.
//!
//! A claim walks the index by priority and due time and steps over rows of excluded lanes (a lane is one transport and
//! destination). The index alone says which they are, at well under a microsecond each. That is exact, and cheap as
//! long as not too many due rows are excluded: 100,000 mails for one dead smart host are.
//!
//! So the walk gives up a priority after [`STEPPED_OVER_MAX`] excluded rows, and a quarter of the claim, and whatever else
//! is still free, is then filled lane by lane: from one lane to the next by the index (transport, destination, priority,
//! due), one seek per lane whatever it holds, at most [`LANES_MAX`] of them, going on next time where this time ended. A
//! claim therefore costs at most 3 x 2,000 steps and 1,000 lanes of up to four seeks (a few milliseconds), and among n
//! lanes every due row that is not excluded has its turn within n / 1,000 claims (rounded up), urgent ones of its lane
//! first. What is lost there is the strict order across lanes.
//!
//! A row whose time to wake has come is not excluded: half of the same quarter goes to such rows, by an index of their own, where
//! the walk did not come to them.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use pombo_proto::{
    ids::{Fence, Incarnation, MessageId},
    time::UnixMillis,
};
use rusqlite::{OptionalExtension, params};

use super::{
    super::{
        ClaimRequest, Claimed,
        stored::{CLAIMED_MAX, LANES_MAX, STEPPED_OVER_MAX, mark_from, stored_time, time_from},
    },
    members,
    parts::Scope,
};

const PRIORITIES: std::ops::Range<i64> = 0..3;

const IN_ORDER: &str = "SELECT part, row, transport, destination, ifnull(wake, ?3) FROM queue INDEXED BY queue_order \
     WHERE state = 1 AND priority = ?1 AND due <= ?2 ORDER BY due";
const WOKEN: &str = "SELECT part, row FROM queue INDEXED BY queue_wake \
     WHERE state = 1 AND wake <= ?1 AND due <= ?1 ORDER BY wake LIMIT ?2";
const FIRST_LANE: &str = "SELECT transport, destination FROM queue INDEXED BY queue_lane \
     WHERE state = 1 ORDER BY transport, destination LIMIT 1";
const NEXT_LANE: &str = "SELECT transport, destination FROM queue INDEXED BY queue_lane \
     WHERE state = 1 AND transport = ?1 AND destination > ?2 ORDER BY destination LIMIT 1";
const NEXT_TRANSPORT: &str = "SELECT transport, destination FROM queue INDEXED BY queue_lane \
     WHERE state = 1 AND transport > ?1 ORDER BY transport, destination LIMIT 1";
const OF_LANE: &str = "SELECT part, row FROM queue INDEXED BY queue_lane \
     WHERE state = 1 AND transport = ?1 AND destination = ?2 AND priority = ?3 AND due <= ?4 ORDER BY due LIMIT ?5";

/// Where a row is: part and row number.
type Place = (u32, i64);
/// Transport and destination, `''` for none.
type Lane = (String, String);

/// The lane at which the last claim by lanes ended. Lost with the process, which costs nothing but a turn.
#[derive(Debug, Default)]
pub(super) struct LaneCursor(Option<Lane>);

pub(super) fn claim(
    scope: &mut Scope<'_>,
    cursor: &mut LaneCursor,
    request: &ClaimRequest,
) -> rusqlite::Result<Vec<Claimed>> {
    // Whom nobody lists nobody would end: its claims would never be found again.
    if !members::is_listed(scope, request.holder)? {
        return Ok(Vec::new());
    }
    let places = candidates(scope, cursor, request)?;
    take(scope, request, &places)
}

pub(super) fn next_due(scope: &mut Scope<'_>) -> rusqlite::Result<Option<UnixMillis>> {
    let mut first = scope.transaction.prepare_cached(
        "SELECT due FROM queue INDEXED BY queue_order WHERE state = 1 AND priority = ?1 AND due >= 0 \
         ORDER BY due LIMIT 1",
    )?;
    let mut earliest: Option<i64> = None;
    for priority in PRIORITIES {
        let due = first.query_row([priority], |row| row.get(0)).optional()?;
        earliest = earliest.into_iter().chain(due).min();
    }
    Ok(earliest.map(|due| UnixMillis(due.unsigned_abs())))
}

fn candidates(
    scope: &Scope<'_>,
    cursor: &mut LaneCursor,
    request: &ClaimRequest,
) -> rusqlite::Result<Vec<Place>> {
    let limit = request.limit.min(CLAIMED_MAX);
    let excluded = Excluded::new(&request.excluded);
    let (mut places, gave_up) = in_order(scope, request.now, limit, &excluded)?;
    if gave_up && limit > 0 {
        let reserved = (limit / 4).max(limit - places.len()).max(1);
        let mut found = woken(scope, request.now, reserved.div_ceil(2))?;
        let rest = reserved - found.len();
        if rest > 0 {
            found.extend(by_lanes(scope, cursor, request.now, rest, &excluded)?);
        }
        let mut known: HashSet<Place> = places.iter().copied().collect();
        let others: Vec<Place> = found
            .into_iter()
            .filter(|place| known.insert(*place))
            .collect();
        places.truncate(limit - others.len());
        places.extend(others);
    }
    Ok(places)
}

/// By priority and due time; and whether excluded rows made it give up somewhere.
fn in_order(
    scope: &Scope<'_>,
    now: UnixMillis,
    limit: usize,
    excluded: &Excluded<'_>,
) -> rusqlite::Result<(Vec<Place>, bool)> {
    let mut found = Vec::new();
    let mut gave_up = false;
    let mut statement = scope.transaction.prepare_cached(IN_ORDER)?;
    for priority in PRIORITIES {
        let mut rows = statement.query(params![priority, stored_time(now), i64::MAX])?;
        let mut stepped_over = 0;
        while found.len() < limit
            && let Some(row) = rows.next()?
        {
            let lane = (row.get_ref(2)?.as_str()?, row.get_ref(3)?.as_str()?);
            if !excluded.contains(lane.0, lane.1) || row.get::<_, i64>(4)? <= stored_time(now) {
                found.push((row.get(0)?, row.get(1)?));
                continue;
            }
            stepped_over += 1;
            if stepped_over == STEPPED_OVER_MAX {
                gave_up = true;
                break;
            }
        }
    }
    Ok((found, gave_up))
}

/// What must be looked at although its lane may be excluded, longest overdue first.
fn woken(scope: &Scope<'_>, now: UnixMillis, limit: usize) -> rusqlite::Result<Vec<Place>> {
    scope
        .transaction
        .prepare_cached(WOKEN)?
        .query_map(params![stored_time(now), limit as i64], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect()
}

/// Lane by lane, from where the last such claim ended.
fn by_lanes(
    scope: &Scope<'_>,
    cursor: &mut LaneCursor,
    now: UnixMillis,
    limit: usize,
    excluded: &Excluded<'_>,
) -> rusqlite::Result<Vec<Place>> {
    let mut found = Vec::new();
    let mut statement = scope.transaction.prepare_cached(OF_LANE)?;
    let start = cursor.0.clone();
    let mut wrapped = start.is_none();
    for _ in 0..LANES_MAX {
        let Some(lane) = next_lane(scope, cursor.0.as_ref(), excluded)? else {
            cursor.0 = None;
            if wrapped {
                break;
            }
            wrapped = true;
            continue;
        };
        if !excluded.contains(&lane.0, &lane.1) {
            for priority in PRIORITIES {
                let free = (limit - found.len()) as i64;
                let rows = statement.query_map(
                    params![lane.0, lane.1, priority, stored_time(now), free],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )?;
                for place in rows {
                    found.push(place?);
                }
            }
        }
        let round = wrapped && start.as_ref().is_some_and(|start| lane >= *start);
        cursor.0 = Some(lane);
        if round || found.len() == limit {
            break;
        }
    }
    Ok(found)
}

/// The next lane in which something waits; an excluded transport is passed over whole. Two questions, because SQLite would
/// answer `(transport, destination) > (?, ?)` by walking through all rows of the lane that it begins in.
fn next_lane(
    scope: &Scope<'_>,
    after: Option<&Lane>,
    excluded: &Excluded<'_>,
) -> rusqlite::Result<Option<Lane>> {
    let ask = |sql: &str, parameters: &[&str]| {
        scope
            .transaction
            .prepare_cached(sql)?
            .query_row(rusqlite::params_from_iter(parameters), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
    };
    let Some((transport, destination)) = after else {
        return ask(FIRST_LANE, &[]);
    };
    if !excluded.is_transport(transport)
        && let Some(lane) = ask(NEXT_LANE, &[transport, destination])?
    {
        return Ok(Some(lane));
    }
    ask(NEXT_TRANSPORT, &[transport])
}

/// Raises the fences and reads the messages, within the bytes asked for.
fn take(
    scope: &mut Scope<'_>,
    request: &ClaimRequest,
    places: &[Place],
) -> rusqlite::Result<Vec<Claimed>> {
    let mut claimed = Vec::with_capacity(places.len());
    let mut bytes = 0_usize;
    for &(part, number) in places {
        let Some(sql) = scope.part(part) else {
            continue;
        };
        let message: Vec<u8> = scope
            .transaction
            .prepare_cached(&sql.read_body)?
            .query_row([number], |row| row.get(0))?;
        bytes = bytes.saturating_add(message.len());
        if bytes > request.bytes && !claimed.is_empty() {
            break;
        }
        claimed.push(take_one(scope, &sql.take, number, request, message.into())?);
    }
    Ok(claimed)
}

fn take_one(
    scope: &Scope<'_>,
    sql: &str,
    number: i64,
    request: &ClaimRequest,
    message: Bytes,
) -> rusqlite::Result<Claimed> {
    let holder: Incarnation = request.holder;
    scope.transaction.prepare_cached(sql)?.query_row(
        params![
            number,
            holder.0.as_bytes(),
            stored_time(request.now),
            request.asks
        ],
        |row| {
            Ok(Claimed {
                id: MessageId(uuid::Uuid::from_bytes(row.get(0)?)),
                fence: Fence(row.get(1)?),
                doubt: row.get(2)?,
                unsure_since: time_from(row.get(7)?),
                mark: mark_from(row.get(3)?),
                message,
                progress: row.get(4)?,
                deaths: row.get(5)?,
                note: row.get(6)?,
                asks: row.get(8)?,
            })
        },
    )
}

/// The excluded lanes, for look-up without allocation.
struct Excluded<'a>(HashMap<&'a str, Option<HashSet<&'a str>>>);

impl<'a> Excluded<'a> {
    fn new(pairs: &'a [(String, Option<String>)]) -> Self {
        let mut lanes: HashMap<&str, Option<HashSet<&str>>> = HashMap::new();
        for (transport, destination) in pairs {
            let entry = lanes
                .entry(transport)
                .or_insert_with(|| Some(HashSet::new()));
            match (entry, destination) {
                (entry, None) => *entry = None,
                (Some(some), Some(destination)) => {
                    some.insert(destination);
                }
                (None, Some(_)) => {}
            }
        }
        Self(lanes)
    }

    fn contains(&self, transport: &str, destination: &str) -> bool {
        match self.0.get(transport) {
            None => false,
            Some(None) => true,
            Some(Some(some)) => some.contains(destination),
        }
    }

    fn is_transport(&self, transport: &str) -> bool {
        matches!(self.0.get(transport), Some(None))
    }
}
