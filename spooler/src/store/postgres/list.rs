//! What people ask for by a filter, a slice at a time.
//!
//! First the keys of at most [`SLICE_SEEN_MAX`] rows, from a place on and in the order of an index; then, of those that fit by
//! state, transport and destination, the rows with their heads.

use pombo_proto::control::{QueueFilter, QueueState};
use uuid::Uuid;

use super::{
    super::{
        Place, Slice,
        stored::{
            CLAIMED, DEAD, FINISHED, FINISHED_SEEN_MAX, HEAD_FIRST, HELD, Listed, SLICE_SEEN_MAX,
            UNDATED,
        },
    },
    Result, parts,
    rows::{columns, head_of, read},
    session::Session,
};

/// Rows that are read with their heads at a time.
const PAGE: usize = 500;

/// The states stand in the text: only so does the server see that an index of some states will do.
macro_rules! keys {
    ($which:literal) => {
        concat!(
            "SELECT part, id, since, state, coalesce(transport, ''), coalesce(destination, '') FROM messages WHERE ",
            $which,
            " AND (since, id) > ($1::int8, $2::uuid) ORDER BY since, id LIMIT $3"
        )
    };
}
const ALL: &str = keys!("state < 5");
const IN_DOUBT: &str = keys!("state < 5 AND in_doubt > 0");
const MOVING: &str = keys!("state = 2");
const OF_HELD: &str = keys!("state = 3");
const OF_DEAD: &str = keys!("state = 4");

/// What stands in the texts above and is a constant elsewhere.
const _: () = assert!(CLAIMED == 2 && HELD == 3 && DEAD == 4 && FINISHED == 5);

/// One look by the primary key for each: `OFFSET 0` keeps the server from finding another way.
const ROWS: &str = concat!(
    "SELECT m.* FROM unnest($2::int4[], $3::uuid[]) AS w(p, i), LATERAL (",
    columns!("substring(message FROM 1 FOR $1)"),
    "WHERE part = w.p AND id = w.i OFFSET 0) AS m"
);

pub(super) async fn list(
    session: &mut Session,
    filter: &QueueFilter,
    rows: usize,
    after: Option<&Place>,
) -> Result<Slice> {
    let mut listed = Listed::new(filter, rows);
    let next = if filter.state == Some(QueueState::Finished) {
        finished(session, &mut listed, after).await?
    } else {
        unfinished(session, &mut listed, after).await?
    };
    Ok(Slice {
        rows: listed.rows,
        next,
    })
}

fn keys(filter: &QueueFilter) -> &'static str {
    match filter.state {
        _ if filter.in_doubt => IN_DOUBT,
        Some(QueueState::Moving) => MOVING,
        Some(QueueState::Held) => OF_HELD,
        Some(QueueState::Dead) => OF_DEAD,
        Some(QueueState::Waiting | QueueState::Finished) | None => ALL,
    }
}

async fn unfinished(
    session: &mut Session,
    listed: &mut Listed<'_>,
    after: Option<&Place>,
) -> Result<Option<Place>> {
    let statement = session.prepared(keys(listed.filter)).await?;
    let (at, id) = after.map_or((i64::MIN, Uuid::nil()), |it| (it.at, it.id));
    let limit = SLICE_SEEN_MAX as i64;
    let keys = session
        .client
        .query(&statement, &[&at, &id, &limit])
        .await?;
    let place = |at: i64, id: Uuid| Place {
        at,
        part: 0,
        row: 0,
        id,
        seen: 0,
    };
    let fitting: Vec<(i32, Uuid)> = keys
        .iter()
        .filter(|key| listed.may_fit(key.get::<_, i16>(3).into(), key.get(4), key.get(5)))
        .map(|key| (key.get(0), key.get(1)))
        .collect();
    let statement = session.prepared(ROWS).await?;
    let mut last = after.copied();
    for some in fitting.chunks(PAGE) {
        let (parts, ids): (Vec<i32>, Vec<Uuid>) = some.iter().copied().unzip();
        let mut rows = session
            .client
            .query(&statement, &[&(HEAD_FIRST as i32), &parts, &ids])
            .await?;
        rows.sort_by_key(|row| (row.get::<_, i64>(15), row.get::<_, Uuid>(0)));
        for found in &rows {
            if listed.is_full() {
                return Ok(last);
            }
            last = Some(place(found.get(15), found.get(0)));
            let mut row = read(found);
            row.data.message = head_of(session, row.id, row.data.message).await?;
            listed.offer(row);
        }
    }
    let end = keys.last().filter(|_| keys.len() == SLICE_SEEN_MAX);
    Ok(end.map(|key| place(key.get(2), key.get(1))))
}

/// By the primary key. What has not finished is stepped over, and counted: it may be a million.
const NEWEST: &str = concat!(
    columns!("CASE WHEN state = 5 THEN message ELSE ''::bytea END"),
    "WHERE part = $1 AND id < $2 ORDER BY id DESC LIMIT $3"
);
const NEWEST_UNDATED: &str = concat!(
    columns!("message"),
    "WHERE part = 0 AND state = 5 AND (changed, id) < ($1, $2) ORDER BY changed DESC, id DESC LIMIT $3"
);

/// The newest first, by part and issue, derived ids by when they finished.
async fn finished(
    session: &mut Session,
    listed: &mut Listed<'_>,
    after: Option<&Place>,
) -> Result<Option<Place>> {
    let dated = session.prepared(NEWEST).await?;
    let undated = session.prepared(NEWEST_UNDATED).await?;
    let mut place = after.copied().unwrap_or(Place {
        at: i64::MAX,
        part: u32::MAX,
        row: 0,
        id: Uuid::max(),
        seen: 0,
    });
    let mut looked_at = 0;
    for part in parts::all(session).await?.into_iter().rev() {
        if part > place.part {
            continue;
        }
        if part < place.part {
            (place.part, place.at, place.id) = (part, i64::MAX, Uuid::max());
        }
        loop {
            let limit = PAGE.min(SLICE_SEEN_MAX - looked_at) as i64;
            let page = if part == UNDATED {
                let from: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                    [&place.at, &place.id, &limit];
                session.client.query(&undated, &from).await?
            } else {
                let part = i32::try_from(part).unwrap_or(i32::MAX);
                session
                    .client
                    .query(&dated, &[&part, &place.id, &limit])
                    .await?
            };
            for found in &page {
                if listed.is_full() {
                    return Ok(Some(place));
                }
                looked_at += 1;
                (place.at, place.id) = (found.get(5), found.get(0));
                if i64::from(found.get::<_, i16>(1)) != FINISHED {
                    continue;
                }
                place.seen += 1;
                if place.seen > FINISHED_SEEN_MAX {
                    return Ok(None);
                }
                listed.offer(read(found));
            }
            if looked_at == SLICE_SEEN_MAX {
                return Ok(Some(place));
            }
            if page.len() < PAGE {
                break;
            }
        }
    }
    Ok(None)
}
